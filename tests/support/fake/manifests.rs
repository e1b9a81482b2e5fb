//! Manifests: reading, writing, deleting.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::{Value, json};

use super::call::Call;
use super::content::{Content, digest_like};
use super::fault::{ContentType, DigestHeader, Fault, Step};
use super::reply::Reply;
use super::rule::fault_value;
use super::storage::{Document, Repository, digest_of};

/// What a client that reads manifests has to accept (R1).
const ALL_TYPES: [&str; 7] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.oci.artifact.manifest.v1+json",
];

/// The entry of somebody else that [`Fault::Race`] adds to a fallback index.
pub const FOREIGN_ARTIFACT: &str = "application/vnd.example.foreign";

impl Call<'_> {
    pub(super) fn get_manifest(&self) -> Reply {
        if self.is_yes_man() {
            return Reply::new(200).content(Content::new("ok"));
        }
        let limit = fault_value!(self.faults, RateLimit);
        if let Some(limit) = limit
            && self.step == Step::ManifestGet
        {
            let read = self.state.manifests_read.fetch_add(1, Ordering::SeqCst);
            if read >= limit {
                let reply = Reply::error(
                    429,
                    "TOOMANYREQUESTS",
                    "You have reached your pull rate limit.",
                );
                return self.with_quota(reply, limit);
            }
        }
        let Some((digest, document)) = self.find_manifest() else {
            return Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
        };
        if self
            .faults
            .has(|fault| matches!(fault, Fault::StrictAccept))
            && !self.accepts_all()
        {
            let text = "OCI manifest found, but accept header does not support OCI manifests";
            return Reply::error(404, "MANIFEST_UNKNOWN", text);
        }
        let media_type = match fault_value!(self.faults, ContentType) {
            None => document.media_type.clone(),
            Some(ContentType::Charset) => format!("{}; charset=utf-8", document.media_type),
            Some(ContentType::Mismatch) => {
                let index = ALL_TYPES[0];
                let other = if document.media_type == index {
                    ALL_TYPES[1]
                } else {
                    index
                };
                other.to_owned()
            }
        };
        let mut reply = Reply::new(200)
            .header("content-type", media_type)
            .header("docker-content-digest", &digest)
            .header("etag", format!("\"{digest}\""))
            .content(Content::new(document.bytes));
        let hides = self.step == Step::ManifestHead
            && self
                .faults
                .has(|fault| matches!(fault, Fault::HeadNoDigest));
        match fault_value!(self.faults, DigestHeader) {
            _ if hides => reply.remove_header("docker-content-digest"),
            None => {}
            Some(DigestHeader::Missing) => reply.remove_header("docker-content-digest"),
            Some(DigestHeader::Wrong) => {
                let other = Content::new("another manifest").digest();
                reply.set_header("docker-content-digest", &other);
            }
            Some(DigestHeader::NoPrefix) => {
                let hex = digest.split(':').nth(1).unwrap_or_default();
                reply.set_header("docker-content-digest", hex);
            }
        }
        match limit {
            Some(limit) => self.with_quota(reply, limit),
            None => reply,
        }
    }

    fn find_manifest(&self) -> Option<(String, Document)> {
        let storage = self.state.world.storage();
        let repository = storage.find(&self.repository)?;
        let found = repository.manifest(&self.object);
        let resolves_itself = self
            .faults
            .has(|fault| matches!(fault, Fault::FallbackSelf));
        found.or_else(|| {
            let digest = self.object.replacen('-', ":", 1);
            resolves_itself.then(|| repository.manifest(&digest))?
        })
    }

    fn with_quota(&self, reply: Reply, limit: usize) -> Reply {
        let read = self.state.manifests_read.load(Ordering::SeqCst);
        reply
            .header("ratelimit-limit", format!("{limit};w=21600"))
            .header(
                "ratelimit-remaining",
                format!("{};w=21600", limit.saturating_sub(read)),
            )
            .header("docker-ratelimit-source", "192.0.2.1")
    }

    /// One line with every type.
    fn accepts_all(&self) -> bool {
        let lines: Vec<_> = self.headers.get_all("accept").iter().collect();
        let [line] = lines.as_slice() else {
            return false;
        };
        let types: Vec<&str> = line
            .to_str()
            .unwrap_or_default()
            .split(',')
            .map(|one| one.split(';').next().unwrap_or_default().trim())
            .collect();
        ALL_TYPES.iter().all(|known| types.contains(known))
    }

    fn is_yes_man(&self) -> bool {
        self.faults.has(|fault| matches!(fault, Fault::YesMan))
    }

    pub(super) fn put_manifest(&self, bytes: Bytes) -> Reply {
        if self.is_yes_man() {
            return Reply::new(200);
        }
        let media_type = self.seen_header("content-type").unwrap_or_default();
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
            return Reply::error(400, "MANIFEST_INVALID", "it is not JSON");
        };
        if value["mediaType"]
            .as_str()
            .is_some_and(|inner| inner != media_type)
        {
            return Reply::error(400, "MANIFEST_INVALID", "Content-Type is not the mediaType");
        }
        let is_digest = self.object.contains(':');
        let digest = if is_digest {
            digest_like(&self.object, &bytes)
        } else {
            Content::new(bytes.clone()).digest()
        };
        if is_digest && digest != self.object {
            return Reply::error(
                400,
                "DIGEST_INVALID",
                "provided digest did not match uploaded content",
            );
        }
        let mut storage = self.state.world.storage();
        let repository = storage.repository(&self.repository);
        if let Some(refusal) = self.manifest_refusal(repository, &value, &digest) {
            return refusal;
        }
        let before = repository
            .manifest(&self.object)
            .map(|(_, document)| document);
        let document = Document { bytes, media_type };
        repository.manifests.insert(digest.clone(), document);
        let tags = self.tags_of_put();
        for tag in &tags {
            repository.tags.insert(tag.clone(), digest.clone());
        }
        let is_fallback = self.object.starts_with("sha256-");
        if is_fallback && self.faults.has(|fault| matches!(fault, Fault::Race)) {
            overwrite_as_somebody_else(repository, &self.object, before);
        }
        let mut reply = Reply::new(201)
            .header(
                "location",
                format!("/v2/{}/manifests/{digest}", self.repository),
            )
            .header("docker-content-digest", &digest);
        if value["subject"].is_object() {
            reply = reply.header("oci-subject", digest_of(&value["subject"]));
        }
        if is_digest && !tags.is_empty() {
            reply = reply.header("oci-tag", tags.join(","));
        }
        reply
    }

    /// The tags that a write sets: the reference itself, or what a write by digest names in its query.
    fn tags_of_put(&self) -> Vec<String> {
        if !self.object.contains(':') {
            return vec![self.object.clone()];
        }
        if self.faults.has(|fault| matches!(fault, Fault::Legacy)) {
            return Vec::new();
        }
        url::form_urlencoded::parse(self.query.as_bytes())
            .filter(|(key, _)| key == "tag")
            .map(|(_, tag)| tag.into_owned())
            .collect()
    }

    /// Why a manifest is not taken.
    fn manifest_refusal(
        &self,
        repository: &mut Repository,
        value: &Value,
        digest: &str,
    ) -> Option<Reply> {
        let there = repository.tags.get(&self.object);
        if let Some(status) = fault_value!(self.faults, Immutable)
            && there.is_some()
        {
            let code = if status == 400 {
                "TAG_INVALID"
            } else {
                "PRECONDITION"
            };
            return Some(Reply::error(status, code, "The image tag is immutable"));
        }
        if let Some(expected) = self.seen_header("if-match")
            && there.is_some_and(|there| expected != format!("\"{there}\""))
        {
            return Some(Reply::error(412, "PRECONDITION", "it has changed"));
        }
        if let Some(refused) = fault_value!(self.faults, RefuseType)
            && value.to_string().contains(refused)
        {
            let text = format!("manifest invalid: media type {refused} is not on the allow-list");
            return Some(Reply::error(415, "MANIFEST_INVALID", &text));
        }
        if self.faults.has(|fault| matches!(fault, Fault::BlobUnknown)) {
            return forget_a_blob(repository, value);
        }
        let missing = repository.missing(value);
        let is_index = value["manifests"].is_array();
        let refuses = self.faults.has(|fault| match fault {
            Fault::StrictRefs => true,
            Fault::NoSparse => is_index,
            _ => false,
        });
        let first = missing
            .first()
            .filter(|missing| refuses && *missing != digest)?;
        let (code, text) = if is_index {
            ("MANIFEST_UNKNOWN", "manifest unknown to registry")
        } else {
            ("MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
        };
        Some(Reply::error_with(
            400,
            code,
            text,
            &json!({"digest": first}),
        ))
    }

    pub(super) fn delete_manifest(&self) -> Reply {
        if let Some(status) = fault_value!(self.faults, Delete) {
            return Reply::error(status, "UNSUPPORTED", "told so");
        }
        let mut storage = self.state.world.storage();
        let repository = storage.repository(&self.repository);
        let was_there = if self.object.contains(':') {
            repository.tags.retain(|_, digest| *digest != self.object);
            repository.manifests.remove(&self.object).is_some()
        } else {
            repository.tags.remove(&self.object).is_some()
        };
        if was_there {
            Reply::new(202)
        } else {
            Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        }
    }
}

/// What garbage collection does to a manifest that comes in at the wrong moment: its last blob is gone.
fn forget_a_blob(repository: &mut Repository, value: &Value) -> Option<Reply> {
    let layer = value["layers"].as_array()?.last()?;
    let digest = digest_of(layer);
    repository.blobs.remove(digest);
    let detail = json!({"digest": digest});
    let text = "blob unknown to registry";
    Some(Reply::error_with(
        404,
        "MANIFEST_BLOB_UNKNOWN",
        text,
        &detail,
    ))
}

/// Somebody who read the index before our write adds an entry, and ours is gone.
fn overwrite_as_somebody_else(repository: &mut Repository, tag: &str, before: Option<Document>) {
    let mut index = before
        .and_then(|document| serde_json::from_slice(&document.bytes).ok())
        .unwrap_or_else(|| json!({"schemaVersion": 2, "mediaType": ALL_TYPES[0], "manifests": []}));
    let foreign = json!({
        "mediaType": ALL_TYPES[1], "size": 2, "artifactType": FOREIGN_ARTIFACT,
        "digest": Content::new("{}").digest(),
    });
    if let Some(manifests) = index["manifests"].as_array_mut() {
        manifests.push(foreign);
    }
    let bytes = Bytes::from(index.to_string());
    let digest = Content::new(bytes.clone()).digest();
    let document = Document {
        bytes,
        media_type: ALL_TYPES[0].to_owned(),
    };
    repository.manifests.insert(digest.clone(), document);
    repository.tags.insert(tag.to_owned(), digest);
}
