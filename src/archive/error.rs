//! What can be wrong with an archive, and the words for it (archive reference 4.2).

use std::{fmt, io, sync::Arc};

use crate::{
    cache,
    error::{Class, Classified},
    image::{self, Digest, ImageName},
};

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The archive, or a place in it, that a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    archive: Arc<str>,
    part: Option<Part>,
}

/// What of an archive a message is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Entry(EntryPlace),
    /// A blob that it relies on.
    Cached(Digest),
}

/// An entry as a tar tool would count it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EntryPlace {
    number: u64,
    offset: u64,
    /// Escaped.
    name: String,
}

impl Place {
    /// The archive as a whole.
    pub(super) fn archive(name: &str) -> Self {
        Self {
            archive: escaped(name.as_bytes()).into(),
            part: None,
        }
    }

    /// A blob of the cache that the archive relies on.
    pub(super) fn cached(&self, digest: &Digest) -> Self {
        Self {
            archive: Arc::clone(&self.archive),
            part: Some(Part::Cached(digest.clone())),
        }
    }

    /// The header of an entry: which one it is, counted from 1, and where it lies in the (expanded) archive.
    pub(super) fn entry(&self, number: u64, offset: u64, name: &[u8]) -> Self {
        Self {
            archive: Arc::clone(&self.archive),
            part: Some(Part::Entry(EntryPlace {
                number,
                offset,
                name: escaped(name),
            })),
        }
    }

    pub(super) fn invalid(&self, reason: impl Into<String>) -> Error {
        let place = self.clone();
        let reason = reason.into();
        Error::ArchiveInvalid { place, reason }
    }

    pub(super) fn unsafe_because(&self, reason: impl Into<String>) -> Error {
        let place = self.clone();
        let reason = reason.into();
        Error::ArchiveUnsafe { place, reason }
    }

    pub(super) fn unsupported(&self, reason: impl Into<String>) -> Error {
        let place = self.clone();
        let reason = reason.into();
        Error::ArchiveUnsupported { place, reason }
    }

    /// `limit` is the field of [`super::Limits`].
    pub(super) fn limit(&self, limit: &'static str, reason: impl Into<String>) -> Error {
        Error::ArchiveLimit {
            place: self.clone(),
            limit,
            reason: reason.into(),
        }
    }

    pub(super) fn truncated(&self, reason: impl Into<String>) -> Error {
        let place = self.clone();
        let reason = reason.into();
        Error::ArchiveTruncated { place, reason }
    }

    pub(super) fn mismatch(
        &self,
        what: impl Into<String>,
        expected: &Digest,
        actual: &Digest,
    ) -> Error {
        Error::DigestMismatch {
            place: self.clone(),
            what: what.into(),
            expected: expected.clone(),
            actual: actual.clone(),
        }
    }

    pub(super) fn unreadable(&self, source: io::Error) -> Error {
        let place = self.clone();
        Error::ArchiveUnreadable { place, source }
    }

    /// A manifest in the archive that cannot be read.
    pub(super) fn manifest(&self, error: &image::Error) -> Error {
        if matches!(error, image::Error::ManifestUnsupported { .. }) {
            self.unsupported(error.to_string())
        } else {
            self.invalid(error.to_string())
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "archive {}", self.archive)?;
        match &self.part {
            None => Ok(()),
            Some(Part::Entry(EntryPlace {
                number,
                offset,
                name,
            })) => write!(formatter, ", entry {number} '{name}' at byte {offset},"),
            Some(Part::Cached(digest)) => write!(formatter, ", blob {digest} of the cache,"),
        }
    }
}

/// Escapes bytes that a stranger wrote, and keeps them short enough for a message.
pub(super) fn escaped(bytes: &[u8]) -> String {
    /// Longer names do not help the reader.
    const LIMIT: usize = 256;
    let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(LIMIT)])
        .chars()
        .flat_map(char::escape_debug)
        .collect::<String>();
    if bytes.len() > LIMIT {
        text.push('…');
    }
    text
}

/// Why an archive was not read.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    /// It breaks its format or contradicts itself.
    #[error("{place} is not valid: {reason}")]
    ArchiveInvalid {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// Readers would disagree about it, or it reaches outside of itself.
    #[error(
        "{place} is refused: {reason}; an archive that another tool writes from the image will do"
    )]
    ArchiveUnsafe {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// A format or a kind of entry that no image needs, or none of today.
    #[error("{place} is not supported: {reason}")]
    ArchiveUnsupported {
        /// Where.
        place: Place,
        /// What it is, with the remedy.
        reason: String,
    },
    /// Larger than anything an honest producer makes.
    #[error("{place} exceeds the limit {limit}: {reason}")]
    ArchiveLimit {
        /// Where.
        place: Place,
        /// Which limit.
        limit: &'static str,
        /// How far.
        reason: String,
    },
    /// Its end is missing.
    #[error("{place} ends too early: {reason}; copy or save the archive again")]
    ArchiveTruncated {
        /// Where.
        place: Place,
        /// What is missing.
        reason: String,
    },
    /// Bytes are not what their name, the configuration or a manifest says.
    #[error("{place} is damaged: {what} should have the digest {expected}, but it has {actual}")]
    DigestMismatch {
        /// Where.
        place: Place,
        /// Which bytes.
        what: String,
        /// The digest they should have.
        expected: Digest,
        /// The digest they have.
        actual: Digest,
    },
    /// An index without some of its platforms.
    #[error(
        "{place} holds only a part of image {image}: {missing} missing; save it with all its platforms, or only one of them"
    )]
    ArchiveIncomplete {
        /// The archive.
        place: Place,
        /// The image, by name or position.
        image: String,
        /// What is missing, with its verb.
        missing: String,
    },
    /// It leaves out what an earlier archive carried, and the cache has not got that.
    #[error(
        "{place} was saved without what earlier archives carried, and of that the cache lacks {missing}: extract the earlier \
         archives first"
    )]
    ArchiveBaseMissing {
        /// The archive.
        place: Place,
        /// The digests.
        missing: String,
    },
    /// What it leaves out is in the cache, but damaged.
    #[error(
        "{place} was saved without what earlier archives carried, and of that the blob {digest} is damaged in the cache, its \
         bytes have the digest {actual}: `docker-image-pusher verify` moves it away, then extract the earlier archives again"
    )]
    ArchiveBaseDamaged {
        /// The archive.
        place: Place,
        /// What the blob is called.
        digest: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A part of an archive is not there.
    #[error(
        "the part {part} of the archive is missing: copy it beside the others; it is the one with the digest {digest}"
    )]
    ArchivePartMissing {
        /// Its path.
        part: String,
        /// Its digest.
        digest: Digest,
    },
    /// The checksums of parts are not there.
    #[error(
        "there is no {path} with the checksums of the parts: copy it beside them, or join the parts into one file with `cat`"
    )]
    ArchiveChecksumsMissing {
        /// The path.
        path: String,
    },
    /// A part of an archive is not what its checksum says.
    #[error(
        "the part {part} of the archive should have the digest {expected}, but it has {actual}{hint}: copy it again from where \
         the archive was saved"
    )]
    ArchivePartDamaged {
        /// Its path.
        part: String,
        /// The digest that the checksums list.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
        /// What else is known of it.
        hint: String,
    },
    /// None of its images is the one that was chosen.
    #[error("archive {archive} has no image {wanted}; it has {images}")]
    ArchiveImageUnknown {
        /// The archive.
        archive: String,
        /// What was chosen.
        wanted: String,
        /// What is there.
        images: String,
    },
    /// It has several images, and none was chosen.
    #[error("archive {archive} has several images, choose one with --image: {images}")]
    ArchiveImageAmbiguous {
        /// The archive.
        archive: String,
        /// What is there.
        images: String,
    },
    /// An image without a name was given none.
    #[error(
        "archive {archive} has no image with a whole name: {images}; give it one with --repository and --reference, in a \
         resource with index and as"
    )]
    ArchiveImageUnnamed {
        /// The archive.
        archive: String,
        /// What is there.
        images: String,
    },
    /// Two of its images would go by one name.
    #[error(
        "in archive {archive} the images @{first} and @{second} would both go by the name {name}: choose one, or rename one"
    )]
    ArchiveNameShared {
        /// The archive.
        archive: String,
        /// The name.
        name: ImageName,
        /// Position of the one.
        first: usize,
        /// Position of the other.
        second: usize,
    },
    /// There is no such file.
    #[error("there is no archive {path}; check the path")]
    ArchiveNotFound {
        /// The path as given.
        path: String,
    },
    /// The path names something else.
    #[error("{path} is {kind}, not an archive; give a tar file, or '-' for standard input")]
    NotAnArchiveFile {
        /// The path as given.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// The system does not let us read it.
    #[error("{place} could not be read")]
    ArchiveUnreadable {
        /// Where.
        place: Place,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A layer could not be compressed.
    #[error(
        "{place} could not be compressed; run it again with more memory, or without compression"
    )]
    CompressionFailed {
        /// Where.
        place: Place,
        /// What the encoder or the system said.
        #[source]
        source: io::Error,
    },
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::ArchiveInvalid { .. }
            | Self::ArchiveUnsafe { .. }
            | Self::ArchiveUnsupported { .. }
            | Self::ArchiveLimit { .. }
            | Self::ArchiveTruncated { .. }
            | Self::DigestMismatch { .. }
            | Self::ArchiveIncomplete { .. }
            | Self::ArchiveBaseMissing { .. }
            | Self::ArchiveBaseDamaged { .. }
            | Self::ArchivePartMissing { .. }
            | Self::ArchiveChecksumsMissing { .. }
            | Self::ArchivePartDamaged { .. } => Class::Archive,
            // What the user wrote is wrong: nothing was kept by then.
            Self::ArchiveImageUnknown { .. }
            | Self::ArchiveImageAmbiguous { .. }
            | Self::ArchiveImageUnnamed { .. }
            | Self::ArchiveNameShared { .. }
            | Self::ArchiveNotFound { .. }
            | Self::NotAnArchiveFile { .. } => Class::Config,
            Self::ArchiveUnreadable { .. } | Self::CompressionFailed { .. } => Class::Storage,
            Self::Cache(source) => source.class(),
        }
    }

    #[deny(clippy::wildcard_enum_match_arm)]
    fn reason(&self) -> &'static str {
        match self {
            Self::Cache(source) => source.reason(),
            Self::ArchiveInvalid { .. }
            | Self::ArchiveUnsafe { .. }
            | Self::ArchiveUnsupported { .. }
            | Self::ArchiveLimit { .. }
            | Self::ArchiveTruncated { .. }
            | Self::DigestMismatch { .. }
            | Self::ArchiveIncomplete { .. }
            | Self::ArchiveBaseMissing { .. }
            | Self::ArchiveBaseDamaged { .. }
            | Self::ArchivePartMissing { .. }
            | Self::ArchiveChecksumsMissing { .. }
            | Self::ArchivePartDamaged { .. }
            | Self::ArchiveImageUnknown { .. }
            | Self::ArchiveImageAmbiguous { .. }
            | Self::ArchiveImageUnnamed { .. }
            | Self::ArchiveNameShared { .. }
            | Self::ArchiveNotFound { .. }
            | Self::NotAnArchiveFile { .. }
            | Self::ArchiveUnreadable { .. }
            | Self::CompressionFailed { .. } => self.into(),
        }
    }
}
