//! How far a blob is on its way into the cache: what those who send it on wait for.

use tokio::sync::watch;

use crate::cache::BlobReader;

/// Where a blob is.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// Not yet on its way.
    Waiting,
    /// On its way; whoever reads gets the bytes as they come.
    Arriving(BlobReader),
    /// In the cache, verified.
    Here,
    /// It will not come.
    Lost,
}

/// The side that fetches. Dropped without a word, the blob is lost.
#[derive(Debug)]
pub(super) struct Announcer(watch::Sender<Stage>);

/// The side that sends on.
#[derive(Debug, Clone)]
pub(super) struct Arrival(watch::Receiver<Stage>);

/// Both sides for a blob that is to come.
pub(super) fn expected() -> (Announcer, Arrival) {
    let (sender, receiver) = watch::channel(Stage::Waiting);
    (Announcer(sender), Arrival(receiver))
}

impl Announcer {
    /// Whether somebody wants to read the blob as it comes.
    pub(super) fn is_awaited(&self) -> bool {
        self.0.receiver_count() > 0
    }

    /// Tells where the blob is now.
    pub(super) fn announce(&self, stage: Stage) {
        self.0.send_replace(stage);
    }
}

impl Arrival {
    /// For a blob that lies in the cache.
    pub(super) fn here() -> Self {
        Self(watch::channel(Stage::Here).1)
    }

    /// Where the blob is.
    pub(super) fn now(&self) -> Stage {
        self.0.borrow().clone()
    }

    /// Waits until there is something to read, or never will be.
    pub(super) async fn readable(&mut self) -> Stage {
        let changed = self
            .0
            .wait_for(|stage| !matches!(stage, Stage::Waiting))
            .await;
        changed.map_or(Stage::Lost, |stage| stage.clone())
    }

    /// Waits until it is known whether the blob has come.
    pub(super) async fn settled(&mut self) -> Stage {
        let settled = self
            .0
            .wait_for(|stage| matches!(stage, Stage::Here | Stage::Lost))
            .await;
        settled.map_or(Stage::Lost, |stage| stage.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fetch_that_ends_without_a_word_has_lost_the_blob() {
        let (announcer, mut arrival) = expected();
        drop(announcer);
        assert!(matches!(arrival.readable().await, Stage::Lost));
        assert!(matches!(arrival.settled().await, Stage::Lost));
    }

    #[tokio::test]
    async fn a_blob_that_came_stays_here_when_its_fetch_is_over() {
        let (announcer, mut arrival) = expected();
        announcer.announce(Stage::Here);
        drop(announcer);
        assert!(matches!(arrival.readable().await, Stage::Here));
        assert!(matches!(Arrival::here().settled().await, Stage::Here));
    }
}
