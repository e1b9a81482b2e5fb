//! Registries that are reached through a proxy only: Debian's tinyproxy, found by the environment.

use crate::commands::{pull, push, with};
use crate::support::{
    Result,
    binary::{Finished, Sandbox},
    forward_proxy::{FORBIDDEN_NAME, ForwardProxy, REGISTRY_NAME, behind},
    gateway::Gateway,
    images::Image,
    registry::Registry,
    skopeo,
};

const USER: &str = "gate";
const PASSWORD: &str = "keeper-canary-4711";

fn proxy_with_login(proxy: &ForwardProxy, password: &str) -> String {
    format!("http://{USER}:{password}@{}", proxy.address())
}

/// Nothing of what was said shows the proxy's login, in plain or as it is sent.
fn assert_no_login(run: &Finished) {
    // The second is `gate:keeper-canary-4711` in base64.
    for secret in [PASSWORD, "Z2F0ZTprZWVwZXItY2FuYXJ5LTQ3MTE"] {
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(!said.contains(secret), "{secret} in\n{said}");
    }
}

/// The run failed at the proxy: it says how and where, and not the proxy's login.
fn assert_failed_at(run: &Finished, proxy: &str, words: &[&str]) {
    for expected in [words, &[proxy, "through the proxy"]].concat() {
        assert!(
            run.stderr.contains(expected),
            "{expected} in\n{}",
            run.stderr
        );
    }
    assert_no_login(run);
}

#[test]
fn a_registry_with_tls_is_pulled_from_and_pushed_to_through_the_proxy() -> Result<()> {
    let registry = Registry::builder()
        .tls()
        .htpasswd("me", "hunter2")
        .start()?;
    let image = Image::builder().layers(3, 400_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let proxy = ForwardProxy::start(USER, PASSWORD)?;
    let sandbox = Sandbox::new()?
        .variable("https_proxy", &proxy_with_login(&proxy, PASSWORD))
        .variable("IMAGE_PUSHER_PASSWORD", "hunter2");
    let url = format!("https://{}", behind(registry.address()));
    let ca = registry.ca_file().unwrap().display().to_string();
    let options = ["-u", "me", "--ca-file", &ca, "-vv"];
    let pulled = sandbox
        .run(&with(&pull("team/app", "1.0", &url), &options))?
        .expect_code(0)?;
    let pushed = sandbox
        .run(&with(
            &push("team/app:1.0", "team/copy", "1.0", &url),
            &options,
        ))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "team/copy:1.0")?,
        image.digest
    );
    assert_no_login(&pulled);
    assert_no_login(&pushed);
    let heads = proxy.sent_on();
    assert!(!heads.is_empty());
    for head in heads {
        assert!(head.starts_with("CONNECT registry.test:"), "{head}");
        assert!(
            !head.to_ascii_lowercase().contains("\r\nauthorization:"),
            "{head}"
        );
    }
    Ok(())
}

#[test]
fn a_plain_registry_gets_its_own_login_through_the_proxy_and_none_of_the_proxys() -> Result<()> {
    let registry = Registry::with_htpasswd("me", "hunter2")?;
    let image = Image::builder().layers(3, 400_000).build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let gateway = Gateway::before(&registry).start()?;
    let proxy = ForwardProxy::start(USER, PASSWORD)?;
    let sandbox = Sandbox::new()?
        .variable("HTTP_PROXY", &proxy_with_login(&proxy, PASSWORD))
        .variable("IMAGE_PUSHER_PASSWORD", "hunter2");
    let url = format!("http://{}", behind(&gateway.address()));
    let options = ["-u", "me", "-vv"];
    let pulled = sandbox
        .run(&with(&pull("team/app", "1.0", &url), &options))?
        .expect_code(0)?;
    let pushed = sandbox
        .run(&with(
            &push("team/app:1.0", "team/copy", "1.0", &url),
            &options,
        ))?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(registry.access(), "team/copy:1.0")?,
        image.digest
    );
    assert_no_login(&pulled);
    assert_no_login(&pushed);
    let exchanges = gateway.exchanges();
    assert_eq!(exchanges.len(), proxy.sent_on().len());
    // `me:hunter2`
    let own = "Basic bWU6aHVudGVyMg==";
    let with_login = |exchange: &&_| {
        let exchange: &crate::support::gateway::Exchange = exchange;
        exchange
            .headers
            .get("authorization")
            .is_some_and(|value| value == own)
    };
    assert!(exchanges.iter().filter(with_login).count() > 10);
    for exchange in &exchanges {
        assert!(
            !exchange.headers.contains_key("proxy-authorization"),
            "{exchange:?}"
        );
    }
    Ok(())
}

#[test]
fn a_proxy_that_refuses_us_is_named_with_the_remedy() -> Result<()> {
    let proxy = ForwardProxy::start(USER, PASSWORD)?;
    let address = format!("http://{}", proxy.address());
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{REGISTRY_NAME}:1");
        let run = |variable: &str| {
            // Only the variable of the scheme: the other one must not be needed to find out what is wrong.
            let sandbox = Sandbox::new()?.variable(&format!("{scheme}_proxy"), variable);
            sandbox
                .run(&with(&pull("team/app", "1.0", &url), &["-vv"]))?
                .expect_code(1)
        };
        let wrong = run(&proxy_with_login(&proxy, &PASSWORD.replace('4', "5")))?;
        assert!(!wrong.stderr.contains("canary"), "{}", wrong.stderr);
        assert_failed_at(
            &wrong,
            &address,
            &["does not accept ours", "NAME:PASSWORD@HOST:PORT"],
        );
        let without_login = run(&proxy.address())?;
        assert_failed_at(&without_login, &address, &["asks for a login"]);
        let nowhere = run("http://gate:keeper-canary-4711@127.0.0.1:1")?;
        assert_failed_at(
            &nowhere,
            "http://127.0.0.1:1",
            &["the proxy cannot be reached", REGISTRY_NAME, "NO_PROXY"],
        );
    }
    let sandbox = Sandbox::new()?.variable("ALL_PROXY", &proxy_with_login(&proxy, PASSWORD));
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{FORBIDDEN_NAME}");
        let forbidden = sandbox
            .run(&pull("team/app", "1.0", &url))?
            .expect_code(1)?;
        assert_failed_at(&forbidden, &address, &["403", "does not let us through"]);
    }
    Ok(())
}

#[test]
fn what_no_proxy_names_and_loopback_are_reached_without_the_proxy() -> Result<()> {
    let registry = Registry::open()?;
    Image::builder()
        .build()?
        .push(registry.access(), "team/app:1.0")?;
    let proxy = ForwardProxy::start(USER, PASSWORD)?;
    let sandbox = || {
        let sandbox = Sandbox::new()?;
        Ok(sandbox.variable("HTTP_PROXY", &proxy_with_login(&proxy, PASSWORD)))
    };
    let at_loopback = format!("http://{}", registry.address());
    sandbox()?
        .run(&pull("team/app", "1.0", &at_loopback))?
        .expect_code(0)?;
    let behind_the_proxy = format!("http://{}", behind(registry.address()));
    let direct = sandbox()?
        .variable("NO_PROXY", "example.com, .test")
        .run(&pull("team/app", "1.0", &behind_the_proxy))?
        .expect_code(1)?;
    assert!(
        direct.stderr.contains("there is no host of that name"),
        "{}",
        direct.stderr
    );
    assert_eq!(proxy.sent_on(), Vec::<String>::new());
    sandbox()?
        .variable("NO_PROXY", "example.com, registry.test:1")
        .run(&pull("team/app", "1.0", &behind_the_proxy))?
        .expect_code(0)?;
    assert!(!proxy.sent_on().is_empty());
    Ok(())
}

#[test]
fn a_variable_that_names_no_proxy_is_an_error_of_usage() -> Result<()> {
    let run = Sandbox::new()?
        .variable(
            "https_proxy",
            "socks5://gate:keeper-canary-4711@localhost:1080",
        )
        .run(&pull("team/app", "1.0", "https://registry.test"))?
        .expect_code(2)?;
    for words in ["https_proxy", "'localhost:1080'", "SOCKS is not supported"] {
        assert!(run.stderr.contains(words), "{}", run.stderr);
    }
    assert_no_login(&run);
    Ok(())
}
