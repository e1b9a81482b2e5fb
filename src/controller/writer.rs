//! Writes statuses: one task, one status per mirror, the last one wins (operator rule K16).
//!
//! A status that differs only in its progress waits until five seconds after the last write; everything else goes out at
//! once, and again until it has arrived. What equals the status that stands is not sent at all (K14). The queue is a map
//! with one entry per mirror: it cannot overflow, so no end state is ever dropped. The server ignores a wrong uid in a body
//! (CRD finding F28): whether the object is still the one meant is looked up in the reflected store before each write.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::api::ImageMirrorStatus;

use super::{
    metrics::Metrics,
    target::{Name, Target},
};

/// Progress is written at most this often: `kubectl get -w` stays lively, the API server does not notice.
const PROGRESS_PAUSE: Duration = Duration::from_secs(5);
/// Writes under way at once; more would only queue at the API server, whose default for one account is of this order.
const PARALLEL_WRITES: usize = 8;
/// First pause after a failed write; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest pause after failed writes.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long unwritten statuses may hold up the shutdown.
const FLUSH_LIMIT: Duration = Duration::from_secs(4);

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// It stands.
    Succeeded,
    /// The server refused it or could not be reached.
    Failed,
    /// Nobody answered in time.
    TimedOut,
    /// The object is gone or another one: nothing was written.
    Gone,
}

/// Carries one status to the server.
pub(super) trait StatusSink: Send + Sync + 'static {
    /// Whether the object with this uid is the one that exists, as far as is known.
    fn exists(&self, target: &Target) -> bool;
    /// Writes. Ends within seconds.
    fn write(&self, target: Target, status: ImageMirrorStatus) -> BoxFuture<'static, Written>;
}

/// The handle by which statuses are handed over. Clones share the queue.
#[derive(Clone)]
pub(super) struct StatusWriter {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    entries: HashMap<Name, Entry>,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    /// The last status handed over: what stands, or will stand.
    wanted: ImageMirrorStatus,
    /// When `wanted` is to be written; `None` when it stands.
    due: Option<Instant>,
    in_flight: bool,
    last_write: Option<Instant>,
    failures: u32,
}

impl StatusWriter {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                wake: Notify::new(),
            }),
        }
    }

    /// The status that was last handed over for this object: newer than what the store shows.
    pub(super) fn current(&self, target: &Target) -> Option<ImageMirrorStatus> {
        let queue = self.queue();
        let entry = queue.entries.get(&target.name)?;
        (entry.uid == target.uid).then(|| entry.wanted.clone())
    }

    /// Hands a status over; `standing` is the one in the object. Returns at once.
    pub(super) fn submit(
        &self,
        target: &Target,
        standing: Option<&ImageMirrorStatus>,
        status: ImageMirrorStatus,
    ) {
        self.queue()
            .submit(target, standing, status, Instant::now());
        self.shared.wake.notify_one();
    }

    /// Forgets the object: it is gone.
    pub(super) fn forget(&self, name: &Name) {
        self.queue().entries.remove(name);
    }

    /// Writes until told to stop, then what is left, for some seconds.
    pub(super) async fn run(
        self,
        sink: Arc<dyn StatusSink>,
        metrics: Metrics,
        stop: CancellationToken,
    ) {
        let mut writes = FuturesUnordered::new();
        let mut deadline: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let room = PARALLEL_WRITES.saturating_sub(writes.len());
            // Taken first, so that the queue is free again.
            let due = self.queue().take_due(now, room, deadline.is_some());
            for (target, status) in due {
                if sink.exists(&target) {
                    let write = sink.write(target.clone(), status.clone());
                    writes.push(async move { (target, status, write.await) });
                } else {
                    metrics.status_patch("dropped");
                    self.forget(&target.name);
                }
            }
            if deadline.is_some_and(|deadline| now >= deadline || writes.is_empty()) {
                return;
            }
            let wake_at = match deadline {
                Some(deadline) => Some(deadline),
                None if writes.len() < PARALLEL_WRITES => self.queue().next_due(),
                None => None,
            };
            tokio::select! {
                Some((target, status, written)) = writes.next(), if !writes.is_empty() => {
                    metrics.status_patch(label(written));
                    self.queue().settle(&target, &status, written, Instant::now());
                }
                () = self.shared.wake.notified() => {}
                () = sleep_until(wake_at) => {}
                () = stop.cancelled(), if deadline.is_none() => {
                    deadline = Some(Instant::now() + FLUSH_LIMIT);
                }
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Entries are changed whole: a panic elsewhere leaves the queue as good as before.
        self.shared
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

const fn label(written: Written) -> &'static str {
    match written {
        Written::Succeeded => "succeeded",
        Written::Failed => "failed",
        Written::TimedOut => "timeout",
        Written::Gone => "dropped",
    }
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether the two differ in nothing but their progress.
fn differ_in_progress_only(one: &ImageMirrorStatus, other: &ImageMirrorStatus) -> bool {
    let shows_progress = one.progress.is_some() && other.progress.is_some();
    shows_progress && {
        let one = ImageMirrorStatus {
            progress: other.progress.clone(),
            ..one.clone()
        };
        one == *other
    }
}

impl Queue {
    fn submit(
        &mut self,
        target: &Target,
        standing: Option<&ImageMirrorStatus>,
        status: ImageMirrorStatus,
        now: Instant,
    ) {
        let fresh = || Entry {
            uid: target.uid.clone(),
            wanted: standing.cloned().unwrap_or_default(),
            due: None,
            in_flight: false,
            last_write: None,
            failures: 0,
        };
        let entry = self
            .entries
            .entry(target.name.clone())
            .and_modify(|entry| {
                if entry.uid != target.uid {
                    *entry = fresh();
                }
            })
            .or_insert_with(fresh);
        if entry.wanted == status {
            return;
        }
        let due = if differ_in_progress_only(&entry.wanted, &status) {
            entry.last_write.map_or(now, |last| last + PROGRESS_PAUSE)
        } else if entry.failures == 0 {
            now
        } else {
            // The server has trouble: a new status does not make it better.
            entry.due.unwrap_or(now)
        };
        // What had to go out before does not wait for the progress that came after it.
        entry.due = Some(entry.due.map_or(due, |before| before.min(due)));
        entry.wanted = status;
    }

    /// At most `room` statuses that are to be written now; with `all`, whatever is not written and was not refused.
    fn take_due(
        &mut self,
        now: Instant,
        room: usize,
        all: bool,
    ) -> Vec<(Target, ImageMirrorStatus)> {
        self.entries
            .iter_mut()
            .filter(|(_, entry)| !entry.in_flight)
            .filter(|(_, entry)| {
                let at_once = all && entry.failures == 0;
                entry.due.is_some_and(|due| at_once || due <= now)
            })
            .take(room)
            .map(|(name, entry)| {
                entry.in_flight = true;
                entry.due = None;
                let target = Target {
                    name: name.clone(),
                    uid: entry.uid.clone(),
                };
                (target, entry.wanted.clone())
            })
            .collect()
    }

    fn next_due(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter(|entry| !entry.in_flight)
            .filter_map(|entry| entry.due)
            .min()
    }

    fn settle(
        &mut self,
        target: &Target,
        status: &ImageMirrorStatus,
        written: Written,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(&target.name) else {
            return;
        };
        if entry.uid != target.uid {
            return;
        }
        entry.in_flight = false;
        match written {
            Written::Succeeded => {
                entry.failures = 0;
                entry.last_write = Some(now);
                // A newer one of mere progress came meanwhile: its five seconds begin now.
                if entry.due.is_some() && differ_in_progress_only(status, &entry.wanted) {
                    entry.due = Some(now + PROGRESS_PAUSE);
                }
            }
            Written::Failed | Written::TimedOut => {
                let pause = FIRST_RETRY
                    .saturating_mul(1 << entry.failures.min(10))
                    .min(LONGEST_RETRY);
                entry.failures = entry.failures.saturating_add(1);
                entry.due = Some(now + pause);
            }
            Written::Gone => {
                self.entries.remove(&target.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Progress;

    fn target(uid: &str) -> Target {
        Target {
            name: Name {
                namespace: "n".to_owned(),
                name: "m".to_owned(),
            },
            uid: uid.to_owned(),
        }
    }

    fn progressed(bytes_done: i64) -> ImageMirrorStatus {
        ImageMirrorStatus {
            observed_generation: 1,
            progress: Some(Progress {
                bytes_done,
                ..Progress::default()
            }),
            ..ImageMirrorStatus::default()
        }
    }

    fn ended(ready: &str) -> ImageMirrorStatus {
        ImageMirrorStatus {
            observed_generation: 1,
            ready: Some(ready.to_owned()),
            ..ImageMirrorStatus::default()
        }
    }

    /// Remembers what it was given; refuses as often as it is told to.
    #[derive(Default)]
    struct Server {
        written: Mutex<Vec<(Instant, ImageMirrorStatus)>>,
        refusals: Mutex<u32>,
        uid: Mutex<Option<String>>,
    }

    impl StatusSink for Server {
        fn exists(&self, target: &Target) -> bool {
            self.uid
                .lock()
                .unwrap()
                .as_ref()
                .is_none_or(|uid| *uid == target.uid)
        }

        fn write(&self, _target: Target, status: ImageMirrorStatus) -> BoxFuture<'static, Written> {
            let mut refusals = self.refusals.lock().unwrap();
            let written = if *refusals > 0 {
                *refusals -= 1;
                Written::Failed
            } else {
                self.written.lock().unwrap().push((Instant::now(), status));
                Written::Succeeded
            };
            Box::pin(std::future::ready(written))
        }
    }

    struct Bed {
        writer: StatusWriter,
        server: Arc<Server>,
        stop: CancellationToken,
        task: tokio::task::JoinSet<()>,
    }

    fn bed() -> Bed {
        let (writer, server, stop) = (
            StatusWriter::new(),
            Arc::new(Server::default()),
            CancellationToken::new(),
        );
        let mut task = tokio::task::JoinSet::new();
        task.spawn(writer.clone().run(
            Arc::<Server>::clone(&server),
            Metrics::default(),
            stop.clone(),
        ));
        Bed {
            writer,
            server,
            stop,
            task,
        }
    }

    /// Operator rule K16.
    #[tokio::test(start_paused = true)]
    async fn ten_thousand_ticks_in_a_second_make_one_patch() {
        let bed = bed();
        bed.writer.submit(&target("u"), None, progressed(0));
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = bed.server.written.lock().unwrap().len();
        for tick in 1..=10_000 {
            bed.writer.submit(&target("u"), None, progressed(tick));
            // The clock of tokio counts whole milliseconds.
            if tick % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(bed.server.written.lock().unwrap().len() <= before + 1);
        tokio::time::sleep(PROGRESS_PAUSE).await;
        let written = bed.server.written.lock().unwrap().clone();
        assert_eq!(written.len(), before + 1);
        assert_eq!(written.last().unwrap().1, progressed(10_000));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_state_goes_out_at_once_and_until_it_has_arrived() {
        let bed = bed();
        let start = Instant::now();
        bed.writer.submit(&target("u"), None, progressed(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        *bed.server.refusals.lock().unwrap() = 3;
        bed.writer.submit(&target("u"), None, ended("True"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let written = bed.server.written.lock().unwrap().clone();
        assert_eq!(written.last().unwrap().1, ended("True"));
        // 1 + 2 + 4 seconds of pauses.
        assert!(written.last().unwrap().0 - start < Duration::from_secs(8));
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_is_not_written_again() {
        let bed = bed();
        bed.writer
            .submit(&target("u"), Some(&ended("True")), ended("True"));
        bed.writer.submit(&target("u"), None, ended("True"));
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(bed.server.written.lock().unwrap().is_empty());
        assert_eq!(bed.writer.current(&target("u")), Some(ended("True")));
        assert_eq!(bed.writer.current(&target("another")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_to_a_later_object_of_the_same_name() {
        let bed = bed();
        *bed.server.uid.lock().unwrap() = Some("new".to_owned());
        bed.writer.submit(&target("old"), None, ended("True"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(bed.server.written.lock().unwrap().is_empty());
        assert_eq!(bed.writer.current(&target("old")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unwritten_at_the_end_is_written_before_it() {
        let mut bed = bed();
        bed.writer.submit(&target("u"), None, progressed(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        bed.writer.submit(&target("u"), None, progressed(2));
        bed.stop.cancel();
        bed.task.join_next().await.unwrap().unwrap();
        let written = bed.server.written.lock().unwrap().clone();
        assert_eq!(written.last().unwrap().1, progressed(2));
    }
}
