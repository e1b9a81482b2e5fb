//! One HTTP exchange: time limits, the debug log, and what a failure without an answer means.

use std::{error::Error as StdError, future::Future, io, pin::pin, time::Duration};

use http::StatusCode;
use reqwest::{Request, Response};
use rustls::{AlertDescription, CertificateError};
use tokio::time::Instant;
use tracing::debug;
use url::Url;

use super::{
    body::IDLE_LIMIT,
    connect::{CONNECT_LIMIT, Client},
    error::{Cause, Error, Operation, Result},
    filter::Refused,
    proxy::Proxy,
    tls,
    upload::{Meter, Outgoing, Sent},
};

/// From the request's last byte to the answer's headers (registry rule P12).
const HEADER_LIMIT: Duration = Duration::from_secs(30);

/// Slowest way on which a manifest of some megabytes still arrives; a guess, nothing depends on its exact value.
const SLOWEST_BYTES_PER_SECOND: usize = 64 * 1024;

/// Sends a request with a body in memory or none and waits for the answer's headers.
pub(super) async fn exchange(
    client: &Client,
    request: Request,
    operation: &Operation,
) -> Result<Response> {
    let length = request
        .body()
        .and_then(reqwest::Body::as_bytes)
        .map_or(0, <[u8]>::len);
    let limit = HEADER_LIMIT + Duration::from_secs((length / SLOWEST_BYTES_PER_SECOND) as u64);
    let operation = &client.on_the_way(operation, request.url());
    logged(
        request,
        operation,
        async |request| match tokio::time::timeout(limit, client.execute(request, operation)).await
        {
            Ok(result) => result,
            Err(_) => Err(stalled(operation, false, limit)),
        },
    )
    .await
}

/// Sends a request whose body is a blob and tells its progress. There is no limit for the whole, only for standing still.
pub(super) async fn exchange_blob(
    client: &Client,
    request: Request,
    operation: &Operation,
    meter: Meter,
    bytes: &Outgoing<'_>,
) -> Result<Response> {
    let operation = &client.on_the_way(operation, request.url());
    logged(request, operation, async move |request| {
        watched(
            client.execute(request, operation),
            operation,
            meter,
            bytes.answer_limit(),
            |taken| bytes.advance(taken),
        )
        .await
    })
    .await
}

impl Client {
    /// An operation, with the proxy if its URL is asked through one: what fails on the way may have failed there.
    pub(super) fn on_the_way(&self, operation: &Operation, url: &Url) -> Operation {
        self.routes
            .hop(url)
            .map_or_else(|| operation.clone(), |hop| operation.through(hop.proxy()))
    }

    /// Sends a request. An answer is the registry's own, a proxy's refusal is an error.
    async fn execute(&self, request: Request, operation: &Operation) -> Result<Response> {
        let hop = self.routes.hop(request.url());
        if let Some(host) = request.url().host() {
            let checked = self.filter.check(&host).await;
            checked.map_err(|refused| refused.during(operation))?;
        }
        if let Some(host) = hop.and_then(|hop| hop.proxy().host()) {
            let checked = self.filter.check_proxy(&host);
            checked.map_err(|refused| refused.during(operation))?;
        }
        let Some(hop) = hop else {
            let result = self.http.execute(request).await;
            return result.map_err(|error| failure(operation, &error));
        };
        let refused = || Error::ProxyAuthenticationRequired {
            operation: operation.clone(),
        };
        if hop.is_login_refused() {
            return Err(refused());
        }
        let url = request.url().clone();
        let is_tunnelled = url.scheme() == "https";
        let result = match self.http.execute(request).await {
            // Through a tunnel it would be the registry's.
            Ok(response)
                if !is_tunnelled
                    && response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED =>
            {
                Err(refused())
            }
            Ok(response) => Ok(response),
            Err(error) if refused_address(&error).is_some() => Err(failure(operation, &error)),
            Err(error) => match Trouble::of(&error, is_tunnelled) {
                Trouble::LoginWanted => Err(refused()),
                Trouble::Refusal => Err(self.refusal(hop.proxy(), &url, operation).await),
                Trouble::Unreachable => Err(Error::ProxyUnreachable {
                    operation: operation.clone(),
                    source: Cause::of(&error),
                }),
                Trouble::None => Err(failure(operation, &error)),
            },
        };
        if let Err(Error::ProxyAuthenticationRequired { .. }) = result {
            hop.note_refused_login();
        }
        result
    }

    /// What it means that a proxy opens no connection to the host of `url`. The library keeps the proxy's answer to itself, so
    /// the proxy is asked once more.
    async fn refusal(&self, proxy: &Proxy, url: &Url, operation: &Operation) -> Error {
        let operation = operation.clone();
        match proxy.ask_for_tunnel(url, &self.filter).await {
            // Some proxies say so to a wrong login (tinyproxy), and no registry is asked yet that could.
            Some(StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED) => {
                Error::ProxyAuthenticationRequired { operation }
            }
            Some(status) if !status.is_success() => Error::ProxyRefused {
                operation,
                said: status.to_string(),
                is_denied: status.is_client_error(),
            },
            _ => Error::ProxyRefused {
                operation,
                said: "it opens no connection to there".to_owned(),
                is_denied: false,
            },
        }
    }
}

/// Drives an upload while looking at what is taken of it. The clock stands still while the connection would take more than
/// the source has: then it is not the registry that is slow.
pub(super) async fn watched(
    send: impl Future<Output = Result<Response>>,
    operation: &Operation,
    mut meter: Meter,
    answer_limit: Duration,
    taken: impl Fn(u64),
) -> Result<Response> {
    let mut send = pin!(send);
    let mut phase = Phase::Sending;
    let mut since = Instant::now();
    let mut unreadable = None;
    let mut note = |event: Sent, phase: &mut Phase| match event {
        Sent::Waiting => *phase = Phase::Waiting,
        Sent::Bytes(bytes) => {
            *phase = Phase::Sending;
            taken(bytes);
        }
        Sent::All => *phase = Phase::Sent,
        Sent::Failed(error) => unreadable = Some(error),
    };
    let result = loop {
        let limit = match phase {
            Phase::Sending => IDLE_LIMIT,
            Phase::Waiting => Duration::MAX,
            Phase::Sent => answer_limit,
        };
        tokio::select! {
            biased;
            Some(event) = meter.recv() => {
                note(event, &mut phase);
                since = Instant::now();
            }
            result = &mut send => break result,
            () = tokio::time::sleep(limit.saturating_sub(since.elapsed())) => {
                break Err(stalled(operation, phase == Phase::Sending, limit));
            }
        }
    };
    while let Ok(event) = meter.try_recv() {
        note(event, &mut phase);
    }
    match unreadable {
        Some(source) => Err(Error::SourceUnreadable {
            operation: operation.clone(),
            source,
        }),
        None => result,
    }
}

/// Who is waited for in an upload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The registry, to take what there is.
    Sending,
    /// The source, to have more.
    Waiting,
    /// The registry, to answer.
    Sent,
}

/// Runs an exchange and logs it: method, URL without query (it may be a signature), outcome, time.
async fn logged(
    request: Request,
    operation: &Operation,
    send: impl AsyncFnOnce(Request) -> Result<Response>,
) -> Result<Response> {
    let started = Instant::now();
    let method = request.method().clone();
    let url = without_query(request.url());
    let result = send(request).await;
    let milliseconds = started.elapsed().as_millis();
    match &result {
        Ok(response) => {
            debug!(%method, %url, status = response.status().as_u16(), milliseconds, "registry request");
        }
        Err(error) => {
            debug!(%method, %url, %error, %operation, milliseconds, "registry request failed");
        }
    }
    result
}

/// A URL that may be shown.
fn without_query(url: &Url) -> String {
    format!("{}{}", origin_text(url), url.path())
}

/// Scheme, host and port: what messages show of a URL that a registry chose.
pub(super) fn origin_text(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn stalled(operation: &Operation, sending: bool, limit: Duration) -> Error {
    Error::TransferStalled {
        operation: operation.clone(),
        sending,
        limit,
    }
}

/// What a failed exchange means: found by looking through the causes for the one that says it.
pub(super) fn failure(operation: &Operation, error: &reqwest::Error) -> Error {
    let operation = operation.clone();
    let source = Cause::of(error);
    if let Some(refused) = refused_address(error) {
        return refused.during(&operation);
    }
    if error.is_dns() {
        return Error::HostNotFound { operation, source };
    }
    if error.is_timeout() && error.is_connect() {
        return Error::ConnectionTimedOut {
            operation,
            limit: CONNECT_LIMIT,
        };
    }
    for cause in causes(error) {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return tls_failure(operation, tls, source);
        }
        let Some(io) = cause.downcast_ref::<io::Error>() else {
            continue;
        };
        match io.kind() {
            io::ErrorKind::ConnectionRefused => {
                return Error::ConnectionRefused { operation, source };
            }
            // The other side hung up in the middle of the handshake.
            io::ErrorKind::UnexpectedEof if error.is_connect() => {
                return Error::TlsHandshakeFailed { operation, source };
            }
            _ => {}
        }
    }
    Error::ConnectionFailed { operation, source }
}

/// Why the filter let no connection be made, if it was that.
fn refused_address(error: &reqwest::Error) -> Option<&Refused> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// What a proxy has to do with a failure. Before there is a connection to the registry, it is the proxy that failed.
enum Trouble {
    None,
    Unreachable,
    LoginWanted,
    Refusal,
}

impl Trouble {
    fn of(error: &reqwest::Error, is_tunnelled: bool) -> Self {
        // The library has no type for this outside its own crate, so its words are looked for; a test notices when they
        // change.
        let tunnel = causes(error).find_map(|cause| {
            let text = cause.to_string();
            text.strip_prefix("tunnel error: ").map(str::to_owned)
        });
        match tunnel.as_deref() {
            Some("proxy authorization required") => Self::LoginWanted,
            Some("unsuccessful") => Self::Refusal,
            None if is_tunnelled || !error.is_connect() || error.is_timeout() => Self::None,
            Some(_) | None => Self::Unreachable,
        }
    }
}

/// The error and everything below it. `io::Error` does not name what it wraps as its source, so it is opened by hand.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error: &&'a (dyn StdError + 'static)| {
        error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .map(|inner| inner as &(dyn StdError + 'static))
            .or_else(|| error.source())
    })
}

/// What the TLS library's verdict means for the user.
fn tls_failure(operation: Operation, error: &rustls::Error, source: Cause) -> Error {
    match error {
        error if tls::is_authority_as_server(error) => Error::CertificateInvalid {
            operation,
            reason: "its certificate is signed by itself; give that certificate as CA certificate, or skip TLS verification",
            source,
        },
        rustls::Error::InvalidCertificate(problem) => Error::CertificateInvalid {
            operation,
            reason: certificate_problem(problem),
            source,
        },
        rustls::Error::InvalidMessage(_) => Error::NotTls { operation, source },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            // Its signature is not that of the authority whose name it bears.
            | AlertDescription::DecryptError
            | AlertDescription::AccessDenied,
        ) => Error::ClientCertificateRefused { operation, source },
        _ => Error::TlsHandshakeFailed { operation, source },
    }
}

/// What is wrong with a certificate, and what to do.
fn certificate_problem(problem: &CertificateError) -> &'static str {
    match problem {
        CertificateError::UnknownIssuer => {
            "its certificate is not signed by a trusted authority; give the registry's CA certificate, or skip TLS verification"
        }
        // Of two authorities with one name the trusted one was tried.
        CertificateError::BadSignature => {
            "its certificate is not signed by a trusted authority, but by another one of the same name; give the registry's CA \
             certificate, or skip TLS verification"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; renew it there, or skip TLS verification"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; check the clocks of both machines"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name; use the name it is for, or skip TLS verification"
        }
        CertificateError::Revoked => "its certificate is revoked; renew it there",
        _ => "its certificate is not acceptable; replace it there, or skip TLS verification",
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upload_may_take_for_ever_as_long_as_it_moves() {
        for (pieces, is_whole, expected) in [
            (0, false, 60),
            (100, false, 100 * 50 + 60),
            (100, true, 100 * 50 + 600),
        ] {
            let (sender, meter) = mpsc::unbounded_channel();
            let feed = async move {
                for _ in 0..pieces {
                    tokio::time::sleep(Duration::from_secs(50)).await;
                    sender.send(Sent::Bytes(1)).unwrap();
                }
                if is_whole {
                    sender.send(Sent::All).unwrap();
                }
                pending::<()>().await;
            };
            let started = Instant::now();
            let operation = Operation::new("upload");
            let limit = Duration::from_mins(10);
            let result = tokio::select! {
                result = watched(pending(), &operation, meter, limit, |_| ()) => result,
                () = feed => unreachable!("it never ends"),
            };
            assert!(
                matches!(result, Err(Error::TransferStalled { sending, .. }) if sending != is_whole)
            );
            assert_eq!(started.elapsed().as_secs(), expected);
        }
    }

    #[test]
    fn what_is_logged_of_a_url_has_no_query_and_no_user() {
        let url = "https://me:hunter2@r.example:5000/v2/x?signature=hunter2";
        assert_eq!(
            without_query(&url.parse().unwrap()),
            "https://r.example:5000/v2/x"
        );
    }
}
