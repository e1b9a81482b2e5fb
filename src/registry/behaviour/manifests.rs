//! Manifests and tags against registries that lie, leave out and exaggerate.

use bytes::Bytes;
use futures::stream;
use http::StatusCode;

use crate::{
    error::{Class, Classified},
    image::{Digest, Reference},
    output::OutputManager,
    registry::{
        FoundManifest,
        testing::{Counter, Recorder, Server, error, manifest, reply, repository, status, tag},
    },
};

#[tokio::test]
async fn a_manifest_that_is_not_there_is_no_error_until_it_is_read() {
    let server = Server::start(|_| error(404, "UNKNOWN", "Not Found")).await;
    let client = server.client();
    assert_eq!(
        client.head_manifest(&repository(), &tag()).await.unwrap(),
        None
    );
    let failed = client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(failed.reason(), "ManifestUnknown");
    assert!(
        failed.to_string().contains("team/app:1") && failed.to_string().contains(&server.url()),
        "{failed}"
    );
}

#[tokio::test]
async fn all_types_are_accepted_and_no_encoding() {
    let server = Server::start(|_| status(404)).await;
    server
        .client()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    let seen = &server.seen()[0];
    assert_eq!(seen.header("accept"), Some(crate::image::MANIFEST_ACCEPT));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert!(
        seen.header("user-agent")
            .unwrap()
            .starts_with("docker-image-pusher/")
    );
}

#[tokio::test]
async fn a_head_without_a_usable_digest_is_followed_by_a_get() {
    for header in [None, Some("deadbeef")] {
        let server = Server::start(move |seen| match (seen.method.as_str(), header) {
            ("HEAD", Some(value)) => reply(StatusCode::OK, &[("docker-content-digest", value)], ""),
            ("HEAD", None) => status(200),
            _ => reply(StatusCode::OK, &[], manifest().bytes().clone()),
        })
        .await;
        let digest = server
            .client()
            .head_manifest(&repository(), &tag())
            .await
            .unwrap();
        assert_eq!(digest.as_ref(), Some(manifest().digest()));
        assert_eq!(server.lines().len(), 2);
    }
}

#[tokio::test]
async fn a_manifest_that_was_read_for_its_digest_is_handed_over() {
    for (code, digest, is_read) in [
        (200, None, true),
        (200, Some(manifest().digest().to_string()), false),
        (403, None, true),
    ] {
        let server = Server::start(move |seen| match (seen.method.as_str(), &digest) {
            ("HEAD", Some(digest)) => reply(
                StatusCode::OK,
                &[("docker-content-digest", digest.as_str())],
                "",
            ),
            ("HEAD", None) => status(code),
            _ => reply(StatusCode::OK, &[], manifest().bytes().clone()),
        })
        .await;
        let client = server.client();
        let found = client.find_manifest(&repository(), &tag()).await.unwrap();
        let found = found.unwrap();
        assert_eq!(found.digest(), manifest().digest());
        assert_eq!(server.count("GET", "/manifests/1"), usize::from(is_read));
        let FoundManifest::Manifest(read) = found else {
            assert!(!is_read);
            continue;
        };
        assert!(is_read);
        assert_eq!(read.bytes(), manifest().bytes());
    }
    let empty = Server::start(|_| status(404)).await;
    let found = empty.client().find_manifest(&repository(), &tag()).await;
    assert!(found.unwrap().is_none());
}

#[tokio::test]
async fn a_refused_head_is_explained_by_one_get() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "HEAD" => status(403),
        _ => error(403, "DENIED", "your plan does not include this\n\u{1b}[31m"),
    })
    .await;
    let failed = server
        .client()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(failed.reason(), "AccessDenied");
    assert!(
        failed
            .to_string()
            .contains(r"DENIED: your plan does not include this\n\u{1b}[31m"),
        "{failed}"
    );
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn a_manifest_asked_for_by_digest_has_that_digest() {
    let expected = Reference::Digest(manifest().digest().clone());
    for (body, header, fails) in [
        (manifest().bytes().clone(), None, false),
        (
            manifest().bytes().clone(),
            Some(Digest::of(b"other").to_string()),
            true,
        ),
        (
            manifest().bytes().clone(),
            Some("deadbeef".to_owned()),
            false,
        ),
        (
            Bytes::from_static(b"{}"),
            Some(manifest().digest().to_string()),
            true,
        ),
    ] {
        let server = Server::start(move |_| match &header {
            Some(header) => reply(
                StatusCode::OK,
                &[("docker-content-digest", header)],
                body.clone(),
            ),
            None => reply(StatusCode::OK, &[], body.clone()),
        })
        .await;
        let result = server.client().get_manifest(&repository(), &expected).await;
        assert_eq!(
            result
                .as_ref()
                .is_err_and(|error| error.reason() == "DigestMismatch"),
            fails,
            "{result:?}"
        );
        if !fails {
            assert_eq!(result.unwrap().bytes(), manifest().bytes());
        }
    }
}

#[tokio::test]
async fn a_wrong_digest_header_of_a_tag_is_a_warning() {
    let server = Server::start(|_| {
        let other = Digest::of(b"other").to_string();
        reply(
            StatusCode::OK,
            &[("docker-content-digest", &other)],
            manifest().bytes().clone(),
        )
    })
    .await;
    let recorder = Recorder::default();
    let client = server
        .client()
        .with_output(OutputManager::new(recorder.clone()));
    let read = client.get_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(read.digest(), manifest().digest());
    assert!(
        recorder
            .0
            .lock()
            .unwrap()
            .join("")
            .contains("level: Warning")
    );
}

#[tokio::test]
async fn an_endless_manifest_is_given_up() {
    let server = Server::start(|_| {
        let zeros =
            stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 65_536])));
        reply(StatusCode::OK, &[], axum::body::Body::from_stream(zeros))
    })
    .await;
    let failed = server
        .client()
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(failed.reason(), "ManifestTooLarge");
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_manifest_of_eight_mebibytes_is_read() {
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[],"x":"{}"}}"#,
        "x".repeat((8 << 20) - 41)
    );
    assert_eq!(text.len(), 8 << 20);
    let server = Server::start(move |_| reply(StatusCode::OK, &[], text.clone())).await;
    let read = server
        .client()
        .get_manifest(&repository(), &tag())
        .await
        .unwrap();
    assert_eq!(read.size(), 8 << 20);
}

#[tokio::test]
async fn a_manifest_is_written_under_its_own_type_and_bytes() {
    let server = Server::start(|_| {
        let digest = manifest().digest().to_string();
        reply(
            StatusCode::CREATED,
            &[("docker-content-digest", &digest)],
            "",
        )
    })
    .await;
    server
        .client()
        .upload_manifest_with_token(&repository(), &tag(), &manifest(), None)
        .await
        .unwrap();
    let [seen] = &server.seen()[..] else {
        panic!("not one request")
    };
    assert_eq!(seen.line(), "PUT /v2/team/app/manifests/1");
    assert_eq!(
        seen.header("content-type"),
        Some(manifest().media_type().as_str())
    );
    assert_eq!(seen.body, manifest().bytes());
}

#[tokio::test]
async fn a_registry_that_says_yes_to_everything_is_found_out() {
    for (has_it, reason) in [
        (None, "UnexpectedAnswer"),
        (Some(b"other"), "DigestMismatch"),
    ] {
        let server = Server::start(move |seen| match (seen.method.as_str(), has_it) {
            ("PUT", _) => status(200),
            (_, Some(content)) => {
                let digest = Digest::of(content).to_string();
                reply(StatusCode::OK, &[("docker-content-digest", &digest)], "")
            }
            (_, None) => status(404),
        })
        .await;
        let failed = server
            .client()
            .upload_manifest_with_token(&repository(), &tag(), &manifest(), None)
            .await
            .unwrap_err();
        assert_eq!(failed.reason(), reason);
    }
}

#[tokio::test]
async fn an_immutable_tag_is_an_error_only_with_another_content() {
    for refusal in [400, 409, 412] {
        for (there, succeeds) in [
            (manifest().digest().clone(), true),
            (Digest::of(b"other"), false),
        ] {
            let server = Server::start(move |seen| match seen.method.as_str() {
                "PUT" => error(refusal, "TAG_INVALID", "immutable"),
                _ => reply(
                    StatusCode::OK,
                    &[("docker-content-digest", &there.to_string())],
                    "",
                ),
            })
            .await;
            let result = server
                .client()
                .upload_manifest_with_token(&repository(), &tag(), &manifest(), None)
                .await;
            assert_eq!(result.is_ok(), succeeds);
            if let Err(failed) = result {
                assert_eq!(
                    (failed.reason(), failed.class()),
                    ("TagImmutable", Class::Policy)
                );
            }
            assert_eq!(server.lines().len(), 2);
        }
    }
}

#[tokio::test]
async fn tags_are_listed_page_by_page() {
    let server = Server::start(|seen| match seen.target.as_str() {
        "/v2/team/app/tags/list?n=1000" => reply(
            StatusCode::OK,
            &[("link", r#"</v2/team/app/tags/list?last=b>; rel="next""#)],
            r#"{"name":"x","tags":["a","b"]}"#,
        ),
        "/v2/team/app/tags/list?last=b" => reply(
            StatusCode::OK,
            &[],
            r#"{"tags":["c","not a tag","a"],"more":1}"#,
        ),
        _ => status(404),
    })
    .await;
    let tags = server.client().list_tags(&repository()).await.unwrap();
    let tags: Vec<_> = tags.iter().map(ToString::to_string).collect();
    assert_eq!(tags, ["a", "b", "c"]);
}

#[tokio::test]
async fn a_list_ends_when_nothing_new_comes() {
    let loops = Server::start(|_| {
        reply(
            StatusCode::OK,
            &[("link", "</v2/x>; rel=next")],
            r#"{"tags":["a"]}"#,
        )
    })
    .await;
    assert_eq!(
        loops.client().list_tags(&repository()).await.unwrap().len(),
        1
    );
    assert_eq!(loops.lines().len(), 2);

    let none = Server::start(|_| reply(StatusCode::OK, &[], r#"{"tags":null}"#)).await;
    assert!(
        none.client()
            .list_tags(&repository())
            .await
            .unwrap()
            .is_empty()
    );

    let all: Vec<_> = (0..1500).map(|number| format!("t{number}")).collect();
    let body = serde_json::json!({"tags": all}).to_string();
    let all_at_once = Server::start(move |_| reply(StatusCode::OK, &[], body.clone())).await;
    assert_eq!(
        all_at_once
            .client()
            .list_tags(&repository())
            .await
            .unwrap()
            .len(),
        1500
    );
    assert_eq!(
        all_at_once.seen()[1].target,
        "/v2/team/app/tags/list?n=1000&last=t1499"
    );
}

#[tokio::test]
async fn a_body_that_breaks_is_read_again() {
    let requests = Counter::default();
    let server = Server::start(move |_| {
        if requests.next() == 1 {
            let broken = stream::iter([
                Ok(Bytes::from_static(b"{")),
                Err(std::io::Error::other("broken")),
            ]);
            return reply(StatusCode::OK, &[], axum::body::Body::from_stream(broken));
        }
        reply(StatusCode::OK, &[], manifest().bytes().clone())
    })
    .await;
    server
        .client()
        .get_manifest(&repository(), &tag())
        .await
        .unwrap();
    assert_eq!(server.lines().len(), 2);
}
