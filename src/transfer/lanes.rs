//! Who may move bytes next: a number of slots, the largest blob that waits first, and a lane for small ones, so that
//! configurations do not queue behind gigabytes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Blobs up to this size take about one round trip on any link that is worth a mirror.
const SMALL: u64 = 1024 * 1024;

/// Part of the slots that small blobs may have while large ones wait: they come in crowds, and each leaves soon.
const SMALL_SHARE: usize = 4;

/// The slots of one direction: from the source, or to one registry.
#[derive(Debug, Clone)]
pub(super) struct Lanes(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    small_running: usize,
    small_share: usize,
    /// By size, then by arrival.
    large: BinaryHeap<Waiter>,
    small: VecDeque<Waiter>,
    arrivals: u64,
}

/// A slot; dropped, it goes to the next who waits.
#[derive(Debug)]
#[must_use = "the slot is free again as soon as it is dropped"]
pub(super) struct Slot {
    lanes: Lanes,
    is_small: bool,
}

#[derive(Debug)]
struct Waiter {
    size: u64,
    arrival: Reverse<u64>,
    /// Carries the slot itself: a waiter that is gone gives it back by not taking it.
    turn: oneshot::Sender<Slot>,
}

impl Lanes {
    /// So many slots, at least one.
    pub(super) fn new(slots: usize) -> Self {
        let slots = slots.max(1);
        Self(Arc::new(Mutex::new(State {
            free: slots,
            small_running: 0,
            small_share: (slots / SMALL_SHARE).max(1),
            large: BinaryHeap::new(),
            small: VecDeque::new(),
            arrivals: 0,
        })))
    }

    /// Waits for a slot to move a blob of this size.
    #[expect(
        clippy::expect_used,
        reason = "the sender lies in the queue until it has sent"
    )]
    pub(super) async fn slot(&self, size: u64) -> Slot {
        let (turn, granted) = oneshot::channel();
        self.0.lock().enqueue(size, turn);
        self.grant();
        granted.await.expect("every waiter gets its turn")
    }

    /// Hands out what is free. A slot that nobody takes any more comes back here by its drop, outside of the lock.
    fn grant(&self) {
        loop {
            let next = self.0.lock().next();
            let Some((turn, is_small)) = next else { return };
            drop(turn.send(Slot {
                lanes: self.clone(),
                is_small,
            }));
        }
    }
}

impl State {
    fn enqueue(&mut self, size: u64, turn: oneshot::Sender<Slot>) {
        self.arrivals += 1;
        let waiter = Waiter {
            size,
            arrival: Reverse(self.arrivals),
            turn,
        };
        if size <= SMALL {
            self.small.push_back(waiter);
        } else {
            self.large.push(waiter);
        }
    }

    /// Takes the one whose turn it is out of the queues, if there is a free slot.
    fn next(&mut self) -> Option<(oneshot::Sender<Slot>, bool)> {
        if self.free == 0 {
            return None;
        }
        // Those that are gone would each give their slot back from within this hand-over.
        while self.small.front().is_some_and(Waiter::is_gone) {
            self.small.pop_front();
        }
        while self.large.peek().is_some_and(Waiter::is_gone) {
            self.large.pop();
        }
        let prefers_small = self.large.is_empty() || self.small_running < self.small_share;
        let small = if prefers_small {
            self.small.pop_front()
        } else {
            None
        };
        let is_small = small.is_some();
        let waiter = small.or_else(|| self.large.pop())?;
        self.free -= 1;
        self.small_running += usize::from(is_small);
        Some((waiter.turn, is_small))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.lanes.0.lock();
            state.free += 1;
            state.small_running -= usize::from(self.is_small);
        }
        self.lanes.grant();
    }
}

impl Waiter {
    fn is_gone(&self) -> bool {
        self.turn.is_closed()
    }
}

impl PartialEq for Waiter {
    fn eq(&self, other: &Self) -> bool {
        self.arrival == other.arrival
    }
}

impl Eq for Waiter {}

impl PartialOrd for Waiter {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiter {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.size, self.arrival).cmp(&(other.size, other.arrival))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};
    use proptest::prelude::*;

    use super::*;

    /// The order in which blobs of these sizes get the only slot, all having waited for it.
    async fn order(sizes: &[u64]) -> Vec<u64> {
        let lanes = Lanes::new(1);
        let first = lanes.slot(1).await;
        let order = Mutex::new(Vec::new());
        let waiting = join_all(sizes.iter().map(|&size| {
            let (lanes, order) = (&lanes, &order);
            async move {
                let slot = lanes.slot(size).await;
                order.lock().push(size);
                tokio::task::yield_now().await;
                drop(slot);
            }
        }));
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(first);
        waiting.await;
        let order = order.lock();
        order.clone()
    }

    #[tokio::test]
    async fn the_largest_blob_that_waits_is_next_and_small_ones_do_not_wait_behind_it() {
        const MIB: u64 = 1024 * 1024;
        assert_eq!(
            order(&[2 * MIB, 10, 9 * MIB, 20, 5 * MIB]).await,
            [10, 20, 9 * MIB, 5 * MIB, 2 * MIB]
        );
    }

    #[tokio::test]
    async fn a_crowd_of_small_blobs_leaves_slots_to_large_ones() {
        let lanes = Lanes::new(4);
        let running: Vec<_> = join_all((0..4).map(|_| lanes.slot(1))).await;
        let small: Vec<_> = (0..8).map(|_| Box::pin(lanes.slot(1))).collect();
        let mut small = join_all(small);
        let mut large = Box::pin(lanes.slot(SMALL + 1));
        assert!((&mut small).now_or_never().is_none());
        assert!((&mut large).now_or_never().is_none());
        drop(running);
        assert!((&mut large).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_takes_no_slot_with_it() {
        let lanes = Lanes::new(1);
        let first = lanes.slot(1).await;
        let mut given_up = Box::pin(lanes.slot(2 * SMALL));
        assert!((&mut given_up).now_or_never().is_none());
        let mut granted = Box::pin(lanes.slot(3 * SMALL));
        assert!((&mut granted).now_or_never().is_none());
        drop(first);
        // Granted already, but never taken.
        drop(granted);
        drop(given_up);
        drop(lanes.slot(1).await);
        assert_eq!(lanes.0.lock().free, 1);
    }

    #[tokio::test]
    async fn a_crowd_that_gave_up_is_passed_over() {
        let lanes = Lanes::new(1);
        let first = lanes.slot(1).await;
        let crowd: Vec<_> = (0..50_000)
            .map(|number| {
                let mut waiting = Box::pin(lanes.slot(number % 3 * SMALL));
                assert!((&mut waiting).now_or_never().is_none());
                waiting
            })
            .collect();
        drop(crowd);
        drop(first);
        drop(lanes.slot(1).await);
    }

    proptest! {
        #[test]
        fn there_are_never_more_at_work_than_slots_and_all_get_through(slots in 1_usize..6, sizes in proptest::collection::vec(0..3 * SMALL, 0..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let lanes = Lanes::new(slots);
                let running = Mutex::new((0_usize, 0_usize));
                join_all(sizes.iter().map(|&size| {
                    let (lanes, running) = (&lanes, &running);
                    async move {
                        let slot = lanes.slot(size).await;
                        { let mut at = running.lock(); at.0 += 1; at.1 = at.1.max(at.0); }
                        tokio::task::yield_now().await;
                        running.lock().0 -= 1;
                        drop(slot);
                    }
                })).await;
                assert!(running.lock().1 <= slots);
                let state = lanes.0.lock();
                assert_eq!((state.free, state.small_running), (slots, 0));
            });
        }
    }
}
