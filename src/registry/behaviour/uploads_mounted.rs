//! Blobs that a registry is to take from another of its repositories (registry rules U16, U17, A12, A13).

use http::StatusCode;

use crate::registry::{
    BlobUpload, Credential, RegistryClient, Result, Uploaded,
    testing::{
        Seen, Server, asks_for_token, descriptor, reply, repository, source, status, token,
        upload_progress,
    },
};

const BLOB: &[u8] = b"layer";

async fn mount(client: &RegistryClient, from: &str) -> Result<Uploaded> {
    let upload = BlobUpload {
        repository: &repository(),
        descriptor: &descriptor(BLOB),
        source: &source(BLOB),
        progress: &upload_progress(),
        mount_from: Some(&from.parse().unwrap()),
        notes: None,
    };
    client.upload_blob_with_token(&upload, None).await
}

fn opened(number: u32) -> axum::response::Response {
    let location = format!("/upload/{number}");
    reply(StatusCode::ACCEPTED, &[("location", &location)], "")
}

fn is_mount(seen: &Seen) -> bool {
    seen.target.contains("mount=")
}

#[tokio::test]
async fn a_mounted_blob_takes_one_request() {
    let server = Server::start(|_| status(201)).await;
    let uploaded = mount(&server.client(), "team/base").await.unwrap();
    assert_eq!(uploaded, Uploaded::Mounted);
    let digest = descriptor(BLOB).digest.to_string().replace(':', "%3A");
    assert_eq!(
        server.seen()[0].target,
        format!("/v2/team/app/blobs/uploads/?mount={digest}&from=team%2Fbase")
    );
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_mount_that_opens_an_upload_is_gone_on_with() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => opened(1),
        _ => status(201),
    })
    .await;
    let uploaded = mount(&server.client(), "team/base").await.unwrap();
    assert_eq!(uploaded, Uploaded::Sent);
    assert_eq!(
        server.lines(),
        ["POST /v2/team/app/blobs/uploads/", "PUT /upload/1"]
    );
}

#[tokio::test]
async fn a_mount_that_is_refused_is_an_upload() {
    for refusal in [400, 401, 403, 404, 405, 500] {
        let server = Server::start(move |seen| match seen.method.as_str() {
            "POST" if is_mount(seen) => status(refusal),
            "POST" => opened(2),
            _ => status(201),
        })
        .await;
        let uploaded = mount(&server.client(), "team/base").await.unwrap();
        assert_eq!(uploaded, Uploaded::Sent, "{refusal}");
        assert_eq!(server.count("PUT", "/upload/2"), 1, "{refusal}");
    }
}

#[tokio::test]
async fn nothing_is_mounted_from_itself() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => opened(1),
        _ => status(201),
    })
    .await;
    mount(&server.client(), "team/app").await.unwrap();
    assert!(!server.seen().iter().any(is_mount));
}

/// A registry with tokens, whose service refuses those for a repository that is not ours to read.
async fn guarded(readable: bool) -> Server {
    Server::start(move |seen| {
        let is_for_both = seen.target.matches("scope=").count() == 2;
        match seen.method.as_str() {
            "GET" if is_for_both && !readable => status(401),
            "GET" if is_for_both => token("both"),
            "GET" => token("own"),
            _ if seen.authorization().is_none() => asks_for_token("/token"),
            "POST" if is_mount(seen) && seen.authorization() == Some("Bearer both") => status(201),
            "POST" => opened(1),
            _ => status(201),
        }
    })
    .await
}

fn me() -> Credential {
    Credential::Basic {
        username: "me".to_owned(),
        password: "hunter2".into(),
    }
}

#[tokio::test]
async fn the_token_for_a_mount_names_the_target_first_and_the_source_second() {
    let server = guarded(true).await;
    let uploaded = mount(&server.client_as(me()), "team/base").await.unwrap();
    assert_eq!(uploaded, Uploaded::Mounted);
    let seen = server.seen();
    let asked = seen.iter().find(|seen| seen.method == "GET").unwrap();
    let (own, other) = (
        asked
            .target
            .find("scope=repository%3Ateam%2Fapp%3Apull%2Cpush"),
        asked.target.find("scope=repository%3Ateam%2Fbase%3Apull"),
    );
    assert!(own.is_some() && own < other, "{}", asked.target);
}

#[tokio::test]
async fn a_source_that_may_not_be_read_costs_the_mount_and_not_the_login() {
    let server = guarded(false).await;
    let client = server.client_as(me());
    for _ in 0..2 {
        let uploaded = mount(&client, "team/base").await.unwrap();
        assert_eq!(uploaded, Uploaded::Sent);
    }
    let puts: Vec<_> = server
        .seen()
        .into_iter()
        .filter(|seen| seen.method == "PUT")
        .collect();
    assert_eq!(puts.len(), 2);
    assert_eq!(puts[0].authorization(), Some("Bearer own"));
}
