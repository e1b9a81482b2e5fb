//! Where an archive goes: into a file, which has its name only once it is whole, into several, or into a stream.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write},
    num::NonZeroU64,
    path::{Path, PathBuf},
};

use rustix::fs::fstatvfs;

use super::{super::part_names::folder_of, Result, SaveError, SavedPart, parts::PartsWriter};

/// Where to write.
pub enum SaveTarget {
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// Whether a file that is there may be replaced.
        replace: bool,
    },
    /// Files of at most this size, `NAME.000`, `NAME.001` and so on, and `NAME.sha256` with their checksums.
    Parts {
        /// The path that the names begin with.
        path: PathBuf,
        /// The most bytes of each.
        size: NonZeroU64,
        /// Whether files that are there may be replaced.
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
            Self::File { path, .. } | Self::Parts { path, .. } => path.display().to_string(),
            Self::Stream(_) => "-".to_owned(),
        }
    }

    /// Opens it for this many bytes; blocks.
    pub(super) fn open(self, expected: u64) -> Result<Sink> {
        let name = self.name();
        let place = match self {
            Self::Stream(stream) => Place::Stream(stream),
            Self::File { path, replace } => Place::File(NewFile::create(&path, replace, expected)?),
            Self::Parts {
                path,
                size,
                replace,
            } => Place::Parts(Box::new(PartsWriter::open(path, size, replace, expected)?)),
        };
        Ok(Sink {
            name,
            expected,
            place,
        })
    }
}

/// A file that is being written and gets its name at the end. Dropped before, it is gone.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    whole: WholeFile,
}

/// A file that is on the disk, all of it, but for its name.
#[derive(Debug)]
pub(super) struct WholeFile {
    temporary: Temporary,
    target: PathBuf,
    replace: bool,
}

impl NewFile {
    /// Begins a file that is to have `path` one day, with room for `expected` bytes.
    pub(super) fn create(path: &Path, replace: bool, expected: u64) -> Result<Self> {
        let target = place_of(path, replace)?;
        let failed = |source| failure(path, expected, source);
        let (file, temporary) = new_file_beside(&target).map_err(failed)?;
        require_space(&file, expected).map_err(failed)?;
        Ok(Self {
            file,
            whole: WholeFile {
                temporary,
                target,
                replace,
            },
        })
    }

    /// Writes all of it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Waits until the bytes are on the disk.
    pub(super) fn finish(self) -> io::Result<WholeFile> {
        self.file.sync_all()?;
        Ok(self.whole)
    }
}

impl WholeFile {
    /// The file it is to be.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Fails if somebody has put a file there meanwhile.
    pub(super) fn require_room(&self) -> Result<()> {
        if !self.replace && self.target.symlink_metadata().is_ok() {
            let path = self.target.clone();
            return Err(SaveError::ArchiveExists { path });
        }
        Ok(())
    }

    /// Gives the file its name, which [`Named::keep`] makes last.
    pub(super) fn name(self) -> io::Result<Named> {
        let Self {
            temporary, target, ..
        } = self;
        fs::rename(&temporary.0, &target)?;
        Ok(Named {
            path: target,
            is_kept: false,
        })
    }
}

/// A file with its name, which is removed again unless it is kept.
#[derive(Debug)]
pub(super) struct Named {
    path: PathBuf,
    is_kept: bool,
}

impl Named {
    /// Lets the file stay.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if !self.is_kept {
            drop(fs::remove_file(&self.path));
        }
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

/// What the system says, as an error about a file that is to have `needed` bytes.
pub(super) fn failure(name: &Path, needed: u64, source: io::Error) -> SaveError {
    let target = name.display().to_string();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            SaveError::ArchiveVolumeFull { target, needed }
        }
        _ => SaveError::ArchiveUnwritable { target, source },
    }
}

/// A file that is removed when it is dropped.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

enum Place {
    File(NewFile),
    Parts(Box<PartsWriter>),
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
            Place::File(file) => file.write(bytes),
            Place::Parts(parts) => return parts.write(bytes),
            Place::Stream(stream) => stream.write_all(bytes),
        };
        written.map_err(|source| failure(Path::new(&self.name), self.expected, source))
    }

    /// Gives the file, or all of them, their names once they are on the disk. The answer is the parts, where there are some.
    pub(super) fn finish(self) -> Result<Vec<SavedPart>> {
        let Self {
            name,
            expected,
            place,
        } = self;
        let failed = |source| failure(Path::new(&name), expected, source);
        match place {
            Place::Parts(parts) => return parts.finish(),
            Place::Stream(mut stream) => stream.flush().map_err(failed)?,
            Place::File(file) => {
                let whole = file.finish().map_err(failed)?;
                whole.require_room()?;
                let target = whole.target().to_owned();
                whole.name().map_err(failed)?.keep();
                sync_folder_of(&target).map_err(failed)?;
            }
        }
        Ok(Vec::new())
    }
}

/// Waits until new names beside this one are on the disk.
pub(super) fn sync_folder_of(file: &Path) -> io::Result<()> {
    File::open(folder_of(file))?.sync_all()
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
