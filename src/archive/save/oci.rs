//! An archive in the OCI layout: `oci-layout` and `index.json` first, so that a reader of a stream knows what comes.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use crate::image::{Digest, ImageName, MediaType};

use super::{Content, Entry, Result, pick::Picked};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: MediaType,
    manifests: Vec<Listed>,
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

/// The files of the archive in their order.
pub(super) fn entries(images: &[Picked]) -> Result<Vec<Entry>> {
    let index = Index {
        schema_version: 2,
        media_type: MediaType::OCI_INDEX,
        manifests: images.iter().map(Listed::from).collect(),
    };
    let mut blobs: BTreeMap<Digest, Content> = BTreeMap::new();
    for image in images {
        for (digest, manifest) in &image.manifests {
            let content = Content::Manifest(digest.clone(), manifest.bytes().clone());
            blobs.insert(digest.clone(), content);
        }
        for blob in &image.blobs {
            // A manifest that something also names as a blob is there already.
            let content = || Content::Blob(blob.clone());
            blobs.entry(blob.digest.clone()).or_insert_with(content);
        }
    }
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
    Ok(entries)
}

fn folder(path: String) -> Entry {
    Entry {
        path,
        content: Content::Folder,
    }
}
