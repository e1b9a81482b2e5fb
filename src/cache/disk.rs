//! The few ways in which this room touches the disk; every other file goes through these.
//!
//! All functions block. [`blocking`] moves them off the threads that serve the network.

use std::{
    fmt,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::{fs::OFlags, io::Errno};

use crate::{
    image::{Algorithm, Digest},
    output::ByteSize,
};

use super::{
    error::{Error, Result},
    layout::{Layout, TEMPORARY_PREFIX},
};

/// Runs file operations where they may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    crate::blocking::blocking(work, || Error::CacheInterrupted).await
}

/// Flags for every file that is opened: a symlink is not followed, and a pipe somebody planted does not block.
pub(super) fn guarded() -> i32 {
    // The bits are those of the C library, which fit its `int`.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// Opens a regular file. Anything else under that name (a symlink, a folder, a device) counts as absent.
pub(super) fn open_regular(path: &Path) -> Result<Option<(File, Metadata)>> {
    let failed = |source| Error::reading("open", path, source);
    let file = match OpenOptions::new()
        .read(true)
        .custom_flags(guarded())
        .open(path)
    {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// Whether a file is one that we would have made: a second name could be somebody's way to let us write into another one.
pub(super) fn is_ours(metadata: &Metadata) -> bool {
    metadata.is_file()
        && metadata.nlink() == 1
        && metadata.uid() == rustix::process::geteuid().as_raw()
}

/// Whether a file was last written longer ago than `limit`; a time in the future (the clock was set back) counts as recent.
pub(super) fn is_older(metadata: &Metadata, limit: Duration) -> bool {
    metadata
        .modified()
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > limit))
}

/// Whether there is no such regular file: nothing at all, a file where a folder should be, a symlink, a socket.
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    ) || [Errno::LOOP, Errno::NXIO]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Reads a whole regular file; `Err(size)` inside if it is larger than `limit`.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Option<Result<Vec<u8>, u64>>> {
    let Some((file, metadata)) = open_regular(path)? else {
        return Ok(None);
    };
    if metadata.len() > limit {
        return Ok(Some(Err(metadata.len())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    // The file may grow while it is read.
    let read = file
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::reading("read", path, source))?;
    if read as u64 > limit {
        return Ok(Some(Err(read as u64)));
    }
    Ok(Some(Ok(bytes)))
}

/// Opens a file that only serves to be locked, creating it if need be.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    open_or_create(path, 0o666)
}

/// Opens a file that nobody else may read, creating it if need be.
pub(super) fn open_private(path: &Path) -> io::Result<File> {
    open_or_create(path, 0o600)
}

/// Opens a file with what is in it; a new one gets these permissions, less those that the process gives nobody.
fn open_or_create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(mode)
        .custom_flags(guarded())
        .open(path)
}

/// Makes a folder and those above it.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    match fs::create_dir_all(path) {
        Ok(()) => Ok(()),
        // A file has the folder's place.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::CacheUnwritable {
            operation: "create the folder",
            path: path.to_owned(),
            source: io::ErrorKind::NotADirectory.into(),
        }),
        Err(error) => Err(Error::writing("create the folder", path, 0, error)),
    }
}

/// A file that has not got its name yet; dropped before, it is removed.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    named: AtomicBool,
}

impl Temporary {
    /// Writes `bytes` into a new file in `folder` and waits until they are on the disk.
    pub(super) fn write(folder: &Path, bytes: &[u8]) -> Result<Self> {
        let (mut file, temporary) = Self::create(folder)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|source| {
                Error::writing("write", &temporary.path, bytes.len() as u64, source)
            })?;
        Ok(temporary)
    }

    /// A new, empty file with a name nobody else has. Process ids would not do: in two containers on one volume they are
    /// the same.
    pub(super) fn create(folder: &Path) -> Result<(File, Self)> {
        loop {
            let path = folder.join(format!("{TEMPORARY_PREFIX}{:016x}", fastrand::u64(..)));
            match Self::create_at(path.clone()) {
                Ok(created) => return Ok(created),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::writing("create", &path, 0, error)),
            }
        }
    }

    /// A new, empty file at a place of the caller's choice.
    pub(super) fn create_at(path: PathBuf) -> io::Result<(File, Self)> {
        let file = File::create_new(&path)?;
        let named = AtomicBool::new(false);
        Ok((file, Self { path, named }))
    }

    /// Where the file is until it has its name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, in place of what had it before.
    pub(super) fn rename(&self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.named.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.named.load(Ordering::Relaxed) {
            remove_leftover(&self.path);
        }
    }
}

/// Removes a file that is of no use any more. If that fails it stays as rubbish, which `clean` removes.
pub(super) fn remove_leftover(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "a leftover file stays");
    }
}

/// Replaces a file by `bytes` in one step: readers see the old or the new content, also after a power loss.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    Temporary::write(folder, bytes)?
        .rename(path)
        .map_err(|source| {
            Error::writing("rename a new file to", path, bytes.len() as u64, source)
        })?;
    sync_folder(folder)
}

/// Waits until the names in a folder are on the disk.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|source| Error::writing("sync", folder, 0, source))
}

/// A file and its size.
pub(super) type SizedFile = (PathBuf, u64);

/// The files of a folder whose names fit; folders are left alone.
pub(super) fn files_in(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<SizedFile>> {
    let failed = |source| Error::reading("look through", folder, source);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        if !is_folder && entry.file_name().to_str().is_some_and(&fits) {
            found.extend(sized(&entry.path())?);
        }
    }
    Ok(found)
}

/// The blobs of a cache, by their digests; what has another name is left alone.
pub(super) fn blobs_in(layout: &Layout) -> Result<Vec<(Digest, SizedFile)>> {
    let mut found = Vec::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        for file in files_in(&layout.blobs(algorithm), |_| true)? {
            let name = file.0.file_name().unwrap_or_default().to_string_lossy();
            if let Ok(digest) = format!("{}:{name}", algorithm.name()).parse() {
                found.push((digest, file));
            }
        }
    }
    Ok(found)
}

/// A file with its size, of which each of its names has a share; none if it has gone.
pub(super) fn sized(path: &Path) -> Result<Option<SizedFile>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some((
            path.to_owned(),
            metadata.len() / metadata.nlink().max(1),
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::reading("look at", path, error)),
    }
}

/// Which start of which system this is; none where the system does not say.
pub(super) fn boot_id() -> Option<&'static str> {
    static BOOT_ID: OnceLock<Option<String>> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    BOOT_ID
        .get_or_init(|| read().map(|id| id.trim().to_owned()))
        .as_deref()
}

/// What is left on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeSpace {
    /// So many bytes.
    Bytes(u64),
    /// So many bytes, but no file can be created.
    NoInodes(u64),
    /// The volume may have more, but the cache has a largest size.
    Allowed(u64),
    /// The volume does not say.
    Unknown,
}

impl FreeSpace {
    /// How many bytes, where that is known.
    pub(super) const fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) | Self::NoInodes(bytes) | Self::Allowed(bytes) => Some(bytes),
            Self::Unknown => None,
        }
    }

    /// The same without what is promised to others.
    pub(super) const fn less(self, promised: u64) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.saturating_sub(promised)),
            Self::NoInodes(bytes) => Self::NoInodes(bytes.saturating_sub(promised)),
            Self::Allowed(bytes) => Self::Allowed(bytes.saturating_sub(promised)),
            Self::Unknown => Self::Unknown,
        }
    }

    /// Size of the volume of the nearest existing folder of `path`, in bytes.
    pub(super) fn volume(path: &Path) -> Option<u64> {
        let volume = statvfs(path)?;
        Some(volume.f_blocks.saturating_mul(volume.f_frsize))
    }

    /// Of the volume of the nearest existing folder of `path`.
    pub(super) fn of(path: &Path) -> Self {
        let Some(volume) = statvfs(path) else {
            return Self::Unknown;
        };
        let bytes = volume.f_bavail.saturating_mul(volume.f_frsize);
        // Some file systems have no fixed number of inodes and report 0 of 0.
        if volume.f_files > 0 && volume.f_favail == 0 {
            Self::NoInodes(bytes)
        } else {
            Self::Bytes(bytes)
        }
    }
}

fn statvfs(path: &Path) -> Option<rustix::fs::StatVfs> {
    path.ancestors()
        .find_map(|ancestor| rustix::fs::statvfs(ancestor).ok())
}

impl fmt::Display for FreeSpace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(formatter, "{} are free", ByteSize(*bytes)),
            Self::NoInodes(bytes) => write!(
                formatter,
                "{} are free, but no inode for another file",
                ByteSize(*bytes)
            ),
            Self::Allowed(bytes) => write!(
                formatter,
                "{} are left of the largest size that the cache may have",
                ByteSize(*bytes)
            ),
            Self::Unknown => formatter.write_str("how much is free is unknown"),
        }
    }
}

/// Fails if the volume of `path` has fewer bytes left: better now than after half of them.
pub(super) fn require_space(path: &Path, needed: u64) -> Result<()> {
    let free = FreeSpace::of(path);
    if free.bytes().is_some_and(|bytes| bytes < needed) {
        return Err(Error::CacheFull {
            operation: "write",
            path: path.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}
