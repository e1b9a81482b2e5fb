//! The bytes of a blob before it has its name, and how it gets it: only a verified one can be linked under its digest.

use std::{
    fs::{self, File, Permissions},
    io::{self, IoSlice, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::image::{Descriptor, Digest, Hasher};

use super::{
    Shared,
    disk::{make_folder, remove_leftover},
    error::{Error, Result},
    lock::{Held, StoreGuard},
};

/// What a claim holds until its file has its name or is removed.
#[derive(Debug)]
pub(super) struct ClaimLocks {
    pub(super) _blob: Held,
    pub(super) _store: StoreGuard,
}

/// The bytes of a blob in its partial file. Only a verified one can be linked under its digest.
#[derive(Debug)]
pub(super) struct Blob<State> {
    // Before the locks, so that the file is gone when the next one tries.
    partial: Partial,
    state: State,
    digest: Digest,
    size: u64,
    claim: Arc<ClaimLocks>,
}

/// Bytes are still coming.
#[derive(Debug)]
pub(super) struct Unverified {
    hasher: Hasher,
    written: u64,
}

/// All bytes are there, and they are the right ones.
#[derive(Debug)]
pub(super) struct Verified;

impl Blob<Unverified> {
    pub(super) fn create(
        descriptor: &Descriptor,
        shared: &Shared,
        claim: Arc<ClaimLocks>,
    ) -> Result<Self> {
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

    pub(super) fn append(&mut self, pieces: &[Bytes]) -> Result<()> {
        for piece in pieces {
            self.state.hasher.update(piece);
        }
        let missing = self.size.saturating_sub(self.state.written);
        write_all(&mut self.partial.file, pieces)
            .map_err(|source| Error::writing("write", &self.partial.path, missing, source))?;
        self.state.written += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        Ok(())
    }

    pub(super) fn verify(self) -> Result<Blob<Verified>> {
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
    pub(super) fn link(self, shared: &Shared) -> Result<()> {
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
