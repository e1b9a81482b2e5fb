//! How every room tells what it does, without knowing who listens: progress of transfers, messages, and the figures a
//! command ends with.
//!
//! [`OutputManager`] is a cheap handle that travels down with the work. Who shows the events lives above: the terminal, line
//! and JSON renderers in `cli/`, the status of a resource in `controller/`.

mod progress;
mod quantity;
mod statistics;

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::image::Digest;

pub use progress::{Progress, ProgressNumbers};
pub use quantity::parse_quantity;
pub use statistics::{ByteSize, Statistics, Totals};

/// How important a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For those who asked for details.
    Detail,
    /// What a user wants to know.
    Info,
    /// Something is odd, the work goes on.
    Warning,
}

/// Which way bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a registry into the cache.
    Download,
    /// From the cache to a registry.
    Upload,
    /// From an archive into the cache.
    Extract,
}

/// One thing that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something to read.
    Message {
        /// How important.
        level: Level,
        /// One line, without credentials.
        text: &'a str,
    },
    /// More work is known now than before.
    Planned {
        /// Blobs that are to be at their destination.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A planned blob needed no transfer.
    Skipped {
        /// Which blob.
        digest: &'a Digest,
        /// Its bytes.
        bytes: u64,
    },
    /// A transfer began.
    Started {
        /// Names the transfer in the events that follow.
        id: u64,
        /// Which way.
        direction: Direction,
        /// Which blob.
        digest: &'a Digest,
        /// Its bytes.
        bytes: u64,
    },
    /// The reading of an archive began; what follows is told as of any transfer.
    Reading {
        /// Names the reading in the events that follow.
        id: u64,
        /// The archive, as the user knows it.
        archive: &'a str,
        /// Bytes that will be read; none for a stream, whose end nobody knows.
        bytes: Option<u64>,
    },
    /// The writing of an archive began; what follows is told as of any transfer.
    Writing {
        /// Names the writing in the events that follow.
        id: u64,
        /// The archive, as the user knows it.
        archive: &'a str,
        /// Bytes of its content.
        bytes: u64,
    },
    /// A transfer moved on.
    Advanced {
        /// Which transfer.
        id: u64,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A transfer starts again from its first byte.
    Restarted {
        /// Which transfer.
        id: u64,
        /// Bytes that were done and count no more.
        lost: u64,
    },
    /// A transfer is over.
    Ended {
        /// Which transfer.
        id: u64,
        /// Whether all bytes arrived.
        complete: bool,
    },
    /// Something failed and is tried again.
    Retrying {
        /// What, as a verb phrase: `GET blob sha256:...`.
        operation: &'a str,
        /// Why, in one sentence.
        cause: &'a str,
        /// Pause before the next attempt.
        pause: Duration,
    },
}

/// Who listens. Called from many tasks at once, between network reads: it must return at once.
pub trait Renderer: Send + Sync {
    /// Takes notice of an event.
    fn handle(&self, event: &Event<'_>);
}

/// Shows nothing; the figures are counted all the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Renderer for Silent {
    fn handle(&self, _event: &Event<'_>) {}
}

/// The handle through which rooms speak. Clones speak to the same listener and count into the same figures.
#[derive(Clone)]
pub struct OutputManager {
    shared: Arc<Shared>,
    /// What messages are about, where several works speak to one listener.
    subject: Option<Arc<str>>,
}

struct Shared {
    renderer: Box<dyn Renderer>,
    statistics: Statistics,
    next_transfer: AtomicU64,
}

impl fmt::Debug for OutputManager {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OutputManager")
            .field("totals", &self.totals())
            .finish_non_exhaustive()
    }
}

impl OutputManager {
    /// Speaks to `renderer`.
    pub fn new(renderer: impl Renderer + 'static) -> Self {
        let shared = Shared {
            renderer: Box::new(renderer),
            statistics: Statistics::default(),
            next_transfer: AtomicU64::new(0),
        };
        Self {
            shared: Arc::new(shared),
            subject: None,
        }
    }

    /// A handle to the same listener and the same figures whose messages begin with `subject`.
    #[must_use]
    pub fn about(&self, subject: &str) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            subject: Some(subject.into()),
        }
    }

    /// Speaks to nobody.
    pub fn silent() -> Self {
        Self::new(Silent)
    }

    /// Says something for those who asked for details.
    pub fn detail(&self, text: impl AsRef<str>) {
        self.message(Level::Detail, text.as_ref());
    }

    /// Says something a user wants to know.
    pub fn info(&self, text: impl AsRef<str>) {
        self.message(Level::Info, text.as_ref());
    }

    /// Says that something is odd.
    pub fn warning(&self, text: impl AsRef<str>) {
        self.message(Level::Warning, text.as_ref());
    }

    fn message(&self, level: Level, text: &str) {
        let text = &self.with_subject(text);
        self.shared.renderer.handle(&Event::Message { level, text });
    }

    fn with_subject<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.subject {
            Some(subject) => Cow::Owned(format!("{subject}: {text}")),
            None => Cow::Borrowed(text),
        }
    }

    /// Tells that `blobs` more blobs of `bytes` in all are to be at their destination.
    pub fn planned(&self, blobs: u64, bytes: u64) {
        self.shared
            .renderer
            .handle(&Event::Planned { blobs, bytes });
    }

    /// Tells that a planned blob was in place already.
    pub fn existing(&self, digest: &Digest, bytes: u64) {
        self.shared.statistics.count_existing();
        self.shared
            .renderer
            .handle(&Event::Skipped { digest, bytes });
    }

    /// Tells that a failed operation is tried again after `pause`.
    pub fn retrying(&self, operation: &str, cause: &str, pause: Duration) {
        self.shared.statistics.count_retry();
        self.shared.renderer.handle(&Event::Retrying {
            operation: &self.with_subject(operation),
            cause,
            pause,
        });
    }

    /// Tells that a blob begins to travel; the returned value tells the rest.
    pub fn transfer(&self, direction: Direction, digest: &Digest, bytes: u64) -> Transfer {
        let id = self.shared.next_transfer.fetch_add(1, Ordering::Relaxed);
        self.shared.renderer.handle(&Event::Started {
            id,
            direction,
            digest,
            bytes,
        });
        self.begun(id, direction)
    }

    fn begun(&self, id: u64, direction: Direction) -> Transfer {
        Transfer {
            output: self.clone(),
            id,
            direction,
            done: AtomicU64::new(0),
            complete: false,
        }
    }

    /// Tells that the reading of an archive begins. What of it is new in the cache is told by [`OutputManager::extracted`].
    pub fn reading(&self, archive: &str, bytes: Option<u64>) -> Transfer {
        self.planned(1, bytes.unwrap_or_default());
        let id = self.shared.next_transfer.fetch_add(1, Ordering::Relaxed);
        self.shared
            .renderer
            .handle(&Event::Reading { id, archive, bytes });
        self.begun(id, Direction::Extract)
    }

    /// Tells that the writing of an archive begins. It stays on this machine, so [`Transfer::kept`] tells how it goes on.
    pub fn writing(&self, archive: &str, bytes: u64) -> Transfer {
        self.planned(1, bytes);
        let id = self.shared.next_transfer.fetch_add(1, Ordering::Relaxed);
        self.shared
            .renderer
            .handle(&Event::Writing { id, archive, bytes });
        self.begun(id, Direction::Extract)
    }

    /// Counts a blob of an archive that the cache did not have.
    pub fn extracted(&self) {
        self.shared.statistics.count_copied(Direction::Extract);
    }

    /// Counts a blob of an archive that the cache had already.
    pub fn extracted_before(&self) {
        self.shared.statistics.count_existing();
    }

    /// The figures so far.
    pub fn totals(&self) -> Totals {
        self.shared.statistics.totals()
    }
}

/// A blob on its way. Dropped before [`Transfer::complete`], it counts as failed.
#[derive(Debug)]
#[must_use = "dropping a transfer tells that it failed"]
pub struct Transfer {
    output: OutputManager,
    id: u64,
    direction: Direction,
    done: AtomicU64,
    complete: bool,
}

impl Transfer {
    /// `bytes` more have travelled.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.output
            .shared
            .statistics
            .count_bytes(self.direction, bytes);
        self.output
            .shared
            .renderer
            .handle(&Event::Advanced { id: self.id, bytes });
    }

    /// `bytes` were there from an earlier attempt, or on this machine: progress, but no traffic.
    pub fn kept(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        let event = Event::Advanced { id: self.id, bytes };
        self.output.shared.renderer.handle(&event);
    }

    /// The blob starts again from its first byte. What travelled stays counted as traffic, but not as progress.
    pub fn restart(&self) {
        self.restart_at(0);
    }

    /// The blob goes on from this byte: what was told beyond it travels again, and what was not told up to it was there
    /// already and is no traffic.
    pub fn restart_at(&self, offset: u64) {
        let done = self.done.swap(offset, Ordering::Relaxed);
        let (id, renderer) = (self.id, &self.output.shared.renderer);
        if done > offset {
            let lost = done - offset;
            renderer.handle(&Event::Restarted { id, lost });
        }
        if done < offset {
            let bytes = offset - done;
            renderer.handle(&Event::Advanced { id, bytes });
        }
    }

    /// All bytes arrived and were accepted.
    pub fn complete(mut self) {
        self.complete = true;
        match self.direction {
            Direction::Download | Direction::Upload => {
                self.output.shared.statistics.count_copied(self.direction);
            }
            // An archive is no blob: those in it are counted one by one.
            Direction::Extract => {}
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.output.shared.renderer.handle(&Event::Ended {
            id: self.id,
            complete: self.complete,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<String>>>);

    impl Renderer for Recorder {
        fn handle(&self, event: &Event<'_>) {
            self.0.lock().unwrap().push(format!("{event:?}"));
        }
    }

    #[test]
    fn a_transfer_that_is_dropped_ends_incomplete() {
        let recorder = Recorder::default();
        let output = OutputManager::new(recorder.clone());
        drop(output.transfer(Direction::Download, &Digest::of(b""), 3));
        output
            .transfer(Direction::Upload, &Digest::of(b""), 3)
            .complete();
        let events = recorder.0.lock().unwrap().join("\n");
        assert!(
            events.contains("Ended { id: 0, complete: false }"),
            "{events}"
        );
        assert!(
            events.contains("Ended { id: 1, complete: true }"),
            "{events}"
        );
    }

    #[test]
    fn messages_say_what_they_are_about() {
        let recorder = Recorder::default();
        let output = OutputManager::new(recorder.clone());
        let about = output.about("team/app");
        about.info("two images");
        about.retrying("GET blob", "reset", Duration::ZERO);
        output.info("done");
        let events = recorder.0.lock().unwrap().join("\n");
        for text in [
            "\"team/app: two images\"",
            "\"team/app: GET blob\"",
            "\"done\"",
        ] {
            assert!(events.contains(text), "{text} in {events}");
        }
        assert_eq!(output.totals().retries, 1);
    }

    #[test]
    fn the_blobs_of_an_archive_are_counted_apart_from_its_bytes() {
        let recorder = Recorder::default();
        let output = OutputManager::new(recorder.clone());
        let reading = output.reading("app.tar", Some(7));
        reading.advance(7);
        reading.complete();
        output.extracted();
        output.extracted_before();
        let totals = output.totals();
        assert_eq!(
            (totals.extracted, totals.existing, totals.bytes_extracted),
            (1, 1, 7)
        );
        assert_eq!((totals.downloaded, totals.bytes_downloaded), (0, 0));
        let events = recorder.0.lock().unwrap().join("\n");
        for expected in [
            "Planned { blobs: 1, bytes: 7 }",
            "Reading { id: 0, archive: \"app.tar\", bytes: Some(7) }",
            "Ended { id: 0, complete: true }",
        ] {
            assert!(events.contains(expected), "{events}");
        }
    }

    #[test]
    fn clones_count_into_the_same_figures() {
        let output = OutputManager::silent();
        let transfer = output
            .clone()
            .transfer(Direction::Download, &Digest::of(b""), 5);
        transfer.advance(3);
        transfer.restart();
        transfer.advance(5);
        transfer.complete();
        output.existing(&Digest::of(b"x"), 1);
        output.retrying("GET blob", "reset", Duration::ZERO);
        let totals = output.totals();
        assert_eq!(
            (
                totals.downloaded,
                totals.uploaded,
                totals.existing,
                totals.retries
            ),
            (1, 0, 1, 1)
        );
        assert_eq!(totals.bytes_downloaded, 8);
    }
}
