//! Image archives: reads what `docker save`, `podman save`, skopeo, buildx, crane, jib and their like write, and brings the
//! images into the cache, verified.
//!
//! Three rules stand above all: bytes stay as they are, only our own hash counts, and what is odd is an error and never passed
//! over in silence. Names in an archive are keys: nothing is ever unpacked to a path. The room knows no registry.
//!
//! Start with [`TarUtils::parse_image_info`], through which every archive goes. Below it `walk` reads the headers, `entries`
//! makes a map of them, `plan` finds the images; `contents` copies, checks and stores them. [`extract`] does all of that, and
//! nothing at all for an archive that did not change. [`save`] is the way back.
//!
//! Where a [`Compression`] is asked for, plain layers are compressed on their way: `pack` on several threads, `encoder` block by
//! block; `repack` makes the manifests of it.

mod check;
mod choose;
#[cfg(test)]
mod compressed;
mod compression;
mod configs;
mod contents;
mod encoder;
mod entries;
mod error;
mod extract;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod header;
#[cfg(test)]
mod incremental;
mod json;
mod limits;
mod names;
mod oci;
mod outer;
mod pack;
mod part_names;
mod parts;
mod pax;
mod plan;
mod rebuild;
#[cfg(test)]
mod refusals;
mod repack;
mod save;
#[cfg(test)]
mod scenarios;
mod source;
#[cfg(test)]
mod testing;
mod walk;
mod windows;

pub use choose::{Choice, Chosen, all_named, find, only, refuse_shared_names};
pub use compression::{Compression, Method};
pub use contents::{ArchiveContents, ArchiveImage, StoredArchiveImage, TarUtils};
pub use error::{Error, Place, Result};
pub use extract::extract;
pub use limits::Limits;
pub use save::{
    SaveError, SaveFormat, SaveReport, SaveRequest, SaveTarget, SavedBlob, SavedImage, SavedPart,
    carried, save,
};
pub use source::Archive;
