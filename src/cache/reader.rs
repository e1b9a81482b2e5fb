//! Reading a blob, also one that is still on its way in: an upload may follow a download.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;

use super::{arrival::Arrival, pieces::Found};

/// A blob that can be read at any offset, by several at once: there is no shared cursor.
#[derive(Clone, Debug)]
pub struct BlobReader {
    size: u64,
    file: Arc<File>,
    /// None of a blob that was whole from the start.
    follows: Option<Arc<Follower>>,
}

/// A reader that the writer knows of; its clones count as one.
struct Follower {
    arrival: Arc<Arrival>,
    number: u64,
}

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.arrival, formatter)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.arrival.lock().pieces.remove_reader(self.number);
    }
}

impl BlobReader {
    pub(super) fn of_file(file: File, size: u64) -> Self {
        Self {
            size,
            file: Arc::new(file),
            follows: None,
        }
    }

    pub(super) fn following(arrival: &Arc<Arrival>) -> Self {
        let number = arrival.lock().pieces.add_reader();
        Self {
            size: arrival.descriptor.size,
            file: Arc::clone(&arrival.partial.file),
            follows: Some(Arc::new(Follower {
                arrival: Arc::clone(arrival),
                number,
            })),
        }
    }

    /// How many bytes the whole blob has.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// At least one and at most `limit` bytes from `offset`, as soon as they are there. The last 64 KiB of a blob (the whole
    /// of a smaller one) come only once its digest is known to be right.
    ///
    /// # Errors
    /// When the download was given up, began anew or brought the wrong bytes, when the file cannot be read, and when there
    /// is nothing at `offset`.
    pub async fn read(&self, offset: u64, limit: usize) -> io::Result<Bytes> {
        if limit == 0 || offset >= self.size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some(follower) = &self.follows else {
            return self.read_file(offset, self.size - offset, limit).await;
        };
        let Follower { arrival, number } = &**follower;
        loop {
            let arrived = arrival.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            match arrival.find(*number, offset, limit)? {
                Found::Memory(bytes) => return Ok(bytes),
                Found::File(length) => return self.read_file(offset, length, limit).await,
                Found::NotYet => arrived.await,
            }
        }
    }

    /// Waits until first bytes are there, or until it is over.
    pub async fn begun(&self) {
        let Some(follower) = &self.follows else {
            return;
        };
        let arrival = &follower.arrival;
        loop {
            let arrived = arrival.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let state = arrival.lock();
                if state.end.is_some() || state.pieces.frontier() > 0 {
                    return;
                }
            }
            arrived.await;
        }
    }

    async fn read_file(&self, offset: u64, length: u64, limit: usize) -> io::Result<Bytes> {
        let length = usize::try_from(length).unwrap_or(limit).min(limit);
        let file = Arc::clone(&self.file);
        let read = move || {
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, offset)?;
            Ok(Bytes::from(buffer))
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(io::Error::other("the program goes down")),
            },
        }
    }
}
