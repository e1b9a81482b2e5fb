//! The operator as it ships: the real binary, under exactly the shipped role, against a real API server and real
//! registries. One file per behaviour.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may end by panic as well as by error, and wait"
)]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod archives;
mod bed;
mod copies;
mod crd;
mod edits;
mod events;
mod files;
mod malformed;
mod network;
mod parity;
mod pressure;
mod refusals;
mod reports;
mod requests;
mod steady;
mod stop;
mod tenants;
