//! Addresses and URLs that a registry names and we do not follow: redirect targets, upload locations, token services.
//!
//! This looks at what a URL and an address say by themselves. What a name resolves to, and who may be asked on this machine,
//! is for the [filter](super::filter) to decide at the moment of connecting.

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
    is_forbidden_host(&host).then_some("it points to a forbidden address")
}

/// Whether a host is, by itself, an address that nothing of ours is ever at.
pub(super) fn is_forbidden_host(host: &Host<&str>) -> bool {
    literal(host).is_some_and(|address| kind(address) == Kind::Forbidden)
}

/// The address that a host is, if it is no name.
pub(super) fn literal(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Ipv4(address) => Some(IpAddr::V4(*address)),
        Host::Ipv6(address) => Some(IpAddr::V6(*address)),
        Host::Domain(_) => None,
    }
}

/// What an address is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It may be asked. Private ranges are among these: registries inside a cluster live there.
    Ordinary,
    /// It is this machine.
    Loopback,
    /// Nothing of ours is ever there.
    Forbidden,
}

/// What an address is good for (registry rule R7).
pub(super) fn kind(address: IpAddr) -> Kind {
    let (is_loopback, is_forbidden) = match address {
        IpAddr::V4(address) => (address.is_loopback(), is_forbidden(address)),
        IpAddr::V6(address) => (address.is_loopback(), is_forbidden_v6(address)),
    };
    match (is_loopback, is_forbidden) {
        (true, _) => Kind::Loopback,
        (false, true) => Kind::Forbidden,
        (false, false) => Kind::Ordinary,
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

/// Link-local with the metadata services of the large clouds, "this network", broadcast and multicast.
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
    // Mapped, and the compatible form of old.
    let is_dressed_up = segments[..5] == [0; 5] && !address.is_loopback();
    is_dressed_up
        || is_bad_translation(address)
        || is_link_local
        || address.is_unspecified()
        || address.is_multicast()
        || address == METADATA
}

/// Addresses by which a gateway reaches IPv4 from a network without it (NAT64, 6to4). Such networks resolve every name to
/// these, so they are refused only where they lead to what no gateway of the internet serves (RFC 6052, 3.1); those of a
/// gateway's own prefix do not even say where they lead.
fn is_bad_translation(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let (high, low) = match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => (high, low),
        [0x64, 0xff9b, ..] => return true,
        _ => return false,
    };
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    let inner = Ipv4Addr::new(a, b, c, d);
    is_forbidden(inner) || inner.is_loopback() || inner.is_private()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_judged_in_every_dress() {
        use Kind::{Forbidden, Loopback, Ordinary};
        for (address, expected) in [
            ("8.8.8.8", Ordinary),
            ("10.0.0.1", Ordinary),
            ("172.16.0.1", Ordinary),
            ("192.168.0.1", Ordinary),
            ("100.64.0.1", Ordinary),
            ("127.0.0.1", Loopback),
            ("127.1.2.3", Loopback),
            ("0.0.0.0", Forbidden),
            ("0.1.2.3", Forbidden),
            ("169.254.169.254", Forbidden),
            ("169.254.170.2", Forbidden),
            ("100.100.100.200", Forbidden),
            ("168.63.129.16", Forbidden),
            ("224.0.0.1", Forbidden),
            ("255.255.255.255", Forbidden),
            ("2001:db8::1", Ordinary),
            ("fd00::1", Ordinary),
            ("::1", Loopback),
            ("::", Forbidden),
            ("fe80::1", Forbidden),
            ("febf::1", Forbidden),
            ("ff02::1", Forbidden),
            ("fd00:ec2::254", Forbidden),
            ("::ffff:127.0.0.1", Forbidden),
            ("::ffff:8.8.8.8", Forbidden),
            ("::127.0.0.1", Forbidden),
            ("64:ff9b::8.8.8.8", Ordinary),
            ("64:ff9b::10.0.0.1", Forbidden),
            ("64:ff9b::127.0.0.1", Forbidden),
            ("64:ff9b::169.254.169.254", Forbidden),
            ("64:ff9b:1::8.8.8.8", Forbidden),
            ("2002:808:808::1", Ordinary),
            ("2002:a9fe:a9fe::1", Forbidden),
        ] {
            assert_eq!(kind(address.parse().unwrap()), expected, "{address}");
        }
    }

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
            ("http://127.0.0.1:1/v2/", "http://127.0.0.1:2/x", true),
        ] {
            let refused = refusal(&from.parse().unwrap(), &to.parse().unwrap());
            assert_eq!(refused.is_none(), followed, "{from} -> {to}: {refused:?}");
        }
    }
}
