//! Where credentials do not go.

use axum::response::Response;
use http::StatusCode;

use crate::{
    error::Classified,
    registry::{
        Credential,
        testing::{
            Seen, Server, asks_for_token, descriptor, read_blob, reply, repository, status, tag,
            upload,
        },
    },
};

fn me() -> Credential {
    Credential::Basic {
        username: "me".to_owned(),
        password: "hunter2".into(),
    }
}

/// A registry with login by password, which answers those who have it with `answer`.
async fn registry(answer: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Server {
    Server::start(move |seen| match seen.authorization() {
        None => reply(
            StatusCode::UNAUTHORIZED,
            &[("www-authenticate", "Basic realm=\"x\"")],
            "",
        ),
        Some(_) => answer(seen),
    })
    .await
}

fn assert_told_nothing(server: &Server, expected: &[&str]) {
    assert_eq!(server.lines(), expected);
    for seen in server.seen() {
        assert_eq!(seen.authorization(), None, "{seen:?}");
        assert_eq!(seen.header("cookie"), None);
        let all = format!("{seen:?}");
        assert!(
            !all.contains("hunter2") && !all.contains("aHVudGVy"),
            "{all}"
        );
    }
}

#[tokio::test]
async fn a_blob_elsewhere_is_fetched_without_login() {
    for code in [301, 302, 303, 307, 308] {
        let storage = Server::start(|_| reply(StatusCode::OK, &[], "layer")).await;
        let target = format!("{}/blob?signature=s", storage.url());
        let server = registry(move |_| {
            reply(
                StatusCode::from_u16(code).unwrap(),
                &[("location", &target)],
                "",
            )
        })
        .await;
        let mut blob = read_blob(&server.client_as(me()), &descriptor(b"layer"))
            .await
            .unwrap();
        assert_eq!(blob.next().await.unwrap().unwrap(), "layer");
        assert_eq!(storage.seen()[0].target, "/blob?signature=s");
        assert_told_nothing(&storage, &["GET /blob"]);
    }
}

#[tokio::test]
async fn bytes_for_another_host_are_sent_without_login() {
    let storage = Server::start(|_| status(201)).await;
    let target = format!("{}/upload?a=%2Fb", storage.url());
    let server = registry(move |_| reply(StatusCode::ACCEPTED, &[("location", &target)], "")).await;
    upload(&server.client_as(me()), b"").await.unwrap();
    assert!(
        storage.seen()[0]
            .target
            .starts_with("/upload?a=%2Fb&digest=sha256%3Ae3b0c442")
    );
    assert_told_nothing(&storage, &["PUT /upload"]);
}

#[tokio::test]
async fn a_page_of_tags_elsewhere_is_read_without_login() {
    let other = Server::start(|_| reply(StatusCode::OK, &[], r#"{"tags":["b"]}"#)).await;
    let link = format!("<{}/more>; rel=\"next\"", other.url());
    let server =
        registry(move |_| reply(StatusCode::OK, &[("link", &link)], r#"{"tags":["a"]}"#)).await;
    let tags = server
        .client_as(me())
        .list_tags(&repository())
        .await
        .unwrap();
    assert_eq!(tags.len(), 2);
    assert_told_nothing(&other, &["GET /more"]);
}

#[tokio::test]
async fn a_token_service_at_a_forbidden_place_gets_nothing() {
    for realm in [
        "http://169.254.169.254/token",
        "ftp://auth.example/token",
        "http://a:b@127.0.0.1/token",
        "http://0.0.0.0/token",
    ] {
        let server = Server::start(move |_| asks_for_token(realm)).await;
        let error = server
            .client_as(me())
            .get_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "TokenServiceRefused", "{realm}");
        assert_eq!(server.lines().len(), 1);
    }
}

#[tokio::test]
async fn a_token_service_does_not_lead_elsewhere() {
    let other = Server::start(|_| status(200)).await;
    let target = other.url();
    let server = Server::start(move |seen| {
        if seen.target.starts_with("/token") {
            return reply(StatusCode::TEMPORARY_REDIRECT, &[("location", &target)], "");
        }
        asks_for_token("/token")
    })
    .await;
    server
        .client_as(me())
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(other.lines().len(), 0);
}

#[tokio::test]
async fn redirects_to_forbidden_places_and_in_circles_are_refused() {
    for (target, requests) in [
        ("http://169.254.169.254/x", 1),
        ("file:///etc/passwd", 1),
        ("http://[", 1),
        ("/v2/again", 6),
    ] {
        let server =
            Server::start(move |_| reply(StatusCode::FOUND, &[("location", target)], "")).await;
        let error = read_blob(&server.client(), &descriptor(b"x"))
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "RedirectRefused", "{target}");
        assert_eq!(server.lines().len(), requests);
    }
}

#[tokio::test]
async fn a_redirected_post_stays_a_post() {
    for code in [301, 302, 303, 307, 308] {
        let server =
            Server::start(
                move |seen| match (seen.method.as_str(), seen.target.as_str()) {
                    ("POST", "/v2/team/app/blobs/uploads/") => reply(
                        StatusCode::from_u16(code).unwrap(),
                        &[("location", "/v2/team%2Fapp/u/?a=b")],
                        "",
                    ),
                    ("POST", "/v2/team%2Fapp/u/?a=b") => reply(
                        StatusCode::ACCEPTED,
                        &[("location", "next?_state=s%3D")],
                        "",
                    ),
                    ("PUT", target)
                        if target.starts_with("/v2/team%2Fapp/u/next?_state=s%3D&digest=") =>
                    {
                        status(201)
                    }
                    _ => status(418),
                },
            )
            .await;
        upload(&server.client(), b"").await.unwrap();
    }
}

#[tokio::test]
async fn no_error_shows_a_signed_url() {
    let storage = Server::start(|_| status(403)).await;
    let target = format!("{}/blob?signature=hunter2", storage.url());
    let server =
        Server::start(move |_| reply(StatusCode::FOUND, &[("location", &target)], "")).await;
    let error = read_blob(&server.client(), &descriptor(b"x"))
        .await
        .unwrap_err();
    let shown = format!("{} {error:?}", crate::error::handlers::message(&error));
    assert!(!shown.contains("hunter2"), "{shown}");
    let unreachable = format!(
        "http://127.0.0.1:{}/blob?signature=hunter2",
        free_port().await
    );
    let server =
        Server::start(move |_| reply(StatusCode::FOUND, &[("location", &unreachable)], "")).await;
    let error = read_blob(&server.client(), &descriptor(b"x"))
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "ConnectionRefused");
    let shown = format!("{} {error:?}", crate::error::handlers::message(&error));
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// A port on which nobody listens any more.
async fn free_port() -> u16 {
    tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
