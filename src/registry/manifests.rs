//! Manifests: asking for their digest, reading them, writing them.

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use reqwest::Response;

use crate::image::{
    self, Algorithm, Descriptor, Digest, MANIFEST_ACCEPT, Manifest, MediaType, RawManifest,
    Reference, Referrer, RepositoryPath,
};

use super::{
    RegistryClient,
    answer::{Answer, shown},
    body::DOCUMENT_LIMIT,
    error::{Error, Operation, Result},
    judge::Subject,
    scope::Access,
    transport::{Call, Document, Payload},
};

/// What the registry believes the digest to be.
const DIGEST_HEADER: &str = "docker-content-digest";

/// What a registry said about a digest.
enum Claim {
    /// Nothing.
    None,
    /// Something that is no digest.
    Malformed,
    /// A digest.
    Digest(Digest),
}

impl Claim {
    fn of(headers: &HeaderMap) -> Self {
        match headers.get(DIGEST_HEADER) {
            None => Self::None,
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|value| value.parse().ok())
                .map_or(Self::Malformed, Self::Digest),
        }
    }
}

/// What a look for a manifest found: mostly its digest, and where the registry names none, the manifest itself, which then
/// need not be read again (registry rule R4).
#[derive(Debug, Clone)]
pub enum FoundManifest {
    /// The digest that the registry named.
    Digest(Digest),
    /// The whole manifest: the registry had to send it for us to know its digest.
    Manifest(RawManifest),
}

impl FoundManifest {
    /// The digest under which the registry has the manifest.
    pub const fn digest(&self) -> &Digest {
        match self {
            Self::Digest(digest) => digest,
            Self::Manifest(manifest) => manifest.digest(),
        }
    }
}

impl RegistryClient {
    /// The digest under which the registry has a manifest; nothing when it does not have it.
    ///
    /// # Errors
    /// When the registry cannot or does not want to tell: a refusal is an error, not an absence.
    pub async fn head_manifest(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
    ) -> Result<Option<Digest>> {
        let found = self.find_manifest(repository, reference).await?;
        Ok(found.map(|found| found.digest().clone()))
    }

    /// The same, with the manifest where it had to be read for its digest.
    ///
    /// # Errors
    /// As of [`RegistryClient::head_manifest`].
    pub async fn find_manifest(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
    ) -> Result<Option<FoundManifest>> {
        let read = async || {
            let manifest = self.get_manifest(repository, reference).await?;
            Ok(Some(FoundManifest::Manifest(manifest)))
        };
        let mut call = self.manifest_call("look for", Method::HEAD, repository, reference);
        call.also_accepted = Some(StatusCode::NOT_FOUND);
        let response = match self.send(&call).await {
            Ok(response) => response,
            // A HEAD's refusal has no text: one GET fetches it (registry rule R5), but none that could cost a pull.
            Err(error) if is_refusal(&error) => return read().await,
            Err(error) => return Err(error),
        };
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        match (Claim::of(response.headers()), reference) {
            // By another algorithm: only the bytes can tell whether that is the same manifest.
            (Claim::Digest(actual), Reference::Digest(expected))
                if actual.algorithm() != expected.algorithm() =>
            {
                read().await
            }
            (Claim::Digest(actual), Reference::Digest(expected)) if actual != *expected => {
                Err(mismatch(&call.operation, expected, actual))
            }
            (Claim::Digest(digest), _) => Ok(Some(FoundManifest::Digest(digest))),
            // Who does not name the digest has to send the bytes (R4; ggcr#971).
            (Claim::None | Claim::Malformed, _) => read().await,
        }
    }

    /// A manifest as the registry has it. One asked for by digest has that digest.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is not what its digest says.
    pub async fn get_manifest(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
    ) -> Result<RawManifest> {
        let call = self.manifest_call("read", Method::GET, repository, reference);
        let document = self.send_for_document(&call, DOCUMENT_LIMIT).await?;
        let content_type = content_type(&document.headers);
        if content_type.is_some_and(|content_type| content_type.as_str() == "text/html") {
            let error = Error::UnexpectedAnswer {
                operation: call.operation,
                answer: Answer::web_page(document.status),
                problem: "it is not a manifest",
            };
            return Err(self.diagnosed(error).await);
        }
        self.checked(&call.operation, reference, &document)
    }

    /// Makes a manifest of what was received, if that is what was asked for. Only our own hash decides (registry rules G2, M2,
    /// M3); what the registry says about it is a reason to fail or to warn.
    pub(super) fn checked(
        &self,
        operation: &Operation,
        reference: &Reference,
        document: &Document,
    ) -> Result<RawManifest> {
        let claim = Claim::of(&document.headers);
        let expected = reference.digest();
        let algorithm = match (expected, &claim) {
            (Some(expected), _) => expected.algorithm(),
            // A tag's digest is what the registry names it by.
            (None, Claim::Digest(claimed)) => claimed.algorithm(),
            (None, Claim::None | Claim::Malformed) => Algorithm::Sha256,
        };
        let content_type = content_type(&document.headers);
        let manifest = RawManifest::new(document.bytes.clone(), content_type.as_ref(), algorithm);
        let actual = match &manifest {
            Ok(manifest) => manifest.digest().clone(),
            // The digest of Docker's first format does not cover its bytes (M5).
            Err(image::Error::ManifestUnsupported { .. }) => expected
                .cloned()
                .unwrap_or_else(|| Digest::with_algorithm(algorithm, &document.bytes)),
            Err(_) => Digest::with_algorithm(algorithm, &document.bytes),
        };
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(mismatch(operation, expected, actual));
        }
        let manifest = manifest.map_err(|source| Error::ManifestUnusable {
            operation: operation.clone(),
            source,
        })?;
        match (claim, expected) {
            (Claim::Digest(claimed), Some(expected)) if !manifest.has_digest(&claimed) => {
                return Err(mismatch(operation, expected, claimed));
            }
            (claim, _) => self.warn_of_a_wrong_claim(&claim, &manifest),
        }
        Ok(manifest)
    }

    /// Tells when the registry says something else about a manifest than its bytes.
    fn warn_of_a_wrong_claim(&self, claim: &Claim, manifest: &RawManifest) {
        match claim {
            Claim::Digest(claimed) if !manifest.has_digest(claimed) => {
                self.output.warning(format!(
                    "{} says that the manifest has the digest {claimed}, but it is {}",
                    self.address,
                    manifest.digest()
                ));
            }
            Claim::Malformed => self.output.warning(format!(
                "{} names the digest of {} in a form that cannot be read",
                self.address,
                manifest.digest()
            )),
            Claim::None | Claim::Digest(_) => {}
        }
    }

    /// Writes a manifest under a tag or its digest. One that has a subject is found from there afterwards: where the registry
    /// does not see to it, its list of referrers is written, too (registry rule T6).
    ///
    /// Parts that the registry misses are not waited for: [`Error::ManifestBlobUnknown`] names them, and the caller sends them
    /// and the manifest again (M9).
    ///
    /// # Errors
    /// When the registry does not take it, or says it did and does not have it.
    pub async fn upload_manifest_with_token(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
        manifest: &RawManifest,
        token: Option<&str>,
    ) -> Result<()> {
        let client = self.with_optional_token(token);
        if let Some(referrer) = Referrer::of(manifest) {
            return client
                .upload_referrer(repository, reference, manifest, &referrer)
                .await;
        }
        let put = client.put_manifest(repository, reference, manifest, HeaderMap::new());
        put.await.map(drop)
    }

    /// Writes one manifest and makes sure that it is there. Gives the headers of the answer, none where the manifest was there
    /// already under a tag that cannot be moved.
    pub(super) async fn put_manifest(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
        manifest: &RawManifest,
        conditions: HeaderMap,
    ) -> Result<HeaderMap> {
        let mut call = self.manifest_call("write", Method::PUT, repository, reference);
        if manifest.size() > DOCUMENT_LIMIT {
            return Err(Error::ManifestTooLarge {
                operation: call.operation,
                limit: DOCUMENT_LIMIT,
            });
        }
        call.subject = Subject::ManifestUpload;
        call.scope = Some(self.scope(repository, Access::Push));
        call.headers = conditions;
        let media_type = HeaderValue::from_str(manifest.media_type().as_str());
        // A type that no header can hold was not accepted as a manifest's type either.
        if let Ok(media_type) = media_type {
            call.headers.insert(header::CONTENT_TYPE, media_type);
        }
        call.payload = Payload::Document(manifest.bytes().clone());
        let response = match self.send_manifest(&call).await {
            Ok(response) => response,
            // The tag cannot be moved, but it need not be when it is there already (registry rule M11).
            Err(Error::TagImmutable { operation, answer }) => {
                let there = self.head_manifest(repository, reference).await?;
                if there.is_some_and(|there| manifest.has_digest(&there)) {
                    return Ok(HeaderMap::new());
                }
                return Err(Error::TagImmutable { operation, answer });
            }
            Err(Error::ManifestRejected {
                operation, answer, ..
            }) => {
                let remedy = remedy_for(manifest, &answer);
                return Err(Error::ManifestRejected {
                    operation,
                    answer,
                    remedy,
                });
            }
            Err(error) => return Err(error),
        };
        let claim = Claim::of(response.headers());
        // Some servers say yes to anything (M8): who does not name our digest has to show that it has it.
        if !matches!(&claim, Claim::Digest(digest) if manifest.has_digest(digest)) {
            self.confirm(&call.operation, repository, reference, manifest)
                .await?;
            self.warn_of_a_wrong_claim(&claim, manifest);
        }
        Ok(response.headers().clone())
    }

    /// Sends a manifest, with retries. That parts of it are missing is not mended by waiting alone: it ends the retries.
    async fn send_manifest(&self, call: &Call<'_>) -> Result<Response> {
        self.with_retry(&call.operation, || async {
            match self.attempt(call).await {
                Err(error @ Error::ManifestBlobUnknown { .. }) => Ok(Err(error)),
                outcome => outcome.map(Ok),
            }
        })
        .await?
    }

    /// Makes sure that a manifest is where it was written.
    async fn confirm(
        &self,
        operation: &Operation,
        repository: &RepositoryPath,
        reference: &Reference,
        manifest: &RawManifest,
    ) -> Result<()> {
        match self.head_manifest(repository, reference).await? {
            Some(digest) if manifest.has_digest(&digest) => Ok(()),
            Some(actual) => Err(mismatch(operation, manifest.digest(), actual)),
            None => Err(Error::UnexpectedAnswer {
                operation: operation.clone(),
                answer: Answer::of_status(StatusCode::NOT_FOUND),
                problem: "the registry accepted it, but does not have it",
            }),
        }
    }

    pub(super) fn manifest_call(
        &self,
        verb: &str,
        method: Method,
        repository: &RepositoryPath,
        reference: &Reference,
    ) -> Call<'static> {
        let separator = if reference.tag().is_some() { ':' } else { '@' };
        let operation = Operation::new(format!(
            "{verb} manifest {repository}{separator}{reference} at {}",
            self.address
        ));
        let url = self.url(repository, &format!("manifests/{reference}"));
        let scope = self.scope(repository, Access::Pull);
        let mut call = Call::new(operation, Subject::Manifest, method, url, scope);
        call.headers
            .insert(header::ACCEPT, HeaderValue::from_static(MANIFEST_ACCEPT));
        call
    }
}

fn mismatch(operation: &Operation, expected: &Digest, actual: Digest) -> Error {
    Error::DigestMismatch {
        operation: operation.clone(),
        expected: expected.clone(),
        actual,
    }
}

/// What may help against the refusal of a manifest, as the end of a sentence.
fn remedy_for(manifest: &RawManifest, answer: &Answer) -> String {
    let algorithm = manifest.digest().algorithm();
    if algorithm != Algorithm::Sha256 && answer.code() == Some("DIGEST_INVALID") {
        let name = algorithm.name();
        return format!(
            "; it goes by a digest of {name}, and many registries know none but sha256: choose one that takes {name}"
        );
    }
    format!(
        "; it is of the types {}: let the registry allow them, or build the image with types that it takes",
        types_of(manifest)
    )
}

/// The media types of a manifest and its parts, each once: what a registry's list of allowed types is about (registry rule
/// M13).
fn types_of(manifest: &RawManifest) -> String {
    /// An image has two or three; more does not help the reader.
    const LIMIT: usize = 6;
    let parts: Vec<Descriptor> = match manifest.parse() {
        Ok(Manifest::Image(image)) => image.blobs().cloned().collect(),
        Ok(Manifest::Index(index)) => index.manifests,
        Err(_) => Vec::new(),
    };
    let mut types = vec![shown(manifest.media_type().as_str())];
    for part in &parts {
        let media_type = shown(part.media_type.as_str());
        if types.len() < LIMIT && !types.contains(&media_type) {
            types.push(media_type);
        }
    }
    types.join(", ")
}

fn content_type(headers: &HeaderMap) -> Option<MediaType> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(MediaType::from_header(value))
}

/// Whether a HEAD was refused in a way that the registry can explain. A login that failed is not tried twice for a message.
const fn is_refusal(error: &Error) -> bool {
    matches!(
        error,
        Error::AccessDenied { .. } | Error::RequestRefused { .. }
    )
}
