//! Blobs from a registry: where their bytes are, and the answers that bring them.

use std::{
    fmt,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Response;
use tracing::debug;
use url::Url;

use crate::image::{Descriptor, RepositoryPath};

use super::{
    Answer, BlobStream, RegistryClient, Slot, address,
    content_encoding::ContentEncoding,
    content_range::ContentRange,
    error::{Error, Operation, Result},
    judge::Subject,
    scope::Access,
    transport::Call,
    wire,
};

/// One blob to be fetched, whole or in parts. Clones share what was learned: where its bytes are, whether parts of it can be
/// had.
#[derive(Clone)]
pub struct BlobDownload(Arc<Download>);

struct Download {
    client: RegistryClient,
    repository: RepositoryPath,
    descriptor: Descriptor,
    operation: Operation,
    known: Mutex<Known>,
    /// Held by the one who asks the registry where the blob is, while the others wait for that: one redirect serves all
    /// ranges (registry rules D8, D9).
    finding: tokio::sync::Mutex<()>,
}

/// What the answers so far have shown.
#[derive(Default)]
struct Known {
    place: Option<Place>,
    takes_ranges: Option<bool>,
    is_encoded: bool,
}

/// Where the bytes of a blob are.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    /// Its query may be a signature.
    url: Url,
    keeper: Keeper,
}

/// Who answers there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Registry,
    /// A storage that the registry points to.
    Storage,
    /// The publisher of a layer that the registry does not have.
    Publisher,
}

impl fmt::Debug for BlobDownload {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "BlobDownload({})", self.0.operation)
    }
}

impl BlobDownload {
    /// Bytes of the blob, once there is a connection for them. Failures up to the answer's headers are retried here, those
    /// after them by the caller, who knows what to do with the bytes that came.
    ///
    /// A server that gives no parts gives the whole blob instead: [`BlobStream::offset`] tells.
    ///
    /// # Errors
    /// When the blob is not there or cannot be read.
    pub async fn range(&self, range: Range<u64>) -> Result<BlobStream> {
        let slot = self.slot().await;
        self.range_in(slot, range).await
    }

    /// Waits for a connection of the registry, so that what is asked for through it can be chosen as late as possible.
    pub async fn slot(&self) -> Slot {
        let shared = &self.0.client.shared;
        shared.slot(&shared.host.downloads).await
    }

    /// The same as [`range`](Self::range), with a connection at hand.
    ///
    /// # Errors
    /// When the blob is not there or cannot be read.
    pub async fn range_in(&self, slot: Slot, range: Range<u64>) -> Result<BlobStream> {
        let size = self.0.descriptor.size;
        let is_part = range.start > 0 || range.end < size;
        if !is_part || self.takes_ranges() == Some(false) {
            return self.whole(slot).await;
        }
        let (slot, response) = self.response(slot, Some(&range)).await?;
        let given = match response.status() {
            StatusCode::PARTIAL_CONTENT => ContentRange::of(response.headers()),
            StatusCode::OK => {
                self.note_ranges(false);
                return Ok(self.stream(slot, response, 0..size));
            }
            _ => None,
        };
        match given {
            Some(given) if given.answers(&range, size) => {
                self.note_ranges(true);
                Ok(self.stream(slot, response, given.bytes))
            }
            // Another part than asked for, or no part although there is one: only the whole can be trusted (D3).
            _ => {
                debug!(operation = %self.0.operation, ?given, ?range, "ranges are not usable");
                self.note_ranges(false);
                drop(response);
                self.whole(slot).await
            }
        }
    }

    /// The whole blob, unpacked where an answer says that it is packed. To be tried where the bytes as they come were wrong
    /// and [`is_encoded`](Self::is_encoded) says that they may have been packed on the way (D2).
    ///
    /// # Errors
    /// When the blob is not there, cannot be read, or is packed in a way that is not known here.
    pub async fn decoded(&self) -> Result<BlobStream> {
        let stream = self.whole(self.slot().await).await?;
        match stream.encoding() {
            None => Ok(stream),
            Some(ContentEncoding::Gzip) => Ok(stream.unpacked()),
            Some(ContentEncoding::Other) => Err(Error::UnexpectedAnswer {
                operation: self.0.operation.clone(),
                answer: Answer::of_status(StatusCode::OK),
                problem: "its Content-Encoding is neither identity nor gzip",
            }),
        }
    }

    /// Whether parts of the blob can be had, as far as is known.
    pub fn takes_ranges(&self) -> Option<bool> {
        self.known().takes_ranges
    }

    /// Whether an answer said that its bytes are packed. Mostly it is wrong, and the bytes are as they should be.
    pub fn is_encoded(&self) -> bool {
        self.known().is_encoded
    }

    /// Remembers whether a part came as such, for the blob and for those after it.
    fn note_ranges(&self, given: bool) {
        let keeper = {
            let mut known = self.known();
            known.takes_ranges = Some(given);
            known.place.as_ref().map(|place| place.keeper)
        };
        if keeper != Some(Keeper::Publisher) {
            let by_itself = keeper == Some(Keeper::Registry);
            let host = &self.0.client.shared.host;
            host.note_ranges(given, by_itself);
        }
    }

    async fn whole(&self, slot: Slot) -> Result<BlobStream> {
        let (slot, response) = self.response(slot, None).await?;
        if response.status() != StatusCode::OK {
            return Err(Error::UnexpectedAnswer {
                operation: self.0.operation.clone(),
                answer: Answer::of_status(response.status()),
                problem: "a whole blob was asked for",
            });
        }
        Ok(self.stream(slot, response, 0..self.0.descriptor.size))
    }

    fn stream(&self, slot: Slot, response: Response, range: Range<u64>) -> BlobStream {
        if ContentEncoding::of(response.headers()).is_some() {
            self.known().is_encoded = true;
        }
        let is_part = range.start > 0 || range.end < self.0.descriptor.size;
        let operation = if is_part {
            let Range { start, end } = range;
            Operation::new(format!("{}, bytes {start} to {end}", self.0.operation))
        } else {
            self.0.operation.clone()
        };
        BlobStream::new(response, operation, slot, range)
    }

    /// An answer's headers, with retries. Each takes its turn for a connection anew: others may have more luck meanwhile, and
    /// after a refusal there are fewer.
    async fn response(
        &self,
        mut slot: Slot,
        range: Option<&Range<u64>>,
    ) -> Result<(Slot, Response)> {
        let Download {
            client, operation, ..
        } = &*self.0;
        let mut retry = client.retry();
        loop {
            let error = match self.attempt(range).await {
                Ok(response) => return Ok((slot, response)),
                Err(error) => error,
            };
            if let Some(pause) = slot.crowded_out(&error) {
                debug!(%operation, %error, "too many at once");
                // With the connection in hand: whoever got it now would be refused just so.
                tokio::time::sleep(pause).await;
                drop(slot);
            } else {
                drop(slot);
                if !client.pause_after(&mut retry, operation, &error).await {
                    return Err(client.diagnosed(error).await);
                }
            }
            slot = self.slot().await;
        }
    }

    /// One attempt: where the blob was found before, else where the registry says that it is.
    async fn attempt(&self, range: Option<&Range<u64>>) -> Result<Response> {
        if let Some(place) = self.place() {
            match self.ask(&place, range).await {
                Ok(response) => return Ok(response),
                Err(error) if place.url == self.url() => return Err(error),
                Err(error) => {
                    self.forget(&place);
                    // A signature expires, a node of a CDN goes (D8); a storage that is busy is elsewhere just as busy.
                    if error.is_transport() || error.is_refusal_of_many() {
                        return Err(error);
                    }
                }
            }
        }
        if self.0.client.shared.host.gives_itself() {
            return self.find(range).await;
        }
        let finding = self.0.finding.lock().await;
        if let Some(place) = self.place() {
            drop(finding);
            return self.ask(&place, range).await;
        }
        self.find(range).await
    }

    async fn ask(&self, place: &Place, range: Option<&Range<u64>>) -> Result<Response> {
        let call = self.call(place.url.clone(), range);
        match place.keeper {
            Keeper::Registry => self.0.client.attempt(&call).await,
            Keeper::Storage | Keeper::Publisher => self.0.client.attempt_elsewhere(&call).await,
        }
    }

    /// Asks the registry, and the publisher of a layer that the registry does not have (D7).
    async fn find(&self, range: Option<&Range<u64>>) -> Result<Response> {
        let client = &self.0.client;
        let (response, keeper) = match client.attempt(&self.call(self.url(), range)).await {
            Err(error @ Error::BlobUnknown { .. }) => {
                (self.ask_publisher(range, error).await?, Keeper::Publisher)
            }
            Ok(response) if client.is_own_origin(response.url()) => (response, Keeper::Registry),
            other => (other?, Keeper::Storage),
        };
        let url = response.url().clone();
        self.known().place = Some(Place { url, keeper });
        Ok(response)
    }

    /// The first answer of those whom the descriptor names, `missing` if it names nobody. They get no credentials and pass
    /// the same filter as redirects do.
    async fn ask_publisher(&self, range: Option<&Range<u64>>, missing: Error) -> Result<Response> {
        let Download {
            client,
            descriptor,
            operation,
            ..
        } = &*self.0;
        let mut last = missing;
        for url in descriptor
            .urls
            .iter()
            .filter_map(|url| Url::parse(url).ok())
        {
            let outcome = match address::refusal(&client.shared.base, &url) {
                Some(reason) => Err(Error::RedirectRefused {
                    operation: operation.clone(),
                    target: wire::origin_text(&url),
                    reason,
                }),
                None => client.attempt_elsewhere(&self.call(url, range)).await,
            };
            match outcome {
                Ok(response) => return Ok(response),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// One range per request: storages answer several with something that nobody can read (D4).
    fn call(&self, url: Url, range: Option<&Range<u64>>) -> Call<'static> {
        let Download {
            client,
            repository,
            operation,
            ..
        } = &*self.0;
        let scope = client.scope(repository, Access::Pull);
        let mut call = Call::new(operation.clone(), Subject::Blob, Method::GET, url, scope);
        if let Some(Range { start, end }) = range {
            let last = end.saturating_sub(1);
            // Digits and a dash are always a header.
            if let Ok(value) = HeaderValue::from_str(&format!("bytes={start}-{last}")) {
                call.headers.insert(header::RANGE, value);
            }
            call.also_accepted = Some(StatusCode::RANGE_NOT_SATISFIABLE);
        }
        call
    }

    /// Where the registry is asked for the blob.
    fn url(&self) -> Url {
        let Download {
            client,
            repository,
            descriptor,
            ..
        } = &*self.0;
        client.blob_url(repository, descriptor)
    }

    fn place(&self) -> Option<Place> {
        self.known().place.clone()
    }

    /// Forgets a place, unless somebody has found another one meanwhile.
    fn forget(&self, place: &Place) {
        let mut known = self.known();
        if known.place.as_ref() == Some(place) {
            known.place = None;
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change is a single assignment.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// A blob to fetch from a repository. Nothing is asked yet.
    pub fn blob_download(
        &self,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
    ) -> BlobDownload {
        BlobDownload(Arc::new(Download {
            client: self.clone(),
            repository: repository.clone(),
            descriptor: descriptor.clone(),
            operation: self.blob_operation("read", repository, descriptor),
            known: Mutex::new(Known {
                takes_ranges: self.shared.host.gives_ranges().then_some(true),
                ..Known::default()
            }),
            finding: tokio::sync::Mutex::default(),
        }))
    }

    /// Asks for a blob without its bytes; its absence is an answer.
    pub(super) fn head_blob_call(
        &self,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
    ) -> Call<'static> {
        let operation = self.blob_operation("look for", repository, descriptor);
        let url = self.blob_url(repository, descriptor);
        let scope = self.scope(repository, Access::Pull);
        let mut call = Call::new(operation, Subject::Blob, Method::HEAD, url, scope);
        call.also_accepted = Some(StatusCode::NOT_FOUND);
        call
    }

    fn blob_url(&self, repository: &RepositoryPath, descriptor: &Descriptor) -> Url {
        self.url(repository, &format!("blobs/{}", descriptor.digest))
    }

    fn blob_operation(
        &self,
        verb: &str,
        repository: &RepositoryPath,
        descriptor: &Descriptor,
    ) -> Operation {
        Operation::new(format!(
            "{verb} blob {} of {repository} at {}",
            descriptor.digest, self.address
        ))
    }
}
