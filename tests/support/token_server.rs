//! A token server as registries with `auth: token` expect one: it checks a password and signs who may do what.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request};
use rcgen::{CertificateParams, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;
use url::form_urlencoded;

use super::web::{Answer, HangUp, Server, answer};
use super::{Context, Failure, Result};

/// The names both sides have to agree on.
pub const SERVICE: &str = "image-pusher-test-registry";
pub const ISSUER: &str = "image-pusher-test-token-server";

/// The registry accepts tokens this long after their end. It is subtracted from what is signed, so that a token really
/// ends when the answer's `expires_in` says.
const REGISTRY_LEEWAY_SECONDS: u64 = 60;

/// Who may log in, and what the tokens are like.
#[derive(Debug, Clone)]
pub struct TokenAuth {
    accounts: Vec<Account>,
    expires_in_seconds: u64,
    anonymous_pull: bool,
}

#[derive(Debug, Clone)]
struct Account {
    user: String,
    password: String,
    actions: Vec<String>,
}

/// One request for a token, as answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    pub method: String,
    /// Empty for an anonymous request.
    pub user: Option<String>,
    /// As asked for, one per scope, such as `repository:demo/app:pull`.
    pub scopes: Vec<String>,
    /// 200, or 401 for a wrong password.
    pub status: u16,
}

/// A running token server.
#[derive(Debug)]
pub struct TokenServer {
    server: Server,
    certificate_pem: String,
    requests: Arc<Mutex<Vec<TokenRequest>>>,
}

impl TokenAuth {
    /// One account that may do everything.
    pub fn new(user: &str, password: &str) -> Self {
        Self {
            accounts: Vec::new(),
            expires_in_seconds: 300,
            anonymous_pull: false,
        }
        .account(user, password, &["pull", "push", "delete", "*"])
    }

    /// One more account, whose tokens carry at most these actions.
    #[must_use]
    pub fn account(mut self, user: &str, password: &str, actions: &[&str]) -> Self {
        self.accounts.push(Account {
            user: user.to_owned(),
            password: password.to_owned(),
            actions: actions.iter().map(ToString::to_string).collect(),
        });
        self
    }

    /// How long a token lives.
    #[must_use]
    pub fn expires_in_seconds(mut self, seconds: u64) -> Self {
        self.expires_in_seconds = seconds;
        self
    }

    /// Without a password a token is given all the same, for pulling.
    #[must_use]
    pub fn anonymous_pull(mut self) -> Self {
        self.anonymous_pull = true;
        self
    }

    /// The first account.
    pub fn credentials(&self) -> Option<(String, String)> {
        self.accounts
            .first()
            .map(|account| (account.user.clone(), account.password.clone()))
    }

    /// What somebody may do: nothing at all is a wrong password.
    fn actions_of(&self, credentials: Option<&(String, String)>) -> Option<Vec<String>> {
        match credentials {
            None => self.anonymous_pull.then(|| vec!["pull".to_owned()]),
            Some((user, password)) => self
                .accounts
                .iter()
                .find(|account| account.user == *user && account.password == *password)
                .map(|account| account.actions.clone()),
        }
    }
}

impl TokenServer {
    pub fn start(options: TokenAuth) -> Result<Self> {
        let signer = Arc::new(Signer::new()?);
        let certificate_pem = signer.certificate_pem.clone();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        let options = Arc::new(options);
        let server = Server::start(move |request| {
            let (signer, options, log) =
                (Arc::clone(&signer), Arc::clone(&options), Arc::clone(&log));
            async move {
                let asked = Asked::read(request).await?;
                let (seen, answer) = respond(&signer, &options, &asked);
                log.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(seen);
                answer
            }
        })?;
        Ok(Self {
            server,
            certificate_pem,
            requests,
        })
    }

    /// Where registries send their clients.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.address())
    }

    /// What a registry has to trust (`rootcertbundle`).
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    pub fn requests(&self) -> Vec<TokenRequest> {
        self.requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// A request for a token, in either of the two forms that exist.
struct Asked {
    method: Method,
    credentials: Option<(String, String)>,
    scopes: Vec<String>,
}

impl Asked {
    async fn read(request: Request<Incoming>) -> std::result::Result<Self, HangUp> {
        let (head, body) = request.into_parts();
        let fields = if head.method == Method::POST {
            Limited::new(body, 64 * 1024)
                .collect()
                .await
                .map_err(|_| HangUp)?
                .to_bytes()
        } else {
            head.uri.query().unwrap_or_default().to_owned().into()
        };
        let fields: Vec<(String, String)> = form_urlencoded::parse(&fields).into_owned().collect();
        let field = |name: &str| {
            fields
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        let in_form = field("username").zip(field("password"));
        let in_header = head
            .headers
            .get("authorization")
            .and_then(|value| basic(value.to_str().ok()?));
        // Several scopes may come as several fields or separated by spaces in one.
        let scopes = fields
            .iter()
            .filter(|(key, _)| key == "scope")
            .flat_map(|(_, value)| value.split_whitespace().map(str::to_owned))
            .collect();
        Ok(Self {
            method: head.method,
            credentials: in_form.or(in_header),
            scopes,
        })
    }
}

fn respond(signer: &Signer, options: &TokenAuth, asked: &Asked) -> (TokenRequest, Answer) {
    let seen = |status| TokenRequest {
        method: asked.method.to_string(),
        user: asked.credentials.as_ref().map(|(user, _)| user.clone()),
        scopes: asked.scopes.clone(),
        status,
    };
    let Some(allowed) = options.actions_of(asked.credentials.as_ref()) else {
        let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "incorrect username or password"}]});
        return (
            seen(401),
            answer(
                401,
                &[("content-type", "application/json")],
                body.to_string(),
            ),
        );
    };
    let access: Vec<_> = asked
        .scopes
        .iter()
        .filter_map(|scope| grant(scope, &allowed))
        .collect();
    let subject = asked.credentials.as_ref().map_or("", |(user, _)| user);
    let Ok(token) = signer.sign(subject, options.expires_in_seconds, &access) else {
        return (seen(500), answer(500, &[], "could not sign"));
    };
    let body =
        json!({"token": token, "access_token": token, "expires_in": options.expires_in_seconds});
    (
        seen(200),
        answer(
            200,
            &[("content-type", "application/json")],
            body.to_string(),
        ),
    )
}

/// The part of a scope that somebody with these actions gets. A repository's name may contain colons before a port.
fn grant(scope: &str, allowed: &[String]) -> Option<serde_json::Value> {
    let (kind, rest) = scope.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    let actions: Vec<&str> = actions
        .split(',')
        .filter(|action| allowed.iter().any(|one| one == action))
        .collect();
    Some(json!({"type": kind, "name": name, "actions": actions}))
}

fn basic(header: &str) -> Option<(String, String)> {
    let encoded = header.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Signs as ES256, and sends the certificate along, which is how the registry finds the key to check with.
struct Signer {
    key: EcdsaKeyPair,
    certificate_pem: String,
    header: String,
}

impl Signer {
    fn new() -> Result<Self> {
        let key = KeyPair::generate().context("could not make a key for the token server")?;
        let mut parameters = CertificateParams::new(Vec::new())
            .context("could not describe the token server's certificate")?;
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, ISSUER);
        let certificate = parameters
            .self_signed(&key)
            .context("could not sign the token server's certificate")?;
        let header =
            json!({"typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(certificate.der())]}).to_string();
        // rcgen signs in the form certificates use; tokens need the two numbers side by side.
        let signing = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.serialized_der(),
            &SystemRandom::new(),
        )
        .map_err(|rejected| {
            Failure::new(format!("could not use the token server's key: {rejected}"))
        })?;
        Ok(Self {
            key: signing,
            certificate_pem: certificate.pem(),
            header: BASE64_URL_SAFE_NO_PAD.encode(header),
        })
    }

    fn sign(
        &self,
        subject: &str,
        expires_in_seconds: u64,
        access: &[serde_json::Value],
    ) -> Result<String> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock is before 1970")?
            .as_secs();
        let claims = json!({
            "iss": ISSUER, "sub": subject, "aud": SERVICE, "access": access,
            "jti": format!("{:032x}", fastrand::u128(..)),
            "iat": now, "nbf": now - REGISTRY_LEEWAY_SECONDS,
            "exp": now + expires_in_seconds - REGISTRY_LEEWAY_SECONDS,
        });
        let signed = format!(
            "{}.{}",
            self.header,
            BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| Failure::new("could not sign a token"))?;
        Ok(format!(
            "{signed}.{}",
            BASE64_URL_SAFE_NO_PAD.encode(signature)
        ))
    }
}
