//! How images are read from and written to a registry over the distribution protocol: the one room that speaks HTTP to
//! registries and the only one that knows `reqwest`.
//!
//! It moves bytes and names errors; it decides nothing about which images are copied, keeps nothing on disk and does not
//! verify blobs (the cache does). Start with [`RegistryClient`]; below it, one job each:
//!
//! | layer | file | job |
//! |---|---|---|
//! | operations | manifests, referrers, download, upload, tags | what one endpoint of the protocol needs |
//! | registries | `hosts`, `limiter`, `connection_limit`, `quirks` | what the process knows of each, and how many connections it bears |
//! | retry | `retry` | attempts, pauses, `Retry-After` |
//! | transport | `transport` | one attempt: gate, login, redirects |
//! | login | `auth`, `challenge`, `token`, `scope`, `credential` | what a 401 asks for |
//! | logins of users | `docker_config`, `credential_helper` | what docker and podman know |
//! | wire | `wire`, `connect`, `filter`, `tls`, `proxy` | one HTTP exchange: timeouts, TLS, the way there, log |
//! | answers | `answer`, `judge`, `diagnose`, `body`, `error` | what a failure means |
//! | memory | `hosts`, `account`, `gate`, `quota`, `notice` | what answers told about the registry and its limits |

mod account;
mod address;
mod answer;
mod auth;
#[cfg(test)]
mod behaviour;
mod blob_source;
mod blob_stream;
mod body;
mod challenge;
mod client;
mod connect;
mod connection_limit;
mod content_encoding;
mod content_range;
mod credential;
mod credential_helper;
mod diagnose;
mod docker_config;
mod download;
mod endpoint;
mod error;
mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod gate;
mod hosts;
mod judge;
mod limiter;
mod manifests;
mod notice;
mod proxy;
mod quirks;
mod quota;
mod referrers;
mod retry;
mod retry_after;
mod scope;
mod tags;
#[cfg(test)]
mod testing;
mod tls;
mod token;
mod transport;
mod upload;
mod wire;

pub use answer::Answer;
pub use blob_source::{BlobContent, BlobSource};
pub use blob_stream::BlobStream;
pub use client::RegistryClient;
pub use connect::ClientOptions;
pub use connection_limit::{ENOUGH, FAR, NEAR};
pub use credential::{Credential, CredentialSource, Login};
pub use credential_helper::CredentialHelper;
pub use docker_config::DockerConfig;
pub use download::BlobDownload;
pub use endpoint::Endpoint;
pub use error::{Cause, Error, Operation, Result};
pub use filter::{Loopback, Names};
pub use hosts::Hosts;
pub use limiter::Slot;
pub use manifests::FoundManifest;
pub use proxy::{Proxy, ProxyChoice};
pub use quota::Quota;
pub use retry::Retry;
pub use upload::{BlobUpload, UploadNotes, Uploaded};
