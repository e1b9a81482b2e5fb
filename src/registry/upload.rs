//! Blobs to a registry: `POST` opens an upload, one `PUT` sends all bytes and names the digest (registry rule U1).

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use reqwest::{Request, Response};
use url::Url;

use crate::{
    error::{Class, Classified},
    image::{Descriptor, Digest, RepositoryPath},
    output::Transfer,
};

use super::{
    BlobSource, RegistryClient, address,
    answer::Answer,
    auth,
    error::{Error, Operation, Result},
    judge::Subject,
    scope::{Access, Scope},
    transport::{Call, Payload},
    wire,
};

/// A registry that is too busy to forget an upload is left alone.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// One blob on its way to one repository.
struct Upload<'a> {
    repository: &'a RepositoryPath,
    descriptor: &'a Descriptor,
    source: &'a BlobSource,
    progress: &'a Transfer,
    operation: Operation,
}

impl RegistryClient {
    /// Sends a blob, from its first byte at each attempt. That it is not there yet is the caller's to know.
    ///
    /// # Errors
    /// When the registry does not take it, or when its bytes cannot be read here.
    pub async fn upload_blob_with_token(
        &self,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
        source: &BlobSource,
        progress: &Transfer,
        token: Option<&str>,
    ) -> Result<()> {
        let client = self.with_optional_token(token);
        let operation = Operation::new(format!(
            "upload blob {} to {repository} at {}",
            descriptor.digest, self.address
        ));
        let upload = Upload {
            repository,
            descriptor,
            source,
            progress,
            operation,
        };
        client
            .with_retry(&upload.operation, || client.upload_once(&upload))
            .await
    }

    /// One upload, in a session of its own.
    async fn upload_once(&self, upload: &Upload<'_>) -> Result<()> {
        let session = self.open_session(upload).await?;
        let result = self.send_bytes(upload, &session).await;
        let is_there = match &result {
            // Success, but not the one a finished upload has: make sure (registry rule G5).
            Ok(response) if response.status() == StatusCode::ACCEPTED => {
                self.is_uploaded(upload).await
            }
            Ok(_) => true,
            // The answer got lost, the upload perhaps not (registry rule U11; jib#4301): sending it again would cost
            // more than asking.
            Err(error) if error.class() == Class::Network => self.is_uploaded(upload).await,
            Err(_) => false,
        };
        if is_there {
            session.finish();
            return Ok(());
        }
        match result {
            Ok(response) => Err(Error::UnexpectedAnswer {
                operation: upload.operation.clone(),
                answer: Answer::of_status(response.status()),
                problem: "the registry took the bytes, but does not have the blob",
            }),
            Err(error) => Err(error),
        }
    }

    /// Opens an upload and learns where its bytes go.
    async fn open_session(&self, upload: &Upload<'_>) -> Result<Session> {
        let url = self.url(upload.repository, "blobs/uploads/");
        let call = Call::new(
            upload.operation.clone(),
            Subject::UploadStart,
            Method::POST,
            url,
            self.scope(upload.repository, Access::Push),
        );
        let response = self.attempt(&call).await?;
        let location = self.location(upload, &response)?;
        Ok(Session {
            client: self.clone(),
            scope: self.scope(upload.repository, Access::Push),
            operation: upload.operation.clone(),
            location: Some(location),
        })
    }

    /// Sends all bytes and names their digest.
    async fn send_bytes(&self, upload: &Upload<'_>, session: &Session) -> Result<Response> {
        let Some(location) = &session.location else {
            return Err(Error::UploadSessionLost {
                operation: upload.operation.clone(),
                answer: Answer::of_status(StatusCode::GONE),
            });
        };
        let mut call = Call::new(
            upload.operation.clone(),
            Subject::UploadCommit,
            Method::PUT,
            with_digest(location, &upload.descriptor.digest),
            self.scope(upload.repository, Access::Push),
        );
        call.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        call.payload = Payload::Blob {
            source: upload.source,
            progress: upload.progress,
        };
        self.attempt(&call).await
    }

    /// Where the bytes of an upload go: relative to the URL that answered, absolute, or at another host, which then gets no
    /// credentials (registry rule U6).
    fn location(&self, upload: &Upload<'_>, response: &Response) -> Result<Url> {
        let unexpected = |problem| Error::UnexpectedAnswer {
            operation: upload.operation.clone(),
            answer: Answer::of_status(response.status()),
            problem,
        };
        let location = response
            .headers()
            .get(header::LOCATION)
            .ok_or_else(|| unexpected("it does not say where to send the bytes"))?;
        let location = location
            .to_str()
            .ok()
            .and_then(|location| response.url().join(location).ok())
            .ok_or_else(|| unexpected("the Location of the upload is not a URL"))?;
        let location = match keep_tls(response.url(), &location) {
            Some(kept) => {
                self.warn_of_forgotten_tls();
                kept
            }
            None => location,
        };
        match address::refusal(response.url(), &location) {
            None => Ok(location),
            Some(reason) => Err(Error::RedirectRefused {
                operation: upload.operation.clone(),
                target: wire::origin_text(&location),
                reason,
            }),
        }
    }

    /// Says once what the owner of the registry should mend.
    fn warn_of_forgotten_tls(&self) {
        if self.shared.note_forgotten_tls() {
            self.output.warning(format!(
                "{} names itself with http:// as the place for uploads, https is kept: the proxy before it should send \
                 X-Forwarded-Proto and Host",
                self.address
            ));
        }
    }

    /// Cancels an upload with the login there is; some registries want another permission for this, which is not asked for.
    async fn cancel(&self, location: &Url, scope: &Scope, operation: &Operation) -> Result<()> {
        let mut request = Request::new(Method::DELETE, location.clone());
        if self.is_own_origin(location) {
            let authorization = self.auth.beforehand(Some(scope), operation).await?;
            auth::apply(&mut request, authorization.header());
        }
        wire::exchange(&self.client, request, operation).await?;
        Ok(())
    }

    /// Asks once whether the blob arrived. No answer counts as no.
    async fn is_uploaded(&self, upload: &Upload<'_>) -> bool {
        let call = self.head_blob_call(upload.repository, upload.descriptor);
        self.attempt(&call)
            .await
            .is_ok_and(|response| response.status().is_success())
    }
}

/// A registry behind a proxy that ends TLS often does not know of it and names itself with `http://` (registry rule U7;
/// distribution#2862): on the same host our own scheme and port hold. Nothing where the location can stay as it is.
fn keep_tls(answered: &Url, location: &Url) -> Option<Url> {
    let is_downgrade = answered.scheme() == "https" && location.scheme() == "http";
    if !is_downgrade || answered.host() != location.host() {
        return None;
    }
    let mut kept = answered.clone();
    kept.set_path(location.path());
    kept.set_query(location.query());
    Some(kept)
}

/// Appends the digest to whatever query the registry gave; that one is a signature or a state and stays as it is (U5).
fn with_digest(location: &Url, digest: &Digest) -> Url {
    let mut url = location.clone();
    let digest = digest.to_string().replace(':', "%3A");
    let query = match location.query() {
        Some(query) if !query.is_empty() => format!("{query}&digest={digest}"),
        _ => format!("digest={digest}"),
    };
    url.set_query(Some(&query));
    url
}

/// An open upload at the registry. Dropped before it is finished, because of an error or because nobody waits for it any
/// more, it is cancelled there; whether that works does not matter (registry rule U15).
struct Session {
    client: RegistryClient,
    scope: Scope,
    operation: Operation,
    location: Option<Url>,
}

impl Session {
    fn finish(mut self) {
        self.location = None;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(location) = self.location.take() else {
            return;
        };
        let client = self.client.clone();
        let scope = self.scope.clone();
        let operation = self.operation.clone();
        self.client.shared.in_background(async move {
            let cancel = client.cancel(&location, &scope, &operation);
            // Whatever comes of it: the registry removes what is left over in time.
            tokio::time::timeout(CANCEL_LIMIT, cancel).await.ok();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_appended_to_a_query_that_stays_as_it_is() {
        let digest = Digest::of(b"");
        let encoded = digest.to_string().replace(':', "%3A");
        for (location, expected) in [
            (
                "https://r.example/u/1",
                format!("https://r.example/u/1?digest={encoded}"),
            ),
            (
                "https://r.example/u/1?",
                format!("https://r.example/u/1?digest={encoded}"),
            ),
            (
                "https://r.example/u/a%2Fb?_state=x-_%3D%3D&b=%2F+",
                format!("https://r.example/u/a%2Fb?_state=x-_%3D%3D&b=%2F+&digest={encoded}"),
            ),
        ] {
            assert_eq!(
                with_digest(&location.parse().unwrap(), &digest).as_str(),
                expected
            );
        }
    }

    #[test]
    fn a_registry_that_forgets_its_tls_is_still_asked_with_it() {
        for (answered, location, expected) in [
            (
                "https://r.example:5000/v2/",
                "http://r.example/u?a=b",
                Some("https://r.example:5000/u?a=b"),
            ),
            ("https://r.example/v2/", "http://other.example/u", None),
            ("http://r.example/v2/", "http://r.example:81/u", None),
            ("https://r.example/v2/", "https://r.example:444/u", None),
        ] {
            let kept = keep_tls(&answered.parse().unwrap(), &location.parse().unwrap());
            assert_eq!(kept.as_ref().map(Url::as_str), expected);
        }
    }
}
