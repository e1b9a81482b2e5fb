//! Locks between processes and tasks (archive reference 5.4): `flock` on files in `.locks/` that are never deleted.
//!
//! Taken in this order: store, reference, blob, index. The store lock is shared by everybody who uses the cache and taken
//! alone by `clean`. The system releases the locks of a process that dies.
//!
//! Tasks of one process queue for a lock in memory and only the first of them asks the system, again and again with growing
//! pauses: a blocking `flock` would hold a thread for as long as the other process likes.

use std::{
    collections::HashMap,
    fmt,
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{sync::OwnedMutexGuard, time::Instant};

use crate::{
    image::{Digest, Reference, Repository},
    output::OutputManager,
};

use super::{
    disk::{blocking, make_folder, open_lock, open_regular},
    error::{Error, Result},
    layout::{Layout, index_key},
};

/// First pause between two attempts: most locks are held for a few file operations.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// Longest pause: adds little to a download that somebody else makes, and costs ten system calls per second.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A shorter wait is not worth a message.
const SILENT_WAIT: Duration = Duration::from_secs(1);

/// Which lock.
#[derive(Debug, Clone, Copy)]
pub(super) enum LockName<'a> {
    Store,
    Reference(&'a Repository, &'a Reference),
    Blob(&'a Digest),
    Index,
}

impl LockName<'_> {
    fn file_name(self) -> String {
        match self {
            Self::Store => "store".to_owned(),
            // A file name may have 255 bytes, a repository with its tag more.
            Self::Reference(repository, reference) => {
                let key = index_key(repository, reference);
                format!("reference-{}", Digest::of(key.as_bytes()).hex())
            }
            Self::Blob(digest) => digest.to_string(),
            Self::Index => "index".to_owned(),
        }
    }
}

/// Completes the sentence "waiting for another run that ...".
impl fmt::Display for LockName<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => formatter.write_str("cleans the cache"),
            Self::Reference(repository, reference) => {
                write!(formatter, "stores {repository}, reference {reference}")
            }
            Self::Blob(digest) => write!(formatter, "fetches blob {digest}"),
            Self::Index => formatter.write_str("writes the cache's index"),
        }
    }
}

/// A lock that is held until this value is dropped. The file goes first, so that the next task in the queue finds it free.
#[derive(Debug)]
pub(super) struct Held {
    _file: File,
    _turn: Option<OwnedMutexGuard<()>>,
}

/// Whether somebody has the lock of this file, without taking part: a file that is not there, or not for us to read, is
/// nobody's.
pub(super) fn is_locked(path: &Path) -> bool {
    match open_regular(path) {
        Ok(Some((file, _))) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Ok(None) | Err(_) => false,
    }
}

/// Permission to use the cache: as long as one is held, nothing is cleaned away.
#[derive(Debug, Clone)]
#[must_use = "the cache may be cleaned as soon as the guard is dropped"]
pub struct StoreGuard {
    /// None where the volume is read-only and has no lock file: nobody can clean through this mount either.
    _held: Option<Arc<Held>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Shared,
    Exclusive,
}

/// The queues of this process.
type Turns = Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>;

/// All locks of one cache folder, for the tasks of one process.
#[derive(Debug)]
pub(super) struct Locks {
    layout: Layout,
    turns: Turns,
}

impl Locks {
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            layout,
            turns: Mutex::default(),
        }
    }

    /// Takes a lock alone, however long that takes.
    pub(super) async fn exclusive(
        &self,
        name: LockName<'_>,
        output: &OutputManager,
    ) -> Result<Held> {
        let turn = self.turn(&name.file_name());
        let announced = tokio::time::timeout(SILENT_WAIT, Arc::clone(&turn).lock_owned()).await;
        let turn = if let Ok(turn) = announced {
            turn
        } else {
            output.detail(format!("waiting for another task that {name}"));
            turn.lock_owned().await
        };
        let file = self.open(name).await?;
        self.wait(&file, Mode::Exclusive, name, output, None)
            .await?;
        Ok(Held {
            _file: file,
            _turn: Some(turn),
        })
    }

    /// Takes a lock alone if nobody has it, in this process or another. Blocks, but never waits.
    pub(super) fn try_exclusive(&self, name: LockName<'_>) -> Result<Option<Held>> {
        let path = self.path(name);
        let file =
            open_lock(&path).map_err(|source| Error::writing("open the lock", &path, 0, source))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Held {
                _file: file,
                _turn: None,
            })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(Error::reading("lock", &path, source)),
        }
    }

    /// Takes part in the use of the cache, creating its folders.
    pub(super) async fn use_shared(&self, output: &OutputManager) -> Result<StoreGuard> {
        let file = self.open(LockName::Store).await?;
        self.share(file, output).await
    }

    /// Takes part in the use of a cache that need not be writable.
    pub(super) async fn read_shared(&self, output: &OutputManager) -> Result<StoreGuard> {
        let path = self.path(LockName::Store);
        let file = blocking(move || match open_lock(&path) {
            Ok(file) => Ok(Some(file)),
            // Not there, or not for us to write: a lock can be taken on a file opened for reading, too.
            Err(_) => Ok(open_regular(&path)?.map(|(file, _)| file)),
        })
        .await?;
        match file {
            Some(file) => self.share(file, output).await,
            None => Ok(StoreGuard { _held: None }),
        }
    }

    async fn share(&self, file: File, output: &OutputManager) -> Result<StoreGuard> {
        self.wait(&file, Mode::Shared, LockName::Store, output, None)
            .await?;
        let held = Held {
            _file: file,
            _turn: None,
        };
        Ok(StoreGuard {
            _held: Some(Arc::new(held)),
        })
    }

    /// Waits until nobody else uses the cache, at most for `limit`.
    pub(super) async fn use_alone(&self, limit: Duration, output: &OutputManager) -> Result<Held> {
        let file = self.open(LockName::Store).await?;
        let taken = self
            .wait(&file, Mode::Exclusive, LockName::Store, output, Some(limit))
            .await?;
        if !taken {
            return Err(Error::CacheInUse {
                directory: self.layout.root().to_owned(),
            });
        }
        Ok(Held {
            _file: file,
            _turn: None,
        })
    }

    /// The queue for one lock. Queues nobody stands in are forgotten when there are many.
    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        const FORGET_ABOVE: usize = 1024;
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        if turns.len() > FORGET_ABOVE {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn path(&self, name: LockName<'_>) -> PathBuf {
        self.layout.locks().join(name.file_name())
    }

    /// Opens the file of a lock; creates it, and the folder at its first use.
    async fn open(&self, name: LockName<'_>) -> Result<File> {
        let path = self.path(name);
        let folder = self.layout.locks();
        blocking(move || {
            let opened = match open_lock(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make_folder(&folder)?;
                    open_lock(&path)
                }
                other => other,
            };
            opened.map_err(|source| Error::writing("open the lock", &path, 0, source))
        })
        .await
    }

    /// Asks for the lock until it is there; false if `limit` has passed before.
    async fn wait(
        &self,
        file: &File,
        mode: Mode,
        name: LockName<'_>,
        output: &OutputManager,
        limit: Option<Duration>,
    ) -> Result<bool> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        let mut said = false;
        loop {
            let attempt = match mode {
                Mode::Shared => file.try_lock_shared(),
                Mode::Exclusive => file.try_lock(),
            };
            match attempt {
                Ok(()) => return Ok(true),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => {
                    return Err(Error::reading("lock", &self.path(name), source));
                }
            }
            let waited = started.elapsed();
            if limit.is_some_and(|limit| waited >= limit) {
                return Ok(false);
            }
            if !said && waited >= SILENT_WAIT {
                said = true;
                output.info(match limit {
                    None => format!("waiting for another run that {name}"),
                    Some(limit) => format!(
                        "waiting up to {} s for other runs to finish with the cache {}",
                        limit.as_secs(),
                        self.layout.root().display()
                    ),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
