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
//! | [`api`] | the `ImageMirror` resource: types, rules, conditions |
//! | [`cache`] | images on disk: verified blobs, references, index, locks |
//! | [`controller`] | the operator: reconcile, supervise, status, events, probes |

pub mod api;
pub mod cache;
pub mod controller;
pub mod error;
pub mod image;
pub mod output;
