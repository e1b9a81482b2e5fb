//! Registries behind TLS, with certificates of all kinds.

use std::{net::SocketAddr, sync::Arc};

use axum::{response::Response, serve::Listener as _};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::registry::testing::{Seen, Server, error, use_crypto};

/// A certificate authority and what it signs.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(super) fn pem(&self) -> Vec<u8> {
        self.0.pem().into_bytes()
    }

    pub(super) fn sign(&self, name: &str, is_expired: bool) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if is_expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }

    /// A registry behind TLS with a certificate for `name`; with `client_authority` it wants one of the client too.
    pub(super) async fn serve(
        &self,
        name: &str,
        is_expired: bool,
        client_authority: Option<&Self>,
    ) -> Server {
        use_crypto();
        let (certificate, key) = self.sign(name, is_expired);
        let builder = ServerConfig::builder();
        let builder = match client_authority {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.0.der().clone()).unwrap();
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder(roots.into()).build().unwrap(),
                )
            }
        };
        serve_tls(builder, &certificate, &key, knows_nothing).await
    }

    /// A listener that ends TLS, with a certificate for `name`, before a server without it.
    pub(super) async fn cover(&self, name: &str, target: SocketAddr) -> (SocketAddr, JoinSet<()>) {
        use_crypto();
        let (certificate, key) = self.sign(name, false);
        let builder = ServerConfig::builder().with_no_client_auth();
        let mut listener = TlsListener::bind(builder, &certificate, &key).await;
        let address = listener.listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await;
                connections.spawn(async move {
                    let mut target = TcpStream::connect(target).await.unwrap();
                    copy_bidirectional(&mut stream, &mut target).await.ok();
                });
            }
        });
        (address, tasks)
    }

    /// A server behind TLS with a certificate for `name` and answers of the test's own.
    pub(super) async fn serve_with(
        &self,
        name: &str,
        handler: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    ) -> Server {
        use_crypto();
        let (certificate, key) = self.sign(name, false);
        let builder = ServerConfig::builder().with_no_client_auth();
        serve_tls(builder, &certificate, &key, handler).await
    }
}

/// An authority that serves its own certificate: what `openssl req -x509` makes.
pub(super) async fn serve_self_signed(name: &str, is_expired: bool) -> (Server, Vec<u8>) {
    use_crypto();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    if is_expired {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let builder = ServerConfig::builder().with_no_client_auth();
    let pem = certificate.pem().into_bytes();
    (
        serve_tls(builder, &certificate, &key, knows_nothing).await,
        pem,
    )
}

type TlsBuilder = rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>;

fn knows_nothing(_: &Seen) -> Response {
    error(404, "MANIFEST_UNKNOWN", "")
}

/// A server with this certificate.
async fn serve_tls(
    builder: TlsBuilder,
    certificate: &rcgen::Certificate,
    key: &KeyPair,
    handler: impl Fn(&Seen) -> Response + Send + Sync + 'static,
) -> Server {
    let listener = TlsListener::bind(builder, certificate, key).await;
    let address = listener.listener.local_addr().unwrap();
    Server::serve(listener, address, handler)
}

struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsListener {
    async fn bind(builder: TlsBuilder, certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = builder
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (socket, address) = self.listener.accept().await.unwrap();
            // Who does not get through the handshake is the test's subject.
            if let Ok(stream) = self.acceptor.accept(socket).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
