//! What a fake registry was asked: every request with its headers and the size of its body, in the order of arrival.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use hyper::{HeaderMap, Method};

use super::fault::Step;

/// Of larger bodies only the size is noted.
const KEPT_BODY: usize = 64 * 1024;

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub step: Step,
    pub repository: String,
    pub method: Method,
    /// As it was written, without the query.
    pub path: String,
    /// As it was written.
    pub query: String,
    pub headers: HeaderMap,
    /// The body's first bytes.
    pub body: Vec<u8>,
    pub body_bytes: u64,
    /// Numbers the server's connections.
    pub connection: usize,
    /// Empty while there is no answer, or when the connection ended instead.
    pub status: Option<u16>,
    /// Of the answer's body, as far as it was sent.
    pub answer_bytes: u64,
    pub started: Instant,
    pub ended: Option<Instant>,
}

impl Seen {
    /// A header's first value, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Everything that came in, as one text, for those who look for secrets in it.
    pub fn text(&self) -> String {
        let body = String::from_utf8_lossy(&self.body);
        format!(
            "{} {}?{} {:?} {body}",
            self.method, self.path, self.query, self.headers
        )
    }
}

/// One entry, which is still written to.
#[derive(Debug, Clone)]
pub(super) struct Entry(Arc<Mutex<Seen>>);

impl Entry {
    pub(super) fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a piece of the request's body.
    pub(super) fn received(&self, piece: &Bytes) {
        let mut seen = self.lock();
        let room = KEPT_BODY.saturating_sub(seen.body.len()).min(piece.len());
        seen.body.extend_from_slice(&piece[..room]);
        seen.body_bytes += piece.len() as u64;
    }

    /// Notes a piece of the answer's body.
    pub(super) fn sent(&self, bytes: usize) {
        self.lock().answer_bytes += bytes as u64;
    }
}

/// Ends an entry, however the request ends.
#[derive(Debug)]
pub(super) struct EndOnDrop(pub(super) Entry);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.lock().ended = Some(Instant::now());
    }
}

#[derive(Debug, Default)]
pub(super) struct Log(Mutex<Vec<Entry>>);

impl Log {
    pub(super) fn add(&self, seen: Seen) -> Entry {
        let entry = Entry(Arc::new(Mutex::new(seen)));
        self.entries().push(entry.clone());
        entry
    }

    pub(super) fn all(&self) -> Vec<Seen> {
        self.entries()
            .iter()
            .map(|entry| entry.lock().clone())
            .collect()
    }

    pub(super) fn clear(&self) {
        self.entries().clear();
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
