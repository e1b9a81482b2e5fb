//! Archives of real tools, and of producers that cannot run here, through the public door of the library.
#![expect(
    clippy::unwrap_used,
    reason = "a test may end by panic as well as by error"
)]
#![expect(clippy::disallowed_methods, reason = "tests write plain files")]

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod producers;
mod tools;
