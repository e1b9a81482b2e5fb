//! The file of a blob before it has its name: `blobs/.partial/<digest>`, of full length from the start, so that bytes can
//! come in any order.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::{Errno, ReadWriteFlags},
};

use super::{
    disk::{guarded, is_ours, make_folder, remove_leftover, require_space},
    error::{Error, Result},
    pieces::Run,
};

/// A smaller file is not worth the system call that reserves its space, nor is it ever gone on with.
pub(super) const WORTH_KEEPING: u64 = 1024 * 1024;

/// Slices that the system takes in one call (`IOV_MAX` of Linux).
const MAX_SLICES: usize = 1024;

/// `RWF_DONTCACHE` of Linux 6.14 and later, which rustix has no name for: pages are written at once and given back. On a page
/// that was just given back the next write costs a fraction of what it costs on one that the system must find first.
const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

#[derive(Debug)]
pub(super) struct Partial {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    /// Whether the volume can do without the page cache, as far as is known.
    bypasses: AtomicBool,
}

impl Partial {
    /// A new file with room for `size` bytes: what lay there is of no use, and what somebody planted there even less.
    ///
    /// # Errors
    /// When the volume has not that much space: before the first byte, not after half of them.
    pub(super) fn create(path: PathBuf, size: u64) -> Result<Self> {
        make_folder(path.parent().unwrap_or(&path))?;
        remove_leftover(&path);
        require_space(&path, size)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| Error::writing("create", &path, size, source))?;
        let partial = Self {
            path,
            file: Arc::new(file),
            bypasses: AtomicBool::new(true),
        };
        if size >= WORTH_KEEPING
            && let Err(source) = reserve(&partial.file, size)
        {
            remove_leftover(&partial.path);
            let path = &partial.path;
            return Err(Error::writing("reserve the space for", path, size, source));
        }
        Ok(partial)
    }

    /// The file that an interrupted run left; none if it is not one that we would have made. One that was cut, or is of
    /// another size, is of no use: then its notes are wrong, too.
    pub(super) fn take_over(path: &Path, size: u64) -> Option<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(guarded())
            .open(path)
            .ok()?;
        let metadata = file.metadata().ok()?;
        (is_ours(&metadata) && metadata.len() == size).then(|| Self {
            path: path.to_owned(),
            file: Arc::new(file),
            bypasses: AtomicBool::new(true),
        })
    }

    /// Writes pieces that follow each other.
    pub(super) fn write_at(&self, run: &Run) -> io::Result<()> {
        let mut offset = run.offset;
        for pieces in run.pieces.chunks(MAX_SLICES) {
            let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut rest = slices.as_mut_slice();
            while !rest.is_empty() {
                match self.write(rest, offset, run.passes) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        offset += written as u64;
                        IoSlice::advance_slices(&mut rest, written);
                    }
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    /// One system call. What `passes` does not stay in the page cache, where the system can do without.
    fn write(&self, slices: &[IoSlice<'_>], offset: u64, passes: bool) -> Result<usize, Errno> {
        if passes && self.bypasses.load(Ordering::Relaxed) {
            match rustix::io::pwritev2(&*self.file, slices, offset, DONT_CACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                    self.bypasses.store(false, Ordering::Relaxed);
                }
                written => return written,
            }
        }
        rustix::io::pwritev(&*self.file, slices, offset)
    }

    /// Fills `buffer` with what was written at `offset`.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Gives the file its name; from now on nobody writes to it.
    pub(super) fn rename(&self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target)
            .map_err(|source| Error::writing("rename a finished download to", target, 0, source))
    }

    /// Removes the file. Who has it open can still read it.
    pub(super) fn remove(&self) {
        remove_leftover(&self.path);
    }
}

/// Reserves the space, so that a full disk shows now. Where the file system cannot, the file gets its length at least.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    loop {
        match fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return file.set_len(size),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// The kernel of tmpfs cannot do without the page cache: it refuses, as any file system does on a kernel before 6.14.
    #[test]
    fn what_is_to_pass_the_page_cache_is_written_where_that_is_refused() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let content = [vec![1; 70_000], vec![2; 3], vec![3; 5_000]].map(Bytes::from);
        let partial = Partial::create(folder.path().join("partial"), 75_003).unwrap();
        let slice = [IoSlice::new(b"x")];
        let direct = rustix::io::pwritev2(&*partial.file, &slice, 0, DONT_CACHE);
        for offset in [0, 75_003] {
            let run = Run {
                offset,
                pieces: content.to_vec(),
                passes: true,
            };
            partial.write_at(&run).unwrap();
        }
        // It is asked once.
        assert_eq!(partial.bypasses.load(Ordering::Relaxed), direct.is_ok());
        let written = fs::read(&partial.path).unwrap();
        assert_eq!(written, [content.concat(), content.concat()].concat());
    }
}
