//! Where a registry answers: scheme, host and port, in one canonical spelling.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

use crate::image::{Host, RepositoryPath};

use super::{
    answer::shown,
    error::{Error, Result},
};

/// Where the API of Docker Hub answers; `docker.io` itself is a web site (registry rule E3).
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Names under which people know Docker Hub.
const DOCKER_HUB_NAMES: [&str; 3] = ["docker.io", "index.docker.io", DOCKER_HUB];

/// Whether a host, without scheme and path, is one of Docker Hub's names.
pub(super) fn is_docker_hub_name(host: &str) -> bool {
    DOCKER_HUB_NAMES
        .iter()
        .any(|name| host.eq_ignore_ascii_case(name))
}

/// Where a registry answers. Two endpoints are equal when they are one origin: the default port is dropped, the host is in
/// lower case (registry rule R8).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    plain_http: bool,
    host: Host,
}

impl Endpoint {
    /// Reads what a user gave as address: with a scheme as written, without one `https`, but `http` for a loopback host.
    ///
    /// # Errors
    /// When it is not `[http[s]://]host[:port]`; a path is refused, since the API always lies at `/v2/`.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidAddress {
            address: shown(without_user(text)),
            reason,
        };
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme.to_ascii_lowercase()), rest),
            None => (None, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err(invalid(
                "user name and password do not belong into the address",
            ));
        }
        if rest.contains(['/', '?', '#']) {
            return Err(invalid("there is something after the host"));
        }
        let host: Host = rest.parse().map_err(|source| Error::InvalidHost {
            address: shown(text),
            source,
        })?;
        let plain_http = match scheme.as_deref() {
            Some("http") => true,
            Some("https") => false,
            Some(_) => return Err(invalid("the scheme is neither http nor https")),
            None => host.is_loopback(),
        };
        Ok(Self::for_host(&host, plain_http))
    }

    /// Where the API of the host of an image name answers: Docker Hub's names all mean its API host.
    pub fn for_host(host: &Host, plain_http: bool) -> Self {
        if is_docker_hub_name(host.as_str())
            && let Ok(host) = DOCKER_HUB.parse()
        {
            return Self { plain_http, host };
        }
        Self {
            plain_http,
            host: canonical(host, plain_http),
        }
    }

    /// Host and port; the port only where it is not the scheme's own.
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// Whether the registry is asked without TLS.
    pub const fn is_plain_http(&self) -> bool {
        self.plain_http
    }

    /// Whether this is Docker Hub.
    pub fn is_docker_hub(&self) -> bool {
        is_docker_hub_name(self.host.as_str())
    }

    /// The root of the API as URL.
    pub(super) fn base_url(&self) -> Result<Url> {
        Url::parse(&format!("{self}/v2/")).map_err(|_| Error::InvalidAddress {
            address: self.to_string(),
            reason: "no URL can be made of this host",
        })
    }

    /// A repository's name as the registry knows it: images of Docker Hub without a namespace lie under `library/`.
    pub(super) fn name_of(&self, repository: &RepositoryPath) -> String {
        if self.is_docker_hub() && repository.is_single_component() {
            format!("library/{repository}")
        } else {
            repository.to_string()
        }
    }
}

/// The spelling in which a URL would show the host. A host no URL accepts stays as it is; [`Endpoint::base_url`] refuses it.
fn canonical(host: &Host, plain_http: bool) -> Host {
    let scheme = if plain_http { "http" } else { "https" };
    let spelled = || -> Option<Host> {
        let url = Url::parse(&format!("{scheme}://{host}/")).ok()?;
        let name = url.host_str()?;
        // `Url::port` leaves out the scheme's own port already.
        match url.port() {
            Some(port) => format!("{name}:{port}").parse().ok(),
            None => name.parse().ok(),
        }
    };
    spelled().unwrap_or_else(|| host.clone())
}

/// What of an address may be repeated in a message: a password written before the `@` may not.
fn without_user(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, rest)| rest)
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain_http { "http" } else { "https" };
        write!(formatter, "{scheme}://{}", self.host)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_means_one_origin() {
        for (text, expected) in [
            ("https://registry.example", "https://registry.example"),
            ("https://registry.example/", "https://registry.example"),
            ("https://registry.example:443", "https://registry.example"),
            ("http://registry.example:80/", "http://registry.example"),
            ("http://registry.example:443", "http://registry.example:443"),
            (
                "HTTPS://Registry.Example:5000",
                "https://registry.example:5000",
            ),
            ("registry.example:05000", "https://registry.example:5000"),
            ("registry.example", "https://registry.example"),
            ("registry", "https://registry"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("https://localhost:5000", "https://localhost:5000"),
            ("[0:0::1]", "http://[::1]"),
            ("docker.io", "https://registry-1.docker.io"),
            ("https://index.docker.io", "https://registry-1.docker.io"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.to_string(), expected, "{text}");
            assert!(endpoint.base_url().unwrap().as_str().ends_with("/v2/"));
        }
    }

    #[test]
    fn what_is_not_an_address_is_refused_without_repeating_a_password() {
        for text in [
            "",
            "https://",
            "ftp://registry.example",
            "https://registry.example/v2/",
            "https://registry.example/team",
            "registry.example?x=y",
            "registry.example:0",
            "https://me:hunter2@registry.example",
            "me:hunter2@registry.example",
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }

    #[test]
    fn only_docker_hub_has_a_library() {
        let hub = Endpoint::for_host(&"docker.io".parse().unwrap(), false);
        let other = Endpoint::for_host(&"registry.example".parse().unwrap(), false);
        for (endpoint, path, expected) in [
            (&hub, "ubuntu", "library/ubuntu"),
            (&hub, "team/app", "team/app"),
            (&other, "ubuntu", "ubuntu"),
        ] {
            assert_eq!(endpoint.name_of(&path.parse().unwrap()), expected);
        }
    }

    proptest! {
        #[test]
        fn an_endpoint_survives_printing_and_parsing(text in "(https?://)?[a-zA-Z0-9.-]{1,20}(:[0-9]{1,5})?/?") {
            if let Ok(endpoint) = Endpoint::parse(&text) {
                let again = Endpoint::parse(&endpoint.to_string()).unwrap();
                prop_assert_eq!(again, endpoint);
            }
        }
    }
}
