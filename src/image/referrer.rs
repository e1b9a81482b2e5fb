//! Manifests that are about another one: signatures, attestations, bills of materials.
//!
//! A registry without the referrers API finds them by an index under a tag made of the subject's digest, which the clients
//! maintain (distribution-spec, "Referrers Tag Schema"). That index is the one manifest this project writes anew; the
//! entries of others in it stay as they are.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Descriptor, Digest, MediaType, RawManifest,
    error::{Error, Result},
};

/// What a manifest says about its subject, and what a list of referrers says about the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Referrer {
    /// The manifest it is about; it need not exist.
    pub subject: Digest,
    entry: Map<String, Value>,
}

/// The fields of a manifest that its entry in a list repeats.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    config: Option<Config>,
    annotations: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    media_type: MediaType,
}

impl Referrer {
    /// What `manifest` refers to, if it has a subject.
    pub fn of(manifest: &RawManifest) -> Option<Self> {
        let fields: Fields = serde_json::from_slice(manifest.bytes()).ok()?;
        let subject = fields.subject?.digest;
        // An image that does not name its kind is known by its configuration's type.
        let artifact_type = fields.artifact_type.filter(|kind| !kind.is_empty());
        let artifact_type = artifact_type.or_else(|| {
            let config = fields.config?;
            Some(config.media_type.as_str().to_owned())
        });
        let mut entry = Map::new();
        entry.insert("mediaType".to_owned(), json!(manifest.media_type()));
        entry.insert("digest".to_owned(), json!(manifest.digest()));
        entry.insert("size".to_owned(), json!(manifest.size()));
        if let Some(artifact_type) = artifact_type {
            entry.insert("artifactType".to_owned(), json!(artifact_type));
        }
        if let Some(annotations) = fields.annotations.filter(|all| !all.is_empty()) {
            entry.insert("annotations".to_owned(), annotations.into());
        }
        Some(Self { subject, entry })
    }

    /// The list with this referrer in it; nothing when it is there already.
    ///
    /// # Errors
    /// When `list` is not an OCI index: then the tag is somebody's for another purpose.
    pub fn added_to(&self, list: Option<&RawManifest>) -> Result<Option<Bytes>> {
        let mut index = match list {
            Some(list) => read_list(list)?,
            None => Map::from_iter([
                ("schemaVersion".to_owned(), json!(2)),
                ("mediaType".to_owned(), json!(MediaType::OCI_INDEX)),
            ]),
        };
        let entries = index
            .entry("manifests")
            .or_insert_with(|| Value::Array(Vec::new()));
        let Value::Array(entries) = entries else {
            return Ok(None);
        };
        if entries.iter().any(|entry| self.is_listed_as(entry)) {
            return Ok(None);
        }
        entries.push(Value::Object(self.entry.clone()));
        Ok(Some(Value::Object(index).to_string().into()))
    }

    fn is_listed_as(&self, entry: &Value) -> bool {
        entry.get("digest") == self.entry.get("digest")
    }
}

/// Reads a list with all its fields, known or not.
fn read_list(list: &RawManifest) -> Result<Map<String, Value>> {
    if *list.media_type() != MediaType::OCI_INDEX {
        return Err(Error::ManifestUnsupported {
            digest: list.digest().clone(),
            media_type: list.media_type().to_string(),
            remedy: "a list of referrers is expected under this tag, an OCI index; remove the tag, or give it another name",
        });
    }
    serde_json::from_slice(list.bytes()).map_err(|error| Error::ManifestInvalid {
        digest: list.digest().clone(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Algorithm;

    fn raw(value: &Value) -> RawManifest {
        RawManifest::new(value.to_string().into(), None, Algorithm::Sha256).unwrap()
    }

    fn blob(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(b"{}"), "size": 2})
    }

    fn signature(more: &Value) -> RawManifest {
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_MANIFEST,
            "config": blob("application/x-config"),
            "layers": [],
            "subject": blob(MediaType::OCI_MANIFEST.as_str()),
        });
        let more = more.as_object().unwrap().clone();
        manifest.as_object_mut().unwrap().extend(more);
        raw(&manifest)
    }

    fn entries(list: &[u8]) -> Vec<Value> {
        let list: Value = serde_json::from_slice(list).unwrap();
        list["manifests"].as_array().unwrap().clone()
    }

    #[test]
    fn a_manifest_without_a_subject_refers_to_nothing() {
        assert_eq!(
            Referrer::of(&signature(&json!({"subject": null, "x": 1}))),
            None
        );
    }

    #[test]
    fn an_entry_keeps_the_type_and_the_annotations_of_its_manifest() {
        for (more, kind) in [
            (
                json!({"artifactType": "application/x-signature"}),
                "application/x-signature",
            ),
            (json!({"artifactType": ""}), "application/x-config"),
            (json!({}), "application/x-config"),
        ] {
            let mut more = more;
            more["annotations"] = json!({"by": "us"});
            let manifest = signature(&more);
            let referrer = Referrer::of(&manifest).unwrap();
            assert_eq!(referrer.subject, Digest::of(b"{}"));
            let list = referrer.added_to(None).unwrap().unwrap();
            assert_eq!(
                entries(&list),
                [json!({
                    "mediaType": MediaType::OCI_MANIFEST,
                    "digest": manifest.digest(),
                    "size": manifest.size(),
                    "artifactType": kind,
                    "annotations": {"by": "us"},
                })]
            );
            assert_eq!(
                *RawManifest::new(list, None, Algorithm::Sha256)
                    .unwrap()
                    .media_type(),
                MediaType::OCI_INDEX
            );
        }
    }

    #[test]
    fn an_index_and_an_old_artifact_can_have_a_subject_too() {
        let subject = blob(MediaType::OCI_MANIFEST.as_str());
        for manifest in [
            json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [], "subject": subject,
                "artifactType": "application/x-list"}),
            json!({"mediaType": MediaType::OCI_ARTIFACT, "artifactType": "application/x-list", "blobs": [], "subject": subject}),
        ] {
            let referrer = Referrer::of(&raw(&manifest)).unwrap();
            let list = referrer.added_to(None).unwrap().unwrap();
            assert_eq!(entries(&list)[0]["artifactType"], "application/x-list");
            assert_eq!(entries(&list)[0]["mediaType"], manifest["mediaType"]);
        }
    }

    #[test]
    fn what_others_wrote_into_a_list_stays_and_nothing_stands_there_twice() {
        let referrer = Referrer::of(&signature(&json!({}))).unwrap();
        let foreign = json!({"mediaType": "application/x-other", "digest": Digest::of(b"other"), "size": 9_007_199_254_740_993_u64,
            "annotations": {"a": "b"}, "x": [1]});
        let list = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [foreign],
            "annotations": {"kept": "yes"}});
        let longer = referrer.added_to(Some(&raw(&list))).unwrap().unwrap();
        assert_eq!(entries(&longer)[0], foreign);
        assert_eq!(entries(&longer).len(), 2);
        let again: Value = serde_json::from_slice(&longer).unwrap();
        assert_eq!(again["annotations"], list["annotations"]);
        assert_eq!(referrer.added_to(Some(&raw(&again))).unwrap(), None);
    }

    #[test]
    fn a_tag_that_is_used_for_something_else_is_left_alone() {
        let referrer = Referrer::of(&signature(&json!({}))).unwrap();
        let other =
            raw(&json!({"schemaVersion": 2, "mediaType": MediaType::DOCKER_LIST, "manifests": []}));
        for manifest in [signature(&json!({})), other] {
            let error = referrer.added_to(Some(&manifest)).unwrap_err();
            assert!(error.to_string().contains("list of referrers"), "{error}");
        }
    }
}
