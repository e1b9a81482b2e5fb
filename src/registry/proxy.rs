//! Which way requests take: straight to the host, or through a proxy.
//!
//! The rules are those of the Go tools that people use beside this one (`golang.org/x/net/http/httpproxy`), since one
//! environment serves them all: the variable in capitals first, `NO_PROXY` with suffixes, ports and networks, and never a
//! proxy for loopback. Two things are curl's: `ALL_PROXY`, and white space between the entries of `NO_PROXY`.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use url::{Host, Url};

use super::{
    address,
    answer::shown,
    error::{Error, Result},
    filter::{self, Filter, LocalProxies},
    wire,
};

/// Where the status ends in an answer: `HTTP/1.1 407`.
const STATUS_END: usize = 12;

/// Meanwhile the user waits for an error that is known already, only not in full.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Which proxy the requests of a client go through; it holds for the registry, its token service and its storage alike.
#[derive(Debug, Clone, Default)]
pub enum ProxyChoice {
    /// The one that the environment names: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, with the exceptions of `NO_PROXY`.
    #[default]
    Environment,
    /// None, whatever the environment says.
    Direct,
    /// This one, whatever the environment says. Loopback is no exception here: who names a proxy for one registry means it.
    Through(Proxy),
}

/// A proxy and our login there. Its address can be shown, its login cannot.
#[derive(Clone)]
pub struct Proxy {
    url: Url,
    login: Option<HeaderValue>,
    exceptions: Exceptions,
}

impl Proxy {
    /// A proxy at `http[s]://host[:port]`, with a user and password where it wants them.
    ///
    /// # Errors
    /// When the address is not of that form, or already holds a user, who would be shown wherever the address is; when the
    /// login cannot be sent.
    pub fn new(address: &str, login: Option<(String, SecretString)>) -> Result<Self> {
        let invalid = |reason| invalid("the proxy", address, reason);
        let url = parse(address).map_err(invalid)?;
        if has_user(&url) {
            return Err(invalid(
                "it holds a user name or password; they have fields of their own",
            ));
        }
        let login = login
            .map(|(username, password)| basic(&username, password.expose_secret()))
            .transpose()
            .map_err(invalid)?;
        Ok(Self {
            url,
            login,
            exceptions: Exceptions::default(),
        })
    }

    /// The same proxy, but not for these hosts. The list is written like the variable `NO_PROXY`.
    #[must_use]
    pub fn except(self, list: &str) -> Self {
        Self {
            exceptions: Exceptions::parse(list),
            ..self
        }
    }

    /// The proxy's host.
    pub(super) fn host(&self) -> Option<Host<&str>> {
        self.url.host()
    }

    /// Asks for a connection to the host of `url`; the status of the answer, if there is one. Only the proxy itself can
    /// answer this. Without TLS on the way to the proxy only.
    pub(super) async fn ask_for_tunnel(&self, url: &Url, filter: &Filter) -> Option<StatusCode> {
        let asked = tokio::time::timeout(PROBE_LIMIT, self.tunnel_status(url, filter));
        asked.await.ok().flatten()
    }

    async fn tunnel_status(&self, url: &Url, filter: &Filter) -> Option<StatusCode> {
        if self.url.scheme() != "http" {
            return None;
        }
        let target = format!("{}:{}", url.host_str()?, url.port_or_known_default()?);
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(login) = &self.login {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(login.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        let port = self.url.port_or_known_default()?;
        let mut socket = filter.connect(&self.url.host()?, port).await?;
        socket.write_all(&request).await.ok()?;
        let mut start = [0; STATUS_END];
        socket.read_exact(&mut start).await.ok()?;
        StatusCode::from_bytes(start.strip_prefix(b"HTTP/1.")?.get(2..)?).ok()
    }

    /// A proxy as a variable names it: with or without scheme, the login before an `@`.
    fn from_variable(name: &str, value: &str) -> Result<Self> {
        let invalid = |reason| invalid(name, value, reason);
        let with_scheme = if value.contains("://") {
            value.to_owned()
        } else {
            format!("http://{value}")
        };
        let mut url = parse(&with_scheme).map_err(invalid)?;
        let login = if has_user(&url) {
            let decoded = |text: &str| percent_decoded(text).ok_or("its login is not UTF-8");
            let username = decoded(url.username()).map_err(invalid)?;
            let password = decoded(url.password().unwrap_or_default()).map_err(invalid)?;
            Some(basic(&username, &password).map_err(invalid)?)
        } else {
            None
        };
        // Neither can fail for a URL with a host.
        url.set_username("").ok();
        url.set_password(None).ok();
        Ok(Self {
            url,
            login,
            exceptions: Exceptions::default(),
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&wire::origin_text(&self.url))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Proxy({self})")
    }
}

fn invalid(what: &str, address: &str, reason: &'static str) -> Error {
    // A login may stand before the last `@`, and without one the whole text may be a password given by mistake.
    let address = address.rsplit_once('@').map_or(address, |(_, host)| host);
    Error::InvalidProxy {
        what: what.to_owned(),
        address: shown(address),
        reason,
    }
}

/// Reads an address, login and all.
fn parse(address: &str) -> Result<Url, &'static str> {
    let url = Url::parse(address).map_err(|_| "it is not a URL")?;
    match url.scheme() {
        "http" | "https" => {}
        "socks4" | "socks4a" | "socks5" | "socks5h" => return Err("SOCKS is not supported"),
        _ => return Err("its scheme is neither http nor https"),
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("there is something after the host");
    }
    let host = url.host().ok_or("it names no host")?;
    if address::is_forbidden_host(&host) {
        return Err("it points to a forbidden address");
    }
    Ok(url)
}

fn has_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// The header of a login at a proxy.
fn basic(username: &str, password: &str) -> Result<HeaderValue, &'static str> {
    if username.contains(':') {
        return Err("the user name of its login contains a colon, which no proxy understands");
    }
    if username
        .chars()
        .chain(password.chars())
        .any(char::is_control)
    {
        return Err("its login contains control characters; check for a stray line break");
    }
    let text = STANDARD.encode(format!("{username}:{password}"));
    let mut header =
        HeaderValue::from_str(&format!("Basic {text}")).map_err(|_| "its login cannot be sent")?;
    header.set_sensitive(true);
    Ok(header)
}

/// Resolves `%40` and the like.
fn percent_decoded(text: &str) -> Option<String> {
    // A form would be decoded alike but for its plus sign, which is a plus sign here.
    let text = format!("={}", text.replace('+', "%2B").replace('&', "%26"));
    let (_, value) = url::form_urlencoded::parse(text.as_bytes()).next()?;
    (!value.contains(char::REPLACEMENT_CHARACTER)).then(|| value.into_owned())
}

/// Hosts that are asked without a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Exceptions(Vec<Exception>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    /// `*`
    Everything,
    /// `10.0.0.0/8`
    Network { address: IpAddr, bits: u32 },
    /// `10.0.0.1`, `[::1]:5000`
    Address { address: IpAddr, port: Option<u16> },
    /// `example.com` with all below it, or `.example.com`, only what is below it.
    Name {
        suffix: String,
        only_below: bool,
        port: Option<u16>,
    },
}

impl Exceptions {
    /// Reads the list; an entry that means nothing matches nothing, as everywhere.
    fn parse(list: &str) -> Self {
        let entries = list.split(|char: char| char == ',' || char.is_ascii_whitespace());
        Self(
            entries
                .filter(|entry| !entry.is_empty())
                .map(Exception::parse)
                .collect(),
        )
    }

    fn contain(&self, url: &Url) -> bool {
        let Some(host) = url.host() else {
            return false;
        };
        let port = url.port_or_known_default();
        self.0
            .iter()
            .any(|exception| exception.matches(&host, port))
    }
}

impl Exception {
    fn parse(entry: &str) -> Self {
        if entry == "*" {
            return Self::Everything;
        }
        if let Some(network) = Self::network(entry) {
            return network;
        }
        let (host, port) = split_port(entry);
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Self::Address {
                address: address.to_canonical(),
                port,
            };
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let below = host.strip_prefix('*').unwrap_or(&host).strip_prefix('.');
        Self::Name {
            only_below: below.is_some(),
            suffix: below.unwrap_or(&host).to_owned(),
            port,
        }
    }

    fn network(entry: &str) -> Option<Self> {
        let (address, bits) = entry.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let bits: u32 = bits.parse().ok()?;
        let limit = if address.is_ipv4() { 32 } else { 128 };
        (bits <= limit).then_some(Self::Network { address, bits })
    }

    fn matches(&self, host: &Host<&str>, actual_port: Option<u16>) -> bool {
        let has_port = |port: &Option<u16>| port.is_none() || *port == actual_port;
        match self {
            Self::Everything => true,
            Self::Network { address, bits } => {
                ip(host).is_some_and(|ip| is_within(ip, *address, *bits))
            }
            Self::Address { address, port } => ip(host) == Some(*address) && has_port(port),
            Self::Name {
                suffix,
                only_below,
                port,
            } => {
                matches!(host, Host::Domain(name) if has_suffix(name, suffix, *only_below))
                    && has_port(port)
            }
        }
    }
}

/// The port of `host:port`; the colons of a bare IPv6 address are no ports.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    match entry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (entry, None),
        },
        _ => (entry, None),
    }
}

fn ip(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(address) => Some(IpAddr::V4(*address)),
        Host::Ipv6(address) => Some(address.to_canonical()),
    }
}

fn is_within(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let difference = ip.to_bits() ^ network.to_bits();
            difference.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let difference = ip.to_bits() ^ network.to_bits();
            difference.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

fn has_suffix(name: &str, suffix: &str, only_below: bool) -> bool {
    // A URL keeps its host in lower case, and the dot of a full name.
    let name = name.trim_end_matches('.');
    match name.strip_suffix(suffix) {
        Some("") => !only_below,
        Some(rest) => rest.ends_with('.'),
        None => false,
    }
}

/// The ways of one client.
#[derive(Debug, Default)]
pub(super) struct Routes {
    http: Option<Arc<Hop>>,
    https: Option<Arc<Hop>>,
    exceptions: Exceptions,
    excepts_loopback: bool,
}

/// A proxy on the way of one client.
#[derive(Debug)]
pub(super) struct Hop {
    proxy: Proxy,
    /// It did not accept our login: asking again would only lock the account. A client lives for one run.
    is_login_refused: AtomicBool,
}

impl Hop {
    fn new(proxy: Proxy) -> Arc<Self> {
        Arc::new(Self {
            proxy,
            is_login_refused: AtomicBool::new(false),
        })
    }

    pub(super) const fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    pub(super) fn note_refused_login(&self) {
        self.is_login_refused.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_login_refused(&self) -> bool {
        self.is_login_refused.load(Ordering::Relaxed)
    }
}

impl Routes {
    /// The ways that a choice opens for a client whose registry is at `base`.
    ///
    /// # Errors
    /// When the environment names a proxy for this registry that cannot be used.
    pub(super) fn new(choice: &ProxyChoice, base: &Url) -> Result<Self> {
        match choice {
            ProxyChoice::Direct => Ok(Self::default()),
            ProxyChoice::Through(proxy) => {
                let hop = Hop::new(proxy.clone());
                Ok(Self {
                    http: Some(Arc::clone(&hop)),
                    https: Some(hop),
                    exceptions: proxy.exceptions.clone(),
                    excepts_loopback: false,
                })
            }
            ProxyChoice::Environment => Self::of_variables(|name| std::env::var(name).ok(), base),
        }
    }

    /// Reads the variables. One that holds no proxy of ours is an error only where it is needed: a machine may have one for
    /// everything else.
    fn of_variables(variable: impl Fn(&str) -> Option<String>, base: &Url) -> Result<Self> {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| {
                let value = variable(name)?.trim().to_owned();
                (!value.is_empty()).then_some((*name, value))
            })
        };
        let exceptions = first(&["NO_PROXY", "no_proxy"]);
        let routes = Self {
            exceptions: exceptions
                .map(|(_, list)| Exceptions::parse(&list))
                .unwrap_or_default(),
            excepts_loopback: true,
            ..Self::default()
        };
        let is_needed = |scheme| !routes.is_exception(base) && base.scheme() == scheme;
        let hop = |scheme, own: [&'static str; 2]| {
            let Some((name, value)) = first(&own).or_else(|| first(&["ALL_PROXY", "all_proxy"]))
            else {
                return Ok(None);
            };
            match Proxy::from_variable(name, &value) {
                Ok(proxy) => Ok(Some(Hop::new(proxy))),
                Err(error) if is_needed(scheme) => Err(error),
                Err(_) => Ok(None),
            }
        };
        let http = hop("http", ["HTTP_PROXY", "http_proxy"])?;
        let https = hop("https", ["HTTPS_PROXY", "https_proxy"])?;
        Ok(Self {
            http,
            https,
            ..routes
        })
    }

    /// The proxies that may be on this machine although nothing else there may be asked.
    pub(super) fn local_proxies(&self) -> LocalProxies {
        let hosts = [&self.http, &self.https].into_iter().flatten();
        LocalProxies {
            hosts: hosts
                .filter_map(|hop| hop.proxy.url.host_str().map(filter::plain))
                .collect(),
            // Only those of the environment leave out loopback.
            are_of_environment: self.excepts_loopback,
        }
    }

    /// The proxy through which a URL is asked.
    pub(super) fn hop(&self, url: &Url) -> Option<&Arc<Hop>> {
        if self.is_exception(url) {
            return None;
        }
        self.for_scheme(url.scheme())
    }

    fn for_scheme(&self, scheme: &str) -> Option<&Arc<Hop>> {
        match scheme {
            "http" => self.http.as_ref(),
            "https" => self.https.as_ref(),
            _ => None,
        }
    }

    fn is_exception(&self, url: &Url) -> bool {
        let is_loopback = || url.host().is_some_and(|host| address::is_loopback(&host));
        (self.excepts_loopback && is_loopback()) || self.exceptions.contain(url)
    }

    /// The same rules in the form the HTTP library takes: one for each scheme, since each may have a login of its own.
    pub(super) fn as_rules(self: &Arc<Self>) -> Vec<reqwest::Proxy> {
        ["http", "https"]
            .into_iter()
            .filter_map(|scheme| {
                let login = self.for_scheme(scheme)?.proxy.login.clone();
                let routes = Arc::clone(self);
                let rule = reqwest::Proxy::custom(move |url| {
                    let hop = routes.hop(url).filter(|_| url.scheme() == scheme)?;
                    Some(hop.proxy.url.clone())
                });
                Some(match login {
                    Some(login) => rule.custom_http_auth(login),
                    None => rule,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Classified;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_of_a_proxy_is_a_scheme_a_host_and_a_port() {
        for (address, shown) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("https://proxy.example/", "https://proxy.example"),
            ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
            ("http://[fd00::1]:8080", "http://[fd00::1]:8080"),
        ] {
            assert_eq!(Proxy::new(address, None).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_without_repeating_a_password() {
        for (address, reason) in [
            ("proxy.example:3128", "scheme"),
            ("proxy", "not a URL"),
            ("", "not a URL"),
            ("socks5://proxy.example", "SOCKS"),
            ("http://me:hunter2@proxy.example", "fields of their own"),
            ("http://hunter2@proxy.example", "fields of their own"),
            ("ftp://me:hunter2@proxy.example", "scheme"),
            ("http://me:hunter2@proxy.example/x", "after the host"),
            ("http://proxy.example?x", "after the host"),
            ("http://169.254.169.254", "forbidden"),
            ("http://0.0.0.0:80", "forbidden"),
        ] {
            let error = Proxy::new(address, None).unwrap_err();
            assert_eq!(error.reason(), "InvalidProxy");
            assert!(error.to_string().contains(reason), "{address}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_login_that_cannot_be_sent_is_refused() {
        for (username, password) in [("a:b", "x"), ("a\n", "x"), ("a", "hunter2\r\n")] {
            let login = Some((username.to_owned(), password.into()));
            let error = Proxy::new("http://proxy.example", login).unwrap_err();
            assert!(error.to_string().contains("its login"), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn no_debug_output_of_a_proxy_shows_its_login() {
        let proxy = Proxy::new(
            "http://proxy.example",
            Some(("me".to_owned(), "hunter2".into())),
        )
        .unwrap();
        let routes = Arc::new(
            Routes::new(
                &ProxyChoice::Through(proxy.clone()),
                &url("https://r.example"),
            )
            .unwrap(),
        );
        for text in [
            format!("{proxy:?}"),
            format!("{routes:?}"),
            format!("{:?}", routes.as_rules()),
        ] {
            assert!(text.contains("roxy"), "{text}");
            for secret in ["hunter2", "bWU6aHVudGVyMg"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }

    /// By the table of `golang.org/x/net/http/httpproxy`, with curl's white space.
    #[test]
    fn exceptions_are_names_with_all_below_addresses_networks_and_ports() {
        for (list, host, is_exception) in [
            ("r.example", "r.example", true),
            ("r.example", "a.r.example", true),
            ("r.example", "ar.example", false),
            ("R.Example", "r.example", true),
            ("r.example.", "r.example", true),
            ("r.example", "r.example.", true),
            (".r.example", "a.r.example", true),
            (".r.example", "r.example", false),
            ("*.r.example", "a.r.example", true),
            ("*.r.example", "r.example", false),
            ("r.example:443", "r.example", true),
            ("r.example:5000", "r.example:5000", true),
            ("r.example:5000", "r.example", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("0.0.0.0/0", "r.example", false),
            ("10.1.2.3/33", "10.1.2.3", false),
            ("10.1.2.3", "10.1.2.3:5000", true),
            ("10.1.2.3:5000", "10.1.2.3:5000", true),
            ("10.1.2.3:5000", "10.1.2.3", false),
            ("fd00::/8", "[fd00::1]", true),
            ("::/0", "[fd00::1]", true),
            ("::/0", "10.1.2.3", false),
            ("fd00::1", "[fd00::1]:5000", true),
            ("[fd00::1]:5000", "[fd00::1]:5000", true),
            ("[fd00::1]:5000", "[fd00::1]", false),
            ("*", "r.example", true),
            ("*", "10.1.2.3", true),
            ("a.example, ,b.example c.example", "b.example", true),
            ("a.example, ,b.example c.example", "c.example", true),
            ("", "r.example", false),
            (".", "r.example", false),
            (":443", "r.example", false),
            ("/", "r.example", false),
        ] {
            let found = Exceptions::parse(list).contain(&url(&format!("https://{host}/v2/")));
            assert_eq!(found, is_exception, "'{list}' {host}");
        }
    }

    fn routes(variables: &[(&str, &str)], base: &str) -> Result<Routes> {
        let variable = |name: &str| {
            let (_, value) = variables.iter().find(|(variable, _)| *variable == name)?;
            Some((*value).to_owned())
        };
        Routes::of_variables(variable, &url(base))
    }

    /// The proxy of a URL, among these variables.
    fn proxy_of(variables: &[(&str, &str)], target: &str) -> String {
        let routes = routes(variables, target).unwrap();
        let hop = routes.hop(&url(target));
        hop.map_or_else(|| "none".to_owned(), |hop| hop.proxy().to_string())
    }

    #[test]
    fn the_environment_is_read_as_other_tools_read_it() {
        const HTTPS: (&str, &str) = ("HTTPS_PROXY", "http://s.example:1");
        const LOWER: (&str, &str) = ("https_proxy", "http://l.example:1");
        const ALL: (&str, &str) = ("ALL_PROXY", "http://a.example:1");
        let r = "https://r.example";
        for (variables, target, expected) in [
            (&[][..], r, "none"),
            (&[HTTPS], r, "http://s.example:1"),
            (&[HTTPS], "http://r.example", "none"),
            (&[LOWER], r, "http://l.example:1"),
            (&[LOWER, HTTPS], r, "http://s.example:1"),
            (&[LOWER, ("HTTPS_PROXY", " ")], r, "http://l.example:1"),
            (&[ALL, HTTPS], r, "http://s.example:1"),
            (&[ALL, HTTPS], "http://r.example", "http://a.example:1"),
            (&[("all_proxy", "a.example:1")], r, "http://a.example:1"),
            (
                &[("http_proxy", "a.example:1")],
                "http://r.example",
                "http://a.example:1",
            ),
            (
                &[("https_proxy", "https://a.example")],
                r,
                "https://a.example",
            ),
            (&[HTTPS, ("NO_PROXY", "r.example")], r, "none"),
            (&[HTTPS, ("no_proxy", "r.example")], r, "none"),
            (
                &[HTTPS, ("no_proxy", "r.example"), ("NO_PROXY", "x")],
                r,
                "http://s.example:1",
            ),
            (&[ALL], "http://localhost:5000", "none"),
            (&[ALL], "https://127.0.0.1:5000", "none"),
            (&[ALL], "https://[::1]:5000", "none"),
        ] {
            assert_eq!(
                proxy_of(variables, target),
                expected,
                "{variables:?} {target}"
            );
        }
    }

    #[test]
    fn a_login_in_a_variable_is_taken_out_of_the_address() {
        let value = "http://me:h%40un+ter&2=@s.example:1/";
        let routes = routes(&[("HTTPS_PROXY", value)], "https://r.example").unwrap();
        let proxy = routes.https.as_ref().unwrap().proxy();
        assert_eq!(proxy.url.as_str(), "http://s.example:1/");
        let expected = format!("Basic {}", STANDARD.encode("me:h@un+ter&2="));
        assert_eq!(proxy.login.as_ref().unwrap(), expected.as_str());
        assert!(proxy.login.as_ref().unwrap().is_sensitive());
    }

    #[test]
    fn a_variable_that_names_no_proxy_is_an_error_where_it_is_needed() {
        let socks = [("ALL_PROXY", "socks5://me:hunter2@s.example:1")];
        for base in ["https://r.example", "http://r.example"] {
            let text = routes(&socks, base).unwrap_err().to_string();
            assert!(
                text.contains("ALL_PROXY") && text.contains("SOCKS"),
                "{text}"
            );
            assert!(!text.contains("hunter2"), "{text}");
        }
        let with = |name, value| [socks[0], (name, value)];
        routes(&with("HTTPS_PROXY", "s.example:1"), "https://r.example").unwrap();
        routes(&with("NO_PROXY", "r.example"), "https://r.example").unwrap();
        routes(&socks, "http://localhost:5000").unwrap();
    }

    #[test]
    fn a_named_proxy_serves_all_hosts_but_its_own_exceptions() {
        let proxy = Proxy::new("http://proxy.example", None).unwrap();
        let choice = ProxyChoice::Through(proxy.except("r.example"));
        let routes = Routes::new(&choice, &url("https://127.0.0.1")).unwrap();
        assert!(routes.hop(&url("https://127.0.0.1")).is_some());
        assert!(routes.hop(&url("http://other.example")).is_some());
        assert!(routes.hop(&url("https://r.example")).is_none());
        let direct = Routes::new(&ProxyChoice::Direct, &url("https://r.example")).unwrap();
        assert!(direct.hop(&url("https://r.example")).is_none());
    }
}
