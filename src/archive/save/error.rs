//! Why no archive was written, and the words for it.

use std::{io, path::PathBuf};

use crate::{
    cache,
    error::{Class, Classified},
    image::{Digest, ImageName, Platform},
    output::ByteSize,
};

/// Why images could not be saved. Nothing is left of an archive that failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum SaveError {
    /// The cache does not know the image.
    #[error(
        "{image} is not in the cache{}; pull it first, or see what is there with `docker-image-pusher list`",
        near_names(.near)
    )]
    CachedImageUnknown {
        /// The image asked for.
        image: ImageName,
        /// Images with names like it.
        near: Vec<ImageName>,
    },
    /// The cache knows the image, but a part of it is missing.
    #[error("{image} is not whole in the cache, {digest} is missing: pull it again")]
    CachedImageIncomplete {
        /// The image asked for.
        image: ImageName,
        /// What is missing.
        digest: Digest,
    },
    /// A blob has gone while it was needed.
    #[error("the blob {digest} was in the cache and is gone: pull its image again")]
    CachedBlobMissing {
        /// The blob.
        digest: Digest,
    },
    /// A blob in the cache is not what it was when it was verified.
    #[error(
        "the blob {digest} in the cache is damaged, its bytes have the digest {actual}: `docker-image-pusher verify` moves it \
         away, then pull its image again"
    )]
    CachedBlobDamaged {
        /// What it is called.
        digest: Digest,
        /// What it is.
        actual: Digest,
    },
    /// Several platforms, of which the format holds one.
    #[error("{image} has several platforms, choose one with --platform: {}", listed(.platforms))]
    PlatformAmbiguous {
        /// The image.
        image: ImageName,
        /// What there is of it in the cache.
        platforms: Vec<Platform>,
    },
    /// The image is not for this platform.
    #[error(
        "{image} is not in the cache for {platform}, but for {}: choose one of these, or pull the image again",
        listed(.platforms)
    )]
    PlatformMissing {
        /// The image.
        image: ImageName,
        /// The platform asked for.
        platform: Platform,
        /// What there is of it in the cache.
        platforms: Vec<Platform>,
    },
    /// The format has no place for what the image is.
    #[error("{image} cannot be saved in the format docker: {reason}; use --format oci")]
    FormatUnsuitable {
        /// The image.
        image: ImageName,
        /// Why not.
        reason: String,
    },
    /// Two different images would have one name in the archive.
    #[error(
        "two different images would go by the name {name} in the archive: save them into one archive each"
    )]
    SavedNameShared {
        /// The name.
        name: ImageName,
    },
    /// The file is there already.
    #[error("{path} exists already: choose another file, or replace it with --force")]
    ArchiveExists {
        /// The file.
        path: PathBuf,
    },
    /// The archive would be in more parts than there are numbers for.
    #[error(
        "the archive would be in {count} parts, of which there may be 1000: choose a --split-size of at least {least}"
    )]
    PartsTooMany {
        /// So many.
        count: u64,
        /// The smallest size that will do.
        least: u64,
    },
    /// What stands there is no file, so no file can take its place.
    #[error(
        "{path} is no regular file: choose another path, or write to standard output with -f -"
    )]
    ArchiveTarget {
        /// The path.
        path: PathBuf,
    },
    /// No space or quota left.
    #[error("there is no room for the archive {target}, which needs {}: make room, or choose another volume", ByteSize(*.needed))]
    ArchiveVolumeFull {
        /// The file.
        target: String,
        /// Bytes of its content.
        needed: u64,
    },
    /// The system does not let us write.
    #[error("could not write the archive {target}")]
    ArchiveUnwritable {
        /// The file.
        target: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A blob cannot be read.
    #[error("could not read the blob {digest} in the cache")]
    CachedBlobUnreadable {
        /// The blob.
        digest: Digest,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody waits for the archive any more.
    #[error("the archive was given up because the program stops")]
    SaveInterrupted,
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

fn near_names(near: &[ImageName]) -> String {
    if near.is_empty() {
        return String::new();
    }
    format!("; names like it are {}", listed(near))
}

fn listed(items: &[impl ToString]) -> String {
    if items.is_empty() {
        return "none that is known".to_owned();
    }
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(", ")
}

impl Classified for SaveError {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::CachedImageUnknown { .. }
            | Self::CachedImageIncomplete { .. }
            | Self::CachedBlobMissing { .. } => Class::NotFound,
            Self::CachedBlobDamaged { .. } => Class::Digest,
            Self::PlatformAmbiguous { .. }
            | Self::PlatformMissing { .. }
            | Self::FormatUnsuitable { .. }
            | Self::SavedNameShared { .. }
            | Self::ArchiveExists { .. }
            | Self::PartsTooMany { .. }
            | Self::ArchiveTarget { .. } => Class::Config,
            Self::ArchiveVolumeFull { .. }
            | Self::ArchiveUnwritable { .. }
            | Self::CachedBlobUnreadable { .. } => Class::Storage,
            Self::SaveInterrupted => Class::Cancelled,
            Self::Cache(source) => source.class(),
        }
    }

    #[deny(clippy::wildcard_enum_match_arm)]
    fn reason(&self) -> &'static str {
        match self {
            Self::Cache(source) => source.reason(),
            Self::CachedImageUnknown { .. }
            | Self::CachedImageIncomplete { .. }
            | Self::CachedBlobMissing { .. }
            | Self::CachedBlobDamaged { .. }
            | Self::CachedBlobUnreadable { .. }
            | Self::PlatformAmbiguous { .. }
            | Self::PlatformMissing { .. }
            | Self::FormatUnsuitable { .. }
            | Self::SavedNameShared { .. }
            | Self::ArchiveExists { .. }
            | Self::PartsTooMany { .. }
            | Self::ArchiveTarget { .. }
            | Self::ArchiveVolumeFull { .. }
            | Self::ArchiveUnwritable { .. }
            | Self::SaveInterrupted => self.into(),
        }
    }
}
