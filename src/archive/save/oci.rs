//! An archive in the OCI layout: `oci-layout` and `index.json` first, so that a reader of a stream knows what comes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;

use crate::image::{Digest, ImageName, MediaType};

use super::{super::json::INCREMENTAL, Content, Entry, Result, SavedBlob, pick::Picked};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: MediaType,
    manifests: Vec<Listed>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, &'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    media_type: MediaType,
    digest: Digest,
    size: u64,
    annotations: BTreeMap<&'static str, ImageName>,
}

impl From<&Picked> for Listed {
    fn from(image: &Picked) -> Self {
        let mut annotations = BTreeMap::from([("io.containerd.image.name", image.name.clone())]);
        // The whole name here as well, as podman writes it: several images of one archive may have one tag, and podman and
        // skopeo look nowhere else. A digest is no name to them.
        if image.name.reference.tag().is_some() {
            annotations.insert("org.opencontainers.image.ref.name", image.name.clone());
        }
        Self {
            media_type: image.root.media_type().clone(),
            digest: image.root.digest().clone(),
            size: image.root.size(),
            annotations,
        }
    }
}

/// The files of the archive in their order, and the blobs that it leaves out since `earlier` archives have them. Manifests and
/// configurations stay: they are small, and tell what the archive is.
pub(super) fn entries(
    images: &[Picked],
    earlier: &BTreeSet<Digest>,
) -> Result<(Vec<Entry>, BTreeSet<SavedBlob>)> {
    let configs: BTreeSet<&Digest> = images.iter().flat_map(|image| &image.configs).collect();
    let mut relies = BTreeSet::new();
    let mut blobs: BTreeMap<Digest, Content> = BTreeMap::new();
    for image in images {
        for (digest, manifest) in &image.manifests {
            let content = Content::Manifest(digest.clone(), manifest.bytes().clone());
            blobs.insert(digest.clone(), content);
        }
        for blob in &image.blobs {
            if earlier.contains(&blob.digest) && !configs.contains(&blob.digest) {
                relies.insert(blob.clone());
                continue;
            }
            // A manifest that something also names as a blob is there already.
            let content = || Content::Blob(blob.clone());
            blobs.entry(blob.digest.clone()).or_insert_with(content);
        }
    }
    relies.retain(|blob| !blobs.contains_key(&blob.digest));
    let mut annotations = BTreeMap::new();
    if !relies.is_empty() {
        annotations.insert(INCREMENTAL, "true");
    }
    let index = Index {
        schema_version: 2,
        media_type: MediaType::OCI_INDEX,
        manifests: images.iter().map(Listed::from).collect(),
        annotations,
    };
    let mut entries = vec![
        Entry {
            path: "oci-layout".to_owned(),
            content: Content::Document(Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#)),
        },
        Entry {
            path: "index.json".to_owned(),
            content: super::document("index.json", &index)?,
        },
        folder("blobs/".to_owned()),
    ];
    let mut algorithm = None;
    for (digest, content) in blobs {
        let name = digest.algorithm().name();
        if algorithm.replace(name) != Some(name) {
            entries.push(folder(format!("blobs/{name}/")));
        }
        entries.push(Entry {
            path: format!("blobs/{name}/{}", digest.hex()),
            content,
        });
    }
    Ok((entries, relies))
}

fn folder(path: String) -> Entry {
    Entry {
        path,
        content: Content::Folder,
    }
}
