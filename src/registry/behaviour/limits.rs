//! Retries, and registries that want to be left alone.

use std::time::{Duration, Instant};

use http::StatusCode;

use crate::{
    error::{Class, Classified},
    registry::{
        ClientOptions,
        testing::{
            Counter, Server, client_at, descriptor, manifest, raw_server, reply, repository,
            status, tag,
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

#[tokio::test]
async fn a_server_that_hangs_up_is_asked_again_at_once() {
    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
    let (address, _tasks) = raw_server(vec![Vec::new(), answer]).await;
    let client = client_at(&format!("http://{address}"), ClientOptions::default());
    let started = Instant::now();
    assert!(
        !client
            .has_blob(&repository(), &descriptor(b"x"))
            .await
            .unwrap()
    );
    assert!(started.elapsed() < Duration::from_millis(200));
}
