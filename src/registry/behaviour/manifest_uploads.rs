//! Manifests on their way to registries that say yes to everything, no to much, and explain it badly.

use http::StatusCode;
use serde_json::json;

use crate::{
    error::{Class, Classified},
    image::{Algorithm, Digest, MediaType, RawManifest, Reference},
    output::OutputManager,
    registry::{
        Error,
        testing::{Recorder, Server, error, manifest, reply, repository, status, tag},
    },
};

/// The sha512 digest of the usual manifest.
fn long_digest() -> Digest {
    Digest::with_algorithm(Algorithm::Sha512, manifest().bytes())
}

/// Sends the usual manifest to a server that answers the PUT like this.
async fn refused_upload(code: u16, body: &'static str) -> (Error, Vec<String>) {
    let server = Server::start(move |seen| match seen.method.as_str() {
        "PUT" => reply(StatusCode::from_u16(code).unwrap(), &[], body),
        _ => status(404),
    })
    .await;
    let client = server.client();
    let refused = client
        .upload_manifest_with_token(&repository(), &tag(), &manifest(), None)
        .await;
    (refused.unwrap_err(), server.lines())
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
async fn a_manifest_with_a_long_digest_is_written_where_short_ones_are_named() {
    let long = RawManifest::new(manifest().bytes().clone(), None, Algorithm::Sha512).unwrap();
    for reference in [tag(), Reference::Digest(long_digest())] {
        let server = Server::start(|_| {
            let digest = manifest().digest().to_string();
            reply(
                StatusCode::CREATED,
                &[("docker-content-digest", &digest)],
                "",
            )
        })
        .await;
        let client = server.client();
        client
            .upload_manifest_with_token(&repository(), &reference, &long, None)
            .await
            .unwrap();
        assert_eq!(
            server.lines(),
            [format!("PUT /v2/team/app/manifests/{reference}")]
        );
    }
}

#[tokio::test]
async fn a_manifest_beyond_all_limits_is_not_sent() {
    let server = Server::start(|_| status(201)).await;
    let large = json!({"schemaVersion": 2, "manifests": [], "x": "x".repeat(8 << 20)});
    let large = RawManifest::new(large.to_string().into(), None, Algorithm::Sha256).unwrap();
    let client = server.client();
    let failed = client
        .upload_manifest_with_token(&repository(), &tag(), &large, None)
        .await
        .unwrap_err();
    assert_eq!(failed.reason(), "ManifestTooLarge");
    assert!(server.lines().is_empty());
}

#[tokio::test]
async fn an_answer_that_names_another_digest_is_only_warned_of_where_the_manifest_is_there() {
    let server = Server::start(|seen| {
        let digest = match seen.method.as_str() {
            "PUT" => Digest::of(b"other"),
            _ => manifest().digest().clone(),
        };
        reply(
            StatusCode::OK,
            &[("docker-content-digest", &digest.to_string())],
            "",
        )
    })
    .await;
    let recorder = Recorder::default();
    let client = server
        .client()
        .with_output(OutputManager::new(recorder.clone()));
    client
        .upload_manifest_with_token(&repository(), &tag(), &manifest(), None)
        .await
        .unwrap();
    let told = recorder.0.lock().unwrap().join("");
    assert!(told.contains("level: Warning"), "{told}");
}

#[tokio::test]
async fn parts_that_are_missing_are_named_at_once_for_the_caller_to_send() {
    let body = r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","detail":
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}]}"#;
    for code in [400, 404] {
        let (failed, lines) = refused_upload(code, body).await;
        let Error::ManifestBlobUnknown { missing, .. } = failed else {
            panic!("{failed}")
        };
        assert_eq!(missing, [Digest::of(b"")]);
        assert_eq!(lines, ["PUT /v2/team/app/manifests/1"]);
    }
}

#[tokio::test]
async fn a_refusal_that_will_not_change_is_asked_for_once_and_explained() {
    let artifactory = r#"{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid",
        "detail":{"description":"HTTP 403 Forbidden"}}]}"#;
    let quay = r#"{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid",
        "detail":{"message":"schema not supported"}}]}"#;
    let proxy_project =
        r#"{"errors":[{"code":"DENIED","message":"can not push artifact to a proxy project"}]}"#;
    for (code, body, reason, shown) in [
        (400, artifactory, "AccessDenied", "HTTP 403 Forbidden"),
        (415, quay, "ManifestRejected", "schema not supported"),
        (
            415,
            quay,
            "ManifestRejected",
            MediaType::OCI_MANIFEST.as_str(),
        ),
        (415, "", "ManifestRejected", "let the registry allow them"),
        (403, proxy_project, "AccessDenied", "proxy project"),
        (413, "", "RequestTooLarge", "raise the limit"),
    ] {
        let (failed, lines) = refused_upload(code, body).await;
        assert_eq!(failed.reason(), reason, "{failed}");
        assert!(failed.to_string().contains(shown), "{failed}");
        assert_eq!(lines, ["PUT /v2/team/app/manifests/1"]);
    }
}
