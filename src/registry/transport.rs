//! From a call to its answer: attempts with pauses, the gate of a registry that wants to be left alone, login, redirects.
//! One function each, the outermost first.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Request, Response};
use tokio::time::Instant;
use url::Url;

use crate::error::handlers;

use super::{
    Quota, RegistryClient, Retry, address,
    answer::Answer,
    auth::{self, Authorization},
    body::{self, Capped},
    challenge::Challenge,
    error::{Error, Operation, Result},
    judge::{self, Subject},
    retry::LONGEST_WAIT,
    scope::Scope,
    upload::Outgoing,
    wire,
};

/// A registry redirects to its storage, the storage perhaps to another region; more is a loop.
const HOP_LIMIT: usize = 5;

/// Bare, with an old token, with a new one, with the new one a second later: no login takes more rounds.
const LOGIN_LIMIT: usize = 4;

/// One request to the registry, replayable as often as needed (registry rule G4).
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) subject: Subject,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) scope: Option<Scope>,
    pub(super) headers: HeaderMap,
    pub(super) payload: Payload<'a>,
    /// An answer that is no error, beyond those of success.
    pub(super) also_accepted: Option<StatusCode>,
}

/// The body of a request.
pub(super) enum Payload<'a> {
    /// None; `GET`, `HEAD`, `DELETE` and the start of an upload.
    Empty,
    /// A manifest.
    Document(Bytes),
    /// A blob, or a part of one.
    Blob(&'a Outgoing<'a>),
}

impl Payload<'_> {
    /// Whether bytes of a blob were sent, and all of them.
    fn is_sent(&self) -> bool {
        match self {
            Self::Empty | Self::Document(_) => false,
            Self::Blob(bytes) => bytes.length() > 0 && bytes.is_spent(),
        }
    }

    /// The same of a large body: one of less than this is in buffers before anybody has looked at it, and soon sent again.
    fn is_spent(&self) -> bool {
        const LARGE: u64 = 1024 * 1024;
        match self {
            Self::Empty | Self::Document(_) => false,
            Self::Blob(bytes) => bytes.length() >= LARGE && self.is_sent(),
        }
    }
}

impl Call<'_> {
    /// A call without body and without anything special.
    pub(super) fn new(
        operation: Operation,
        subject: Subject,
        method: Method,
        url: Url,
        scope: Scope,
    ) -> Self {
        Self {
            operation,
            subject,
            method,
            url,
            scope: Some(scope),
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            also_accepted: None,
        }
    }
}

impl RegistryClient {
    /// Tries until it works or until there is no more point in trying.
    pub(super) async fn with_retry<T, F>(
        &self,
        operation: &Operation,
        attempt: impl Fn() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut retry = self.retry();
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !self.pause_after(&mut retry, operation, &error).await {
                return Err(self.diagnosed(error).await);
            }
        }
    }

    /// Waits as long as the failure asks for and tells of it; `false` when there is to be no further attempt.
    pub(super) async fn pause_after(
        &self,
        retry: &mut Retry,
        operation: &Operation,
        error: &Error,
    ) -> bool {
        let Some(pause) = retry.next(error) else {
            return false;
        };
        self.output
            .retrying(operation.as_str(), &handlers::message(error), pause);
        tokio::time::sleep(pause).await;
        true
    }

    /// A call with retries, up to the answer's headers.
    pub(super) async fn send(&self, call: &Call<'_>) -> Result<Response> {
        self.with_retry(&call.operation, || self.attempt(call))
            .await
    }

    /// A call with retries whose answer is a document of limited size: a body that breaks is an attempt that failed.
    pub(super) async fn send_for_document(&self, call: &Call<'_>, limit: u64) -> Result<Document> {
        self.with_retry(&call.operation, || async {
            let response = self.attempt(call).await?;
            let status = response.status();
            let headers = response.headers().clone();
            let url = response.url().clone();
            match body::read_capped(response, limit, &call.operation).await? {
                Capped::Whole(bytes) => Ok(Document {
                    status,
                    headers,
                    url,
                    bytes,
                }),
                Capped::TooLarge if call.subject == Subject::Manifest => {
                    Err(Error::ManifestTooLarge {
                        operation: call.operation.clone(),
                        limit,
                    })
                }
                Capped::TooLarge => Err(Error::AnswerTooLarge {
                    operation: call.operation.clone(),
                    limit,
                }),
            }
        })
        .await
    }

    /// One attempt, unless the login was refused before: a mirror of a thousand images would otherwise repeat a wrong password
    /// a thousand times, and lock the account.
    pub(super) async fn attempt(&self, call: &Call<'_>) -> Result<Response> {
        if let Some(answer) = self.shared.refused_login() {
            return Err(Error::AuthenticationFailed {
                operation: call.operation.clone(),
                answer,
            });
        }
        let outcome = self.attempt_with_login(call).await;
        if let Err(Error::AuthenticationFailed { answer, .. }) = &outcome {
            self.shared.note_refused_login(answer);
        }
        outcome
    }

    /// One attempt: a success, an accepted answer, or the error that the answer is.
    pub(super) async fn attempt_with_login(&self, call: &Call<'_>) -> Result<Response> {
        self.pass_gates(call).await?;
        // Boxed: the layers below are deep enough for the compiler to lose count of their sizes.
        let response = Box::pin(self.logged_in(call)).await.inspect_err(|error| {
            // A token service that wants to be left alone is asked by nobody else with this login either.
            if let Some(pause) = error.retry_after() {
                self.shared.account.gate.close_for(pause);
            }
        })?;
        let status = response.status();
        if status.is_success() || call.also_accepted == Some(status) {
            self.shared.note_answer(&response);
            return Ok(response);
        }
        let is_own = self.is_own_origin(response.url());
        let retry_after = self.note_limits(&response);
        self.shared.note_answer(&response);
        let is_insufficient = Challenge::all(response.headers())
            .iter()
            .any(Challenge::is_insufficient_scope);
        let answer = Answer::read(response).await;
        if answer.code().is_some() {
            self.shared.note_registry();
        }
        // The login is good, it only does not reach that far: another one is needed, not another password (A10). And what
        // a storage thinks of its own signature says nothing about our login.
        let is_beside_login = (is_insufficient && !self.auth.is_anonymous()) || !is_own;
        if status == StatusCode::UNAUTHORIZED && is_beside_login {
            return Err(Error::AccessDenied {
                operation: call.operation.clone(),
                answer,
                permission: call.subject.permission(),
            });
        }
        Err(judge::judge(
            call.operation.clone(),
            call.subject,
            answer,
            retry_after,
            self.auth.is_anonymous(),
        ))
    }

    /// What a failed answer says about when to come back, for this request and for all others (registry rules R3, R15).
    fn note_limits(&self, response: &Response) -> Option<Duration> {
        let asked = judge::pause_of(response);
        let status = response.status().as_u16();
        if !matches!(status, 429 | 503) || !self.is_own_origin(response.url()) {
            return asked;
        }
        let quota = Quota::of(response.headers());
        let used_up = quota.filter(|quota| status == 429 && quota.is_used_up());
        let pause = asked.or_else(|| used_up.map(|quota| quota.pause()))?;
        // A quota is the account's, and so is a pause that outlasts every crowd: others may have an account that is welcome.
        if used_up.is_some() || (status == 429 && pause > LONGEST_WAIT) {
            self.shared.account.gate.close_for(pause);
        } else {
            self.shared.host.gate.close_for(pause);
        }
        Some(pause)
    }

    /// Waits until the registry may be asked again, if that is soon.
    async fn pass_gates(&self, call: &Call<'_>) -> Result<()> {
        let remaining = self.shared.reopened().await;
        if remaining.is_zero() {
            return Ok(());
        }
        Err(Error::TooManyRequests {
            operation: call.operation.clone(),
            answer: Answer::of_status(StatusCode::TOO_MANY_REQUESTS),
            retry_after: Some(remaining),
        })
    }

    /// Sends a call with our login, and once more with the next one when this one has ended (registry rule A20).
    async fn logged_in(&self, call: &Call<'_>) -> Result<Response> {
        let generation = self.auth.generation();
        let outcome = self.with_login(call).await;
        let is_refused = match &outcome {
            Ok(response) => {
                matches!(response.status().as_u16(), 401 | 403)
                    && self.is_own_origin(response.url())
            }
            Err(error) => matches!(
                error,
                Error::AuthenticationFailed { .. } | Error::AuthenticationRequired { .. }
            ),
        };
        if is_refused && !call.payload.is_spent() && self.auth.reread(generation).await {
            return self.with_login(call).await;
        }
        outcome
    }

    /// Sends a call with the best that our login gives, and again when a 401 or 403 says that there is something better.
    async fn with_login(&self, call: &Call<'_>) -> Result<Response> {
        let scope = call.scope.as_ref();
        let mut authorization = self.auth.beforehand(scope, &call.operation).await?;
        for _ in 1..LOGIN_LIMIT {
            let response = self.follow(call, &authorization).await?;
            if !self.is_own_origin(response.url()) {
                return Ok(response);
            }
            // Who asks for a login after the whole body would do so again: there is another way for such hosts, and the new
            // login is kept for it (registry rule A17). A small body tells only when its login was good a moment ago, as the
            // upload was opened with it.
            let is_late = call.payload.is_spent()
                || (call.payload.is_sent() && authorization.is_young_token());
            let better = match response.status() {
                StatusCode::UNAUTHORIZED => {
                    let challenges = self.challenges(&response).await;
                    self.auth
                        .answer(&challenges, scope, authorization, &call.operation)
                        .await?
                }
                StatusCode::FORBIDDEN => self.auth.renew(&authorization, &call.operation).await?,
                _ => return Ok(response),
            };
            match better {
                Some(_) if is_late => return Ok(response),
                Some(better) => authorization = better,
                None => return Ok(response),
            }
        }
        self.follow(call, &authorization).await
    }

    /// The challenges of a 401. Some registries forget them on everything but the root of the API (registry rule A1).
    async fn challenges(&self, response: &Response) -> Vec<Challenge> {
        let challenges = Challenge::all(response.headers());
        let has_header = response.headers().contains_key(header::WWW_AUTHENTICATE);
        if has_header || !challenges.is_empty() {
            return challenges;
        }
        match self.ping().await {
            Ok(root) => Challenge::all(root.headers()),
            Err(_) => challenges,
        }
    }

    /// The root of the API, asked without login.
    pub(super) async fn ping(&self) -> Result<Response> {
        let operation = Operation::new(format!("reach {}", self.address));
        let request = Request::new(Method::GET, self.shared.base.clone());
        wire::exchange(&self.client, request, &operation).await
    }

    /// Sends a call to somewhere that is not the registry's: without login, and what it answers is not the registry's word.
    pub(super) async fn attempt_elsewhere(&self, call: &Call<'_>) -> Result<Response> {
        let response = self.follow(call, &Authorization::nothing()).await?;
        let status = response.status();
        if status.is_success() || call.also_accepted == Some(status) {
            return Ok(response);
        }
        let retry_after = judge::pause_of(&response);
        let answer = Answer::read(response).await;
        let operation = call.operation.clone();
        if status == StatusCode::UNAUTHORIZED {
            return Err(Error::AccessDenied {
                operation,
                answer,
                permission: call.subject.permission(),
            });
        }
        Err(judge::judge(
            operation,
            call.subject,
            answer,
            retry_after,
            true,
        ))
    }

    /// Sends a call where it is redirected to. The login goes to the registry's own origin only, method and body stay
    /// (registry rules R6, R10).
    async fn follow(&self, call: &Call<'_>, authorization: &Authorization) -> Result<Response> {
        let mut url = call.url.clone();
        for _ in 0..=HOP_LIMIT {
            let header = authorization.header().filter(|_| self.is_own_origin(&url));
            let response = self.exchange(call, url.clone(), header).await?;
            let next = match Redirect::of(&response) {
                Redirect::None => return Ok(response),
                Redirect::To(next) => next,
                Redirect::Unreadable => {
                    return Err(Error::RedirectRefused {
                        operation: call.operation.clone(),
                        target: "nowhere".to_owned(),
                        reason: "its Location is not a URL",
                    });
                }
            };
            if let Some(reason) = address::refusal(&url, &next) {
                return Err(Error::RedirectRefused {
                    operation: call.operation.clone(),
                    target: wire::origin_text(&next),
                    reason,
                });
            }
            url = next;
        }
        Err(Error::RedirectRefused {
            operation: call.operation.clone(),
            target: wire::origin_text(&url),
            reason: "there are too many redirects in a row",
        })
    }

    /// One exchange of a call; what the registry says beside its answer is taken in.
    async fn exchange(
        &self,
        call: &Call<'_>,
        url: Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response> {
        let asked = Instant::now();
        let response = self.send_once(call, url, authorization).await?;
        if self.is_own_origin(response.url()) {
            self.shared.host.downloads.answered(asked.elapsed());
            self.shared.account.note(response.headers());
            for text in self.shared.host.notices.news(response.headers()) {
                self.output
                    .warning(format!("{} says: {text}", self.address));
            }
        }
        Ok(response)
    }

    async fn send_once(
        &self,
        call: &Call<'_>,
        url: Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response> {
        let mut request = Request::new(call.method.clone(), url);
        *request.headers_mut() = call.headers.clone();
        auth::apply(&mut request, authorization);
        // Bytes that a proxy packs on the way are other bytes (registry rule D2).
        request.headers_mut().insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        match &call.payload {
            Payload::Empty => {
                if matches!(call.method, Method::POST | Method::PUT) {
                    set_length(&mut request, 0);
                }
                wire::exchange(&self.client, request, &call.operation).await
            }
            Payload::Document(bytes) => {
                *request.body_mut() = Some(bytes.clone().into());
                wire::exchange(&self.client, request, &call.operation).await
            }
            Payload::Blob(bytes) => {
                let (body, meter) = bytes.body();
                set_length(&mut request, bytes.length());
                *request.body_mut() = Some(body);
                wire::exchange_blob(&self.client, request, &call.operation, meter, bytes).await
            }
        }
    }

    /// Whether a URL is the registry's own: scheme, host and port, written or not (R8).
    pub(super) fn is_own_origin(&self, url: &Url) -> bool {
        url.origin() == self.shared.base.origin()
    }
}

/// An answer that was read whole.
pub(super) struct Document {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Where it came from in the end.
    pub(super) url: Url,
    pub(super) bytes: Bytes,
}

/// Where an answer says to go on.
enum Redirect {
    None,
    To(Url),
    Unreadable,
}

impl Redirect {
    fn of(response: &Response) -> Self {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Self::None;
        }
        let Some(location) = response.headers().get(header::LOCATION) else {
            return Self::None;
        };
        location
            .to_str()
            .ok()
            .and_then(|location| response.url().join(location).ok())
            .map_or(Self::Unreadable, Self::To)
    }
}

fn set_length(request: &mut Request, length: u64) {
    request
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
}
