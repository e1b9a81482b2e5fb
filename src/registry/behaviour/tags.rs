//! Lists of tags, whole or in pages, from registries that link to odd places or not at all.

use axum::response::Response;
use http::StatusCode;

use crate::{
    error::Classified,
    registry::{
        Credential,
        testing::{Server, error, reply, repository, status},
    },
};

/// The tags a server lists, as text.
async fn listed(server: &Server) -> Vec<String> {
    let tags = server.client().list_tags(&repository()).await.unwrap();
    tags.iter().map(ToString::to_string).collect()
}

/// A page of tags that says where the next one is.
fn page(tags: &[&str], next: Option<&str>) -> Response {
    let link = next.map(|next| format!(r#"<{next}>; rel="next""#));
    let headers: Vec<_> = link.iter().map(|link| ("link", link.as_str())).collect();
    let body = serde_json::json!({"name": "x", "tags": tags}).to_string();
    reply(StatusCode::OK, &headers, body)
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
async fn a_link_may_be_relative_to_the_page_or_absolute() {
    for absolute in [false, true] {
        let server = Server::start(move |seen| {
            let host = seen.header("host").unwrap();
            match seen.target.as_str() {
                "/v2/team/app/tags/list?n=1000" if absolute => page(
                    &["a"],
                    Some(&format!("http://{host}/v2/team/app/tags/list?last=a")),
                ),
                "/v2/team/app/tags/list?n=1000" => page(&["a"], Some("list?last=a")),
                "/v2/team/app/tags/list?last=a" => page(&["b"], None),
                _ => status(404),
            }
        })
        .await;
        assert_eq!(listed(&server).await, ["a", "b"]);
    }
}

#[tokio::test]
async fn a_link_to_another_host_is_followed_without_the_login() {
    let other = Server::start(|_| page(&["b"], None)).await;
    let target = format!("{}/page?last=a", other.url());
    let server = Server::start(move |seen| match seen.authorization() {
        None => reply(
            StatusCode::UNAUTHORIZED,
            &[("www-authenticate", "Basic realm=x")],
            "",
        ),
        Some(_) => page(&["a"], Some(&target)),
    })
    .await;
    let login = Credential::from_login("me".to_owned(), "hunter2".into());
    let tags = server.client_as(login).list_tags(&repository()).await;
    assert_eq!(tags.unwrap().len(), 2);
    assert!(server.seen().last().unwrap().authorization().is_some());
    let [seen] = &other.seen()[..] else {
        panic!("not one request")
    };
    assert_eq!(seen.authorization(), None);
    assert_eq!(seen.header("cookie"), None);
}

#[tokio::test]
async fn a_link_to_a_forbidden_address_is_refused() {
    let server =
        Server::start(|_| page(&["a"], Some("http://169.254.169.254/latest/meta-data"))).await;
    let failed = server.client().list_tags(&repository()).await.unwrap_err();
    assert_eq!(failed.reason(), "RedirectRefused");
}

#[tokio::test]
async fn no_page_is_asked_to_be_longer_than_all_registries_allow_and_no_order_is_expected() {
    let shuffled: Vec<_> = (0..1000)
        .map(|number| format!("t{}", (number * 7) % 1000))
        .collect();
    let server = Server::start(move |seen| {
        let n = seen.target.split("n=").nth(1).unwrap();
        let n: u32 = n.split('&').next().unwrap().parse().unwrap();
        if n > 1000 {
            return error(400, "UNSUPPORTED", "n is too large");
        }
        let tags: Vec<&str> = shuffled.iter().map(String::as_str).collect();
        if seen.target.contains("last=") {
            page(&["zz", "aa"], None)
        } else {
            page(&tags, None)
        }
    })
    .await;
    let tags = listed(&server).await;
    assert_eq!((tags.len(), tags[1001].as_str()), (1002, "aa"));
    assert_eq!(server.lines().len(), 2);
}

#[tokio::test]
async fn what_is_no_list_of_tags_is_said_so() {
    for (code, body, reason) in [
        (200, r#"{"tags":[1]}"#, "UnexpectedAnswer"),
        (200, "<html>", "UnexpectedAnswer"),
        (404, "", "RepositoryUnknown"),
        (
            404,
            r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#,
            "RepositoryUnknown",
        ),
        (403, "", "AccessDenied"),
    ] {
        let server = Server::start(move |seen| match seen.line().as_str() {
            "GET /v2/" => reply(
                StatusCode::OK,
                &[("docker-distribution-api-version", "registry/2.0")],
                "",
            ),
            _ => reply(StatusCode::from_u16(code).unwrap(), &[], body),
        })
        .await;
        let failed = server.client().list_tags(&repository()).await.unwrap_err();
        assert_eq!(failed.reason(), reason, "{code} {body}");
    }
}
