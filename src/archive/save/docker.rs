//! An archive in the layout of `docker save`: `manifest.json` first, then configurations and layers as they are. It has no
//! place for manifests, so an image that is read from it may have another digest.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::image::{ImageManifest, ImageName, Manifest, MediaType};

use super::{
    super::json::{is_image_config, is_tar_layer},
    Content, Entry, Result, SaveError, SavedBlob,
    pick::Picked,
};

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Element {
    config: String,
    repo_tags: Vec<ImageName>,
    layers: Vec<String>,
}

/// The files of the archive in their order.
pub(super) fn entries(images: &[Picked]) -> Result<Vec<Entry>> {
    let mut elements: Vec<Element> = Vec::new();
    let mut files: BTreeMap<String, Content> = BTreeMap::new();
    for image in images {
        let element = element(image, &mut files)?;
        // One image under several names is one element, as docker writes it.
        match elements
            .iter_mut()
            .find(|known| known.config == element.config && known.layers == element.layers)
        {
            Some(known) => known.repo_tags.extend(element.repo_tags),
            None => elements.push(element),
        }
    }
    let mut entries = vec![Entry {
        path: "manifest.json".to_owned(),
        content: super::document("manifest.json", &elements)?,
    }];
    entries.extend(
        files
            .into_iter()
            .map(|(path, content)| Entry { path, content }),
    );
    Ok(entries)
}

fn element(image: &Picked, files: &mut BTreeMap<String, Content>) -> Result<Element> {
    let unsuitable = |reason: String| SaveError::FormatUnsuitable {
        image: image.name.clone(),
        reason,
    };
    let manifest =
        image_manifest(image).ok_or_else(|| unsuitable("it is an index of indexes".to_owned()))?;
    let config = manifest
        .config
        .filter(|config| is_image_config(&config.media_type))
        .ok_or_else(|| unsuitable("it is an artifact and no image".to_owned()))?;
    let mut add = |path: String, blob: SavedBlob| {
        files.insert(path.clone(), Content::Blob(blob));
        path
    };
    let mut layers = Vec::with_capacity(manifest.layers.len());
    for layer in &manifest.layers {
        let (digest, size) = (layer.digest.clone(), layer.size);
        if !is_tar_layer(&layer.media_type) {
            return Err(unsuitable(format!("its layer {digest} is no tar")));
        }
        let blob = SavedBlob { digest, size };
        if !image.blobs.contains(&blob) {
            let digest = blob.digest;
            return Err(unsuitable(format!(
                "its layer {digest} stays with its publisher and is not in the cache"
            )));
        }
        let path = format!("{}{}", blob.digest.hex(), ending(&layer.media_type));
        layers.push(add(path, blob));
    }
    let name = format!("{}.json", config.digest.hex());
    let blob = SavedBlob {
        digest: config.digest,
        size: config.size,
    };
    let tag = image.name.reference.tag();
    Ok(Element {
        config: add(name, blob),
        repo_tags: tag.map(|_| image.name.clone()).into_iter().collect(),
        layers,
    })
}

fn image_manifest(image: &Picked) -> Option<ImageManifest> {
    match image.root.parse() {
        Ok(Manifest::Image(manifest)) => Some(*manifest),
        Ok(Manifest::Index(_)) | Err(_) => None,
    }
}

/// How tools end the name of a layer in this compression; readers look at the bytes.
fn ending(media_type: &MediaType) -> &'static str {
    let text = media_type.as_str();
    if text.ends_with("gzip") {
        ".tar.gz"
    } else if text.ends_with("zstd") {
        ".tar.zst"
    } else {
        ".tar"
    }
}
