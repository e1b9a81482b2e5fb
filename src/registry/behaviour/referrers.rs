//! Manifests with a subject, at registries that list them and at registries that leave it to us (registry rule T6).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    error::{Class, Classified},
    image::{Algorithm, Digest, MediaType, RawManifest, Reference, Tag},
    registry::{
        RegistryClient, Result,
        testing::{Counter, Seen, Server, manifest, reply, repository, status},
    },
};

/// A registry that keeps manifests by reference and knows nothing of subjects.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<HashMap<String, Bytes>>>);

impl Memory {
    fn answer(&self, seen: &Seen) -> Response {
        self.answer_with(seen, false)
    }

    /// The same, with entity tags where `is_versioned`.
    fn answer_with(&self, seen: &Seen, is_versioned: bool) -> Response {
        let reference = seen.target.rsplit('/').next().unwrap().to_owned();
        let there = self.get(&reference);
        if seen.method == "PUT" {
            let fits = seen
                .header("if-match")
                .is_none_or(|wanted| there.as_ref().is_some_and(|there| etag(there) == wanted));
            if is_versioned && !fits {
                return status(412);
            }
            self.put(&reference, seen.body.clone());
            let digest = Digest::of(&seen.body).to_string();
            return reply(
                StatusCode::CREATED,
                &[("docker-content-digest", &digest)],
                "",
            );
        }
        let Some(there) = there else {
            return status(404);
        };
        let digest = Digest::of(&there).to_string();
        let etag = etag(&there);
        let mut headers = vec![("docker-content-digest", digest.as_str())];
        if is_versioned {
            headers.push(("etag", &etag));
        }
        reply(StatusCode::OK, &headers, there)
    }

    fn get(&self, reference: &str) -> Option<Bytes> {
        self.0.lock().unwrap().get(reference).cloned()
    }

    fn put(&self, reference: &str, bytes: Bytes) {
        self.0.lock().unwrap().insert(reference.to_owned(), bytes);
    }

    /// Somebody else adds an entry.
    fn add_foreign(&self, name: &str) {
        let mut list = self.get(&list_tag()).map_or_else(
            || json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": []}),
            |list| serde_json::from_slice(&list).unwrap(),
        );
        list["manifests"].as_array_mut().unwrap().push(json!({
            "mediaType": MediaType::OCI_MANIFEST, "digest": Digest::of(name.as_bytes()), "size": 1
        }));
        self.put(&list_tag(), list.to_string().into());
    }

    /// The digests of the list of referrers.
    fn listed(&self) -> Vec<String> {
        let list: Value = serde_json::from_slice(&self.get(&list_tag()).unwrap()).unwrap();
        let entries = list["manifests"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| entry["digest"].as_str().unwrap().to_owned())
            .collect()
    }
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", Digest::of(bytes))
}

fn list_tag() -> String {
    Tag::of_referrers(manifest().digest()).to_string()
}

/// A signature of the usual manifest.
fn signature(name: &str) -> RawManifest {
    let config = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "artifactType": "application/x-signature",
        "config": config, "layers": [config], "annotations": {"name": name},
        "subject": {"mediaType": MediaType::OCI_MANIFEST, "digest": manifest().digest(), "size": manifest().size()},
    });
    RawManifest::new(manifest.to_string().into(), None, Algorithm::Sha256).unwrap()
}

fn digest_of(name: &str) -> String {
    signature(name).digest().to_string()
}

async fn push(client: &RegistryClient, name: &str) -> Result<()> {
    let signature = signature(name);
    let reference = Reference::Digest(signature.digest().clone());
    client
        .upload_manifest_with_token(&repository(), &reference, &signature, None)
        .await
}

#[tokio::test]
async fn a_registry_that_keeps_the_list_itself_is_asked_for_nothing_more() {
    let requests = Counter::default();
    let server = Server::start(move |seen| {
        let digest = Digest::of(&seen.body).to_string();
        let subject = manifest().digest().to_string();
        // It forgets to say so once: it was said before.
        let mut headers = vec![("docker-content-digest", digest.as_str())];
        if requests.next() == 1 {
            headers.push(("oci-subject", &subject));
        }
        reply(StatusCode::CREATED, &headers, "")
    })
    .await;
    let client = server.client();
    for name in ["a", "b"] {
        push(&client, name).await.unwrap();
    }
    client
        .upload_manifest_with_token(
            &repository(),
            &"signed".parse().unwrap(),
            &signature("c"),
            None,
        )
        .await
        .unwrap();
    assert_eq!(server.lines().len(), 3, "{:?}", server.lines());
}

#[tokio::test]
async fn where_the_registry_keeps_no_list_ours_names_each_referrer_once() {
    let memory = Memory::default();
    let registry = memory.clone();
    let server = Server::start(move |seen| registry.answer(seen)).await;
    let client = server.client();
    for name in ["a", "b", "a"] {
        push(&client, name).await.unwrap();
    }
    assert_eq!(memory.listed(), [digest_of("a"), digest_of("b")]);
    assert_eq!(server.count("PUT", &list_tag()), 2);
    let list: Value = serde_json::from_slice(&memory.get(&list_tag()).unwrap()).unwrap();
    assert_eq!(
        list["manifests"][0]["artifactType"],
        "application/x-signature"
    );
    assert_eq!(list["manifests"][0]["annotations"]["name"], "a");
    let written = server.seen();
    let written = written.iter().find(|seen| seen.is("PUT", &list_tag()));
    assert_eq!(
        written.unwrap().header("content-type"),
        Some(MediaType::OCI_INDEX.as_str())
    );
}

#[tokio::test]
async fn a_tag_comes_last_when_the_list_is_whole() {
    let memory = Memory::default();
    let server = Server::start(move |seen| memory.answer(seen)).await;
    let client = server.client();
    let signature = signature("a");
    let tag = "signed".parse().unwrap();
    client
        .upload_manifest_with_token(&repository(), &tag, &signature, None)
        .await
        .unwrap();
    let writes: Vec<_> = server
        .lines()
        .into_iter()
        .filter(|line| line.starts_with("PUT"))
        .collect();
    let path = "PUT /v2/team/app/manifests";
    assert_eq!(
        writes,
        [
            format!("{path}/{}", signature.digest()),
            format!("{path}/{}", list_tag()),
            format!("{path}/signed"),
        ]
    );
}

#[tokio::test]
async fn an_entry_that_somebody_wrote_between_our_reading_and_writing_stays() {
    let memory = Memory::default();
    let registry = memory.clone();
    memory.add_foreign("first");
    let reads = Counter::default();
    let server = Server::start(move |seen| {
        let answer = registry.answer_with(seen, true);
        // The registry tells versions apart: our write of the old one fails.
        if seen.is("GET", &list_tag()) && reads.next() == 1 {
            registry.add_foreign("race");
        }
        answer
    })
    .await;
    push(&server.client(), "a").await.unwrap();
    let foreign = |name: &str| Digest::of(name.as_bytes()).to_string();
    assert_eq!(
        memory.listed(),
        [foreign("first"), foreign("race"), digest_of("a")]
    );
}

#[tokio::test]
async fn an_entry_of_ours_that_somebody_overwrote_is_written_again() {
    let memory = Memory::default();
    let registry = memory.clone();
    let writes = Counter::default();
    let server = Server::start(move |seen| {
        let answer = registry.answer(seen);
        // Somebody who had read the list before we wrote it writes it now.
        if seen.is("PUT", &list_tag()) && writes.next() <= 2 {
            registry.0.lock().unwrap().remove(&list_tag());
            registry.add_foreign("race");
        }
        answer
    })
    .await;
    push(&server.client(), "a").await.unwrap();
    let race = Digest::of(b"race").to_string();
    assert_eq!(memory.listed(), [race, digest_of("a")]);
}

#[tokio::test]
async fn a_list_that_others_never_leave_alone_is_given_up() {
    for is_versioned in [false, true] {
        let memory = Memory::default();
        memory.add_foreign("first");
        let requests = Counter::default();
        let server = Server::start(move |seen| {
            if seen.is("PUT", &list_tag()) {
                memory.0.lock().unwrap().remove(&list_tag());
                memory.add_foreign(&format!("race {}", requests.next()));
                if !is_versioned {
                    let digest = Digest::of(&seen.body).to_string();
                    return reply(
                        StatusCode::CREATED,
                        &[("docker-content-digest", &digest)],
                        "",
                    );
                }
            }
            memory.answer_with(seen, is_versioned)
        })
        .await;
        let failed = push(&server.client(), "a").await.unwrap_err();
        // What the registry says about it is worth more than our guess.
        let expected = if is_versioned {
            ("TagImmutable", Class::Policy)
        } else {
            ("ReferrersContended", Class::Network)
        };
        assert_eq!((failed.reason(), failed.class()), expected, "{failed}");
        assert!(failed.to_string().contains(&list_tag()), "{failed}");
        assert_eq!(server.count("PUT", &list_tag()), 5);
    }
}

#[tokio::test]
async fn many_at_once_in_one_process_lose_no_entry_and_no_write() {
    let memory = Memory::default();
    let registry = memory.clone();
    let server = Server::start(move |seen| registry.answer(seen)).await;
    let (client, names) = (server.client(), ["a", "b", "c", "d", "e", "f"]);
    let pushes = names.map(|name| push(&client, name));
    for pushed in futures::future::join_all(pushes).await {
        pushed.unwrap();
    }
    let (mut listed, mut expected) = (memory.listed(), names.map(digest_of).to_vec());
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(server.count("PUT", &list_tag()), names.len());
}

#[tokio::test]
async fn a_registry_that_shows_the_subject_under_the_lists_tag_has_no_list() {
    let memory = Memory::default();
    memory.put(&list_tag(), manifest().bytes().clone());
    let registry = memory.clone();
    let server = Server::start(move |seen| registry.answer(seen)).await;
    push(&server.client(), "a").await.unwrap();
    assert_eq!(memory.listed(), [digest_of("a")]);
}

#[tokio::test]
async fn an_image_under_the_lists_tag_is_not_overwritten() {
    let memory = Memory::default();
    let other = signature("somebody's image").bytes().clone();
    memory.put(&list_tag(), other.clone());
    let registry = memory.clone();
    let server = Server::start(move |seen| registry.answer(seen)).await;
    let failed = push(&server.client(), "a").await.unwrap_err();
    assert_eq!(failed.reason(), "ManifestUnsupported");
    assert_eq!(memory.get(&list_tag()), Some(other));
}
