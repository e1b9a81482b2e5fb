//! What became of one job, and what has become of it so far.

use std::time::Duration;

use parking_lot::Mutex;

use crate::{
    error::{Class, Classified},
    image::Digest,
};

use super::{Error, ImageJob, Result};

/// What became of one job, with typed errors.
#[derive(Debug)]
pub(super) struct Copied {
    /// Digest of the image, once known.
    pub(super) digest: Option<Digest>,
    /// Whether anything was fetched, or why not.
    pub(super) fetched: Result<bool>,
    /// Per destination whether anything was sent, or why not; `None` shares the fate of the fetch.
    pub(super) destinations: Vec<Option<Result<bool>>>,
}

impl Copied {
    /// How long a registry wants to be left alone, where that is all that is wrong.
    pub(super) fn quota_wait(&self) -> Option<Duration> {
        let destinations = self.destinations.iter().flatten();
        let errors = destinations.filter_map(|outcome| outcome.as_ref().err());
        errors
            .chain(self.fetched.as_ref().err())
            .filter(|error| error.class() == Class::RateLimited)
            .filter_map(Error::retry_after)
            .max()
    }
}

/// What a job has reached so far. It is kept outside of the work, for whatever ends the work must not lose it.
#[derive(Debug)]
pub(super) struct SoFar(Mutex<Reached>);

#[derive(Debug)]
struct Reached {
    digest: Option<Digest>,
    fetched: Option<Result<bool>>,
    destinations: Vec<Option<Result<bool>>>,
}

impl SoFar {
    /// Nothing yet.
    pub(super) fn of(job: &ImageJob) -> Self {
        Self(Mutex::new(Reached {
            digest: None,
            fetched: None,
            destinations: job.destinations.iter().map(|_| None).collect(),
        }))
    }

    /// Which image it is.
    pub(super) fn found(&self, digest: &Digest) {
        self.0.lock().digest = Some(digest.clone());
    }

    /// The fetch ended.
    pub(super) fn fetched(&self, outcome: Result<bool>) {
        self.0.lock().fetched = Some(outcome);
    }

    /// A destination has the image, or will not get it.
    pub(super) fn settled(&self, destination: usize, outcome: Result<bool>) {
        if let Some(place) = self.0.lock().destinations.get_mut(destination) {
            *place = Some(outcome);
        }
    }

    /// Time is over: whatever has not ended ends like this.
    pub(super) fn give_up(&self, unfinished: impl Fn() -> Error) {
        let mut reached = self.0.lock();
        let fetched = reached.fetched.get_or_insert_with(|| Err(unfinished()));
        // After a failed fetch there was nothing to wait for, which is told once.
        if fetched.is_ok() {
            for outcome in &mut reached.destinations {
                outcome.get_or_insert_with(|| Err(unfinished()));
            }
        }
    }

    /// What it came to. A fetch nobody heard of was none.
    pub(super) fn ended(self) -> Copied {
        let Reached {
            digest,
            fetched,
            destinations,
        } = self.0.into_inner();
        Copied {
            digest,
            fetched: fetched.unwrap_or(Ok(false)),
            destinations,
        }
    }
}
