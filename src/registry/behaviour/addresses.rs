//! Names that lead where nothing of ours is (registry rule R7).

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::response::Response;
use http::StatusCode;

use crate::{
    error::{Class, Classified},
    registry::{
        ClientOptions, Error, Loopback, Names, Proxy, ProxyChoice, RegistryClient, Result,
        testing::{
            Server, asks_for_token, client_at, descriptor, manifest, read_blob, reply, repository,
            status, tag, upload,
        },
    },
};

/// Names that lead to these addresses: to the first one at the first look, and so on; to the last one from then on.
fn names(looks: &[&str]) -> Names {
    let mut looks: Vec<IpAddr> = looks.iter().map(|look| look.parse().unwrap()).collect();
    looks.reverse();
    let looks = Arc::new(Mutex::new(looks));
    Names::new(move |_| {
        let mut looks = looks.lock().unwrap();
        let address = if looks.len() > 1 {
            looks.pop().unwrap()
        } else {
            looks[0]
        };
        Box::pin(std::future::ready(Ok(vec![address])))
    })
}

fn options(loopback: Loopback, looks: &[&str]) -> ClientOptions {
    ClientOptions {
        loopback,
        names: names(looks),
        proxy: ProxyChoice::Direct,
        retry_attempts: 0,
        ..ClientOptions::default()
    }
}

/// A listener that nobody ever connects to.
struct Untouched(std::net::TcpListener);

impl Untouched {
    fn new() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    fn check(&self) {
        let error = self.0.accept().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

fn assert_refused(failed: &Error) {
    assert_eq!(
        (failed.reason(), failed.class()),
        ("AddressRefused", Class::Policy),
        "{failed}"
    );
}

#[tokio::test]
async fn a_name_at_a_forbidden_address_is_told_with_both() {
    for address in [
        "169.254.169.254",
        "0.0.0.0",
        "::ffff:127.0.0.1",
        "fd00:ec2::254",
    ] {
        let client = client_at(
            "https://registry.example",
            options(Loopback::Allowed, &[address]),
        );
        let failed = client
            .get_manifest(&repository(), &tag())
            .await
            .unwrap_err();
        assert_refused(&failed);
        let address: IpAddr = address.parse().unwrap();
        let expected = format!("registry.example is at {address}");
        assert!(failed.to_string().contains(&expected), "{failed}");
    }
}

#[tokio::test]
async fn this_machine_is_asked_only_by_those_who_may() {
    for (loopback, host, is_asked) in [
        (Loopback::Named, "127.0.0.1", true),
        (Loopback::Named, "registry.example", true),
        (Loopback::Allowed, "registry.example", true),
        (Loopback::Refused, "registry.example", false),
        (Loopback::Refused, "127.0.0.1", false),
        (Loopback::Refused, "localhost", false),
    ] {
        let server =
            Server::start(|_| reply(StatusCode::OK, &[], manifest().bytes().clone())).await;
        let address = format!("http://{host}:{}", server.address.port());
        let client = client_at(&address, options(loopback, &["127.0.0.1"]));
        match client.get_manifest(&repository(), &tag()).await {
            Ok(_) => assert!(is_asked, "{loopback:?} {host}"),
            Err(failed) => {
                assert!(!is_asked, "{loopback:?} {host} {failed}");
                assert_refused(&failed);
            }
        }
        assert_eq!(server.lines().len(), usize::from(is_asked));
    }
}

#[tokio::test]
async fn a_name_that_moves_to_a_forbidden_address_is_not_followed() {
    let server = Server::start(|_| {
        let body = manifest().bytes().clone();
        reply(StatusCode::OK, &[("connection", "close")], body)
    })
    .await;
    let address = format!("http://registry.example:{}", server.address.port());
    let looks = &["127.0.0.1", "169.254.169.254"];
    let client = client_at(&address, options(Loopback::Named, looks));
    client.get_manifest(&repository(), &tag()).await.unwrap();
    let failed = client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_refused(&failed);
    assert_eq!(server.lines().len(), 1);
}

#[tokio::test]
async fn a_name_that_moves_to_this_machine_is_not_followed() {
    let untouched = Untouched::new();
    let address = format!("http://registry.example:{}", untouched.address().port());
    // 240.0.0.1 has no route: a first look that leads nowhere, at once.
    let looks = &["240.0.0.1", "127.0.0.1"];
    let client = client_at(&address, options(Loopback::Named, looks));
    client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    let failed = client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err();
    assert_refused(&failed);
    untouched.check();
}

/// Ways in which a registry can point to another host.
#[derive(Debug, Clone, Copy)]
enum Pointer {
    Redirect,
    Realm,
    Location,
    Link,
}

impl Pointer {
    const ALL: [Self; 4] = [Self::Redirect, Self::Realm, Self::Location, Self::Link];

    fn answer(self, target: &str) -> Response {
        match self {
            Self::Redirect => reply(StatusCode::TEMPORARY_REDIRECT, &[("location", target)], ""),
            Self::Realm => asks_for_token(target),
            Self::Location => reply(StatusCode::ACCEPTED, &[("location", target)], ""),
            Self::Link => {
                let link = format!("<{target}>; rel=\"next\"");
                reply(StatusCode::OK, &[("link", &link)], r#"{"tags":["a"]}"#)
            }
        }
    }

    async fn follow(self, client: &RegistryClient) -> Result<()> {
        match self {
            Self::Redirect | Self::Realm => {
                let blob = descriptor(b"x");
                read_blob(client, &blob).await.map(drop)
            }
            Self::Location => upload(client, b"").await.map(drop),
            Self::Link => client.list_tags(&repository()).await.map(drop),
        }
    }
}

/// A registry elsewhere: it is reached by way of a proxy, which may be here because the user named it.
fn elsewhere(proxy: &Server, loopback: Loopback, looks: &[&str]) -> RegistryClient {
    let proxy = Proxy::new(&proxy.url(), None)
        .unwrap()
        .except("evil.example");
    let options = ClientOptions {
        proxy: ProxyChoice::Through(proxy),
        ..options(loopback, looks)
    };
    client_at("http://registry.example", options)
}

#[tokio::test]
async fn wherever_a_registry_points_its_name_is_looked_at() {
    for pointer in Pointer::ALL {
        for host in ["evil.example", "127.0.0.1"] {
            for look in ["127.0.0.1", "169.254.169.254"] {
                let untouched = Untouched::new();
                let target = format!("http://{host}:{}/x", untouched.address().port());
                let proxy = Server::start(move |_| pointer.answer(&target)).await;
                let client = elsewhere(&proxy, Loopback::Named, &[look]);
                let failed = pointer.follow(&client).await.unwrap_err();
                assert_refused(&failed);
                untouched.check();
            }
        }
    }
}

#[tokio::test]
async fn wherever_a_registry_points_is_asked_when_this_machine_may_be() {
    for pointer in Pointer::ALL {
        let other = Server::start(|_| status(404)).await;
        let target = format!("http://evil.example:{}/x", other.address.port());
        let proxy = Server::start(move |_| pointer.answer(&target)).await;
        let client = elsewhere(&proxy, Loopback::Allowed, &["127.0.0.1"]);
        // Whatever becomes of it.
        pointer.follow(&client).await.ok();
        assert!(!other.lines().is_empty(), "{pointer:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_a_tenant_names_is_looked_at_too() {
    for registry in ["http://registry.example", "https://registry.example"] {
        for (loopback, host, look) in [
            (Loopback::Refused, "127.0.0.1", "127.0.0.1"),
            (Loopback::Refused, "proxy.example", "127.0.0.1"),
            (Loopback::Allowed, "proxy.example", "169.254.169.254"),
        ] {
            let untouched = Untouched::new();
            let proxy = format!("http://{host}:{}", untouched.address().port());
            let options = ClientOptions {
                proxy: ProxyChoice::Through(Proxy::new(&proxy, None).unwrap()),
                ..options(loopback, &[look])
            };
            let client = client_at(registry, options);
            let failed = client
                .get_manifest(&repository(), &tag())
                .await
                .unwrap_err();
            assert_refused(&failed);
            untouched.check();
        }
    }
}
