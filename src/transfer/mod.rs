//! Copies images: from a registry into the cache, from the cache to registries, and both in one go.
//!
//! A [`Run`] takes a list of [`ImageJob`]s and works on all of them at once, within the limits of its
//! [`TransferOptions`]; what became of each is in the [`RunReport`]. [`ImageManager`] is the door for a single operation: each
//! [`OperationMode`] is a run of one job. One failing image or destination never stops the others.
//!
//! The room knows registries and the cache, but neither Kubernetes nor the command line. Start with `run.rs`.

mod arrival;
mod bandwidth;
mod copied;
mod download;
mod error;
mod gaps;
mod image_manager;
mod incoming;
mod job;
mod known;
mod lanes;
mod parts;
mod pull;
mod push;
mod report;
mod road;
mod run;
mod tar;
mod tree;

/// Blobs of one image that are thought of at once; far more than travel.
const BLOBS_AT_ONCE: usize = 256;

pub use error::{Error, Result};
pub use image_manager::{ImageManager, OperationMode};
pub use job::{
    Destination, ExistingBlobs, ImageJob, Registries, RegistryId, RegistryImage, TargetReference,
    TransferOptions, digest_tag,
};
pub use report::{DestinationReport, Failure, ImageReport, Outcome, RunReport};
pub use run::Run;
pub use tar::{Tar, TarImages};
