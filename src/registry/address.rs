//! Addresses and URLs that a registry names and we do not follow: redirect targets, upload locations, token services.
//!
//! This looks at what a URL says. What a name resolves to is for the connector to refuse.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Why a URL is not followed.
pub(super) type Refusal = &'static str;

/// Decides whether a URL that an answer named may be asked at all (registry rules A5, R6, R7). `from` is the URL whose
/// answer named it.
pub(super) fn refusal(from: &Url, to: &Url) -> Option<Refusal> {
    match (from.scheme(), to.scheme()) {
        ("https", "https") | ("http", "http" | "https") => {}
        ("https", "http") => return Some("it leaves TLS"),
        _ => return Some("its scheme is neither http nor https"),
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Some("it carries a user name or password");
    }
    let Some(host) = to.host() else {
        return Some("it names no host");
    };
    if is_loopback(&host) && !from.host().is_some_and(|host| is_loopback(&host)) {
        return Some("it points to the loopback address");
    }
    is_forbidden_host(&host).then_some("it points to a forbidden address")
}

/// Whether a host is, by itself, an address that nothing of ours is ever at.
pub(super) fn is_forbidden_host(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(address) => is_forbidden(*address),
        Host::Ipv6(address) => is_forbidden_v6(*address),
        Host::Domain(_) => false,
    }
}

/// Whether a host says by itself that it is this machine.
pub(super) fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            name.eq_ignore_ascii_case("localhost")
                || name.to_ascii_lowercase().ends_with(".localhost")
        }
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => match address.to_canonical() {
            IpAddr::V4(address) => address.is_loopback(),
            IpAddr::V6(address) => address.is_loopback(),
        },
    }
}

/// Link-local with the metadata services of the large clouds, "this network", broadcast and multicast. Private ranges stay
/// allowed: registries inside a cluster live there.
fn is_forbidden(address: Ipv4Addr) -> bool {
    /// Metadata services that do not sit on a link-local address: Alibaba Cloud, Azure.
    const METADATA: [Ipv4Addr; 2] = [
        Ipv4Addr::new(100, 100, 100, 200),
        Ipv4Addr::new(168, 63, 129, 16),
    ];
    address.is_link_local()
        || address.octets()[0] == 0
        || address.is_broadcast()
        || address.is_multicast()
        || METADATA.contains(&address)
}

/// The same for IPv6, and the forms that only dress up an IPv4 address.
fn is_forbidden_v6(address: Ipv6Addr) -> bool {
    /// The metadata service of AWS.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    let segments = address.segments();
    let is_link_local = segments[0] & 0xffc0 == 0xfe80;
    let is_nat64 = segments[0] == 0x64 && segments[1] == 0xff9b;
    address.to_ipv4_mapped().is_some()
        || is_nat64
        || is_link_local
        || address.is_unspecified()
        || address.is_multicast()
        || address == METADATA
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_harmless_urls_are_followed() {
        for (from, to, followed) in [
            ("https://r.example/v2/", "https://cdn.example/x", true),
            ("https://r.example/v2/", "http://r.example/x", false),
            ("http://r.example/v2/", "https://cdn.example/x", true),
            ("http://r.example/v2/", "http://cdn.example/x", true),
            ("https://r.example/v2/", "ftp://cdn.example/x", false),
            ("https://r.example/v2/", "file:///etc/passwd", false),
            ("https://r.example/v2/", "https://a:b@cdn.example/x", false),
            ("https://r.example/v2/", "https://10.0.0.1/x", true),
            ("https://r.example/v2/", "https://169.254.169.254/x", false),
            ("https://r.example/v2/", "https://168.63.129.16/x", false),
            ("https://r.example/v2/", "https://100.100.100.200/x", false),
            ("https://r.example/v2/", "https://0.0.0.0/x", false),
            ("https://r.example/v2/", "https://2852039166/x", false),
            ("https://r.example/v2/", "https://[fd00:ec2::254]/x", false),
            (
                "https://r.example/v2/",
                "https://[::ffff:10.0.0.1]/x",
                false,
            ),
            ("https://r.example/v2/", "https://[64:ff9b::a00:1]/x", false),
            ("https://r.example/v2/", "https://[fe80::1]/x", false),
            ("https://r.example/v2/", "https://127.0.0.1/x", false),
            ("https://r.example/v2/", "https://localhost./x", false),
            ("https://r.example/v2/", "https://[::1]/x", false),
            ("http://127.0.0.1:1/v2/", "http://127.0.0.1:2/x", true),
            ("http://localhost:1/v2/", "http://[::1]:2/x", true),
        ] {
            let refused = refusal(&from.parse().unwrap(), &to.parse().unwrap());
            assert_eq!(refused.is_none(), followed, "{from} -> {to}: {refused:?}");
        }
    }
}
