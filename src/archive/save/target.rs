//! Where an archive goes: into a file, which has its name only once it is whole, or into a stream.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate};

use super::{Result, SaveError};

/// Where to write.
pub enum SaveTarget {
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether a file that is there may be replaced.
        replace: bool,
    },
    /// A stream, such as standard output.
    Stream(Box<dyn Write + Send>),
}

impl fmt::Debug for SaveTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name())
    }
}

impl SaveTarget {
    /// As messages call it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Stream(_) => "-".to_owned(),
        }
    }

    /// Opens it for about `expected` bytes; blocks.
    pub(super) fn open(self, expected: u64) -> Result<Sink> {
        let name = self.name();
        let place = match self {
            Self::Stream(stream) => Place::Stream(stream),
            Self::File { path, replace } => {
                let target = place_of(&path, replace)?;
                let failed = |source| failure(&name, expected, source);
                let (file, temporary) = new_file_beside(&target).map_err(failed)?;
                let place = Place::File {
                    file,
                    temporary,
                    target,
                    replace,
                };
                place.reserve(expected).map_err(failed)?;
                place
            }
        };
        Ok(Sink {
            name,
            expected,
            place,
        })
    }
}

/// The path that a new file is renamed to. Renaming over a link would replace the link, over a device the device.
fn place_of(path: &Path, replace: bool) -> Result<PathBuf> {
    let Ok(target) = fs::canonicalize(path) else {
        return Ok(path.to_owned());
    };
    let path = path.to_owned();
    if !target.is_file() {
        return Err(SaveError::ArchiveTarget { path });
    }
    if !replace {
        return Err(SaveError::ArchiveExists { path });
    }
    Ok(target)
}

/// A new, empty file with a name nobody else has.
fn new_file_beside(target: &Path) -> io::Result<(File, Temporary)> {
    let Some(name) = target.file_name() else {
        return Err(io::ErrorKind::IsADirectory.into());
    };
    let name = name.to_string_lossy();
    loop {
        let path = target.with_file_name(format!(".{name}.{:016x}.tmp", fastrand::u64(..)));
        match File::create_new(&path) {
            Ok(file) => return Ok((file, Temporary(path))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn failure(name: &str, needed: u64, source: io::Error) -> SaveError {
    let target = name.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SaveError::ArchiveVolumeFull { target, needed }
        }
        _ => SaveError::ArchiveUnwritable { target, source },
    }
}

/// A file that is removed when it is dropped, unless it got its name by then.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

enum Place {
    File {
        file: File,
        temporary: Temporary,
        target: PathBuf,
        replace: bool,
    },
    Stream(Box<dyn Write + Send>),
}

impl Place {
    /// Takes the room at once: a full disk shows before the first byte. Not every file system can.
    fn reserve(&self, bytes: u64) -> io::Result<()> {
        match self {
            Self::File { file, .. } if bytes > 0 => {
                match fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes).map_err(io::Error::from)
                {
                    Err(error) if is_full(&error) => Err(error),
                    _ => Ok(()),
                }
            }
            Self::File { .. } | Self::Stream(_) => Ok(()),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// An open target. Dropped before [`Sink::finish`], it leaves no file.
pub(super) struct Sink {
    name: String,
    expected: u64,
    place: Place,
}

impl Sink {
    /// Writes all of it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = match &mut self.place {
            Place::File { file, .. } => file.write_all(bytes),
            Place::Stream(stream) => stream.write_all(bytes),
        };
        written.map_err(|source| failure(&self.name, self.expected, source))
    }

    /// Gives the file its name once it is on the disk.
    pub(super) fn finish(self) -> Result<()> {
        let Self {
            name,
            expected,
            place,
        } = self;
        let failed = |source| failure(&name, expected, source);
        match place {
            Place::Stream(mut stream) => stream.flush().map_err(failed),
            Place::File {
                file,
                temporary,
                target,
                replace,
            } => {
                file.sync_all().map_err(failed)?;
                // Somebody may have put a file there meanwhile.
                if !replace && target.symlink_metadata().is_ok() {
                    return Err(SaveError::ArchiveExists { path: target });
                }
                fs::rename(&temporary.0, &target).map_err(failed)?;
                sync_folder_of(&target).map_err(failed)
            }
        }
    }
}

/// Waits until the new name is on the disk.
fn sync_folder_of(file: &Path) -> io::Result<()> {
    let folder = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    File::open(folder)?.sync_all()
}
