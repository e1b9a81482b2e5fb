//! Where a login goes, and where nothing goes at all: rules R6, R7 and R9 of the registry reference, for every kind of link
//! that an answer can hold (X4).

use std::net::{TcpListener, ToSocketAddrs};

use docker_image_pusher::transfer::ImageJob;

use crate::support::Result;
use crate::support::fake::{FakeRegistry, Fault, Location, Login, Rule, Sample, Step, TagList};
use crate::way::{FROM, Way, from, own_address};

/// Where nothing of ours may ever go: link-local and metadata addresses, "this host", and what only dresses these up.
const FORBIDDEN: [&str; 12] = [
    "169.254.169.254",
    "169.254.1.1",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "2852039166",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[::]",
    "[::ffff:169.254.169.254]",
    "[::ffff:0.0.0.0]",
    "[64:ff9b::a9fe:a9fe]",
];

fn registry() -> Result<FakeRegistry> {
    FakeRegistry::builder()
        .login(Login::bearer("me", "secret"))
        .start()
}

fn way() -> Result<Way> {
    Way::between(registry()?, registry()?, Sample::image(1, &[30_000, 9_000]))
}

/// Nothing that came to `stranger` is a secret of `home`, or looks like one.
fn assert_nothing_leaked(home: &FakeRegistry, stranger: &FakeRegistry) {
    let secrets = home.secrets();
    assert!(secrets.len() > 2, "nobody logged in");
    for seen in stranger.requests() {
        for header in ["authorization", "cookie", "proxy-authorization"] {
            assert!(seen.header(header).is_none(), "{header} in {}", seen.text());
        }
        for secret in &secrets {
            assert!(!seen.text().contains(secret.as_str()), "{}", seen.text());
        }
    }
}

// R6, D1: a blob's redirect.
#[tokio::test]
async fn the_storage_of_a_blob_sees_no_login() -> Result<()> {
    let way = way()?;
    let stranger = way.source.beside()?;
    let way = way.from(Fault::Redirect(307, stranger.url()));
    way.copies().await;
    assert!(stranger.count(Step::Storage) > 0);
    assert_nothing_leaked(&way.source, &stranger);
    Ok(())
}

// R9
#[tokio::test]
async fn a_signed_url_is_asked_without_login() -> Result<()> {
    let way = way()?;
    let stranger = way.source.beside()?.with(Fault::Presigned);
    let way = way.from(Fault::Redirect(302, stranger.url()));
    way.copies().await;
    assert!(stranger.count(Step::Storage) > 0);
    Ok(())
}

// R6, U6: the Location of an upload.
#[tokio::test]
async fn the_place_of_an_upload_elsewhere_sees_no_login() -> Result<()> {
    let way = way()?;
    let stranger = way.target.beside()?;
    let way = way.to(Fault::Location(Location::OtherHost(stranger.url())));
    way.copies().await;
    assert!(stranger.count(Step::Put) > 0);
    assert_nothing_leaked(&way.target, &stranger);
    Ok(())
}

// R6, A5: the realm gets the credential, and nobody it redirects to.
#[tokio::test]
async fn a_token_service_elsewhere_sees_the_password_and_no_token() -> Result<()> {
    let way = way()?;
    let service = way.source.beside()?;
    let way = way.from(Fault::Realm(format!("{}/token", service.url())));
    way.copies().await;
    let password = way.source.access().credentials.unwrap().1;
    for secret in way
        .source
        .secrets()
        .iter()
        .filter(|secret| **secret != password)
    {
        assert!(
            service
                .requests()
                .iter()
                .all(|seen| !seen.text().contains(secret.as_str()))
        );
    }
    // The registry itself never sees the password.
    for seen in way.source.requests() {
        assert!(
            !seen
                .header("authorization")
                .unwrap_or_default()
                .starts_with("Basic")
        );
    }
    Ok(())
}

// R6, T1: the link to the next page.
#[tokio::test]
async fn the_next_page_of_tags_elsewhere_sees_no_login() -> Result<()> {
    let way = way()?;
    let stranger = way.source.beside()?;
    way.source
        .add(Fault::Tags(TagList::ForeignLink(stranger.url())));
    let found = way.client(&way.source).list_tags(&from()).await;
    assert!(found.is_ok() || stranger.requests().is_empty());
    assert_nothing_leaked(&way.source, &stranger);
    Ok(())
}

// R6, D7: the urls of a layer.
#[tokio::test]
async fn the_publisher_of_a_layer_sees_no_login() -> Result<()> {
    let probe = Sample::nondistributable(1, &[String::new()]);
    let digest = probe.staying.iter().next().unwrap().clone();
    let publisher = FakeRegistry::start()?;
    let urls = [format!("{}/storage/{digest}", publisher.url())];
    let way = Way::between(registry()?, registry()?, Sample::nondistributable(1, &urls))?;
    let content = way
        .sample
        .blobs
        .iter()
        .find(|(known, _)| *known == digest)
        .unwrap()
        .1
        .clone();
    publisher.put_blob("any", &content);
    way.source.remove_blob(FROM, &digest);
    let fill = ImageJob {
        destinations: Vec::new(),
        ..way.job()
    };
    let report = way.run(&[fill]).await;
    assert!(report.failures().next().is_none(), "{report:?}");
    assert_eq!(publisher.requests().len(), 1);
    assert_nothing_leaked(&way.source, &publisher);
    Ok(())
}

// R6: within one host the scheme and the port decide too.
#[tokio::test]
async fn another_port_of_the_same_host_is_another_origin() -> Result<()> {
    let way = way()?;
    let stranger = way.target.beside()?;
    let url = stranger.url();
    assert_eq!(
        url.rsplit_once(':').unwrap().0,
        way.target.url().rsplit_once(':').unwrap().0
    );
    let way = way.to(Fault::Location(Location::OtherHost(url)));
    way.copies().await;
    assert_nothing_leaked(&way.target, &stranger);
    Ok(())
}

// R6
#[tokio::test]
async fn a_redirect_that_leaves_tls_is_refused() -> Result<()> {
    let source = FakeRegistry::builder()
        .tls()
        .login(Login::bearer("me", "secret"))
        .start()?;
    let way = Way::between(source, registry()?, Sample::image(1, &[9_000]))?;
    let stranger = way.source.beside()?;
    let way = way.from(Fault::Redirect(307, stranger.url()));
    way.fails("RedirectRefused").await;
    assert!(stranger.requests().is_empty());
    Ok(())
}

/// The faults by which a registry can point somewhere: at its source side, and at its target side.
fn pointing_to(url: &str) -> [(bool, Rule); 2] {
    [
        (true, Fault::Redirect(307, url.to_owned()).into()),
        (
            false,
            Fault::Location(Location::OtherHost(url.to_owned())).into(),
        ),
    ]
}

// R7
#[tokio::test]
async fn no_link_leads_to_a_forbidden_address() -> Result<()> {
    for address in FORBIDDEN {
        let url = format!("http://{address}");
        for (is_source, rule) in pointing_to(&url) {
            let way = way()?;
            let way = if is_source {
                way.from(rule)
            } else {
                way.to(rule)
            };
            way.fails("RedirectRefused").await;
        }
        let way = way()?;
        way.source.add(Fault::Tags(TagList::ForeignLink(url)));
        let found = way.client(&way.source).list_tags(&from()).await;
        let error = found.expect_err("a forbidden page");
        assert_eq!(<&str>::from(&error), "RedirectRefused", "{address}");
    }
    Ok(())
}

// R7, D7
#[tokio::test]
async fn the_urls_of_a_layer_lead_to_no_forbidden_address() -> Result<()> {
    let urls = ["http://169.254.169.254/latest/meta-data".to_owned()];
    let way = Way::of(Sample::nondistributable(1, &urls))?;
    let digest = way.sample.staying.iter().next().unwrap().clone();
    way.source.remove_blob(FROM, &digest);
    let fill = ImageJob {
        destinations: Vec::new(),
        ..way.job()
    };
    let report = way.run(&[fill]).await;
    let reasons: Vec<_> = report
        .failures()
        .map(|(_, _, failure)| failure.reason)
        .collect();
    assert_eq!(reasons, ["RedirectRefused"]);
    Ok(())
}

/// A registry of the world outside: loopback is forbidden to what it says.
fn outside() -> Result<FakeRegistry> {
    FakeRegistry::builder()
        .at(own_address())
        .login(Login::bearer("me", "secret"))
        .start()
}

// R7
#[tokio::test]
async fn a_registry_elsewhere_leads_to_no_loopback_address() -> Result<()> {
    let here = FakeRegistry::start()?;
    for host in ["127.0.0.1", "127.1.2.3", "localhost"] {
        let url = here.url().replace("127.0.0.1", host);
        for (is_source, rule) in pointing_to(&url) {
            let way = Way::between(outside()?, outside()?, Sample::image(1, &[9_000]))?;
            let way = if is_source {
                way.from(rule)
            } else {
                way.to(rule)
            };
            way.fails("AddressRefused").await;
        }
    }
    assert!(here.requests().is_empty());
    Ok(())
}

// R7: a name says nothing, what it resolves to does.
#[tokio::test]
async fn a_name_that_resolves_to_loopback_is_not_connected_to() -> Result<()> {
    let Some((name, listener)) = loopback_name() else {
        panic!(
            "no name but localhost resolves to loopback here, such as ip6-loopback or that of the machine"
        );
    };
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{name}:{}", listener.local_addr().unwrap().port());
    for (is_source, rule) in pointing_to(&url) {
        let mut way = Way::between(outside()?, outside()?, Sample::image(1, &[9_000]))?;
        way.retry_attempts = 0;
        let way = if is_source {
            way.from(rule)
        } else {
            way.to(rule)
        };
        way.fails("AddressRefused").await;
        assert!(listener.accept().is_err(), "somebody connected to {url}");
    }
    Ok(())
}

/// A name of this machine that resolves to loopback without saying so, and a listener there.
fn loopback_name() -> Option<(String, TcpListener)> {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let of_hosts = hosts
        .lines()
        .flat_map(|line| line.split_whitespace().skip(1));
    let names = [own.trim(), "ip6-loopback", "ip6-localhost"]
        .into_iter()
        .chain(of_hosts);
    for name in names.filter(|name| !name.contains("localhost") || name.starts_with("ip6")) {
        let Ok(mut addresses) = (name, 0).to_socket_addrs() else {
            continue;
        };
        let Some(address) = addresses.find(|address| address.ip().is_loopback()) else {
            continue;
        };
        if let Ok(listener) = TcpListener::bind((address.ip(), 0)) {
            return Some((name.to_owned(), listener));
        }
    }
    None
}
