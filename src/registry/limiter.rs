//! How many connections a registry bears at once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::hosts::Host;

/// What is opened to a registry that is not known (registry rule P13).
const START: usize = 16;

/// The connections of one registry.
#[derive(Debug)]
pub(super) struct Limiter(Arc<Semaphore>);

/// One connection's turn. Dropped, the next one has it.
#[derive(Debug)]
pub(super) struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Default for Limiter {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(START)))
    }
}

impl Host {
    /// Waits for a turn.
    pub(super) async fn slot(&self, _tenant: &Arc<str>) -> Slot {
        // It is never closed.
        let permit = Arc::clone(&self.limiter.0).acquire_owned().await.ok();
        Slot { _permit: permit }
    }
}

impl Slot {
    /// So many bytes have moved.
    #[expect(clippy::unused_self, reason = "the limiter measures with it")]
    pub(super) const fn note_bytes(&self, _bytes: usize) {}
}
