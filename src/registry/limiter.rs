//! Who may use a connection of a registry now: never more at once than [`ConnectionLimit`] says, in turn between tenants, and
//! first come, first served within one.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::{connection_limit::ConnectionLimit, error::Error};

/// One of too many requests comes back after a pause between this and twice as much: not all of them at one moment.
const CROWD_PAUSE: Duration = Duration::from_millis(250);

/// The connections of one registry in one direction. Clones share them.
#[derive(Clone)]
pub(super) struct Limiter(Arc<Mutex<State>>);

struct State {
    limit: ConnectionLimit,
    in_use: usize,
    queue: Queue,
}

impl Limiter {
    pub(super) fn new(connections: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            limit: ConnectionLimit::new(connections, Instant::now()),
            in_use: 0,
            queue: Queue::default(),
        })))
    }

    /// Waits for its turn. A waiter that gives up loses it, and nobody else does.
    pub(super) async fn slot(&self, tenant: &Arc<str>) -> Slot {
        loop {
            let turn = {
                let mut state = self.state();
                // A queue is there only while all slots are taken.
                if state.queue.is_empty() && state.take() {
                    return Slot::new(self.clone());
                }
                let (sender, turn) = oneshot::channel();
                state.queue.push(tenant, sender);
                turn
            };
            // The sender stays in the queue until it is used, so there is always an answer.
            if let Ok(slot) = turn.await {
                return slot;
            }
        }
    }

    /// Takes in why something failed. One of several requests at once may have been one too many: nothing is wrong with it,
    /// it is no failed attempt, and it may come back after the pause that is given, when there are fewer. That ends when there
    /// is but one. A registry that names a time is asked again at that time, as always.
    pub(super) fn crowded_out(&self, error: &Error) -> Option<Duration> {
        if !error.is_refusal_of_many() {
            return None;
        }
        let had_several = self.state().limit.refused(Instant::now());
        (had_several && error.retry_after().is_none())
            .then(|| CROWD_PAUSE.mul_f64(1.0 + fastrand::f64()))
    }

    /// The registry answered so soon; see [`ConnectionLimit::answered`].
    pub(super) fn answered(&self, took: Duration) {
        self.state().limit.answered(took);
    }

    fn moved(&self, bytes: usize, begun: Option<Instant>) {
        let now = Instant::now();
        let has_room = {
            let mut state = self.state();
            if let Some(asked) = begun {
                state.limit.begun(asked, now);
            }
            let wanted = state.queue.is_wanted();
            state.limit.moved(bytes, wanted, now);
            wanted && state.in_use < state.limit.get()
        };
        if has_room {
            self.hand_out();
        }
    }

    fn release(&self) {
        self.state().in_use -= 1;
        self.hand_out();
    }

    /// Gives free slots to those whose turn it is, until none is left or nobody waits.
    fn hand_out(&self) {
        loop {
            let next = {
                let mut state = self.state();
                if state.queue.is_empty() || !state.take() {
                    return;
                }
                let next = state.queue.next();
                if next.is_none() {
                    state.in_use -= 1;
                }
                next
            };
            // Not under the lock: a waiter that gave up just now drops its slot, which comes back here.
            if let Some(waiter) = next
                && let Err(unwanted) = waiter.send(Slot::new(self.clone()))
            {
                drop(unwanted);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can stop half way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Limiter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        formatter
            .debug_struct("Limiter")
            .field("limit", &state.limit)
            .field("in_use", &state.in_use)
            .finish_non_exhaustive()
    }
}

impl State {
    /// Takes a free slot, if there is one.
    const fn take(&mut self) -> bool {
        let is_free = self.in_use < self.limit.get();
        if is_free {
            self.in_use += 1;
        }
        is_free
    }
}

/// The right to use one connection. Dropping it lets the next one in.
#[derive(Debug)]
pub struct Slot {
    limiter: Limiter,
    since: Instant,
    has_begun: AtomicBool,
}

impl Slot {
    fn new(limiter: Limiter) -> Self {
        Self {
            limiter,
            since: Instant::now(),
            has_begun: AtomicBool::new(false),
        }
    }

    /// Bytes of a blob came, or went, through this connection.
    pub(super) fn note_bytes(&self, bytes: usize) {
        let is_first = !self.has_begun.swap(true, Ordering::Relaxed);
        self.limiter.moved(bytes, is_first.then_some(self.since));
    }

    /// How many connections there are now, this one included.
    pub(super) fn connections(&self) -> usize {
        self.limiter.state().in_use
    }

    /// See [`Limiter::crowded_out`].
    pub(super) fn crowded_out(&self, error: &Error) -> Option<Duration> {
        self.limiter.crowded_out(error)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limiter.release();
    }
}

/// Those who wait: one line for each tenant, the tenant whose turn it is in front.
#[derive(Default)]
struct Queue(VecDeque<(Arc<str>, VecDeque<Waiter>)>);

type Waiter = oneshot::Sender<Slot>;

impl Queue {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether anybody in it still waits.
    fn is_wanted(&self) -> bool {
        self.0
            .iter()
            .flat_map(|(_, line)| line)
            .any(|waiter| !waiter.is_closed())
    }

    fn push(&mut self, tenant: &Arc<str>, waiter: Waiter) {
        match self.0.iter_mut().find(|(name, _)| name == tenant) {
            Some((_, line)) => line.push_back(waiter),
            None => self
                .0
                .push_back((Arc::clone(tenant), VecDeque::from([waiter]))),
        }
    }

    /// The next one who still waits; its tenant goes to the end.
    fn next(&mut self) -> Option<Waiter> {
        while let Some((tenant, mut line)) = self.0.pop_front() {
            while line.front().is_some_and(Waiter::is_closed) {
                line.pop_front();
            }
            let next = line.pop_front();
            if !line.is_empty() {
                self.0.push_back((tenant, line));
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use http::StatusCode;

    use super::*;
    use crate::registry::{Answer, Operation};

    type Waiting<'a> = Pin<Box<dyn Future<Output = Slot> + 'a>>;

    /// Polls once; a place in the queue is taken by the first poll.
    fn poll(waiting: &mut Waiting<'_>) -> Option<Slot> {
        match waiting
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        }
    }

    fn waiting<'a>(limiter: &'a Limiter, tenant: &'a Arc<str>) -> Waiting<'a> {
        let mut waiting: Waiting<'a> = Box::pin(limiter.slot(tenant));
        assert!(poll(&mut waiting).is_none());
        waiting
    }

    fn too_many(retry_after: Option<Duration>) -> Error {
        Error::TooManyRequests {
            operation: Operation::new("x"),
            answer: Answer::of_status(StatusCode::TOO_MANY_REQUESTS),
            retry_after,
        }
    }

    fn taken(limiter: &Limiter, tenant: &Arc<str>) -> Slot {
        poll(&mut (Box::pin(limiter.slot(tenant)) as Waiting<'_>)).unwrap()
    }

    #[tokio::test]
    async fn tenants_take_turns_and_within_one_the_first_is_first() {
        let limiter = Limiter::new(1);
        let (a, b, c): (Arc<str>, Arc<str>, Arc<str>) = ("a".into(), "b".into(), "c".into());
        let mut current = taken(&limiter, &a);
        let mut all = [
            ("a1", waiting(&limiter, &a)),
            ("a2", waiting(&limiter, &a)),
            ("a3", waiting(&limiter, &a)),
            ("b1", waiting(&limiter, &b)),
            ("b2", waiting(&limiter, &b)),
            ("c1", waiting(&limiter, &c)),
        ]
        .map(|(name, waiting)| (name, Some(waiting)));
        let mut order = Vec::new();
        for _ in 0..6 {
            drop(current);
            let mut served = Vec::new();
            for (name, waiting) in &mut all {
                if let Some(slot) = waiting.as_mut().and_then(poll) {
                    *waiting = None;
                    served.push((*name, slot));
                }
            }
            let (name, slot) = served.pop().unwrap();
            assert!(served.is_empty(), "there is one slot");
            order.push(name);
            current = slot;
        }
        assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_nobody_elses_turn() {
        let limiter = Limiter::new(1);
        let tenant: Arc<str> = Arc::default();
        let current = taken(&limiter, &tenant);
        let gone = waiting(&limiter, &tenant);
        let late = waiting(&limiter, &tenant);
        let mut last = waiting(&limiter, &tenant);
        drop(gone);
        drop(current);
        // The slot lies ready for `late`, who goes without having taken it.
        assert!(poll(&mut last).is_none());
        drop(late);
        let slot = poll(&mut last).unwrap();
        drop(slot);
        assert_eq!(limiter.state().in_use, 0);
        assert!(limiter.state().queue.is_empty());
    }

    #[tokio::test]
    async fn only_refusals_of_many_say_something_about_how_many_there_may_be() {
        let (operation, soon) = (Operation::new("x"), Some(Duration::from_secs(1)));
        let unavailable = |status: u16, retry_after| Error::RegistryUnavailable {
            operation: operation.clone(),
            answer: Answer::of_status(StatusCode::from_u16(status).unwrap()),
            retry_after,
        };
        for (error, comes_back, left) in [
            (too_many(None), true, 2),
            (too_many(soon), false, 2),
            (too_many(Some(Duration::from_hours(1))), false, 4),
            (unavailable(503, None), true, 2),
            (unavailable(503, soon), false, 2),
            (unavailable(502, None), false, 4),
        ] {
            let limiter = Limiter::new(4);
            assert_eq!(limiter.crowded_out(&error).is_some(), comes_back, "{error}");
            assert_eq!(limiter.state().limit.get(), left, "{error}");
        }
        let alone = Limiter::new(1);
        assert_eq!(alone.crowded_out(&too_many(None)), None);
    }

    #[tokio::test]
    async fn after_a_refusal_half_as_many_go_on() {
        let limiter = Limiter::new(4);
        let tenant: Arc<str> = Arc::default();
        let mut slots: Vec<_> = (0..4).map(|_| taken(&limiter, &tenant)).collect();
        assert!(slots[0].crowded_out(&too_many(None)).is_some());
        let mut next = waiting(&limiter, &tenant);
        for left in [3, 2, 1] {
            assert!(poll(&mut next).is_none());
            slots.truncate(left);
        }
        assert!(poll(&mut next).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_get_the_slots_that_are_added() {
        let limiter = Limiter::new(1);
        let tenant: Arc<str> = Arc::default();
        let slot = taken(&limiter, &tenant);
        let mut next = waiting(&limiter, &tenant);
        slot.note_bytes(1);
        for _ in 0..2 {
            tokio::time::advance(Duration::from_millis(200)).await;
            slot.note_bytes(1);
        }
        assert!(poll(&mut next).is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_wake_up_is_lost_among_threads_that_wait_take_and_give_up() {
        let limiter = Limiter::new(3);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..64_u64 {
            let limiter = limiter.clone();
            let tenant: Arc<str> = (number % 5).to_string().into();
            tasks.spawn(async move {
                for round in 0..50 {
                    let patience = Duration::from_micros((number * 7 + round * 13) % 200);
                    if let Ok(slot) = tokio::time::timeout(patience, limiter.slot(&tenant)).await {
                        assert!(limiter.state().in_use <= 3);
                        tokio::task::yield_now().await;
                        drop(slot);
                    }
                    drop(limiter.slot(&tenant).await);
                }
            });
        }
        let all = async { while tasks.join_next().await.transpose().unwrap().is_some() {} };
        tokio::time::timeout(Duration::from_secs(30), all)
            .await
            .expect("somebody waits for ever");
        assert_eq!(limiter.state().in_use, 0);
    }
}
