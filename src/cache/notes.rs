//! What is noted of a partial blob, so that a later run can go on with it: `blobs/.partial/<digest>.state`.
//!
//! The first line is a *checkpoint*: everything it says was on the disk before it was written, so it serves after a power
//! loss and on another machine. The lines below are ranges that were written since. They are appended without a sync, and
//! mean something only as long as the system has not been started anew, for then the kernel still has the bytes.
//!
//! Each line begins with a checksum of its rest. Reading ends at the first line that is not whole.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    ops::Range,
    path::PathBuf,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{
    Sha256, Sha512,
    digest::common::hazmat::{SerializableState, SerializedState},
};

use crate::image::{Algorithm, Descriptor, Digest, Hasher};

use super::{
    disk::{Temporary, boot_id, is_ours, open_regular, read_small, remove_leftover},
    error::Result,
    ranges::Ranges,
};

/// Bytes between two notes of the cheap kind: what a killed run loses of each blob.
const NOTE_EVERY: u64 = 1024 * 1024;

/// A line for each MiB since the last checkpoint, of a blob of 250 GiB. A larger file is none of ours.
const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// Whose state of the hash this is. It may be resumed by the same version of the same code only; a test compares it with
/// Cargo.lock.
const HASHER: &str = concat!(
    env!("CARGO_PKG_NAME"),
    " ",
    env!("CARGO_PKG_VERSION"),
    ", sha2 0.11.1"
);

/// Hex digits of a checksum: torn writes are what it is for, not forgers, who could write the bytes as well.
const CHECKSUM_DIGITS: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    digest: Digest,
    size: u64,
    /// Since which start of the system the lines below the header mean something.
    boot: Option<String>,
    hasher: String,
    /// So many bytes from the beginning are in `state`.
    hashed: u64,
    state: String,
    /// What was on the disk.
    ranges: Vec<(u64, u64)>,
}

/// A hash at some point of a blob.
#[derive(Debug, Clone)]
pub(super) struct Hashed {
    pub(super) hasher: Hasher,
    pub(super) position: u64,
}

impl Hashed {
    pub(super) fn nothing(algorithm: Algorithm) -> Self {
        Self {
            hasher: Hasher::new(algorithm),
            position: 0,
        }
    }
}

/// What is known of a partial blob.
#[derive(Debug)]
pub(super) struct Progress {
    /// What is in the file, and survives a power loss.
    on_disk: Ranges,
    /// What is in the file.
    pub(super) in_file: Ranges,
    pub(super) hashed: Hashed,
}

/// The notes of one blob.
#[derive(Debug)]
pub(super) struct Notes {
    path: PathBuf,
    digest: Digest,
    size: u64,
    lines: Lines,
    /// Written since the last note.
    fresh: Ranges,
}

/// Where lines are appended.
#[derive(Debug)]
enum Lines {
    /// There is no file yet.
    None,
    File(File),
    /// Behind half a line nothing would be read: nothing is noted until the next checkpoint.
    Broken,
    /// Everything was removed, and nothing may be noted any more.
    Closed,
}

impl Notes {
    pub(super) fn new(path: PathBuf, descriptor: &Descriptor) -> Self {
        Self {
            path,
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            lines: Lines::None,
            fresh: Ranges::default(),
        }
    }

    /// What an earlier run noted; none if that is of no use.
    pub(super) fn load(&self) -> Result<Option<Progress>> {
        // Whoever can plant a state of the hash decides what bytes pass for this blob.
        let is_ours = open_regular(&self.path)?.is_some_and(|(_, metadata)| is_ours(&metadata));
        match read_small(&self.path, MAX_SIZE)? {
            Some(Ok(bytes)) if is_ours => Ok(self.parse(&bytes, boot_id())),
            _ => Ok(None),
        }
    }

    fn parse(&self, bytes: &[u8], boot: Option<&str>) -> Option<Progress> {
        let mut lines = bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map_while(unsealed);
        let header: Header = serde_json::from_str(lines.next()?).ok()?;
        if header.digest != self.digest || header.size != self.size {
            return None;
        }
        let valid = |(start, end)| (start < end && end <= self.size).then_some(start..end);
        let ranges = header.ranges.iter().copied().map(valid);
        let on_disk = ranges.collect::<Option<Ranges>>()?;
        let hashed = header
            .hashed(self.digest.algorithm())
            .filter(|hashed| hashed.position <= on_disk.end_from(0));
        let mut in_file = on_disk.clone();
        if boot.is_some() && header.boot.as_deref() == boot {
            for line in lines {
                let (start, end) = line.split_once(' ')?;
                in_file.insert(valid((start.parse().ok()?, end.parse().ok()?))?);
            }
        }
        (!in_file.is_empty()).then(|| Progress {
            on_disk,
            in_file,
            hashed: hashed.unwrap_or_else(|| Hashed::nothing(self.digest.algorithm())),
        })
    }

    /// Goes on with notes that were loaded: a torn line at their end would hide what is appended to it.
    pub(super) fn go_on(&mut self, progress: &Progress) {
        let text = self.checkpoint(&progress.hashed, &progress.on_disk);
        let folder = self.path.parent().unwrap_or(&self.path);
        let checkpoint = Temporary::write(folder, text.as_bytes());
        let is_written = checkpoint.is_ok_and(|checkpoint| {
            self.replace(&checkpoint, &progress.on_disk, &progress.in_file)
                .is_ok()
        });
        if !is_written {
            self.lines = Lines::Broken;
        }
    }

    /// Removes what was noted before.
    pub(super) fn forget(&self) {
        remove_leftover(&self.path);
    }

    /// Notes what is in the file, once there is enough of it. Trouble costs the notes, not the blob.
    pub(super) fn add(&mut self, written: impl IntoIterator<Item = Range<u64>>) {
        for range in written {
            self.fresh.insert(range);
        }
        if self.fresh.total() >= NOTE_EVERY {
            self.flush();
        }
    }

    /// Notes what was not noted yet.
    pub(super) fn flush(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return;
        }
        if let Err(error) = self.append(&fresh) {
            tracing::debug!(path = %self.path.display(), %error, "progress is not noted");
            self.lines = Lines::Broken;
        }
    }

    fn append(&mut self, fresh: &Ranges) -> io::Result<()> {
        let mut text = String::new();
        if let Lines::None = self.lines {
            let file = OpenOptions::new()
                .append(true)
                .create_new(true)
                .open(&self.path)?;
            self.lines = Lines::File(file);
            let nothing = Hashed::nothing(self.digest.algorithm());
            text = self.checkpoint(&nothing, &Ranges::default());
        }
        text.extend(fresh.iter().map(|range| range_line(&range)));
        match &mut self.lines {
            Lines::File(file) => file.write_all(text.as_bytes()),
            Lines::None | Lines::Broken | Lines::Closed => Ok(()),
        }
    }

    /// The text of a checkpoint. What it says must be on the disk before it is.
    pub(super) fn checkpoint(&self, hashed: &Hashed, on_disk: &Ranges) -> String {
        let header = Header {
            digest: self.digest.clone(),
            size: self.size,
            boot: boot_id().map(str::to_owned),
            hasher: HASHER.to_owned(),
            hashed: hashed.position,
            state: BASE64_STANDARD.encode(state_of(&hashed.hasher)),
            ranges: on_disk
                .iter()
                .map(|range| (range.start, range.end))
                .collect(),
        };
        // Strings and numbers can always be written.
        sealed(&serde_json::to_string(&header).unwrap_or_default())
    }

    /// Lets a checkpoint, written to a file of its own, take the place of all notes before. `in_file` is what the blob's
    /// file has now: more than the checkpoint's `on_disk`.
    pub(super) fn replace(
        &mut self,
        checkpoint: &Temporary,
        on_disk: &Ranges,
        in_file: &Ranges,
    ) -> io::Result<()> {
        if let Lines::Closed = self.lines {
            return Ok(());
        }
        let mut file = OpenOptions::new().append(true).open(checkpoint.path())?;
        let since: String = in_file
            .iter()
            .flat_map(|range| on_disk.gaps(range))
            .map(|range| range_line(&range))
            .collect();
        file.write_all(since.as_bytes())?;
        checkpoint.rename(&self.path)?;
        self.lines = Lines::File(file);
        self.fresh = Ranges::default();
        Ok(())
    }

    /// Removes the notes, for good; false if they were removed before.
    pub(super) fn close(&mut self) -> bool {
        let is_first = !matches!(self.lines, Lines::Closed);
        if is_first {
            self.lines = Lines::Closed;
            remove_leftover(&self.path);
        }
        is_first
    }
}

impl Header {
    /// The hash where it was; none if other code made it.
    fn hashed(&self, algorithm: Algorithm) -> Option<Hashed> {
        if self.hasher != HASHER {
            return None;
        }
        let state = BASE64_STANDARD.decode(&self.state).ok()?;
        let hasher = match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(resumed::<Sha256>(&state)?),
            Algorithm::Sha512 => Hasher::Sha512(resumed::<Sha512>(&state)?),
        };
        Some(Hashed {
            hasher,
            position: self.hashed,
        })
    }
}

fn state_of(hasher: &Hasher) -> Vec<u8> {
    match hasher {
        Hasher::Sha256(state) => state.serialize().to_vec(),
        Hasher::Sha512(state) => state.serialize().to_vec(),
    }
}

fn resumed<H: SerializableState>(state: &[u8]) -> Option<H> {
    let state = SerializedState::<H>::try_from(state).ok()?;
    H::deserialize(&state).ok()
}

fn range_line(range: &Range<u64>) -> String {
    sealed(&format!("{} {}", range.start, range.end))
}

/// A line with its checksum.
pub(super) fn sealed(text: &str) -> String {
    let checksum = Digest::of(text.as_bytes());
    let checksum = checksum.hex().get(..CHECKSUM_DIGITS).unwrap_or_default();
    format!("{checksum} {text}\n")
}

/// The text of a line; none if it is not whole.
pub(super) fn unsealed(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?;
    let text = line.get(CHECKSUM_DIGITS + 1..)?.strip_suffix('\n')?;
    (sealed(text) == line).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_hash_is_that_of_the_version_in_use() {
        let lock = std::fs::read_to_string("Cargo.lock").unwrap();
        let version = HASHER.rsplit(' ').next().unwrap();
        let package = format!("name = \"sha2\"\nversion = \"{version}\"");
        assert!(
            lock.contains(&package),
            "HASHER must name the version of sha2 in Cargo.lock"
        );
    }

    #[test]
    fn a_hash_goes_on_from_its_state_at_any_byte() {
        let content: Vec<u8> = (0..=250).cycle().take(1000).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            for position in [0, 1, 63, 64, 127, 128, 999, 1000] {
                let mut hasher = Hasher::new(algorithm);
                hasher.update(&content[..position]);
                let state = state_of(&hasher);
                let mut resumed = match algorithm {
                    Algorithm::Sha256 => Hasher::Sha256(resumed(&state).unwrap()),
                    Algorithm::Sha512 => Hasher::Sha512(resumed(&state).unwrap()),
                };
                resumed.update(&content[position..]);
                let expected = Digest::with_algorithm(algorithm, &content);
                assert_eq!(resumed.finish(), expected);
            }
            assert!(resumed::<Sha256>(b"short").is_none());
        }
    }

    #[test]
    fn a_line_is_read_back_only_as_it_was_written() {
        let line = sealed("0 1048576");
        assert_eq!(unsealed(line.as_bytes()), Some("0 1048576"));
        for end in 0..line.len() {
            assert_eq!(unsealed(&line.as_bytes()[..end]), None);
        }
        for position in 0..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[position] ^= 1;
            assert_eq!(unsealed(&bytes), None);
        }
    }
}
