//! What can be wrong with a mirror before anything is copied.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    archive,
    error::{Class, Classified},
    image, registry,
    transfer::Failure,
};

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a mirror cannot run.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    /// A field holds what it must not.
    #[error("{field}: {reason}")]
    InvalidSpec {
        /// Path of the field, as in `spec.destinations[0].tag`.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A field holds a name that cannot be read.
    #[error("{field}")]
    InvalidName {
        /// Path of the field.
        field: String,
        /// What is wrong with the name.
        #[source]
        source: image::Error,
    },
    /// Two images would be written to one place.
    #[error(
        "{target} would be written by {first} and by {second}: give one of them another tag or repository"
    )]
    DestinationConflict {
        /// The image's name at the destination.
        target: String,
        /// The first writer, as destination and image.
        first: String,
        /// The second writer.
        second: String,
    },
    /// A Secret that the mirror names was not given.
    #[error("Secret {secret}, named by {field}, was not found")]
    SecretNotFound {
        /// The Secret.
        secret: String,
        /// Path of the field that names it.
        field: String,
    },
    /// A Secret does not hold what is needed from it.
    #[error("Secret {secret}, named by {field}, cannot be used: {reason}")]
    SecretInvalid {
        /// The Secret.
        secret: String,
        /// Path of the field that names it.
        field: String,
        /// What is missing or wrong; never what the Secret holds.
        reason: String,
    },
    /// The login file in a Secret is broken.
    #[error("Secret {secret}, named by {field}, cannot be used")]
    SecretUnreadable {
        /// The Secret.
        secret: String,
        /// Path of the field that names it.
        field: String,
        /// What is wrong with it.
        #[source]
        source: registry::Error,
    },
    /// The ServiceAccount that a mirror names was not given.
    #[error("ServiceAccount {account}, named by {field}, was not found")]
    ServiceAccountNotFound {
        /// The ServiceAccount.
        account: String,
        /// Path of the field that names it.
        field: String,
    },
    /// There is no folder for archives.
    #[error(
        "there is no folder to look for {path} in: start the operator with --archive-dir, and `sync` with files or with \
         --archive-dir"
    )]
    ArchiveFolderMissing {
        /// The archive.
        path: String,
    },
    /// The archive is not there.
    #[error("there is no archive {path} in {}: put it there, or correct spec.source.archive.path", .folder.display())]
    ArchiveNotFound {
        /// The archive.
        path: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// The path of an archive is none that is followed.
    #[error("the archive {path} {what}: put the file itself there")]
    ArchivePathRefused {
        /// The archive.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Somebody is still writing the archive.
    #[error(
        "the archive {path} was written to just now: it is read once it stood still for {} s, nothing else is needed",
        .settle.as_secs()
    )]
    ArchiveUnsettled {
        /// The archive.
        path: String,
        /// How long it must stand still.
        settle: Duration,
        /// How much of that is left if nobody writes to it.
        rest: Duration,
    },
    /// The archive cannot be opened.
    #[error("the archive {path} cannot be read")]
    ArchiveUnreadable {
        /// The archive.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The archive is not what it should be, or not what the spec says of it.
    #[error(transparent)]
    Archive(Arc<archive::Error>),
    /// What an archive holds does not go with the spec.
    #[error(transparent)]
    OfArchive(Box<Self>),
    /// The run took longer than it may.
    #[error("the archive was not read within the timeout of {} s: raise spec.timeout", .timeout.as_secs())]
    RunTimedOut {
        /// How long it might take.
        timeout: Duration,
    },
    /// A client cannot be made with what the Secrets hold.
    #[error("the registry of {field} cannot be used as given")]
    AccessInvalid {
        /// Path of the source or destination.
        field: String,
        /// What is wrong, mostly a certificate.
        #[source]
        source: registry::Error,
    },
}

impl Error {
    /// How long to wait before another run, where that is known.
    pub const fn retry_after(&self) -> Option<Duration> {
        if let Self::ArchiveUnsettled { rest, .. } = self {
            Some(*rest)
        } else {
            None
        }
    }

    /// Path of the field that is to blame, where one is.
    #[deny(clippy::wildcard_enum_match_arm)]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::InvalidSpec { field, .. }
            | Self::InvalidName { field, .. }
            | Self::SecretNotFound { field, .. }
            | Self::SecretInvalid { field, .. }
            | Self::SecretUnreadable { field, .. }
            | Self::ServiceAccountNotFound { field, .. }
            | Self::AccessInvalid { field, .. } => Some(field),
            Self::ArchiveFolderMissing { .. }
            | Self::ArchiveNotFound { .. }
            | Self::ArchivePathRefused { .. }
            | Self::ArchiveUnsettled { .. }
            | Self::ArchiveUnreadable { .. } => Some("spec.source.archive.path"),
            Self::OfArchive(error) => error.field(),
            Self::DestinationConflict { .. } | Self::Archive(_) | Self::RunTimedOut { .. } => None,
        }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            retry_after: error.retry_after(),
            ..Self::of(error)
        }
    }
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::InvalidSpec { .. }
            | Self::InvalidName { .. }
            | Self::DestinationConflict { .. } => Class::Config,
            Self::SecretNotFound { .. }
            | Self::ServiceAccountNotFound { .. }
            | Self::ArchiveNotFound { .. } => Class::NotFound,
            // Nothing changes before somebody puts another file there, which may fit the spec.
            Self::ArchivePathRefused { .. } | Self::OfArchive(_) => Class::Archive,
            Self::Archive(error) if error.class() == Class::Config => Class::Archive,
            Self::Archive(error) => error.class(),
            Self::ArchiveFolderMissing { .. } => Class::Policy,
            Self::ArchiveUnreadable { .. } => Class::Storage,
            // Whoever writes it is asked again when it may be over.
            Self::ArchiveUnsettled { .. } => Class::RateLimited,
            // Another run goes on where this one stopped.
            Self::RunTimedOut { .. } => Class::Network,
            // The cure lies in the Secret, outside the spec.
            Self::SecretInvalid { .. }
            | Self::SecretUnreadable { .. }
            | Self::AccessInvalid { .. } => Class::Auth,
        }
    }

    #[deny(clippy::wildcard_enum_match_arm)]
    fn reason(&self) -> &'static str {
        match self {
            // For a user both are the same trouble.
            Self::InvalidName { .. } => "InvalidSpec",
            Self::SecretUnreadable { .. } => "SecretInvalid",
            Self::AccessInvalid { source, .. } => source.reason(),
            Self::Archive(error) => error.reason(),
            Self::OfArchive(error) => error.reason(),
            Self::InvalidSpec { .. }
            | Self::DestinationConflict { .. }
            | Self::SecretNotFound { .. }
            | Self::ServiceAccountNotFound { .. }
            | Self::RunTimedOut { .. }
            | Self::ArchiveFolderMissing { .. }
            | Self::ArchiveNotFound { .. }
            | Self::ArchivePathRefused { .. }
            | Self::ArchiveUnsettled { .. }
            | Self::ArchiveUnreadable { .. }
            | Self::SecretInvalid { .. } => self.into(),
        }
    }
}
