//! When a registry may be asked again.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// When a registry may be asked again: a 429 holds for everybody who asks it, not for one request (R15).
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<Instant>>);

impl Gate {
    pub(super) fn close_for(&self, pause: Duration) {
        // A pause beyond all clocks is as good as a day.
        let until = Instant::now() + pause.min(Duration::from_hours(24));
        let mut gate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.is_none_or(|closed| closed < until) {
            *gate = Some(until);
        }
    }

    pub(super) fn remaining(&self) -> Duration {
        let gate = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gate.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }
}
