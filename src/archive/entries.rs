//! The entries of an archive as a map from keys to contents. A content lies in the archive itself, where that is a plain
//! file, or in files of the cache's import, into which streams are written as they come: large ones each into its own, small
//! ones one behind the other into one.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    ops::Bound,
    sync::Arc,
};

use crate::{
    cache::{HashedBlob, Spool, UnnamedBlob},
    image::{Algorithm, Descriptor, Digest, Hasher},
};

use super::{
    error::{Error, Place, Result, escaped},
    limits::Limits,
    names::{link_target, normalise},
    outer::{Form, MAGIC, judge, read_full, source_failed},
    walk::{Node, Tape, Walk, read_full_at},
};

/// Links that are followed one after the other.
const MAX_HOPS: usize = 8;

/// What is read and written at once.
pub(super) const CHUNK: usize = 256 * 1024;

/// Contents of a stream up to this size share a file: a small packed archive can hold many thousands of them.
const SMALL: u64 = 1 << 20;

/// A regular file of the archive.
#[derive(Debug)]
pub(super) struct Content {
    /// Its header, from 1: contents are told apart by it.
    pub(super) number: u64,
    offset: u64,
    name: Arc<[u8]>,
    pub(super) size: u64,
    pub(super) at: At,
}

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum At {
    /// In the archive, from this offset on.
    Archive { file: Arc<File>, data: u64 },
    /// Together with others in a file of the import that has no name any more, from this offset on; not hashed.
    Gathered { file: Arc<File>, data: u64 },
    /// In a file of the import, hashed.
    Spooled(Arc<HashedBlob>),
    /// Not in the archive, which says so, but in the cache; not hashed.
    Cached(Box<Cached>),
}

/// A blob of the cache that an archive relies on.
#[derive(Debug)]
pub(super) struct Cached {
    spool: Spool,
    descriptor: Descriptor,
    archive: Place,
}

impl At {
    /// Whether the bytes are still to be read.
    pub(super) const fn is_unread(&self) -> bool {
        matches!(self, Self::Archive { .. } | Self::Cached(_))
    }
}

#[derive(Debug)]
enum Entry {
    File(Arc<Content>),
    Directory,
    Link {
        is_symlink: bool,
        target: Vec<u8>,
        number: u64,
        offset: u64,
    },
}

/// All entries of an archive.
#[derive(Debug)]
pub(super) struct Entries {
    archive: Place,
    map: BTreeMap<Arc<[u8]>, Entry>,
    pub(super) warnings: Vec<&'static str>,
}

impl Entries {
    /// Walks through the archive. `spool` takes the contents of a stream; without, the contents stay where they are.
    /// `tick` is called after every piece that was read.
    pub(super) fn read(
        tape: Tape,
        archive: &Place,
        limits: &Limits,
        spool: &Spool,
        tick: &mut dyn FnMut(),
    ) -> Result<Self> {
        let file = match &tape {
            Tape::File { file, .. } => Some(Arc::clone(file)),
            Tape::Stream(_) => None,
        };
        let mut walk = Walk::new(tape, limits, archive.clone());
        let mut entries = Self {
            archive: archive.clone(),
            map: BTreeMap::new(),
            warnings: Vec::new(),
        };
        let mut small = Small::default();
        while let Some(member) = walk.next()? {
            spool.ensure_going_on()?;
            tick();
            let name: Arc<[u8]> = member.name.as_slice().into();
            let (number, offset) = (member.number, member.offset);
            let entry = match (&file, member.node) {
                (_, Node::Directory) => Entry::Directory,
                (_, Node::Symlink { target }) => Entry::Link {
                    is_symlink: true,
                    target,
                    number,
                    offset,
                },
                (_, Node::Hardlink { target }) => Entry::Link {
                    is_symlink: false,
                    target,
                    number,
                    offset,
                },
                (Some(file), Node::File { size, data }) => {
                    let at = At::Archive {
                        file: Arc::clone(file),
                        data,
                    };
                    Entry::File(Arc::new(Content {
                        number,
                        offset,
                        name: Arc::clone(&name),
                        size,
                        at,
                    }))
                }
                (None, Node::File { size, .. }) => {
                    let at = if size <= SMALL {
                        small.take(&mut walk, size, spool, tick)?
                    } else {
                        At::Spooled(Arc::new(spooled(&mut walk, &name, size, spool, tick)?))
                    };
                    Entry::File(Arc::new(Content {
                        number,
                        offset,
                        name: Arc::clone(&name),
                        size,
                        at,
                    }))
                }
            };
            entries.insert(name, entry, number, offset)?;
        }
        tick();
        entries.warnings = walk.warnings().to_vec();
        entries.check_links()?;
        Ok(entries)
    }

    /// Row 24: the same entry twice does no harm; two different ones of one name do.
    fn insert(&mut self, name: Arc<[u8]>, entry: Entry, number: u64, offset: u64) -> Result<()> {
        let Some(former) = self.map.get(&name) else {
            self.map.insert(name, entry);
            return Ok(());
        };
        let same = match (former, &entry) {
            (Entry::Directory, Entry::Directory) => true,
            (
                Entry::Link {
                    is_symlink: one,
                    target: first,
                    ..
                },
                Entry::Link {
                    is_symlink: other,
                    target: second,
                    ..
                },
            ) => one == other && first == second,
            (Entry::File(one), Entry::File(other)) => {
                one.size == other.size && self.hash(one)? == self.hash(other)?
            }
            _ => false,
        };
        if same {
            return Ok(());
        }
        Err(self
            .archive
            .entry(number, offset, &name)
            .unsafe_because("entry appears twice, with different content"))
    }

    fn hash(&self, content: &Content) -> Result<Digest> {
        if let At::Spooled(blob) = &content.at {
            return Ok(blob.digest().clone());
        }
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut reader = content.open()?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = reader
                .read(&mut buffer)
                .map_err(|error| judge(error, &self.place(content)))?;
            if read == 0 {
                return Ok(hasher.finish());
            }
            hasher.update(&buffer[..read]);
        }
    }

    /// Row 26, for every link, used or not.
    fn check_links(&self) -> Result<()> {
        self.map
            .iter()
            .filter(|(_, entry)| matches!(entry, Entry::Link { .. }))
            .try_for_each(|(name, _)| self.follow(name).map(drop))
    }

    /// The key at the end of all links.
    fn follow<'a>(&'a self, name: &'a [u8]) -> Result<Option<&'a Arc<Content>>> {
        let mut key = name.to_vec();
        for _ in 0..=MAX_HOPS {
            let (is_symlink, target, number, offset) = match self.map.get(key.as_slice()) {
                Some(Entry::File(content)) => return Ok(Some(content)),
                Some(Entry::Link {
                    is_symlink,
                    target,
                    number,
                    offset,
                }) => (*is_symlink, target, *number, *offset),
                Some(Entry::Directory) | None => return Ok(None),
            };
            let place = self.archive.entry(number, offset, &key);
            let bad = |reason: &str| {
                let target = escaped(target);
                place.unsafe_because(format!("bad link: its target '{target}' {reason}"))
            };
            let next = link_target(&key, target, is_symlink).ok_or_else(|| bad("is outside"))?;
            if std::str::from_utf8(&next).is_err() {
                return Err(place.invalid("the name of its target is not UTF-8"));
            }
            if !self.exists(&next) {
                return Err(bad("is not in the archive"));
            }
            key = next;
        }
        let (number, offset) = match self.map.get(name) {
            Some(Entry::Link { number, offset, .. }) => (*number, *offset),
            _ => (0, 0),
        };
        Err(self
            .archive
            .entry(number, offset, name)
            .unsafe_because(format!(
                "bad link: it leads through more than {MAX_HOPS} links, or in a circle"
            )))
    }

    /// Whether there is an entry, or one below it.
    fn exists(&self, key: &[u8]) -> bool {
        if key.is_empty() || self.map.contains_key(key) {
            return true;
        }
        let folder = [key, b"/"].concat();
        self.map
            .range::<[u8], _>((Bound::Included(folder.as_slice()), Bound::Unbounded))
            .next()
            .is_some_and(|(name, _)| name.starts_with(&folder))
    }

    /// The content a name of the archive stands for; none if there is none.
    pub(super) fn find(&self, name: &str) -> Result<Option<&Arc<Content>>> {
        let key = normalise(name.as_bytes(), &self.archive)?;
        match self.map.get_key_value(key.as_slice()) {
            Some((key, _)) => self.follow(key),
            None => Ok(None),
        }
    }

    /// The same for a name that must be there (rows 3 and 40). `what` says who names it.
    pub(super) fn require(&self, name: &str, what: &str) -> Result<&Arc<Content>> {
        if let Some(content) = self.find(name)? {
            return Ok(content);
        }
        let shown = escaped(name.as_bytes());
        let is_mangled = self
            .map
            .keys()
            .any(|key| std::str::from_utf8(key).is_err() && String::from_utf8_lossy(key) == name);
        Err(if is_mangled {
            self.archive
                .invalid(format!("the name of {what}, '{shown}', is not UTF-8"))
        } else {
            self.archive
                .invalid(format!("{what} '{shown}' is listed but not in the archive"))
        })
    }

    /// The blob of an OCI layout; none if it is not there.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<&Arc<Content>>> {
        self.find(&format!(
            "blobs/{}/{}",
            digest.algorithm().name(),
            digest.hex()
        ))
    }

    /// Where a content lies, for messages.
    pub(super) fn place(&self, content: &Content) -> Place {
        content.place(&self.archive)
    }

    pub(super) const fn archive(&self) -> &Place {
        &self.archive
    }
}

/// Writes the data of the current member into a file of the import. An entry that is named by a digest is hashed with its
/// algorithm, all others with SHA-256.
fn spooled(
    walk: &mut Walk<'_>,
    name: &[u8],
    size: u64,
    spool: &Spool,
    tick: &mut dyn FnMut(),
) -> Result<HashedBlob> {
    let algorithm = if name.starts_with(b"blobs/sha512/") {
        Algorithm::Sha512
    } else {
        Algorithm::Sha256
    };
    let mut blob = spool.create(algorithm, size)?;
    write(walk, size, &mut blob, tick)?;
    Ok(blob.finish())
}

/// Writes the data of the current member to the end of a file.
fn write(
    walk: &mut Walk<'_>,
    size: u64,
    blob: &mut UnnamedBlob,
    tick: &mut dyn FnMut(),
) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
    let mut left = size;
    while left > 0 {
        let read = walk.read(&mut buffer)?;
        blob.write(&buffer[..read])?;
        left -= read as u64;
        tick();
    }
    Ok(())
}

/// The file of the small contents. It loses its name when the archive was read; contents hold it open as long as they need
/// it, and what is taken out of it is hashed then.
#[derive(Default)]
struct Small {
    file: Option<(UnnamedBlob, Arc<File>)>,
    length: u64,
}

impl Small {
    /// Appends the data of the current member.
    fn take(
        &mut self,
        walk: &mut Walk<'_>,
        size: u64,
        spool: &Spool,
        tick: &mut dyn FnMut(),
    ) -> Result<At> {
        let (blob, file) = match &mut self.file {
            Some(file) => file,
            none => {
                let blob = spool.create(Algorithm::Sha256, 0)?;
                let file = Arc::new(blob.reader()?);
                none.insert((blob, file))
            }
        };
        write(walk, size, blob, tick)?;
        let data = self.length;
        self.length += size;
        Ok(At::Gathered {
            file: Arc::clone(file),
            data,
        })
    }
}

impl Content {
    /// A blob that is in the cache instead of the archive; none if it is not there either, or not right. It is read like one of
    /// the archive: that the archive names it proves nothing.
    pub(super) fn cached(
        number: u64,
        descriptor: &Descriptor,
        archive: &Place,
        spool: &Spool,
    ) -> Result<Option<Self>> {
        if spool.open_blob(descriptor)?.is_none() {
            return Ok(None);
        }
        let digest = &descriptor.digest;
        let name = format!("blobs/{}/{}", digest.algorithm().name(), digest.hex());
        Ok(Some(Self {
            number,
            offset: 0,
            name: name.into_bytes().into(),
            size: descriptor.size,
            at: At::Cached(Box::new(Cached {
                spool: spool.clone(),
                descriptor: descriptor.clone(),
                archive: archive.clone(),
            })),
        }))
    }

    pub(super) fn place(&self, archive: &Place) -> Place {
        match &self.at {
            At::Cached(cached) => archive.cached(&cached.descriptor.digest),
            At::Archive { .. } | At::Gathered { .. } | At::Spooled(_) => {
                archive.entry(self.number, self.offset, &self.name)
            }
        }
    }

    /// The digest of the bytes, where it is known without reading them.
    pub(super) fn known_digest(&self) -> Option<&Digest> {
        match &self.at {
            At::Archive { .. } | At::Gathered { .. } | At::Cached(_) => None,
            At::Spooled(blob) => Some(blob.digest()),
        }
    }

    /// The digest that the name promises: `blobs/<algorithm>/<hex>`.
    pub(super) fn named_digest(&self) -> Option<Digest> {
        let name = std::str::from_utf8(&self.name).ok()?;
        let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
        format!("{algorithm}:{hex}").parse().ok()
    }

    /// Starts to read from the first byte.
    pub(super) fn open(&self) -> Result<ContentReader> {
        let (file, position) = match &self.at {
            At::Archive { file, data } | At::Gathered { file, data } => (Arc::clone(file), *data),
            At::Spooled(blob) => (Arc::new(blob.open()?), 0),
            At::Cached(cached) => (Arc::new(cached.open()?), 0),
        };
        Ok(ContentReader {
            file,
            position,
            end: position + self.size,
        })
    }

    /// How the bytes are packed, by the first of them.
    pub(super) fn form(&self, archive: &Place) -> Result<Form> {
        let mut magic = [0; MAGIC];
        let mut reader = self.open()?;
        let read = read_full(&mut reader, &mut magic)
            .map_err(|error| judge(error, &self.place(archive)))?;
        Ok(Form::of(&magic[..read]))
    }

    /// All bytes, of which there may be `limit` (row 30); `name` is the limit's name.
    pub(super) fn read_small(
        &self,
        archive: &Place,
        limit: u64,
        name: &'static str,
    ) -> Result<Vec<u8>> {
        let place = self.place(archive);
        if self.size > limit {
            let reason = format!("it has {} bytes, at most {limit} are read", self.size);
            return Err(place.limit(name, reason));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).unwrap_or_default());
        self.open()?
            .read_to_end(&mut bytes)
            .map_err(|error| judge(error, &place))?;
        Ok(bytes)
    }
}

impl Cached {
    /// Opens it each time it is read: an archive may rely on more blobs than a process may have files open.
    fn open(&self) -> Result<File> {
        let file = self.spool.open_blob(&self.descriptor)?;
        file.ok_or_else(|| {
            let digest = &self.descriptor.digest;
            Error::ArchiveBaseMissing {
                place: self.archive.clone(),
                missing: digest.to_string(),
            }
        })
    }

    /// Fails if the bytes are no longer those of the blob.
    pub(super) fn require_right(&self) -> Result<()> {
        let digest = &self.descriptor.digest;
        let mut hasher = Hasher::new(digest.algorithm());
        let mut file = self.open()?;
        let mut buffer = vec![0; CHUNK];
        let place = self.archive.cached(digest);
        loop {
            self.spool.ensure_going_on()?;
            let read =
                read_full(&mut file, &mut buffer).map_err(|error| place.unreadable(error))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
        }
        let actual = hasher.finish();
        if actual == *digest {
            return Ok(());
        }
        Err(Error::ArchiveBaseDamaged {
            place: self.archive.clone(),
            digest: digest.clone(),
            actual,
        })
    }
}

/// Reads a content; several may read one file at once.
#[derive(Debug)]
pub(super) struct ContentReader {
    pub(super) file: Arc<File>,
    pub(super) position: u64,
    pub(super) end: u64,
}

impl ContentReader {
    /// Reads a file from its beginning.
    pub(super) const fn of_file(file: Arc<File>, length: u64) -> Self {
        Self {
            file,
            position: 0,
            end: length,
        }
    }

    pub(super) const fn left(&self) -> u64 {
        self.end.saturating_sub(self.position)
    }
}

/// Somebody cut the file while it was read.
pub(super) fn became_shorter() -> io::Error {
    source_failed(io::Error::other(
        "the file became shorter while it was read",
    ))
}

impl Read for ContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left())
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = read_full_at(&self.file, &mut buffer[..wanted], self.position)
            .map_err(source_failed)?;
        self.position += read as u64;
        if read < wanted {
            return Err(became_shorter());
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::archive::testing::{Tar, bed};

    #[tokio::test]
    async fn empty_and_small_members_of_a_stream_share_one_file() {
        let bed = bed();
        let import = bed.cache.import().await.unwrap();
        let before = bed.files().len();
        let large = vec![7; (1 << 20) + 1];
        let mut tar = Tar::default().file("large", &large);
        for number in 0..500 {
            let text = number.to_string();
            tar = tar.file(&format!("empty/{text}"), "").file(&text, &text);
        }
        // The same entry twice is compared while the file is still being written.
        let tape = Tape::Stream(Box::new(Cursor::new(tar.file("499", "499").end())));
        let place = Place::archive("app.tar");
        let entries = Entries::read(
            tape,
            &place,
            &Limits::default(),
            &import.spool(),
            &mut || {},
        )
        .unwrap();
        let files = bed.files().len() - before;
        assert!(files <= 2, "{files} files");
        for (name, expected) in [("empty/3", &b""[..]), ("0", b"0"), ("499", b"499")] {
            let content = entries.find(name).unwrap().unwrap();
            assert_eq!(content.read_small(&place, 10, "x").unwrap(), expected);
        }
        let content = entries.find("large").unwrap().unwrap();
        assert_eq!(content.read_small(&place, 1 << 21, "x").unwrap(), large);
    }
}
