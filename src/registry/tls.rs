//! Whom we trust: the system's roots, a registry's own, or anybody.

use std::sync::{Arc, OnceLock};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    connect::ClientOptions,
    endpoint::Endpoint,
    error::{Cause, Error, Result},
};

/// The TLS side of a client.
pub(super) fn config(endpoint: &Endpoint, options: &ClientOptions) -> Result<ClientConfig> {
    let unusable = |error: &TlsError| Error::ClientUnusable {
        host: endpoint.host().to_string(),
        source: Cause::of(error),
    };
    let provider = CryptoProvider::get_default().cloned().ok_or_else(|| {
        unusable(&TlsError::General(
            "no provider of cryptography was installed".to_owned(),
        ))
    })?;
    let own = own_roots(endpoint, &options.ca_certificates)?;
    let verifier = if options.skip_tls_verify {
        Verifier {
            trust: Trust::Anybody,
            provider: Arc::clone(&provider),
        }
    } else {
        verifier(endpoint, own, &provider)?
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &options.client_identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = parse_identity(endpoint, identity)?;
            builder.with_client_auth_cert(chain, key).map_err(|_| {
                invalid_identity(endpoint, "certificate and key do not belong together")
            })?
        }
    };
    // One stream of http/2 is bound by its window: 44 MB/s at 40 ms where http/1.1 has 1050 (registry rule P1).
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The system's certificate authorities, read once: they fill a file of some hundred kilobytes, and a mirror with many
/// destinations makes many clients.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        // Some of a system's certificates are always broken; what matters is that there are others.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

/// Trusts the system's roots and the registry's own.
fn verifier(
    endpoint: &Endpoint,
    own: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Verifier> {
    let mut roots = RootCertStore::empty();
    for root in &own {
        // Each was added to a store once already.
        roots.add(root.clone()).ok();
    }
    roots.extend(system_roots().roots.iter().cloned());
    let trust = if roots.is_empty() {
        // Plain HTTP needs no roots as long as nobody redirects to TLS, and then this is the answer.
        if !endpoint.is_plain_http() {
            return Err(Error::NoTrustedRoots {
                host: endpoint.host().to_string(),
            });
        }
        Trust::Nobody
    } else {
        let inner = WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(provider))
            .build()
            .map_err(|error| Error::ClientUnusable {
                host: endpoint.host().to_string(),
                source: Cause::of(&error),
            })?;
        Trust::Roots { inner, own }
    };
    Ok(Verifier {
        trust,
        provider: Arc::clone(provider),
    })
}

/// Reads the bundles and makes sure that each certificate can serve as a root.
fn own_roots(endpoint: &Endpoint, bundles: &[Vec<u8>]) -> Result<Vec<CertificateDer<'static>>> {
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
            roots.push(certificate);
        }
        if roots.len() == before {
            return Err(invalid("there is no certificate in it"));
        }
    }
    Ok(roots)
}

/// Reads our own certificate; what is wrong with it is not repeated, since the text holds a key.
fn parse_identity(
    endpoint: &Endpoint,
    identity: &SecretString,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let text = identity.expose_secret().as_bytes();
    let chain: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| invalid_identity(endpoint, "it is not PEM text"))?;
    if chain.is_empty() {
        return Err(invalid_identity(endpoint, "there is no certificate in it"));
    }
    let key = PrivateKeyDer::from_pem_slice(text)
        .map_err(|_| invalid_identity(endpoint, "there is no private key in it"))?;
    Ok((chain, key))
}

fn invalid_identity(endpoint: &Endpoint, reason: &str) -> Error {
    Error::InvalidCertificate {
        what: "client certificate",
        host: endpoint.host().to_string(),
        reason: reason.to_owned(),
    }
}

/// Decides about a server's certificate.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Trust {
    /// Those whose certificate leads to a root, and those whose certificate was given to us by hand.
    Roots {
        inner: Arc<WebPkiServerVerifier>,
        own: Vec<CertificateDer<'static>>,
    },
    /// There is no root.
    Nobody,
    /// The user asked for it.
    Anybody,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        let (inner, own) = match &self.trust {
            Trust::Anybody => return Ok(ServerCertVerified::assertion()),
            Trust::Nobody => return Err(CertificateError::UnknownIssuer.into()),
            Trust::Roots { inner, own } => (inner, own),
        };
        let error = match inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        ) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        // What `openssl req -x509` makes for a small registry is an authority and a server in one. Other clients take it
        // when it was given to them as authority; the library refuses that one thing, after it has checked the dates.
        if !(is_authority_as_server(&error) && own.iter().any(|own| own == end_entity)) {
            return Err(error);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whether a certificate is refused only because it could sign others too. The library has no type for this outside its
/// own crate, so its name is looked for; a test notices when that changes.
pub(super) fn is_authority_as_server(error: &TlsError) -> bool {
    matches!(
        error,
        TlsError::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity")
    )
}
