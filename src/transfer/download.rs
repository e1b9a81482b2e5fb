//! One blob from a registry into its place in the cache: several ranges at once, each from where the last one broke off.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, pin_mut, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    cache::{self, BlobWriter, Stretch},
    error::handlers,
    output::{OutputManager, Transfer},
    registry::{self, BlobDownload, BlobStream, Retry, Slot as ConnectionSlot},
};

use super::{bandwidth::Bandwidth, parts::Parts};

/// How often it is looked whether the hash has caught up.
const HASH_PAUSE: Duration = Duration::from_millis(20);

/// Why a blob did not come.
#[derive(Debug)]
pub(super) enum Failure {
    /// The registry's part.
    Registry(registry::Error),
    /// Ours.
    Cache(cache::Error),
}

impl From<cache::Error> for Failure {
    fn from(error: cache::Error) -> Self {
        Self::Cache(error)
    }
}

/// A blob on its way.
pub(super) struct Download<'a> {
    source: BlobDownload,
    writer: &'a BlobWriter,
    transfer: &'a Transfer,
    bandwidth: &'a Bandwidth,
    output: &'a OutputManager,
    /// In messages: `GET blob sha256:... of host/app:1`.
    operation: String,
    parts: Mutex<Parts>,
    course: Mutex<Course>,
    /// Bytes that came, by whatever range.
    arrived: AtomicU64,
    /// An answer has begun: it may have shown that there can be more of them.
    begun: Notify,
}

/// Failures so far.
struct Course {
    retry: Retry,
    /// Failures that counted. Ranges that began before the last of them fail for the same reason: a lost link is one failure,
    /// however many connections it had.
    counted: u64,
    not_before: Instant,
    /// What had arrived when the last failure was counted.
    arrived: u64,
}

/// What became of one range.
enum Outcome {
    Came,
    /// It broke off; the rest was given back.
    Broken(Broken),
    /// The registry sends the whole blob, whatever it is asked for (registry rule D3).
    Whole(Box<BlobStream>),
}

impl<'a> Download<'a> {
    pub(super) fn new(
        source: BlobDownload,
        writer: &'a BlobWriter,
        transfer: &'a Transfer,
        bandwidth: &'a Bandwidth,
        output: &'a OutputManager,
        retry: Retry,
        operation: String,
    ) -> Self {
        let parts = Parts::new(writer.descriptor().size, writer.missing());
        Self {
            source,
            writer,
            transfer,
            bandwidth,
            output,
            operation,
            parts: Mutex::new(parts),
            course: Mutex::new(Course {
                retry,
                counted: 0,
                not_before: Instant::now(),
                arrived: 0,
            }),
            arrived: AtomicU64::new(0),
            begun: Notify::new(),
        }
    }

    /// Fetches all that is missing.
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let mut ranges = FuturesUnordered::new();
        // Kept over the rounds: who gives up waiting for a connection loses its place in the queue.
        let mut waiting: Option<BoxFuture<'_, ConnectionSlot>> = None;
        loop {
            let next = self.parts.lock().next();
            if next.is_none() && ranges.is_empty() {
                return Ok(());
            }
            // What the hash is too far behind for would wait with a connection in hand, which the bytes at the hash may need.
            let reach = self.writer.reach()?;
            let is_too_far = next.is_some_and(|start| start >= reach);
            if next.is_none() || is_too_far || ranges.len() >= self.at_once() {
                waiting = None;
            } else if waiting.is_none() {
                waiting = Some(self.connection().boxed());
            }
            tokio::select! {
                slot = granted(&mut waiting), if waiting.is_some() => {
                    waiting = None;
                    let part = self.parts.lock().take(ranges.len());
                    ranges.extend(part.map(|part| self.fetch(slot, part)));
                }
                Some(outcome) = ranges.next(), if !ranges.is_empty() => match outcome? {
                    Outcome::Came => {}
                    Outcome::Broken(broken) => self.bear(broken)?,
                    Outcome::Whole(stream) => {
                        ranges.clear();
                        drop(waiting);
                        return self.fetch_whole(*stream).await;
                    }
                },
                () = self.begun.notified() => {}
                () = tokio::time::sleep(HASH_PAUSE), if is_too_far => {}
            }
        }
    }

    /// Fetches the whole blob anew, unpacked: a proxy had packed it on the way (registry rule D2).
    pub(super) async fn run_decoded(&self) -> Result<(), Failure> {
        let attempt = self.begin();
        let stream = self.source.decoded().await.map_err(Failure::Registry)?;
        match self.take_whole(stream, &attempt).await? {
            None => Ok(()),
            Some(broken) => Err(Failure::Registry(broken.error)),
        }
    }

    /// How many ranges may be on their way.
    fn at_once(&self) -> usize {
        match self.source.takes_ranges() {
            Some(true) => self.parts.lock().at_once(),
            // The first answer tells; a server without ranges would send the whole blob to each who asks.
            Some(false) | None => 1,
        }
    }

    /// Waits out the pause after a failure, then for a connection; a failure meanwhile has a pause of its own.
    async fn connection(&self) -> ConnectionSlot {
        loop {
            let not_before = self.course.lock().not_before;
            tokio::time::sleep_until(not_before).await;
            let slot = self.source.slot().await;
            if self.course.lock().not_before <= Instant::now() {
                return slot;
            }
        }
    }

    /// Fetches a part, as far as it comes.
    async fn fetch(&self, slot: ConnectionSlot, part: Range<u64>) -> Result<Outcome, Failure> {
        let attempt = self.begin();
        let asked = Instant::now();
        let mut stream = match self.source.range_in(slot, part.clone()).await {
            Ok(stream) => stream,
            Err(error) => return Ok(self.break_off(attempt, error, true, part)),
        };
        let first_byte = asked.elapsed();
        self.parts.lock().begun(first_byte);
        self.begun.notify_one();
        if stream.offset() != part.start || stream.end() > part.end {
            self.parts.lock().give_back(part);
            return Ok(Outcome::Whole(Box::new(stream)));
        }
        let mut part = part;
        let mut stretch = self.writer.stretch(part.start);
        let mut waited = Duration::ZERO;
        while stretch.end() < part.end {
            let since = Instant::now();
            let bytes = match next_piece(&mut stream, &mut stretch).await? {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(error) => {
                    stretch.hand_on()?;
                    let rest = stretch.end()..part.end;
                    return Ok(self.break_off(attempt, error, false, rest));
                }
            };
            waited += since.elapsed();
            let left = part.end - stretch.end();
            self.store(&mut stretch, &within(&bytes, 0, left)).await?;
            let came = stretch.end() - part.start;
            part.end = self.shorten(&part, came, waited, stream.connections());
        }
        stretch.hand_on()?;
        let position = stretch.end();
        let mut parts = self.parts.lock();
        parts.note(position - part.start, first_byte, asked.elapsed());
        // A server may give less than it was asked for.
        parts.give_back(position..part.end);
        Ok(Outcome::Came)
    }

    /// Where a part ends after all: others may have to help.
    fn shorten(&self, part: &Range<u64>, came: u64, waited: Duration, connections: usize) -> u64 {
        let mut parts = self.parts.lock();
        let end = parts.end(part, came, waited, connections);
        if end < part.end {
            parts.give_back(end..part.end);
            self.begun.notify_one();
        }
        end
    }

    /// Goes on with a stream of the whole blob; what is there already is passed over, for the hash will tell.
    async fn fetch_whole(&self, stream: BlobStream) -> Result<(), Failure> {
        let mut next = Some(stream);
        loop {
            let attempt = self.begin();
            let stream = if let Some(stream) = next.take() {
                Ok(stream)
            } else {
                let slot = self.connection().await;
                let whole = 0..self.writer.descriptor().size;
                self.source.range_in(slot, whole).await
            };
            let outcome = match stream {
                Ok(stream) => self.take_whole(stream, &attempt).await?,
                Err(error) => Some(attempt.broken(error, true)),
            };
            match outcome {
                None => return Ok(()),
                Some(broken) => self.bear(broken)?,
            }
        }
    }

    /// Takes what is missing out of a stream that begins with the first byte.
    async fn take_whole(
        &self,
        mut stream: BlobStream,
        attempt: &Attempt,
    ) -> Result<Option<Broken>, Failure> {
        let missing = self.writer.missing();
        let mut position = stream.offset();
        let mut stretch = self.writer.stretch(position);
        loop {
            let bytes = match next_piece(&mut stream, &mut stretch).await? {
                Ok(Some(bytes)) => bytes,
                outcome => {
                    stretch.hand_on()?;
                    return Ok(outcome.err().map(|error| attempt.broken(error, false)));
                }
            };
            let here = position..position + bytes.len() as u64;
            for range in &missing {
                let (start, end) = (range.start.max(here.start), range.end.min(here.end));
                if start >= end {
                    continue;
                }
                if stretch.end() != start {
                    stretch.hand_on()?;
                    stretch = self.writer.stretch(start);
                }
                let piece = within(&bytes, start - here.start, end - here.start);
                self.store(&mut stretch, &piece).await?;
            }
            position = here.end;
        }
    }

    /// Hands bytes over to the cache.
    async fn store(&self, stretch: &mut Stretch<'_>, bytes: &Bytes) -> Result<(), Failure> {
        let length = bytes.len();
        let taken = self.bandwidth.take(length);
        pin_mut!(taken);
        if taken.as_mut().now_or_never().is_none() {
            stretch.hand_on()?;
            taken.await;
        }
        stretch.write(bytes).await?;
        self.transfer.advance(length as u64);
        self.arrived.fetch_add(length as u64, Ordering::Relaxed);
        Ok(())
    }

    fn begin(&self) -> Attempt {
        Attempt {
            counted_before: self.course.lock().counted,
            arrived: self.arrived.load(Ordering::Relaxed),
        }
    }

    fn break_off(
        &self,
        attempt: Attempt,
        error: registry::Error,
        is_final: bool,
        rest: Range<u64>,
    ) -> Outcome {
        self.parts.lock().give_back(rest);
        Outcome::Broken(attempt.broken(error, is_final))
    }

    /// Decides whether the work goes on after a failure, and when.
    fn bear(&self, broken: Broken) -> Result<(), Failure> {
        let Broken {
            attempt,
            error,
            is_final,
        } = broken;
        let arrived = self.arrived.load(Ordering::Relaxed);
        let mut course = self.course.lock();
        // Of the ranges that a lost link breaks, only the first counts.
        if attempt.counted_before < course.counted {
            return Ok(());
        }
        // The registry was asked as often as is allowed, and nothing else came meanwhile.
        if is_final && arrived - attempt.arrived < Retry::PROGRESS {
            return Err(Failure::Registry(error));
        }
        let progress = arrived - course.arrived;
        course.retry.progressed(progress);
        let Some(pause) = course.retry.next(&error) else {
            return Err(Failure::Registry(error));
        };
        course.counted += 1;
        course.arrived = arrived;
        course.not_before = Instant::now() + pause;
        drop(course);
        self.output
            .retrying(&self.operation, &handlers::message(&error), pause);
        Ok(())
    }
}

/// A range that was begun.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// Failures that had been counted by then.
    counted_before: u64,
    /// Bytes that had arrived by then.
    arrived: u64,
}

impl Attempt {
    const fn broken(self, error: registry::Error, is_final: bool) -> Broken {
        Broken {
            attempt: self,
            error,
            is_final,
        }
    }
}

/// A range that broke off.
struct Broken {
    attempt: Attempt,
    error: registry::Error,
    /// The registry was asked again and again already.
    is_final: bool,
}

/// The next piece of a stream. What came before it is handed on if it is to be waited for.
async fn next_piece(
    stream: &mut BlobStream,
    stretch: &mut Stretch<'_>,
) -> Result<registry::Result<Option<Bytes>>, cache::Error> {
    let next = stream.next();
    pin_mut!(next);
    if let Some(next) = next.as_mut().now_or_never() {
        return Ok(next);
    }
    stretch.hand_on()?;
    Ok(next.await)
}

/// Waits for what is waited for, which is for ever if that is nothing.
async fn granted(waiting: &mut Option<BoxFuture<'_, ConnectionSlot>>) -> ConnectionSlot {
    match waiting {
        Some(slot) => slot.await,
        None => std::future::pending().await,
    }
}

/// A piece of a piece.
fn within(bytes: &Bytes, start: u64, end: u64) -> Bytes {
    // Both lie within a piece that is in memory.
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    bytes.slice(at(start)..at(end).min(bytes.len()))
}
