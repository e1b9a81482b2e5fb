//! Blobs to a registry: `POST` opens an upload, one `PUT` sends all bytes and names the digest (registry rule U1); where
//! that fails, other ways are tried and remembered.
//!
//! [`Course`](course::Course) tells the story: an attempt opens a [`Session`](session::Session), or goes on with one that
//! broke off, and sends an [`Outgoing`] part of the blob in each request, in the [`Way`](ladder::Way) that the registry is
//! known to take; what fails is judged in `next`. [`Location`](location::Location) and [`Note`](notes::Note) know where the bytes go, the
//! [`Turn`](turn::Turn) whether it is theirs.

mod course;
pub(super) mod ladder;
pub(super) mod location;
mod next;
mod notes;
mod outgoing;
mod session;
mod turn;

use std::fmt;

use crate::{
    image::{Descriptor, RepositoryPath},
    output::Transfer,
};

use super::{BlobSource, RegistryClient, error::Result};

use course::Course;
pub use notes::UploadNotes;
pub(super) use outgoing::{Meter, Outgoing, Sent};

/// A blob and where it is to go.
#[derive(Clone, Copy)]
pub struct BlobUpload<'a> {
    /// The repository to have it.
    pub repository: &'a RepositoryPath,
    /// Digest and size.
    pub descriptor: &'a Descriptor,
    /// Its bytes, which may still be arriving.
    pub source: &'a BlobSource,
    /// Who is told how far it is.
    pub progress: &'a Transfer,
    /// A repository at the same registry that is known to have the blob: nothing needs to travel then (U16).
    pub mount_from: Option<&'a RepositoryPath>,
    /// What remembers the upload should this process die.
    pub notes: Option<&'a dyn UploadNotes>,
}

impl fmt::Debug for BlobUpload<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("BlobUpload")
            .field("repository", self.repository)
            .field("descriptor", self.descriptor)
            .field("mount_from", &self.mount_from)
            .finish_non_exhaustive()
    }
}

/// How a blob came to be at the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// It was sent.
    Sent,
    /// The registry took it from another of its repositories.
    Mounted,
    /// An earlier process had sent its first bytes, so many.
    Resumed {
        /// Where this one went on.
        from: u64,
    },
}

impl RegistryClient {
    /// Sends a blob. That it is not there yet is the caller's to know, and that only one upload of it to this repository is
    /// under way (registry rule U13).
    ///
    /// A source that is still waiting for bytes is waited for without limit. When it fails, the upload ends without a retry
    /// and the registry keeps nothing, since the length that was announced is never reached.
    ///
    /// # Errors
    /// When the registry does not take it, or when its bytes cannot be read here.
    pub async fn upload_blob_with_token(
        &self,
        upload: &BlobUpload<'_>,
        token: Option<&str>,
    ) -> Result<Uploaded> {
        Course::new(self.with_optional_token(token), upload)
            .run()
            .await
    }
}
