//! Parts of blobs, from registries and storages that understand them well, badly, or not at all.

use std::{
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future, stream};
use http::{StatusCode, header::RANGE};
use tokio::task::JoinSet;

use crate::{
    error::{Class, Classified},
    registry::{
        BlobDownload, BlobStream, ClientOptions, Credential, Result,
        testing::{
            Counter, Seen, Server, client_at, descriptor, raw_server, reply, repository, status,
        },
    },
};

const BLOB: &[u8] = b"0123456789abcdefghij";

/// What of the blob a request asks for.
fn asked(seen: &Seen) -> Option<Range<usize>> {
    let range = seen.header(RANGE.as_str())?.strip_prefix("bytes=")?;
    let (first, last) = range.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<usize>().ok()? + 1)
}

/// A part of the blob, as a well-behaved server gives it.
fn part(range: Range<usize>) -> Response {
    let value = format!("bytes {}-{}/{}", range.start, range.end - 1, BLOB.len());
    reply(
        StatusCode::PARTIAL_CONTENT,
        &[("content-range", &value)],
        &BLOB[range],
    )
}

/// What a well-behaved server answers.
fn serve(seen: &Seen) -> Response {
    asked(seen).map_or_else(|| reply(StatusCode::OK, &[], BLOB), part)
}

fn download(server: &Server) -> BlobDownload {
    server
        .client()
        .blob_download(&repository(), &descriptor(BLOB))
}

async fn read(mut stream: BlobStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(piece) = stream.next().await? {
        all.extend_from_slice(&piece);
        assert!(all.len() as u64 <= stream.end() - stream.offset());
    }
    Ok(all)
}

/// Reads the blob in four parts at once.
async fn read_parts(download: &BlobDownload) -> Result<Vec<u8>> {
    let parts = (0..20).step_by(5).map(|start| async move {
        let stream = download.range(start..start + 5).await?;
        assert_eq!(stream.offset(), start);
        read(stream).await
    });
    Ok(future::try_join_all(parts).await?.concat())
}

fn me() -> Credential {
    Credential::Basic {
        username: "me".to_owned(),
        password: "hunter2".into(),
    }
}

#[tokio::test]
async fn a_part_is_asked_for_and_given() {
    let server = Server::start(serve).await;
    let download = download(&server);
    assert_eq!(download.takes_ranges(), None);
    let stream = download.range(5..10).await.unwrap();
    assert_eq!((stream.offset(), stream.end()), (5, 10));
    assert_eq!(read(stream).await.unwrap(), b"56789");
    assert_eq!(download.takes_ranges(), Some(true));
    let seen = &server.seen()[0];
    assert_eq!(seen.header("range"), Some("bytes=5-9"));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn a_whole_blob_is_asked_for_without_a_range() {
    let server = Server::start(serve).await;
    let stream = download(&server).range(0..20).await.unwrap();
    assert_eq!(read(stream).await.unwrap(), BLOB);
    assert_eq!(server.seen()[0].header("range"), None);
}

#[tokio::test]
async fn a_server_that_ignores_ranges_gives_the_whole_blob_and_is_asked_for_no_more_parts() {
    let server = Server::start(|_| reply(StatusCode::OK, &[], BLOB)).await;
    let download = download(&server);
    for expected in [Some("bytes=5-9"), None] {
        let stream = download.range(5..10).await.unwrap();
        assert_eq!((stream.offset(), stream.end()), (0, 20));
        assert_eq!(read(stream).await.unwrap(), BLOB);
        assert_eq!(download.takes_ranges(), Some(false));
        assert_eq!(server.seen().last().unwrap().header("range"), expected);
    }
}

/// D9: the second blob is asked for in parts at once.
#[tokio::test]
async fn what_one_blob_showed_of_parts_holds_for_the_next_until_another_shows_otherwise() {
    let gives_none = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&gives_none);
    let server = Server::start(move |seen| {
        if flag.load(Ordering::SeqCst) {
            return reply(StatusCode::OK, &[], BLOB);
        }
        serve(seen)
    })
    .await;
    let client = server.client();
    let next = || client.blob_download(&repository(), &descriptor(BLOB));
    assert_eq!(next().takes_ranges(), None);
    next().range(5..10).await.unwrap();
    let second = next();
    assert_eq!(second.takes_ranges(), Some(true));
    gives_none.store(true, Ordering::SeqCst);
    let stream = second.range(5..10).await.unwrap();
    assert_eq!((stream.offset(), stream.end()), (0, 20));
    assert_eq!(second.takes_ranges(), Some(false));
    assert_eq!(next().takes_ranges(), None);
}

/// D9: where there is no redirect to be found out, nobody waits for the first answer.
#[tokio::test]
async fn parts_of_the_second_blob_are_asked_for_all_at_once_where_the_registry_gives_them_itself() {
    let asked = Counter::default();
    let all_there = Arc::new(tokio::sync::Barrier::new(4));
    let server = Server::start_slow(move |seen| {
        let is_of_first = asked.next() == 1;
        let (part, all_there) = (serve(seen), Arc::clone(&all_there));
        async move {
            if !is_of_first {
                all_there.wait().await;
            }
            part
        }
        .boxed()
    })
    .await;
    let client = server.client();
    let next = || client.blob_download(&repository(), &descriptor(BLOB));
    read(next().range(5..10).await.unwrap()).await.unwrap();
    let second = next();
    let parts = tokio::time::timeout(Duration::from_secs(20), read_parts(&second)).await;
    let parts = parts.expect("one part is waited for before the others are asked for");
    assert_eq!(parts.unwrap(), BLOB);
}

/// D3: shifted, wrong total, multipart, without a word, 416.
#[tokio::test]
async fn a_part_that_is_not_the_one_asked_for_gives_way_to_the_whole_blob() {
    for content_range in [
        "bytes 6-10/20",
        "bytes 0-19/20",
        "bytes 5-10/20",
        "bytes 5-9/21",
        "5-9",
        "",
        "416",
    ] {
        let server = Server::start(move |seen| {
            if asked(seen).is_none() {
                return reply(StatusCode::OK, &[], BLOB);
            }
            if content_range == "416" {
                return reply(
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    &[("content-range", "bytes */20")],
                    "",
                );
            }
            let headers = [("content-range", content_range)];
            let headers = &headers[..usize::from(!content_range.is_empty())];
            reply(StatusCode::PARTIAL_CONTENT, headers, "56789")
        })
        .await;
        let download = download(&server);
        let stream = download.range(5..10).await.unwrap();
        assert_eq!(stream.offset(), 0, "{content_range}");
        assert_eq!(read(stream).await.unwrap(), BLOB);
        assert_eq!(download.takes_ranges(), Some(false));
        assert_eq!(server.lines().len(), 2);
    }
}

#[tokio::test]
async fn a_server_that_gives_less_at_once_says_where_it_ends() {
    let server = Server::start(|seen| {
        let range = asked(seen).unwrap();
        part(range.start..range.end.min(range.start + 3))
    })
    .await;
    let download = download(&server);
    let mut position = 1;
    let mut all = Vec::new();
    while position < 20 {
        let stream = download.range(position..20).await.unwrap();
        assert_eq!(stream.end(), 20.min(position + 3));
        position = stream.end();
        all.extend(read(stream).await.unwrap());
    }
    assert_eq!(all, BLOB[1..]);
    assert_eq!(download.takes_ranges(), Some(true));
}

#[tokio::test]
async fn a_part_that_is_longer_or_shorter_than_it_says_is_an_error() {
    for (sent, longer) in [("567", false), ("56789a", true)] {
        let server = Server::start(move |_| {
            let body = stream::iter([Ok::<_, std::io::Error>(Bytes::from(sent))]);
            reply(
                StatusCode::PARTIAL_CONTENT,
                &[("content-range", "bytes 5-9/20")],
                Body::from_stream(body),
            )
        })
        .await;
        let stream = download(&server).range(5..10).await.unwrap();
        let failed = read(stream).await.unwrap_err();
        assert_eq!(
            (failed.reason(), failed.class()),
            ("SizeMismatch", Class::Digest)
        );
        assert!(failed.to_string().contains("bytes 5 to 10"), "{failed}");
        assert_eq!(failed.to_string().contains("more"), longer, "{failed}");
    }
}

#[tokio::test]
async fn what_a_cut_connection_left_out_is_asked_for_anew() {
    let rest = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 13-19/20\r\nContent-Length: 7\r\n\r\ndefghij";
    let (address, _tasks) = raw_server(vec![
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n0123456789abc".to_vec(),
        rest.to_vec(),
    ])
    .await;
    let client = client_at(&format!("http://{address}"), ClientOptions::default());
    let download = client.blob_download(&repository(), &descriptor(BLOB));
    let mut stream = download.range(0..20).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "0123456789abc");
    assert_eq!(stream.next().await.unwrap_err().class(), Class::Network);
    let rest = download.range(13..20).await.unwrap();
    assert_eq!(read(rest).await.unwrap(), b"defghij");
}

/// A registry with login that points to a storage.
async fn pointing_to(storage: &Server) -> Server {
    let signatures = Counter::default();
    let storage = storage.url();
    Server::start(move |seen| {
        if seen.authorization().is_none() {
            let challenge = [("www-authenticate", "Basic realm=\"x\"")];
            return reply(StatusCode::UNAUTHORIZED, &challenge, "");
        }
        let target = format!("{storage}/blob?signature={}", signatures.next());
        reply(StatusCode::TEMPORARY_REDIRECT, &[("location", &target)], "")
    })
    .await
}

/// D9, R6, R9.
#[tokio::test]
async fn a_redirect_serves_all_parts_and_no_login_goes_there() {
    let storage = Server::start(serve).await;
    let registry = pointing_to(&storage).await;
    let client = registry.client_as(me());
    let download = client.blob_download(&repository(), &descriptor(BLOB));
    assert_eq!(read_parts(&download).await.unwrap(), BLOB);
    assert_eq!(registry.lines().len(), 2, "the login and the redirect");
    assert_eq!(storage.lines().len(), 4);
    for seen in storage.seen() {
        assert_eq!(seen.target, "/blob?signature=1");
        assert_eq!(seen.authorization(), None);
    }
    let shown = format!("{download:?}");
    assert!(!shown.contains("signature"), "{shown}");
}

/// D8: `presign-expire`, and a node that is gone.
#[tokio::test]
async fn an_expired_signature_is_renewed_once_for_all() {
    for code in [401, 403, 404, 410, 400, 500] {
        let storage = Server::start(move |seen| {
            let is_first_use = asked(seen) == Some(0..1);
            if seen.target.ends_with("=1") && !is_first_use {
                return status(code);
            }
            serve(seen)
        })
        .await;
        let registry = pointing_to(&storage).await;
        let client = registry.client_as(me());
        let download = client.blob_download(&repository(), &descriptor(BLOB));
        read(download.range(0..1).await.unwrap()).await.unwrap();
        assert_eq!(read_parts(&download).await.unwrap(), BLOB);
        assert_eq!(
            registry.lines().len(),
            3,
            "{code}: login, redirect, redirect"
        );
    }
}

#[tokio::test]
async fn a_storage_that_goes_on_refusing_is_an_error_and_says_nothing_about_our_login() {
    for code in [401, 403] {
        let storage = Server::start(move |_| status(code)).await;
        let registry = pointing_to(&storage).await;
        let client = registry.client_as(me());
        for _ in 0..2 {
            let download = client.blob_download(&repository(), &descriptor(BLOB));
            let failed = download.range(0..5).await.unwrap_err();
            assert_eq!(
                (failed.reason(), failed.class()),
                ("AccessDenied", Class::Auth)
            );
        }
        assert_eq!(storage.lines().len(), 2, "both went the whole way");
    }
}

#[tokio::test]
async fn a_signature_that_cannot_be_renewed_is_asked_for_only_once() {
    let storage = Server::start(move |seen| match asked(seen) {
        Some(range) if range == (0..1) => part(range),
        _ => status(403),
    })
    .await;
    let registry = pointing_to(&storage).await;
    let client = registry.client_as(me());
    let download = client.blob_download(&repository(), &descriptor(BLOB));
    read(download.range(0..1).await.unwrap()).await.unwrap();
    let failed = download.range(5..10).await.unwrap_err();
    assert_eq!(failed.reason(), "AccessDenied");
    assert_eq!(registry.lines().len(), 3);
}

/// D7: `foreign`.
#[tokio::test]
async fn a_foreign_layer_comes_from_its_publisher_without_our_login() {
    let publisher = Server::start(serve).await;
    let registry = Server::start(|seen| match seen.authorization() {
        None => reply(
            StatusCode::UNAUTHORIZED,
            &[("www-authenticate", "Basic realm=\"x\"")],
            "",
        ),
        Some(_) => status(404),
    })
    .await;
    let client = registry.client_as(me());
    let mut layer = descriptor(BLOB);
    layer.urls = vec![
        "http://169.254.169.254/layer".to_owned(),
        "not a url".to_owned(),
        format!("{}/gone", Server::start(|_| status(404)).await.url()),
        format!("{}/layer", publisher.url()),
    ];
    let download = client.blob_download(&repository(), &layer);
    assert_eq!(read_parts(&download).await.unwrap(), BLOB);
    assert_eq!(publisher.count("GET", "/layer"), 4);
    assert!(
        publisher
            .seen()
            .iter()
            .all(|seen| seen.authorization().is_none())
    );
    assert_eq!(registry.lines().len(), 2, "it was asked first, and once");
    let own = client.blob_download(&repository(), &descriptor(BLOB));
    assert_eq!(own.takes_ranges(), None, "the registry itself gave nothing");
}

/// The publisher's URL is a stranger's text: it must not choose what we ask our registry for in our name.
#[tokio::test]
async fn no_login_goes_along_where_a_foreign_layer_claims_to_be_at_the_registry() {
    let registry = Server::start(|seen| match (seen.target.as_str(), seen.authorization()) {
        ("/layer", _) => serve(seen),
        (_, None) => {
            let challenge = [("www-authenticate", "Basic realm=\"x\"")];
            reply(StatusCode::UNAUTHORIZED, &challenge, "")
        }
        (_, Some(_)) => status(404),
    })
    .await;
    let mut layer = descriptor(BLOB);
    layer.urls = vec![format!("{}/layer", registry.url())];
    let client = registry.client_as(me());
    let download = client.blob_download(&repository(), &layer);
    assert_eq!(read_parts(&download).await.unwrap(), BLOB);
    let seen = registry.seen();
    let at_layer = seen.iter().filter(|seen| seen.is("GET", "/layer"));
    assert_eq!(at_layer.clone().count(), 4);
    assert!({ at_layer }.all(|seen| seen.authorization().is_none()));
}

#[tokio::test]
async fn a_foreign_layer_at_a_forbidden_place_is_refused() {
    let registry = Server::start(|_| status(404)).await;
    let mut layer = descriptor(BLOB);
    for (url, reason) in [
        (Some("http://169.254.169.254/layer"), "RedirectRefused"),
        (None, "BlobUnknown"),
    ] {
        layer.urls = url.into_iter().map(str::to_owned).collect();
        let download = registry.client().blob_download(&repository(), &layer);
        assert_eq!(download.range(0..20).await.unwrap_err().reason(), reason);
    }
}

/// D2: `ce-gzip`.
#[tokio::test]
async fn a_blob_that_was_packed_on_the_way_is_unpacked_on_request() {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(BLOB).unwrap();
    let packed = encoder.finish().unwrap();
    let server = Server::start(move |_| {
        reply(
            StatusCode::OK,
            &[("content-encoding", "gzip")],
            packed.clone(),
        )
    })
    .await;
    let download = download(&server);
    assert!(!download.is_encoded());
    let raw = download.range(0..20).await.unwrap();
    assert_eq!(read(raw).await.unwrap_err().reason(), "SizeMismatch");
    assert!(download.is_encoded());
    assert_eq!(read(download.decoded().await.unwrap()).await.unwrap(), BLOB);
}

#[tokio::test]
async fn a_blob_that_is_only_said_to_be_packed_is_as_it_came() {
    let server =
        Server::start(|_| reply(StatusCode::OK, &[("content-encoding", "gzip")], BLOB)).await;
    let download = download(&server);
    let raw = download.range(0..20).await.unwrap();
    assert_eq!(read(raw).await.unwrap(), BLOB);
    assert!(download.is_encoded());
    let decoded = read(download.decoded().await.unwrap()).await.unwrap_err();
    assert_eq!(decoded.reason(), "UnexpectedAnswer");
}

/// Counts requests that are being answered.
struct Busy(Arc<AtomicUsize>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// P13: `throttle-above`.
#[tokio::test]
async fn a_registry_that_bears_few_requests_at_once_gets_no_more_and_everything_arrives() {
    const BEARS: usize = 3;
    for code in [429, 503] {
        let busy = Arc::new(AtomicUsize::new(0));
        let outcomes: Arc<Mutex<Vec<bool>>> = Arc::default();
        let (log, now) = (Arc::clone(&outcomes), Arc::clone(&busy));
        let server = Server::start(move |seen| {
            let is_borne = now.fetch_add(1, Ordering::SeqCst) < BEARS;
            let request = Busy(Arc::clone(&now));
            log.lock().unwrap().push(is_borne);
            if !is_borne {
                return status(code);
            }
            let range = asked(seen).unwrap();
            let value = format!("bytes {}-{}/20", range.start, range.end - 1);
            let body = stream::once(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(request);
                Ok::<_, std::io::Error>(Bytes::from_static(&BLOB[range]))
            });
            reply(
                StatusCode::PARTIAL_CONTENT,
                &[("content-range", &value)],
                Body::from_stream(body.boxed()),
            )
        })
        .await;
        let download = download(&server);
        let mut tasks = JoinSet::new();
        for number in 0..100_u64 {
            let download = download.clone();
            tasks.spawn(async move {
                let start = number % 20;
                let stream = download.range(start..start + 1).await?;
                read(stream).await
            });
        }
        while let Some(outcome) = tasks.join_next().await {
            assert_eq!(outcome.unwrap().unwrap().len(), 1);
        }
        let outcomes = outcomes.lock().unwrap();
        let refused = outcomes.iter().filter(|is_borne| !**is_borne).count();
        assert!((1..30).contains(&refused), "{refused} were refused");
        let late = outcomes[outcomes.len() - 50..].iter();
        let refused = { late }.filter(|is_borne| !**is_borne).count();
        // Four at once may get through for a while before they are found to be one too many.
        assert!(refused <= 2, "it settled: {outcomes:?}");
    }
}

#[tokio::test]
async fn a_registry_that_always_refuses_is_given_up() {
    let server = Server::start(|_| status(503)).await;
    let client = server.client_with(ClientOptions {
        retry_attempts: 0,
        ..ClientOptions::default()
    });
    let download = client.blob_download(&repository(), &descriptor(BLOB));
    let failed = download.range(0..5).await.unwrap_err();
    assert_eq!(failed.reason(), "RegistryUnavailable");
    assert!(
        (2..=6).contains(&server.lines().len()),
        "{:?}",
        server.lines()
    );
}

/// P12: `drip`.
#[tokio::test(start_paused = true)]
async fn a_blob_that_only_drips_is_given_up() {
    for pause in [1, 10, 1000] {
        let server = Server::start(move |_| {
            let drops = stream::repeat(()).then(move |()| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                Ok::<_, std::io::Error>(Bytes::from_static(&[0; 100]))
            });
            reply(StatusCode::OK, &[], Body::from_stream(drops.boxed()))
        })
        .await;
        let blob = descriptor(&vec![0; 1 << 20]);
        let download = server.client().blob_download(&repository(), &blob);
        let stream = download.range(0..1 << 20).await.unwrap();
        let started = tokio::time::Instant::now();
        let failed = read(stream).await.unwrap_err();
        assert_eq!(failed.reason(), "TransferStalled");
        assert_eq!(started.elapsed().as_secs(), 60, "drops each {pause} s");
    }
}

#[tokio::test]
async fn a_connection_is_free_again_when_its_stream_is_gone() {
    let server = Server::start(serve).await;
    let download = download(&server);
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(download.range(0..5).await.unwrap());
    }
    let patience = Duration::from_millis(100);
    let waited = tokio::time::timeout(patience, download.slot()).await;
    assert!(waited.is_err(), "eight connections are enough from near");
    streams.pop();
    let slot = tokio::time::timeout(patience, download.slot())
        .await
        .unwrap();
    read(download.range_in(slot, 5..10).await.unwrap())
        .await
        .unwrap();
}
