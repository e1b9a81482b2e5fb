//! Writing one blob: bytes come in pieces and are hashed and written on a blocking thread.
//!
//! Pieces wait in a short queue, so memory does not grow with the blob. The thread takes all that wait at once and leaves
//! when there is little: while the disk is the slower side it never waits for a hand-over, and while the network is, no
//! thread waits for it. A stalled download holds none.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::{sync::Notify, task::JoinHandle};

use crate::image::Descriptor;

use super::{
    Shared,
    disk::blocking,
    error::{Error, Result},
    lock::{Held, StoreGuard},
    partial::{Blob, ClaimLocks, Unverified},
};

/// Bytes worth a hand-over to a thread: that costs some 10 µs, hashing and writing this much 0.2 ms.
const ENOUGH: usize = 256 * 1024;

/// Bytes that may wait. As many again may be with the thread, so a blob takes at most 2 MiB and a piece.
const LIMIT: usize = 1024 * 1024;

/// The right and the duty to fetch a blob. Dropped before [`BlobWriter::finish`], it leaves nothing behind and lets the
/// next one try.
#[derive(Debug)]
#[must_use = "a blob that is not finished is thrown away"]
pub struct BlobWriter {
    descriptor: Descriptor,
    shared: Arc<Shared>,
    claim: Arc<ClaimLocks>,
    received: u64,
    queue: Arc<Queue>,
    stage: Stage,
}

/// Where the file is.
#[derive(Debug)]
enum Stage {
    /// Here.
    Idle(Box<Blob<Unverified>>),
    /// With the thread.
    Writing(JoinHandle<Result<Box<Blob<Unverified>>>>),
    /// Thrown away after an error.
    Gone,
}

/// Pieces that wait for the thread.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    /// The thread has taken what was waiting, or it has left.
    moved: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: Vec<Bytes>,
    bytes: usize,
    /// Whether the thread will look into the queue again.
    working: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, piece: Bytes) {
        let mut waiting = self.lock();
        waiting.bytes += piece.len();
        waiting.pieces.push(piece);
    }

    fn take_all(&self) -> Vec<Bytes> {
        let mut waiting = self.lock();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.pieces)
    }

    /// The next batch of the thread; none tells it to leave.
    fn take_enough(&self) -> Option<Vec<Bytes>> {
        let enough = {
            let mut waiting = self.lock();
            waiting.working = waiting.bytes >= ENOUGH;
            waiting.working
        };
        let batch = enough.then(|| self.take_all());
        self.moved.notify_one();
        batch
    }
}

/// Tells the queue that the thread has left, also when it failed.
struct Working(Arc<Queue>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.lock().working = false;
        self.0.moved.notify_one();
    }
}

impl BlobWriter {
    /// Starts with an empty partial. Blocks.
    pub(super) fn create(
        descriptor: Descriptor,
        shared: Arc<Shared>,
        lock: Held,
        store: StoreGuard,
    ) -> Result<Self> {
        let claim = Arc::new(ClaimLocks {
            _blob: lock,
            _store: store,
        });
        let blob = Blob::create(&descriptor, &shared, Arc::clone(&claim))?;
        Ok(Self {
            descriptor,
            shared,
            claim,
            received: 0,
            queue: Arc::default(),
            stage: Stage::Idle(Box::new(blob)),
        })
    }

    /// What is being fetched.
    pub const fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Takes the next bytes. Returns at once while the disk keeps up. More bytes than the descriptor says are an error.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let received = self.received + bytes.len() as u64;
        if received > self.descriptor.size {
            return Err(self.size_mismatch(received));
        }
        self.received = received;
        if !bytes.is_empty() {
            self.queue.push(bytes);
        }
        loop {
            let (waiting, working) = {
                let queue = self.queue.lock();
                (queue.bytes, queue.working)
            };
            if waiting < ENOUGH || (working && waiting < LIMIT) {
                return Ok(());
            }
            if working {
                self.queue.moved.notified().await;
            } else {
                let blob = self.idle().await?;
                self.start(blob);
                return Ok(());
            }
        }
    }

    /// Starts again from the first byte, also after an error. The file is a new one: after a failed write nobody knows
    /// what the old one holds.
    pub async fn restart(&mut self) -> Result<()> {
        let former = self.idle().await;
        self.queue.take_all();
        self.received = 0;
        let (descriptor, shared) = (self.descriptor.clone(), Arc::clone(&self.shared));
        let claim = Arc::clone(&self.claim);
        let blob = blocking(move || {
            drop(former);
            Blob::create(&descriptor, &shared, claim)
        })
        .await?;
        self.stage = Stage::Idle(Box::new(blob));
        Ok(())
    }

    /// Verifies the blob and gives it its name.
    pub async fn finish(mut self) -> Result<()> {
        if self.received < self.descriptor.size {
            return Err(self.size_mismatch(self.received));
        }
        let mut blob = self.idle().await?;
        let rest = self.queue.take_all();
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            blob.append(&rest)?;
            blob.verify()?.link(&shared)
        })
        .await
    }

    /// Hands the file to a thread, which works as long as there is enough to do.
    fn start(&mut self, mut blob: Box<Blob<Unverified>>) {
        self.queue.lock().working = true;
        let working = Working(Arc::clone(&self.queue));
        self.stage = Stage::Writing(tokio::task::spawn_blocking(move || {
            while let Some(batch) = working.0.take_enough() {
                blob.append(&batch)?;
            }
            Ok(blob)
        }));
    }

    /// Waits until the thread has left and takes the file.
    async fn idle(&mut self) -> Result<Box<Blob<Unverified>>> {
        if let Stage::Writing(task) = &mut self.stage {
            // Awaited in place, so that a caller who is cancelled here loses nothing.
            let outcome = task.await;
            self.stage = Stage::Gone;
            return match outcome {
                Ok(blob) => blob,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(Error::CacheInterrupted),
                },
            };
        }
        match std::mem::replace(&mut self.stage, Stage::Gone) {
            Stage::Idle(blob) => Ok(blob),
            Stage::Writing(_) | Stage::Gone => Err(Error::StorageFailed {
                operation: "go on writing",
                path: self.shared.layout.partial(&self.descriptor.digest),
                source: io::Error::other("an earlier write failed"),
            }),
        }
    }

    fn size_mismatch(&self, actual: u64) -> Error {
        Error::SizeMismatch {
            digest: self.descriptor.digest.clone(),
            expected: self.descriptor.size,
            actual,
        }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // Unlinking gigabytes takes a while: not on a thread that serves the network. At the end of the program there is
        // no other, and the file is removed here.
        let stage = std::mem::replace(&mut self.stage, Stage::Gone);
        if let (Stage::Idle(blob), Ok(runtime)) = (stage, tokio::runtime::Handle::try_current()) {
            drop(runtime.spawn_blocking(move || drop(blob)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{
        Cache, Claim,
        testing::{fixture, layer, put},
    };
    use super::*;
    use crate::image::{Algorithm, Digest};

    async fn claim(cache: &Cache, descriptor: &Descriptor) -> BlobWriter {
        match cache.claim_blob(descriptor).await.unwrap() {
            Claim::Fetch(writer) => writer,
            Claim::Present => panic!("{} is present", descriptor.digest),
        }
    }

    #[tokio::test]
    async fn a_blob_with_a_wrong_digest_is_never_linked() {
        let fixture = fixture();
        let wanted = layer(b"right");
        let error = put(&fixture.cache, &wanted, b"wrong").await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{text}");
        for digest in [&wanted.digest, &Digest::of(b"wrong")] {
            assert!(text.contains(&digest.to_string()), "{text}");
        }
        assert!(!fixture.cache.has_blob(&wanted).await.unwrap());
        assert_eq!(fixture.files(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_blob_with_too_few_or_too_many_bytes_is_refused() {
        let fixture = fixture();
        let mut short = layer(b"five!");
        short.size = 6;
        let error = put(&fixture.cache, &short, b"five!").await.unwrap_err();
        assert!(
            error.to_string().contains("6 bytes, but only 5 came"),
            "{error}"
        );
        let mut long = layer(b"five!");
        long.size = 4;
        let error = put(&fixture.cache, &long, b"five!").await.unwrap_err();
        assert!(
            error.to_string().contains("4 bytes, but at least 5 came"),
            "{error}"
        );
        put(&fixture.cache, &layer(b"five!"), b"five!")
            .await
            .unwrap();
        assert!(!fixture.cache.has_blob(&long).await.unwrap());
    }

    #[tokio::test]
    async fn a_finished_blob_is_read_only_and_complete() {
        let fixture = fixture();
        // More than the queue holds, in pieces of odd sizes.
        let content: Vec<u8> = (0..=250).cycle().take(LIMIT * 3).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut descriptor = layer(&content);
            descriptor.digest = Digest::with_algorithm(algorithm, &content);
            let mut writer = claim(&fixture.cache, &descriptor).await;
            for piece in content.chunks(70_001) {
                writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
                writer.write(Bytes::new()).await.unwrap();
            }
            writer.finish().await.unwrap();
            let path = fixture.cache.shared.layout.blob(&descriptor.digest);
            assert!(path.parent().unwrap().ends_with(algorithm.name()));
            assert_eq!(std::fs::read(&path).unwrap(), content);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o444);
            assert!(
                fixture
                    .cache
                    .open_blob(&descriptor)
                    .await
                    .unwrap()
                    .is_some()
            );
        }
    }

    #[tokio::test]
    async fn an_empty_blob_is_a_blob() {
        let fixture = fixture();
        put(&fixture.cache, &layer(b""), b"").await.unwrap();
        assert!(fixture.cache.has_blob(&layer(b"")).await.unwrap());
    }

    #[tokio::test]
    async fn a_restart_forgets_what_came_before() {
        let fixture = fixture();
        let content = vec![7; ENOUGH * 2];
        let descriptor = layer(&content);
        let mut writer = claim(&fixture.cache, &descriptor).await;
        writer.write(vec![1; ENOUGH + 1].into()).await.unwrap();
        writer.restart().await.unwrap();
        let excess = writer.write(vec![7; content.len() + 1].into()).await;
        assert!(matches!(excess, Err(Error::SizeMismatch { .. })));
        writer.restart().await.unwrap();
        writer.write(content.into()).await.unwrap();
        writer.finish().await.unwrap();
        assert!(fixture.cache.has_blob(&descriptor).await.unwrap());
    }

    #[tokio::test]
    async fn a_writer_that_is_dropped_leaves_nothing_and_lets_the_next_one_in() {
        let fixture = fixture();
        let content = vec![7; ENOUGH * 2];
        let descriptor = layer(&content);
        for received in [0, 10, ENOUGH + 1] {
            let mut writer = claim(&fixture.cache, &descriptor).await;
            writer
                .write(content[..received].to_vec().into())
                .await
                .unwrap();
            drop(writer);
        }
        // The next claim has waited until the one before was gone.
        let writer = claim(&fixture.cache, &descriptor).await;
        assert_eq!(
            fixture.files(),
            [format!("blobs/.partial/{}", descriptor.digest)]
        );
        drop(writer);
        put(&fixture.cache, &descriptor, &content).await.unwrap();
        assert_eq!(fixture.files().len(), 1);
    }

    #[tokio::test]
    async fn a_slow_disk_holds_the_network_back() {
        let fixture = fixture();
        let mut descriptor = layer(b"");
        descriptor.size = u64::MAX / 2;
        let cache = fixture.cache.clone();
        // No volume has that much room, and the caller hears it before the first byte.
        let error = cache.claim_blob(&descriptor).await.unwrap_err();
        assert!(matches!(error, Error::CacheFull { .. }), "{error}");
        descriptor.size = 1 << 30;
        let mut writer = claim(&cache, &descriptor).await;
        let piece = Bytes::from(vec![0; 64 * 1024]);
        for _ in 0..4000 {
            writer.write(piece.clone()).await.unwrap();
            assert!(writer.queue.lock().bytes < LIMIT + piece.len());
        }
    }
}
