//! What is behind an address that answers oddly, or not at all. Asked only when something has failed already, and never
//! again once a registry was seen to answer there.

use std::time::Duration;

use http::Method;
use reqwest::Request;

use super::{
    Answer, RegistryClient,
    challenge::Challenge,
    error::{Error, Operation},
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
        if self.shared.endpoint.is_plain_http() && self.speaks_tls().await {
            return Error::TlsRequired { operation };
        }
        let Ok(root) = self.ping().await else {
            return error;
        };
        self.shared.note_answer(&root);
        // A registry asks for a login or says that all is well, and never with a page.
        let asks_for_login = root.status() == 401 && !Challenge::all(root.headers()).is_empty();
        let answer = Answer::read(root).await;
        let is_well = answer.status().is_success() && !answer.is_web_page();
        if asks_for_login || is_well || answer.status().is_server_error() {
            return error;
        }
        Error::NotARegistry { operation, answer }
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
        } if answer.is_web_page() => Some(operation),
        _ => None,
    }
}
