//! Addresses behind which there is no registry, or not the one that was meant.

use http::StatusCode;
use tokio::net::TcpListener;

use super::tls_server::{Authority, serve_self_signed};
use crate::{
    error::{Class, Classified, handlers},
    registry::{
        ClientOptions, Error, ProxyChoice, RegistryClient,
        testing::{
            Server, asks_for_token, client_at, raw_server, reply, repository, status, tag,
            use_crypto,
        },
    },
};

fn no_retries() -> ClientOptions {
    ClientOptions {
        retry_attempts: 0,
        // The names of these tests are not for the proxy of whoever runs them.
        proxy: ProxyChoice::Direct,
        ..ClientOptions::default()
    }
}

async fn failure_of(client: &RegistryClient) -> Error {
    client
        .get_manifest(&repository(), &tag())
        .await
        .unwrap_err()
}

#[tokio::test]
async fn a_port_without_listener_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let failed = failure_of(&client_at(&format!("http://{address}"), no_retries())).await;
    assert_eq!(
        (failed.reason(), failed.class()),
        ("ConnectionRefused", Class::Network)
    );
    assert!(
        handlers::message(&failed).ends_with("Connection refused (os error 111)"),
        "{}",
        handlers::message(&failed)
    );
}

#[tokio::test]
async fn a_name_without_address_is_no_host() {
    let failed = failure_of(&client_at("https://registry.invalid", no_retries())).await;
    assert_eq!(failed.reason(), "HostNotFound");
    assert!(failed.to_string().contains("registry.invalid"), "{failed}");
}

#[tokio::test]
async fn plain_http_is_told_with_its_remedy() {
    let server = Server::start(|_| status(200)).await;
    let failed = failure_of(&client_at(
        &format!("https://{}", server.address),
        no_retries(),
    ))
    .await;
    assert_eq!((failed.reason(), failed.class()), ("NotTls", Class::Policy));
    assert!(
        failed.to_string().contains("http://") && failed.to_string().contains("insecure: true"),
        "{failed}"
    );
    assert_eq!(server.lines().len(), 0, "nothing is sent in plain");
}

#[tokio::test]
async fn tls_where_none_was_expected_is_told_with_its_remedy() {
    let server = Authority::new().serve("127.0.0.1", false, None).await;
    let failed = failure_of(&client_at(&server.url(), no_retries())).await;
    assert_eq!(failed.reason(), "TlsRequired", "{failed:?}");
    assert!(failed.to_string().contains("https://"), "{failed}");
}

#[tokio::test]
async fn each_thing_that_can_be_wrong_with_a_certificate_has_its_words() {
    let authority = Authority::new();
    for (name, is_expired, is_trusted, expected) in [
        (
            "127.0.0.1",
            false,
            false,
            Some("not signed by a trusted authority; give the registry's CA certificate"),
        ),
        ("other.example", false, true, Some("for another name")),
        ("127.0.0.1", true, true, Some("has expired")),
        ("127.0.0.1", false, true, None),
    ] {
        let server = authority.serve(name, is_expired, None).await;
        let address = format!("https://{}", server.address);
        let ca_certificates = if is_trusted {
            vec![authority.pem()]
        } else {
            Vec::new()
        };
        let failed = failure_of(&client_at(
            &address,
            ClientOptions {
                ca_certificates,
                ..no_retries()
            },
        ))
        .await;
        match expected {
            Some(text) => {
                assert_eq!(
                    (failed.reason(), failed.class()),
                    ("CertificateInvalid", Class::Policy)
                );
                assert!(failed.to_string().contains(text), "{failed}");
            }
            None => assert_eq!(failed.reason(), "ManifestUnknown"),
        }
        let skipping = ClientOptions {
            skip_tls_verify: true,
            ..no_retries()
        };
        assert_eq!(
            failure_of(&client_at(&address, skipping)).await.reason(),
            "ManifestUnknown"
        );
    }
}

#[tokio::test]
async fn a_certificate_signed_by_itself_is_trusted_when_it_was_given() {
    let other = Authority::new().pem();
    for (name, is_expired, is_given, expected) in [
        (
            "127.0.0.1",
            false,
            false,
            Some("is signed by itself; give that certificate"),
        ),
        ("other.example", false, true, Some("for another name")),
        ("127.0.0.1", true, true, Some("has expired")),
        ("127.0.0.1", false, true, None),
    ] {
        let (server, pem) = serve_self_signed(name, is_expired).await;
        let address = format!("https://{}", server.address);
        let ca_certificates = vec![if is_given { pem } else { other.clone() }];
        let options = ClientOptions {
            ca_certificates,
            ..no_retries()
        };
        let failed = failure_of(&client_at(&address, options)).await;
        match expected {
            Some(text) => assert!(failed.to_string().contains(text), "{failed}"),
            None => assert_eq!(failed.reason(), "ManifestUnknown"),
        }
    }
}

#[tokio::test]
async fn a_registry_that_wants_a_certificate_gets_ours_or_says_so() {
    let authority = Authority::new();
    let clients = Authority::new();
    let server = authority.serve("127.0.0.1", false, Some(&clients)).await;
    let address = format!("https://{}", server.address);
    let options = || ClientOptions {
        ca_certificates: vec![authority.pem()],
        ..no_retries()
    };
    let identity = |(certificate, key): (rcgen::Certificate, rcgen::KeyPair)| {
        Some(format!("{}{}", certificate.pem(), key.serialize_pem()).into())
    };
    for (client_identity, expected) in [
        (None, "ClientCertificateRefused"),
        (
            identity(authority.sign("me", false)),
            "ClientCertificateRefused",
        ),
        (
            identity(clients.sign("me", true)),
            "ClientCertificateRefused",
        ),
        (identity(clients.sign("me", false)), "ManifestUnknown"),
    ] {
        let options = ClientOptions {
            client_identity,
            ..options()
        };
        let failed = failure_of(&client_at(&address, options)).await;
        assert_eq!(failed.reason(), expected, "{failed:?}");
    }
}

#[tokio::test]
async fn a_page_about_our_certificate_is_no_sign_of_another_server() {
    for words in [
        "No required SSL certificate was sent",
        "The SSL certificate error",
    ] {
        let authority = Authority::new();
        let page = format!("<html><center>{words}</center></html>");
        let server = authority
            .serve_with("127.0.0.1", move |_| {
                reply(StatusCode::BAD_REQUEST, &[], page.clone())
            })
            .await;
        let options = ClientOptions {
            ca_certificates: vec![authority.pem()],
            ..no_retries()
        };
        let address = format!("https://{}", server.address);
        let failed = failure_of(&client_at(&address, options)).await;
        assert_eq!(
            (failed.reason(), failed.class()),
            ("ClientCertificateRefused", Class::Auth)
        );
        assert!(failed.to_string().contains("--cert-file"), "{failed}");
    }
}

#[tokio::test]
async fn certificates_that_are_none_are_refused_at_once() {
    use_crypto();
    for options in [
        ClientOptions {
            ca_certificates: vec![b"hello".to_vec()],
            ..no_retries()
        },
        ClientOptions {
            ca_certificates: vec![
                b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
            ],
            ..no_retries()
        },
        ClientOptions {
            client_identity: Some("hunter2".into()),
            ..no_retries()
        },
    ] {
        let failed = RegistryClient::new(
            "https://r.example".parse().unwrap(),
            options,
            crate::output::OutputManager::silent(),
        )
        .unwrap_err();
        assert_eq!(
            (failed.reason(), failed.class()),
            ("InvalidCertificate", Class::Config)
        );
        assert!(!format!("{failed:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn a_web_site_is_not_a_registry() {
    for code in [200, 404, 403, 400] {
        let server = Server::start(move |_| {
            reply(
                StatusCode::from_u16(code).unwrap(),
                &[("content-type", "text/html; charset=utf-8")],
                "<!doctype html><p>Welcome",
            )
        })
        .await;
        let failed = failure_of(&client_at(&server.url(), no_retries())).await;
        assert_eq!(
            (failed.reason(), failed.class()),
            ("NotARegistry", Class::NotFound),
            "{code}"
        );
        assert!(
            failed
                .to_string()
                .contains("answered with a web page, not with the registry API"),
            "{failed}"
        );
        assert!(!failed.to_string().contains("Welcome"));
    }
}

#[tokio::test]
async fn a_registry_whose_proxy_sends_pages_is_still_one() {
    let server = Server::start(|seen| match seen.target.as_str() {
        "/v2/" => asks_for_token("/token"),
        _ => reply(
            StatusCode::NOT_FOUND,
            &[("content-type", "text/html")],
            "<html>",
        ),
    })
    .await;
    assert_eq!(
        failure_of(&server.client()).await.reason(),
        "ManifestUnknown"
    );
}

#[tokio::test]
async fn something_that_speaks_no_http_is_a_failed_connection() {
    let (address, _tasks) = raw_server(vec![b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(); 3]).await;
    let failed = failure_of(&client_at(&format!("http://{address}"), no_retries())).await;
    assert_eq!(
        (failed.reason(), failed.class()),
        ("ConnectionFailed", Class::Network)
    );
}
