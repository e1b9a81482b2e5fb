//! The command line as a user meets it: the real binary against real registries.
#![expect(
    clippy::disallowed_methods,
    reason = "tests write plain files and wait"
)]
#![expect(
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    reason = "a test may end by panic as well as by error"
)]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod archives;
mod bad_input;
mod behind_nginx;
mod cache_commands;
mod certificates;
mod checker;
mod commands;
mod compression;
mod crashes;
mod disk_faults;
mod exports;
mod helpers;
mod interrupt;
mod kills;
mod memory;
mod options;
mod output;
mod power_loss;
mod pressure;
mod proxies;
mod resume;
mod round_trip;
mod save;
mod sync;
mod verify;
