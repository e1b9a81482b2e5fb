//! Writing one blob: bytes come in pieces, are hashed and written on a blocking thread, and the file gets its name only if
//! digest and size are those of its descriptor.
//!
//! Pieces are collected into batches; while one batch is hashed and written, the next is collected. So at most two batches
//! are in memory however large the blob is, and no thread waits for the network: a stalled download holds none.

use std::{
    fs::{self, File, Permissions},
    io::{self, IoSlice, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::image::{Descriptor, Digest, Hasher};

use super::{
    Shared,
    disk::{blocking, make_folder, remove_leftover},
    error::{Error, Result},
    lock::{Held, StoreGuard},
};

/// Bytes per batch: fits the second level cache between hashing and writing, and one hand-over to a thread (some 10 µs) is
/// small beside the 0.2 ms its hashing takes.
const BATCH_SIZE: usize = 256 * 1024;

/// More pieces than this would need several system calls anyway (`IOV_MAX` is 1024).
const BATCH_PIECES: usize = 1024;

/// The right and the duty to fetch a blob. Dropped before [`BlobWriter::finish`], it leaves nothing behind and lets the
/// next one try.
#[derive(Debug)]
#[must_use = "a blob that is not finished is thrown away"]
pub struct BlobWriter {
    descriptor: Descriptor,
    shared: Arc<Shared>,
    claim: Arc<ClaimLocks>,
    received: u64,
    batch: Vec<Bytes>,
    batch_size: usize,
    stage: Stage,
}

/// Where the file is.
#[derive(Debug)]
enum Stage {
    /// Here.
    Idle(Box<Blob<Unverified>>),
    /// With the thread that writes a batch.
    Writing(JoinHandle<Result<Box<Blob<Unverified>>>>),
    /// Thrown away after an error.
    Gone,
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
            batch: Vec::new(),
            batch_size: 0,
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
        if bytes.is_empty() {
            return Ok(());
        }
        self.batch_size += bytes.len();
        self.batch.push(bytes);
        if self.batch_size >= BATCH_SIZE || self.batch.len() >= BATCH_PIECES {
            let mut blob = self.idle().await?;
            let batch = self.take_batch();
            self.stage = Stage::Writing(tokio::task::spawn_blocking(move || {
                blob.append(&batch)?;
                Ok(blob)
            }));
        }
        Ok(())
    }

    /// Starts again from the first byte, also after an error. The file is a new one: after a failed write nobody knows
    /// what the old one holds.
    pub async fn restart(&mut self) -> Result<()> {
        let former = self.idle().await;
        self.take_batch();
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
        let batch = self.take_batch();
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            blob.append(&batch)?;
            blob.verify()?.link(&shared)
        })
        .await
    }

    /// Waits for the batch that is being written and takes the file.
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

    fn take_batch(&mut self) -> Vec<Bytes> {
        self.batch_size = 0;
        std::mem::take(&mut self.batch)
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

/// What a claim holds until its file has its name or is removed.
#[derive(Debug)]
struct ClaimLocks {
    _blob: Held,
    _store: StoreGuard,
}

/// The bytes of a blob in its partial file. Only a verified one can be linked under its digest.
#[derive(Debug)]
struct Blob<State> {
    // Before the locks, so that the file is gone when the next one tries.
    partial: Partial,
    state: State,
    digest: Digest,
    size: u64,
    claim: Arc<ClaimLocks>,
}

/// Bytes are still coming.
#[derive(Debug)]
struct Unverified {
    hasher: Hasher,
    written: u64,
}

/// All bytes are there, and they are the right ones.
#[derive(Debug)]
struct Verified;

impl Blob<Unverified> {
    fn create(descriptor: &Descriptor, shared: &Shared, claim: Arc<ClaimLocks>) -> Result<Self> {
        let path = shared.layout.partial(&descriptor.digest);
        Ok(Self {
            partial: Partial::create(path, descriptor.size)?,
            state: Unverified {
                hasher: Hasher::new(descriptor.digest.algorithm()),
                written: 0,
            },
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            claim,
        })
    }

    fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        for piece in pieces {
            self.state.hasher.update(piece);
        }
        let missing = self.size.saturating_sub(self.state.written);
        write_all(&mut self.partial.file, pieces)
            .map_err(|source| Error::writing("write", &self.partial.path, missing, source))?;
        self.state.written += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        Ok(())
    }

    fn verify(self) -> Result<Blob<Verified>> {
        if self.state.written != self.size {
            return Err(Error::SizeMismatch {
                digest: self.digest,
                expected: self.size,
                actual: self.state.written,
            });
        }
        let actual = self.state.hasher.finish();
        if actual != self.digest {
            return Err(Error::DigestMismatch {
                expected: self.digest,
                actual,
            });
        }
        Ok(Blob {
            partial: self.partial,
            state: Verified,
            digest: self.digest,
            size: self.size,
            claim: self.claim,
        })
    }
}

impl Blob<Verified> {
    fn link(self, shared: &Shared) -> Result<()> {
        let Verified = self.state;
        let target = shared.layout.blob(&self.digest);
        make_folder(&shared.layout.blobs(self.digest.algorithm()))?;
        self.partial.rename(&target)?;
        shared.barrier.note(&self.digest);
        Ok(())
    }
}

/// A partial file; dropped before it gets its name, it is removed.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    file: File,
    named: bool,
}

impl Partial {
    /// A new file: what a killed run left there is of no use, and what somebody planted there even less.
    fn create(path: PathBuf, size: u64) -> Result<Self> {
        make_folder(path.parent().unwrap_or(&path))?;
        remove_leftover(&path);
        let file = File::create_new(&path)
            .map_err(|source| Error::writing("create", &path, size, source))?;
        Ok(Self {
            path,
            file,
            named: false,
        })
    }

    /// Gives the file its name; from now on nobody writes to it.
    fn rename(mut self, target: &Path) -> Result<()> {
        self.file
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| fs::rename(&self.path, target))
            .map_err(|source| Error::writing("rename a finished download to", target, 0, source))?;
        self.named = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.named {
            remove_leftover(&self.path);
        }
    }
}

/// Writes all pieces with as few system calls as possible.
fn write_all(file: &mut File, pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
