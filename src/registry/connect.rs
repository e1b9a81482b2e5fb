//! The HTTP client: TLS roots, client certificate, time limits, connections.

use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    auth::Credential,
    endpoint::Endpoint,
    error::{Cause, Error, Result},
};

/// Name resolution, TCP and TLS together (registry rule P12).
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// An idle connection is given up before most servers and load balancers do, so that a request rarely meets one that is
/// already dead (R13): theirs are 60 s and more, some 30 s.
const POOL_IDLE_LIMIT: Duration = Duration::from_secs(20);

const USER_AGENT: &str = concat!("docker-image-pusher/", env!("CARGO_PKG_VERSION"));

/// Attempts after the first one, unless said otherwise (R21).
const RETRY_ATTEMPTS: u32 = 3;

/// How a registry is to be reached.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Who we are.
    pub credential: Credential,
    /// Bundles of PEM certificates that are trusted in addition to the system's.
    pub ca_certificates: Vec<Vec<u8>>,
    /// Our own certificate with its key, as PEM text.
    pub client_identity: Option<SecretString>,
    /// Trust whatever certificate comes.
    pub skip_tls_verify: bool,
    /// Consecutive retries of one operation without progress.
    pub retry_attempts: u32,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            credential: Credential::Anonymous,
            ca_certificates: Vec::new(),
            client_identity: None,
            skip_tls_verify: false,
            retry_attempts: RETRY_ATTEMPTS,
        }
    }
}

/// Builds the client for one registry.
pub(super) fn build(endpoint: &Endpoint, options: &ClientOptions) -> Result<Client> {
    let roots = extra_roots(endpoint, &options.ca_certificates)?;
    let prepare = || -> Result<ClientBuilder> {
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            // One stream of http/2 is bound by its window: 44 MB/s at 40 ms where http/1.1 has 1050 (P1).
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_LIMIT)
            .pool_idle_timeout(POOL_IDLE_LIMIT)
            .tls_danger_accept_invalid_certs(options.skip_tls_verify)
            .retry(reqwest::retry::never());
        if let Some(identity) = &options.client_identity {
            builder = builder.identity(parse_identity(endpoint, identity)?);
        }
        Ok(builder)
    };
    let first = prepare()?.tls_certs_merge(roots.iter().cloned()).build();
    let error = match first {
        Ok(client) => return Ok(client),
        Err(error) => error,
    };
    // The roots given were checked before, so what is missing are the system's, in an image without any. Plain HTTP needs
    // none, as long as nobody redirects to TLS.
    if !roots.is_empty() || options.skip_tls_verify {
        return Err(unusable(endpoint, &error));
    }
    if !endpoint.is_plain_http() {
        return Err(Error::NoTrustedRoots {
            host: endpoint.host().to_string(),
        });
    }
    prepare()?
        .tls_certs_only([])
        .build()
        .map_err(|error| unusable(endpoint, &error))
}

fn unusable(endpoint: &Endpoint, error: &reqwest::Error) -> Error {
    Error::ClientUnusable {
        host: endpoint.host().to_string(),
        source: Cause::of(error),
    }
}

/// Reads the bundles and makes sure that each certificate can serve as a root.
fn extra_roots(endpoint: &Endpoint, bundles: &[Vec<u8>]) -> Result<Vec<reqwest::Certificate>> {
    let invalid = |reason: &str| Error::InvalidCertificate {
        what: "CA certificate",
        host: endpoint.host().to_string(),
        reason: reason.to_owned(),
    };
    let mut store = RootCertStore::empty();
    let mut roots = Vec::new();
    for bundle in bundles {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(bundle) {
            let certificate = certificate.map_err(|_| invalid("it is not PEM text"))?;
            store
                .add(certificate.clone())
                .map_err(|_| invalid("it is not a certificate"))?;
            let root = reqwest::Certificate::from_der(&certificate)
                .map_err(|_| invalid("it is not a certificate"))?;
            roots.push(root);
        }
        if roots.len() == before {
            return Err(invalid("there is no certificate in it"));
        }
    }
    Ok(roots)
}

/// Reads our own certificate; what is wrong with it is not repeated, since the text holds a key.
fn parse_identity(endpoint: &Endpoint, identity: &SecretString) -> Result<reqwest::Identity> {
    reqwest::Identity::from_pem(identity.expose_secret().as_bytes()).map_err(|_| {
        Error::InvalidCertificate {
            what: "client certificate",
            host: endpoint.host().to_string(),
            reason: "certificate and private key are not both there".to_owned(),
        }
    })
}
