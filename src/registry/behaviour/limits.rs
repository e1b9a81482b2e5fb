//! Retries, and registries that want to be left alone.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::{
    error::{Class, Classified},
    output::OutputManager,
    registry::{
        ClientOptions, Credential, Hosts, Quota, RegistryClient,
        testing::{
            Counter, Recorder, Server, asks_for_token, client_at, descriptor, manifest, raw_server,
            reply, repository, status, tag,
        },
    },
};

#[tokio::test]
async fn there_are_exactly_as_many_attempts_as_allowed() {
    for attempts in [0, 2] {
        let server = Server::start(|_| status(503)).await;
        let client = server.client_with(ClientOptions {
            retry_attempts: attempts,
            ..ClientOptions::default()
        });
        let failed = client
            .get_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(
            (failed.reason(), failed.class()),
            ("RegistryUnavailable", Class::Network)
        );
        assert_eq!(server.lines().len(), 1 + attempts as usize);
    }
}

#[tokio::test]
async fn what_fails_now_and_then_succeeds_in_the_end() {
    for code in [408, 500, 502, 503, 504] {
        let requests = Counter::default();
        let server = Server::start(move |_| match requests.next() {
            1 => status(code),
            _ => status(404),
        })
        .await;
        assert!(
            !server
                .client()
                .has_blob(&repository(), &descriptor(b"x"))
                .await
                .unwrap()
        );
    }
}

#[tokio::test]
async fn what_was_refused_is_not_asked_again() {
    for code in [400, 403, 405, 410, 501] {
        let server = Server::start(move |_| status(code)).await;
        server
            .client()
            .get_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(server.count("GET", "/manifests/1"), 1, "{code}");
    }
}

#[tokio::test]
async fn a_demanded_pause_is_kept_and_no_retry() {
    let requests = Counter::default();
    let server = Server::start(move |_| match requests.next() {
        1 => reply(StatusCode::TOO_MANY_REQUESTS, &[("retry-after", "1")], ""),
        _ => reply(StatusCode::OK, &[], manifest().bytes().clone()),
    })
    .await;
    let client = server.client_with(ClientOptions {
        retry_attempts: 0,
        ..ClientOptions::default()
    });
    let started = Instant::now();
    client.get_manifest(&repository(), &tag()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_pause_beyond_patience_is_an_error_with_its_length_and_holds_for_all() {
    for code in [429, 503] {
        let server = Server::start(move |_| {
            reply(
                StatusCode::from_u16(code).unwrap(),
                &[("retry-after", "3600")],
                "",
            )
        })
        .await;
        let client = server.client();
        let failed = client
            .head_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(
            (failed.reason(), failed.class()),
            ("TooManyRequests", Class::RateLimited)
        );
        assert_eq!(failed.retry_after(), Some(Duration::from_hours(1)));
        assert!(
            failed.to_string().contains("try again in 3600 s"),
            "{failed}"
        );
        let failed = client
            .clone()
            .has_blob(&repository(), &descriptor(b"x"))
            .await
            .unwrap_err();
        assert_eq!(failed.reason(), "TooManyRequests");
        assert!(
            failed
                .retry_after()
                .is_some_and(|pause| pause > Duration::from_secs(3590))
        );
        assert_eq!(server.lines().len(), 1, "a GET could cost a pull");
    }
}

/// Registry rule P13 is about what holds a connection for long.
#[tokio::test]
async fn a_refused_manifest_leaves_the_connections_for_blobs_as_they_are() {
    let server = Server::start(|_| status(429)).await;
    let client = server.client_with(ClientOptions {
        retry_attempts: 0,
        ..ClientOptions::default()
    });
    client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    let download = client.blob_download(&repository(), &descriptor(b"x"));
    // As many as from near.
    let slots = futures::future::join_all((0..8).map(|_| download.slot()));
    let slots = tokio::time::timeout(Duration::from_secs(5), slots).await;
    assert_eq!(slots.map(|slots| slots.len()).unwrap(), 8);
}

#[tokio::test]
async fn a_server_that_hangs_up_is_asked_again_at_once() {
    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
    let (address, _tasks) = raw_server(vec![Vec::new(), answer]).await;
    let recorder = Recorder::default();
    let client = RegistryClient::new(
        format!("http://{address}").parse().unwrap(),
        ClientOptions::default(),
        OutputManager::new(recorder.clone()),
    )
    .unwrap();
    assert!(
        !client
            .has_blob(&repository(), &descriptor(b"x"))
            .await
            .unwrap()
    );
    let told = recorder.0.lock().unwrap().join("\n");
    assert!(told.contains("pause: 0ns"), "{told}");
}

/// A used-up quota, as Docker Hub says it.
const USED_UP: [(&str, &str); 2] = [
    ("ratelimit-limit", "100;w=21600"),
    ("ratelimit-remaining", "0;w=21600"),
];

#[tokio::test]
async fn what_is_left_of_a_quota_is_known_from_any_answer() {
    let requests = Counter::default();
    let server = Server::start(move |_| {
        let left = format!("{};w=21600", 99 - requests.next());
        let quota = [
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", &left),
        ];
        reply(StatusCode::NOT_FOUND, &quota, "")
    })
    .await;
    let client = server.client();
    assert_eq!(client.quota(), None);
    for remaining in [98, 97] {
        let blob = descriptor(b"x");
        assert!(!client.has_blob(&repository(), &blob).await.unwrap());
        let quota = client.clone().quota();
        let expected = Quota {
            limit: 100,
            remaining,
            window: Some(Duration::from_hours(6)),
        };
        assert_eq!(quota, Some(expected));
    }
}

#[tokio::test]
async fn a_used_up_quota_says_when_to_come_back_and_nobody_of_the_account_asks_before() {
    let server = Server::start(|_| reply(StatusCode::TOO_MANY_REQUESTS, &USED_UP, "")).await;
    let client = server.client();
    for _ in 0..2 {
        let failed = client
            .get_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(
            (failed.reason(), failed.class()),
            ("TooManyRequests", Class::RateLimited)
        );
        let pause = failed.retry_after().unwrap();
        assert!((895..=900).contains(&pause.as_secs()), "{pause:?}");
    }
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn the_quota_of_one_account_parks_no_other() {
    let server = Server::start(|seen| match seen.authorization() {
        Some(_) => reply(StatusCode::OK, &[], manifest().bytes().clone()),
        None => reply(StatusCode::TOO_MANY_REQUESTS, &USED_UP, ""),
    })
    .await;
    let hosts = Hosts::default();
    let as_user = |credential| {
        let options = ClientOptions {
            credential,
            hosts: hosts.clone(),
            ..ClientOptions::default()
        };
        client_at(&server.url(), options)
    };
    let nobody = as_user(Credential::Anonymous);
    nobody
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    let user = as_user(Credential::RegistryToken("t".into()));
    user.get_manifest(&repository(), &tag()).await.unwrap();
    let other_run = as_user(Credential::Anonymous);
    let failed = other_run
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(failed.reason(), "TooManyRequests");
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn a_head_that_is_one_too_many_is_not_followed_by_a_get() {
    // registry rule R5: the GET would cost what is not there.
    let server = Server::start(|_| reply(StatusCode::TOO_MANY_REQUESTS, &USED_UP, "")).await;
    let client = server.client();
    client
        .find_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(server.lines(), ["HEAD /v2/team/app/manifests/1"]);
}

#[tokio::test]
async fn a_token_service_that_wants_to_be_left_alone_is() {
    let server = Server::start(|seen| {
        if seen.target.starts_with("/token") {
            return reply(
                StatusCode::TOO_MANY_REQUESTS,
                &[("retry-after", "3600")],
                "",
            );
        }
        asks_for_token("/token")
    })
    .await;
    let client = server.client();
    for _ in 0..3 {
        let failed = client
            .get_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(failed.reason(), "TooManyRequests");
    }
    assert_eq!(server.count("GET", "/token"), 1);
}

#[tokio::test]
async fn a_pause_holds_for_every_client_of_the_process_and_every_verb() {
    let requests = Counter::default();
    let server = Server::start(move |_| match requests.next() {
        1 => reply(StatusCode::SERVICE_UNAVAILABLE, &[("retry-after", "1")], ""),
        _ => reply(StatusCode::CREATED, &[], manifest().bytes().clone()),
    })
    .await;
    let options = ClientOptions {
        retry_attempts: 0,
        ..ClientOptions::default()
    };
    let (one, other) = (
        server.client_with(options.clone()),
        server.client_with(options),
    );
    let started = Instant::now();
    let (repository, tag) = (repository(), tag());
    let read = one.get_manifest(&repository, &tag);
    let write = async {
        while server.lines().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let manifest = manifest();
        let sent = other.upload_manifest_with_token(&repository, &tag, &manifest, None);
        sent.await.unwrap();
        started.elapsed()
    };
    let (read, elapsed) = tokio::join!(read, write);
    assert!(
        read.is_ok() && elapsed >= Duration::from_secs(1),
        "{elapsed:?}"
    );
}

#[tokio::test]
async fn a_registry_that_warns_is_heard_once() {
    let server = Server::start(|_| {
        let warning = "299 - \"this host moves on Friday\"";
        reply(StatusCode::NOT_FOUND, &[("warning", warning)], "")
    })
    .await;
    let recorder = Recorder::default();
    let output = OutputManager::new(recorder.clone());
    let options = ClientOptions::default();
    for _ in 0..3 {
        let client = RegistryClient::new(
            server.url().parse().unwrap(),
            options.clone(),
            output.clone(),
        )
        .unwrap();
        for _ in 0..30 {
            let blob = descriptor(b"x");
            client.has_blob(&repository(), &blob).await.unwrap();
        }
    }
    let told = recorder.0.lock().unwrap();
    let warnings: Vec<_> = told
        .iter()
        .filter(|event| event.contains("Friday"))
        .collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let expected = format!("{} says: this host moves on Friday", server.url());
    assert!(warnings[0].contains(&expected), "{warnings:?}");
}

#[tokio::test]
async fn an_error_without_end_is_still_judged_by_its_status() {
    // registry rule R11
    let server = Server::start(|_| {
        let piece = bytes::Bytes::from(vec![b' '; 16 * 1024]);
        let pieces = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
        reply(
            StatusCode::FORBIDDEN,
            &[],
            axum::body::Body::from_stream(pieces),
        )
    })
    .await;
    let client = server.client();
    let failed = client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(failed.reason(), "AccessDenied");
}
