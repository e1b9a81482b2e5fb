//! The engine of `docker-image-pusher`: moves container images between registries, verified byte for byte, as a command
//! line tool and as a Kubernetes operator.
//!
//! Rooms, from the bottom up; each may use those above it in this list, never those below:
//!
//! | room | owns |
//! |---|---|
//! | [`error`] | classes of errors and what follows from them |
//! | [`image`] | names, digests, manifests; no I/O |
//! | [`output`] | progress, messages, figures |
//! | [`cache`] | images on disk: verified blobs, references, index, locks |
//! | [`registry`] | the distribution protocol: login, retries, manifests, blobs, tags |
//! | [`archive`] | image archives: read without being unpacked, checked, brought into the cache |
//! | [`transfer`] | runs: look up, fetch once, send to every destination, tag last |
//! | [`api`] | the `ImageMirror` resource: types, rules, conditions |
//! | [`mirror`] | from a resource to a run: validation, templates, credentials |
//! | [`controller`] | the operator: reconcile, supervise, status, events, probes |
//! | [`cli`] | commands, options, renderers |

pub mod api;
pub mod archive;
mod blocking;
pub mod cache;
pub mod cli;
pub mod controller;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod image;
mod keyed_lock;
pub mod mirror;
pub mod output;
pub mod registry;
pub mod transfer;
