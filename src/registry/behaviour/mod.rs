//! The room's behaviour, through its public interface, against servers that misbehave on purpose.

mod addresses;
mod blobs;
mod limits;
mod login;
mod manifest_uploads;
mod manifests;
mod proxies;
mod ranges;
mod reaching;
mod referrers;
mod safety;
mod shelf;
mod tags;
mod tls_server;
mod uploads;
mod uploads_ladder;
mod uploads_mounted;
mod uploads_resumed;
