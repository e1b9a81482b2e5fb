//! What a fake registry holds: blobs, manifests and tags of each repository.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::content::Content;

/// A manifest or index with the type it was pushed as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub bytes: Bytes,
    pub media_type: String,
}

#[derive(Debug, Default)]
pub struct Repository {
    pub blobs: BTreeMap<String, Content>,
    pub manifests: BTreeMap<String, Document>,
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
pub struct Storage {
    repositories: BTreeMap<String, Repository>,
}

impl Storage {
    pub fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub fn find(&self, name: &str) -> Option<&Repository> {
        self.repositories.get(name)
    }

    /// A blob of whatever repository: where redirects lead there are none.
    pub fn any_blob(&self, digest: &str) -> Option<Content> {
        self.repositories
            .values()
            .find_map(|repository| repository.blobs.get(digest).cloned())
    }

    pub fn names(&self) -> Vec<String> {
        self.repositories.keys().cloned().collect()
    }
}

impl Repository {
    /// A manifest by tag or digest, with its digest.
    pub fn manifest(&self, reference: &str) -> Option<(String, Document)> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        let document = self.manifests.get(digest)?;
        Some((digest.to_owned(), document.clone()))
    }

    /// Manifests and blobs that a manifest names and the repository lacks.
    pub fn missing(&self, manifest: &Value) -> Vec<String> {
        let named = |field: &str| manifest[field].as_array().cloned().unwrap_or_default();
        let children = named("manifests")
            .into_iter()
            .filter(|child| !self.manifests.contains_key(digest_of(child)));
        let config = Some(manifest["config"].clone()).filter(Value::is_object);
        let blobs = named("layers")
            .into_iter()
            .filter(|layer| layer["urls"].is_null())
            .chain(named("blobs"))
            .chain(config)
            .filter(|blob| !self.blobs.contains_key(digest_of(blob)));
        children
            .chain(blobs)
            .map(|descriptor| digest_of(&descriptor).to_owned())
            .collect()
    }
}

/// The digest in a descriptor.
pub fn digest_of(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().unwrap_or_default()
}
