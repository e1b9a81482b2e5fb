//! A recording proxy before a registry. It notes every request with its times, adds a Bearer login where asked to, and
//! breaks what a test tells it to break: faults are data ([`Rule`]), so a test reads as the list of what goes wrong.
//!
//! Bodies are streamed in both directions, never held.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, LOCATION, TRANSFER_ENCODING,
};
use hyper::{Method, Request, Response};

pub use super::faults::{Action, Rule};
use super::faults::{Shape, faults_of};
use super::registry::{Access, Registry};
use super::shaped_body::Shaped;
use super::web::{Answer, HangUp, Server, answer};
use super::{Context, Result};

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    server: Server,
    state: Arc<State>,
}

/// How a gateway shall behave.
#[derive(Debug, Clone)]
pub struct GatewayBuilder {
    address: Ipv4Addr,
    upstream: String,
    upstream_ca: Option<String>,
    bearer: Option<Bearer>,
    relative_locations: bool,
    rules: Vec<Rule>,
}

/// A Bearer login of the gateway's own, with a token endpoint at `/token`.
#[derive(Debug, Clone)]
pub struct Bearer {
    uses_per_token: usize,
    credentials: Option<(String, String)>,
}

/// One request, as it came from the client and as it was answered.
#[derive(Debug, Clone)]
pub struct Exchange {
    pub method: Method,
    pub path: String,
    pub query: Option<String>,
    pub headers: HeaderMap,
    /// Empty while there is no answer, or when the gateway hung up.
    pub status: Option<u16>,
    pub started: Instant,
    /// When the answer's body was through, or the connection gone; empty before that.
    pub ended: Option<Instant>,
    pub request_bytes: u64,
    pub answer_bytes: u64,
}

impl Gateway {
    /// A gateway before a registry.
    pub fn before(registry: &Registry) -> GatewayBuilder {
        let mut builder = Self::before_url(&registry.url());
        builder.upstream_ca = registry.ca_pem().map(str::to_owned);
        builder
    }

    /// A gateway before anything else that speaks http, such as another gateway; the URL is without a path.
    pub fn before_url(upstream: &str) -> GatewayBuilder {
        GatewayBuilder {
            address: Ipv4Addr::LOCALHOST,
            upstream: upstream.to_owned(),
            upstream_ca: None,
            bearer: None,
            relative_locations: false,
            rules: Vec::new(),
        }
    }

    /// `127.0.0.1:PORT`, or where it was told to listen.
    pub fn address(&self) -> String {
        self.server.address().to_string()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// How skopeo gets at the registry through the gateway.
    pub fn access(&self, credentials: Option<(String, String)>) -> Access {
        Access {
            address: self.address(),
            certificates: None,
            credentials,
        }
    }

    /// Adds a fault while the gateway runs.
    pub fn add_rule(&self, rule: Rule) {
        lock(&self.state.rules).push(rule);
    }

    /// Ends all faults.
    pub fn clear_rules(&self) {
        lock(&self.state.rules).clear();
    }

    /// Everything since the start or the last [`Gateway::forget`], in the order of arrival.
    pub fn exchanges(&self) -> Vec<Exchange> {
        let entries: Vec<Entry> = lock(&self.state.log).clone();
        entries.iter().map(|entry| lock(entry).clone()).collect()
    }

    /// Empties the log.
    pub fn forget(&self) {
        lock(&self.state.log).clear();
    }

    /// How many requests had this method and a path that contains `part`.
    pub fn count(&self, method: &Method, part: &str) -> usize {
        self.exchanges()
            .iter()
            .filter(|exchange| exchange.method == *method && exchange.path.contains(part))
            .count()
    }

    /// How many of the requests that pass the filter were under way at one moment.
    pub fn max_overlap(&self, filter: impl Fn(&Exchange) -> bool) -> usize {
        max_overlap(&self.exchanges(), filter)
    }

    /// The bytes of all answers' bodies that pass the filter.
    pub fn answer_bytes(&self, filter: impl Fn(&Exchange) -> bool) -> u64 {
        self.exchanges()
            .iter()
            .filter(|exchange| filter(exchange))
            .map(|exchange| exchange.answer_bytes)
            .sum()
    }
}

/// The sweep over starts and ends. An exchange that has not ended overlaps with everything after its start.
pub fn max_overlap(exchanges: &[Exchange], filter: impl Fn(&Exchange) -> bool) -> usize {
    let chosen: Vec<&Exchange> = exchanges
        .iter()
        .filter(|exchange| filter(exchange))
        .collect();
    let running_at = |moment: Instant| {
        chosen
            .iter()
            .filter(|exchange| {
                exchange.started <= moment && exchange.ended.is_none_or(|ended| ended > moment)
            })
            .count()
    };
    // The maximum is reached at some start.
    chosen
        .iter()
        .map(|exchange| running_at(exchange.started))
        .max()
        .unwrap_or(0)
}

impl Exchange {
    /// A header's first value, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

impl Bearer {
    /// Each token is accepted this many times, then the answer is 401: a token that expires in the middle of the work.
    pub fn uses_per_token(uses: usize) -> Self {
        Self {
            uses_per_token: uses,
            credentials: None,
        }
    }

    /// Tokens are given against this login only.
    #[must_use]
    pub fn credentials(mut self, user: &str, password: &str) -> Self {
        self.credentials = Some((user.to_owned(), password.to_owned()));
        self
    }
}

impl GatewayBuilder {
    /// Listens at this address of the machine instead of loopback, where pods cannot reach it.
    #[must_use]
    pub fn at(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    #[must_use]
    pub fn bearer(mut self, bearer: Bearer) -> Self {
        self.bearer = Some(bearer);
        self
    }

    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Every request takes this much longer: a registry far away.
    #[must_use]
    pub fn latency(self, delay: Duration) -> Self {
        self.rule(Rule::on_any("", Action::Delay(delay)))
    }

    /// `Location` headers without scheme and host, instead of absolute ones that name the gateway.
    #[must_use]
    pub fn relative_locations(mut self) -> Self {
        self.relative_locations = true;
        self
    }

    pub fn start(self) -> Result<Gateway> {
        let client = upstream_client(self.upstream_ca.as_deref())?;
        let state = Arc::new(State {
            rules: Mutex::new(self.rules),
            log: Mutex::new(Vec::new()),
            tokens: Mutex::new(HashMap::new()),
            upstream: self.upstream,
            bearer: self.bearer,
            relative_locations: self.relative_locations,
            client,
        });
        let shared = Arc::clone(&state);
        let server = Server::start_at(self.address, move |request| {
            let state = Arc::clone(&shared);
            async move { state.handle(request).await }
        })?;
        Ok(Gateway { server, state })
    }
}

/// A client that changes nothing: redirects are the caller's to follow, and no proxy of the environment is used.
fn upstream_client(ca_pem: Option<&str>) -> Result<reqwest::Client> {
    super::install_crypto_provider();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only();
    if let Some(pem) = ca_pem {
        let certificate = reqwest::Certificate::from_pem(pem.as_bytes())
            .context("could not read a CA certificate")?;
        builder = builder.tls_certs_only([certificate]);
    }
    builder
        .build()
        .context("could not make the gateway's client")
}

type Entry = Arc<Mutex<Exchange>>;

#[derive(Debug)]
struct State {
    upstream: String,
    bearer: Option<Bearer>,
    relative_locations: bool,
    client: reqwest::Client,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Entry>>,
    /// Each token with the uses it has left.
    tokens: Mutex<HashMap<String, usize>>,
}

impl State {
    async fn handle(&self, request: Request<Incoming>) -> Answer {
        let entry = self.record(&request);
        // Covers hanging up, and a client that goes away while it waits.
        let end = EndOnDrop(Arc::clone(&entry));
        let host = request
            .headers()
            .get(HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let faults = faults_of(&request, &mut lock(&self.rules));
        if !faults.delay.is_zero() {
            tokio::time::sleep(faults.delay).await;
        }
        let answer = match faults.ending {
            Some(Action::HangUp) => return Err(HangUp),
            Some(Action::Respond {
                status,
                headers,
                body,
            }) => {
                discard(request.into_body(), &entry).await?;
                let headers: Vec<_> = headers
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str()))
                    .collect();
                answer(status, &headers, body)?
            }
            _ if self.bearer.is_some() && request.uri().path() == "/token" => {
                self.give_token(&request)?
            }
            _ if !self.admits(&request) => {
                let refusal = challenge(&request, &host)?;
                discard(request.into_body(), &entry).await?;
                refusal
            }
            _ => self.forward(request, &host, faults.request, &entry).await?,
        };
        lock(&entry).status = Some(answer.status().as_u16());
        let (head, body) = answer.into_parts();
        let shaped = Shaped::new(body, faults.answer, move |bytes| {
            end.count(bytes);
        });
        Ok(Response::from_parts(head, shaped.boxed_unsync()))
    }

    fn record(&self, request: &Request<Incoming>) -> Entry {
        let entry = Arc::new(Mutex::new(Exchange {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().map(str::to_owned),
            headers: request.headers().clone(),
            status: None,
            started: Instant::now(),
            ended: None,
            request_bytes: 0,
            answer_bytes: 0,
        }));
        lock(&self.log).push(Arc::clone(&entry));
        entry
    }

    /// Takes one use off the request's token, if a token is needed.
    fn admits(&self, request: &Request<Incoming>) -> bool {
        if self.bearer.is_none() {
            return true;
        }
        let header = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        let Some(token) = header.and_then(|value| value.strip_prefix("Bearer ")) else {
            return false;
        };
        match lock(&self.tokens).get_mut(token) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            Some(_) | None => false,
        }
    }

    fn give_token(&self, request: &Request<Incoming>) -> Answer {
        let Some(bearer) = &self.bearer else {
            return Err(HangUp);
        };
        let wanted = bearer.credentials.as_ref().map(|(user, password)| {
            format!(
                "Basic {}",
                BASE64_STANDARD.encode(format!("{user}:{password}"))
            )
        });
        let given = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if wanted.is_some() && wanted.as_deref() != given {
            return answer(401, &[], "wrong login");
        }
        let token = format!("{:032x}", fastrand::u128(..));
        lock(&self.tokens).insert(token.clone(), bearer.uses_per_token);
        let body = serde_json::json!({"token": token, "expires_in": 300}).to_string();
        answer(200, &[("content-type", "application/json")], body)
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        host: &str,
        shape: Shape,
        entry: &Entry,
    ) -> Answer {
        let (head, body) = request.into_parts();
        let target = head
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let mut headers = head.headers;
        // A GET must not grow a body on its way.
        let has_body =
            headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING);
        for name in [HOST, CONNECTION, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        if self.bearer.is_some() {
            // The gateway's tokens mean nothing to the registry.
            headers.remove(AUTHORIZATION);
        }
        let mut forwarded = self
            .client
            .request(head.method, format!("{}{target}", self.upstream))
            .headers(headers);
        if has_body {
            let body = body.map_err(|_| HangUp);
            let entry = Arc::clone(entry);
            let shaped = Shaped::new(body, shape, move |bytes| {
                lock(&entry).request_bytes += bytes;
            });
            forwarded = forwarded.body(reqwest::Body::wrap(shaped));
        }
        // The registry is gone, the client is, or a rule cut the request: in each case there is nobody to answer.
        let response = forwarded.send().await.map_err(|_| HangUp)?;
        let (mut head, body) = http::Response::from(response).into_parts();
        for name in [CONNECTION, TRANSFER_ENCODING] {
            head.headers.remove(name);
        }
        self.rewrite_location(&mut head.headers, host);
        Ok(Response::from_parts(
            head,
            body.map_err(|_| HangUp).boxed_unsync(),
        ))
    }

    /// Clients must stay at the gateway, whatever the registry thinks its own address is.
    fn rewrite_location(&self, headers: &mut HeaderMap, host: &str) {
        let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) else {
            return;
        };
        let path = location.strip_prefix(&self.upstream).unwrap_or(location);
        if !path.starts_with('/') {
            return;
        }
        let rewritten = if self.relative_locations {
            path.to_owned()
        } else {
            format!("http://{host}{path}")
        };
        if let Ok(value) = rewritten.parse() {
            headers.insert(LOCATION, value);
        }
    }
}

/// 401, naming the gateway's own token endpoint and the scope that the request needs.
fn challenge(request: &Request<Incoming>, host: &str) -> Answer {
    let path = request.uri().path();
    let repository = path.strip_prefix("/v2/").and_then(|rest| {
        ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
            .iter()
            .find_map(|part| rest.split_once(part))
            .map(|(name, _)| name)
    });
    let actions = if matches!(*request.method(), Method::GET | Method::HEAD) {
        "pull"
    } else {
        "pull,push"
    };
    let scope = repository.map_or_else(String::new, |name| {
        format!(",scope=\"repository:{name}:{actions}\"")
    });
    // Said only of a token that was good once.
    let error = if request.headers().contains_key(AUTHORIZATION) {
        ",error=\"invalid_token\""
    } else {
        ""
    };
    let header = format!("Bearer realm=\"http://{host}/token\",service=\"gateway\"{scope}{error}");
    let body = serde_json::json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]});
    answer(
        401,
        &[
            ("www-authenticate", &header),
            ("content-type", "application/json"),
        ],
        body.to_string(),
    )
}

/// Reads a body to its end: answering earlier would close the connection, and the client might never see the answer.
async fn discard(mut body: Incoming, entry: &Entry) -> std::result::Result<(), HangUp> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| HangUp)?;
        lock(entry).request_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts an answer's bytes, and notes the end of an exchange, also of one whose connection breaks.
struct EndOnDrop(Entry);

impl EndOnDrop {
    fn count(&self, bytes: u64) {
        lock(&self.0).answer_bytes += bytes;
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        lock(&self.0).ended.get_or_insert_with(Instant::now);
    }
}
