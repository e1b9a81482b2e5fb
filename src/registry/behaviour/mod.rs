//! The room's behaviour, through its public interface, against servers that misbehave on purpose.

mod addresses;
mod blobs;
mod limits;
mod login;
mod manifests;
mod proxies;
mod reaching;
mod safety;
mod tls_server;
mod uploads;
