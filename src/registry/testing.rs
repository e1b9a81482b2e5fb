//! A registry that does what a test tells it to, for what real ones cannot be made to do, and what tests of this room share.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{HeaderMap, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::{
    BlobContent, BlobSource, BlobStream, BlobUpload, ClientOptions, Credential, Endpoint,
    RegistryClient, Result, Uploaded,
};
use crate::{
    image::{Descriptor, Digest, MediaType, RawManifest, Reference, RepositoryPath},
    output::{Direction, Event, OutputManager, Renderer, Transfer},
};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query, raw.
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Seen {
    /// `GET /v2/`, without the query.
    pub(super) fn line(&self) -> String {
        let path = self.target.split('?').next().unwrap();
        format!("{} {path}", self.method)
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(super) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// Whether the path ends like this.
    pub(super) fn is(&self, method: &str, end: &str) -> bool {
        self.method == method && self.target.split('?').next().unwrap().ends_with(end)
    }
}

type Handler = dyn Fn(&Seen) -> BoxFuture<'static, Response> + Send + Sync;

#[derive(Clone)]
struct Script {
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<Seen>>>,
}

/// A server on a free port of the loopback address, with a log of what it was asked.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Answers each request with what `handler` makes of it.
    pub(super) async fn start(handler: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        Self::start_slow(move |seen| std::future::ready(handler(seen)).boxed()).await
    }

    /// The same with answers that take their time.
    pub(super) async fn start_slow(
        handler: impl Fn(&Seen) -> BoxFuture<'static, Response> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self::serve_slow(listener, address, handler)
    }

    /// The same on a listener of the test's own.
    pub(super) fn serve<L>(
        listener: L,
        address: SocketAddr,
        handler: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Self
    where
        L: axum::serve::Listener,
        L::Addr: std::fmt::Debug,
    {
        Self::serve_slow(listener, address, move |seen| {
            std::future::ready(handler(seen)).boxed()
        })
    }

    fn serve_slow<L>(
        listener: L,
        address: SocketAddr,
        handler: impl Fn(&Seen) -> BoxFuture<'static, Response> + Send + Sync + 'static,
    ) -> Self
    where
        L: axum::serve::Listener,
        L::Addr: std::fmt::Debug,
    {
        use_crypto();
        let log = Arc::default();
        let script = Script {
            handler: Arc::new(handler),
            log: Arc::clone(&log),
        };
        let router = Router::new().fallback(answer).with_state(script);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            log,
            _tasks: tasks,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// What it was asked, one line each, without queries.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }

    pub(super) fn count(&self, method: &str, end: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.is(method, end))
            .count()
    }

    pub(super) fn client(&self) -> RegistryClient {
        self.client_with(ClientOptions::default())
    }

    pub(super) fn client_as(&self, credential: Credential) -> RegistryClient {
        self.client_with(ClientOptions {
            credential,
            ..ClientOptions::default()
        })
    }

    pub(super) fn client_with(&self, options: ClientOptions) -> RegistryClient {
        client_at(&self.url(), options)
    }
}

async fn answer(State(script): State<Script>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        return reply(StatusCode::BAD_REQUEST, &[], "");
    };
    let seen = Seen {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        headers: parts.headers,
        body,
    };
    script.log.lock().unwrap().push(seen.clone());
    (script.handler)(&seen).await
}

/// A server that answers each connection in turn with these bytes and hangs up.
pub(super) async fn raw_server(answers: Vec<Vec<u8>>) -> (SocketAddr, JoinSet<()>) {
    use_crypto();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for answer in answers {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && !answer.is_empty() {
                let mut byte = [0];
                if socket.read(&mut byte).await.unwrap() == 0 {
                    break;
                }
                request.push(byte[0]);
            }
            socket.write_all(&answer).await.unwrap();
            socket.shutdown().await.ok();
        }
    });
    (address, tasks)
}

/// The process has one provider of cryptography; `main` chooses it, and so does each test.
pub(super) fn use_crypto() {
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
}

pub(super) fn client_at(address: &str, options: ClientOptions) -> RegistryClient {
    use_crypto();
    let endpoint = Endpoint::parse(address).unwrap();
    RegistryClient::new(endpoint, options, OutputManager::silent()).unwrap()
}

pub(super) fn reply(
    status: StatusCode,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

pub(super) fn status(status: u16) -> Response {
    reply(StatusCode::from_u16(status).unwrap(), &[], "")
}

/// A registry's error JSON.
pub(super) fn error(status: u16, code: &str, message: &str) -> Response {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    reply(StatusCode::from_u16(status).unwrap(), &[], body)
}

/// A 401 that asks for a token from `realm`.
pub(super) fn asks_for_token(realm: &str) -> Response {
    let challenge = format!(r#"Bearer realm="{realm}",service="test""#);
    reply(
        StatusCode::UNAUTHORIZED,
        &[("www-authenticate", &challenge)],
        "",
    )
}

pub(super) fn token(value: &str) -> Response {
    let body = serde_json::json!({"token": value, "expires_in": 300}).to_string();
    reply(StatusCode::OK, &[], body)
}

/// Counts how often something happened, from any thread.
#[derive(Clone, Default)]
pub(super) struct Counter(Arc<std::sync::atomic::AtomicUsize>);

impl Counter {
    /// One more; the number so far.
    pub(super) fn next(&self) -> usize {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1
    }
}

pub(super) fn repository() -> RepositoryPath {
    "team/app".parse().unwrap()
}

pub(super) fn tag() -> Reference {
    "1".parse().unwrap()
}

/// A manifest with nothing special about it.
pub(super) fn manifest() -> RawManifest {
    let blob = |content: &[u8]| serde_json::json!({"mediaType": "x", "digest": Digest::of(content), "size": content.len()});
    let text = serde_json::json!({
        "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "config": blob(b"{}"), "layers": [blob(b"layer")]
    });
    RawManifest::new(
        text.to_string().into(),
        None,
        crate::image::Algorithm::Sha256,
    )
    .unwrap()
}

pub(super) fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: MediaType::from("application/octet-stream"),
        digest: Digest::of(content),
        size: content.len() as u64,
        urls: Vec::new(),
        platform: None,
    }
}

/// Asks for the whole of a blob, with nothing special about it.
pub(super) async fn read_blob(client: &RegistryClient, blob: &Descriptor) -> Result<BlobStream> {
    let download = client.blob_download(&repository(), blob);
    download.range(0..blob.size).await
}

pub(super) fn upload_progress() -> Transfer {
    OutputManager::silent().transfer(Direction::Upload, &Digest::of(b""), 0)
}

/// A blob in memory.
#[derive(Debug)]
struct Memory(Bytes);

impl BlobContent for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, limit: usize) -> BoxFuture<'_, std::io::Result<Bytes>> {
        let start = usize::try_from(offset).unwrap();
        let piece = self.0.slice(start..self.0.len().min(start + limit));
        async move { Ok(piece) }.boxed()
    }
}

pub(super) fn source(content: &[u8]) -> BlobSource {
    BlobSource::new(Arc::new(Memory(Bytes::copy_from_slice(content))))
}

/// Uploads a blob, with nothing special about it.
pub(super) async fn upload(client: &RegistryClient, content: &[u8]) -> Result<Uploaded> {
    upload_from(client, content, &source(content)).await
}

/// The same from a source of the test's own.
pub(super) async fn upload_from(
    client: &RegistryClient,
    content: &[u8],
    source: &BlobSource,
) -> Result<Uploaded> {
    let upload = BlobUpload {
        repository: &repository(),
        descriptor: &descriptor(content),
        source,
        progress: &upload_progress(),
        mount_from: None,
        notes: None,
    };
    client.upload_blob_with_token(&upload, None).await
}

/// Keeps what was told.
#[derive(Clone, Default)]
pub(super) struct Recorder(pub(super) Arc<Mutex<Vec<String>>>);

impl Renderer for Recorder {
    fn handle(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}
