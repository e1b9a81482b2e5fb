//! The room's behaviour, through its public interface, against servers that misbehave on purpose.

mod blobs;
mod limits;
mod login;
mod manifests;
mod reaching;
mod safety;
mod uploads;
