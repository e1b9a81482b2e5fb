//! Manifests that are about another one: where the registry does not keep lists of them, we do.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};

use crate::image::{Algorithm, Digest, RawManifest, Reference, Referrer, RepositoryPath, Tag};

use super::{
    RegistryClient,
    body::DOCUMENT_LIMIT,
    error::{Error, Result},
};

/// Says that the registry has put the manifest into its own list (distribution-spec, "Pushing Manifests with Subject").
const SUBJECT_HEADER: &str = "oci-subject";

/// How often a list is written before others are left to it: each loss means that somebody else got through.
const ATTEMPTS: usize = 5;

/// Longest pause after a lost write; a list is read and written within some round trips.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A list as it was read.
struct List {
    manifest: RawManifest,
    /// Fits the next write to what was read.
    condition: HeaderMap,
}

impl RegistryClient {
    /// Writes a manifest that has a subject and sees to it that it is found from there.
    pub(super) async fn upload_referrer(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
        manifest: &RawManifest,
        referrer: &Referrer,
    ) -> Result<()> {
        let host = &self.shared.host;
        if reference.tag().is_some() && !host.takes_subjects() {
            // A tag that is there is not written again: it comes last, when the list is whole.
            let by_digest = Reference::Digest(manifest.digest().clone());
            self.put_referrer(repository, &by_digest, manifest, referrer)
                .await?;
        }
        self.put_referrer(repository, reference, manifest, referrer)
            .await
    }

    async fn put_referrer(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
        manifest: &RawManifest,
        referrer: &Referrer,
    ) -> Result<()> {
        let answer = self
            .put_manifest(repository, reference, manifest, HeaderMap::new())
            .await?;
        let host = &self.shared.host;
        if names_subject(&answer, &referrer.subject) {
            host.note_subjects();
        }
        if host.takes_subjects() {
            return Ok(());
        }
        self.list_referrer(repository, referrer).await
    }

    /// Puts a referrer into the list that clients keep (registry rule T6). Others may do the same at the same moment: within
    /// this process one at a time does, beyond it what was written is read again until our entry is seen in it.
    async fn list_referrer(&self, repository: &RepositoryPath, referrer: &Referrer) -> Result<()> {
        let key = (repository.clone(), referrer.subject.clone());
        let _only_one = self.shared.host.referrers.lock(&key).await;
        let tag = Tag::of_referrers(&referrer.subject);
        let reference = Reference::Tag(tag.clone());
        let operation = self
            .manifest_call("write", Method::PUT, repository, &reference)
            .operation;
        let unusable = |source| Error::ManifestUnusable {
            operation: operation.clone(),
            source,
        };
        let mut refusal = None;
        for attempt in 0..=ATTEMPTS {
            let list = self.read_list(repository, &reference, referrer).await?;
            let (list, condition) = list.map_or_else(
                || (None, HeaderMap::new()),
                |list| (Some(list.manifest), list.condition),
            );
            let Some(longer) = referrer.added_to(list.as_ref()).map_err(unusable)? else {
                return Ok(());
            };
            if attempt == ATTEMPTS {
                break;
            }
            if attempt > 0 {
                tokio::time::sleep(LONGEST_PAUSE.mul_f64(fastrand::f64())).await;
            }
            let longer = RawManifest::new(longer, None, Algorithm::Sha256).map_err(unusable)?;
            let is_conditional = !condition.is_empty();
            let written = self.put_manifest(repository, &reference, &longer, condition);
            match written.await {
                // Whether it is still there shows when it is read.
                Ok(_) => refusal = None,
                // Another list is there by now.
                Err(error @ Error::DigestMismatch { .. }) => refusal = Some(error),
                Err(error @ Error::TagImmutable { .. }) if is_conditional => refusal = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or(Error::ReferrersContended { operation, tag }))
    }

    /// The list of what refers to a subject, if there is one. GitLab answers with the subject itself, which is none (registry
    /// rule T5; oras-go#1396).
    async fn read_list(
        &self,
        repository: &RepositoryPath,
        reference: &Reference,
        referrer: &Referrer,
    ) -> Result<Option<List>> {
        let mut call = self.manifest_call("read", Method::GET, repository, reference);
        call.also_accepted = Some(StatusCode::NOT_FOUND);
        let document = self.send_for_document(&call, DOCUMENT_LIMIT).await?;
        if document.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let condition = condition_of(&document.headers);
        let manifest = self.checked(&call.operation, reference, &document)?;
        Ok((!manifest.has_digest(&referrer.subject)).then_some(List {
            manifest,
            condition,
        }))
    }
}

/// Whether the registry says that it put the manifest into the list of this subject.
fn names_subject(answer: &HeaderMap, subject: &Digest) -> bool {
    let named = answer.get(SUBJECT_HEADER);
    let named = named.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
    named.as_ref() == Some(subject)
}

/// Lets a write fail when the list is another one by then. A weak tag fits nothing (RFC 9110, "If-Match").
fn condition_of(answer: &HeaderMap) -> HeaderMap {
    let tag = answer.get(header::ETAG);
    let strong = tag.filter(|tag| tag.as_bytes().starts_with(b"\""));
    strong
        .map(|tag| (header::IF_MATCH, tag.clone()))
        .into_iter()
        .collect()
}
