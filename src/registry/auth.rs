//! What goes along with each request as login, and what a 401 makes of it.
//!
//! Nothing is sent before it is asked for (registry rule A1): the first request of a host goes out bare, its 401 names the
//! way, and from then on the way is known. Credentials go to the registry itself and to the token service it names, and the
//! latter only after [`check_realm`] has looked at it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderValue, header::AUTHORIZATION};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::Instant;
use url::Url;

use crate::image::Digest;

use super::{
    address,
    challenge::Challenge,
    connect::Client,
    credential::{Credential, CredentialSource, basic_header},
    error::{Error, Operation, Result},
    scope::{Access, Scope, asks_for_more, merged_scopes},
    token::{self, Token, TokenCache, TokenKey},
    wire,
};

/// A token younger than this is not the reason of a 403: fetching another would give the same (registry rule R17).
const OLD_TOKEN: Duration = Duration::from_mins(1);

/// A source that had nothing new is not asked again before: each image of a mirror may be refused, and behind the source is
/// an API server or a program.
const REREAD_PAUSE: Duration = Duration::from_mins(1);

/// A token that is "not yet valid" becomes so when the registry's clock has caught up (A15; hub-feedback#647).
const CLOCK_PAUSE: Duration = Duration::from_secs(1);

/// The `Authorization` of one request and where it came from.
pub(super) struct Authorization {
    header: Option<HeaderValue>,
    kind: Kind,
}

enum Kind {
    Nothing,
    /// Nothing, because what was to be sent could not be had.
    Failed {
        key: Option<TokenKey>,
        error: Error,
    },
    Seed,
    RegistryToken,
    Basic,
    Token {
        key: TokenKey,
        token: Token,
        /// Fetched for this very request: another one would be no better.
        is_new: bool,
        /// Was given time to become valid already.
        has_waited: bool,
    },
}

impl Authorization {
    pub(super) const fn header(&self) -> Option<&HeaderValue> {
        self.header.as_ref()
    }

    pub(super) const fn nothing() -> Self {
        Self {
            header: None,
            kind: Kind::Nothing,
        }
    }

    /// Whether it is a token that cannot have died of age.
    pub(super) fn is_young_token(&self) -> bool {
        matches!(&self.kind, Kind::Token { token, .. } if token.received.elapsed() < OLD_TOKEN)
    }
}

/// The login at one registry. Clones share tokens and what is known; a seed belongs to the clone it was given to.
#[derive(Clone)]
pub(super) struct Auth {
    seed: Option<SecretString>,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    /// The root of the API: whose realm is allowed depends on it.
    base: Url,
    login: Mutex<CurrentLogin>,
    source: Option<Arc<dyn CredentialSource>>,
    /// When the source last had nothing new. Held while it is asked, so that many who are refused at once ask once.
    unchanged: tokio::sync::Mutex<Option<Instant>>,
    tokens: TokenCache,
    known: Mutex<Known>,
}

/// Who we are, as far as is known.
#[derive(Clone)]
struct CurrentLogin {
    credential: Credential,
    /// Tells it from the login before.
    generation: u64,
}

/// What the registry has told so far.
#[derive(Default)]
struct Known {
    /// The first challenge of the host, without scopes: mostly that of all its repositories, which saves them a 401 each.
    host: Option<Challenge>,
    /// Repositories whose challenge is another.
    repositories: HashMap<String, Challenge>,
    /// Repositories that were pushed to: one token for both directions saves a request for a token.
    pushed: HashSet<String>,
    /// Hashes of seeds that the registry did not want.
    refused_seeds: HashSet<Digest>,
}

impl fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Auth")
            .field("credential", &self.login().credential)
            .finish_non_exhaustive()
    }
}

impl Auth {
    pub(super) fn new(
        client: Client,
        base: Url,
        credential: Credential,
        source: Option<Arc<dyn CredentialSource>>,
    ) -> Self {
        let login = CurrentLogin {
            credential,
            generation: 0,
        };
        let shared = Shared {
            client,
            base,
            login: Mutex::new(login),
            source,
            unchanged: tokio::sync::Mutex::default(),
            tokens: TokenCache::default(),
            known: Mutex::default(),
        };
        Self {
            seed: None,
            shared: Arc::new(shared),
        }
    }

    /// The same login, with a token to begin with.
    pub(super) fn with_seed(&self, token: &str) -> Self {
        Self {
            seed: Some(token.to_owned().into()),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Whether the registry has no means to know us.
    pub(super) fn is_anonymous(&self) -> bool {
        self.login().credential.is_anonymous() && self.seed.is_none()
    }

    /// Which login is in use.
    pub(super) fn generation(&self) -> u64 {
        self.login().generation
    }

    /// Looks for a login after `refused` was refused: whether there is another one now (registry rule A20).
    pub(super) async fn reread(&self, refused: u64) -> bool {
        let shared = &self.shared;
        let Some(source) = &shared.source else {
            return false;
        };
        let mut unchanged = shared.unchanged.lock().await;
        if self.generation() != refused {
            return true;
        }
        if unchanged.is_some_and(|asked| asked.elapsed() < REREAD_PAUSE) {
            return false;
        }
        let found = source.reread().await;
        let mut login = shared.login.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Some(credential) if !credential.is_same(&login.credential) => {
                *login = CurrentLogin {
                    credential,
                    generation: refused + 1,
                };
                *unchanged = None;
                true
            }
            _ => {
                *unchanged = Some(Instant::now());
                false
            }
        }
    }

    fn login(&self) -> CurrentLogin {
        let login = self.shared.login.lock();
        login.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What can be sent along before the registry has asked.
    pub(super) async fn beforehand(
        &self,
        scope: Option<&Scope>,
        operation: &Operation,
    ) -> Result<Authorization> {
        if let Some(seed) = self.usable_seed() {
            return self.bearer(seed, Kind::Seed);
        }
        if let Credential::RegistryToken(token) = &self.login().credential {
            return self.bearer(token, Kind::RegistryToken);
        }
        let Some(scope) = scope else {
            return Ok(Authorization::nothing());
        };
        let (challenge, is_own) = {
            let known = self.known();
            match known.repositories.get(&scope.repository) {
                Some(own) => (Some(own.clone()), true),
                None => (known.host.clone(), false),
            }
        };
        let Some(challenge) = challenge else {
            return Ok(Authorization::nothing());
        };
        match self.meet(&challenge, Some(scope), None, operation).await {
            Ok(authorization) => Ok(authorization.unwrap_or_else(Authorization::nothing)),
            // What was learned from another repository may not hold for this one: let the registry speak.
            Err(error) if !is_own => Ok(Authorization {
                header: None,
                kind: Kind::Failed {
                    key: self.key(&challenge, Some(scope))?,
                    error,
                },
            }),
            Err(error) => Err(error),
        }
    }

    /// What to send after a 401, or nothing when there is nothing better than what was sent.
    pub(super) async fn answer(
        &self,
        challenges: &[Challenge],
        scope: Option<&Scope>,
        sent: Authorization,
        operation: &Operation,
    ) -> Result<Option<Authorization>> {
        let Some(challenge) = challenges.first() else {
            return Ok(None);
        };
        match sent.kind {
            Kind::Basic | Kind::RegistryToken => return Ok(None),
            Kind::Seed => self.refuse_seed(),
            // The registry wants what was tried already: a wrong password is not to be sent once more.
            Kind::Failed { key, error } if key == self.key(challenge, scope)? => return Err(error),
            Kind::Nothing | Kind::Failed { .. } | Kind::Token { .. } => {}
        }
        if let (
            Challenge::Bearer { error, .. },
            Kind::Token {
                key,
                token,
                is_new: true,
                has_waited,
            },
        ) = (challenge, &sent.kind)
            // A large body may outlast even a token that was new at its start (A17).
            && token.received.elapsed() < OLD_TOKEN
            && *key == self.key(challenge, scope)?.unwrap_or_else(|| key.clone())
        {
            let is_early = error.as_deref() == Some("invalid_token") && !has_waited;
            if !is_early {
                return Ok(None);
            }
            tokio::time::sleep(CLOCK_PAUSE).await;
            let again = Kind::Token {
                key: key.clone(),
                token: token.clone(),
                is_new: true,
                has_waited: true,
            };
            return self.bearer(&token.value, again).map(Some);
        }
        self.learn(challenge, scope);
        let rejected = match &sent.kind {
            Kind::Token { token, .. } => Some(token.generation),
            Kind::Nothing
            | Kind::Failed { .. }
            | Kind::Seed
            | Kind::RegistryToken
            | Kind::Basic => None,
        };
        self.meet(challenge, scope, rejected, operation).await
    }

    /// What to send after a 403: a new token, when the old one was old enough to be outdated.
    pub(super) async fn renew(
        &self,
        sent: &Authorization,
        operation: &Operation,
    ) -> Result<Option<Authorization>> {
        let Kind::Token { key, token, .. } = &sent.kind else {
            return Ok(None);
        };
        if token.received.elapsed() < OLD_TOKEN {
            return Ok(None);
        }
        self.token(key.clone(), Some(token.generation), operation)
            .await
            .map(Some)
    }

    /// Does what a challenge asks for, or nothing when we have nothing to give.
    async fn meet(
        &self,
        challenge: &Challenge,
        scope: Option<&Scope>,
        rejected: Option<u64>,
        operation: &Operation,
    ) -> Result<Option<Authorization>> {
        if *challenge == Challenge::Basic {
            let host = wire::origin_text(&self.shared.base);
            let header = basic_header(&self.login().credential, &host)?;
            return Ok(header.map(|header| Authorization {
                header: Some(header),
                kind: Kind::Basic,
            }));
        }
        let Some(key) = self.key(challenge, scope)? else {
            return Ok(None);
        };
        check_realm(&self.shared.base, &key.realm, operation)?;
        self.token(key, rejected, operation).await.map(Some)
    }

    async fn token(
        &self,
        key: TokenKey,
        rejected: Option<u64>,
        operation: &Operation,
    ) -> Result<Authorization> {
        let shared = &self.shared;
        let fetch = async {
            // A login that was replaced since the key was made is only better.
            let login = self.login();
            token::fetch(&shared.client, &key, &login.credential, operation).await
        };
        let (token, is_new) = shared.tokens.get(&key, rejected, fetch).await?;
        let value = token.value.clone();
        let kind = Kind::Token {
            key,
            token,
            is_new,
            has_waited: false,
        };
        self.bearer(&value, kind)
    }

    fn bearer(&self, token: &SecretString, kind: Kind) -> Result<Authorization> {
        let mut header = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret()))
            .map_err(|_| Error::InvalidCredential {
                host: wire::origin_text(&self.shared.base),
            })?;
        header.set_sensitive(true);
        Ok(Authorization {
            header: Some(header),
            kind,
        })
    }

    /// Which token a challenge wants; nothing for other challenges.
    fn key(&self, challenge: &Challenge, scope: Option<&Scope>) -> Result<Option<TokenKey>> {
        let Challenge::Bearer {
            realm,
            service,
            scopes,
            ..
        } = challenge
        else {
            return Ok(None);
        };
        // A realm may be relative (A4).
        let realm = self
            .shared
            .base
            .join(realm)
            .map_err(|_| Error::TokenServiceRefused {
                operation: Operation::new("log in"),
                realm: "an unreadable address".to_owned(),
                reason: "it is not a URL",
            })?;
        let is_pushed = scope.is_some_and(|scope| self.known().pushed.contains(&scope.repository));
        Ok(Some(TokenKey {
            login: self.generation(),
            realm,
            service: service.clone(),
            scopes: merged_scopes(scopes, scope, is_pushed),
        }))
    }

    /// Remembers what a repository asks for.
    fn learn(&self, challenge: &Challenge, scope: Option<&Scope>) {
        let Some(scope) = scope else { return };
        let general = match challenge.clone() {
            Challenge::Bearer { realm, service, .. } => Challenge::Bearer {
                realm,
                service,
                scopes: Vec::new(),
                error: None,
            },
            Challenge::Basic => Challenge::Basic,
        };
        let mut known = self.known();
        if scope.access == Access::Push {
            known.pushed.insert(scope.repository.clone());
        }
        let host = known.host.get_or_insert_with(|| general.clone());
        if *host == general && !asks_for_more(challenge, scope) {
            known.repositories.remove(&scope.repository);
        } else {
            known
                .repositories
                .insert(scope.repository.clone(), challenge.clone());
        }
    }

    fn usable_seed(&self) -> Option<&SecretString> {
        let seed = self.seed.as_ref()?;
        let hash = Digest::of(seed.expose_secret().as_bytes());
        (!self.known().refused_seeds.contains(&hash)).then_some(seed)
    }

    fn refuse_seed(&self) {
        if let Some(seed) = &self.seed {
            let hash = Digest::of(seed.expose_secret().as_bytes());
            self.known().refused_seeds.insert(hash);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.shared
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets the header of a request.
pub(super) fn apply(request: &mut reqwest::Request, header: Option<&HeaderValue>) {
    if let Some(header) = header {
        request.headers_mut().insert(AUTHORIZATION, header.clone());
    }
}

/// Whether a token service may be asked at all: it gets the credential, so it has to be where a credential may go (A5;
/// CVE-2026-48978).
fn check_realm(base: &Url, realm: &Url, operation: &Operation) -> Result<()> {
    match address::refusal(base, realm) {
        None => Ok(()),
        Some(reason) => Err(Error::TokenServiceRefused {
            operation: operation.clone(),
            realm: wire::origin_text(realm),
            reason,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_service_must_be_where_a_credential_may_go() {
        for (base, realm, allowed) in [
            ("https://r.example/v2/", "https://auth.example/token", true),
            ("https://r.example/v2/", "http://auth.example/token", false),
            (
                "https://r.example/v2/",
                "https://169.254.169.254/token",
                false,
            ),
            ("https://r.example/v2/", "file:///etc/passwd", false),
            ("http://127.0.0.1:1/v2/", "http://127.0.0.1:2/token", true),
            ("http://r.example/v2/", "http://auth.example/token", true),
        ] {
            let checked = check_realm(
                &base.parse().unwrap(),
                &realm.parse().unwrap(),
                &Operation::new("x"),
            );
            assert_eq!(checked.is_ok(), allowed, "{base} {realm}");
        }
    }
}
