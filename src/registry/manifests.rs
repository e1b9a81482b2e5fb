//! Manifests: asking for their digest, reading them, writing them.

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::image::{
    Algorithm, Digest, MANIFEST_ACCEPT, MediaType, RawManifest, Reference, RepositoryPath,
};

use super::{
    RegistryClient,
    answer::Answer,
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
        match (claim(response.headers()), reference) {
            (Claim::Digest(actual), Reference::Digest(expected)) if actual != *expected => {
                Err(Error::DigestMismatch {
                    operation: call.operation,
                    expected: expected.clone(),
                    actual,
                })
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
        if content_type
            .as_ref()
            .is_some_and(|content_type| content_type.as_str() == "text/html")
        {
            let error = Error::UnexpectedAnswer {
                operation: call.operation,
                answer: Answer::web_page(document.status),
                problem: "it is not a manifest",
            };
            return Err(self.diagnosed(error).await);
        }
        let algorithm = reference
            .digest()
            .map_or(Algorithm::Sha256, Digest::algorithm);
        self.check_claim(&call, reference, algorithm, &document)?;
        RawManifest::new(document.bytes, content_type.as_ref(), algorithm).map_err(|source| {
            Error::ManifestUnusable {
                operation: call.operation,
                source,
            }
        })
    }

    /// Writes a manifest under a tag or its digest.
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
        self.with_optional_token(token)
            .upload_manifest(repository, reference, manifest)
            .await
    }

    async fn upload_manifest(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
        manifest: &RawManifest,
    ) -> Result<()> {
        let mut call = self.manifest_call("write", Method::PUT, repository, reference);
        call.subject = Subject::ManifestUpload;
        call.scope = Some(self.scope(repository, Access::Push));
        call.headers = HeaderMap::new();
        let media_type = HeaderValue::from_str(manifest.media_type().as_str());
        // A type that no header can hold was not accepted as a manifest's type either.
        if let Ok(media_type) = media_type {
            call.headers.insert(header::CONTENT_TYPE, media_type);
        }
        call.payload = Payload::Document(manifest.bytes().clone());
        let response = match self.send(&call).await {
            Ok(response) => response,
            // The tag cannot be moved, but it need not be when it is there already (registry rule M11).
            Err(Error::TagImmutable { operation, answer }) => {
                let there = self.head_manifest(repository, reference).await?;
                if there.as_ref() == Some(manifest.digest()) {
                    return Ok(());
                }
                return Err(Error::TagImmutable { operation, answer });
            }
            Err(error) => return Err(error),
        };
        match claim(response.headers()) {
            Claim::Digest(digest) if digest == *manifest.digest() => Ok(()),
            // Some servers say yes to anything (M8): who does not name our digest has to show that it has it.
            Claim::Digest(_) | Claim::Malformed | Claim::None => {
                self.confirm(&call.operation, repository, reference, manifest)
                    .await
            }
        }
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
            Some(digest) if digest == *manifest.digest() => Ok(()),
            Some(actual) => Err(Error::DigestMismatch {
                operation: operation.clone(),
                expected: manifest.digest().clone(),
                actual,
            }),
            None => Err(Error::UnexpectedAnswer {
                operation: operation.clone(),
                answer: Answer::of_status(StatusCode::NOT_FOUND),
                problem: "the registry accepted it, but does not have it",
            }),
        }
    }

    /// Compares what was received with what was asked for and with what the registry says it is. Only our own hash decides
    /// (registry rules G2, M2, M3).
    fn check_claim(
        &self,
        call: &Call<'_>,
        reference: &Reference,
        algorithm: Algorithm,
        document: &Document,
    ) -> Result<()> {
        let actual = Digest::with_algorithm(algorithm, &document.bytes);
        let mismatch = |expected: &Digest, actual: Digest| Error::DigestMismatch {
            operation: call.operation.clone(),
            expected: expected.clone(),
            actual,
        };
        if let Some(expected) = reference.digest()
            && *expected != actual
        {
            return Err(mismatch(expected, actual));
        }
        match (claim(&document.headers), reference) {
            (Claim::Digest(claimed), Reference::Digest(expected)) if claimed != *expected => {
                Err(mismatch(expected, claimed))
            }
            (Claim::Digest(claimed), Reference::Tag(_))
                if claimed.algorithm() == algorithm && claimed != actual =>
            {
                self.output.warning(format!(
                    "{} says that the manifest has the digest {claimed}, but it is {actual}",
                    self.address
                ));
                Ok(())
            }
            (Claim::Malformed, _) => {
                self.output.warning(format!(
                    "{} names the digest of {actual} in a form that cannot be read",
                    self.address
                ));
                Ok(())
            }
            (Claim::None | Claim::Digest(_), _) => Ok(()),
        }
    }

    fn manifest_call(
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

/// The digest an answer names.
fn claim(headers: &HeaderMap) -> Claim {
    match headers.get(DIGEST_HEADER) {
        None => Claim::None,
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|value| value.parse().ok())
            .map_or(Claim::Malformed, Claim::Digest),
    }
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
