//! How errors of every room are judged: the [`Class`] of an error, the trait that gives it, and in [`handlers`] what a
//! class means for retries, for the resource's conditions and for the exit code.
//!
//! Rooms own their errors (`<room>/error.rs`); this room knows none of them. The name of an error's variant is its reason:
//! it appears as condition reason, event reason and in JSON output, and docs/reasons.md lists them all.

pub mod handlers;

/// What kind of trouble an error is; everything that has to be decided about an error is decided by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumIter)]
pub enum Class {
    /// What the user wrote is wrong: an option, a field, a template, two destinations in conflict.
    Config,
    /// Not logged in, or not allowed to.
    Auth,
    /// It is not there.
    NotFound,
    /// It is there, the request is well formed, and it is refused: an immutable tag, a type that cannot be copied.
    Policy,
    /// The other side asks us to come back later.
    RateLimited,
    /// The connection or the server failed.
    Network,
    /// The registry accepted the request, but its own storage failed.
    RegistryStorage,
    /// Bytes are not what their digest says.
    Digest,
    /// An archive is not what it must be: another look at the same file would end the same way.
    Archive,
    /// Our own disk: full, read-only, broken.
    Storage,
    /// Stopped on request.
    Cancelled,
}

/// An error that can be judged.
pub trait Classified: std::error::Error {
    /// What kind of trouble it is.
    fn class(&self) -> Class;

    /// The name of the error itself, `CamelCase`, stable: condition reason, event reason, field of reports.
    fn reason(&self) -> &'static str;
}
