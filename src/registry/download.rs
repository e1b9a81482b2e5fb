//! Blobs from a registry.

use bytes::Bytes;
use http::{Method, StatusCode};
use reqwest::Response;

use crate::image::{Descriptor, RepositoryPath};

use super::{
    RegistryClient, body,
    error::{Error, Operation, Result},
    judge::Subject,
    scope::Access,
    transport::Call,
};

/// The bytes of a blob as they arrive. They are not hashed here: whoever stores them does.
#[derive(Debug)]
pub struct BlobStream {
    response: Response,
    operation: Operation,
    expected: u64,
    received: u64,
}

impl BlobStream {
    /// The next piece; nothing when the blob has arrived in its full size.
    ///
    /// # Errors
    /// When the connection breaks or stands still, and when the blob is longer or shorter than its descriptor says. Nothing
    /// beyond the descriptor's size is ever given out.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        let Some(piece) = body::next_chunk(&mut self.response, &self.operation).await? else {
            if self.received < self.expected {
                return Err(self.wrong_size(false));
            }
            return Ok(None);
        };
        self.received += piece.len() as u64;
        if self.received > self.expected {
            return Err(self.wrong_size(true));
        }
        Ok(Some(piece))
    }

    fn wrong_size(&self, longer: bool) -> Error {
        Error::SizeMismatch {
            operation: self.operation.clone(),
            expected: self.expected,
            actual: self.received,
            longer,
        }
    }
}

impl RegistryClient {
    /// Whether the registry has a blob.
    ///
    /// # Errors
    /// When the registry cannot or does not want to tell.
    pub async fn has_blob(
        &self,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
    ) -> Result<bool> {
        let call = self.head_blob_call(repository, descriptor);
        let response = self.send(&call).await?;
        Ok(response.status() != StatusCode::NOT_FOUND)
    }

    /// A blob, from its first byte. Failures up to the answer's headers are retried here, those after them by the caller,
    /// who knows what to do with the bytes that came.
    ///
    /// # Errors
    /// When the blob is not there or cannot be read.
    pub async fn get_blob(
        &self,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
    ) -> Result<BlobStream> {
        let call = self.blob_call("read", Method::GET, repository, descriptor);
        let response = self.send(&call).await?;
        if response.status() != StatusCode::OK {
            return Err(Error::UnexpectedAnswer {
                operation: call.operation,
                answer: super::Answer::of_status(response.status()),
                problem: "a whole blob was asked for",
            });
        }
        Ok(BlobStream {
            response,
            operation: call.operation,
            expected: descriptor.size,
            received: 0,
        })
    }

    /// Asks for a blob without its bytes; its absence is an answer.
    pub(super) fn head_blob_call(
        &self,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
    ) -> Call<'static> {
        let mut call = self.blob_call("look for", Method::HEAD, repository, descriptor);
        call.also_accepted = Some(StatusCode::NOT_FOUND);
        call
    }

    fn blob_call(
        &self,
        verb: &str,
        method: Method,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
    ) -> Call<'static> {
        let digest = &descriptor.digest;
        let operation = Operation::new(format!(
            "{verb} blob {digest} of {repository} at {}",
            self.address
        ));
        let url = self.url(repository, &format!("blobs/{digest}"));
        let scope = self.scope(repository, Access::Pull);
        Call::new(operation, Subject::Blob, method, url, scope)
    }
}
