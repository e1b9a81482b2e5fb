//! Files for bytes whose digest is not known beforehand: entries of an archive. They are hashed while they are written,
//! and get their name only when the caller has checked all that belongs together.
//!
//! They lie beside the downloads, as `blobs/.partial/<run>-<n>`. The file `<run>` is locked as long as the import lives,
//! which tells the files of a living import from those of one that was killed.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::image::{Algorithm, Descriptor, Digest, Hasher};

use super::{
    Cache, PackedLayer, Shared,
    disk::{
        Temporary, blocking, files_in, make_folder, open_lock, open_regular, remove_leftover,
        require_space,
    },
    error::{Error, Result},
    lock::{LockName, StoreGuard},
    trust::Found,
};

/// Hex digits of the name of an import.
const RUN_DIGITS: usize = 16;

/// Free space is asked for again each time this much was announced: a system call per small entry would be waste.
const SPACE_IS_ASKED_ABOVE: u64 = 1024 * 1024;

/// Bytes copied between two looks at whether anybody still waits for them, and sent on to the disk together.
const COPY_STEP: u64 = 4 * 1024 * 1024;

/// The right to bring unnamed bytes into the cache. Dropped, it removes whatever did not get a name.
#[derive(Debug)]
#[must_use = "the files of an import that is dropped are removed"]
pub struct Import {
    cache: Cache,
    spool: Spool,
    _store: StoreGuard,
}

/// Makes the files of one import; clones may work on several threads.
#[derive(Debug, Clone)]
pub struct Spool {
    run: Arc<Run>,
}

#[derive(Debug)]
struct Run {
    shared: Arc<Shared>,
    /// The locked file, whose name begins those of the others.
    path: PathBuf,
    _lock: File,
    next: AtomicU64,
    over: AtomicBool,
}

impl Run {
    fn ensure_going_on(&self) -> Result<()> {
        if self.over.load(Ordering::Relaxed) {
            return Err(Error::CacheInterrupted);
        }
        Ok(())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        remove_leftover(&self.path);
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Bytes that are being written and hashed.
#[derive(Debug)]
pub struct UnnamedBlob {
    run: Arc<Run>,
    file: File,
    temporary: Temporary,
    hasher: Hasher,
    written: u64,
    /// So much of it was sent on to the disk.
    sent: u64,
    expected: u64,
    /// The system copies from file to file by itself until it says that it cannot.
    can_copy: bool,
}

/// Bytes that are complete and whose digest is known, still without a name in the cache.
#[derive(Debug)]
pub struct HashedBlob {
    temporary: Temporary,
    digest: Digest,
    size: u64,
    // Behind the file, so that this is removed before the import counts as over.
    _run: Arc<Run>,
}

impl Cache {
    /// Begins to bring in bytes whose digests are not known, and removes what killed imports left behind.
    pub async fn import(&self) -> Result<Import> {
        let store = self.use_shared().await?;
        let shared = Arc::clone(&self.shared);
        let run = blocking(move || {
            shared.barrier.prepare(&shared.layout)?;
            let folder = shared.layout.partials();
            make_folder(&folder)?;
            remove_abandoned(&folder)?;
            begin(&folder, shared)
        })
        .await?;
        Ok(Import {
            cache: self.clone(),
            spool: Spool { run: Arc::new(run) },
            _store: store,
        })
    }
}

impl Import {
    /// The maker of files, for the threads that do the work.
    pub fn spool(&self) -> Spool {
        self.spool.clone()
    }

    /// Tells the threads that nobody waits for their work any more.
    pub fn stop(&self) {
        self.spool.run.over.store(true, Ordering::Relaxed);
    }

    /// Gives a blob its name. One that the cache has already is thrown away; the answer tells whether ours was taken.
    pub async fn keep(&self, blob: Arc<HashedBlob>) -> Result<bool> {
        let shared = &self.cache.shared;
        let name = LockName::Blob(&blob.digest);
        let lock = shared.locks.exclusive(name, &self.cache.output).await?;
        let shared = Arc::clone(shared);
        blocking(move || {
            let _lock = lock;
            let target = shared.layout.blob(&blob.digest);
            // One that would have to be read first is replaced: ours is known to be right.
            if shared.trusts(&blob.digest, blob.size)? {
                return Ok(false);
            }
            make_folder(&shared.layout.blobs(blob.digest.algorithm()))?;
            blob.temporary.rename(&target).map_err(|source| {
                Error::writing("rename a finished blob to", &target, 0, source)
            })?;
            shared.barrier.note(&blob.digest);
            // What an interrupted download left of it.
            remove_leftover(&shared.layout.partial(&blob.digest));
            remove_leftover(&shared.layout.partial_state(&blob.digest));
            Ok(true)
        })
        .await
    }
}

impl Spool {
    /// A new file for `expected` bytes. Blocks, like all of the following.
    ///
    /// # Errors
    /// When the volume has not that much space, so that this is known before the bytes were read.
    pub fn create(&self, algorithm: Algorithm, expected: u64) -> Result<UnnamedBlob> {
        self.run.ensure_going_on()?;
        let number = self.run.next.fetch_add(1, Ordering::Relaxed);
        let mut path = self.run.path.clone().into_os_string();
        path.push(format!("-{number}"));
        let path = PathBuf::from(path);
        if expected >= SPACE_IS_ASKED_ABOVE {
            require_space(&path, expected)?;
        }
        let (file, temporary) = Temporary::create_at(path.clone())
            .map_err(|source| Error::writing("create", &path, expected, source))?;
        Ok(UnnamedBlob {
            run: Arc::clone(&self.run),
            file,
            temporary,
            hasher: Hasher::new(algorithm),
            written: 0,
            sent: 0,
            expected,
            can_copy: true,
        })
    }

    /// Whether the cache has this blob, and it need not be read to know that it is right.
    pub fn has(&self, digest: &Digest, size: u64) -> Result<bool> {
        self.run.shared.trusts(digest, size)
    }

    /// What a layer became when it was compressed in this way before, if the cache has that and it need not be read to know
    /// that it is right.
    pub fn packed(&self, diff_id: &Digest, form: &str) -> Result<Option<PackedLayer>> {
        self.run.shared.packed(diff_id, form)
    }

    /// Opens a blob of the cache, if it is there and may be used.
    pub fn open_blob(&self, descriptor: &Descriptor) -> Result<Option<File>> {
        Ok(match self.run.shared.find_blob(descriptor)? {
            Found::Whole(file) => Some(file),
            Found::Damaged(_) | Found::Absent => None,
        })
    }

    /// Fails when nobody waits for the import any more.
    pub fn ensure_going_on(&self) -> Result<()> {
        self.run.ensure_going_on()
    }
}

impl UnnamedBlob {
    /// Takes the next bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.run.ensure_going_on()?;
        self.hasher.update(bytes);
        let missing = self.expected.saturating_sub(self.written);
        self.file
            .write_all(bytes)
            .map_err(|source| Error::writing("write", self.temporary.path(), missing, source))?;
        self.written += bytes.len() as u64;
        self.send_to_disk();
        Ok(())
    }

    /// Takes a part of a file by letting the system copy it, then hashes the copy: what is checked is what is kept, even if
    /// somebody writes to the source meanwhile. The answer is how many bytes the source had, or none if the system cannot
    /// copy between these files.
    pub fn copy(&mut self, source: &File, offset: u64, length: u64) -> Result<Option<u64>> {
        self.run.ensure_going_on()?;
        if !self.can_copy {
            return Ok(None);
        }
        let step = usize::try_from(length.min(COPY_STEP)).unwrap_or_default();
        let mut position = offset;
        let copied =
            rustix::fs::copy_file_range(source, Some(&mut position), &self.file, None, step);
        match copied {
            Ok(copied) => {
                self.hash_copy(copied as u64)?;
                self.send_to_disk();
                Ok(Some(copied as u64))
            }
            // Other file systems, pipes, old kernels: the caller reads and writes instead.
            Err(
                rustix::io::Errno::XDEV
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::PERM
                | rustix::io::Errno::TXTBSY,
            ) => {
                self.can_copy = false;
                Ok(None)
            }
            Err(errno) => {
                let missing = self.expected.saturating_sub(self.written);
                Err(Error::writing(
                    "copy into",
                    self.temporary.path(),
                    missing,
                    errno.into(),
                ))
            }
        }
    }

    /// Hashes the `length` bytes that were just copied; they are still in memory.
    fn hash_copy(&mut self, length: u64) -> Result<()> {
        let mut buffer = vec![0; 128 * 1024];
        let end = self.written + length;
        while self.written < end {
            let wanted = usize::try_from(end - self.written)
                .unwrap_or(buffer.len())
                .min(buffer.len());
            let piece = &mut buffer[..wanted];
            self.file
                .read_exact_at(piece, self.written)
                .map_err(|source| Error::reading("read", self.temporary.path(), source))?;
            self.hasher.update(piece);
            self.written += wanted as u64;
        }
        Ok(())
    }

    /// Lets the system begin to write what is in its memory, so that the barrier at the end need not wait for all of it. The
    /// advice says that nobody will read it; what is on its way to the disk stays in memory all the same.
    fn send_to_disk(&mut self) {
        let length = self.written - self.sent;
        if length >= COPY_STEP {
            let advice = rustix::fs::Advice::DontNeed;
            let length = std::num::NonZeroU64::new(length);
            // It is a hint only: where it does nothing, the barrier does it all.
            rustix::fs::fadvise(&self.file, self.sent, length, advice).ok();
            self.sent = self.written;
        }
    }

    /// The file, to read what was written so far. It can be read as long as somebody has it open, also without its name.
    pub fn reader(&self) -> Result<File> {
        self.file
            .try_clone()
            .map_err(|source| Error::reading("open again", self.temporary.path(), source))
    }

    /// Ends the writing: from now on the digest is known.
    pub fn finish(self) -> HashedBlob {
        HashedBlob {
            temporary: self.temporary,
            digest: self.hasher.finish(),
            size: self.written,
            _run: self.run,
        }
    }
}

impl HashedBlob {
    /// The digest of the bytes.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Their number.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Opens the bytes for reading.
    pub fn open(&self) -> Result<File> {
        let path = self.temporary.path();
        match open_regular(path)? {
            Some((file, metadata)) if metadata.len() == self.size => Ok(file),
            _ => Err(Error::reading(
                "read back",
                path,
                io::Error::other("somebody removed or replaced it"),
            )),
        }
    }
}

/// Locks a new name. Another import that cleans up may see the file before it is locked and take it for abandoned; then the
/// next name is tried.
fn begin(folder: &Path, shared: Arc<Shared>) -> Result<Run> {
    loop {
        let path = folder.join(format!("{:0RUN_DIGITS$x}", fastrand::u64(..)));
        let failed = |source| Error::writing("create", &path, 0, source);
        let lock = open_lock(&path).map_err(failed)?;
        let is_ours = lock.try_lock().is_ok() && lock.metadata().map_err(failed)?.nlink() == 1;
        if is_ours {
            return Ok(Run {
                shared,
                path,
                _lock: lock,
                next: AtomicU64::new(0),
                over: AtomicBool::new(false),
            });
        }
    }
}

/// The import a file belongs to, by its name.
fn run_of(name: &str) -> Option<&str> {
    let run = name.split('-').next().unwrap_or(name);
    let is_run = run.len() == RUN_DIGITS && run.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_run.then_some(run)
}

/// Removes the files of imports whose process has gone.
fn remove_abandoned(folder: &Path) -> Result<()> {
    let files = files_in(folder, |name| run_of(name).is_some())?;
    let name_of = |path: &Path| path.file_name()?.to_str().map(str::to_owned);
    let names: Vec<String> = files.iter().filter_map(|(path, _)| name_of(path)).collect();
    let runs: BTreeSet<&str> = names.iter().filter_map(|name| run_of(name)).collect();
    for run in runs {
        // Held until its files are gone, so that nobody takes the name meanwhile. One that cannot be opened is left.
        let Ok(lock) = open_lock(&folder.join(run)) else {
            continue;
        };
        if lock.try_lock().is_err() {
            continue;
        }
        for name in names.iter().filter(|name| run_of(name) == Some(run)) {
            remove_leftover(&folder.join(name));
        }
        remove_leftover(&folder.join(run));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{fixture, layer, put};
    use super::*;

    fn write(spool: &Spool, content: &[u8]) -> HashedBlob {
        let mut blob = spool
            .create(Algorithm::Sha256, content.len() as u64)
            .unwrap();
        blob.write(content).unwrap();
        blob.finish()
    }

    #[tokio::test]
    async fn bytes_get_the_name_that_they_hash_to() {
        let fixture = fixture();
        let import = fixture.cache.import().await.unwrap();
        let blob = write(&import.spool(), b"bytes");
        assert_eq!((blob.digest(), blob.size()), (&Digest::of(b"bytes"), 5));
        assert!(!fixture.cache.has_blob(&layer(b"bytes")).await.unwrap());
        assert!(import.keep(Arc::new(blob)).await.unwrap());
        drop(import);
        assert!(fixture.cache.has_blob(&layer(b"bytes")).await.unwrap());
        assert!(fixture.cache.shared.barrier.is_needed());
        assert_eq!(fixture.files().len(), 1, "{:?}", fixture.files());
    }

    #[tokio::test]
    async fn what_was_written_can_be_read_before_its_end_and_without_its_name() {
        let fixture = fixture();
        let import = fixture.cache.import().await.unwrap();
        let mut blob = import.spool().create(Algorithm::Sha256, 0).unwrap();
        blob.write(b"one").unwrap();
        let file = blob.reader().unwrap();
        blob.write(b"two").unwrap();
        drop((blob, import));
        assert_eq!(fixture.files(), Vec::<String>::new());
        let mut bytes = [0; 6];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"onetwo");
    }

    #[tokio::test]
    async fn a_blob_that_is_there_already_is_kept_and_ours_removed() {
        let fixture = fixture();
        put(&fixture.cache, &layer(b"bytes"), b"bytes")
            .await
            .unwrap();
        let import = fixture.cache.import().await.unwrap();
        let blob = write(&import.spool(), b"bytes");
        assert!(!import.keep(Arc::new(blob)).await.unwrap());
        drop(import);
        assert_eq!(fixture.files().len(), 1, "{:?}", fixture.files());
    }

    #[tokio::test]
    async fn a_part_of_a_file_is_copied_and_hashed() {
        let fixture = fixture();
        let content: Vec<u8> = (0..=250).cycle().take(700_001).collect();
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&content, 13).unwrap();
        let import = fixture.cache.import().await.unwrap();
        for can_copy in [true, false] {
            let mut blob = import.spool().create(Algorithm::Sha512, 700_001).unwrap();
            blob.can_copy = can_copy;
            let mut done = 0;
            while done < 700_001 {
                let copied = blob.copy(&source, 13 + done, 700_001 - done).unwrap();
                done += copied.unwrap_or_else(|| {
                    let rest = &content[usize::try_from(done).unwrap()..];
                    blob.write(rest).unwrap();
                    rest.len() as u64
                });
            }
            assert_eq!(blob.copy(&source, 13 + done, 9).unwrap().unwrap_or(0), 0);
            let blob = blob.finish();
            let expected = Digest::with_algorithm(Algorithm::Sha512, &content);
            assert_eq!((blob.digest(), blob.size()), (&expected, 700_001));
        }
    }

    #[tokio::test]
    async fn what_has_no_name_goes_with_the_import() {
        let fixture = fixture();
        let import = fixture.cache.import().await.unwrap();
        let spool = import.spool();
        let hashed = write(&spool, b"bytes");
        let mut open = spool.create(Algorithm::Sha256, 5).unwrap();
        assert_eq!(fixture.files().len(), 3, "{:?}", fixture.files());
        drop(import);
        // A thread that still works for it is told, and cannot begin anything.
        assert!(matches!(open.write(b"x"), Err(Error::CacheInterrupted)));
        assert!(matches!(
            spool.create(Algorithm::Sha256, 5),
            Err(Error::CacheInterrupted)
        ));
        drop((open, hashed, spool));
        assert_eq!(fixture.files(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn an_import_removes_the_files_of_killed_ones_and_spares_living_ones() {
        let fixture = fixture();
        let living = fixture.cache.import().await.unwrap();
        let blob = write(&living.spool(), b"living");
        let partials = fixture.cache.shared.layout.partials();
        for name in [
            "0123456789abcdef",
            "0123456789abcdef-7",
            "fedcba9876543210-0",
        ] {
            File::create(partials.join(name)).unwrap();
        }
        let download = partials.join(Digest::of(b"x").to_string());
        File::create(&download).unwrap();
        let next = fixture.reopened().import().await.unwrap();
        drop(next);
        assert_eq!(fixture.files().len(), 3, "{:?}", fixture.files());
        assert!(download.exists());
        assert!(living.keep(Arc::new(blob)).await.unwrap());
    }

    #[tokio::test]
    async fn a_volume_that_is_too_small_is_told_before_the_first_byte() {
        let fixture = fixture();
        let import = fixture.cache.import().await.unwrap();
        let error = import
            .spool()
            .create(Algorithm::Sha256, u64::MAX / 2)
            .unwrap_err();
        assert!(matches!(error, Error::CacheFull { .. }), "{error}");
    }
}
