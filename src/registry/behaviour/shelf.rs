//! A registry that keeps what it is sent, as far as a test lets it: for uploads that break off and are gone on with.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
};
use futures::StreamExt;
use http::{HeaderMap, StatusCode, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

use crate::{
    image::Digest,
    registry::{
        ClientOptions, RegistryClient,
        testing::{client_at, error, reply, status, use_crypto},
    },
};

/// What a registry does otherwise than the good one. `None` and `false` are the good one.
#[derive(Clone, Copy, Default)]
pub(super) struct Manners {
    pub(super) broken: Broken,
    /// A `PUT` with a body is answered with this.
    pub(super) put_body: Option<u16>,
    /// A `PATCH` without `Content-Range` is answered with 404.
    pub(super) no_stream: bool,
    /// Every `PATCH` is answered with 405.
    pub(super) no_patch: bool,
    /// A larger body is answered with this before it is read.
    pub(super) largest_body: Option<(u64, u16)>,
    /// A smaller chunk than this is refused with 416, except for the last; said at the start.
    pub(super) smallest_chunk: Option<u64>,
    /// So many bytes too many are in the answers' `Range`, or too few; with `i64::MIN` it stands still.
    pub(super) miscounts: i64,
    /// The first upload loses this byte.
    pub(super) loses: Option<usize>,
}

/// What becomes of a body that breaks off.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Broken {
    /// What came of it is kept.
    #[default]
    Kept,
    /// It counts for nothing, as behind a proxy that passes on whole bodies.
    Dropped,
    /// It ends its upload, as at distribution 2.8.2.
    Fatal,
}

/// A blob of this size, whose pieces are not alike.
pub(super) fn blob(size: usize) -> Vec<u8> {
    (0..=250).cycle().take(size).collect()
}

/// A request as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) method: String,
    pub(super) content_range: Option<String>,
    /// So much of its body came.
    pub(super) bytes: usize,
}

pub(super) struct Shelf {
    address: String,
    state: Arc<Kept>,
    _tasks: JoinSet<()>,
}

struct Kept {
    manners: Manners,
    uploads: Mutex<HashMap<String, Vec<u8>>>,
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    log: Mutex<Vec<Line>>,
    opened: AtomicUsize,
}

impl Shelf {
    pub(super) async fn start(manners: Manners) -> Self {
        use_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Kept {
            manners,
            uploads: Mutex::default(),
            blobs: Mutex::default(),
            log: Mutex::default(),
            opened: AtomicUsize::new(0),
        });
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&state));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            state,
            _tasks: tasks,
        }
    }

    pub(super) fn client(&self) -> RegistryClient {
        client_at(
            &format!("http://{}", self.address),
            ClientOptions::default(),
        )
    }

    /// A way to it whose connections end after so many bytes, each in its turn; later ones do not.
    pub(super) async fn behind(&self, lives: Vec<usize>) -> (RegistryClient, JoinSet<()>) {
        self.reached_by(lives, Duration::ZERO).await
    }

    /// A way to it on which each 64 KiB take 2 ms.
    pub(super) async fn behind_slowly(&self) -> (RegistryClient, JoinSet<()>) {
        self.reached_by(Vec::new(), Duration::from_millis(2)).await
    }

    async fn reached_by(
        &self,
        lives: Vec<usize>,
        pause: Duration,
    ) -> (RegistryClient, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = self.address.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            let mut lives = lives.into_iter();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let far = TcpStream::connect(&target).await.unwrap();
                let life = lives.next().unwrap_or(usize::MAX);
                connections.spawn(forward(near, far, life, pause));
            }
        });
        let client = client_at(&format!("http://{address}"), ClientOptions::default());
        (client, tasks)
    }

    pub(super) fn has(&self, content: &[u8]) -> bool {
        let blobs = self.state.blobs.lock().unwrap();
        blobs
            .get(&Digest::of(content).to_string())
            .is_some_and(|blob| blob == content)
    }

    /// Puts a blob there, or the beginning of an upload of the name.
    pub(super) fn begin(&self, name: &str, content: &[u8]) {
        let mut uploads = self.state.uploads.lock().unwrap();
        uploads.insert(format!("/uploads/{name}"), content.to_vec());
    }

    /// Whether an upload of the name waits to be gone on with.
    pub(super) fn keeps(&self, name: &str) -> bool {
        let uploads = self.state.uploads.lock().unwrap();
        uploads.contains_key(&format!("/uploads/{name}"))
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Requests with a body, in their order.
    pub(super) fn bodies(&self) -> Vec<Line> {
        let log = self.state.log.lock().unwrap();
        log.iter().filter(|line| line.bytes > 0).cloned().collect()
    }

    pub(super) fn count(&self, method: &str) -> usize {
        let log = self.state.log.lock().unwrap();
        log.iter().filter(|line| line.method == method).count()
    }

    pub(super) fn methods(&self) -> Vec<String> {
        let log = self.state.log.lock().unwrap();
        log.iter().map(|line| line.method.clone()).collect()
    }
}

/// Passes bytes on in both directions until one side ends, or so many went up.
async fn forward(near: TcpStream, far: TcpStream, life: usize, pause: Duration) {
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    tokio::select! {
        () = upwards(&mut near_read, &mut far_write, life, pause) => {}
        _ = copy(&mut far_read, &mut near_write) => {}
    }
}

async fn upwards(near: &mut OwnedReadHalf, far: &mut OwnedWriteHalf, life: usize, pause: Duration) {
    let mut left = life;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let Ok(count @ 1..) = near.read(&mut buffer).await else {
            return;
        };
        tokio::time::sleep(pause).await;
        let count = count.min(left);
        left -= count;
        if far.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn answer(State(kept): State<Arc<Kept>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let line = kept.begin_line(parts.method.as_str(), &parts.headers);
    let path = parts.uri.path().to_owned();
    let length = length_of(&parts.headers);
    if let Some((largest, status_of)) = kept.manners.largest_body
        && length > largest
    {
        return status(status_of);
    }
    match parts.method.as_str() {
        "POST" => return kept.open(),
        "HEAD" => return kept.head(&path),
        _ => {}
    }
    let Some(mut upload) = kept.uploads.lock().unwrap().remove(&path) else {
        return error(404, "BLOB_UPLOAD_UNKNOWN", "");
    };
    if let Some(refusal) = kept.refusal(parts.method.as_str(), &parts.headers, upload.len()) {
        kept.uploads.lock().unwrap().insert(path, upload);
        return refusal;
    }
    if parts.method == "DELETE" {
        return status(204);
    }
    let mut stream = body.into_data_stream();
    let before = upload.len();
    let mut is_whole = true;
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => upload.extend_from_slice(&piece),
            Err(_) => is_whole = false,
        }
        kept.note_bytes(line, upload.len() - before);
    }
    if let Some(lost) = kept.manners.loses
        && upload.len() > lost
        && path.ends_with("/1")
        && before <= lost
    {
        upload.remove(lost);
    }
    if !is_whole {
        if kept.manners.broken == Broken::Dropped {
            upload.truncate(before);
        }
        if kept.manners.broken != Broken::Fatal {
            kept.uploads.lock().unwrap().insert(path, upload);
        }
        return status(400);
    }
    if parts.method == "PUT" {
        return kept.commit(parts.uri.query().unwrap_or_default(), upload);
    }
    let reached = upload.len();
    kept.uploads.lock().unwrap().insert(path.clone(), upload);
    let code = if parts.method == "GET" { 204 } else { 202 };
    kept.progress(code, &path, reached)
}

fn length_of(headers: &HeaderMap) -> u64 {
    headers
        .get(header::CONTENT_LENGTH)
        .map_or(0, |value| value.to_str().unwrap().parse().unwrap())
}

impl Kept {
    fn begin_line(&self, method: &str, headers: &HeaderMap) -> usize {
        let mut log = self.log.lock().unwrap();
        log.push(Line {
            method: method.to_owned(),
            content_range: headers
                .get(header::CONTENT_RANGE)
                .map(|value| value.to_str().unwrap().to_owned()),
            bytes: 0,
        });
        log.len() - 1
    }

    fn note_bytes(&self, line: usize, bytes: usize) {
        self.log.lock().unwrap()[line].bytes = bytes;
    }

    fn open(&self) -> Response {
        let number = self.opened.fetch_add(1, Ordering::SeqCst) + 1;
        let path = format!("/uploads/{number}");
        let smallest = self.manners.smallest_chunk.unwrap_or_default().to_string();
        let answer = reply(
            StatusCode::ACCEPTED,
            &[("location", &path), ("oci-chunk-min-length", &smallest)],
            "",
        );
        self.uploads.lock().unwrap().insert(path, Vec::new());
        answer
    }

    fn head(&self, path: &str) -> Response {
        let digest = path.rsplit('/').next().unwrap();
        let has_it = self.blobs.lock().unwrap().contains_key(digest);
        status(if has_it { 200 } else { 404 })
    }

    fn refusal(&self, method: &str, headers: &HeaderMap, reached: usize) -> Option<Response> {
        let manners = &self.manners;
        let length = length_of(headers);
        let range = headers
            .get(header::CONTENT_RANGE)
            .map(|value| value.to_str().unwrap());
        let out_of_place = range.is_some_and(|range| {
            let (start, end) = range.split_once('-').unwrap();
            let (start, end): (u64, u64) = (start.parse().unwrap(), end.parse().unwrap());
            start != reached as u64 || end + 1 - start != length
        });
        match method {
            "PUT" if length > 0 => manners.put_body.map(status),
            "PATCH" if manners.no_patch => Some(status(405)),
            "PATCH" if manners.no_stream && range.is_none() => Some(status(404)),
            "PATCH" | "PUT" if out_of_place => Some(status(416)),
            _ => None,
        }
    }

    fn commit(&self, query: &str, upload: Vec<u8>) -> Response {
        let digest = Digest::of(&upload).to_string();
        if !query.ends_with(&digest.replace(':', "%3A")) {
            return error(400, "DIGEST_INVALID", "");
        }
        self.blobs.lock().unwrap().insert(digest, upload);
        status(201)
    }

    fn progress(&self, code: u16, path: &str, reached: usize) -> Response {
        let said = (i64::try_from(reached).unwrap() - 1)
            .saturating_add(self.manners.miscounts)
            .max(0);
        reply(
            StatusCode::from_u16(code).unwrap(),
            &[("location", path), ("range", &format!("0-{said}"))],
            "",
        )
    }
}
