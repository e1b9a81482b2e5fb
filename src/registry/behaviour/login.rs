//! What happens after a 401.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use http::StatusCode;

use crate::{
    error::Classified,
    registry::{
        ClientOptions, Credential, CredentialSource, RegistryClient,
        challenge::Challenge,
        error::Operation,
        scope::Access,
        testing::{
            Counter, Seen, Server, asks_for_token, manifest, reply, repository, status, tag, token,
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

const BASIC: &str = "Basic bWU6aHVudGVyMg==";

fn digest_reply() -> axum::response::Response {
    let digest = manifest().digest().to_string();
    reply(StatusCode::OK, &[("docker-content-digest", &digest)], "")
}

/// A registry whose every path wants a token of its own service at `/token`.
async fn with_tokens(
    service: impl Fn(&Seen) -> axum::response::Response + Send + Sync + 'static,
) -> Server {
    Server::start(move |seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => service(seen),
        Some("Bearer good") => digest_reply(),
        _ => asks_for_token("/token"),
    })
    .await
}

#[tokio::test]
async fn the_first_401_is_the_only_one_of_a_host() {
    let server = with_tokens(|_| token("good")).await;
    let client = server.client();
    client.head_manifest(&repository(), &tag()).await.unwrap();
    client
        .clone()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    client
        .head_manifest(&"other".parse().unwrap(), &tag())
        .await
        .unwrap();
    assert_eq!(
        server.lines(),
        [
            "HEAD /v2/team/app/manifests/1",
            "GET /token",
            "HEAD /v2/team/app/manifests/1",
            "HEAD /v2/team/app/manifests/1",
            "GET /token",
            "HEAD /v2/other/manifests/1",
        ]
    );
    let asked = &server.seen()[1];
    assert_eq!(
        asked.target,
        "/token?service=test&scope=repository%3Ateam%2Fapp%3Apull&client_id=docker-image-pusher"
    );
    assert_eq!(asked.authorization(), None);
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_and_not_to_the_registry() {
    let server = with_tokens(|_| token("good")).await;
    server
        .client_as(me())
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    let with_password: Vec<_> = server
        .seen()
        .iter()
        .filter(|seen| seen.authorization() == Some(BASIC))
        .map(Seen::line)
        .collect();
    assert_eq!(with_password, ["GET /token"]);
    assert!(server.seen()[1].target.contains("account=me"));
    assert!(!server.seen()[1].target.contains("hunter2"));
}

#[tokio::test]
async fn a_basic_challenge_gets_the_password_from_then_on_without_asking() {
    let server = Server::start(|seen| match seen.authorization() {
        Some(BASIC) => digest_reply(),
        _ => reply(
            StatusCode::UNAUTHORIZED,
            &[("www-authenticate", "BASIC realm=\"Nexus, the\"")],
            "",
        ),
    })
    .await;
    let client = server.client_as(me());
    for _ in 0..2 {
        client.head_manifest(&repository(), &tag()).await.unwrap();
    }
    assert_eq!(server.lines().len(), 3);
    let error = server
        .client()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "AuthenticationRequired");
}

#[tokio::test]
async fn an_identity_token_is_posted_and_only_then_sent_otherwise() {
    for refusal in [200, 400, 401, 404, 405] {
        let server = with_tokens(move |seen| match seen.method.as_str() {
            "POST" if refusal != 200 => status(refusal),
            _ => token("good"),
        })
        .await;
        server
            .client_as(Credential::IdentityToken("id".into()))
            .head_manifest(&repository(), &tag())
            .await
            .unwrap();
        let seen = server.seen();
        assert_eq!(seen[1].line(), "POST /token");
        let form = String::from_utf8(seen[1].body.to_vec()).unwrap();
        assert_eq!(
            form,
            "grant_type=refresh_token&refresh_token=id&service=test&client_id=docker-image-pusher&access_type=online\
             &scope=repository%3Ateam%2Fapp%3Apull"
        );
        assert_eq!(server.count("GET", "/token"), usize::from(refusal != 200));
    }
}

#[tokio::test]
async fn a_service_that_knows_no_get_is_posted_to() {
    let server = with_tokens(|seen| match seen.method.as_str() {
        "GET" => status(405),
        _ => reply(StatusCode::OK, &[], r#"{"access_token":"good"}"#),
    })
    .await;
    server
        .client_as(me())
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    let form = String::from_utf8(server.seen()[2].body.to_vec()).unwrap();
    assert!(
        form.starts_with("grant_type=password&username=me&password=hunter2&"),
        "{form}"
    );
}

#[tokio::test]
async fn a_wrong_password_is_sent_once_to_a_registry_and_its_clones_know() {
    let server = Server::start(|_| {
        reply(
            StatusCode::UNAUTHORIZED,
            &[("www-authenticate", "Basic realm=\"x\"")],
            "",
        )
    })
    .await;
    let client = server.client_as(me());
    for number in ["1", "2", "3"] {
        let reference = number.parse().unwrap();
        let error = client
            .clone()
            .head_manifest(&repository(), &reference)
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "AuthenticationFailed");
        assert!(error.to_string().contains(&format!(":{number}")), "{error}");
    }
    let logins = server
        .seen()
        .iter()
        .filter(|seen| seen.authorization() == Some(BASIC))
        .count();
    assert_eq!(logins, 1);
}

#[tokio::test]
async fn a_wrong_password_is_sent_once_to_a_token_service() {
    let server = with_tokens(|_| status(401)).await;
    let client = server.client_as(me());
    for _ in 0..2 {
        let error = client
            .head_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(error.reason(), "AuthenticationFailed");
        assert!(!error.to_string().contains("hunter2"));
        assert_eq!(server.count("GET", "/token"), 1);
    }
    let error = server
        .client()
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "AuthenticationRequired");
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let server = with_tokens(|_| status(500)).await;
    let client = server.client_as(Credential::RegistryToken("good".into()));
    client.head_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(server.lines().len(), 1);
    let client = server.client_as(Credential::RegistryToken("bad".into()));
    let error = client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "AuthenticationFailed");
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn a_seed_is_used_until_it_is_refused() {
    let server = with_tokens(|_| token("good")).await;
    let client = server.client();
    client
        .with_token("good")
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    assert_eq!(server.lines().len(), 1);
    for _ in 0..2 {
        client
            .with_token("bad")
            .head_manifest(&repository(), &tag())
            .await
            .unwrap();
    }
    let sent: Vec<_> = server
        .seen()
        .iter()
        .filter(|seen| seen.authorization() == Some("Bearer bad"))
        .map(Seen::line)
        .collect();
    assert_eq!(sent.len(), 1);
}

/// A registry whose token dies with this body.
async fn forgetful(body: usize) -> Server {
    let issued = Counter::default();
    let bodies = Counter::default();
    Server::start(move |seen| {
        let is_good = seen
            .authorization()
            .is_some_and(|value| value.starts_with("Bearer t"));
        match seen.method.as_str() {
            _ if seen.target.starts_with("/token") => token(&format!("t{}", issued.next())),
            _ if !is_good => asks_for_token("/token"),
            "POST" => reply(StatusCode::ACCEPTED, &[("location", "/upload/1")], ""),
            "PUT" if bodies.next() == body => asks_for_token("/token"),
            "PATCH" => status(202),
            _ => status(201),
        }
    })
    .await
}

#[tokio::test]
async fn a_token_that_dies_while_a_small_blob_is_sent_is_replaced_and_the_blob_sent_again() {
    let server = forgetful(2).await;
    let client = server.client();
    upload(&client, b"first").await.unwrap();
    after(61).await;
    upload(&client, b"layer").await.unwrap();
    let puts: Vec<_> = server
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "PUT")
        .collect();
    let tokens: Vec<_> = puts
        .iter()
        .map(|put| put.authorization().unwrap())
        .collect();
    assert_eq!(tokens, ["Bearer t1", "Bearer t1", "Bearer t2"]);
    assert!(puts.iter().all(|put| put.body.len() == 5));
    assert_eq!(server.count("POST", "/uploads/"), 3, "{:?}", server.lines());
}

/// Registry rule A17: the body is sent twice and no more, and the next blob goes the better way at once.
#[tokio::test]
async fn a_registry_that_looks_at_the_login_after_the_whole_blob_gets_blob_and_digest_apart() {
    for size in [5, 3_000_000] {
        let server = forgetful(1).await;
        let client = server.client();
        let blob = vec![7; size];
        upload(&client, &blob).await.unwrap();
        upload(&client, &blob).await.unwrap();
        let bodies: Vec<_> = server
            .seen()
            .into_iter()
            .filter(|seen| matches!(seen.method.as_str(), "PUT" | "PATCH"))
            .map(|seen| {
                let token = seen.authorization().unwrap().to_owned();
                (seen.method, token, seen.body.len())
            })
            .collect();
        let line =
            |method: &str, token: &str, length| (method.to_owned(), token.to_owned(), length);
        let apart = [
            line("PATCH", "Bearer t2", size),
            line("PUT", "Bearer t2", 0),
        ];
        assert_eq!(bodies[0], line("PUT", "Bearer t1", size));
        assert_eq!(bodies[1..3], apart);
        assert_eq!(bodies[3..], apart);
    }
}

#[tokio::test]
async fn many_at_once_ask_for_one_token() {
    let server = with_tokens(|_| token("good")).await;
    let client = server.client();
    let (repository, tag) = (repository(), tag());
    let all = (0..20).map(|_| client.head_manifest(&repository, &tag));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(server.count("GET", "/token"), 1);
}

#[tokio::test]
async fn a_401_without_challenge_makes_the_root_speak() {
    let server = Server::start(|seen| match (seen.authorization(), seen.target.as_str()) {
        (Some("Bearer good"), _) => digest_reply(),
        (_, "/v2/") => asks_for_token("/token"),
        (_, path) if path.starts_with("/token") => token("good"),
        _ => status(401),
    })
    .await;
    server
        .client()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    assert_eq!(server.count("GET", "/v2/"), 1);
}

#[tokio::test]
async fn a_login_that_does_not_reach_far_enough_names_the_permission() {
    let server = Server::start(|seen| {
        if seen.target.starts_with("/token") {
            return token("weak");
        }
        let challenge = r#"Bearer realm="/token",error="insufficient_scope""#;
        reply(
            StatusCode::UNAUTHORIZED,
            &[("www-authenticate", challenge)],
            "",
        )
    })
    .await;
    let error = server
        .client_as(me())
        .upload_manifest_with_token(&repository(), &tag(), &manifest(), None)
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "AccessDenied");
    assert!(error.to_string().contains("the permission push"), "{error}");
    assert_eq!(server.count("PUT", "/manifests/1"), 2);
}

#[tokio::test]
async fn a_token_from_a_clock_that_is_ahead_gets_a_second() {
    let requests = Counter::default();
    let server = Server::start(move |seen| {
        if seen.target.starts_with("/token") {
            return token("good");
        }
        if requests.next() < 3 {
            let challenge = r#"Bearer realm="/token",error="invalid_token""#;
            return reply(
                StatusCode::UNAUTHORIZED,
                &[("www-authenticate", challenge)],
                "",
            );
        }
        digest_reply()
    })
    .await;
    let started = std::time::Instant::now();
    server
        .client()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.count("GET", "/token"), 1);
}

#[tokio::test]
async fn a_registry_that_never_has_enough_is_given_up() {
    let issued = Counter::default();
    let asked = Counter::default();
    let server = Server::start(move |seen| {
        if seen.target.starts_with("/token") {
            return token(&format!("t{}", issued.next()));
        }
        asks_for_token(&format!("/token{}", asked.next()))
    })
    .await;
    let error = server
        .client_as(me())
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "AuthenticationFailed");
    assert_eq!(server.count("GET", "/manifests/1"), 4);
}

#[tokio::test]
async fn no_service_is_named_where_none_was_asked_for() {
    let server = Server::start(|seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => token("good"),
        Some(_) => digest_reply(),
        None => reply(
            StatusCode::UNAUTHORIZED,
            &[("www-authenticate", r#"Bearer realm="/token""#)],
            "",
        ),
    })
    .await;
    server
        .client()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap();
    assert!(!server.seen()[1].target.contains("service="));
}

/// A place whose credential somebody replaces; it counts how often it is read.
#[derive(Debug, Clone, Default)]
struct Place(Arc<Mutex<(Option<Credential>, usize)>>);

impl Place {
    fn with(password: &str) -> Self {
        let credential = Credential::from_login("me".to_owned(), password.into());
        Self(Arc::new(Mutex::new((Some(credential), 0))))
    }

    fn reads(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl CredentialSource for Place {
    fn reread(&self) -> BoxFuture<'_, Option<Credential>> {
        Box::pin(async {
            tokio::task::yield_now().await;
            let mut place = self.0.lock().unwrap();
            place.1 += 1;
            place.0.clone()
        })
    }
}

/// A client whose password is `old`, and what lies where it came from.
fn client_from(server: &Server, place: &Place) -> RegistryClient {
    server.client_with(ClientOptions {
        credential: Credential::from_login("me".to_owned(), "old".into()),
        credential_source: Some(Arc::new(place.clone())),
        ..ClientOptions::default()
    })
}

/// `me:new` in base64.
const NEW: &str = "Basic bWU6bmV3";

/// Answers a wrong login with `refusal`, at the registry itself or at its token service.
async fn with_new_password(has_service: bool, refusal: u16) -> Server {
    Server::start(move |seen| {
        let is_service = seen.target.starts_with("/token");
        match seen.authorization() {
            Some(NEW) if is_service => token("good"),
            Some(NEW | "Bearer good") => digest_reply(),
            Some(_) => status(refusal),
            None if has_service => asks_for_token("/token"),
            None => reply(
                StatusCode::UNAUTHORIZED,
                &[("www-authenticate", "Basic realm=\"x\"")],
                "",
            ),
        }
    })
    .await
}

#[tokio::test]
async fn a_login_that_ended_is_read_once_more_by_all_who_were_refused() {
    // registry rule A20
    for (has_service, refusal) in [(false, 401), (false, 403), (true, 401), (true, 403)] {
        let server = with_new_password(has_service, refusal).await;
        let place = Place::with("new");
        let client = client_from(&server, &place);
        let (repository, tag) = (repository(), tag());
        let all = (0..8).map(|_| client.head_manifest(&repository, &tag));
        for outcome in futures::future::join_all(all).await {
            outcome.unwrap();
        }
        assert_eq!(place.reads(), 1, "{has_service} {refusal}");
        client.head_manifest(&repository, &tag).await.unwrap();
        assert_eq!(place.reads(), 1);
    }
}

#[tokio::test]
async fn a_login_that_is_refused_and_lies_there_still_is_an_error() {
    for place in [Place::with("old"), Place::with("other"), Place::default()] {
        for has_service in [false, true] {
            let server = with_new_password(has_service, 401).await;
            let before = place.reads();
            let client = client_from(&server, &place);
            for _ in 0..3 {
                let failed = client
                    .head_manifest(&repository(), &tag())
                    .await
                    .unwrap_err();
                assert_eq!(failed.reason(), "AuthenticationFailed");
            }
            assert_eq!(place.reads() - before, 1);
            let refused = server.seen();
            let refused = refused
                .iter()
                .filter(|seen| seen.authorization().is_some_and(|sent| sent != NEW));
            assert!(refused.count() <= 2, "{:?}", server.lines());
        }
    }
}

#[tokio::test]
async fn a_login_that_does_not_reach_far_enough_is_read_again_now_and_then_only() {
    let server = with_new_password(false, 403).await;
    let place = Place::with("old");
    let client = client_from(&server, &place);
    for _ in 0..5 {
        let failed = client
            .head_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_eq!(failed.reason(), "AccessDenied");
    }
    assert_eq!(place.reads(), 1);
}

/// Lets time pass for tokens, and for nothing that is under way.
async fn after(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_403_is_blamed_on_a_token_only_when_it_is_old() {
    // registry rule R17
    let issued = Counter::default();
    let server = Server::start(move |seen| match seen.authorization() {
        _ if seen.target.starts_with("/token") => token(&format!("t{}", issued.next())),
        Some("Bearer t1") if seen.target.ends_with("/old") => status(403),
        None => asks_for_token("/token"),
        Some(_) if seen.target.ends_with("/never") => status(403),
        Some(_) => digest_reply(),
    })
    .await;
    let client = server.client();
    let head = async |reference: &str| {
        let reference = reference.parse().unwrap();
        client.head_manifest(&repository(), &reference).await
    };
    head("1").await.unwrap();
    assert_eq!(head("old").await.unwrap_err().reason(), "AccessDenied");
    assert_eq!(server.count("GET", "/token"), 1);
    after(61).await;
    head("old").await.unwrap();
    assert_eq!(server.count("GET", "/token"), 2);
    assert_eq!(head("never").await.unwrap_err().reason(), "AccessDenied");
    assert_eq!(server.count("GET", "/token"), 2);
}

#[tokio::test]
async fn a_token_that_was_new_when_a_large_body_began_may_be_dead_at_its_end() {
    // registry rule A17
    let server = with_tokens(|_| token("good")).await;
    let challenges = [Challenge::Bearer {
        realm: "/token".to_owned(),
        service: Some("test".to_owned()),
        scopes: Vec::new(),
        error: None,
    }];
    for (seconds, is_worth_another) in [(0, false), (61, true)] {
        let other = "other/app".parse().unwrap();
        let client = server.client();
        client.head_manifest(&repository(), &tag()).await.unwrap();
        let scope = client.scope(&other, Access::Push);
        let operation = Operation::new("upload");
        let sent = client
            .auth
            .beforehand(Some(&scope), &operation)
            .await
            .unwrap();
        after(seconds).await;
        let answer = client
            .auth
            .answer(&challenges, Some(&scope), sent, &operation);
        assert_eq!(answer.await.unwrap().is_some(), is_worth_another);
    }
}

#[tokio::test]
async fn a_token_without_end_is_given_up() {
    // registry rule R11
    let server = with_tokens(|_| {
        let piece = bytes::Bytes::from(vec![b' '; 16 * 1024]);
        let pieces = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
        reply(StatusCode::OK, &[], axum::body::Body::from_stream(pieces))
    })
    .await;
    let failed = server
        .client()
        .head_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_eq!(failed.reason(), "AnswerTooLarge");
}
