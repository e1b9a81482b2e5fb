//! Writes statuses: one task, one status per mirror, the last one wins (operator rule K16).
//!
//! A status that differs only in its progress waits until five seconds after the last write; everything else goes out at
//! once, and again until it has arrived. What equals the status that stands is not sent at all (K14). The queue is a map
//! with one entry per mirror: it cannot overflow, so no end state is ever dropped.
//!
//! The server ignores a wrong uid in a body (CRD finding F28), so the status of a deleted mirror could land on a later one of
//! the same name, which would look Ready without a copy. Three things prevent it: right before each write the reflected
//! store is asked whether the object is still the one meant; of two writes to one name the later waits for the earlier; and
//! where a write landed elsewhere, or may have, what stands in the later object counts as nothing until we wrote its own.

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

/// How long what stands in an object counts as nothing after a write for an earlier one of its name went astray: a new
/// object is looked at as soon as it is seen, and no watch is silent for so long.
const STRAY_LIMIT: Duration = Duration::from_mins(10);

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
    /// A later object of the same name has it.
    Astray,
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
    /// Names that are written to, and the uid that is meant. Kept until the write is over, whoever is forgotten meanwhile.
    in_flight: HashMap<Name, String>,
    /// Names whose present object may show the status of an earlier one.
    strays: HashMap<Name, Stray>,
}

/// A write that went to another object than the one meant, or may have.
#[derive(Debug)]
struct Stray {
    /// Which object was meant.
    uid: String,
    /// When it no longer matters.
    until: Instant,
}

#[derive(Debug)]
struct Entry {
    uid: String,
    /// The last status handed over: what stands, or will stand.
    wanted: ImageMirrorStatus,
    /// When `wanted` is to be written; `None` when it stands.
    due: Option<Instant>,
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

    /// The status that was last handed over for this object: newer than what the store shows. An empty one where what the
    /// store shows may be that of an earlier object.
    pub(super) fn current(&self, target: &Target) -> Option<ImageMirrorStatus> {
        let queue = self.queue();
        match queue.entries.get(&target.name) {
            Some(entry) if entry.uid == target.uid => Some(entry.wanted.clone()),
            _ => queue
                .distrusts(target, Instant::now())
                .then(ImageMirrorStatus::default),
        }
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

    /// Forgets the object: it is gone. A write that is under way is still waited for.
    pub(super) fn forget(&self, name: &Name) {
        self.queue().forget(name, Instant::now());
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
                let sink = &sink;
                writes.push(async move {
                    let written = if sink.exists(&target) {
                        sink.write(target.clone(), status.clone()).await
                    } else {
                        Written::Gone
                    };
                    (target, status, written)
                });
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
        Written::Failed | Written::Astray => "failed",
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
        let standing = standing.filter(|_| !self.distrusts(target, now));
        let fresh = || Entry {
            uid: target.uid.clone(),
            wanted: standing.cloned().unwrap_or_default(),
            due: None,
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
        let in_flight = &self.in_flight;
        let due: Vec<_> = self
            .entries
            .iter_mut()
            .filter(|(name, entry)| {
                let at_once = all && entry.failures == 0;
                let is_due = entry.due.is_some_and(|due| at_once || due <= now);
                is_due && !in_flight.contains_key(name)
            })
            .take(room)
            .map(|(name, entry)| {
                entry.due = None;
                let target = Target {
                    name: name.clone(),
                    uid: entry.uid.clone(),
                };
                (target, entry.wanted.clone())
            })
            .collect();
        let targets = due.iter().map(|(target, _)| target.clone());
        self.in_flight
            .extend(targets.map(|target| (target.name, target.uid)));
        due
    }

    fn next_due(&self) -> Option<Instant> {
        self.entries
            .iter()
            .filter(|(name, _)| !self.in_flight.contains_key(name))
            .filter_map(|(_, entry)| entry.due)
            .min()
    }

    /// Whether the status that stands in this object may be that of an earlier one of its name.
    fn distrusts(&self, target: &Target, now: Instant) -> bool {
        let is_other = |uid: &String| *uid != target.uid;
        let (entry, stray) = (
            self.entries.get(&target.name),
            self.strays.get(&target.name),
        );
        // A write that failed may have arrived all the same.
        entry.is_some_and(|entry| entry.failures > 0 && is_other(&entry.uid))
            || self.in_flight.get(&target.name).is_some_and(is_other)
            || stray.is_some_and(|stray| stray.until > now && is_other(&stray.uid))
    }

    fn forget(&mut self, name: &Name, now: Instant) {
        let entry = self.entries.remove(name);
        if let Some(Entry { uid, .. }) = entry.filter(|entry| entry.failures > 0) {
            let name = name.clone();
            self.note_stray(&Target { name, uid }, now);
        }
    }

    fn settle(
        &mut self,
        target: &Target,
        status: &ImageMirrorStatus,
        written: Written,
        now: Instant,
    ) {
        self.in_flight.remove(&target.name);
        self.strays.retain(|_, stray| stray.until > now);
        let entry = match self.entries.get_mut(&target.name) {
            Some(entry) if entry.uid == target.uid => entry,
            other => {
                // It was deleted meanwhile. Unless it is known not to, what was written may stand in its successor, whose
                // own status then goes out once more.
                if matches!(written, Written::Succeeded | Written::Gone) {
                    return;
                }
                if let Some(successor) = other {
                    successor.due = Some(now);
                }
                self.note_stray(target, now);
                return;
            }
        };
        match written {
            Written::Succeeded => {
                entry.failures = 0;
                entry.last_write = Some(now);
                self.strays.remove(&target.name);
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
            Written::Gone => self.forget(&target.name, now),
            Written::Astray => {
                self.entries.remove(&target.name);
                self.note_stray(target, now);
            }
        }
    }

    fn note_stray(&mut self, target: &Target, now: Instant) {
        let stray = Stray {
            uid: target.uid.clone(),
            until: now + STRAY_LIMIT,
        };
        self.strays.insert(target.name.clone(), stray);
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
        state: Arc<Mutex<State>>,
    }

    #[derive(Default)]
    struct State {
        written: Vec<(Instant, ImageMirrorStatus)>,
        refusals: u32,
        /// The object that exists; any, where there is none.
        uid: Option<String>,
        /// How long a write takes.
        pause: Duration,
        writing: bool,
    }

    impl Server {
        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap()
        }
    }

    impl StatusSink for Server {
        fn exists(&self, target: &Target) -> bool {
            let uid = &self.state().uid;
            uid.as_ref().is_none_or(|uid| *uid == target.uid)
        }

        fn write(&self, target: Target, status: ImageMirrorStatus) -> BoxFuture<'static, Written> {
            let state = Arc::clone(&self.state);
            Box::pin(async move {
                let pause = {
                    let mut state = state.lock().unwrap();
                    assert!(
                        !std::mem::replace(&mut state.writing, true),
                        "two writes at once"
                    );
                    state.pause
                };
                tokio::time::sleep(pause).await;
                let mut state = state.lock().unwrap();
                state.writing = false;
                if state.refusals > 0 {
                    state.refusals -= 1;
                    return Written::Failed;
                }
                state.written.push((Instant::now(), status));
                match &state.uid {
                    Some(uid) if *uid != target.uid => Written::Astray,
                    _ => Written::Succeeded,
                }
            })
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
        let before = bed.server.state().written.len();
        for tick in 1..=10_000 {
            bed.writer.submit(&target("u"), None, progressed(tick));
            // The clock of tokio counts whole milliseconds.
            if tick % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(bed.server.state().written.len() <= before + 1);
        tokio::time::sleep(PROGRESS_PAUSE).await;
        let written = bed.server.state().written.clone();
        assert_eq!(written.len(), before + 1);
        assert_eq!(written.last().unwrap().1, progressed(10_000));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_state_goes_out_at_once_and_until_it_has_arrived() {
        let bed = bed();
        let start = Instant::now();
        bed.writer.submit(&target("u"), None, progressed(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        bed.server.state().refusals = 3;
        bed.writer.submit(&target("u"), None, ended("True"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let written = bed.server.state().written.clone();
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
        assert!(bed.server.state().written.is_empty());
        assert_eq!(bed.writer.current(&target("u")), Some(ended("True")));
        assert_eq!(bed.writer.current(&target("another")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_to_a_later_object_of_the_same_name() {
        let bed = bed();
        bed.server.state().uid = Some("new".to_owned());
        bed.writer.submit(&target("old"), None, ended("True"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(bed.server.state().written.is_empty());
        assert_eq!(bed.writer.current(&target("old")), None);
    }

    /// A mirror that is deleted and made anew while its status is on the way to the server.
    fn re_made_during_a_write() -> Bed {
        let bed = bed();
        bed.server.state().pause = Duration::from_secs(2);
        bed.server.state().uid = Some("old".to_owned());
        bed
    }

    #[tokio::test(start_paused = true)]
    async fn a_mirror_made_anew_during_a_write_ends_with_a_status_of_its_own() {
        let bed = re_made_during_a_write();
        bed.writer.submit(&target("old"), None, ended("True"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        bed.server.state().uid = Some("new".to_owned());
        bed.writer.forget(&target("old").name);
        // What the store shows of the new one may be the status of the old one already.
        let base = bed.writer.current(&target("new"));
        assert_eq!(base, Some(ImageMirrorStatus::default()));
        bed.writer
            .submit(&target("new"), Some(&ended("True")), ended("Unknown"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let written: Vec<_> = bed.server.state().written.clone();
        let written: Vec<_> = written.into_iter().map(|(_, status)| status).collect();
        assert_eq!(written, [ended("True"), ended("Unknown")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_went_astray_counts_as_nothing_until_it_is_overwritten() {
        for (refusals, forgets) in [(0, false), (0, true), (1, false), (1, true)] {
            let bed = re_made_during_a_write();
            // A write that fails may have arrived all the same.
            bed.server.state().refusals = refusals;
            bed.writer.submit(&target("old"), None, ended("True"));
            tokio::time::sleep(Duration::from_secs(1)).await;
            bed.server.state().uid = Some("new".to_owned());
            if forgets {
                bed.writer.forget(&target("old").name);
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
            let base = bed.writer.current(&target("new"));
            assert_eq!(base, Some(ImageMirrorStatus::default()));
            bed.writer
                .submit(&target("new"), Some(&ended("True")), ended("True"));
            tokio::time::sleep(Duration::from_secs(10)).await;
            let count = bed.server.state().written.len();
            assert_eq!(count + usize::try_from(refusals).unwrap(), 2);
            bed.writer.forget(&target("new").name);
            assert_eq!(bed.writer.current(&target("new")), None);
            assert!(bed.writer.queue().strays.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_of_a_deleted_mirror_is_dropped_in_the_end() {
        let bed = re_made_during_a_write();
        bed.server.state().refusals = 1;
        bed.writer.submit(&target("old"), None, ended("True"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        bed.writer.forget(&target("old").name);
        tokio::time::sleep(STRAY_LIMIT + Duration::from_secs(10)).await;
        assert_eq!(bed.writer.current(&target("new")), None);
        let other = Target {
            name: Name {
                namespace: "n".to_owned(),
                name: "other".to_owned(),
            },
            uid: "old".to_owned(),
        };
        bed.writer.submit(&other, None, ended("True"));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let queue = bed.writer.queue();
        assert!(queue.strays.is_empty() && queue.in_flight.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_unwritten_at_the_end_is_written_before_it() {
        let mut bed = bed();
        bed.writer.submit(&target("u"), None, progressed(1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        bed.writer.submit(&target("u"), None, progressed(2));
        bed.stop.cancel();
        bed.task.join_next().await.unwrap().unwrap();
        let written = bed.server.state().written.clone();
        assert_eq!(written.last().unwrap().1, progressed(2));
    }
}
