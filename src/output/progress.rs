//! Progress as numbers: what listeners that show one figure for everything make of the events.

use std::collections::HashMap;

use super::Event;

/// Adds up the events of a run.
#[derive(Debug, Default)]
pub struct Progress {
    planned_blobs: u64,
    planned_bytes: u64,
    done_blobs: u64,
    done_bytes: u64,
    /// Bytes of unfinished transfers: they count until the transfer starts again or fails.
    running: HashMap<u64, u64>,
    highest: u64,
}

/// The numbers at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgressNumbers {
    /// Blobs that are in place.
    pub blobs_done: u64,
    /// Blobs that are to be in place.
    pub blobs_total: u64,
    /// Bytes that are in place or under way; never falls, even when a transfer starts again.
    pub bytes_done: u64,
    /// Bytes that are to be in place.
    pub bytes_total: u64,
}

impl Progress {
    /// Takes an event in.
    pub fn observe(&mut self, event: &Event<'_>) {
        match *event {
            Event::Planned { blobs, bytes } => {
                self.planned_blobs += blobs;
                self.planned_bytes += bytes;
            }
            Event::Skipped { bytes, .. } => {
                self.done_blobs += 1;
                self.done_bytes += bytes;
            }
            Event::Started { id, .. } | Event::Reading { id, .. } | Event::Writing { id, .. } => {
                self.running.insert(id, 0);
            }
            Event::Advanced { id, bytes } => {
                *self.running.entry(id).or_default() += bytes;
            }
            Event::Restarted { id, lost } => {
                let done = self.running.entry(id).or_default();
                *done = done.saturating_sub(lost);
            }
            Event::Ended { id, complete } => {
                let bytes = self.running.remove(&id).unwrap_or_default();
                if complete {
                    self.done_blobs += 1;
                    self.done_bytes += bytes;
                }
            }
            Event::Message { .. } | Event::Retrying { .. } => {}
        }
        let bytes = self.done_bytes + self.running.values().sum::<u64>();
        self.highest = self.highest.max(bytes);
    }

    /// The numbers now.
    pub fn numbers(&self) -> ProgressNumbers {
        ProgressNumbers {
            blobs_done: self.done_blobs,
            blobs_total: self.planned_blobs,
            bytes_done: self.highest.min(self.planned_bytes.max(self.done_bytes)),
            bytes_total: self.planned_bytes,
        }
    }
}

impl ProgressNumbers {
    /// Whole percent of the bytes, 0 while nothing is planned.
    pub fn percent(&self) -> u64 {
        (self.bytes_done.saturating_mul(100))
            .checked_div(self.bytes_total)
            .unwrap_or(0)
            .min(100)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{image::Digest, output::Direction};

    fn started(id: u64, digest: &Digest) -> Event<'_> {
        Event::Started {
            id,
            direction: Direction::Download,
            digest,
            bytes: 10,
        }
    }

    #[test]
    fn a_transfer_that_starts_again_never_takes_progress_back() {
        let digest = Digest::of(b"");
        let mut progress = Progress::default();
        progress.observe(&Event::Planned {
            blobs: 2,
            bytes: 20,
        });
        progress.observe(&started(0, &digest));
        progress.observe(&Event::Advanced { id: 0, bytes: 8 });
        progress.observe(&Event::Restarted { id: 0, lost: 8 });
        progress.observe(&Event::Advanced { id: 0, bytes: 3 });
        assert_eq!(progress.numbers().bytes_done, 8);
        progress.observe(&Event::Advanced { id: 0, bytes: 7 });
        progress.observe(&Event::Ended {
            id: 0,
            complete: true,
        });
        progress.observe(&Event::Skipped {
            digest: &digest,
            bytes: 10,
        });
        let numbers = progress.numbers();
        assert_eq!(
            (
                numbers.blobs_done,
                numbers.blobs_total,
                numbers.bytes_done,
                numbers.percent()
            ),
            (2, 2, 20, 100)
        );
    }

    proptest! {
        #[test]
        fn bytes_done_never_fall_whatever_happens(steps in proptest::collection::vec((0_u64..3, 0_u64..5, 0_u64..20), 0..60)) {
            let digest = Digest::of(b"");
            let mut progress = Progress::default();
            let mut last = 0;
            for (id, kind, bytes) in steps {
                progress.observe(&match kind {
                    0 => Event::Planned { blobs: 1, bytes },
                    1 => started(id, &digest),
                    2 => Event::Advanced { id, bytes },
                    3 => Event::Restarted { id, lost: bytes },
                    _ => Event::Ended { id, complete: bytes % 2 == 0 },
                });
                let done = progress.numbers().bytes_done;
                prop_assert!(done >= last);
                last = done;
            }
        }
    }
}
