//! What is known of a registry before it was asked anything (registry rules Q1 to Q18). All of it comes from threads and code,
//! not from the registries' owners: these are values to begin with, and what a registry shows at run time wins. All of them
//! take a `POST` and one `PUT` first, so there is no column for that.

use crate::image::Host;

/// Connections to begin with at a registry that nobody knows (P13).
const USUAL_CONNECTIONS: usize = 16;

/// Proxies before registries refuse bodies from 95 or 100 MB on; this leaves room and is a power of two (Q17, R19).
const USUAL_CHUNK: u64 = 64 * MIB;

const MIB: u64 = 1024 * 1024;

/// What sets a registry apart from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quirks {
    /// Connections for blobs to begin with, in each direction.
    pub(super) connections: usize,
    /// The largest piece of an upload in pieces; none where pieces are not taken at all.
    pub(super) largest_chunk: Option<u64>,
}

impl Quirks {
    const USUAL: Self = Self {
        connections: USUAL_CONNECTIONS,
        largest_chunk: Some(USUAL_CHUNK),
    };

    /// What is known of the registry at this host.
    pub(super) fn of(host: &Host) -> Self {
        // Ports say nothing about who runs a registry, and none of those below is found at an IPv6 address.
        let name = host.as_str().split(':').next().unwrap_or_default();
        KNOWN
            .iter()
            .find(|(pattern, _)| matches(pattern, name))
            .map_or(Self::USUAL, |(_, quirks)| *quirks)
    }
}

/// One row for each registry that differs; `*` stands for one label of the name.
const KNOWN: &[(&str, Quirks)] = &[
    ("registry-1.docker.io", connecting(4)),          // Q1
    ("*.dkr.ecr.*.amazonaws.com", connecting(16)),    // Q2
    ("*.dkr.ecr.*.amazonaws.com.cn", connecting(16)), // Q2
    ("public.ecr.aws", connecting(16)),               // Q2
    ("*.pkg.dev", in_pieces(8, None)),                // Q3
    ("gcr.io", in_pieces(8, None)),                   // Q3
    ("*.gcr.io", in_pieces(8, None)),                 // Q3
    ("ghcr.io", in_pieces(8, Some(4 * MIB))),         // Q4
    ("*.azurecr.io", connecting(8)),                  // Q5
    ("registry.gitlab.com", connecting(8)),           // Q6
    ("quay.io", connecting(6)),                       // Q7
];

/// Only the connections differ.
const fn connecting(connections: usize) -> Quirks {
    in_pieces(connections, Some(USUAL_CHUNK))
}

const fn in_pieces(connections: usize, largest_chunk: Option<u64>) -> Quirks {
    Quirks {
        connections,
        largest_chunk,
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    let mut labels = name.split('.');
    pattern.split('.').all(|part| {
        labels
            .next()
            .is_some_and(|label| part == "*" || part == label)
    }) && labels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_begins_with_what_is_known_of_it() {
        for (host, connections, largest_chunk) in [
            ("registry-1.docker.io", 4, Some(64 * MIB)),
            (
                "1234.dkr.ecr.eu-central-1.amazonaws.com",
                16,
                Some(64 * MIB),
            ),
            ("europe-docker.pkg.dev", 8, None),
            ("eu.gcr.io", 8, None),
            ("ghcr.io", 8, Some(4 * MIB)),
            ("team.azurecr.io:443", 8, Some(64 * MIB)),
            ("quay.io", 6, Some(64 * MIB)),
            ("quay.io.example", 16, Some(64 * MIB)),
            ("registry.example:5000", 16, Some(64 * MIB)),
            ("[::1]:5000", 16, Some(64 * MIB)),
        ] {
            let quirks = Quirks::of(&host.parse().unwrap());
            assert_eq!(quirks.connections, connections, "{host}");
            assert_eq!(quirks.largest_chunk, largest_chunk, "{host}");
        }
    }
}
