//! Writes a tar as POSIX says it, always the same for the same content: no times, no users.
//!
//! Headers are those of `ustar`. What does not fit into one (a layer above 8 GiB, the name of a SHA-512 blob) stands in a PAX
//! record before it, with a size of 0 in the header itself, as GNU tar, Python and Go write it.

use std::{
    fs::File,
    io::{self, Read},
    sync::Weak,
};

use tar::{EntryType, Header};

use crate::{image::Hasher, output::Transfer};

use super::{
    super::header::BLOCK, Content, Entry, Result, SaveError, SavedBlob, SavedPart, target::Sink,
};

/// Bytes that are read, hashed and written at once.
const PIECE: usize = 256 * 1024;

/// Bytes that the field of a header can tell: eleven octal digits.
const MAX_HEADER_SIZE: u64 = 0o777_7777_7777;

/// Bytes of the field for a name.
const NAME_LENGTH: usize = 100;

/// Bytes of zeros at the end.
const END_MARK: usize = 2 * BLOCK;

const FILE_MODE: u32 = 0o444;
const FOLDER_MODE: u32 = 0o755;

pub(super) struct TarWriter {
    sink: Sink,
    written: u64,
    buffer: Vec<u8>,
    progress: Transfer,
    /// Gone when nobody waits for the archive any more.
    waiting: Weak<()>,
}

impl TarWriter {
    pub(super) fn new(sink: Sink, progress: Transfer, waiting: Weak<()>) -> Self {
        Self {
            sink,
            written: 0,
            buffer: vec![0; PIECE],
            progress,
            waiting,
        }
    }

    /// Writes a folder.
    pub(super) fn folder(&mut self, path: &str) -> Result<()> {
        self.put(&headers(path, EntryType::Directory, 0))
    }

    /// Writes a small file.
    pub(super) fn bytes(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let size = bytes.len() as u64;
        self.put(&headers(path, EntryType::Regular, size))?;
        self.put(bytes)?;
        self.progress.kept(size);
        self.pad(size)
    }

    /// Copies a blob.
    ///
    /// # Errors
    /// When its bytes are not what its digest says; the archive is of no use then.
    pub(super) fn blob(&mut self, path: &str, blob: &SavedBlob, file: File) -> Result<()> {
        let SavedBlob { digest, size } = blob;
        self.put(&headers(path, EntryType::Regular, *size))?;
        let mut hasher = Hasher::new(digest.algorithm());
        // One that grew since it was opened does not run over its place.
        let mut file = file.take(*size);
        let mut copied = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        while copied < *size {
            if self.waiting.strong_count() == 0 {
                return Err(SaveError::SaveInterrupted);
            }
            let unreadable = |source| SaveError::CachedBlobUnreadable {
                digest: digest.clone(),
                source,
            };
            let read = file.read(&mut buffer).map_err(unreadable)?;
            if read == 0 {
                return Err(unreadable(io::ErrorKind::UnexpectedEof.into()));
            }
            hasher.update(&buffer[..read]);
            self.put(&buffer[..read])?;
            self.progress.kept(read as u64);
            copied += read as u64;
        }
        self.buffer = buffer;
        let actual = hasher.finish();
        if actual != *digest {
            return Err(SaveError::CachedBlobDamaged {
                digest: digest.clone(),
                actual,
            });
        }
        self.pad(*size)
    }

    /// Writes the end mark, two blocks of zeros, and returns the bytes of the archive, and its parts.
    pub(super) fn finish(mut self) -> Result<(u64, Vec<SavedPart>)> {
        self.put(&[0; END_MARK])?;
        let parts = self.sink.finish()?;
        self.progress.complete();
        Ok((self.written, parts))
    }

    fn pad(&mut self, size: u64) -> Result<()> {
        self.put(&[0; BLOCK][..padding(size)])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }
}

/// Bytes of an archive with these entries.
pub(super) fn length(entries: &[Entry]) -> u64 {
    let entries = entries.iter().map(|Entry { path, content }| {
        let size = content.size();
        let kind = match content {
            Content::Folder => EntryType::Directory,
            Content::Document(_) | Content::Manifest(..) | Content::Blob(_) => EntryType::Regular,
        };
        (headers(path, kind, size).len() + padding(size)) as u64 + size
    });
    entries.sum::<u64>() + END_MARK as u64
}

/// Zeros that fill the last block.
fn padding(size: u64) -> usize {
    // Less than a block, so it fits.
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    (BLOCK - over) % BLOCK
}

/// The header of an entry, with a PAX header before it where it needs one.
fn headers(path: &str, kind: EntryType, size: u64) -> Vec<u8> {
    let mut records = Vec::new();
    if path.len() > NAME_LENGTH {
        records.extend(record("path", path));
    }
    let mut size_field = size;
    if size > MAX_HEADER_SIZE {
        records.extend(record("size", &size.to_string()));
        size_field = 0;
    }
    let mut blocks = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        let length = records.len() as u64;
        blocks.extend(header("PaxHeaders", EntryType::XHeader, length).as_bytes());
        blocks.extend(&records);
        blocks.resize(blocks.len() + padding(length), 0);
    }
    blocks.extend(header(path, kind, size_field).as_bytes());
    blocks
}

fn header(path: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_ustar();
    // The names are ASCII and our own. One that is too long stands in the PAX record; here it is cut.
    let name = &path.as_bytes()[..path.len().min(NAME_LENGTH)];
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(if kind.is_dir() {
        FOLDER_MODE
    } else {
        FILE_MODE
    });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    header
}

/// `LENGTH KEY=VALUE` and a newline; the length counts itself.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        archive::{Place, SaveTarget},
        image::Digest,
        output::OutputManager,
    };

    fn sizes(blocks: &[u8]) -> Vec<u64> {
        blocks
            .chunks_exact(BLOCK)
            .filter(|block| &block[257..262] == b"ustar")
            .map(|block| {
                let block: &[u8; BLOCK] = block.try_into().unwrap();
                let place = |_: &[u8]| Place::archive("saved.tar");
                super::super::super::header::Header::read(block, &place)
                    .unwrap()
                    .size()
            })
            .collect()
    }

    #[test]
    fn a_size_above_8_gib_stands_in_a_pax_record_and_not_in_the_header() {
        assert_eq!(
            sizes(&headers("layer", EntryType::Regular, MAX_HEADER_SIZE)),
            [MAX_HEADER_SIZE]
        );
        let blocks = headers("layer", EntryType::Regular, MAX_HEADER_SIZE + 1);
        assert_eq!(sizes(&blocks), [19, 0]);
        assert_eq!(&blocks[BLOCK..BLOCK + 19], b"19 size=8589934592\n");
        assert_eq!(blocks.len(), 3 * BLOCK);
    }

    #[test]
    fn a_name_that_does_not_fit_stands_in_a_pax_record() {
        let path = format!("blobs/sha512/{}", "a".repeat(128));
        let blocks = headers(&path, EntryType::Regular, 5);
        let record = format!("151 path={path}\n");
        assert_eq!(record.len(), 151);
        assert_eq!(&blocks[BLOCK..BLOCK + 151], record.as_bytes());
        assert_eq!(sizes(&blocks), [151, 5]);
    }

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        for length in 1..2000 {
            let record = record("k", &"v".repeat(length));
            let text = String::from_utf8(record).unwrap();
            let (number, _) = text.split_once(' ').unwrap();
            assert_eq!(number.parse(), Ok(text.len()));
        }
    }

    #[test]
    fn a_copy_that_nobody_waits_for_any_more_ends_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        std::io::Write::write_all(&mut File::create(&path).unwrap(), b"content").unwrap();
        let blob = SavedBlob {
            digest: Digest::of(b"content"),
            size: 7,
        };
        let target = SaveTarget::File {
            path: folder.path().join("a.tar"),
            replace: false,
        };
        let waiting = Arc::new(());
        let progress = OutputManager::silent().writing("a.tar", 7);
        let watch = Arc::downgrade(&waiting);
        let mut archive = TarWriter::new(target.open(7).unwrap(), progress, watch);
        let mut copy = || archive.blob("blob", &blob, File::open(&path).unwrap());
        copy().unwrap();
        drop(waiting);
        let error = copy().unwrap_err();
        assert!(matches!(error, SaveError::SaveInterrupted), "{error}");
        drop(archive);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
