//! Which kind of upload a registry takes: the simplest first, another one where it fails, and what was learned holds for all
//! blobs to that registry (registry rules U1 to U3).

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::error::Error;

const MIB: u64 = 1024 * 1024;

/// Sizes of chunks, the largest first. 64 MiB pass the proxies that take 100 MB (R19), 16 MiB still cost less than a tenth
/// in round trips at 100 MB/s and 40 ms, 4 MiB is what GHCR takes, and below 1 MiB it is not the size that is refused.
const CHUNKS: [u64; 4] = [64 * MIB, 16 * MIB, 4 * MIB, MIB];

/// How the bytes of a blob go to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// All in the `PUT` that names the digest (U1).
    Whole,
    /// All in one `PATCH`, then an empty `PUT` (U2).
    Stream,
    /// In a `PATCH` for each so many bytes, then an empty `PUT` (U3).
    Chunks(u64),
}

/// What a failure says about the way that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The registry, or a proxy before it, takes no body of this size.
    TooLarge,
    /// The registry takes only larger chunks, except for the last.
    TooSmall,
    /// The registry does not know this way.
    Refused,
}

/// A request that carried bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tried {
    pub(super) way: Way,
    /// Bytes in its body.
    pub(super) length: u64,
    /// Bytes of it that the connection took.
    pub(super) taken: u64,
}

/// What is known about uploads to a registry.
#[derive(Debug)]
pub(in crate::registry) struct Ladder(Mutex<Learned>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Learned {
    refuses_whole: bool,
    refuses_stream: bool,
    refuses_chunks: bool,
    /// The largest chunk, none where chunks are not taken: believed, and not tried.
    largest_chunk: Option<u64>,
    /// Chunks must not be smaller, except for the last.
    floor: u64,
    /// Bodies must not be larger.
    ceiling: u64,
}

impl Ladder {
    /// What is believed of a registry that was not asked yet: its largest chunk, none where it takes no chunks at all.
    pub(in crate::registry) const fn new(largest_chunk: Option<u64>) -> Self {
        Self(Mutex::new(Learned::new(largest_chunk)))
    }

    /// How to send so many bytes. `limit` is the caller's own for one request: connections that break before.
    pub(super) fn way(&self, size: u64, limit: Option<u64>) -> Way {
        self.learned().way(size, limit).unwrap_or(Way::Whole)
    }

    /// Takes in why a request failed; whether there is another way now to send so many bytes.
    pub(super) fn learn(
        &self,
        tried: Tried,
        verdict: Verdict,
        size: u64,
        limit: Option<u64>,
    ) -> bool {
        let mut learned = self.learned();
        learned.take_in(tried, verdict);
        if let Some(way) = learned.way(size, limit) {
            return way != tried.way;
        }
        // Nothing works, so the ways were not the trouble.
        *learned = Learned::new(learned.largest_chunk);
        false
    }

    /// The registry named its smallest chunk.
    pub(super) fn note_smallest_chunk(&self, size: u64) {
        let mut learned = self.learned();
        learned.floor = learned.floor.max(size);
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        // Facts are only added: a panic elsewhere leaves them true.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Learned {
    const fn new(largest_chunk: Option<u64>) -> Self {
        Self {
            refuses_whole: false,
            refuses_stream: false,
            refuses_chunks: false,
            largest_chunk,
            floor: 0,
            ceiling: u64::MAX,
        }
    }

    /// The first way that is not known to fail; the caller's limit counts only while it leaves one, and so does what was only
    /// believed.
    fn way(&self, size: u64, limit: Option<u64>) -> Option<Way> {
        let believed = self.largest_chunk;
        [
            (limit.unwrap_or(u64::MAX), believed),
            (u64::MAX, believed),
            (u64::MAX, Some(CHUNKS[0])),
        ]
        .into_iter()
        .find_map(|(limit, largest_chunk)| self.way_within(size, limit, largest_chunk))
    }

    fn way_within(&self, size: u64, limit: u64, largest_chunk: Option<u64>) -> Option<Way> {
        let most = self.ceiling.min(limit);
        if size <= most && !self.refuses_whole {
            return Some(Way::Whole);
        }
        if size <= most && !self.refuses_stream {
            return Some(Way::Stream);
        }
        let chunk = most.min(largest_chunk?).max(self.floor);
        (!self.refuses_chunks).then_some(Way::Chunks(chunk))
    }

    fn take_in(&mut self, tried: Tried, verdict: Verdict) {
        match verdict {
            Verdict::TooLarge => {
                if let Some(smaller) = chunk_below(tried.length) {
                    self.ceiling = self.ceiling.min(smaller);
                }
            }
            Verdict::TooSmall => {
                if let Some(larger) = chunk_above(tried.length) {
                    self.floor = self.floor.max(larger);
                }
            }
            Verdict::Refused => match tried.way {
                Way::Whole => self.refuses_whole = true,
                Way::Stream => self.refuses_stream = true,
                Way::Chunks(_) => self.refuses_chunks = true,
            },
        }
    }
}

/// What an error says about the way that was tried, if it does at all. Out of order (416) is for those to judge who can ask
/// the registry how far it is.
pub(super) fn verdict(tried: Tried, error: &Error) -> Option<Verdict> {
    let answer = match error {
        Error::RequestTooLarge { .. } => return Some(Verdict::TooLarge),
        // Some hosts look at the login when they have everything, and by then it has expired (registry rule A17). The upload
        // was opened with the same login, so a wrong one would not have come this far.
        Error::AuthenticationFailed { .. } | Error::AuthenticationRequired { .. } => {
            return (tried.taken == tried.length).then_some(Verdict::Refused);
        }
        Error::UploadSessionLost { answer, .. } | Error::RequestRefused { answer, .. } => answer,
        _ => return None,
    };
    let code = answer.code().unwrap_or_default();
    let status = answer.status().as_u16();
    if is_too_small(code) {
        return Some(Verdict::TooSmall);
    }
    // The way is good, the upload is not known any more.
    if code.starts_with("BLOB_UPLOAD") {
        return None;
    }
    let is_refused = match tried.way {
        // Old Artifactory (containerd#3533, buildkit#1130).
        Way::Whole => matches!(status, 404 | 405) || code == "UNSUPPORTED",
        Way::Stream => matches!(status, 400..=499),
        Way::Chunks(_) => matches!(status, 400..=499) && status != 416,
    };
    is_refused.then_some(Verdict::Refused)
}

/// What a chunk in the right place that is refused as out of place (416) suffers from: GHCR says so to those above 4 MiB
/// (rust-oci-client#35), others to those they would rather have larger.
pub(super) const fn verdict_on_size(tried: Tried) -> Verdict {
    if tried.length > 4 * MIB {
        Verdict::TooLarge
    } else {
        Verdict::TooSmall
    }
}

/// ECR passes on the name that its storage has for it (dotnet/sdk-container-builds#424); the case differs.
fn is_too_small(code: &str) -> bool {
    let letters: String = code.chars().filter(char::is_ascii_alphabetic).collect();
    letters.to_ascii_lowercase().contains("toosmall")
}

/// The largest chunk below a size.
pub(super) fn chunk_below(size: u64) -> Option<u64> {
    CHUNKS.into_iter().find(|chunk| *chunk < size)
}

/// The smallest chunk above a size.
fn chunk_above(size: u64) -> Option<u64> {
    CHUNKS.into_iter().rev().find(|chunk| *chunk > size)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::registry::{Answer, Operation};

    const GIB: u64 = 1024 * MIB;

    /// The ways a blob of this size takes while a registry answers each as `says` tells; the last one is where it stays.
    fn climb(size: u64, says: impl Fn(Way) -> Option<Verdict>) -> Vec<Way> {
        let ladder = Ladder::new(Some(64 * MIB));
        let mut ways = Vec::new();
        loop {
            let way = ladder.way(size, None);
            ways.push(way);
            assert!(ways.len() < 20, "endless: {ways:?}");
            let Some(verdict) = says(way) else {
                return ways;
            };
            let length = match way {
                Way::Whole | Way::Stream => size,
                Way::Chunks(chunk) => chunk.min(size),
            };
            let tried = Tried {
                way,
                length,
                taken: 0,
            };
            if !ladder.learn(tried, verdict, size, None) {
                assert_eq!(ladder.way(size, None), Way::Whole, "not forgotten");
                return ways;
            }
        }
    }

    #[test]
    fn the_ladder_is_climbed_one_step_at_a_time_and_has_an_end() {
        use Verdict::{Refused, TooLarge};
        use Way::{Chunks, Stream, Whole};
        assert_eq!(climb(GIB, |_| None), [Whole]);
        assert_eq!(
            climb(GIB, |way| (way == Whole).then_some(Refused)),
            [Whole, Stream]
        );
        assert_eq!(
            climb(GIB, |way| (!matches!(way, Chunks(_))).then_some(Refused)),
            [Whole, Stream, Chunks(64 * MIB)]
        );
        assert_eq!(
            climb(GIB, |way| (way != Chunks(4 * MIB)).then_some(TooLarge)),
            [Whole, Chunks(64 * MIB), Chunks(16 * MIB), Chunks(4 * MIB)]
        );
        assert_eq!(
            climb(GIB, |_| Some(Refused)),
            [Whole, Stream, Chunks(64 * MIB)]
        );
    }

    #[test]
    fn what_is_believed_of_a_registry_holds_until_it_shows_otherwise() {
        use Verdict::{Refused, TooLarge, TooSmall};
        use Way::{Chunks, Stream, Whole};
        let says = |way, verdict| (way, GIB, verdict);
        for (believed, said, expected) in [
            // Nothing is known, small chunks are, and none.
            (Some(64 * MIB), vec![], Whole),
            (
                Some(64 * MIB),
                vec![says(Whole, TooLarge)],
                Chunks(64 * MIB),
            ),
            (Some(4 * MIB), vec![], Whole),
            (Some(4 * MIB), vec![says(Whole, TooLarge)], Chunks(4 * MIB)),
            (
                Some(4 * MIB),
                vec![says(Whole, Refused), says(Stream, Refused)],
                Chunks(4 * MIB),
            ),
            (None, vec![], Whole),
            (None, vec![says(Whole, Refused)], Stream),
            // What was believed is wrong.
            (
                Some(4 * MIB),
                vec![says(Whole, TooLarge), (Chunks(4 * MIB), 4 * MIB, TooSmall)],
                Chunks(16 * MIB),
            ),
            (None, vec![says(Whole, TooLarge)], Chunks(64 * MIB)),
            (
                None,
                vec![says(Whole, Refused), says(Stream, Refused)],
                Chunks(64 * MIB),
            ),
        ] {
            let ladder = Ladder::new(believed);
            for (way, length, verdict) in &said {
                let tried = Tried {
                    way: *way,
                    length: *length,
                    taken: 0,
                };
                ladder.learn(tried, *verdict, GIB, None);
            }
            assert_eq!(ladder.way(GIB, None), expected, "{believed:?} {said:?}");
        }
        // A limit of our own is no reason to send what is not taken.
        assert_eq!(Ladder::new(None).way(GIB, Some(16 * MIB)), Whole);
    }

    #[test]
    fn a_limit_for_bodies_leaves_small_blobs_as_they_were() {
        let ladder = Ladder::new(Some(64 * MIB));
        let tried = Tried {
            way: Way::Whole,
            length: 80 * MIB,
            taken: 0,
        };
        assert!(ladder.learn(tried, Verdict::TooLarge, 80 * MIB, None));
        assert_eq!(ladder.way(80 * MIB, None), Way::Chunks(64 * MIB));
        assert_eq!(ladder.way(64 * MIB, None), Way::Whole);
    }

    #[test]
    fn chunks_that_are_too_small_grow() {
        let ladder = Ladder::new(Some(64 * MIB));
        let (size, limit) = (GIB, Some(4 * MIB));
        assert_eq!(ladder.way(size, limit), Way::Chunks(4 * MIB));
        let tried = Tried {
            way: Way::Chunks(4 * MIB),
            length: 4 * MIB,
            taken: 4 * MIB,
        };
        assert!(ladder.learn(tried, Verdict::TooSmall, size, limit));
        assert_eq!(ladder.way(size, limit), Way::Chunks(16 * MIB));
        ladder.note_smallest_chunk(100 * MIB);
        assert_eq!(ladder.way(size, limit), Way::Chunks(100 * MIB));
    }

    #[test]
    fn our_own_caution_gives_way_to_what_a_registry_takes() {
        let ladder = Ladder::new(Some(64 * MIB));
        assert_eq!(ladder.way(GIB, Some(16 * MIB)), Way::Chunks(16 * MIB));
        let tried = Tried {
            way: Way::Chunks(16 * MIB),
            length: 16 * MIB,
            taken: 0,
        };
        assert!(ladder.learn(tried, Verdict::Refused, GIB, Some(16 * MIB)));
        assert_eq!(ladder.way(GIB, Some(16 * MIB)), Way::Whole);
    }

    #[test]
    fn a_failure_says_something_about_the_way_or_nothing() {
        use Verdict::{Refused, TooLarge, TooSmall};
        use Way::{Chunks, Stream, Whole};
        for (way, status, code, expected) in [
            (Whole, 404, "", Some(Refused)),
            (Whole, 405, "UNSUPPORTED", Some(Refused)),
            (Whole, 404, "BLOB_UPLOAD_UNKNOWN", None),
            (Whole, 400, "DIGEST_INVALID", None),
            (Whole, 416, "", None),
            (Whole, 413, "", Some(TooLarge)),
            (Whole, 401, "", Some(Refused)),
            (Stream, 400, "", Some(Refused)),
            (Stream, 416, "", Some(Refused)),
            (Stream, 404, "BLOB_UPLOAD_UNKNOWN", None),
            (Chunks(1), 416, "", None),
            (Chunks(1), 405, "", Some(Refused)),
            (Chunks(1), 400, "LayerPartTooSmallException", Some(TooSmall)),
            (Chunks(1), 400, "LAYER_PART_TOO_SMALL", Some(TooSmall)),
        ] {
            let body = format!(r#"{{"errors":[{{"code":"{code}"}}]}}"#);
            let answer = Answer::new(
                StatusCode::from_u16(status).unwrap(),
                false,
                if code.is_empty() {
                    b""
                } else {
                    body.as_bytes()
                },
            );
            let operation = Operation::new("x");
            let error = match status {
                401 => Error::AuthenticationFailed { operation, answer },
                404 | 416 => Error::UploadSessionLost { operation, answer },
                413 => Error::RequestTooLarge { operation, answer },
                _ => Error::RequestRefused { operation, answer },
            };
            let tried = Tried {
                way,
                length: MIB,
                taken: MIB,
            };
            assert_eq!(verdict(tried, &error), expected, "{way:?} {status} {code}");
        }
    }
}
