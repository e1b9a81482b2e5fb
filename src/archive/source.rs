//! What an archive is read from: a regular file, or a stream that can be read once.

use std::{
    fmt,
    fs::{File, FileType, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::fs::OFlags;

use crate::{
    cache::{FileIdentity, Spool},
    output::OutputManager,
};

use super::{
    entries::{ContentReader, Entries},
    error::{Error, Place, Result, escaped},
    header::BLOCK,
    limits::Limits,
    outer::{Counted, Form, Source, judge, read_full},
    parts::{Parts, PartsReader},
    walk::{Tape, read_full_at},
    windows::Room,
};

/// What to read.
#[derive(Debug)]
pub struct Archive {
    name: String,
    input: Input,
}

enum Input {
    File {
        file: Arc<File>,
        identity: FileIdentity,
    },
    Stream(Box<dyn Read + Send + Sync>),
    Parts {
        reader: PartsReader,
        total: u64,
    },
}

impl fmt::Debug for Input {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { identity, .. } => formatter.debug_tuple("File").field(identity).finish(),
            Self::Stream(_) => formatter.debug_tuple("Stream").finish_non_exhaustive(),
            Self::Parts { total, .. } => formatter.debug_tuple("Parts").field(total).finish(),
        }
    }
}

impl Archive {
    /// Opens a regular file, or the parts that the first of them, `NAME.000`, or their checksums, `NAME.sha256`, stand for.
    ///
    /// # Errors
    /// When there is none, when it is something else, when it is empty, and when the system does not let us read it. Nothing
    /// was read then: for a command these are errors of usage. Parts that do not belong together are a bad archive.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if let Some(parts) = Parts::find(path)? {
            let total = parts.total();
            let reader = parts.reader();
            let input = Input::Parts { reader, total };
            return Ok(Self { name, input });
        }
        // A pipe somebody named must not block us: it is refused below.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::ArchiveNotFound {
                    path: escaped(name.as_bytes()),
                },
                _ => Place::archive(&name).unreadable(source),
            })?;
        let canonical = path.canonicalize();
        let canonical = canonical.map_err(|source| Place::archive(&name).unreadable(source))?;
        Self::from_regular(file, &canonical, name)
    }

    /// Reads a file that was opened already; `name` is what messages call it, and what tells it from other files of the
    /// same cache.
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn from_file(file: File, name: String) -> Result<Self> {
        Self::from_regular(file, &PathBuf::from(&name), name)
    }

    fn from_regular(file: File, path: &Path, name: String) -> Result<Self> {
        let unreadable = |source| Place::archive(&name).unreadable(source);
        let kind = file.metadata().map_err(unreadable)?.file_type();
        if !kind.is_file() {
            return Err(Error::NotAnArchiveFile {
                path: escaped(name.as_bytes()),
                kind: kind_name(kind),
            });
        }
        let identity = FileIdentity::of(&file, path).map_err(unreadable)?;
        if identity.size() == 0 {
            return Err(Place::archive(&name).invalid("the file is empty"));
        }
        let file = Arc::new(file);
        Ok(Self {
            name,
            input: Input::File { file, identity },
        })
    }

    /// Reads a stream, such as standard input. `name` is what messages call it.
    pub fn from_reader(reader: impl Read + Send + Sync + 'static, name: String) -> Self {
        Self {
            name,
            input: Input::Stream(Box::new(reader)),
        }
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What tells the file from others and from itself after a change; a stream has no such thing, nor have parts.
    pub const fn identity(&self) -> Option<&FileIdentity> {
        match &self.input {
            Input::File { identity, .. } => Some(identity),
            Input::Stream(_) | Input::Parts { .. } => None,
        }
    }

    /// Watches whether the file changes while it is read.
    pub(super) fn watch(&self) -> Option<Watch> {
        match &self.input {
            Input::File { file, identity } => Some(Watch {
                file: Arc::clone(file),
                identity: identity.clone(),
            }),
            Input::Stream(_) | Input::Parts { .. } => None,
        }
    }

    /// What the index of the cache says about where an image came from.
    pub(super) fn origin(&self) -> String {
        let file_name = Path::new(&self.name).file_name();
        let name = file_name.map_or_else(|| self.name.clone(), |name| name.display().to_string());
        format!(
            "{}{}",
            crate::cache::ARCHIVE_ORIGIN,
            escaped(name.as_bytes())
        )
    }

    pub(super) fn place(&self) -> Place {
        Place::archive(&self.name)
    }

    /// Reads the entries: of a plain file the headers, of anything else every byte, into the import. Blocks.
    pub(super) fn read(
        self,
        limits: &Limits,
        spool: &Spool,
        output: &OutputManager,
    ) -> Result<Entries> {
        let place = self.place();
        match self.input {
            Input::File { file, identity } => {
                let mut head = [0; BLOCK];
                let read =
                    read_full_at(&file, &mut head, 0).map_err(|source| place.unreadable(source))?;
                let form = form_of_archive(&head[..read], &place)?;
                let length = identity.size();
                if form == Form::Plain {
                    return Entries::read(
                        Tape::File { file, length },
                        &place,
                        limits,
                        spool,
                        &mut || {},
                    );
                }
                let stream = ContentReader::of_file(file, length);
                Packed {
                    form,
                    length: Some(length),
                    name: &self.name,
                    place: &place,
                }
                .read(stream, limits, spool, output)
            }
            Input::Stream(stream) => {
                read_stream(stream, None, &self.name, &place, limits, spool, output)
            }
            Input::Parts { reader, total } => {
                let stream = reader.clone();
                let read = read_stream(
                    stream,
                    Some(total),
                    &self.name,
                    &place,
                    limits,
                    spool,
                    output,
                );
                match read {
                    Err(error @ Error::Cache(_)) => Err(error),
                    // What a bad part made of the archive is of no interest.
                    read => reader.finish(spool).and(read),
                }
            }
        }
    }
}

/// Reads what can be read only once.
fn read_stream(
    stream: impl Read + Send + Sync + 'static,
    length: Option<u64>,
    name: &str,
    place: &Place,
    limits: &Limits,
    spool: &Spool,
    output: &OutputManager,
) -> Result<Entries> {
    let mut stream = Source(stream);
    let mut head = vec![0; BLOCK];
    let read = read_full(&mut stream, &mut head).map_err(|error| judge(error, place))?;
    head.truncate(read);
    if head.is_empty() {
        return Err(place.invalid("nothing came"));
    }
    let form = form_of_archive(&head, place)?;
    let stream = io::Cursor::new(head).chain(stream);
    Packed {
        form,
        length,
        name,
        place,
    }
    .read(stream, limits, spool, output)
}

/// A stream, compressed or not, whose contents are written into the import as they come.
struct Packed<'a> {
    form: Form,
    length: Option<u64>,
    name: &'a str,
    place: &'a Place,
}

impl Packed<'_> {
    fn read(
        &self,
        stream: impl Read + Send + Sync + 'static,
        limits: &Limits,
        spool: &Spool,
        output: &OutputManager,
    ) -> Result<Entries> {
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner: stream,
            bytes: Arc::clone(&bytes),
        };
        let going_on = || Ok(spool.ensure_going_on()?);
        let room = Room::of(self.form, limits, going_on)?;
        let decoder = self
            .form
            .decoder(counted, self.length, limits, room)
            .map_err(|error| judge(error, self.place))?;
        let reading = output.reading(self.name, self.length);
        let mut told = 0;
        let mut tick = || {
            let new = bytes.load(Ordering::Relaxed) - told;
            told += new;
            if self.length.is_none() {
                // How much a stream has is known only when it was read.
                output.planned(0, new);
            }
            reading.advance(new);
        };
        let tape = Tape::Stream(decoder);
        let entries = Entries::read(tape, self.place, limits, spool, &mut tick)?;
        reading.complete();
        Ok(entries)
    }
}

/// How an archive is packed; what is neither packed nor a tar is refused here, with better words than a checksum's.
fn form_of_archive(head: &[u8], place: &Place) -> Result<Form> {
    let form = Form::of(head);
    let is_tar = super::header::may_be_header(head);
    match form {
        Form::Plain if !is_tar => Err(place.invalid(
            "this is no tar archive, neither a plain one nor one packed with gzip or zstd",
        )),
        Form::Xz | Form::Bzip2 => Err(place.unsupported(format!(
            "it is packed with {form}; unpack it first, or pack it with gzip or zstd"
        ))),
        Form::Plain | Form::Gzip | Form::Zstd => Ok(form),
    }
}

/// A file that is read, and what it was at the beginning.
#[derive(Debug)]
pub(super) struct Watch {
    file: Arc<File>,
    pub(super) identity: FileIdentity,
}

impl Watch {
    /// Whether the file is still the one that was opened, as far as its size and time tell.
    pub(super) fn is_unchanged(&self) -> bool {
        FileIdentity::of(&self.file, self.identity.path()).is_ok_and(|now| now == self.identity)
    }
}

pub(super) fn kind_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_char_device() || kind.is_block_device() {
        "a device"
    } else {
        "a socket"
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, process::Command};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_by_name_and_nobody_waits() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let empty = folder.path().join("empty.tar");
        File::create(&empty).unwrap();
        for (path, words) in [
            (folder.path().join("gone.tar"), "there is no archive"),
            (empty.join("x"), "there is no archive"),
            (folder.path().to_owned(), "is a folder"),
            (pipe, "is a pipe"),
            (PathBuf::from("/dev/null"), "is a device"),
            (empty, "is empty"),
        ] {
            let error = Archive::open(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            let shown = path.display().to_string();
            assert!(error.contains(&shown), "{error}");
        }
    }

    #[test]
    fn a_file_is_watched_while_it_is_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"one").unwrap();
        let archive = Archive::open(file.path()).unwrap();
        let watch = archive.watch().unwrap();
        assert!(watch.is_unchanged());
        file.write_all(b"two").unwrap();
        assert!(!watch.is_unchanged());
        assert!(
            Archive::from_reader(io::empty(), "stdin".into())
                .watch()
                .is_none()
        );
    }

    #[test]
    fn an_image_remembers_the_name_of_its_archive_without_the_folder() {
        let file = tempfile::Builder::new().suffix(".tar").tempfile().unwrap();
        file.as_file().set_len(1).unwrap();
        let archive = Archive::open(file.path()).unwrap();
        let name = file.path().file_name().unwrap().display().to_string();
        assert_eq!(archive.origin(), format!("archive {name}"));
        let stream = Archive::from_reader(io::empty(), "standard input".into());
        assert_eq!(stream.origin(), "archive standard input");
    }
}
