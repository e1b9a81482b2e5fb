//! One request on its way: what it is for, what goes wrong with it, who answers it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{HeaderMap, Method, Request};
use serde_json::json;

use super::super::web::{Answer, HangUp};
use super::content::Content;
use super::fault::{Fault, RetryAfter, Step, StorageTrouble, TokenForm};
use super::log::{EndOnDrop, Entry, Seen};
use super::reply::{Flow, Reply};
use super::rule::{Faults, Situation, fault_value};
use super::server::Connection;
use super::{State, auth, lock};

/// What reading a request can end with.
pub(super) type Taken<T> = std::result::Result<T, HangUp>;

/// Where [`Fault::Post307`] leads, to be sent back as it is.
pub(super) const MOVED: &str = "/moved%2Fhere";

/// One request on its way through the registry.
pub(super) struct Call<'a> {
    pub(super) state: &'a State,
    pub(super) faults: Faults,
    pub(super) step: Step,
    pub(super) repository: String,
    /// Digest, tag or upload.
    pub(super) object: String,
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) entry: Entry,
}

impl State {
    pub(super) async fn handle(
        &self,
        request: Request<Incoming>,
        connection: Connection,
    ) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let (step, repository, object) = route(&head.method, &path, &query);
        let entry = self.log.add(Seen {
            step,
            repository: repository.clone(),
            method: head.method.clone(),
            path: path.clone(),
            query: query.clone(),
            headers: head.headers.clone(),
            body: Vec::new(),
            body_bytes: 0,
            connection: connection.number,
            status: None,
            answer_bytes: 0,
            started: Instant::now(),
            ended: None,
        });
        // Covers hanging up, and a client that goes away while it waits.
        let end = EndOnDrop(entry.clone());
        let situation = Situation {
            step,
            repository: &repository,
            object: &object,
            length: length_of(&head.headers).unwrap_or(0),
            is_reused: connection.is_reused,
        };
        let faults = Faults::of(&mut lock(&self.rules), &situation);
        let call = Call {
            state: self,
            faults,
            step,
            repository,
            object,
            method: head.method,
            path,
            query,
            headers: head.headers,
            entry,
        };
        let transfer = matches!(
            step,
            Step::BlobGet | Step::Storage | Step::Put | Step::Patch
        )
        .then(|| Transfers::enter(&self.transfers));
        let reply = call.reply(body, transfer.as_ref()).await?;
        let flow = Flow::of(&call.faults, &reply);
        reply.render(call.method == Method::HEAD, flow, end)
    }
}

/// Counts the transfers under way.
struct Transfers<'a> {
    count: &'a AtomicUsize,
    running: usize,
}

impl<'a> Transfers<'a> {
    fn enter(count: &'a AtomicUsize) -> Self {
        let running = count.fetch_add(1, Ordering::SeqCst) + 1;
        Self { count, running }
    }
}

impl Drop for Transfers<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Call<'_> {
    /// What is answered, faults included.
    async fn reply(&self, body: Incoming, transfer: Option<&Transfers<'_>>) -> Taken<Reply> {
        let has = |is: fn(&Fault) -> bool| self.faults.has(is);
        if let Some(pause) = fault_value!(self.faults, Delay) {
            tokio::time::sleep(pause).await;
        }
        if has(|fault| matches!(fault, Fault::Reset | Fault::StaleConn)) {
            return Err(HangUp);
        }
        if has(|fault| matches!(fault, Fault::NoHeader)) {
            std::future::pending::<()>().await;
        }
        let mut reply = self.unshaped_reply(body, transfer).await?;
        self.shape(&mut reply);
        Ok(reply)
    }

    async fn unshaped_reply(
        &self,
        body: Incoming,
        transfer: Option<&Transfers<'_>>,
    ) -> Taken<Reply> {
        let length = length_of(&self.headers);
        if let Some(limit) = fault_value!(self.faults, BodyLimit)
            && length.is_some_and(|length| length > limit)
        {
            let page = Content::new("<html><h1>413 Request Entity Too Large</h1></html>");
            self.drain_behind(body);
            let reply = Reply::new(413).header("content-type", "text/html");
            return Ok(reply.content(page));
        }
        let is_throttled = fault_value!(self.faults, ThrottleAbove)
            .is_some_and(|most| transfer.is_some_and(|transfer| transfer.running > most));
        let has_body = matches!(self.step, Step::Patch | Step::Put | Step::UploadStart);
        let misses_length = has_body
            && length.is_none()
            && self
                .faults
                .has(|fault| matches!(fault, Fault::StrictLength));
        let early = if is_throttled {
            Some(Reply::error(429, "TOOMANYREQUESTS", "too many at once"))
        } else if misses_length {
            Some(Reply::error(
                411,
                "SIZE_INVALID",
                "a Content-Length is needed",
            ))
        } else {
            self.failure().or_else(|| self.refused())
        };
        if let Some(reply) = early {
            self.read(body, |_| ()).await?;
            return Ok(reply);
        }
        self.dispatch(body).await
    }

    async fn dispatch(&self, body: Incoming) -> Taken<Reply> {
        let reply = match self.step {
            Step::Ping => Reply::json(200, &json!({})),
            Step::Token => {
                let body = self.read_all(body).await?;
                return Ok(self.token(&body.to_bytes()));
            }
            Step::ManifestHead | Step::ManifestGet => self.get_manifest(),
            Step::ManifestPut => {
                let body = self.read_all(body).await?;
                return Ok(self.put_manifest(body.to_bytes()));
            }
            Step::ManifestDelete => self.delete_manifest(),
            Step::BlobHead | Step::BlobGet => self.get_blob(),
            Step::Storage => self.get_stored(),
            Step::BlobDelete => self.delete_blob(),
            Step::UploadStart => return self.start_upload(body).await,
            Step::Mount => self.mount(),
            Step::Patch => return self.patch(body).await,
            Step::Put => return self.commit(body).await,
            Step::UploadStatus => self.upload_status(),
            Step::Cancel => self.cancel(),
            Step::Tags => self.tags(),
            Step::Referrers => self.referrers(),
            Step::Catalog => self.catalog(),
            Step::Other => Reply::error(404, "UNSUPPORTED", "there is nothing here"),
        };
        self.read(body, |_| ()).await?;
        Ok(reply)
    }

    /// A failure that does not look at the request.
    fn failure(&self) -> Option<Reply> {
        self.faults.find(|fault| match fault {
            Fault::Status(status) => Some(Reply::error(*status, "UNKNOWN", "told to fail")),
            Fault::Refuse(status, code, message) => Some(Reply::error(*status, code, message)),
            Fault::RetryAfter(status, after) => {
                let value = match after {
                    RetryAfter::Seconds(seconds) => seconds.to_string(),
                    RetryAfter::DateIn(seconds) => auth::http_date(*seconds),
                    RetryAfter::EpochIn(seconds) => auth::epoch(*seconds).to_string(),
                };
                let reply = Reply::error(*status, "TOOMANYREQUESTS", "slow down");
                Some(reply.header("retry-after", value))
            }
            Fault::Storage(StorageTrouble::Full) => {
                Some(Reply::error(507, "UNKNOWN", "Insufficient Storage"))
            }
            Fault::Storage(StorageTrouble::Driver) => Some(Reply::error_with(
                500,
                "UNKNOWN",
                "unknown error",
                &json!({"DriverName": "filesystem", "Enclosed": {"Op": "mkdir", "Err": 28}}),
            )),
            Fault::Storage(StorageTrouble::Quota) => Some(Reply::error(
                403,
                "DENIED",
                "adding this artifact will exceed the configured quota",
            )),
            _ => None,
        })
    }

    /// What faults do to any answer.
    fn shape(&self, reply: &mut Reply) {
        if let Some(status) = fault_value!(self.faults, Any2xx)
            && matches!(self.step, Step::Patch | Step::Put | Step::ManifestPut)
            && (200..300).contains(&reply.status)
        {
            reply.status = status;
            if status == 204 {
                reply.range = 0..0;
            }
        }
        if let Some(body) = fault_value!(self.faults, ErrBody)
            && reply.status >= 400
        {
            reply.disguise(body);
        }
        if let Some(text) = fault_value!(self.faults, Warning) {
            reply.set_header("warning", &format!(r#"299 - "{text}""#));
        }
        if self.faults.has(|fault| matches!(fault, Fault::Legacy)) {
            reply.headers.retain(|(name, _)| !name.starts_with("oci-"));
        }
        if self
            .faults
            .has(|fault| matches!(fault, Fault::LyingHeaders))
        {
            self.lie(reply);
        }
        let is_endless_token = self.step == Step::Token
            && fault_value!(self.faults, Token) == Some(TokenForm::Endless);
        reply.closes |= self.faults.has(|fault| matches!(fault, Fault::Goaway));
        reply.is_chunked |= is_endless_token
            || self
                .faults
                .has(|fault| matches!(fault, Fault::Endless | Fault::Unended));
    }

    fn lie(&self, reply: &mut Reply) {
        let other = Content::new("another content").digest();
        for (name, value) in &mut reply.headers {
            match name.as_str() {
                "docker-content-digest" | "etag" => value.clone_from(&other),
                "range" => "0-3".clone_into(value),
                _ => {}
            }
        }
        if self.step == Step::BlobHead && reply.status == 200 {
            reply.set_header("content-length", "12");
        }
    }

    /// Reads the request's body piece by piece. An error is a client that went away.
    pub(super) async fn read(&self, mut body: Incoming, mut take: impl FnMut(Bytes)) -> Taken<()> {
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(|_| HangUp)?.into_data() {
                self.entry.received(&data);
                take(data);
            }
        }
        Ok(())
    }

    pub(super) async fn read_all(&self, body: Incoming) -> Taken<Content> {
        let mut pieces = Vec::new();
        self.read(body, |piece| pieces.push(piece)).await?;
        Ok(Content::of_pieces(pieces))
    }

    /// Reads what is still coming while the answer is on its way, as careful servers do: otherwise the connection's end would
    /// tear the answer away.
    fn drain_behind(&self, mut body: Incoming) {
        let entry = self.entry.clone();
        tokio::spawn(async move {
            let drain = async {
                while let Some(Ok(frame)) = body.frame().await {
                    if let Ok(data) = frame.into_data() {
                        entry.received(&data);
                    }
                }
            };
            drop(tokio::time::timeout(Duration::from_secs(2), drain).await);
        });
    }

    pub(super) fn seen_header(&self, name: &str) -> Option<String> {
        let value = self.headers.get(name)?.to_str().ok()?;
        Some(value.to_owned())
    }

    /// A value of the query, decoded.
    pub(super) fn query_value(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// Scheme, host and port as the client wrote them.
    pub(super) fn own_url(&self) -> String {
        let scheme = if self.state.is_tls { "https" } else { "http" };
        let host = self.seen_header("host").unwrap_or_default();
        format!("{scheme}://{host}")
    }
}

fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get("content-length")?.to_str().ok()?.parse().ok()
}

/// Step, repository and object of a request. The path stays as it was written.
fn route(method: &Method, path: &str, query: &str) -> (Step, String, String) {
    let path = path.strip_prefix(MOVED).unwrap_or(path);
    let plain = |step| (step, String::new(), String::new());
    if let Some(digest) = path.strip_prefix("/storage/") {
        return (Step::Storage, String::new(), digest.to_owned());
    }
    let rest = match path {
        "/token" => return plain(Step::Token),
        "/v2" | "/v2/" => return plain(Step::Ping),
        "/v2/_catalog" => return plain(Step::Catalog),
        path => path.strip_prefix("/v2/").unwrap_or_default(),
    };
    let has = |name: &str| query.split('&').any(|pair| pair.starts_with(name));
    let is = |one: Method| *method == one;
    let known = |separator: &str| {
        let (repository, object) = rest.rsplit_once(separator)?;
        Some((repository.to_owned(), object.to_owned()))
    };
    if let Some((repository, upload)) = known("/blobs/uploads/") {
        let step = match upload.as_str() {
            "" if is(Method::POST) && has("mount=") => Step::Mount,
            "" if is(Method::POST) => Step::UploadStart,
            "" => Step::Other,
            _ if is(Method::PATCH) => Step::Patch,
            _ if is(Method::PUT) => Step::Put,
            _ if is(Method::GET) => Step::UploadStatus,
            _ if is(Method::DELETE) => Step::Cancel,
            _ => Step::Other,
        };
        return (step, repository, upload);
    }
    let (step, (repository, object)) = if let Some(found) = known("/manifests/") {
        let step = match *method {
            Method::HEAD => Step::ManifestHead,
            Method::GET => Step::ManifestGet,
            Method::PUT => Step::ManifestPut,
            Method::DELETE => Step::ManifestDelete,
            _ => Step::Other,
        };
        (step, found)
    } else if let Some(found) = known("/blobs/") {
        let step = match *method {
            Method::HEAD => Step::BlobHead,
            Method::GET => Step::BlobGet,
            Method::DELETE => Step::BlobDelete,
            _ => Step::Other,
        };
        (step, found)
    } else if let Some(found) = known("/referrers/") {
        (Step::Referrers, found)
    } else if let Some((repository, "list")) = rest.rsplit_once("/tags/") {
        (Step::Tags, (repository.to_owned(), String::new()))
    } else {
        return plain(Step::Other);
    };
    (step, repository, object)
}
