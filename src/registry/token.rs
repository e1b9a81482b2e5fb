//! Tokens: fetching one from a token service, and keeping it for as long as it lives.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode, header};
use reqwest::{Request, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::Instant;
use url::{Url, form_urlencoded};

use super::{
    answer::Answer,
    body::{self, Capped, SMALL_LIMIT},
    connect::Client,
    credential::{Credential, basic_header},
    error::{Error, Operation, Result},
    judge::{self, Subject},
    wire,
};

/// Life of a token that does not tell: what the specification says, and never less (registry rule A9).
const SHORTEST_LIFE: Duration = Duration::from_mins(1);

/// A token that says it lives longer is asked for anew all the same; registries' own limits are 12 h (ECR) and less.
const LONGEST_LIFE: Duration = Duration::from_hours(24);

/// So long before its end a token is no longer used, for the request has to arrive too (A15).
const MARGIN: Duration = Duration::from_secs(5);

/// Above so many tokens, dead ones are thrown away when a new one comes.
const SWEEP_AT: usize = 256;

/// Token services like to know who asks; the value means nothing.
const CLIENT_ID: &str = "docker-image-pusher";

/// What a token is for. The host is not part of it, because each client has a cache of its own (A14).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    /// Which of the client's logins it is for: two credentials never share a token.
    pub(super) login: u64,
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    /// In the order in which they are asked for: some registries read only the first (A12).
    pub(super) scopes: Vec<String>,
}

/// A token and its life on the monotonic clock; the dates inside a token are by the clock of its maker (A15).
#[derive(Clone)]
pub(super) struct Token {
    pub(super) value: SecretString,
    pub(super) received: Instant,
    expires: Instant,
    /// Tells a token from its successor.
    pub(super) generation: u64,
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Token")
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// The tokens of one client. Whoever needs a token that somebody else is already asking for waits for that one.
#[derive(Debug, Default)]
pub(super) struct TokenCache {
    slots: Mutex<HashMap<TokenKey, Slot>>,
    generations: AtomicU64,
}

/// A token as a service granted it.
pub(super) struct Grant {
    value: SecretString,
    life: Duration,
}

impl TokenCache {
    /// The token for `key`, and whether it was fetched just now. A token of the generation `rejected` is not used again.
    pub(super) async fn get(
        &self,
        key: &TokenKey,
        rejected: Option<u64>,
        fetch: impl Future<Output = Result<Grant>>,
    ) -> Result<(Token, bool)> {
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if let Some(token) = &*slot
            && token.expires > Instant::now()
            && rejected != Some(token.generation)
        {
            return Ok((token.clone(), false));
        }
        *slot = None;
        let grant = fetch.await?;
        let received = Instant::now();
        let token = Token {
            value: grant.value,
            received,
            expires: received + grant.life.clamp(SHORTEST_LIFE, LONGEST_LIFE) - MARGIN,
            generation: self.generations.fetch_add(1, Ordering::Relaxed),
        };
        *slot = Some(token.clone());
        Ok((token, true))
    }

    fn slot(&self, key: &TokenKey) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SWEEP_AT && !slots.contains_key(key) {
            let now = Instant::now();
            slots.retain(|_, slot| match slot.try_lock() {
                Ok(token) => token.as_ref().is_some_and(|token| token.expires > now),
                // Somebody is using it.
                Err(_) => true,
            });
        }
        Arc::clone(slots.entry(key.clone()).or_default())
    }
}

/// How a token is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `GET` with the parameters in the query and the password in the header.
    Query,
    /// `POST` of a form, as OAuth 2 has it.
    Form,
}

impl Way {
    const fn other(self) -> Self {
        match self {
            Self::Query => Self::Form,
            Self::Form => Self::Query,
        }
    }

    /// Whether a refusal may mean "not this way" rather than "not you". A form is refused with 405, 404 (GCR), 401
    /// (Artifactory) or 400 (ACR); a wrong password in the header is not sent twice (A7).
    const fn may_be_unsupported(self, status: StatusCode) -> bool {
        matches!(
            (self, status.as_u16()),
            (Self::Query, 404 | 405) | (Self::Form, 400 | 401 | 404 | 405)
        )
    }
}

/// Asks a token service for a token.
pub(super) async fn fetch(
    client: &Client,
    key: &TokenKey,
    credential: &Credential,
    operation: &Operation,
) -> Result<Grant> {
    let way = match credential {
        Credential::IdentityToken(_) => Way::Form,
        Credential::Anonymous | Credential::Basic { .. } | Credential::RegistryToken(_) => {
            Way::Query
        }
    };
    let operation = Operation::new(format!(
        "log in at {} to {operation}",
        wire::origin_text(&key.realm)
    ));
    let response = ask(client, way, key, credential, &operation).await?;
    if response.status().is_success() {
        return read_grant(response, &operation).await;
    }
    let status = response.status();
    let refusal = refused(response, credential, &operation).await;
    if matches!(credential, Credential::Anonymous) || !way.may_be_unsupported(status) {
        return Err(refusal);
    }
    let response = ask(client, way.other(), key, credential, &operation).await?;
    if response.status().is_success() {
        return read_grant(response, &operation).await;
    }
    Err(refusal)
}

async fn ask(
    client: &Client,
    way: Way,
    key: &TokenKey,
    credential: &Credential,
    operation: &Operation,
) -> Result<Response> {
    let request = match way {
        Way::Query => query_request(key, credential)?,
        Way::Form => form_request(key, credential),
    };
    wire::exchange(client, request, operation).await
}

/// `GET realm?service=&scope=&scope=&account=&client_id=`; never with `offline_token`, which breaks some services (A8).
fn query_request(key: &TokenKey, credential: &Credential) -> Result<Request> {
    let mut url = key.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &key.service {
            query.append_pair("service", service);
        }
        for scope in &key.scopes {
            query.append_pair("scope", scope);
        }
        if let Credential::Basic { username, .. } = credential {
            query.append_pair("account", username);
        }
        query.append_pair("client_id", CLIENT_ID);
    }
    let mut request = Request::new(Method::GET, url);
    if let Some(header) = basic_header(credential, &wire::origin_text(&key.realm))? {
        request.headers_mut().insert(header::AUTHORIZATION, header);
    }
    Ok(request)
}

/// `POST realm` with a form.
fn form_request(key: &TokenKey, credential: &Credential) -> Request {
    let mut form = form_urlencoded::Serializer::new(String::new());
    match credential {
        Credential::IdentityToken(token) => {
            form.append_pair("grant_type", "refresh_token");
            form.append_pair("refresh_token", token.expose_secret());
        }
        Credential::Basic { username, password } => {
            form.append_pair("grant_type", "password");
            form.append_pair("username", username);
            form.append_pair("password", password.expose_secret());
        }
        Credential::Anonymous | Credential::RegistryToken(_) => {}
    }
    if let Some(service) = &key.service {
        form.append_pair("service", service);
    }
    form.append_pair("client_id", CLIENT_ID);
    form.append_pair("access_type", "online");
    form.append_pair("scope", &key.scopes.join(" "));
    let mut request = Request::new(Method::POST, key.realm.clone());
    request.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/x-www-form-urlencoded"),
    );
    *request.body_mut() = Some(form.finish().into());
    request
}

/// What a refusal of the service means: a wrong login comes as 400, 401 or 403.
async fn refused(response: Response, credential: &Credential, operation: &Operation) -> Error {
    let retry_after = judge::pause_of(&response);
    let answer = Answer::read(response).await;
    let operation = operation.clone();
    let anonymous = matches!(credential, Credential::Anonymous);
    match answer.status().as_u16() {
        400 | 401 | 403 if anonymous => Error::AuthenticationRequired { operation, answer },
        400 | 401 | 403 => Error::AuthenticationFailed { operation, answer },
        _ => judge::judge(operation, Subject::Token, answer, retry_after, anonymous),
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// Reads the token, under either of its names.
async fn read_grant(response: Response, operation: &Operation) -> Result<Grant> {
    let status = response.status();
    let Capped::Whole(bytes) = body::read_capped(response, SMALL_LIMIT, operation).await? else {
        return Err(Error::AnswerTooLarge {
            operation: operation.clone(),
            limit: SMALL_LIMIT,
        });
    };
    let unexpected = |problem| Error::UnexpectedAnswer {
        operation: operation.clone(),
        answer: Answer::of_status(status),
        problem,
    };
    let answer: TokenAnswer =
        serde_json::from_slice(&bytes).map_err(|_| unexpected("it is not the JSON of a token"))?;
    let value = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or_else(|| unexpected("there is no token in it"))?;
    Ok(Grant {
        value: value.into(),
        life: life_of(&answer.expires_in),
    })
}

/// The life a service grants, which some write as a number and some as text.
fn life_of(value: &serde_json::Value) -> Duration {
    value
        .as_f64()
        .or_else(|| value.as_str()?.parse().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .unwrap_or(SHORTEST_LIFE)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use serde_json::json;

    use super::*;

    fn key(scope: &str) -> TokenKey {
        TokenKey {
            login: 0,
            realm: "https://auth.example/token".parse().unwrap(),
            service: None,
            scopes: vec![scope.to_owned()],
        }
    }

    fn grant(seconds: u64) -> Grant {
        Grant {
            value: "secret".to_owned().into(),
            life: Duration::from_secs(seconds),
        }
    }

    fn granted(seconds: u64) -> impl Future<Output = Result<Grant>> {
        std::future::ready(Ok(grant(seconds)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_used_until_shortly_before_its_end_and_at_least_nearly_a_minute() {
        for (life, usable) in [(300, 295), (1, 55), (0, 55)] {
            let cache = TokenCache::default();
            let first = cache.get(&key("a"), None, granted(life)).await.unwrap();
            assert!(first.1);
            tokio::time::advance(Duration::from_secs(usable - 1)).await;
            assert!(!cache.get(&key("a"), None, granted(life)).await.unwrap().1);
            tokio::time::advance(Duration::from_secs(2)).await;
            assert!(cache.get(&key("a"), None, granted(life)).await.unwrap().1);
        }
    }

    #[tokio::test]
    async fn a_rejected_token_is_replaced_once_for_all() {
        let cache = TokenCache::default();
        let (old, _) = cache.get(&key("a"), None, granted(300)).await.unwrap();
        let rejected = Some(old.generation);
        let (new, fetched) = cache.get(&key("a"), rejected, granted(300)).await.unwrap();
        assert!(fetched && new.generation != old.generation);
        let (same, fetched) = cache.get(&key("a"), rejected, granted(300)).await.unwrap();
        assert!(!fetched && same.generation == new.generation);
    }

    #[tokio::test]
    async fn tokens_for_different_scopes_are_different() {
        let cache = TokenCache::default();
        cache.get(&key("a"), None, granted(300)).await.unwrap();
        assert!(cache.get(&key("b"), None, granted(300)).await.unwrap().1);
    }

    #[tokio::test]
    async fn two_logins_never_share_a_token() {
        let cache = TokenCache::default();
        cache.get(&key("a"), None, granted(300)).await.unwrap();
        let other = TokenKey {
            login: 1,
            ..key("a")
        };
        assert!(cache.get(&other, None, granted(300)).await.unwrap().1);
    }

    #[tokio::test]
    async fn many_who_need_the_same_token_ask_once() {
        let cache = TokenCache::default();
        let asked = AtomicUsize::new(0);
        let key = key("a");
        let all = (0..20).map(|_| {
            cache.get(&key, None, async {
                asked.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                Ok(grant(300))
            })
        });
        for result in futures::future::join_all(all).await {
            result.unwrap();
        }
        assert_eq!(asked.into_inner(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn dead_tokens_do_not_pile_up() {
        let cache = TokenCache::default();
        for number in 0..SWEEP_AT {
            cache
                .get(&key(&number.to_string()), None, granted(60))
                .await
                .unwrap();
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        cache.get(&key("new"), None, granted(60)).await.unwrap();
        assert_eq!(cache.slots.lock().unwrap().len(), 1);
    }

    #[test]
    fn the_life_of_a_token_comes_in_several_spellings() {
        for (value, seconds) in [
            (json!(300), 300),
            (json!("300"), 300),
            (json!(300.5), 300),
            (json!(null), 60),
            (json!(-1), 60),
            (json!("soon"), 60),
            (json!(1e300), 60),
        ] {
            assert_eq!(life_of(&value).as_secs(), seconds, "{value}");
        }
    }

    #[test]
    fn no_debug_output_shows_a_token() {
        let token = Token {
            value: "hunter2".to_owned().into(),
            received: Instant::now(),
            expires: Instant::now(),
            generation: 0,
        };
        assert!(!format!("{token:?}").contains("hunter2"));
    }
}
