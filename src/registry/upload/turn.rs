//! An upload's turn at its registry.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::super::{client::Shared, error::Error, hosts::Host, limiter::Slot};

/// The turn of one attempt. Its body gives it back while it has nothing to send, and takes it again.
pub(super) struct Turn {
    host: Arc<Host>,
    tenant: Arc<str>,
    held: Mutex<Held>,
}

struct Held {
    slot: Option<Slot>,
    /// The attempt is over, its body may live on for a moment.
    is_over: bool,
}

/// An attempt with its turn, which ends with it.
pub(super) struct Attempt(Arc<Turn>);

impl Attempt {
    /// Waits for a turn.
    pub(super) async fn begin(shared: &Shared) -> Self {
        let held = Held {
            slot: Some(shared.slot(&shared.host.uploads).await),
            is_over: false,
        };
        Self(Arc::new(Turn {
            host: Arc::clone(&shared.host),
            tenant: Arc::clone(&shared.tenant),
            held: Mutex::new(held),
        }))
    }
}

impl Deref for Attempt {
    type Target = Arc<Turn>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        *self.0.held() = Held {
            slot: None,
            is_over: true,
        };
    }
}

impl Turn {
    /// Waits for the turn, unless it is held or no longer needed.
    pub(super) async fn take(&self) {
        let is_settled = |held: &Held| held.slot.is_some() || held.is_over;
        if is_settled(&self.held()) {
            return;
        }
        let slot = self.host.uploads.slot(&self.tenant).await;
        let mut held = self.held();
        if !is_settled(&held) {
            held.slot = Some(slot);
        }
    }

    /// Lets somebody else go on.
    pub(super) fn give_back(&self) {
        self.held().slot = None;
    }

    /// See [`Limiter::crowded_out`](super::super::limiter::Limiter::crowded_out).
    pub(super) fn crowded_out(&self, error: &Error) -> Option<Duration> {
        self.host.uploads.crowded_out(error)
    }

    /// Tells the limiter what moves.
    pub(super) fn note_bytes(&self, bytes: usize) {
        if let Some(slot) = &self.held().slot {
            slot.note_bytes(bytes);
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Every change is one assignment: a panic elsewhere leaves it whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
