//! The engine as a library, against real registries.
#![expect(
    clippy::unwrap_used,
    reason = "a test may end by panic as well as by error"
)]

#[path = "../support/mod.rs"]
mod support;

mod manifests;
mod runs;
mod tags;
mod tee;
mod uploads;
