//! What is behind an address that answers oddly, or not at all. Asked only when something has failed already, and never
//! again once a registry was seen to answer there.

use std::time::Duration;

use http::Method;
use reqwest::Request;

use super::{
    Answer, RegistryClient,
    challenge::Challenge,
    error::{Cause, Error, Operation},
    proxy::Hop,
    wire,
};

/// A server that speaks something else may wait in silence for more, and the user waits with it.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

impl RegistryClient {
    /// The error, or a better one when the root of the API tells more.
    pub(super) async fn diagnosed(&self, error: Error) -> Error {
        if self.shared.is_reached() {
            return error;
        }
        let Some(operation) = oddity(&error).cloned() else {
            return error;
        };
        if self.wants_login_at_proxy().await {
            return Error::ProxyAuthenticationRequired {
                operation: self.on_the_way(&operation),
            };
        }
        if self.shared.endpoint.is_plain_http() && self.speaks_tls().await {
            return Error::TlsRequired { operation };
        }
        let root = match self.ping().await {
            Ok(root) => root,
            // Whether a connection ends before or after the reason is told is a matter of luck.
            Err(Error::ClientCertificateRefused { source, .. }) => {
                return Error::ClientCertificateRefused { operation, source };
            }
            Err(_) => return error,
        };
        self.shared.note_answer(&root);
        // A registry asks for a login or says that all is well, and never with a page.
        let asks_for_login = root.status() == 401 && !Challenge::all(root.headers()).is_empty();
        let answer = Answer::read(root).await;
        let is_well = answer.status().is_success() && !answer.is_web_page();
        if asks_for_login || is_well {
            return error;
        }
        if answer.wants_certificate() && !self.shared.endpoint.is_plain_http() {
            let source = Cause::said(&answer);
            return Error::ClientCertificateRefused { operation, source };
        }
        // What is asked for in plain is answered by the proxy where the registry does not answer.
        if self.answering_hop().is_some() && answer.is_web_page() {
            return Error::ProxyRefused {
                operation: self.on_the_way(&operation),
                said: answer.to_string(),
                is_denied: answer.status().is_client_error(),
            };
        }
        if answer.status().is_server_error() {
            return error;
        }
        Error::NotARegistry { operation, answer }
    }

    /// The operation with the proxy, if there is one.
    fn on_the_way(&self, operation: &Operation) -> Operation {
        self.client.on_the_way(operation, &self.shared.base)
    }

    /// The proxy through which the registry is asked in plain, so that it could have answered itself.
    fn answering_hop(&self) -> Option<&Hop> {
        let hop = self.client.routes.hop(&self.shared.base)?;
        self.shared.endpoint.is_plain_http().then_some(hop)
    }

    /// Whether a 401 that came in plain was the proxy's: tinyproxy says so to a wrong login. Asked for a tunnel, a proxy cannot
    /// but answer itself.
    async fn wants_login_at_proxy(&self) -> bool {
        let Some(hop) = self.answering_hop() else {
            return false;
        };
        let status = hop
            .proxy()
            .ask_for_tunnel(&self.shared.base, &self.client.filter)
            .await;
        matches!(status.map(|status| status.as_u16()), Some(401 | 407))
    }

    /// Whether the other side, asked for plain HTTP, would rather speak TLS. Nothing but the root of the API is asked for.
    async fn speaks_tls(&self) -> bool {
        let mut url = self.shared.base.clone();
        if url.set_scheme("https").is_err() {
            return false;
        }
        // `set_scheme` would let an unwritten port 80 become 443: the question is about this very port.
        let port = self.shared.base.port_or_known_default();
        if url.set_port(port).is_err() {
            return false;
        }
        let operation = Operation::new(format!("reach {}", self.address));
        let request = Request::new(Method::GET, url);
        let probe = wire::exchange(&self.client, request, &operation);
        match tokio::time::timeout(PROBE_LIMIT, probe).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => matches!(
                error,
                Error::CertificateInvalid { .. } | Error::ClientCertificateRefused { .. }
            ),
            Err(_) => false,
        }
    }
}

/// The operation of an error that may come from something else than a registry.
fn oddity(error: &Error) -> Option<&Operation> {
    match error {
        Error::UnexpectedAnswer { operation, .. }
        | Error::ConnectionFailed { operation, .. }
        | Error::RequestRefused { operation, .. } => Some(operation),
        Error::ManifestUnknown { operation, answer }
        | Error::RepositoryUnknown { operation, answer }
        | Error::BlobUnknown { operation, answer }
        | Error::AuthenticationRequired { operation, answer }
        | Error::AuthenticationFailed { operation, answer }
        | Error::AccessDenied {
            operation, answer, ..
        }
        | Error::RegistryUnavailable {
            operation, answer, ..
        } if answer.is_web_page() => Some(operation),
        _ => None,
    }
}
