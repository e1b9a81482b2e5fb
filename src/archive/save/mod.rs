//! Writes images of the cache into one archive, for machines that no registry reaches.
//!
//! `pick` finds what belongs to the images, `oci` and `docker` say which files make an archive of it, `tar` writes them, `target`
//! and `parts` are where they go. Equal images give equal bytes: no times, no users, one order. Every blob is hashed while it is copied, and
//! an archive with a wrong one never gets its name.

mod docker;
mod earlier;
mod error;
mod near;
mod oci;
mod parts;
mod pick;
mod tar;
mod target;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    cache::Cache,
    image::{Digest, ImageName, MediaType, Platform},
    output::OutputManager,
};

use pick::Picked;
use tar::TarWriter;

pub use earlier::carried;
pub use error::SaveError;
pub use target::SaveTarget;

/// The result of this folder.
type Result<T, E = SaveError> = std::result::Result<T, E>;

/// The layout of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SaveFormat {
    /// The OCI image layout: manifests and indexes as they are.
    Oci,
    /// That of `docker save`: configuration and layers of one platform.
    Docker,
}

/// What is to be saved, and how.
#[derive(Debug, Clone)]
pub struct SaveRequest {
    /// The images by their names in the cache.
    pub images: Vec<ImageName>,
    /// The layout.
    pub format: SaveFormat,
    /// One platform of those images that have several.
    pub platform: Option<Platform>,
    /// Blobs that earlier archives carry, as [`carried`] finds them. An OCI archive leaves out those of them that are layers,
    /// one for docker leaves out nothing.
    pub earlier: BTreeSet<Digest>,
}

/// What an archive holds. Version 1 of its JSON form tells of an archive that is whole, version 2 of one that relies on earlier
/// ones, which who knows only version 1 must not take for whole. Both only ever gain fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SaveReport {
    /// Version of this form.
    pub version: u8,
    /// The file as the user named it; `-` for standard output.
    pub file: String,
    /// The layout.
    pub format: SaveFormat,
    /// Bytes of the archive.
    pub bytes: u64,
    /// The images by name.
    pub images: Vec<SavedImage>,
    /// Every blob and manifest in the archive, once, by digest.
    pub blobs: Vec<SavedBlob>,
    /// Blobs that its images need and earlier archives carry, by digest; none where it is whole.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub relies: BTreeSet<SavedBlob>,
    /// The files that are the archive when they are joined, in order; none where it is one file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<SavedPart>,
}

/// A file that holds a part of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedPart {
    /// Its path, as the user named the archive.
    pub file: String,
    /// Digest of its bytes.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// An image in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedImage {
    /// Its name in the archive, with host.
    pub name: ImageName,
    /// Digest of its manifest or index.
    pub digest: Digest,
    /// Type of its manifest or index.
    pub media_type: MediaType,
}

/// A blob or a manifest in an archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SavedBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    path: String,
    content: Content,
}

/// What stands in a file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Folder,
    /// What only describes the rest.
    Document(Bytes),
    /// A manifest, which was verified when it was read.
    Manifest(Digest, Bytes),
    /// A blob of the cache.
    Blob(SavedBlob),
}

impl Content {
    const fn size(&self) -> u64 {
        match self {
            Self::Folder => 0,
            Self::Document(bytes) | Self::Manifest(_, bytes) => bytes.len() as u64,
            Self::Blob(blob) => blob.size,
        }
    }

    /// What a report says of it.
    fn reported(&self) -> Option<SavedBlob> {
        match self {
            Self::Folder | Self::Document(_) => None,
            Self::Manifest(digest, _) => Some(SavedBlob {
                digest: digest.clone(),
                size: self.size(),
            }),
            Self::Blob(blob) => Some(blob.clone()),
        }
    }
}

/// Writes images of the cache into an archive. Nothing can be cleaned out of the cache meanwhile; it may be read-only.
///
/// # Errors
/// When an image, or a part of it, is not in the cache, when a blob is not what its digest says, when an image does not fit
/// the format, and when the target cannot be written. A file is there as a whole or not at all.
pub async fn save(
    cache: &Cache,
    request: &SaveRequest,
    target: SaveTarget,
    output: &OutputManager,
) -> Result<SaveReport> {
    let _store = cache.read_shared().await?;
    let picked = pick::images(cache, request, output).await?;
    let (entries, relies) = match request.format {
        SaveFormat::Oci => oci::entries(&picked, &request.earlier)?,
        SaveFormat::Docker => (docker::entries(&picked)?, BTreeSet::new()),
    };
    let file = target.name();
    let (bytes, parts) = write(cache, &entries, target, output).await?;
    let blobs: BTreeMap<Digest, SavedBlob> = entries
        .iter()
        .filter_map(|entry| entry.content.reported())
        .map(|blob| (blob.digest.clone(), blob))
        .collect();
    Ok(SaveReport {
        version: if relies.is_empty() { 1 } else { 2 },
        file,
        format: request.format,
        bytes,
        images: picked.iter().map(SavedImage::from).collect(),
        blobs: blobs.into_values().collect(),
        relies,
        parts,
    })
}

impl From<&Picked> for SavedImage {
    fn from(image: &Picked) -> Self {
        Self {
            name: image.name.clone(),
            digest: image.root.digest().clone(),
            media_type: image.root.media_type().clone(),
        }
    }
}

/// Writes the entries in their order and returns the bytes of the archive, and its parts.
async fn write(
    cache: &Cache,
    entries: &[Entry],
    target: SaveTarget,
    output: &OutputManager,
) -> Result<(u64, Vec<SavedPart>)> {
    let expected = entries.iter().map(|entry| entry.content.size()).sum();
    let length = tar::length(entries);
    let progress = output.writing(&target.name(), expected);
    // A thread in the middle of a large blob sees by this that nobody waits for the archive any more.
    let waiting = Arc::new(());
    let watch = Arc::downgrade(&waiting);
    let mut archive = blocking(move || {
        let sink = target.open(length)?;
        Ok(TarWriter::new(sink, progress, watch))
    })
    .await?;
    for Entry { path, content } in entries.iter().cloned() {
        let file = match &content {
            Content::Blob(blob) => Some(pick::open(cache, blob).await?),
            Content::Folder | Content::Document(_) | Content::Manifest(..) => None,
        };
        archive = blocking(move || {
            match (content, file) {
                (Content::Blob(blob), Some(file)) => archive.blob(&path, &blob, file)?,
                (Content::Document(bytes) | Content::Manifest(_, bytes), _) => {
                    archive.bytes(&path, &bytes)?;
                }
                (Content::Folder | Content::Blob(_), _) => archive.folder(&path)?,
            }
            Ok(archive)
        })
        .await?;
    }
    blocking(move || archive.finish()).await
}

/// A document as compact JSON.
fn document(name: &str, value: &impl Serialize) -> Result<Content> {
    let bytes = serde_json::to_vec(value).map_err(|error| SaveError::ArchiveUnwritable {
        target: name.to_owned(),
        source: error.into(),
    })?;
    Ok(Content::Document(bytes.into()))
}

/// Runs file operations where they may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    crate::blocking::blocking(work, || SaveError::SaveInterrupted).await
}
