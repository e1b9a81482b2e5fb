//! When the listeners that tell of progress now and then speak, and what there is to tell.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::output::{Event, Progress, ProgressNumbers};

/// Adds up the events and lets one of them through after each pause.
#[derive(Debug)]
pub(super) struct Pace {
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    progress: Progress,
    last: Instant,
}

impl Pace {
    pub(super) fn new(pause: Duration) -> Self {
        let state = State {
            progress: Progress::default(),
            last: Instant::now(),
        };
        Self {
            pause,
            state: Mutex::new(state),
        }
    }

    /// Takes the event in; the numbers, when it moved something and the last ones were told long enough ago.
    pub(super) fn observe(&self, event: &Event<'_>) -> Option<ProgressNumbers> {
        let mut state = self.state.lock();
        state.progress.observe(event);
        if !matches!(event, Event::Advanced { .. }) || state.last.elapsed() < self.pause {
            return None;
        }
        state.last = Instant::now();
        Some(state.progress.numbers())
    }
}
