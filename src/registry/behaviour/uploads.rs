//! Uploads whose answers get lost, come late or are odd.

use std::{io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::shelf::blob;
use crate::{
    error::{Class, Classified},
    image::Digest,
    output::{Direction, OutputManager},
    registry::{
        BlobContent, BlobSource, BlobUpload, ClientOptions, Credential, Hosts, RegistryClient,
        testing::{
            Counter, Recorder, Seen, Server, asks_for_token, client_at, descriptor, error, reply,
            repository, status, token, upload, upload_from,
        },
    },
};

/// More than one piece, and not a whole number of them.
fn content() -> Vec<u8> {
    blob(1_300_000)
}

fn file_of(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn opened() -> axum::response::Response {
    reply(
        StatusCode::ACCEPTED,
        &[("location", "/upload/1?_state=abc")],
        "",
    )
}

#[tokio::test]
async fn a_blob_takes_two_requests() {
    for content in [content(), Vec::new(), b"{}".to_vec()] {
        let server = Server::start(|seen| match seen.method.as_str() {
            "POST" => opened(),
            _ => status(201),
        })
        .await;
        upload(&server.client(), &content).await.unwrap();
        let [post, put] = &server.seen()[..] else {
            panic!("not two requests")
        };
        assert_eq!(post.header("content-length"), Some("0"));
        let digest = Digest::of(&content).to_string().replace(':', "%3A");
        assert_eq!(put.target, format!("/upload/1?_state=abc&digest={digest}"));
        assert_eq!(
            put.header("content-length"),
            Some(content.len().to_string().as_str())
        );
        assert_eq!(put.header("content-type"), Some("application/octet-stream"));
        assert_eq!(put.header("transfer-encoding"), None);
        assert_eq!(put.header("expect"), None);
        assert_eq!(put.body, content);
    }
}

#[tokio::test]
async fn progress_tells_each_byte_once_and_starts_over_with_the_blob() {
    let puts = Counter::default();
    let server = Server::start(move |seen| match seen.method.as_str() {
        "POST" => opened(),
        "PUT" if puts.next() == 1 => status(502),
        "HEAD" => status(404),
        _ => status(201),
    })
    .await;
    let recorder = Recorder::default();
    let output = OutputManager::new(recorder.clone());
    let content = content();
    let file = file_of(&content);
    let source = BlobSource::open(file.path()).unwrap();
    let progress = output.transfer(Direction::Upload, &Digest::of(&content), source.size());
    let client = server.client().with_output(output.clone());
    let upload = BlobUpload {
        repository: &repository(),
        descriptor: &descriptor(&content),
        source: &source,
        progress: &progress,
        mount_from: None,
        notes: None,
    };
    client.upload_blob_with_token(&upload, None).await.unwrap();
    assert_eq!(output.totals().bytes_uploaded, 2 * content.len() as u64);
    assert_eq!(output.totals().retries, 1);
    let events = recorder.0.lock().unwrap().join("\n");
    assert!(
        events.contains(&format!("Restarted {{ id: 0, lost: {} }}", content.len())),
        "{events}"
    );
    assert!(events.contains("502 Bad Gateway"), "{events}");
}

#[tokio::test]
async fn an_upload_whose_answer_got_lost_is_looked_for_before_it_is_repeated() {
    for (kept, uploads) in [(true, 1), (false, 2)] {
        let puts = Counter::default();
        let server = Server::start(move |seen| match seen.method.as_str() {
            "POST" => opened(),
            "PUT" if puts.next() == 1 => status(504),
            "HEAD" if !kept => status(404),
            _ => status(201),
        })
        .await;
        upload(&server.client(), b"layer").await.unwrap();
        assert_eq!(server.count("PUT", "/upload/1"), uploads);
        assert_eq!(
            server.lines()[2],
            format!("HEAD /v2/team/app/blobs/{}", Digest::of(b"layer"))
        );
    }
}

/// Registry rule R18.
#[tokio::test]
async fn a_blob_that_is_not_seen_right_after_its_upload_is_looked_for_three_times_more() {
    for (answer, unseen, uploads) in [(504, 3, 1), (504, 4, 2), (202, 3, 1)] {
        let (puts, looks) = (Counter::default(), Counter::default());
        let server = Server::start(move |seen| match seen.method.as_str() {
            "POST" => opened(),
            "PUT" if puts.next() == 1 => status(answer),
            "HEAD" if looks.next() <= unseen => status(404),
            _ => status(201),
        })
        .await;
        upload(&server.client(), b"layer").await.unwrap();
        assert_eq!(server.count("PUT", "/upload/1"), uploads, "{unseen}");
        let looked = server
            .lines()
            .iter()
            .filter(|line| line.starts_with("HEAD"))
            .count();
        assert_eq!(looked, 4, "{unseen}");
    }
}

#[tokio::test]
async fn a_lost_session_is_replaced_by_a_new_one() {
    let puts = Counter::default();
    let server = Server::start(move |seen| match seen.method.as_str() {
        "POST" => opened(),
        "PUT" if puts.next() == 1 => error(404, "BLOB_UPLOAD_UNKNOWN", ""),
        "HEAD" => status(404),
        _ => status(201),
    })
    .await;
    upload(&server.client(), b"layer").await.unwrap();
    assert_eq!(server.count("POST", "/uploads/"), 2);
}

#[tokio::test]
async fn any_success_is_one_but_an_open_end_is_looked_after() {
    for (code, has_it, succeeds) in [
        (200, false, true),
        (201, false, true),
        (204, false, true),
        (202, true, true),
        (202, false, false),
    ] {
        let server = Server::start(move |seen| match seen.method.as_str() {
            "POST" => opened(),
            "PUT" => status(code),
            _ => status(if has_it { 200 } else { 404 }),
        })
        .await;
        assert_eq!(
            upload(&server.client(), b"layer").await.is_ok(),
            succeeds,
            "{code}"
        );
    }
}

#[tokio::test]
async fn what_the_registry_cannot_take_is_told_by_name() {
    for (answer, reason) in [
        (413, "RequestTooLarge"),
        (403, "AccessDenied"),
        (507, "RegistryStorageFailed"),
    ] {
        let server = Server::start(move |seen| match seen.method.as_str() {
            "POST" => opened(),
            "PUT" => status(answer),
            _ => status(404),
        })
        .await;
        let client = server.client_with(ClientOptions {
            retry_attempts: 0,
            ..ClientOptions::default()
        });
        assert_eq!(
            upload(&client, b"layer").await.unwrap_err().reason(),
            reason
        );
    }
}

#[tokio::test]
async fn a_full_quota_is_final() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => opened(),
        "PUT" => error(500, "UNKNOWN", "quota exceeded"),
        _ => status(404),
    })
    .await;
    let failed = upload(&server.client(), b"layer").await.unwrap_err();
    assert_eq!(
        (failed.reason(), failed.class()),
        ("RegistryQuotaExceeded", Class::RegistryStorage)
    );
    assert_eq!(server.count("PUT", "/upload/1"), 1);
}

#[tokio::test]
async fn an_upload_that_is_given_up_is_cancelled_there() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => opened(),
        "PUT" => status(403),
        _ => status(204),
    })
    .await;
    let client = server.client();
    upload(&client, b"layer").await.unwrap_err();
    for _ in 0..100 {
        if server.count("DELETE", "/upload/1") == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!(
        "not cancelled: {:?}",
        server.seen().iter().map(Seen::line).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_file_that_is_shorter_than_said_is_our_own_trouble() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => opened(),
        _ => status(201),
    })
    .await;
    let file = file_of(b"layer");
    let source = BlobSource::of_file(Arc::new(file.reopen().unwrap()), 1_000_000);
    let failed = upload_from(&server.client(), b"layer", &source)
        .await
        .unwrap_err();
    assert_eq!(
        (failed.reason(), failed.class()),
        ("SourceUnreadable", Class::Storage)
    );
}

#[tokio::test]
async fn an_upload_without_a_place_to_go_makes_no_sense() {
    let server = Server::start(|_| status(202)).await;
    let failed = upload(&server.client(), b"layer").await.unwrap_err();
    assert_eq!(failed.reason(), "UnexpectedAnswer");
    assert_eq!(server.lines().len(), 1);
}

/// Bytes that come when they are let.
#[derive(Debug)]
struct Later(tokio::sync::watch::Receiver<bool>);

impl BlobContent for Later {
    fn size(&self) -> u64 {
        5
    }

    fn read(&self, _offset: u64, _limit: usize) -> BoxFuture<'_, std::io::Result<Bytes>> {
        let mut released = self.0.clone();
        async move {
            released.wait_for(|released| *released).await.unwrap();
            Ok(Bytes::from_static(b"layer"))
        }
        .boxed()
    }
}

/// Two registries that are copied to each other would wait for each other for ever.
#[tokio::test]
async fn uploads_that_wait_for_their_bytes_leave_room_for_others() {
    let server = Server::start(|seen| match seen.method.as_str() {
        "POST" => opened(),
        _ => status(201),
    })
    .await;
    let client = server.client();
    let (release, released) = tokio::sync::watch::channel(false);
    let waiting = (0..50).map(|_| async {
        let source = BlobSource::new(Arc::new(Later(released.clone())));
        upload_from(&client, b"layer", &source).await.unwrap();
    });
    let other = async {
        // Behind all the others.
        tokio::time::sleep(Duration::from_millis(100)).await;
        upload(&client, b"other").await.unwrap();
        release.send(true).unwrap();
    };
    tokio::join!(futures::future::join_all(waiting), other);
}

/// Registry rule P13: what was one too many is no failed attempt, here as for downloads.
#[tokio::test]
async fn a_registry_that_takes_few_blobs_at_once_gets_all_of_them() {
    const BEARS: usize = 3;
    for code in [429, 503] {
        let places = Arc::new(tokio::sync::Semaphore::new(BEARS));
        let refused = Counter::default();
        let count = refused.clone();
        let server = Server::start_slow(move |seen| {
            let is_start = seen.method == "POST";
            let place = Arc::clone(&places).try_acquire_owned();
            let count = count.clone();
            async move {
                if is_start {
                    return opened();
                }
                if place.is_err() {
                    count.next();
                    return status(code);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                status(201)
            }
            .boxed()
        })
        .await;
        let client = server.client_with(ClientOptions {
            retry_attempts: 0,
            ..ClientOptions::default()
        });
        let mut tasks = JoinSet::new();
        for _ in 0..60 {
            let client = client.clone();
            tasks.spawn(async move { upload(&client, b"layer").await });
        }
        while let Some(outcome) = tasks.join_next().await {
            outcome.unwrap().unwrap();
        }
        assert!(refused.next() > 1, "nothing was refused");
    }
}

/// A pause of one account keeps no connection from another.
#[tokio::test]
async fn uploads_that_wait_for_a_token_service_leave_room_for_others() {
    let server = Server::start(|seen| match seen.authorization() {
        Some(login) if seen.target.starts_with("/token") && login == busy_login() => {
            reply(StatusCode::TOO_MANY_REQUESTS, &[("retry-after", "60")], "")
        }
        _ if seen.target.starts_with("/token") => token("t"),
        Some("Bearer t") if seen.method == "POST" => opened(),
        Some("Bearer t") => status(201),
        _ => asks_for_token("/token"),
    })
    .await;
    let hosts = Hosts::default();
    let client_of = |name: &str| {
        server.client_with(ClientOptions {
            credential: Credential::from_login(name.to_owned(), "secret".into()),
            hosts: hosts.clone(),
            tenant: name.into(),
            ..ClientOptions::default()
        })
    };
    let (busy, other) = (client_of("busy"), client_of("other"));
    let mut tasks = JoinSet::new();
    for _ in 0..50 {
        let client = busy.clone();
        tasks.spawn(async move { upload(&client, b"layer").await });
    }
    while server.count("GET", "/token") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Those that were under way are sent away too.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let patience = Duration::from_secs(10);
    let sent = tokio::time::timeout(patience, upload(&other, b"layer")).await;
    sent.expect("the other's connections are taken").unwrap();
}

/// `busy:secret`
fn busy_login() -> &'static str {
    "Basic YnVzeTpzZWNyZXQ="
}

/// Registry rule R19: an answer that comes before the end of the body is heard at once, and the rest is not sent.
#[tokio::test]
async fn an_early_refusal_ends_the_sending() {
    let (refused, mut far) = early_refusal();
    let blob = vec![0; 64 * 1024 * 1024];
    let failed = upload(&refused, &blob).await.unwrap_err();
    assert_eq!(failed.reason(), "AccessDenied");
    assert!(failed.to_string().contains("not yours"), "{failed}");
    let taken = far.join_next().await.unwrap().unwrap();
    assert!(taken < 16 * 1024 * 1024, "{taken} bytes were sent");
}

/// A registry that opens an upload, refuses its bytes at their head, and then counts what still comes until the end.
fn early_refusal() -> (RegistryClient, JoinSet<usize>) {
    let socket = TcpSocket::new_v4().unwrap();
    // Its connections inherit it: else what the kernel takes in for a slow reader may be more than what is counted here.
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_head(&mut socket).await;
        let opened = "HTTP/1.1 202 Accepted\r\nlocation: /upload/1\r\ncontent-length: 0\r\n\r\n";
        socket.write_all(opened.as_bytes()).await.unwrap();
        read_head(&mut socket).await;
        let body = r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#;
        let refusal = format!(
            "HTTP/1.1 403 Forbidden\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(refusal.as_bytes()).await.unwrap();
        let (mut taken, mut buffer) = (0, vec![0; 64 * 1024]);
        while let Ok(count @ 1..) = socket.read(&mut buffer).await {
            taken += count;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        taken
    });
    let client = client_at(&format!("http://{address}"), ClientOptions::default());
    (client, tasks)
}

async fn read_head(socket: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
}
