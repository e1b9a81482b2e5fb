//! Login: rules A1 to A20 of the registry reference.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use docker_image_pusher::registry::{Credential, DockerConfig};

use crate::support::Result;
use crate::support::fake::{
    ChallengeForm, FakeRegistry, Fault, Login, QUOTED_SERVICE, Sample, Step, TokenForm,
};
use crate::way::{Way, copy_within, own_address};

fn me() -> Login {
    Login::bearer("me", "secret")
}

/// Both sides want tokens.
fn with_tokens() -> Result<Way> {
    let registry = || FakeRegistry::builder().login(me()).start();
    Way::between(registry()?, registry()?, Sample::image(1, &[40_000, 9_000]))
}

fn identity() -> Credential {
    Credential::IdentityToken("fake-identity-token".into())
}

// A1
#[tokio::test]
async fn the_real_request_is_sent_at_once_and_its_401_asks_for_the_login() -> Result<()> {
    let way = with_tokens()?;
    way.copies().await;
    assert_eq!(way.source.count(Step::Ping), 0);
    let refused = way
        .source
        .requests()
        .iter()
        .filter(|seen| seen.status == Some(401))
        .count();
    assert_eq!(refused, 1, "{}", way.story());
    Ok(())
}

// A1
#[tokio::test]
async fn a_401_without_challenge_costs_one_ping() -> Result<()> {
    let way = with_tokens()?
        .from(Fault::NoChallenge)
        .to(Fault::NoChallenge);
    way.copies().await;
    assert_eq!(
        (way.source.count(Step::Ping), way.target.count(Step::Ping)),
        (1, 1)
    );
    Ok(())
}

// A2
#[tokio::test]
async fn every_legal_form_of_a_challenge_is_understood() -> Result<()> {
    for form in [
        ChallengeForm::TwoLines,
        ChallengeForm::NegotiateFirst,
        ChallengeForm::QuotedComma,
        ChallengeForm::UnknownParam,
    ] {
        let way = with_tokens()?
            .from(Fault::Challenge(form))
            .to(Fault::Challenge(form));
        way.copies().await;
        // Bearer goes before Basic: the password is for the token service only.
        let plain = way.source.requests().into_iter().any(|seen| {
            let header = seen.header("authorization").unwrap_or_default();
            seen.step != Step::Token && header.starts_with("Basic")
        });
        assert!(!plain, "{form:?}");
        if form == ChallengeForm::QuotedComma {
            let asked = way.source.of_step(Step::Token);
            let service = url::form_urlencoded::parse(asked[0].query.as_bytes())
                .find(|(key, _)| key == "service")
                .map(|(_, value)| value.into_owned());
            assert_eq!(service.as_deref(), Some(QUOTED_SERVICE));
        }
    }
    Ok(())
}

// A2
#[tokio::test]
async fn a_basic_challenge_in_capitals_is_understood() -> Result<()> {
    let registry = || {
        FakeRegistry::builder()
            .login(Login::basic("me", "secret"))
            .start()
    };
    let way = Way::between(registry()?, registry()?, Sample::image(1, &[9_000]))?
        .from(Fault::Challenge(ChallengeForm::BasicUpper))
        .to(Fault::Challenge(ChallengeForm::BasicUpper));
    way.copies().await;
    Ok(())
}

// A3
#[tokio::test]
async fn no_service_is_sent_where_the_challenge_names_none() -> Result<()> {
    let way = with_tokens()?.from(Fault::NoService).to(Fault::NoService);
    way.copies().await;
    Ok(())
}

// A4
#[tokio::test]
async fn a_relative_realm_is_the_registrys_own() -> Result<()> {
    let way = with_tokens()?
        .from(Fault::Realm("/token".into()))
        .to(Fault::Realm("/token".into()));
    way.copies().await;
    Ok(())
}

// A5
#[tokio::test]
async fn a_realm_at_another_host_gets_the_credential() -> Result<()> {
    let way = with_tokens()?;
    let service = way.source.beside()?;
    let way = way.from(Fault::Realm(format!("{}/token", service.url())));
    way.copies().await;
    assert_eq!(way.source.count(Step::Token), 0);
    assert!(service.count(Step::Token) > 0);
    Ok(())
}

// A5
#[tokio::test]
async fn a_realm_without_tls_gets_nothing_from_a_registry_with_tls() -> Result<()> {
    let source = FakeRegistry::builder().tls().login(me()).start()?;
    let evil = FakeRegistry::start()?;
    let way = Way::between(source, FakeRegistry::start()?, Sample::image(1, &[9_000]))?
        .from(Fault::Realm(format!("{}/token", evil.url())));
    way.fails("TokenServiceRefused").await;
    assert!(evil.requests().is_empty());
    Ok(())
}

// A5
#[tokio::test]
async fn a_realm_at_a_forbidden_address_gets_nothing() -> Result<()> {
    for address in [
        "169.254.169.254",
        "100.100.100.200",
        "0.0.0.0",
        "[::ffff:169.254.169.254]",
    ] {
        let way = with_tokens()?.from(Fault::Realm(format!("http://{address}/token")));
        way.fails("TokenServiceRefused").await;
    }
    Ok(())
}

// A5
#[tokio::test]
async fn a_realm_on_loopback_gets_nothing_from_a_registry_that_is_not_there() -> Result<()> {
    let source = FakeRegistry::builder()
        .at(own_address())
        .login(me())
        .start()?;
    let evil = FakeRegistry::start()?;
    let way = Way::between(source, FakeRegistry::start()?, Sample::image(1, &[9_000]))?
        .from(Fault::Realm(format!("{}/token", evil.url())));
    way.fails("AddressRefused").await;
    assert!(evil.requests().is_empty());
    Ok(())
}

// A6
#[tokio::test]
async fn tls_that_is_answered_in_plain_http_is_an_error_and_never_a_login() -> Result<()> {
    let way = with_tokens()?;
    let url = way.source.url().replace("http://", "https://");
    let clients = [
        ("source", way.client_at(&url, &way.source)),
        ("target", way.client(&way.target)),
    ];
    let report = way.run_with(clients, &[way.job()]).await;
    let reasons: Vec<_> = report
        .failures()
        .map(|(_, _, failure)| failure.reason)
        .collect();
    assert_eq!(reasons, ["NotTls"]);
    assert!(way.source.requests().is_empty());
    Ok(())
}

// A7
#[tokio::test]
async fn a_password_is_posted_where_tokens_cannot_be_got() -> Result<()> {
    let way = with_tokens()?
        .from(Fault::TokenGet(405))
        .to(Fault::TokenGet(405));
    way.copies().await;
    let posted = way.source.of_step(Step::Token);
    let body = String::from_utf8_lossy(&posted.last().unwrap().body).into_owned();
    assert!(body.contains("grant_type=password"), "{body}");
    Ok(())
}

// A7
#[tokio::test]
async fn an_identity_token_goes_by_get_where_post_is_refused() -> Result<()> {
    for status in [400, 401, 404, 405] {
        let mut way = with_tokens()?
            .from(Fault::TokenPost(status))
            .to(Fault::TokenPost(status));
        way.credential = Some(identity());
        way.copies().await;
    }
    Ok(())
}

// A8
#[tokio::test]
async fn offline_tokens_are_never_asked_for() -> Result<()> {
    let mut way = with_tokens()?
        .from(Fault::OfflineToken)
        .to(Fault::OfflineToken);
    way.copies().await;
    way = with_tokens()?
        .from(Fault::OfflineToken)
        .to(Fault::OfflineToken);
    way.credential = Some(identity());
    way.copies().await;
    Ok(())
}

// A9
#[tokio::test]
async fn a_token_may_be_called_access_token_and_tell_no_end_or_a_short_one() -> Result<()> {
    for form in [
        TokenForm::AccessToken,
        TokenForm::NoExpiry,
        TokenForm::Short,
    ] {
        let way = with_tokens()?
            .from(Fault::Token(form))
            .to(Fault::Token(form));
        way.copies().await;
        // A life of one second counts as a minute: nothing is asked for twice.
        assert_eq!(
            way.source.count(Step::Token),
            1,
            "{form:?}\n{}",
            way.story()
        );
    }
    Ok(())
}

// A9, R11
#[tokio::test]
async fn an_endless_token_is_given_up_at_its_limit() -> Result<()> {
    let way = with_tokens()?.from(Fault::Token(TokenForm::Endless));
    way.fails("AnswerTooLarge").await;
    assert!(way.source.answer_bytes(Step::Token) < 16 << 20);
    Ok(())
}

// A10
#[tokio::test]
async fn a_token_with_fewer_grants_is_an_error_that_names_what_is_missing() -> Result<()> {
    let way = with_tokens()?.to(Fault::TokenLess("pull"));
    let failure = way.fails("AccessDenied").await;
    assert!(failure.message.contains("push"), "{}", failure.message);
    Ok(())
}

/// The scopes of each token request, in their order.
fn scopes(registry: &FakeRegistry) -> Vec<Vec<String>> {
    let asked = registry.of_step(Step::Token);
    let of = |query: &str| {
        url::form_urlencoded::parse(query.as_bytes())
            .filter(|(key, _)| key == "scope")
            .map(|(_, value)| value.into_owned())
            .collect()
    };
    asked.iter().map(|seen| of(&seen.query)).collect()
}

// A12
#[tokio::test]
async fn one_scope_per_repository_and_that_of_the_target_first() -> Result<()> {
    let way = with_tokens()?
        .to(Fault::FirstScopeOnly)
        .from(Fault::FirstScopeOnly);
    way.copies().await;
    for scopes in scopes(&way.target) {
        assert_eq!(scopes.len(), 1);
    }
    let last = scopes(&way.target).pop().unwrap();
    assert_eq!(last, ["repository:mirror/app:pull,push"]);
    Ok(())
}

// A12, A13
#[tokio::test]
async fn a_mount_asks_for_the_source_as_second_scope() -> Result<()> {
    let way = with_tokens()?;
    copy_within(&way).await;
    let wanted = [
        "repository:mirror/app:pull,push",
        "repository:team/app:pull",
    ];
    assert!(
        scopes(&way.source).iter().any(|scopes| *scopes == wanted),
        "{}",
        way.story()
    );
    assert!(way.source.count(Step::Mount) > 0);
    assert_eq!(way.source.count(Step::Put), 0, "{}", way.story());
    Ok(())
}

// A12
#[tokio::test]
async fn a_registry_that_grants_only_the_first_scope_gets_the_bytes() -> Result<()> {
    let way = with_tokens()?.from(Fault::FirstScopeOnly);
    copy_within(&way).await;
    Ok(())
}

// A12
#[tokio::test]
async fn logins_stay_below_eight_kilobytes() -> Result<()> {
    let way = with_tokens()?.from(Fault::Header8k);
    copy_within(&way).await;
    let longest = way.source.requests().into_iter();
    let longest = longest
        .map(|seen| seen.header("authorization").map_or(0, str::len))
        .max();
    assert!(longest < Some(8 * 1024), "{longest:?}");
    Ok(())
}

// A13
#[tokio::test]
async fn a_refused_second_scope_means_no_mount_and_no_failure() -> Result<()> {
    let way = with_tokens()?.from(Fault::SecondScope(401));
    copy_within(&way).await;
    Ok(())
}

// A14
#[tokio::test]
async fn two_credentials_never_share_a_token() -> Result<()> {
    let registry = FakeRegistry::builder()
        .login(me().anonymous_pull())
        .start()?;
    let mut way = Way::between(registry, FakeRegistry::start()?, Sample::image(1, &[9_000]))?;
    let pusher = way.client(&way.source);
    way.credential = Some(Credential::Anonymous);
    let clients = [("source", way.client(&way.source)), ("target", pusher)];
    let report = way.run_with(clients, &[way.job()]).await;
    assert_eq!(report.failed(), 0, "{report:#?}\n{}", way.story());
    let logins = |repository: &str| {
        let seen = way
            .source
            .requests()
            .into_iter()
            .filter(|seen| seen.repository == repository);
        let headers = seen.filter_map(|seen| seen.header("authorization").map(str::to_owned));
        headers.collect::<std::collections::BTreeSet<_>>()
    };
    let (pulling, pushing) = (logins("team/app"), logins("mirror/app"));
    assert!(!pulling.is_empty() && !pushing.is_empty());
    assert!(pulling.is_disjoint(&pushing));
    Ok(())
}

// A15
#[tokio::test]
async fn a_token_service_whose_clock_is_wrong_is_good_enough() -> Result<()> {
    for seconds in [-600, 600] {
        let skewed = || Fault::Token(TokenForm::Skewed(seconds));
        let way = with_tokens()?.from(skewed()).to(skewed());
        way.copies().await;
        assert_eq!(way.source.count(Step::Token), 1, "{}", way.story());
    }
    Ok(())
}

// A15
#[tokio::test]
async fn a_token_that_is_not_yet_valid_gets_a_second() -> Result<()> {
    let way = with_tokens()?.from(Fault::NotYetValid(1));
    way.copies().await;
    Ok(())
}

// A16
#[tokio::test]
async fn a_token_that_ends_in_the_middle_is_replaced() -> Result<()> {
    let slow = || Fault::Delay(Duration::from_millis(300));
    let life = || Fault::TokenLife(Duration::from_millis(900));
    let way = with_tokens()?
        .from(slow())
        .from(life())
        .to(slow())
        .to(life());
    way.copies().await;
    assert!(way.target.count(Step::Token) > 1, "{}", way.story());
    Ok(())
}

// A17
#[tokio::test]
async fn a_login_checked_after_the_body_costs_the_body_twice_at_most() -> Result<()> {
    let way = with_tokens()?.to(Fault::Late401);
    way.copies().await;
    let sent: u64 = way
        .target
        .requests()
        .iter()
        .filter(|seen| matches!(seen.step, Step::Put | Step::Patch))
        .map(|seen| seen.body_bytes)
        .sum();
    assert!(
        sent <= 2 * way.sample.size(),
        "{sent} bytes\n{}",
        way.story()
    );
    Ok(())
}

// A18
#[test]
fn stored_credentials_are_found_as_docker_podman_and_kubernetes_find_them() {
    let auth = |user: &str| BASE64_STANDARD.encode(format!("{user}:secret"));
    let entry = |user: &str| serde_json::json!({"auth": auth(user)});
    let config = serde_json::json!({"auths": {
        "https://index.docker.io/v1/": entry("hub"),
        "registry.example": entry("host"),
        "registry.example/team": entry("team"),
        "registry.example/team/app": entry("app"),
        "*.glob.example": entry("glob"),
        "port.example:5000": entry("port"),
        "plain.example": {"username": "plain", "password": "secret"},
    }, "credHelpers": {"helped.example": "ecr-login"}});
    let config = DockerConfig::parse(config.to_string().as_bytes()).unwrap();
    for (host, repository, user) in [
        ("docker.io", "library/ubuntu", Some("hub")),
        ("registry.example", "other/app", Some("host")),
        ("registry.example", "team/other", Some("team")),
        ("registry.example", "team/app", Some("app")),
        ("registry.example", "teams/app", Some("host")),
        ("a.glob.example", "x", Some("glob")),
        ("a.b.glob.example", "x", None),
        ("port.example:5000", "x", Some("port")),
        ("port.example", "x", None),
        ("plain.example", "x", Some("plain")),
        ("unknown.example", "x", None),
    ] {
        let found = config.credential_for(&host.parse().unwrap(), &repository.parse().unwrap());
        let found = match &found {
            Some(Credential::Basic { username, .. }) => Some(username.as_str()),
            _ => None,
        };
        assert_eq!(found, user, "{host}/{repository}");
    }
    let helper = |host: &str| config.helper_for(&host.parse().unwrap());
    assert!(helper("helped.example").is_some());
    assert!(helper("unknown.example").is_none());
}

// A19
#[tokio::test]
async fn azures_identity_token_is_posted() -> Result<()> {
    let azure = "00000000-0000-0000-0000-000000000000".to_owned();
    for user in [azure, "<token>".to_owned()] {
        let mut way = with_tokens()?.from(Fault::Acr).to(Fault::Acr);
        way.credential = Some(Credential::from_login(user, "fake-identity-token".into()));
        way.copies().await;
        let asked = way.source.of_step(Step::Token);
        let body = String::from_utf8_lossy(&asked[0].body).into_owned();
        assert!(body.contains("grant_type=refresh_token"), "{body}");
    }
    Ok(())
}

// A20
#[tokio::test]
async fn a_password_that_was_changed_is_a_permanent_error_until_the_new_one_is_known() -> Result<()>
{
    let way = with_tokens()?;
    let old = way.client(&way.source);
    way.source.change_password("renewed");
    let clients = [("source", old), ("target", way.client(&way.target))];
    let report = way.run_with(clients, &[way.job()]).await;
    let reasons: Vec<_> = report
        .failures()
        .map(|(_, _, failure)| failure.reason)
        .collect();
    assert_eq!(reasons, ["AuthenticationFailed"]);
    // A wrong password is not repeated: accounts get locked.
    assert_eq!(way.source.count(Step::Token), 1, "{}", way.story());
    way.copies().await;
    Ok(())
}

// R16
#[tokio::test]
async fn a_registry_that_never_takes_a_token_is_given_up() -> Result<()> {
    let way = with_tokens()?.from(Fault::TokenUses(0));
    way.fails("AuthenticationFailed").await;
    assert!(way.source.count(Step::Token) <= 2, "{}", way.story());
    Ok(())
}
