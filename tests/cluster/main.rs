//! The operator as it is installed: its image, its manifests, and both in a real cluster.
//!
//! What is in `pods` needs a node, and so root; `hack/test.sh` leaves it out for everybody else, and says so.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may end by panic as well as by error, and wait"
)]

#[path = "../support/mod.rs"]
mod support;

mod examples;
mod image;
mod manifests;
mod pods;
