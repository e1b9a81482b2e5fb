//! Manifests against registries that lie, leave out and exaggerate.

use bytes::Bytes;
use futures::stream;
use http::StatusCode;

use crate::{
    error::Classified,
    image::{Algorithm, Digest, MediaType, Reference},
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

/// The sha512 digest of the usual manifest.
fn long_digest() -> Digest {
    Digest::with_algorithm(Algorithm::Sha512, manifest().bytes())
}

#[tokio::test]
async fn whatever_the_body_of_a_404_is_the_manifest_is_not_there() {
    for body in [
        "",
        "<html><h1>Not Found</h1>",
        r#"{"errors":[{"code":"UNKNOWN","message":"Not Found"}]}"#,
        r#"{"errors":null}"#,
        r#"{"error":"x"}"#,
        "gone",
    ] {
        let server = Server::start(move |seen| match seen.line().as_str() {
            "GET /v2/" => status(200),
            _ => reply(StatusCode::NOT_FOUND, &[], body),
        })
        .await;
        let client = server.client();
        assert_eq!(
            client.head_manifest(&repository(), &tag()).await.unwrap(),
            None
        );
        let failed = client
            .get_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(failed.reason(), "ManifestUnknown", "{body}");
    }
}

#[tokio::test]
async fn a_manifest_asked_for_by_a_long_digest_may_be_named_by_a_short_one() {
    let reference = Reference::Digest(long_digest());
    for (claimed, fails) in [
        (manifest().digest().clone(), false),
        (long_digest(), false),
        (Digest::of(b"other"), true),
    ] {
        let claimed = claimed.to_string();
        let server = Server::start(move |_| {
            reply(
                StatusCode::OK,
                &[("docker-content-digest", &claimed)],
                manifest().bytes().clone(),
            )
        })
        .await;
        let client = server.client();
        let looked_for = client.head_manifest(&repository(), &reference).await;
        let read = client.get_manifest(&repository(), &reference).await;
        if fails {
            for reason in [looked_for.unwrap_err().reason(), read.unwrap_err().reason()] {
                assert_eq!(reason, "DigestMismatch");
            }
            continue;
        }
        assert_eq!(looked_for.unwrap(), Some(long_digest()));
        assert_eq!(*read.unwrap().digest(), long_digest());
    }
}

#[tokio::test]
async fn a_tag_has_the_digest_that_the_registry_names_it_by() {
    let server = Server::start(|_| {
        reply(
            StatusCode::OK,
            &[("docker-content-digest", &long_digest().to_string())],
            manifest().bytes().clone(),
        )
    })
    .await;
    let client = server.client();
    let looked_for = client.head_manifest(&repository(), &tag()).await.unwrap();
    let read = client.get_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(looked_for.as_ref(), Some(read.digest()));
    assert_eq!(*read.digest(), long_digest());
}

#[tokio::test]
async fn dockers_first_format_is_told_by_name_under_a_tag_and_under_a_digest() {
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    // The digest is that of the payload without the signatures (registry rule M5).
    let payload = Digest::of(b"payload");
    for (reference, content_type) in [
        (tag(), signed),
        (Reference::Digest(payload.clone()), signed),
        (Reference::Digest(payload.clone()), "application/json"),
    ] {
        let claimed = payload.to_string();
        let server = Server::start(move |_| {
            reply(
                StatusCode::OK,
                &[
                    ("content-type", content_type),
                    ("docker-content-digest", &claimed),
                ],
                r#"{"schemaVersion":1,"fsLayers":[],"signatures":[]}"#,
            )
        })
        .await;
        let client = server.client();
        let read = client.get_manifest(&repository(), &reference).await;
        let failed = read.unwrap_err();
        assert_eq!(failed.reason(), "ManifestUnsupported");
        let why = std::error::Error::source(&failed).unwrap().to_string();
        assert!(why.contains("rebuild the image"), "{why}");
    }
}

#[tokio::test]
async fn parameters_of_the_content_type_are_ignored_and_another_type_is_not() {
    for (content_type, reason) in [
        (
            "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
            None,
        ),
        ("Application/Vnd.OCI.image.manifest.v1+JSON", None),
        ("application/json", None),
        (MediaType::OCI_INDEX.as_str(), Some("ManifestInvalid")),
        (MediaType::DOCKER_MANIFEST.as_str(), Some("ManifestInvalid")),
    ] {
        let content_type = content_type.to_owned();
        let server = Server::start(move |_| {
            reply(
                StatusCode::OK,
                &[("content-type", &content_type)],
                manifest().bytes().clone(),
            )
        })
        .await;
        let read = server.client().get_manifest(&repository(), &tag()).await;
        assert_eq!(read.err().map(|error| error.reason()), reason);
    }
}

#[tokio::test]
async fn every_byte_of_an_odd_manifest_travels() {
    let odd = format!(
        "{{ \"x\" : 1.50,\n \"schemaVersion\":2, \"mediaType\":{:?}, \"blobs\": [], \"y\":\"\\u00e9\" }}\n\n",
        MediaType::OCI_ARTIFACT.as_str()
    );
    let digest = Digest::of(odd.as_bytes()).to_string();
    let server = Server::start(move |seen| match seen.method.as_str() {
        "GET" => reply(
            StatusCode::OK,
            &[("content-type", MediaType::OCI_ARTIFACT.as_str())],
            odd.clone(),
        ),
        _ => reply(
            StatusCode::CREATED,
            &[("docker-content-digest", &digest)],
            "",
        ),
    })
    .await;
    let client = server.client();
    let read = client.get_manifest(&repository(), &tag()).await.unwrap();
    client
        .upload_manifest_with_token(&repository(), &tag(), &read, None)
        .await
        .unwrap();
    let sent = &server.seen()[1];
    assert_eq!(sent.body, read.bytes());
    assert_eq!(
        sent.header("content-type"),
        Some(MediaType::OCI_ARTIFACT.as_str())
    );
}
