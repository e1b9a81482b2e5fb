//! The room's behaviour, through its public interface, against servers that misbehave on purpose.

mod blobs;
mod limits;
mod login;
mod manifests;
mod proxies;
mod reaching;
mod safety;
mod shelf;
mod tls_server;
mod uploads;
mod uploads_ladder;
mod uploads_mounted;
mod uploads_resumed;
