//! Where an archive goes: into a file, which has its name only once it is whole, or into a stream.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::fs::fstatvfs;

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
                require_space(&file, expected).map_err(failed)?;
                Place::File {
                    file,
                    temporary,
                    target,
                    replace,
                }
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

/// A full disk shows before the first byte, not after half of them. A volume that tells no size has its own limits.
fn require_space(file: &File, needed: u64) -> io::Result<()> {
    let free = fstatvfs(file)
        .ok()
        .filter(|volume| volume.f_blocks > 0)
        .map(|volume| volume.f_bavail.saturating_mul(volume.f_frsize));
    match free {
        Some(free) if free < needed => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &Path, replace: bool) -> SaveTarget {
        SaveTarget::File {
            path: path.to_owned(),
            replace,
        }
    }

    fn files(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole_and_is_gone_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let mut sink = target(&path, false).open(10).unwrap();
        sink.write(b"0123").unwrap();
        assert!(!path.exists());
        drop(sink);
        assert_eq!(files(folder.path()), Vec::<String>::new());
        let mut sink = target(&path, false).open(10).unwrap();
        sink.write(b"0123").unwrap();
        sink.finish().unwrap();
        assert_eq!(files(folder.path()), ["a.tar"]);
        assert_eq!(fs::read(&path).unwrap(), b"0123");
    }

    #[test]
    fn a_file_that_somebody_made_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let sink = target(&path, false).open(0).unwrap();
        File::create(&path).unwrap().write_all(b"theirs").unwrap();
        let error = sink.finish().unwrap_err();
        assert!(matches!(error, SaveError::ArchiveExists { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(files(folder.path()), ["a.tar"]);
    }

    #[test]
    fn a_link_stays_and_the_file_behind_it_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.tar"), folder.path().join("link"));
        File::create(&file).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let refused = target(&link, false).open(0).map(drop).unwrap_err();
        assert!(matches!(refused, SaveError::ArchiveExists { .. }));
        let mut sink = target(&link, true).open(1).unwrap();
        sink.write(b"new").unwrap();
        sink.finish().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn more_than_any_disk_has_is_refused_before_the_first_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let error = target(&path, false).open(1 << 60).map(drop).unwrap_err();
        assert!(
            matches!(error, SaveError::ArchiveVolumeFull { .. }),
            "{error}"
        );
        assert_eq!(files(folder.path()), Vec::<String>::new());
    }
}
