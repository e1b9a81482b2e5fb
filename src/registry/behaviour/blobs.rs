//! Blobs that are not as long as they should be, or not there.

use bytes::Bytes;
use futures::stream;
use http::StatusCode;

use crate::{
    error::{Class, Classified},
    registry::{
        Result,
        testing::{Server, descriptor, error, raw_server, read_blob, reply, repository, status},
    },
};

async fn read_all(server: &Server, expected: &[u8]) -> Result<Vec<u8>> {
    let mut stream = read_blob(&server.client(), &descriptor(expected)).await?;
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await? {
        all.extend_from_slice(&piece);
        assert!(all.len() <= expected.len());
    }
    Ok(all)
}

#[tokio::test]
async fn a_blob_has_the_length_of_its_descriptor_or_is_an_error() {
    for (sent, fails) in [
        ("layer", false),
        ("laye", true),
        ("", true),
        ("layers", true),
    ] {
        let server = Server::start(move |_| reply(StatusCode::OK, &[], sent)).await;
        let result = read_all(&server, b"layer").await;
        assert_eq!(
            result
                .as_ref()
                .is_err_and(|error| error.class() == Class::Digest),
            fails,
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn an_endless_blob_is_given_up_at_its_size() {
    let server = Server::start(|_| {
        let zeros = stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![0; 65_536])));
        reply(StatusCode::OK, &[], axum::body::Body::from_stream(zeros))
    })
    .await;
    let failed = read_all(&server, &vec![0; 100_000]).await.unwrap_err();
    assert_eq!(failed.reason(), "SizeMismatch");
}

#[tokio::test]
async fn a_blob_that_breaks_off_is_a_lost_connection() {
    let (address, _tasks) = raw_server(vec![
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlay".to_vec(),
    ])
    .await;
    let client = crate::registry::testing::client_at(
        &format!("http://{address}"),
        crate::registry::ClientOptions::default(),
    );
    let mut blob = read_blob(&client, &descriptor(b"layer")).await.unwrap();
    assert_eq!(blob.next().await.unwrap().unwrap(), "lay");
    let failed = blob.next().await.unwrap_err();
    assert_eq!(
        (failed.reason(), failed.class()),
        ("ConnectionFailed", Class::Network)
    );
}

#[tokio::test]
async fn a_blob_is_there_or_not_or_the_registry_does_not_say() {
    for (code, expected) in [(200, Some(true)), (404, Some(false)), (403, None)] {
        let server = Server::start(move |_| status(code)).await;
        let found = server
            .client()
            .has_blob(&repository(), &descriptor(b"x"))
            .await;
        assert_eq!(found.ok(), expected);
    }
    let server = Server::start(|_| error(404, "BLOB_UNKNOWN", "")).await;
    assert_eq!(
        read_all(&server, b"x").await.unwrap_err().reason(),
        "BlobUnknown"
    );
}
