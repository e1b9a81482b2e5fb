//! Which way the bytes of a blob go, where the first one fails (registry rules U1 to U3, U9).

use super::shelf::{Line, Manners, Shelf, blob};
use crate::{
    error::Classified,
    registry::testing::{Server, reply, status, upload},
};
use http::StatusCode;

const MIB: usize = 1024 * 1024;

/// Method, range and length of each request with a body.
fn bodies(shelf: &Shelf) -> Vec<(String, Option<String>, usize)> {
    let line = |line: Line| (line.method, line.content_range, line.bytes);
    shelf.bodies().into_iter().map(line).collect()
}

fn body(method: &str, range: Option<&str>, bytes: usize) -> (String, Option<String>, usize) {
    (method.to_owned(), range.map(str::to_owned), bytes)
}

#[tokio::test]
async fn a_registry_that_takes_no_bytes_with_the_digest_gets_them_before_and_is_known_for_it() {
    for refusal in [404, 405] {
        let shelf = Shelf::start(Manners {
            put_body: Some(refusal),
            ..Manners::default()
        })
        .await;
        let client = shelf.client();
        let (first, second) = (blob(3000), blob(5000));
        upload(&client, &first).await.unwrap();
        assert!(shelf.has(&first));
        let asked = shelf.methods().len();
        upload(&client, &second).await.unwrap();
        assert!(shelf.has(&second));
        assert_eq!(shelf.methods()[asked..], ["POST", "PATCH", "PUT"]);
        assert_eq!(
            bodies(&shelf),
            [body("PATCH", None, 3000), body("PATCH", None, 5000)]
        );
    }
}

#[tokio::test]
async fn where_a_stream_is_refused_too_chunks_are_sent() {
    let shelf = Shelf::start(Manners {
        put_body: Some(405),
        no_stream: true,
        ..Manners::default()
    })
    .await;
    let blob = blob(3000);
    upload(&shelf.client(), &blob).await.unwrap();
    assert!(shelf.has(&blob));
    assert_eq!(bodies(&shelf), [body("PATCH", Some("0-2999"), 3000)]);
}

/// Registry rule R19. The body is not read by the server, which must not keep the client from hearing it.
#[tokio::test]
async fn a_blob_too_large_for_a_proxy_goes_in_chunks_that_pass_it() {
    for code in [413, 416] {
        let shelf = Shelf::start(Manners {
            put_body: (code == 416).then_some(405),
            largest_body: Some((4 * MIB as u64, code)),
            ..Manners::default()
        })
        .await;
        let client = shelf.client();
        let blob = blob(20 * MIB + 1);
        upload(&client, &blob).await.unwrap();
        assert!(shelf.has(&blob), "{code}");
        let chunks: Vec<_> = bodies(&shelf)
            .into_iter()
            .map(|(_, _, size)| size)
            .collect();
        assert_eq!(
            chunks,
            [4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, 1],
            "{code}"
        );
        // What was learned holds for the next blob.
        let posts = shelf.count("POST");
        upload(&client, &blob[1..]).await.unwrap();
        assert_eq!(shelf.count("POST"), posts + 1);
    }
}

#[tokio::test]
async fn a_registry_that_takes_not_even_a_mebibyte_is_named_and_asked_no_longer() {
    let shelf = Shelf::start(Manners {
        largest_body: Some((1000, 413)),
        ..Manners::default()
    })
    .await;
    let failed = upload(&shelf.client(), &blob(3 * MIB)).await.unwrap_err();
    assert_eq!(failed.reason(), "RequestTooLarge");
    assert!(shelf.count("POST") <= 3, "{:?}", shelf.methods());
}

#[tokio::test]
async fn chunks_are_as_large_as_the_registry_wants_them() {
    let shelf = Shelf::start(Manners {
        put_body: Some(405),
        no_stream: true,
        smallest_chunk: Some(80 * MIB as u64),
        ..Manners::default()
    })
    .await;
    let blob = blob(81 * MIB);
    upload(&shelf.client(), &blob).await.unwrap();
    assert!(shelf.has(&blob));
    let chunks: Vec<_> = bodies(&shelf)
        .into_iter()
        .map(|(_, _, size)| size)
        .collect();
    assert_eq!(chunks, [80 * MIB, MIB]);
}

#[tokio::test]
async fn where_every_way_is_refused_the_first_refusal_is_told() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => reply(StatusCode::ACCEPTED, &[("location", "/upload/1")], ""),
        "PUT" => status(405),
        "PATCH" => status(400),
        _ => status(404),
    })
    .await;
    let failed = upload(&server.client(), b"layer").await.unwrap_err();
    assert_eq!(failed.reason(), "RequestRefused");
    assert!(failed.to_string().contains("405"), "{failed}");
    assert_eq!(server.count("PATCH", "/upload/1"), 2);
}

/// Registry rule U9: our own count holds, whatever the registry's is.
#[tokio::test]
async fn a_registry_that_miscounts_gets_every_byte_once() {
    for miscounts in [-1, 1, i64::MIN] {
        let shelf = Shelf::start(Manners {
            largest_body: Some((MIB as u64, 413)),
            miscounts,
            ..Manners::default()
        })
        .await;
        let blob = blob(3 * MIB);
        upload(&shelf.client(), &blob).await.unwrap();
        assert!(shelf.has(&blob), "{miscounts}");
        let sent: usize = shelf.bodies().iter().map(|line| line.bytes).sum();
        assert_eq!(sent, blob.len(), "{miscounts}");
    }
}

#[tokio::test]
async fn bytes_that_got_lost_between_chunks_cost_one_new_beginning() {
    let shelf = Shelf::start(Manners {
        largest_body: Some((MIB as u64, 413)),
        loses: Some(MIB + 5),
        ..Manners::default()
    })
    .await;
    let blob = blob(3 * MIB);
    upload(&shelf.client(), &blob).await.unwrap();
    assert!(shelf.has(&blob));
}
