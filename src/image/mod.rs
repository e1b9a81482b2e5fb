//! What an image is, as names and bytes: digests, references, media types, manifests, platforms.
//!
//! This room does no I/O and knows no registry, cache or cluster; everything here is a value that can be built, compared
//! and printed. Start with [`Descriptor`], which says what is copied, and [`RawManifest`], which carries the bytes that
//! must never change.

mod descriptor;
mod digest;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod manifest;
mod media_type;
mod object;
mod platform;
mod reference;
mod referrer;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, Hasher};
pub(crate) use error::shown;
pub use error::{Error, Result};
pub use manifest::{ImageManifest, Index, Manifest, RawManifest};
pub use media_type::{MANIFEST_ACCEPT, MediaType};
pub(crate) use object::{Object, from_objects_only};
pub use platform::Platform;
pub use reference::{Host, ImageName, Reference, Repository, RepositoryPath, Tag};
pub use referrer::Referrer;
