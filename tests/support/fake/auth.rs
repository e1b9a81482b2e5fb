//! Login: who may do what, the challenge of a 401, and the token endpoint.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use url::form_urlencoded;

use super::call::Call;
use super::content::Content;
use super::fault::{ChallengeForm, Fault, Step, TokenForm};
use super::reply::Reply;
use super::rule::fault_value;

/// What the registry calls itself towards its token endpoint.
pub const SERVICE: &str = "fake";
/// The same with what the challenge has to escape.
pub const QUOTED_SERVICE: &str = r#"fake "one, two""#;

/// Requests with a larger login get 400 from [`Fault::Header8k`].
const LARGEST_LOGIN: usize = 8 * 1024;

/// The one account of a fake registry.
#[derive(Debug, Clone)]
pub struct Login {
    pub user: String,
    pub password: String,
    pub identity_token: String,
    pub is_basic: bool,
    /// Whoever has no login may read.
    pub anonymous_pull: bool,
}

impl Login {
    /// With tokens.
    pub fn bearer(user: &str, password: &str) -> Self {
        Self {
            user: user.to_owned(),
            password: password.to_owned(),
            identity_token: "fake-identity-token".to_owned(),
            is_basic: false,
            anonymous_pull: false,
        }
    }

    pub fn basic(user: &str, password: &str) -> Self {
        Self {
            is_basic: true,
            ..Self::bearer(user, password)
        }
    }

    #[must_use]
    pub fn anonymous_pull(mut self) -> Self {
        self.anonymous_pull = true;
        self
    }
}

/// The account, and the tokens that were given out for it.
#[derive(Debug, Default)]
pub struct Accounts {
    pub login: Option<Login>,
    tokens: HashMap<String, Grant>,
}

impl Accounts {
    /// Every token that was ever given out.
    pub fn tokens(&self) -> Vec<String> {
        self.tokens.keys().cloned().collect()
    }
}

#[derive(Debug)]
struct Grant {
    scopes: Vec<Scope>,
    given: Instant,
    uses: usize,
    refusals: usize,
}

/// `type:name:actions`; the name may hold colons.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    name: String,
    actions: Vec<String>,
}

impl Scope {
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        Some(Self {
            name: name.to_owned(),
            actions: actions.split(',').map(str::to_owned).collect(),
        })
    }
}

/// Why a request is not let through.
enum Refusal {
    NoLogin,
    InvalidToken,
    InsufficientScope,
}

impl Call<'_> {
    /// What this request needs: repositories with an action each.
    fn needs(&self) -> Vec<(String, &'static str)> {
        let own = |action| vec![(self.repository.clone(), action)];
        match self.step {
            Step::Token | Step::Storage | Step::Other | Step::Ping => Vec::new(),
            Step::Catalog => vec![("catalog".to_owned(), "*")],
            Step::ManifestHead
            | Step::ManifestGet
            | Step::BlobHead
            | Step::BlobGet
            | Step::Tags
            | Step::Referrers => own("pull"),
            Step::UploadStart
            | Step::Patch
            | Step::Put
            | Step::UploadStatus
            | Step::Cancel
            | Step::ManifestPut => own("push"),
            Step::Mount => {
                let mut needs = own("push");
                needs.extend(self.query_value("from").map(|from| (from, "pull")));
                needs
            }
            Step::ManifestDelete | Step::BlobDelete => own("delete"),
        }
    }

    /// The refusal of a request that may not be made.
    pub fn refused(&self) -> Option<Reply> {
        let is_guarded = self.state.asks_for_login
            && !matches!(self.step, Step::Token | Step::Storage | Step::Other);
        let mut accounts = self.state.world.accounts();
        let login = accounts.login.clone().filter(|_| is_guarded)?;
        let sent = self.seen_header("authorization").unwrap_or_default();
        if sent.len() > LARGEST_LOGIN && self.faults.has(|fault| matches!(fault, Fault::Header8k)) {
            return Some(Reply::new(400).content(Content::new("header too large")));
        }
        let needs = self.needs();
        let refusal = if login.is_basic {
            let is_good = basic(&sent) == Some((login.user, login.password));
            (!is_good).then_some(Refusal::NoLogin)
        } else {
            self.check_token(&mut accounts, &sent, &needs).err()
        };
        let refusal = refusal?;
        drop(accounts);
        Some(self.challenge(login.is_basic, &refusal, &needs))
    }

    fn check_token(
        &self,
        accounts: &mut Accounts,
        sent: &str,
        needs: &[(String, &'static str)],
    ) -> Result<(), Refusal> {
        let token = sent.strip_prefix("Bearer ").ok_or(Refusal::NoLogin)?;
        let grant = accounts
            .tokens
            .get_mut(token)
            .ok_or(Refusal::InvalidToken)?;
        if fault_value!(self.faults, NotYetValid).is_some_and(|times| grant.refusals < times) {
            grant.refusals += 1;
            return Err(Refusal::InvalidToken);
        }
        if fault_value!(self.faults, TokenUses).is_some_and(|uses| grant.uses >= uses) {
            return Err(Refusal::InvalidToken);
        }
        if fault_value!(self.faults, TokenLife).is_some_and(|life| grant.given.elapsed() > life) {
            return Err(Refusal::InvalidToken);
        }
        let allows = |(name, action): &(String, &'static str)| {
            grant.scopes.iter().any(|scope| {
                scope.name == *name && scope.actions.iter().any(|known| known == action)
            })
        };
        if !needs.iter().all(allows) {
            return Err(Refusal::InsufficientScope);
        }
        grant.uses += 1;
        Ok(())
    }

    fn challenge(
        &self,
        is_basic: bool,
        refusal: &Refusal,
        needs: &[(String, &'static str)],
    ) -> Reply {
        let reply = Reply::error(401, "UNAUTHORIZED", "authentication required");
        let form = fault_value!(self.faults, Challenge);
        if is_basic {
            let scheme = if form == Some(ChallengeForm::BasicUpper) {
                "BASIC"
            } else {
                "Basic"
            };
            return reply.header(
                "www-authenticate",
                format!(r#"{scheme} realm="Sonatype Nexus Repository Manager""#),
            );
        }
        let is_hidden = self.faults.has(|fault| matches!(fault, Fault::NoChallenge));
        if is_hidden && self.step != Step::Ping {
            return reply;
        }
        let mut bearer = self.bearer_challenge(needs);
        match refusal {
            Refusal::NoLogin => {}
            Refusal::InvalidToken => bearer += r#",error="invalid_token""#,
            Refusal::InsufficientScope => bearer += r#",error="insufficient_scope""#,
        }
        match form {
            Some(ChallengeForm::TwoLines) => reply
                .header("www-authenticate", r#"Basic realm="fake""#)
                .header("www-authenticate", bearer),
            Some(ChallengeForm::NegotiateFirst) => {
                reply.header("www-authenticate", format!("Negotiate, {bearer}"))
            }
            Some(ChallengeForm::UnknownParam) => reply.header(
                "www-authenticate",
                format!(r#"{bearer},mood="sunny",level=3"#),
            ),
            Some(ChallengeForm::QuotedComma | ChallengeForm::BasicUpper) | None => {
                reply.header("www-authenticate", bearer)
            }
        }
    }

    fn bearer_challenge(&self, needs: &[(String, &'static str)]) -> String {
        let realm =
            fault_value!(self.faults, Realm).unwrap_or_else(|| format!("{}/token", self.own_url()));
        let mut text = format!(r#"Bearer realm="{realm}""#);
        if !self.faults.has(|fault| matches!(fault, Fault::NoService)) {
            let service = self.service().replace('"', r#"\""#);
            text = format!(r#"{text},service="{service}""#);
        }
        if let Some((name, action)) = needs.first() {
            let actions = if *action == "push" {
                "pull,push"
            } else {
                *action
            };
            text = format!(r#"{text},scope="repository:{name}:{actions}""#);
        }
        text
    }

    fn service(&self) -> &'static str {
        if fault_value!(self.faults, Challenge) == Some(ChallengeForm::QuotedComma) {
            QUOTED_SERVICE
        } else {
            SERVICE
        }
    }

    /// The token endpoint, in both of its forms.
    pub fn token(&self, body: &[u8]) -> Reply {
        let is_post = self.method == hyper::Method::POST;
        let status = if is_post {
            fault_value!(self.faults, TokenPost)
        } else {
            fault_value!(self.faults, TokenGet)
        };
        if let Some(status) = status {
            return Reply::error(status, "UNSUPPORTED", "not this way");
        }
        let fields: Vec<(String, String)> = if is_post {
            form_urlencoded::parse(body).into_owned().collect()
        } else {
            form_urlencoded::parse(self.query.as_bytes())
                .into_owned()
                .collect()
        };
        let field = |name: &str| {
            let found = fields.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone())
        };
        let is_offline =
            field("offline_token").is_some() || field("access_type").as_deref() == Some("offline");
        if is_offline
            && self
                .faults
                .has(|fault| matches!(fault, Fault::OfflineToken))
        {
            return Reply::error(400, "UNSUPPORTED", "no offline tokens");
        }
        let expected = (!self.faults.has(|fault| matches!(fault, Fault::NoService)))
            .then(|| self.service().to_owned());
        if field("service") != expected {
            return Reply::error(400, "UNSUPPORTED", "not the service that was asked for");
        }
        let scopes: Vec<Scope> = fields
            .iter()
            .filter(|(key, _)| key == "scope")
            .flat_map(|(_, value)| value.split(' '))
            .filter_map(Scope::parse)
            .collect();
        if let Some(status) = fault_value!(self.faults, SecondScope)
            && scopes.len() > 1
        {
            return Reply::error(status, "DENIED", "one scope only");
        }
        let in_header = self
            .seen_header("authorization")
            .and_then(|value| basic(&value));
        let password = in_header.or_else(|| field("username").zip(field("password")));
        match self.may(password, field("refresh_token")) {
            Some(allowed) => self.grant(scopes, allowed),
            None => Reply::error(401, "UNAUTHORIZED", "incorrect username or password"),
        }
    }

    /// The actions that somebody gets tokens for.
    fn may(
        &self,
        password: Option<(String, String)>,
        identity: Option<String>,
    ) -> Option<&'static [&'static str]> {
        let login = self.state.world.accounts().login.clone()?;
        let all: &[&str] = &["pull", "push", "delete", "*"];
        if let Some(identity) = identity {
            return (identity == login.identity_token).then_some(all);
        }
        let Some(password) = password else {
            return login.anonymous_pull.then_some(&["pull"]);
        };
        // How an identity token looks where only GET is possible.
        if password == ("<token>".to_owned(), login.identity_token) {
            return Some(all);
        }
        let is_azure = self.faults.has(|fault| matches!(fault, Fault::Acr));
        (!is_azure && password == (login.user, login.password)).then_some(all)
    }

    fn grant(&self, mut scopes: Vec<Scope>, allowed: &[&str]) -> Reply {
        let less = fault_value!(self.faults, TokenLess);
        for scope in &mut scopes {
            scope.actions.retain(|action| {
                allowed.contains(&action.as_str()) && less.is_none_or(|only| action == only)
            });
        }
        let mut token = format!("fake-token-{:032x}", fastrand::u128(..));
        if self.faults.has(|fault| matches!(fault, Fault::Header8k)) {
            token += &"x".repeat(3 * 1024 * scopes.len());
        }
        if self
            .faults
            .has(|fault| matches!(fault, Fault::FirstScopeOnly))
        {
            scopes.truncate(1);
        }
        let grant = Grant {
            scopes,
            given: Instant::now(),
            uses: 0,
            refusals: 0,
        };
        self.state
            .world
            .accounts()
            .tokens
            .insert(token.clone(), grant);
        let mut answer = json!({"token": token, "expires_in": 300});
        match fault_value!(self.faults, Token) {
            Some(TokenForm::AccessToken) => {
                answer = json!({"access_token": token, "expires_in": 300});
            }
            Some(TokenForm::NoExpiry) => answer = json!({"token": token}),
            Some(TokenForm::Short) => answer["expires_in"] = json!(1),
            Some(TokenForm::Skewed(seconds)) => answer["issued_at"] = json!(date(seconds)),
            Some(TokenForm::Endless) | None => {}
        }
        Reply::json(200, &answer)
    }
}

/// An RFC 3339 date, so many seconds from now.
fn date(seconds: i64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs();
    let moment = now.saturating_add_signed(seconds);
    let (year, month, day) = civil(moment / 86_400);
    let (hour, minute, second) = (moment / 3600 % 24, moment / 60 % 60, moment % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// An HTTP date, so many seconds from now.
pub fn http_date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let moment = epoch(seconds);
    let days = moment / 86_400;
    let (year, month, day) = civil(days);
    let name = DAYS[usize::try_from(days % 7).unwrap_or(0)];
    let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    let (hour, minute, second) = (moment / 3600 % 24, moment / 60 % 60, moment % 60);
    format!("{name}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

/// The second since 1970, so many seconds from now.
pub fn epoch(seconds: u64) -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_secs() + seconds)
}

/// Year, month and day of a day since 1970 (the algorithm of Howard Hinnant's `civil_from_days`, for days after 1970).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

fn basic(header: &str) -> Option<(String, String)> {
    let encoded = header.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}
