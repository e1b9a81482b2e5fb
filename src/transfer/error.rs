//! What can go wrong with the copy of an image.

use std::time::Duration;

use crate::{
    archive, cache,
    error::{Class, Classified},
    image::{self, Digest, ImageName},
    registry,
};

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image was not copied. Errors of the rooms below keep their class and their reason; this room adds which image
/// they happened to.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    /// A registry did not give what was asked for.
    #[error("could not pull {image}")]
    Pull {
        /// The image at its source.
        image: String,
        /// What the registry room says.
        #[source]
        source: registry::Error,
    },
    /// A registry did not take what was sent.
    #[error("could not push {image}")]
    Push {
        /// The image at its destination.
        image: String,
        /// What the registry room says.
        #[source]
        source: registry::Error,
    },
    /// The cache failed.
    #[error("could not keep {image} in the cache")]
    Cache {
        /// The image as the cache names it.
        image: ImageName,
        /// What the cache says.
        #[source]
        source: cache::Error,
    },
    /// A manifest of the image cannot be read.
    #[error("could not read the manifests of {image}")]
    Manifest {
        /// The image.
        image: ImageName,
        /// What is wrong.
        #[source]
        source: image::Error,
    },
    /// The tag template of a destination gives no tag for this image.
    #[error("the tag of destination {destination} does not fit {image}")]
    TargetInvalid {
        /// The destination's name.
        destination: String,
        /// The image.
        image: ImageName,
        /// What is wrong with the tag.
        #[source]
        source: image::Error,
    },
    /// Indexes within indexes, deeper than any producer makes them.
    #[error(
        "the index of {image} nests more than {limit} levels deep; such an image is not copied"
    )]
    IndexTooDeep {
        /// The image.
        image: ImageName,
        /// Levels that are followed.
        limit: usize,
    },
    /// More manifests than any image has.
    #[error(
        "the index of {image} names more than {manifests} manifests, or they have more than {} MiB; such an image is \
         not copied", .bytes >> 20
    )]
    IndexTooLarge {
        /// The image.
        image: ImageName,
        /// Manifests that are followed.
        manifests: usize,
        /// Bytes of manifests that are kept.
        bytes: u64,
    },
    /// The source has an index, and nothing of what it names.
    #[error(
        "the source of {image} has only an index and none of what it names ({missing}): push the image there again"
    )]
    IndexWithoutImages {
        /// The image.
        image: ImageName,
        /// What is missing.
        missing: String,
    },
    /// The source lacks platforms of an index, and the destination does not take such an index.
    #[error(
        "could not push {image}: its source does not have {missing}, and the registry takes no index without all it names; push \
         these to the source again, or let the registry accept it (distribution: validation.manifests.indexes)"
    )]
    SparseIndexRefused {
        /// The image at its destination.
        image: String,
        /// What is missing.
        missing: String,
        /// What the registry said.
        #[source]
        source: registry::Error,
    },
    /// The cache does not know the image.
    #[error(
        "{image} is not in the cache: pull it first, or see what is there with `docker-image-pusher list`"
    )]
    CachedImageUnknown {
        /// The image asked for.
        image: ImageName,
    },
    /// The cache knows the image, but a part of it is missing.
    #[error("{image} is not whole in the cache, {digest} is missing: pull it again")]
    CachedImageIncomplete {
        /// The image asked for.
        image: ImageName,
        /// What is missing.
        digest: Digest,
    },
    /// An archive was not extracted.
    #[error(transparent)]
    Extract(#[from] archive::Error),
    /// The run's time was over before the image was through.
    #[error("{image} was not copied within the timeout of {} s: what is there stays, another run goes on from it", .timeout.as_secs())]
    RunTimedOut {
        /// The image as the cache names it.
        image: ImageName,
        /// How long the run might take.
        timeout: Duration,
    },
    /// A job names a registry access that the run was not given.
    #[error("no client was given for the registry access '{name}'")]
    RegistryMissing {
        /// The access.
        name: String,
    },
}

impl Error {
    /// The pause that a registry asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Pull { source, .. } | Self::Push { source, .. } => source.retry_after(),
            _ => None,
        }
    }
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::Pull { source, .. } | Self::Push { source, .. } => source.class(),
            Self::Cache { source, .. } => source.class(),
            Self::Manifest { source, .. } => source.class(),
            Self::Extract(source) => source.class(),
            Self::IndexTooDeep { .. }
            | Self::IndexTooLarge { .. }
            | Self::SparseIndexRefused { .. } => Class::Policy,
            // As with a slow network, another attempt may get through.
            Self::RunTimedOut { .. } => Class::Network,
            Self::IndexWithoutImages { .. }
            | Self::CachedImageUnknown { .. }
            | Self::CachedImageIncomplete { .. } => Class::NotFound,
            Self::TargetInvalid { .. } | Self::RegistryMissing { .. } => Class::Config,
        }
    }

    #[deny(clippy::wildcard_enum_match_arm)]
    fn reason(&self) -> &'static str {
        match self {
            Self::Pull { source, .. } | Self::Push { source, .. } => source.reason(),
            Self::Cache { source, .. } => source.reason(),
            Self::Manifest { source, .. } => source.reason(),
            Self::Extract(source) => source.reason(),
            Self::IndexTooDeep { .. }
            | Self::IndexTooLarge { .. }
            | Self::IndexWithoutImages { .. }
            | Self::SparseIndexRefused { .. }
            | Self::CachedImageUnknown { .. }
            | Self::CachedImageIncomplete { .. }
            | Self::TargetInvalid { .. }
            | Self::RunTimedOut { .. }
            | Self::RegistryMissing { .. } => self.into(),
        }
    }
}
