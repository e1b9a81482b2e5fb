//! Connections: HTTP/1.1 on a port of its own, with or without TLS. Each request is handed on with the number of its
//! connection and whether that was used before.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::super::web::Answer;
use super::super::{Context, Result, certificates, process};

/// Which connection a request came by.
#[derive(Debug, Clone, Copy)]
pub struct Connection {
    pub number: usize,
    /// It had a request before this one.
    pub is_reused: bool,
}

/// A running server. Dropping it ends all its connections.
#[derive(Debug)]
pub struct Server {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

/// A certificate for a server, of a CA that nobody knows.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    pub ca_pem: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    pub fn new(address: Ipv4Addr) -> Result<Self> {
        super::super::install_crypto_provider();
        let folder = process::temporary_folder("certificates")?;
        let folder = folder.path().join("tls");
        let ca_pem = certificates::write(&folder, address, false)?;
        let chain = CertificateDer::pem_file_iter(folder.join("server.pem"))
            .context("no certificate")?
            .collect::<std::result::Result<Vec<_>, _>>()
            .context("no certificate")?;
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key.pem")).context("no key")?;
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("the certificate does not fit its key")?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            ca_pem,
        })
    }
}

impl Server {
    /// Serves `handler` on threads of its own: a test that blocks, or whose clock stands still, does not stop its servers.
    pub fn start<H, F>(address: Ipv4Addr, tls: Option<Tls>, handler: H) -> Result<Self>
    where
        H: Fn(Request<Incoming>, Connection) -> F + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("fake-registry")
            .enable_all()
            .build()
            .context("could not start a runtime for a fake registry")?;
        let listener = std::net::TcpListener::bind((address, 0))
            .context(format!("could not listen at {address}"))?;
        listener
            .set_nonblocking(true)
            .context("could not prepare a listener")?;
        let address = listener
            .local_addr()
            .context("a listener without address")?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener).context("could not use a listener")?
        };
        runtime.spawn(accept(listener, tls, Arc::new(handler)));
        Ok(Self {
            address,
            runtime: Some(runtime),
        })
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

async fn accept<H, F>(listener: tokio::net::TcpListener, tls: Option<Tls>, handler: Arc<H>)
where
    H: Fn(Request<Incoming>, Connection) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let mut number = 0;
    while let Ok((stream, _)) = listener.accept().await {
        number += 1;
        // Otherwise small answers wait for the peer's delayed acknowledgement, and tests that measure time see it.
        drop(stream.set_nodelay(true));
        let (handler, tls) = (Arc::clone(&handler), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, number, handler).await,
                // A handshake that fails is the client's to tell of.
                Some(tls) => {
                    if let Ok(stream) = tls.acceptor.accept(stream).await {
                        serve(stream, number, handler).await;
                    }
                }
            }
        });
    }
}

async fn serve<S, H, F>(stream: S, number: usize, handler: Arc<H>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Connection) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let requests = AtomicUsize::new(0);
    let service = service_fn(|request| {
        let is_reused = requests.fetch_add(1, Ordering::Relaxed) > 0;
        handler(request, Connection { number, is_reused })
    });
    // Errors here are connections that ended early, on purpose or by the client.
    drop(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .max_buf_size(1024 * 1024)
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}
