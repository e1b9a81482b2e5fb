//! Requests through a proxy, and proxies that do not want to.
//!
//! The names of these registries exist nowhere: whatever arrives came through the proxy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::response::Response;
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::tls_server::Authority;
use crate::{
    error::{Class, Classified, handlers},
    registry::{
        ClientOptions, Credential, Error, Proxy, ProxyChoice, RegistryClient,
        testing::{
            Seen, Server, asks_for_token, client_at, descriptor, error, manifest, read_blob, reply,
            repository, status, tag, token,
        },
    },
};

/// `me:hunter2` and `gate:keeper` in base64.
const LOGIN: &str = "Basic bWU6aHVudGVyMg==";
const PROXY_LOGIN: &str = "Basic Z2F0ZTprZWVwZXI=";

/// Options that lead through a proxy at this address, with its login and one at the registry.
fn through(proxy: SocketAddr) -> ClientOptions {
    let login = Some(("gate".to_owned(), "keeper".into()));
    let proxy = Proxy::new(&format!("http://{proxy}"), login).unwrap();
    ClientOptions {
        credential: Credential::from_login("me".to_owned(), "hunter2".into()),
        proxy: ProxyChoice::Through(proxy),
        retry_attempts: 0,
        ..ClientOptions::default()
    }
}

async fn failure_of(client: &RegistryClient) -> Error {
    client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err()
}

/// Checks what every failure at a proxy has: its reason, both hosts, no secret.
fn assert_names_the_proxy(failed: &Error, reason: &str, class: Class, proxy: SocketAddr) {
    let text = handlers::message(failed);
    assert_eq!((failed.reason(), failed.class()), (reason, class), "{text}");
    assert!(text.contains("://registry.invalid"), "{text}");
    assert!(
        text.contains(&format!("through the proxy http://{proxy}")),
        "{text}"
    );
    for secret in ["hunter2", "keeper", "bWU6aHVudGVyMg", "Z2F0ZTprZWVwZXI"] {
        assert!(!format!("{text} {failed:?}").contains(secret), "{text}");
    }
}

/// A proxy for connections: it notes the head of each request, and answers with `status` or connects to `target` whatever
/// host it was asked for.
struct Tunnel {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Tunnel {
    async fn to(target: SocketAddr) -> Self {
        Self::start(None, target).await
    }

    async fn refusing(answer: &'static str) -> Self {
        Self::start(Some(answer), SocketAddr::from(([127, 0, 0, 1], 1))).await
    }

    async fn start(answer: Option<&'static str>, target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heads);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let log = Arc::clone(&log);
                connections.spawn(async move {
                    let head = read_head(&mut socket).await;
                    log.lock().unwrap().push(head);
                    if let Some(answer) = answer {
                        socket.write_all(answer.as_bytes()).await.unwrap();
                        return;
                    }
                    let mut registry = TcpStream::connect(target).await.unwrap();
                    socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    copy_bidirectional(&mut socket, &mut registry).await.ok();
                });
            }
        });
        Self {
            address,
            heads,
            _tasks: tasks,
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Everything behind a proxy for plain requests: a registry, its token service and its storage, each at a host of its own.
fn world(seen: &Seen) -> Response {
    let target = seen.target.split('?').next().unwrap();
    match (target, seen.authorization()) {
        ("http://auth.invalid/token", Some(LOGIN)) => token("t"),
        ("http://storage.invalid/blob", None) => reply(StatusCode::OK, &[], "layer"),
        (_, Some("Bearer t")) if target.contains("/manifests/") => {
            reply(StatusCode::OK, &[], manifest().bytes().clone())
        }
        (_, Some("Bearer t")) => reply(
            StatusCode::TEMPORARY_REDIRECT,
            &[("location", "http://storage.invalid/blob?signature=s")],
            "",
        ),
        (_, None) => asks_for_token("http://auth.invalid/token"),
        _ => status(400),
    }
}

#[tokio::test]
async fn requests_to_the_registry_its_token_service_and_its_storage_go_through_the_proxy() {
    let proxy = Server::start(world).await;
    let client = client_at("http://registry.invalid", through(proxy.address));
    let read = client.get_manifest(&repository(), &tag()).await.unwrap();
    assert_eq!(read.digest(), manifest().digest());
    let blob = read_blob(&client, &descriptor(b"layer")).await.unwrap();
    drop(blob);
    let hosts: Vec<_> = proxy
        .seen()
        .iter()
        .map(|seen| seen.target.split('/').nth(2).unwrap().to_owned())
        .collect();
    for host in ["registry.invalid", "auth.invalid", "storage.invalid"] {
        assert!(hosts.iter().any(|seen| seen == host), "{host} in {hosts:?}");
    }
    for seen in proxy.seen() {
        assert_eq!(
            seen.header("proxy-authorization"),
            Some(PROXY_LOGIN),
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn a_registry_with_tls_sees_no_login_of_the_proxy_and_the_proxy_none_of_the_registry() {
    let authority = Authority::new();
    let registry = authority.serve("registry.invalid", false, None).await;
    let proxy = Tunnel::to(registry.address).await;
    let options = ClientOptions {
        ca_certificates: vec![authority.pem()],
        ..through(proxy.address)
    };
    let client = client_at("https://registry.invalid:5000", options).with_token("t");
    assert_eq!(failure_of(&client).await.reason(), "ManifestUnknown");
    let heads = proxy.heads();
    assert_eq!(heads.len(), 1, "{heads:?}");
    assert!(
        heads[0].starts_with("CONNECT registry.invalid:5000 HTTP/1.1\r\n"),
        "{heads:?}"
    );
    let head = heads[0].to_ascii_lowercase();
    let login = format!("proxy-authorization: {PROXY_LOGIN}\r\n").to_ascii_lowercase();
    assert!(head.contains(&login), "{heads:?}");
    assert!(!head.contains("\r\nauthorization"), "{heads:?}");
    assert!(!registry.seen().is_empty());
    for seen in registry.seen() {
        assert_eq!(seen.header("proxy-authorization"), None);
        assert_eq!(seen.authorization(), Some("Bearer t"));
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_told_through_a_proxy_too() {
    let authority = Authority::new();
    let registry = authority.serve("registry.invalid", false, None).await;
    let proxy = Tunnel::to(registry.address).await;
    let failed = failure_of(&client_at(
        "https://registry.invalid",
        through(proxy.address),
    ))
    .await;
    assert_names_the_proxy(&failed, "CertificateInvalid", Class::Policy, proxy.address);
}

#[tokio::test]
async fn a_proxy_with_tls_is_verified_before_it_gets_our_login() {
    let authority = Authority::new();
    let registry = authority.serve("registry.invalid", false, None).await;
    let tunnel = Tunnel::to(registry.address).await;
    let (proxy, _tasks) = authority.cover("127.0.0.1", tunnel.address).await;
    let through_tls = |ca: &Authority| {
        let login = Some(("gate".to_owned(), "keeper".into()));
        let proxy = Proxy::new(&format!("https://{proxy}"), login).unwrap();
        ClientOptions {
            ca_certificates: vec![ca.pem()],
            proxy: ProxyChoice::Through(proxy),
            ..through(tunnel.address)
        }
    };
    let client = client_at("https://registry.invalid", through_tls(&Authority::new()));
    let failed = failure_of(&client).await;
    assert_eq!(failed.reason(), "ProxyUnreachable");
    let text = handlers::message(&failed);
    assert!(text.contains("invalid peer certificate"), "{text}");
    assert!(tunnel.heads().is_empty());
    let client = client_at("https://registry.invalid", through_tls(&authority));
    assert_eq!(failure_of(&client).await.reason(), "ManifestUnknown");
    assert!(tunnel.heads()[0].contains(PROXY_LOGIN));
}

#[tokio::test]
async fn a_login_that_the_proxy_does_not_accept_is_told_and_not_sent_again() {
    let plain = Server::start(|_| status(407)).await;
    let tunnel =
        Tunnel::refusing("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            .await;
    for (scheme, address) in [("http", plain.address), ("https", tunnel.address)] {
        let registry = format!("{scheme}://registry.invalid");
        let client = client_at(
            &registry,
            ClientOptions {
                retry_attempts: 3,
                ..through(address)
            },
        );
        for _ in 0..3 {
            let failed = failure_of(&client).await;
            let reason = "ProxyAuthenticationRequired";
            assert_names_the_proxy(&failed, reason, Class::Auth, address);
        }
    }
    assert_eq!((plain.seen().len(), tunnel.heads().len()), (1, 1));
}

#[tokio::test]
async fn a_login_that_the_proxy_refuses_like_a_registry_is_still_the_proxys() {
    // tinyproxy does.
    let answer = "HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Type: text/html\r\n\r\n<html>";
    let proxy = Tunnel::refusing(answer).await;
    for scheme in ["http", "https"] {
        let client = client_at(
            &format!("{scheme}://registry.invalid"),
            through(proxy.address),
        );
        let failed = failure_of(&client).await;
        let reason = "ProxyAuthenticationRequired";
        assert_names_the_proxy(&failed, reason, Class::Auth, proxy.address);
    }
}

#[tokio::test]
async fn a_407_of_a_registry_without_a_proxy_is_an_answer_like_another() {
    let registry = Server::start(|_| status(407)).await;
    let failed = failure_of(&registry.client()).await;
    assert_eq!(failed.reason(), "NotARegistry");
    assert!(failed.to_string().contains("407"), "{failed}");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for registry in ["http://registry.invalid", "https://registry.invalid"] {
        let failed = failure_of(&client_at(registry, through(address))).await;
        assert_names_the_proxy(&failed, "ProxyUnreachable", Class::Network, address);
        let proxy = Proxy::new("http://proxy.invalid:3128", None).unwrap();
        let options = ClientOptions {
            proxy: ProxyChoice::Through(proxy),
            ..through(address)
        };
        let failed = failure_of(&client_at(registry, options)).await;
        assert_eq!(failed.reason(), "ProxyUnreachable", "{failed}");
        assert!(
            failed.to_string().contains("http://proxy.invalid:3128"),
            "{failed}"
        );
    }
    let hanging_up = Tunnel::refusing("").await;
    let failed = failure_of(&client_at(
        "https://registry.invalid",
        through(hanging_up.address),
    ))
    .await;
    assert_names_the_proxy(
        &failed,
        "ProxyUnreachable",
        Class::Network,
        hanging_up.address,
    );
}

#[tokio::test]
async fn a_proxy_that_lets_nobody_through_is_quoted() {
    for (answer, expected, class) in [
        (
            "HTTP/1.1 403 Filtered\r\n\r\n",
            "403 Forbidden",
            Class::Policy,
        ),
        (
            "HTTP/1.0 502 Bad Gateway\r\n\r\n",
            "502 Bad Gateway",
            Class::Network,
        ),
        (
            "SSH-2.0-OpenSSH_9.2\r\n",
            "opens no connection",
            Class::Network,
        ),
    ] {
        let proxy = Tunnel::refusing(answer).await;
        let failed = failure_of(&client_at(
            "https://registry.invalid",
            through(proxy.address),
        ))
        .await;
        assert_names_the_proxy(&failed, "ProxyRefused", class, proxy.address);
        assert!(failed.to_string().contains(expected), "{failed}");
    }
    for (code, class) in [
        (403, Class::Policy),
        (500, Class::Network),
        (502, Class::Network),
        (503, Class::Network),
    ] {
        let proxy = Server::start(move |_| {
            let status = StatusCode::from_u16(code).unwrap();
            reply(status, &[("content-type", "text/html")], "<html>")
        })
        .await;
        let failed = failure_of(&client_at(
            "http://registry.invalid",
            through(proxy.address),
        ))
        .await;
        assert_names_the_proxy(&failed, "ProxyRefused", class, proxy.address);
        assert!(failed.to_string().contains(&code.to_string()), "{failed}");
    }
}

#[tokio::test]
async fn a_registry_that_fails_behind_a_proxy_is_the_registrys_failure() {
    let proxy = Server::start(|_| error(503, "UNAVAILABLE", "later")).await;
    let failed = failure_of(&client_at(
        "http://registry.invalid",
        through(proxy.address),
    ))
    .await;
    assert_eq!(failed.reason(), "RegistryUnavailable", "{failed}");
}

#[tokio::test]
async fn a_host_that_is_excepted_is_asked_directly() {
    let proxy = Server::start(|_| status(500)).await;
    let registry = Server::start(|_| error(404, "MANIFEST_UNKNOWN", "")).await;
    let exception = Proxy::new(&proxy.url(), None).unwrap().except("127.0.0.1");
    let options = ClientOptions {
        proxy: ProxyChoice::Through(exception),
        ..ClientOptions::default()
    };
    assert_eq!(
        failure_of(&registry.client_with(options)).await.reason(),
        "ManifestUnknown"
    );
    assert!(proxy.seen().is_empty());
}
