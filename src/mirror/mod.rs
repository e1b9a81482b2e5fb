//! From an `ImageMirror` to a run, without Kubernetes: validation, templates, credentials, jobs.
//!
//! The operator uses this room for every resource and `sync` for every file, so both give the same answer, down to the
//! [`MirrorReport`]. Reading Secrets is the caller's work: [`ValidatedMirror::secret_names`] tells which,
//! [`ValidatedMirror::into_request`] takes what was found. Start with [`validate`].

mod access;
mod archive;
mod destination;
mod error;
mod file;
mod folder;
mod login;
mod plan;
mod report;
mod request;
mod secret;
mod source;
mod template;
mod validate;

pub(crate) use access::is_object_name;
pub use error::{Error, Result};
pub use file::{Documents, Origin, Position, PreparedMirror, PreparedWork, Problem, Surroundings};
pub use folder::{ArchiveFolder, RefusedArchives};
pub use login::{Logins, SecretReader};
pub use report::{
    DestinationResult, ImageResult, MirrorOutcome, MirrorReport, REPORT_VERSION, Report,
    ReportedFailure, Totals,
};
pub use request::{Given, MirrorRequest};
pub use secret::{ONLY_REGISTRY, SecretDocument};
pub use validate::{ValidatedMirror, validate};
