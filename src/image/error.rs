//! What can be wrong with a name, a digest or a manifest.

use crate::error::{Class, Classified};

use super::Digest;

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a name or a manifest is refused. Each message names the thing, the reason and what would be right.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    /// Not `algorithm:hex` with a length that fits the algorithm.
    #[error(
        "'{value}' is not a digest: {reason}; expected sha256:<64 hex digits> or sha512:<128 hex digits>"
    )]
    InvalidDigest {
        /// What was given, escaped.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not a tag by the distribution specification.
    #[error(
        "'{value}' is not a tag: a tag starts with a letter, digit or '_', goes on with letters, digits, '.', '_' and '-', \
         and has at most 128 characters"
    )]
    InvalidTag {
        /// What was given, escaped.
        value: String,
    },
    /// Not a repository name by the distribution specification.
    #[error(
        "'{value}' is not a repository name: {reason}; expected [host[:port]/]path in lower case, for example \
         library/ubuntu or registry.example:5000/team/app"
    )]
    InvalidRepository {
        /// What was given, escaped.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Not `host[:port]`.
    #[error(
        "'{value}' is not a registry host: {reason}; expected host[:port], for example registry.example:5000"
    )]
    InvalidHost {
        /// What was given, escaped.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A name that has neither a tag nor a digest.
    #[error("'{value}' names no tag and no digest: add :TAG or @DIGEST")]
    MissingReference {
        /// What was given, escaped.
        value: String,
    },
    /// Not `os/architecture[/variant]`.
    #[error(
        "'{value}' is not a platform: expected os/arch or os/arch/variant, for example linux/arm64/v8"
    )]
    InvalidPlatform {
        /// What was given, escaped.
        value: String,
    },
    /// The bytes of a manifest do not say what a manifest must say.
    #[error("manifest {digest} cannot be read: {reason}")]
    ManifestInvalid {
        /// Digest of the bytes.
        digest: Digest,
        /// What is wrong, from the parser, escaped and shortened.
        reason: String,
    },
    /// A manifest names its parts by digests that cannot be checked here.
    #[error(
        "manifest {digest} names its parts by the digest algorithm {algorithm}, and only sha256 and sha512 are supported: build \
         the image with one of these"
    )]
    AlgorithmUnsupported {
        /// Digest of the bytes.
        digest: Digest,
        /// The algorithm's name.
        algorithm: String,
    },
    /// A manifest of a kind that cannot be copied any more.
    #[error("manifest {digest} has the type {media_type}: {remedy}")]
    ManifestUnsupported {
        /// Digest of the bytes.
        digest: Digest,
        /// Its media type.
        media_type: String,
        /// What the user can do.
        remedy: &'static str,
    },
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::InvalidDigest { .. }
            | Self::InvalidTag { .. }
            | Self::InvalidRepository { .. }
            | Self::InvalidHost { .. }
            | Self::MissingReference { .. }
            | Self::InvalidPlatform { .. } => Class::Config,
            // What a registry offers is refused; other images go on.
            Self::ManifestInvalid { .. }
            | Self::AlgorithmUnsupported { .. }
            | Self::ManifestUnsupported { .. } => Class::Policy,
        }
    }

    fn reason(&self) -> &'static str {
        self.into()
    }
}

/// Escapes what a stranger wrote and keeps it short enough for a message.
pub(crate) fn shown(value: &str) -> String {
    /// Longer values do not help the reader; a host and name have at most 255 characters.
    const LIMIT: usize = 256;
    let mut text: String = value
        .chars()
        .take(LIMIT)
        .flat_map(char::escape_debug)
        .collect();
    if value.chars().nth(LIMIT).is_some() {
        text.push('…');
    }
    text
}
