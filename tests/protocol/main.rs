//! The rules of the registry protocol, each against a registry that behaves as the rule says registries do.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end by panic as well as by error"
)]

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod correct;
mod data_sets;
mod downloads;
mod leaks;
mod lists;
mod manifests;
mod page;
mod requests;
mod retries;
mod uploads;
mod way;
