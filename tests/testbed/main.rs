//! Tests of the test bed itself, on real parts: what other tests build on has to be true first.
#![expect(
    clippy::disallowed_methods,
    reason = "tests write plain files, wait, and read small answers whole"
)]

#[path = "../support/mod.rs"]
mod support;

mod control_planes;
mod gateways;
mod guard;
mod images;
mod programs;
mod registries;
