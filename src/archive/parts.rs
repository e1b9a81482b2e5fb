//! An archive in numbered parts, `NAME.000`, `NAME.001` and so on as `split -d -a 3` writes them, beside `NAME.sha256` with their
//! checksums as `sha256sum` writes them. The parts are read one after the other as a stream, each hashed on the way; nothing
//! joins them on the disk.
//!
//! The names in the file of checksums are compared, never followed: where a part lies comes from the name that the user gave.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::{
    cache::Spool,
    image::{Algorithm, Digest, Hasher},
};

use super::{
    error::{Error, Place, Result, escaped},
    outer::Source,
    part_names::{CHECKSUMS, checksums_path, digest_of, file_name, part_path, parts_beside},
};

/// More than the checksums of all parts take, even with long names.
const MAX_CHECKSUMS_SIZE: u64 = 8 * 1024 * 1024;

/// The ending of the first part's name.
const FIRST: &str = ".000";

/// The parts of an archive as their checksums list them.
#[derive(Debug)]
pub(super) struct Parts {
    listed: Arc<[Part]>,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    digest: Digest,
    /// When it was looked for; a part that changes afterwards has another digest.
    size: u64,
}

impl Part {
    fn name(&self) -> String {
        escaped(self.path.as_os_str().as_encoded_bytes())
    }
}

impl Parts {
    /// The parts that a path stands for: the first of them, or their checksums. None where it stands for an archive in one
    /// piece, as also a lone file that happens to be called `.000` does.
    ///
    /// # Errors
    /// When the checksums, or a part that they list, are missing, and when there is a part that they do not list. No part was
    /// read then.
    pub(super) fn find(path: &Path) -> Result<Option<Self>> {
        let shown = path.as_os_str().to_string_lossy();
        let name = if let Some(name) = shown.strip_suffix(CHECKSUMS) {
            PathBuf::from(name)
        } else if let Some(name) = shown.strip_suffix(FIRST) {
            let name = PathBuf::from(name);
            if !checksums_path(&name).exists() && !part_path(&name, 1).exists() {
                return Ok(None);
            }
            name
        } else {
            return Ok(None);
        };
        Self::listed(&name).map(Some)
    }

    fn listed(name: &Path) -> Result<Self> {
        let path = checksums_path(name);
        let place = Place::archive(&path.display().to_string());
        let missing = || Error::ArchiveChecksumsMissing {
            path: escaped(path.as_os_str().as_encoded_bytes()),
        };
        let file = open(&path, missing)?;
        let mut text = String::new();
        file.take(MAX_CHECKSUMS_SIZE)
            .read_to_string(&mut text)
            .map_err(|source| place.unreadable(source))?;
        let mut listed = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let path = part_path(name, number);
            let digest = digest_of(line, &file_name(&path)).ok_or_else(|| {
                place.invalid(format!(
                    "its line {} is not the checksum of {}",
                    number + 1,
                    escaped(file_name(&path).as_bytes())
                ))
            })?;
            listed.push((path, digest));
        }
        if listed.is_empty() {
            return Err(place.invalid("it lists no part"));
        }
        let beside = parts_beside(name).map_err(|source| place.unreadable(source))?;
        let stranger = beside
            .into_iter()
            .find(|(_, number)| *number >= listed.len());
        if let Some((stranger, _)) = stranger {
            return Err(place.invalid(format!(
                "it does not list {}, which lies beside it: take the checksums of the same archive, or move that file away",
                escaped(stranger.as_os_str().as_encoded_bytes())
            )));
        }
        let listed = listed.into_iter().map(|(path, digest)| {
            let missing = || Error::ArchivePartMissing {
                part: escaped(path.as_os_str().as_encoded_bytes()),
                digest: digest.clone(),
            };
            let file = open(&path, missing)?;
            let length = file.metadata().map(|metadata| metadata.len());
            let size = length.map_err(|source| part_place(&path).unreadable(source))?;
            Ok(Part { path, digest, size })
        });
        let listed = listed.collect::<Result<Arc<[Part]>>>()?;
        Ok(Self { listed })
    }

    /// Bytes of all parts.
    pub(super) fn total(&self) -> u64 {
        self.listed.iter().map(|part| part.size).sum()
    }

    /// Starts to read from the first byte.
    pub(super) fn reader(self) -> PartsReader {
        PartsReader(Arc::new(Mutex::new(Reading {
            listed: self.listed,
            next: 0,
            current: None,
            failure: None,
        })))
    }
}

fn part_place(path: &Path) -> Place {
    Place::archive(&path.display().to_string())
}

/// Opens a regular file.
fn open(path: &Path, missing: impl FnOnce() -> Error) -> Result<File> {
    let unreadable = |source| part_place(path).unreadable(source);
    // A pipe in its place must not block us.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => missing(),
            _ => unreadable(source),
        })?;
    let kind = file.metadata().map_err(unreadable)?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    Err(Error::NotAnArchiveFile {
        path: escaped(path.as_os_str().as_encoded_bytes()),
        kind: super::source::kind_name(kind),
    })
}

/// Reads the parts one after the other. Clones read on where another one stopped.
#[derive(Debug, Clone)]
pub(super) struct PartsReader(Arc<Mutex<Reading>>);

#[derive(Debug)]
struct Reading {
    listed: Arc<[Part]>,
    next: usize,
    current: Option<Current>,
    /// The first part that is not what its checksum says. Readers above can only be told that something failed.
    failure: Option<Error>,
}

#[derive(Debug)]
struct Current {
    file: Source<io::Take<File>>,
    hasher: Hasher,
    read: u64,
}

impl PartsReader {
    /// Reads what is left, so that every part has been compared with its checksum.
    ///
    /// # Errors
    /// With the first part that is not what its checksum says, whoever met it.
    pub(super) fn finish(&self, spool: &Spool) -> Result<()> {
        let mut buffer = vec![0; super::entries::CHUNK];
        loop {
            spool.ensure_going_on()?;
            let mut reading = self.0.lock();
            let read = reading.read(&mut buffer);
            if let Some(failure) = reading.failure.take() {
                return Err(failure);
            }
            match read {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(super::outer::judge(error, &reading.place())),
            }
        }
    }
}

impl Read for PartsReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.lock().read(buffer)
    }
}

impl Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.failure.is_some() {
                return Err(io::Error::other("a part is not what its checksum says"));
            }
            let Some(current) = &mut self.current else {
                let Some(part) = self.listed.get(self.next) else {
                    return Ok(0);
                };
                self.current = Some(Current::open(part).map_err(super::outer::source_failed)?);
                continue;
            };
            let read = current.file.read(buffer)?;
            if read > 0 {
                current.hasher.update(&buffer[..read]);
                current.read += read as u64;
                return Ok(read);
            }
            if let Some(current) = self.current.take() {
                self.close(current);
            }
        }
    }

    /// Compares a part that was read with its checksum.
    fn close(&mut self, current: Current) {
        let Some(part) = self.listed.get(self.next) else {
            return;
        };
        let actual = current.hasher.finish();
        if actual == part.digest {
            self.next += 1;
            return;
        }
        let hint = self.hint(part, &actual, current.read);
        self.failure = Some(Error::ArchivePartDamaged {
            part: part.name(),
            expected: part.digest.clone(),
            actual,
            hint,
        });
    }

    /// What else shows that a part is wrong: it is another one of them, or its size is not that of the others.
    fn hint(&self, part: &Part, actual: &Digest, read: u64) -> String {
        if let Some(other) = self.listed.iter().find(|other| other.digest == *actual) {
            return format!(", which is that of {}", other.name());
        }
        let last = self.listed.len() - 1;
        // All have one size but the last, which may have less.
        let full = self.listed[..last].iter();
        let usual = full
            .filter(|other| other.path != part.path)
            .max_by_key(|other| other.size);
        match usual {
            Some(usual) if self.next < last && usual.size != read => format!(
                "; it has {read} bytes, where {} has {}",
                usual.name(),
                usual.size
            ),
            _ => format!("; it has {read} bytes"),
        }
    }

    /// The part that is read, for messages.
    fn place(&self) -> Place {
        let part = self.listed.get(self.next).or_else(|| self.listed.last());
        part_place(part.map_or_else(|| Path::new(""), |part| &part.path))
    }
}

impl Current {
    fn open(part: &Part) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&part.path)?;
        Ok(Self {
            // One that grows has another digest however much of it is read.
            file: Source(file.take(part.size)),
            hasher: Hasher::new(Algorithm::Sha256),
            read: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{
        archive::{
            Archive, TarUtils,
            part_names::checksums,
            testing::{Bed, accepted, bed, gzip, put, sample, zstd},
        },
        error::{Classified, handlers},
    };

    /// Puts an archive beside the cache in parts of this size.
    fn split(bed: &Bed, bytes: &[u8], size: usize) -> Vec<PathBuf> {
        let pieces: Vec<(PathBuf, Digest)> = bytes
            .chunks(size)
            .enumerate()
            .map(|(number, piece)| {
                let path = bed.write(&format!("app.tar.{number:03}"), piece);
                (path, Digest::of(piece))
            })
            .collect();
        let text = checksums(pieces.iter().map(|(path, digest)| (path.as_path(), digest)));
        bed.write("app.tar.sha256", text.as_bytes());
        pieces.into_iter().map(|(path, _)| path).collect()
    }

    async fn read(bed: &Bed, path: &Path) -> Result<Vec<Digest>> {
        let archive = Archive::open(path)?;
        let contents =
            TarUtils::parse_image_info(archive, &bed.cache, &bed.limits, &bed.output).await?;
        let images = contents.images().iter();
        let chosen: Vec<_> = images
            .map(|image| (image.position, image.names.clone()))
            .collect();
        let stored = contents.store(&chosen).await?;
        Ok(stored.into_iter().map(|image| image.digest).collect())
    }

    #[tokio::test]
    async fn an_archive_in_parts_is_the_archive_however_it_is_packed() {
        let plain = sample().docker().end();
        let expected = accepted(&plain).await;
        for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
            for size in [7, 512, 700, bytes.len(), bytes.len() + 1] {
                let bed = bed();
                if bytes.len() / size >= 1000 {
                    continue;
                }
                let parts = split(&bed, &bytes, size);
                assert_eq!(read(&bed, &parts[0]).await.unwrap(), expected, "{size}");
                let sums = parts[0].with_extension("sha256");
                assert_eq!(read(&bed, &sums).await.unwrap(), expected, "{size}");
            }
        }
    }

    #[tokio::test]
    async fn a_bad_part_is_named_before_anything_can_be_seen() {
        type Harm = fn(&[PathBuf]);
        let harms: &[(Harm, &str, &str)] = &[
            (
                |parts| {
                    let mut bytes = fs::read(&parts[1]).unwrap();
                    bytes[100] ^= 1;
                    put(&parts[1], bytes);
                },
                "ArchivePartDamaged",
                "app.tar.001 of the archive should have the digest",
            ),
            (
                |parts| {
                    let bytes = fs::read(&parts[2]).unwrap();
                    put(&parts[2], &bytes[..300]);
                },
                "ArchivePartDamaged",
                "app.tar.002 of the archive should have the digest",
            ),
            (
                |parts| {
                    let bytes = fs::read(&parts[0]).unwrap();
                    put(&parts[0], &bytes[..300]);
                },
                "ArchivePartDamaged",
                "it has 300 bytes, where ",
            ),
            (
                |parts| {
                    let (one, two) = (fs::read(&parts[0]).unwrap(), fs::read(&parts[1]).unwrap());
                    put(&parts[0], two);
                    put(&parts[1], one);
                },
                "ArchivePartDamaged",
                "which is that of ",
            ),
            (
                |parts| fs::remove_file(&parts[1]).unwrap(),
                "ArchivePartMissing",
                "app.tar.001 of the archive is missing: copy it beside the others",
            ),
            (
                |parts| fs::remove_file(parts.last().unwrap()).unwrap(),
                "ArchivePartMissing",
                "is missing",
            ),
            (
                |parts| put(&parts[0].with_extension("123"), "more"),
                "ArchiveInvalid",
                "it does not list ",
            ),
            (
                |parts| fs::remove_file(parts[0].with_extension("sha256")).unwrap(),
                "ArchiveChecksumsMissing",
                "app.tar.sha256 with the checksums of the parts",
            ),
            (
                |parts| {
                    let sums = parts[0].with_extension("sha256");
                    let text = fs::read_to_string(&sums).unwrap();
                    let lines: Vec<&str> = text.lines().skip(1).collect();
                    put(&sums, lines.join("\n"));
                },
                "ArchiveInvalid",
                "its line 1 is not the checksum of app.tar.000",
            ),
            (
                // Cut in the middle of the last line.
                |parts| {
                    let sums = parts[0].with_extension("sha256");
                    let text = fs::read(&sums).unwrap();
                    put(&sums, &text[..text.len() - 4]);
                },
                "ArchiveInvalid",
                "is not the checksum of app.tar.",
            ),
            (
                |parts| put(&parts[0].with_extension("sha256"), ""),
                "ArchiveInvalid",
                "it lists no part",
            ),
        ];
        for size in [700, 1024] {
            for (harm, reason, words) in harms {
                let bed = bed();
                let parts = split(&bed, &sample().docker().end(), size);
                harm(&parts);
                let error = read(&bed, &parts[0]).await.unwrap_err();
                let text = handlers::message(&error);
                assert_eq!(error.reason(), *reason, "{text}");
                assert!(text.contains(words), "{text}");
                assert_eq!(error.class(), crate::error::Class::Archive);
                assert_eq!(bed.files(), Vec::<String>::new());
            }
        }
    }

    #[tokio::test]
    async fn what_only_looks_like_a_part_is_read_as_the_archive_it_is() {
        let bed = bed();
        let lone = bed.write("app.tar.000", &sample().docker().end());
        assert_eq!(read(&bed, &lone).await.unwrap().len(), 1);
        for (name, bytes) in [("pipe.tar.sha256", ""), ("none.sha256", "")] {
            let path = bed.write(name, bytes.as_bytes());
            let error = Archive::open(&path).unwrap_err();
            assert!(error.to_string().contains("it lists no part"), "{error}");
        }
    }
}
