//! What the index says about one image, in the published format: every field of it always present, further ones added,
//! unknown ones kept.

use std::{collections::BTreeMap, io::Read, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::image::{Descriptor, Digest, Manifest, RawManifest, Reference, Repository};

use super::{
    error::{Error, Result},
    layout::{Layout, index_key, relative_blob, relative_manifest, relative_tag_aside},
    trust::open_sized,
};

/// An image in the index. Paths are relative to the cache folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// The repository as it was given.
    pub repository: String,
    /// A tag or a digest.
    pub reference: String,
    /// Where the manifest's bytes are.
    pub manifest_path: String,
    /// Digest of the configuration; empty for an index and for artifacts without one.
    pub config_digest: String,
    /// The blobs that are in the cache, by digest; empty for an index, whose children have their own entries.
    pub blobs: BTreeMap<String, CachedBlob>,
    /// Address of the registry the image came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// Whether it is here only as a child of an index. Absent means that somebody asked for it by this name.
    #[serde(default, skip_serializing_if = "is_false")]
    pub child: bool,
    /// Whether it is here only because it was on its way to other places: it leaves when its room is needed. Absent means
    /// that somebody wants to have it here.
    #[serde(default, skip_serializing_if = "is_false")]
    pub transit: bool,
    /// For whose sake it stays all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_by: Vec<String>,
    /// What the image names and its source did not have, by digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// What others wrote into the entry.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A blob in the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CachedBlob {
    /// Digest, with its algorithm.
    pub digest: String,
    /// Size in bytes.
    pub size: u64,
    /// Where it is.
    pub path: String,
    /// Whether it is the image's configuration.
    pub is_config: bool,
    /// Whether its bytes are a gzip or zstd stream.
    pub compressed: bool,
    /// Its type, as the manifest says.
    pub media_type: String,
    /// What others wrote about the blob.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature serde asks for"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl CacheEntry {
    /// Describes a manifest in the cache and those of its blobs that are there.
    pub(super) fn describe(
        layout: &Layout,
        repository: &Repository,
        reference: &Reference,
        manifest_path: String,
        manifest: &RawManifest,
    ) -> Result<Self> {
        let mut entry = Self {
            repository: repository.to_string(),
            reference: reference.to_string(),
            manifest_path,
            config_digest: String::new(),
            blobs: BTreeMap::new(),
            registry: None,
            child: false,
            transit: false,
            kept_by: Vec::new(),
            missing: Vec::new(),
            other: Map::new(),
        };
        // A manifest that was accepted once parses again; bytes nobody understands have no blobs to describe.
        let Ok(Manifest::Image(image)) = manifest.parse() else {
            return Ok(entry);
        };
        let config = image.config.as_ref().map(|config| &config.digest);
        entry.config_digest = config.map(ToString::to_string).unwrap_or_default();
        for descriptor in image.blobs() {
            let is_config = config == Some(&descriptor.digest);
            if let Some(blob) = CachedBlob::describe(layout, descriptor, is_config)? {
                entry.blobs.insert(blob.digest.clone(), blob);
            }
        }
        Ok(entry)
    }

    /// The key of the entry.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.repository, self.reference)
    }

    /// Whether an entry read from disk says about paths and digests what we would have written. The file may be damaged,
    /// or somebody may have put `../../etc` into it.
    pub(super) fn is_sound(&self, key: &str) -> bool {
        let (Ok(repository), Ok(reference)) = (
            self.repository.parse::<Repository>(),
            self.reference.parse::<Reference>(),
        ) else {
            return false;
        };
        let place_is_ours = self.manifest_path == relative_manifest(&repository, &reference)
            || reference
                .tag()
                .is_some_and(|tag| self.manifest_path == relative_tag_aside(&repository, tag));
        let config_is_sound =
            self.config_digest.is_empty() || self.config_digest.parse::<Digest>().is_ok();
        key == index_key(&repository, &reference)
            && place_is_ours
            && config_is_sound
            && self
                .missing
                .iter()
                .all(|digest| digest.parse::<Digest>().is_ok())
            && self.blobs.iter().all(|(digest, blob)| {
                digest
                    .parse::<Digest>()
                    .is_ok_and(|parsed| blob.path == relative_blob(&parsed))
                    && *digest == blob.digest
            })
    }

    /// Takes over from the entry it replaces what only that one knows.
    pub(super) fn succeed(&mut self, former: Self) {
        for (field, value) in former.other {
            self.other.entry(field).or_insert(value);
        }
        for (digest, blob) in former.blobs {
            if let Some(own) = self.blobs.get_mut(&digest) {
                own.other.extend(blob.other);
            }
        }
        // Asked for by name once, it stays so until it is cleaned by name.
        self.child &= former.child;
        self.transit = former.transit && (self.transit || self.registry.is_none());
        for owner in former.kept_by {
            if !self.kept_by.contains(&owner) {
                self.kept_by.push(owner);
            }
        }
        // Without an origin it was made from the files, which know nothing of the source.
        if self.registry.is_none() {
            self.registry = former.registry;
            self.missing = former.missing;
        }
    }
}

impl CachedBlob {
    /// Describes a blob; none if it is not in the cache, as layers that may not be distributed.
    fn describe(layout: &Layout, descriptor: &Descriptor, is_config: bool) -> Result<Option<Self>> {
        let path = layout.blob(&descriptor.digest);
        let Some(mut file) = open_sized(&path, descriptor.size)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            digest: descriptor.digest.to_string(),
            size: descriptor.size,
            path: relative_blob(&descriptor.digest),
            is_config,
            compressed: is_compressed(&mut file, &path)?,
            media_type: descriptor.media_type.to_string(),
            other: Map::new(),
        }))
    }
}

/// Whether the bytes begin like a gzip (RFC 1952) or a zstd (RFC 8878) stream. Media types are not asked: some producers
/// name a plain layer gzip.
fn is_compressed(file: &mut impl Read, path: &Path) -> Result<bool> {
    const GZIP: &[u8] = &[0x1f, 0x8b];
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    let mut magic = Vec::with_capacity(ZSTD.len());
    file.take(ZSTD.len() as u64)
        .read_to_end(&mut magic)
        .map_err(|source| Error::reading("read", path, source))?;
    Ok(magic.starts_with(GZIP) || magic.starts_with(ZSTD))
}
