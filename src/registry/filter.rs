//! Which addresses connections are made to: the last look, when names have become addresses (registry rule R7).
//!
//! Every request passes here, whoever named its host: the user, a redirect, a token service, an upload's location, a proxy. A
//! name is judged by the very addresses that are then connected to, so that a second look at the DNS can tell nothing else.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::net::TcpStream;
use url::{Host, Url};

use super::{
    address::{self, Kind},
    error::{Error, Operation},
};

/// Who may be asked on this machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Loopback {
    /// Nobody but a proxy of the environment: what a tenant names must not reach what listens here for us alone.
    Refused,
    /// Whatever the user named, a registry or its proxy; and what a registry points to, where the registry itself is here.
    #[default]
    Named,
    /// Everybody.
    Allowed,
}

/// Turns names into addresses: the system's way, unless a test needs another.
#[derive(Clone)]
pub struct Names(Arc<Lookup>);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Lookup = dyn Fn(&str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync;

impl Names {
    /// Names as `look_up` knows them.
    pub fn new(
        look_up: impl Fn(&str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(look_up))
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::new(|name| {
            let name = name.to_owned();
            Box::pin(async move {
                let addresses = tokio::net::lookup_host((name, 0)).await?;
                Ok(addresses.map(|address| address.ip()).collect())
            })
        })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Names")
    }
}

/// The proxies of a client that may be on this machine.
#[derive(Debug, Default)]
pub(super) struct LocalProxies {
    pub(super) hosts: Vec<String>,
    /// Whoever runs this program named them, not whoever uses it.
    pub(super) are_of_environment: bool,
}

/// What a host is asked as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The registry, or what it points to.
    Target,
    /// The proxy on the way there.
    Proxy,
}

/// Decides about every connection of one client.
#[derive(Debug)]
pub(super) struct Filter {
    loopback: Loopback,
    registry: String,
    /// Whether the registry is on this machine: by its address, or by what its name means when it is looked up first.
    is_local: OnceLock<bool>,
    proxies: LocalProxies,
    names: Names,
}

/// Why no connection is made.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{host} is at {address}, {reason}")]
pub(super) struct Refused {
    host: String,
    address: IpAddr,
    reason: &'static str,
}

impl Refused {
    /// As the error of an operation.
    pub(super) fn during(&self, operation: &Operation) -> Error {
        Error::AddressRefused {
            operation: operation.clone(),
            host: self.host.clone(),
            address: self.address,
            reason: self.reason,
        }
    }
}

impl Filter {
    /// The filter of a client for the registry at `base`.
    pub(super) fn new(loopback: Loopback, base: &Url, proxies: LocalProxies, names: Names) -> Self {
        let is_local = match base.host() {
            Some(host) if address::is_loopback(&host) => OnceLock::from(true),
            Some(Host::Domain(_)) | None => OnceLock::new(),
            Some(Host::Ipv4(_) | Host::Ipv6(_)) => OnceLock::from(false),
        };
        Self {
            loopback,
            registry: base.host_str().map(plain).unwrap_or_default(),
            is_local,
            proxies,
            names,
        }
    }

    /// Decides about the host of a request. Names are mostly judged when they are looked up to connect; only where a name is
    /// that of a proxy too nobody could tell then which of them is meant.
    pub(super) async fn check(&self, host: &Host<&str>) -> Result<(), Refused> {
        match (address::literal(host), host) {
            (Some(address), _) => self.judge(&plain(&host.to_string()), address, Role::Target),
            (None, Host::Domain(name)) if self.is_proxy(&plain(name)) => {
                let found = self.names_of(name).await.unwrap_or_default();
                self.allowed(name, found, Role::Target).map(drop)
            }
            (None, _) => Ok(()),
        }
    }

    /// Decides about the host of a proxy that is an address.
    pub(super) fn check_proxy(&self, host: &Host<&str>) -> Result<(), Refused> {
        match address::literal(host) {
            Some(address) => self.judge(&plain(&host.to_string()), address, Role::Proxy),
            None => Ok(()),
        }
    }

    /// A connection to a proxy, past the HTTP library.
    pub(super) async fn connect(&self, proxy: &Host<&str>, port: u16) -> Option<TcpStream> {
        self.check_proxy(proxy).ok()?;
        let addresses = match (address::literal(proxy), proxy) {
            (Some(address), _) => vec![address],
            (None, Host::Domain(name)) => self.look_up(name).await.ok()?,
            (None, Host::Ipv4(_) | Host::Ipv6(_)) => return None,
        };
        let addresses: Vec<_> = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect();
        TcpStream::connect(&*addresses).await.ok()
    }

    /// The addresses of a name that may be asked.
    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, BoxError> {
        let found = self.names_of(name).await?;
        let role = if self.is_proxy(&plain(name)) {
            Role::Proxy
        } else {
            Role::Target
        };
        Ok(self.allowed(name, found, role)?)
    }

    /// All addresses of a name. Those of the registry tell whether it is on this machine, once and for all.
    async fn names_of(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let found = (self.names.0)(name).await?;
        if plain(name) == self.registry {
            let is_loopback = |address: &IpAddr| address::kind(*address) == Kind::Loopback;
            self.is_local
                .get_or_init(|| !found.is_empty() && found.iter().all(is_loopback));
        }
        Ok(found)
    }

    /// Those of a name's addresses that may be asked, if there are any.
    fn allowed(&self, name: &str, found: Vec<IpAddr>, role: Role) -> Result<Vec<IpAddr>, Refused> {
        let mut allowed = Vec::with_capacity(found.len());
        let mut refused = None;
        for address in found {
            match self.judge(&plain(name), address, role) {
                Ok(()) => allowed.push(address),
                Err(reason) => refused = Some(reason),
            }
        }
        match refused {
            Some(refused) if allowed.is_empty() => Err(refused),
            _ => Ok(allowed),
        }
    }

    fn judge(&self, host: &str, address: IpAddr, role: Role) -> Result<(), Refused> {
        let reason = match address::kind(address) {
            Kind::Ordinary => return Ok(()),
            Kind::Loopback if self.may_be_local(role) => return Ok(()),
            Kind::Loopback => "which is this machine itself",
            Kind::Forbidden => "where no registry ever is",
        };
        Err(Refused {
            host: host.to_owned(),
            address,
            reason,
        })
    }

    fn may_be_local(&self, role: Role) -> bool {
        match (self.loopback, role) {
            (Loopback::Allowed, _) | (Loopback::Named, Role::Proxy) => true,
            (Loopback::Named, Role::Target) => self.is_local.get() == Some(&true),
            (Loopback::Refused, Role::Proxy) => self.proxies.are_of_environment,
            (Loopback::Refused, Role::Target) => false,
        }
    }

    fn is_proxy(&self, host: &str) -> bool {
        self.proxies.hosts.iter().any(|proxy| proxy == host)
    }
}

/// A host as it is compared: in lower case, without the dot of a full name.
pub(super) fn plain(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// The filter as the HTTP library calls it.
pub(super) struct Resolver(pub(super) Arc<Filter>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let filter = Arc::clone(&self.0);
        Box::pin(async move {
            let found = filter.look_up(name.as_str()).await?;
            let addresses = found
                .into_iter()
                // The library puts in the port.
                .map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(loopback: Loopback, base: &str, proxies: LocalProxies, found: &[&str]) -> Filter {
        let found: Vec<IpAddr> = found.iter().map(|ip| ip.parse().unwrap()).collect();
        let names = Names::new(move |_| Box::pin(std::future::ready(Ok(found.clone()))));
        Filter::new(loopback, &base.parse().unwrap(), proxies, names)
    }

    #[tokio::test]
    async fn of_several_addresses_the_good_ones_are_left() {
        let found = &["10.0.0.1", "169.254.169.254", "127.0.0.1", "fd00::1"];
        let filter = filter(
            Loopback::Named,
            "https://r.example",
            LocalProxies::default(),
            found,
        );
        let left = filter.look_up("R.Example.").await.unwrap();
        assert_eq!(
            left,
            ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(filter.is_local.get(), Some(&false));
    }

    #[tokio::test]
    async fn a_proxy_of_the_environment_may_be_here_whatever_a_tenant_may() {
        for (loopback, are_of_environment, may) in [
            (Loopback::Refused, true, true),
            (Loopback::Refused, false, false),
            (Loopback::Named, false, true),
            (Loopback::Allowed, false, true),
        ] {
            let proxies = LocalProxies {
                hosts: vec!["proxy.example".to_owned()],
                are_of_environment,
            };
            let filter = filter(loopback, "https://r.example", proxies, &["127.0.0.1"]);
            assert_eq!(filter.look_up("proxy.example").await.is_ok(), may);
            assert_eq!(
                filter.look_up("other.example").await.is_ok(),
                loopback == Loopback::Allowed
            );
        }
    }

    #[tokio::test]
    async fn what_a_registry_points_to_does_not_pass_for_the_proxy() {
        for (loopback, may) in [
            (Loopback::Refused, false),
            (Loopback::Named, false),
            (Loopback::Allowed, true),
        ] {
            let proxies = LocalProxies {
                hosts: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
                are_of_environment: true,
            };
            let filter = filter(loopback, "https://r.example", proxies, &["127.0.0.1"]);
            for host in ["localhost", "127.0.0.1"] {
                let host = Host::parse(host).unwrap();
                let host = match &host {
                    Host::Domain(name) => Host::Domain(name.as_str()),
                    Host::Ipv4(address) => Host::Ipv4(*address),
                    Host::Ipv6(address) => Host::Ipv6(*address),
                };
                assert_eq!(filter.check(&host).await.is_ok(), may, "{host}");
                assert!(filter.check_proxy(&host).is_ok(), "{host}");
            }
            assert!(filter.look_up("localhost").await.is_ok());
        }
    }

    #[tokio::test]
    async fn the_systems_names_are_the_default() {
        let found = (Names::default().0)("localhost").await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback));
    }
}
