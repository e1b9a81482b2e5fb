//! The test bed: real parts (a control plane, registries, skopeo, the project's own binary) that tests start, look into
//! and break. Everything listens on loopback, or where the pods of a cluster of its own reach it, lives in a temporary
//! folder and is stopped by its pid.
//!
//! A test binary includes it with `#[path = "../support/mod.rs"] mod support;`. Start reading at [`process`]: every
//! program of the bed runs under the guard described there. The functions block, and what serves requests does so on
//! threads of its own, so they can be used from `#[test]` and from `#[tokio::test]` alike.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by several test binaries, each of which uses a part"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests write plain files, wait, and talk to registries without the engine"
)]

pub mod archives;
pub mod binary;
pub mod certificates;
pub mod cluster;
pub mod control_plane;
pub mod failure;
pub mod fake;
pub mod faults;
pub mod forward_proxy;
pub mod gateway;
pub mod images;
pub mod podman;
pub mod ports;
pub mod process;
pub mod registry;
pub mod reverse_proxy;
pub mod shaped_body;
pub mod skopeo;
pub mod strace;
pub mod token_server;
pub mod web;

pub use failure::{Context, Failure, Result};

/// Two crypto providers could be linked, so rustls wants to be told which; the first call decides for the process.
pub fn install_crypto_provider() {
    // An error means that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
}
