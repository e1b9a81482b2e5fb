//! How images are read from and written to a registry over the distribution protocol: the one room that speaks HTTP to
//! registries and the only one that knows `reqwest`.
//!
//! It moves bytes and names errors; it decides nothing about which images are copied, keeps nothing on disk and does not
//! verify blobs (the cache does). Start with [`RegistryClient`]; below it, one job each:
//!
//! | layer | file | job |
//! |---|---|---|
//! | operations | manifests, download, upload, tags | what one endpoint of the protocol needs |
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
mod body;
mod challenge;
mod client;
mod connect;
mod credential;
mod credential_helper;
mod diagnose;
mod docker_config;
mod download;
mod endpoint;
mod error;
mod filter;
mod gate;
mod hosts;
mod judge;
mod manifests;
mod notice;
mod proxy;
mod quota;
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
pub use blob_source::BlobSource;
pub use client::RegistryClient;
pub use connect::ClientOptions;
pub use credential::{Credential, CredentialSource, Login};
pub use credential_helper::CredentialHelper;
pub use docker_config::DockerConfig;
pub use download::BlobStream;
pub use endpoint::Endpoint;
pub use error::{Cause, Error, Operation, Result};
pub use filter::{Loopback, Names};
pub use hosts::Hosts;
pub use manifests::FoundManifest;
pub use proxy::{Proxy, ProxyChoice};
pub use quota::Quota;
pub use retry::Retry;
