//! An open upload at a registry: one function for each request it knows.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Request, Response};
use url::Url;

use super::{
    super::{
        Answer, RegistryClient, auth,
        error::{Error, Operation, Result},
        judge::Subject,
        scope::{Access, Scope},
        transport::{Call, Payload},
        wire,
    },
    location::{self, Location, Unusable},
    outgoing::Outgoing,
};
use crate::{
    error::{Class, Classified},
    image::{Digest, RepositoryPath},
};

/// A registry that is too busy to forget an upload is left alone.
const CANCEL_LIMIT: Duration = Duration::from_secs(10);

/// What a registry may say at the start of an upload: its smallest chunk, except for the last.
const SMALLEST_CHUNK: &str = "oci-chunk-min-length";

/// An open upload. Dropped before it is finished, because of an error or because nobody waits for it any more, it is
/// cancelled there; whether that works does not matter (registry rule U15).
pub(super) struct Session {
    client: RegistryClient,
    scope: Scope,
    operation: Operation,
    /// A secret of a kind: whoever knows it can add bytes. It changes with each answer (U8).
    location: Url,
    /// So many bytes are there, as far as we know. What the registry says of it is often wrong (U9).
    offset: u64,
    /// More than one request had a part in it: bytes may be there twice or not at all.
    is_pieced: bool,
    /// The registry was asked once already what it meant by a smaller number than ours.
    has_asked: bool,
    /// Dropped, it stays.
    stays: bool,
}

/// What became of a mount.
pub(super) enum Mounted {
    /// The blob is there.
    Done,
    /// It is not; here is an upload instead (U16).
    Opened(Box<Session>),
}

impl Session {
    /// Opens an upload.
    pub(super) async fn open(
        client: &RegistryClient,
        repository: &RepositoryPath,
        operation: &Operation,
    ) -> Result<Self> {
        let call = start_call(client, repository, operation);
        let response = client.attempt(&call).await?;
        Self::begun(client, repository, operation, &response)
    }

    /// Asks the registry to take a blob from another of its repositories (U16), with a token for both (A13). One that
    /// cannot or may not opens an upload or refuses; a refusal is nobody's failed login.
    pub(super) async fn mount(
        client: &RegistryClient,
        repository: &RepositoryPath,
        operation: &Operation,
        digest: &Digest,
        from: &RepositoryPath,
    ) -> Result<Mounted> {
        let mut call = start_call(client, repository, operation);
        let from = client.scope(from, Access::Pull).repository;
        call.url
            .query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", &from);
        if let Some(scope) = &mut call.scope {
            scope.source = Some(from);
        }
        let response = client.attempt_with_login(&call).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(Mounted::Done);
        }
        Self::begun(client, repository, operation, &response)
            .map(|session| Mounted::Opened(Box::new(session)))
    }

    /// An upload that somebody opened before.
    pub(super) fn known(
        client: &RegistryClient,
        repository: &RepositoryPath,
        operation: &Operation,
        location: Url,
        offset: u64,
    ) -> Self {
        let mut session = Self::at(client, repository, operation, location);
        session.go_on_from(offset);
        session.stay();
        session
    }

    fn begun(
        client: &RegistryClient,
        repository: &RepositoryPath,
        operation: &Operation,
        response: &Response,
    ) -> Result<Self> {
        let location = location_in(client, operation, response)?;
        if let Some(size) = smallest_chunk(response.headers()) {
            client.shared.host.ladder.note_smallest_chunk(size);
        }
        Ok(Self::at(client, repository, operation, location))
    }

    fn at(
        client: &RegistryClient,
        repository: &RepositoryPath,
        operation: &Operation,
        location: Url,
    ) -> Self {
        Self {
            client: client.clone(),
            scope: client.scope(repository, Access::Push),
            operation: operation.clone(),
            location,
            offset: 0,
            is_pieced: false,
            has_asked: false,
            stays: false,
        }
    }

    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) const fn location(&self) -> &Url {
        &self.location
    }

    /// Whether more than one request had a part in it.
    pub(super) const fn is_pieced(&self) -> bool {
        self.is_pieced
    }

    /// From now on it is not cancelled when it is dropped.
    pub(super) const fn stay(&mut self) {
        self.stays = true;
    }

    /// From now on it is.
    pub(super) const fn go(&mut self) {
        self.stays = false;
    }

    /// Asks how many bytes are there (end-13); nothing when the registry does not know the upload any more, or does not
    /// tell and we cannot know. Tried on distribution 2.8.2: after a `PUT` or `PATCH` that broke, the bytes are on its disk,
    /// but it says 404 to the old `_state` and gives no new one, so only what whole requests brought can be gone on from.
    pub(super) async fn ask(&mut self) -> Result<Option<u64>> {
        let call = self.call(Method::GET, self.location.clone());
        let response = match self.client.attempt_with_login(&call).await {
            Ok(response) => response,
            Err(Error::UploadSessionLost { .. }) => return Ok(None),
            Err(error) => {
                return match error.class() {
                    Class::Network | Class::RateLimited | Class::RegistryStorage => Err(error),
                    _ => Ok(None),
                };
            }
        };
        self.move_on(&response)?;
        let own = (self.offset > 0).then_some(self.offset);
        Ok(location::received(response.headers()).or(own))
    }

    /// Goes on from there.
    pub(super) const fn go_on_from(&mut self, offset: u64) {
        self.offset = offset;
        self.is_pieced = true;
    }

    /// Adds bytes (U2, U3). `alone` gives them a connection that nothing else was or will be sent over.
    pub(super) async fn append(
        &mut self,
        bytes: &Outgoing<'_>,
        is_chunk: bool,
        alone: bool,
    ) -> Result<()> {
        let mut call = self.call(Method::PATCH, self.location.clone());
        self.describe(&mut call.headers, bytes, is_chunk);
        if alone {
            let close = HeaderValue::from_static("close");
            call.headers.insert(header::CONNECTION, close);
        }
        call.payload = Payload::Blob(bytes);
        let response = self.client.attempt_with_login(&call).await?;
        self.move_on(&response)?;
        self.go_on_from(bytes.range.end);
        let said = location::received(response.headers());
        self.compare(said).await
    }

    /// Sends what is left and names the digest (U1).
    pub(super) async fn commit(&self, rest: &Outgoing<'_>, digest: &Digest) -> Result<Response> {
        let url = location::with_digest(&self.location, digest);
        let mut call = self.call(Method::PUT, url);
        self.describe(&mut call.headers, rest, false);
        call.payload = Payload::Blob(rest);
        self.client.attempt_with_login(&call).await
    }

    /// The registry counts less than we do: it is asked once what it means. Is it the same again or off by one, ours counts
    /// and the digest decides (U9: ECR stands still, zot and others count otherwise); is it something between, a part of the
    /// bytes got lost and is sent again.
    async fn compare(&mut self, said: Option<u64>) -> Result<()> {
        let own = self.offset;
        let Some(said) = said.filter(|said| *said < own && !self.has_asked) else {
            return Ok(());
        };
        self.has_asked = true;
        if let Some(there) = self.ask().await?
            && there > said
            && there + 1 < own
        {
            self.go_on_from(there);
        }
        Ok(())
    }

    /// The next place, where the answer names one.
    fn move_on(&mut self, response: &Response) -> Result<()> {
        if response.headers().contains_key(header::LOCATION) {
            self.location = location_in(&self.client, &self.operation, response)?;
        }
        Ok(())
    }

    fn describe(&self, headers: &mut HeaderMap, bytes: &Outgoing<'_>, is_chunk: bool) {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        let range = &bytes.range;
        if (is_chunk || self.offset > 0) && !range.is_empty() {
            // Without "bytes", as the specification has it here.
            let range = format!("{}-{}", range.start, range.end - 1);
            if let Ok(range) = HeaderValue::from_str(&range) {
                headers.insert(header::CONTENT_RANGE, range);
            }
        }
    }

    fn call(&self, method: Method, url: Url) -> Call<'static> {
        let (operation, scope) = (self.operation.clone(), self.scope.clone());
        Call::new(operation, Subject::UploadCommit, method, url, scope)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let (client, location) = (self.client.clone(), self.location.clone());
        let (scope, operation) = (self.scope.clone(), self.operation.clone());
        self.client.shared.in_background(async move {
            let cancel = cancel(&client, &location, &scope, &operation);
            // Whatever comes of it: the registry removes what is left over in time.
            tokio::time::timeout(CANCEL_LIMIT, cancel).await.ok();
        });
    }
}

/// Cancels an upload with the login there is; some registries want another permission for this, which is not asked for.
async fn cancel(
    client: &RegistryClient,
    location: &Url,
    scope: &Scope,
    operation: &Operation,
) -> Result<()> {
    let mut request = Request::new(Method::DELETE, location.clone());
    if client.is_own_origin(location) {
        let authorization = client.auth.beforehand(Some(scope), operation).await?;
        auth::apply(&mut request, authorization.header());
    }
    wire::exchange(&client.client, request, operation).await?;
    Ok(())
}

fn start_call(
    client: &RegistryClient,
    repository: &RepositoryPath,
    operation: &Operation,
) -> Call<'static> {
    Call::new(
        operation.clone(),
        Subject::UploadStart,
        Method::POST,
        client.url(repository, "blobs/uploads/"),
        client.scope(repository, Access::Push),
    )
}

/// Where the bytes go next.
fn location_in(client: &RegistryClient, operation: &Operation, response: &Response) -> Result<Url> {
    let unexpected = |problem| Error::UnexpectedAnswer {
        operation: operation.clone(),
        answer: Answer::of_status(response.status()),
        problem,
    };
    match Location::of(response.url(), response.headers()) {
        Ok(location) => {
            if location.has_forgotten_tls && client.shared.note_forgotten_tls() {
                client.output.warning(format!(
                    "{} names itself with http:// as the place for uploads, https is kept: the proxy before it should send \
                     X-Forwarded-Proto and Host",
                    client.address
                ));
            }
            Ok(location.url)
        }
        Err(Unusable::Missing) => Err(unexpected("it does not say where to send the bytes")),
        Err(Unusable::Unreadable) => Err(unexpected("the Location of the upload is not a URL")),
        Err(Unusable::Refused { target, reason }) => Err(Error::RedirectRefused {
            operation: operation.clone(),
            target: wire::origin_text(&target),
            reason,
        }),
    }
}

fn smallest_chunk(headers: &HeaderMap) -> Option<u64> {
    headers.get(SMALLEST_CHUNK)?.to_str().ok()?.parse().ok()
}
