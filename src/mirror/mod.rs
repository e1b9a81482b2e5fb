//! From an `ImageMirror` to a run, without Kubernetes: validation, templates, credentials, jobs.
//!
//! The operator uses this room for every resource, and `sync` will for files, so both give the same answer. Reading Secrets
//! is the caller's work: [`ValidatedMirror::secret_names`] tells which, [`ValidatedMirror::into_request`] takes what was
//! found. Start with [`validate`].

mod error;
mod request;
mod secret;
mod template;
mod validate;

pub use error::{Error, Result};
pub use request::MirrorRequest;
pub use secret::SecretDocument;
pub use validate::{ValidatedMirror, validate};
