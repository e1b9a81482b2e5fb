//! The HTTP client: what a user can choose, time limits, connections.

use std::{sync::Arc, time::Duration};

use reqwest::redirect;
use secrecy::SecretString;

use super::{
    credential::{Credential, CredentialSource},
    endpoint::Endpoint,
    error::{Cause, Error, Result},
    filter::{Filter, Loopback, Names, Resolver},
    hosts::Hosts,
    proxy::{ProxyChoice, Routes},
    tls,
};

/// Name resolution, TCP and TLS together (registry rule P12).
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// An idle connection is given up before most servers and load balancers do, so that a request rarely meets one that is
/// already dead (R13): theirs are 60 s and more, some 30 s.
const POOL_IDLE_LIMIT: Duration = Duration::from_secs(20);

const USER_AGENT: &str = concat!("docker-image-pusher/", env!("CARGO_PKG_VERSION"));

/// Attempts after the first one, unless said otherwise (R21).
const RETRY_ATTEMPTS: u32 = 3;

/// How a registry is to be reached.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Who we are.
    pub credential: Credential,
    /// Where to look for another credential once this one is refused.
    pub credential_source: Option<Arc<dyn CredentialSource>>,
    /// Bundles of PEM certificates that are trusted in addition to the system's.
    pub ca_certificates: Vec<Vec<u8>>,
    /// Our own certificate with its key, as PEM text.
    pub client_identity: Option<SecretString>,
    /// Which proxy to go through.
    pub proxy: ProxyChoice,
    /// Trust whatever certificate comes.
    pub skip_tls_verify: bool,
    /// Consecutive retries of one operation without progress.
    pub retry_attempts: u32,
    /// What this process knows about registries.
    pub hosts: Hosts,
    /// Who may be asked on this machine.
    pub loopback: Loopback,
    /// How names become addresses.
    pub names: Names,
    /// Whose work this is: connections are shared fairly between tenants. The operator names the namespace.
    pub tenant: Arc<str>,
}

impl ClientOptions {
    /// Whether nothing in them decides who answers under the registry's name, nor makes the way there another one than
    /// everybody's.
    pub(super) fn is_everybodys(&self) -> bool {
        matches!(self.proxy, ProxyChoice::Environment)
            && self.ca_certificates.is_empty()
            && !self.skip_tls_verify
    }
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            credential: Credential::Anonymous,
            credential_source: None,
            ca_certificates: Vec::new(),
            client_identity: None,
            proxy: ProxyChoice::Environment,
            skip_tls_verify: false,
            retry_attempts: RETRY_ATTEMPTS,
            hosts: Hosts::default(),
            loopback: Loopback::default(),
            names: Names::default(),
            tenant: Arc::default(),
        }
    }
}

/// The HTTP client with the ways it takes, which its failures have to name.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) http: reqwest::Client,
    pub(super) routes: Arc<Routes>,
    pub(super) filter: Arc<Filter>,
}

/// Builds the client for one registry.
pub(super) fn build(endpoint: &Endpoint, options: &ClientOptions) -> Result<Client> {
    let base = endpoint.base_url()?;
    let routes = Arc::new(Routes::new(&options.proxy, &base)?);
    let filter = Arc::new(Filter::new(
        options.loopback,
        &base,
        routes.local_proxies(),
        options.names.clone(),
    ));
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::config(endpoint, options)?)
        .http1_only()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .tcp_nodelay(true)
        .dns_resolver(Resolver(Arc::clone(&filter)))
        .connect_timeout(CONNECT_LIMIT)
        .pool_idle_timeout(POOL_IDLE_LIMIT)
        // What is tried again is decided in one place, and that is not here.
        .retry(reqwest::retry::never())
        // Our rules, not the library's own look at the environment: it knows neither ports nor loopback.
        .no_proxy();
    for rule in routes.as_rules() {
        builder = builder.proxy(rule);
    }
    let http = builder.build().map_err(|error| Error::ClientUnusable {
        host: endpoint.host().to_string(),
        source: Cause::of(&error),
    })?;
    Ok(Client {
        http,
        routes,
        filter,
    })
}
