//! What can go wrong with the cache, and the words for it.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Class, Classified},
    image::Digest,
    output::ByteSize,
};

use super::disk::FreeSpace;

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the cache could not do what it was asked for.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    /// No space, no inodes or no quota left.
    #[error(
        "the cache volume is full: could not {operation} {path} ({}{free}); remove images with the command clean, or \
         enlarge the volume",
        more(*needed)
    )]
    CacheFull {
        /// What was to be done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// How many bytes it needed.
        needed: u64,
        /// What there is.
        free: FreeSpace,
    },
    /// A read-only volume, missing permissions, or something that is no folder where one must be.
    #[error(
        "the cache cannot be written: could not {operation} {path}; make it writable for this user, or choose another \
         folder with --cache-dir"
    )]
    CacheUnwritable {
        /// What was to be done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Any other trouble with the disk.
    #[error("could not {operation} {path} in the cache")]
    StorageFailed {
        /// What was to be done.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bytes are not what their name says.
    #[error("blob {expected} was not stored: the bytes that came have the digest {actual}")]
    DigestMismatch {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// More or fewer bytes came than the manifest says.
    #[error(
        "blob {digest} was not stored: its manifest says {expected} bytes, but {} {actual} came",
        if actual > expected { "at least" } else { "only" }
    )]
    SizeMismatch {
        /// The digest that was asked for.
        digest: Digest,
        /// The size in its descriptor.
        expected: u64,
        /// How many bytes came before it was given up.
        actual: u64,
    },
    /// An image cannot be stored, since a blob that one of its manifests names is not in the cache.
    #[error(
        "could not store {image} in the cache: its blob {digest} is not there; pull the image again"
    )]
    CachedBlobMissing {
        /// The image.
        image: String,
        /// The blob.
        digest: Digest,
    },
    /// Others read or write the cache, so nothing can be removed from it.
    #[error(
        "the cache {directory} is in use by another run, so nothing was removed; try again when it is done"
    )]
    CacheInUse {
        /// The folder.
        directory: PathBuf,
    },
    /// The image to be removed is not there.
    #[error("the cache {directory} holds no image {image}; the command list shows what it holds")]
    CachedImageUnknown {
        /// The folder.
        directory: PathBuf,
        /// What was asked for.
        image: String,
    },
    /// A manifest of an image that stays cannot be read, so nobody knows which blobs it needs.
    #[error(
        "nothing was removed: the manifest {path} of {image} cannot be read ({reason}), so the blobs it needs are unknown; \
         pull that image again, or remove it with the command clean"
    )]
    CachedManifestUnreadable {
        /// The file.
        path: PathBuf,
        /// The image.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The program is going down while a file operation was still queued.
    #[error("work on the cache was given up because the program stops")]
    CacheInterrupted,
}

/// How much more a full volume would have to hold, where that is known.
fn more(needed: u64) -> String {
    if needed == 0 {
        String::new()
    } else {
        format!("{} more are needed, ", ByteSize(needed))
    }
}

impl Error {
    /// Whether the disk has lost what should be read: asking again gives nothing else.
    pub(super) fn is_of_the_medium(&self) -> bool {
        let lost = Some(rustix::io::Errno::IO.raw_os_error());
        matches!(self, Self::StorageFailed { source, .. } if source.raw_os_error() == lost)
    }

    /// An error met while reading.
    pub(super) fn reading(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::StorageFailed {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    /// An error met while writing `needed` bytes.
    pub(super) fn writing(
        operation: &'static str,
        path: &Path,
        needed: u64,
        source: io::Error,
    ) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::CacheFull {
                operation,
                needed,
                free: FreeSpace::of(&path),
                path,
            },
            io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory => Self::CacheUnwritable {
                operation,
                path,
                source,
            },
            _ => Self::StorageFailed {
                operation,
                path,
                source,
            },
        }
    }
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::CacheFull { .. }
            | Self::CacheUnwritable { .. }
            | Self::StorageFailed { .. }
            | Self::CachedBlobMissing { .. }
            | Self::CacheInUse { .. }
            | Self::CachedManifestUnreadable { .. } => Class::Storage,
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => Class::Digest,
            Self::CachedImageUnknown { .. } => Class::NotFound,
            Self::CacheInterrupted => Class::Cancelled,
        }
    }

    fn reason(&self) -> &'static str {
        self.into()
    }
}
