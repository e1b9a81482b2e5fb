//! A small HTTP server for parts of the bed that speak HTTP themselves. It sits directly on hyper, because tests need
//! what frameworks protect from: hanging up instead of answering, and bodies that stop half way.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;

use super::{Context, Result};

/// What counts as sent should be on its way to the client. Left alone, the kernel would take some megabytes of each
/// connection off our hands, which a client that is killed never saw.
const SEND_BUFFER: u32 = 64 * 1024;

/// Connections that wait to be accepted: as many as the standard library lets wait, or more.
const BACKLOG: u32 = 1024;

/// The body of an answer, whole or streamed. Its error ends the connection.
pub type Body = UnsyncBoxBody<Bytes, HangUp>;

/// Ends the connection instead of answering, or in the middle of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the test bed hung up")
    }
}

impl std::error::Error for HangUp {}

/// What a handler gives back.
pub type Answer = std::result::Result<Response<Body>, HangUp>;

/// A server on a free port. Dropping it ends all its connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    /// Serves HTTP/1.1 with `handler` on loopback.
    pub fn start<H, F>(handler: H) -> Result<Self>
    where
        H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::start_at(Ipv4Addr::LOCALHOST, handler)
    }

    /// Serves HTTP/1.1 with `handler` at this address of the machine, on threads of its own: a test that blocks does not
    /// block its servers.
    pub fn start_at<H, F>(address: Ipv4Addr, handler: H) -> Result<Self>
    where
        H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("test-server")
            .enable_all()
            .build()
            .context("could not start a runtime for a test server")?;
        let listener =
            listen(&runtime, address).context(format!("could not listen at {address}"))?;
        let address = listener
            .local_addr()
            .context("a listener without an address")?;
        runtime.spawn(accept(listener, Arc::new(handler)));
        Ok(Self {
            address,
            runtime: Some(runtime),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The waiting kind of shutdown panics when a tokio test drops its server.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// An answer that is known as a whole.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let body = Full::new(body.into())
        .map_err(|never| match never {})
        .boxed_unsync();
    // An impossible status or header is a mistake in the test; hanging up makes it fail there.
    response.body(body).map_err(|_| HangUp)
}

/// Binds without waiting, because `block_on` is forbidden in a tokio test.
fn listen(runtime: &Runtime, address: Ipv4Addr) -> std::io::Result<tokio::net::TcpListener> {
    let _entered = runtime.enter();
    let socket = tokio::net::TcpSocket::new_v4()?;
    // Connections inherit it.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind((address, 0).into())?;
    socket.listen(BACKLOG)
}

async fn accept<H, F>(listener: tokio::net::TcpListener, handler: Arc<H>)
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    while let Ok((stream, _)) = listener.accept().await {
        let handler = Arc::clone(&handler);
        // Otherwise small answers wait for the peer's delayed acknowledgement, and tests that measure time see it.
        drop(stream.set_nodelay(true));
        tokio::spawn(async move {
            let serve = service_fn(|request| handler(request));
            // Errors here are connections that ended early, on purpose or by the client.
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), serve)
                    .await,
            );
        });
    }
}
