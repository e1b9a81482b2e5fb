//! Where wrong files go: `.quarantine/`. Nothing is ever served from there; people may look at it until `clean` empties it.
//!
//! A move is by rename, so it follows no symlink and copies nothing. Between the look at a file and its move somebody may
//! have put a right one in its place: what was moved is compared with what was looked at, and goes back if it is another.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::{
    disk::{SizedFile, is_older, sync_folder},
    error::{Error, Result},
    layout::Layout,
};

/// How long `clean` leaves a wrong file to those who want to know what happened to it.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// A file name may have 255 bytes; some are for what makes it unique.
const LONGEST_NAME: usize = 200;

/// Tells one file from another that has its name later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// Of what has this name; symlinks are not followed.
    pub(super) fn at(path: &Path) -> Result<Option<Self>> {
        Ok(look_at(path)?.map(|metadata| Self::of(&metadata)))
    }
}

/// What has this name, if anything has; symlinks are not followed.
pub(super) fn look_at(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::reading("look at", path, error)),
    }
}

/// Moves what was `seen` at `path` away, under `name`; false if something else has its place by now, or nothing.
pub(super) fn quarantine(layout: &Layout, path: &Path, name: &str, seen: Identity) -> Result<bool> {
    let folder = layout.quarantine();
    make_real_folder(&folder)?;
    let target = free_name(&folder, name)?;
    match fs::rename(path, &target) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::writing("move away", path, 0, error)),
    }
    if Identity::at(&target)? != Some(seen) {
        fs::rename(&target, path).map_err(|error| Error::writing("move back", path, 0, error))?;
        return Ok(false);
    }
    start_age(&target);
    sync_folder(path.parent().unwrap_or(path))?;
    Ok(true)
}

/// Makes the folder, unless it is there; what was planted in its place is not moved into.
pub(super) fn make_real_folder(folder: &Path) -> Result<()> {
    let refused = |source| Error::CacheUnwritable {
        operation: "create the folder",
        path: folder.to_owned(),
        source,
    };
    match fs::create_dir(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if look_at(folder)?.is_some_and(|metadata| metadata.is_dir()) {
                Ok(())
            } else {
                Err(refused(io::ErrorKind::NotADirectory.into()))
            }
        }
        Err(error) => Err(Error::writing("create the folder", folder, 0, error)),
    }
}

/// A name that nothing has yet: the same blob may go bad twice.
fn free_name(folder: &Path, name: &str) -> Result<PathBuf> {
    let end = (0..=name.len().min(LONGEST_NAME))
        .rev()
        .find(|end| name.is_char_boundary(*end))
        .unwrap_or_default();
    let name = &name[..end];
    let path = folder.join(name);
    if look_at(&path)?.is_none() {
        return Ok(path);
    }
    Ok(folder.join(format!("{name}-{:016x}", fastrand::u64(..))))
}

/// From now on the time of the file is that of its move. If that fails, `clean` removes it sooner.
fn start_age(path: &Path) {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    if let Err(error) = utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW) {
        tracing::debug!(path = %path.display(), %error, "the time of the move was not noted");
    }
}

/// What `clean` removes: what is old enough, or everything.
pub(super) fn to_be_removed(layout: &Layout, all: bool) -> Result<Vec<SizedFile>> {
    let folder = layout.quarantine();
    if !look_at(&folder)?.is_some_and(|metadata| metadata.is_dir()) {
        return Ok(Vec::new());
    }
    let failed = |source| Error::reading("look through", &folder, source);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(metadata) = look_at(&path)?
            && (all || is_older(&metadata, KEPT_FOR))
        {
            found.push((path, metadata.len()));
        }
    }
    Ok(found)
}

/// Removes what was quarantined, also a folder with all that is in it; symlinks are not followed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}
