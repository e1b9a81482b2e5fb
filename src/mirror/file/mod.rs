//! Mirrors in files, as `sync` takes them: the same YAML as for the cluster, checked as strictly as the API server does,
//! with the Secrets it names beside it.
//!
//! [`Documents::read`] takes file after file; [`Documents::prepare`] makes runs of all of them, or tells everything that is
//! wrong, each with its place. Contents of Secrets never stand in what is told.

mod compose;
mod documents;
mod node;
mod prepare;
mod scalar;
mod schema;

pub use documents::{Documents, Origin, Problem};
pub use node::Position;
pub use prepare::{PreparedMirror, PreparedWork, Surroundings};

#[cfg(test)]
mod tests;
