//! Reads a blob from its first byte to its last and tells whether it is what its name says. The system's page cache is left
//! as it was found: a look at everything must not drive out what runs are reading.

use std::{
    fs::File,
    io::{self, Read},
    num::NonZeroU64,
    path::Path,
};

use rustix::{
    fs::{Advice, fadvise},
    io::Errno,
};

use crate::image::{Digest, Hasher};

use super::{
    disk::open_regular,
    error::{Error, Result},
    quarantine::{Identity, look_at},
    verify::Problem,
};

/// Bytes read at once: they stay in the processor's cache until they are hashed.
const READ: usize = 256 * 1024;

/// Bytes between two reports, after which the page cache is given back what it holds of the file.
const STEP: u64 = 8 * 1024 * 1024;

/// What a look at a blob shows.
#[derive(Debug)]
pub(super) enum Examined {
    /// It is right, and has so many bytes.
    Right(u64),
    /// Nothing has this name, any more.
    Gone,
    Wrong(Wrong),
}

/// What is wrong with a file.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) problem: Problem,
    /// Completes the sentence "it ...".
    pub(super) detail: String,
    /// Bytes that were read, where it could be read at all.
    pub(super) length: Option<u64>,
    /// Which file this is about; none if it is not to be moved.
    pub(super) seen: Option<Identity>,
}

/// Reads the blob at `path`. `advance` is told of bytes, and ends the reading by an error.
pub(super) fn examine(
    path: &Path,
    digest: &Digest,
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Examined> {
    let (file, metadata) = match open_regular(path) {
        Ok(Some(opened)) => opened,
        Ok(None) => return not_a_file(path),
        Err(error) => return unreadable(error, path).map(Examined::Wrong),
    };
    let seen = Some(Identity::of(&metadata));
    let mut hasher = Hasher::new(digest.algorithm());
    match read(&file, path, &mut hasher, advance) {
        Err(error) => unreadable(error, path).map(Examined::Wrong),
        Ok(length) => {
            let actual = hasher.finish();
            Ok(if actual == *digest {
                Examined::Right(length)
            } else {
                Examined::Wrong(Wrong {
                    problem: Problem::WrongContent,
                    detail: format!("has bytes of the digest {actual}"),
                    length: Some(length),
                    seen,
                })
            })
        }
    }
}

fn read(
    file: &File,
    path: &Path,
    hasher: &mut Hasher,
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<u64> {
    let (mut position, mut told) = (0, 0);
    hash(file, path, hasher, &mut |count| {
        position += count as u64;
        let is_due = position - told >= STEP || count == 0;
        if is_due && let Some(length) = NonZeroU64::new(position - told) {
            if let Err(error) = fadvise(file, told, Some(length), Advice::DontNeed) {
                tracing::debug!(path = %path.display(), %error, "the page cache keeps a blob");
            }
            advance(length.get())?;
            told = position;
        }
        Ok(())
    })?;
    Ok(position)
}

/// Hashes what is left of a file. `each` is told of bytes after every read, of none at the end, and ends it by an error.
pub(super) fn hash(
    mut file: &File,
    path: &Path,
    hasher: &mut Hasher,
    each: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; READ];
    loop {
        let count = match file.read(&mut buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::reading("read", path, error)),
        };
        hasher.update(&buffer[..count]);
        each(count)?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// What is at a place where no regular file can be opened.
pub(super) fn not_a_file(path: &Path) -> Result<Examined> {
    let Some(metadata) = look_at(path)? else {
        return Ok(Examined::Gone);
    };
    let kind = metadata.file_type();
    // Replaced by a right file since the attempt to open it.
    if kind.is_file() {
        return Ok(Examined::Gone);
    }
    let what = if kind.is_symlink() {
        "is a symlink"
    } else if kind.is_dir() {
        "is a folder"
    } else {
        "is no regular file"
    };
    Ok(Examined::Wrong(Wrong {
        problem: Problem::NotAFile,
        detail: what.to_owned(),
        length: None,
        seen: Some(Identity::of(&metadata)),
    }))
}

/// A file that the disk does not give back is lost and moves away; one that only we may not read stays. Any other trouble is
/// not the file's.
pub(super) fn unreadable(error: Error, path: &Path) -> Result<Wrong> {
    let Error::StorageFailed { source, .. } = &error else {
        return Err(error);
    };
    let is_lost = source.raw_os_error() == Some(Errno::IO.raw_os_error());
    if !is_lost && source.kind() != io::ErrorKind::PermissionDenied {
        return Err(error);
    }
    Ok(Wrong {
        problem: Problem::Unreadable,
        detail: format!("cannot be read: {source}"),
        length: None,
        seen: if is_lost { Identity::at(path)? } else { None },
    })
}
