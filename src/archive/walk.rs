//! The walk through a tar archive: one member after the other, with its name, target and size as all its headers say
//! together. Reads headers only; what is in a member is the caller's to read or to leave.
//!
//! This is an own loop over blocks of 512 bytes (archive reference 4.1). The iterator of the crate `tar` would need its reader
//! to lie about positions as soon as PAX records give a size, and takes an empty size field or a sign for a number.

use std::{fs::File, io::Read, os::unix::fs::FileExt, sync::Arc};

use super::{
    error::{Place, Result},
    header::{BLOCK, Header, Kind},
    limits::Limits,
    names::normalise,
    outer::{judge, read_full},
    pax,
};

/// Where the blocks come from.
pub(super) enum Tape {
    /// A plain file: what is not needed is not read.
    File { file: Arc<File>, length: u64 },
    /// Anything else, once from the beginning to the end.
    Stream(Box<dyn Read + Send>),
}

/// A member of the archive.
#[derive(Debug)]
pub(super) struct Member {
    /// Which header it is, from 1.
    pub(super) number: u64,
    /// Where that header lies.
    pub(super) offset: u64,
    /// Normalised; empty for the root folder only.
    pub(super) name: Vec<u8>,
    pub(super) node: Node,
}

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node {
    File { size: u64, data: u64 },
    Directory,
    Symlink { target: Vec<u8> },
    Hardlink { target: Vec<u8> },
}

/// What extension headers say about the member that follows them.
#[derive(Debug, Default)]
struct Pending {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    extended: Option<Extended>,
}

/// The keys of an `x` header that matter here.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link_path: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Pending {
    const fn is_empty(&self) -> bool {
        self.long_name.is_none() && self.long_link.is_none() && self.extended.is_none()
    }
}

/// The walk.
pub(super) struct Walk<'a> {
    tape: Tape,
    limits: &'a Limits,
    archive: Place,
    /// Bytes of the tape that are behind us.
    position: u64,
    /// Where the next header lies.
    next_header: u64,
    /// End of the data of the last member.
    data_end: u64,
    number: u64,
    name_bytes: u64,
    pending: Pending,
    warnings: Vec<&'static str>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(tape: Tape, limits: &'a Limits, archive: Place) -> Self {
        Self {
            tape,
            limits,
            archive,
            position: 0,
            next_header: 0,
            data_end: 0,
            number: 0,
            name_bytes: 0,
            pending: Pending::default(),
            warnings: Vec::new(),
        }
    }

    /// What is odd about the archive but harmless; complete after the last member.
    pub(super) fn warnings(&self) -> &[&'static str] {
        &self.warnings
    }

    /// The next member; what is left of the last one is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Member>> {
        loop {
            self.pass_over(self.next_header)?;
            let offset = self.position;
            let Some(block) = self.block()? else {
                self.end()?;
                return Ok(None);
            };
            self.number += 1;
            if self.number > self.limits.entries {
                return Err(self.archive.limit(
                    "entries",
                    format!("it has more than {} entries", self.limits.entries),
                ));
            }
            let (archive, number) = (self.archive.clone(), self.number);
            let header = Header::read(&block, &|name| archive.entry(number, offset, name))?;
            let place = archive.entry(number, offset, &header.name());
            if header.kind().is_extension() {
                self.take_extension(&header, &place)?;
            } else {
                return self.member(&header, &place, offset).map(Some);
            }
        }
    }

    /// Reads on in the data of the last member; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left =
            usize::try_from(self.data_end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let read = self.fill(&mut buffer[..wanted])?;
        if read < wanted {
            return Err(self.cut(self.data_end));
        }
        Ok(read)
    }

    /// One header, or none at the end of the archive: the first block of zeros, or nothing more at all.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            BLOCK if block == [0; BLOCK] => self.check_end_mark()?,
            BLOCK => return Ok(Some(block)),
            0 => self.warnings.push("its end mark is missing"),
            _ => return Err(self.cut(self.next_header + BLOCK as u64)),
        }
        Ok(None)
    }

    /// Rows 22 and 23: what follows the first block of zeros should be zeros. A stream is read to its end, so that its
    /// compression is checked and nobody writes into a closed pipe.
    fn check_end_mark(&mut self) -> Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        let (mut behind, mut all_zero) = (0, true);
        loop {
            let read = self.fill(&mut buffer)?;
            behind += read as u64;
            all_zero &= buffer[..read].iter().all(|byte| *byte == 0);
            let known = !all_zero && matches!(self.tape, Tape::File { .. });
            if read == 0 || known {
                break;
            }
        }
        if !all_zero {
            self.warnings.push("data after its end was ignored");
        } else if behind < BLOCK as u64 {
            self.warnings.push("its end mark is incomplete");
        }
        Ok(())
    }

    /// Row 14: the end may not come between an extension and its member.
    fn end(&self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        Err(self
            .archive
            .unsafe_because("ambiguous extension headers: no member follows the last one"))
    }

    /// Keeps what an extension header says.
    fn take_extension(&mut self, header: &Header, place: &Place) -> Result<()> {
        let limit = self.limits.extension_header;
        if header.size() > limit {
            return Err(place.limit(
                "extension_header",
                format!(
                    "extension header too large: {} bytes, at most {limit} are read",
                    header.size()
                ),
            ));
        }
        self.announce(header.size(), place)?;
        let mut payload = vec![0; usize::try_from(header.size()).unwrap_or_default()];
        self.read(&mut payload)?;
        let twice =
            || place.unsafe_because("ambiguous extension headers: two of a kind for one member");
        match header.kind() {
            Kind::LongName => {
                replace(&mut self.pending.long_name, text(payload)).map_err(|()| twice())
            }
            Kind::LongLink => {
                replace(&mut self.pending.long_link, text(payload)).map_err(|()| twice())
            }
            Kind::Extended => {
                let extended = extended(&payload, place)?;
                replace(&mut self.pending.extended, extended).map_err(|()| twice())
            }
            Kind::Global if !self.pending.is_empty() => Err(place.unsafe_because(
                "global header changes entries: it stands between a member and its headers",
            )),
            Kind::Global => check_global(&payload, place),
            Kind::File | Kind::Hardlink | Kind::Symlink | Kind::Directory => Ok(()),
        }
    }

    /// Puts together what the headers of a member say.
    fn member(&mut self, header: &Header, place: &Place, offset: u64) -> Result<Member> {
        let pending = std::mem::take(&mut self.pending);
        let extended = pending.extended.unwrap_or_default();
        let raw_name =
            agreed(pending.long_name, extended.path, || header.name()).ok_or_else(|| {
                place.unsafe_because("ambiguous extension headers: they give two names")
            })?;
        // From here on messages carry the name that counts.
        let place = &self.archive.entry(self.number, offset, &raw_name);
        let raw_target = agreed(pending.long_link, extended.link_path, || header.link())
            .ok_or_else(|| {
                place.unsafe_because("ambiguous extension headers: they give two targets")
            })?;
        self.check_length(&raw_name, place)?;
        self.check_length(&raw_target, place)?;
        let size = agreed_size(header.size(), extended.size).ok_or_else(|| {
            place.unsafe_because("two different sizes: its header and its PAX record disagree")
        })?;
        let name = normalise(&raw_name, place)?;
        let is_folder_name = raw_name.ends_with(b"/");
        let node = match header.kind() {
            Kind::File if is_folder_name && size > 0 => {
                return Err(place.unsafe_because("directory carries data"));
            }
            Kind::File if is_folder_name => Node::Directory,
            Kind::File => Node::File {
                size,
                data: self.position,
            },
            _ if size > 0 => return Err(place.unsafe_because("link or directory carries data")),
            Kind::Symlink => Node::Symlink { target: raw_target },
            Kind::Hardlink => Node::Hardlink { target: raw_target },
            _ => Node::Directory,
        };
        if name.is_empty() && node != Node::Directory {
            return Err(
                place.unsafe_because("name leaves the archive: it is that of the root folder")
            );
        }
        self.announce(size, place)?;
        Ok(Member {
            number: self.number,
            offset,
            name,
            node,
        })
    }

    /// Row 2, and the memory that all names take together.
    fn check_length(&mut self, name: &[u8], place: &Place) -> Result<()> {
        if name.len() > self.limits.name_length {
            return Err(place.limit(
                "name_length",
                format!("name too long: {} bytes", name.len()),
            ));
        }
        self.name_bytes += name.len() as u64;
        if self.name_bytes > self.limits.name_bytes {
            let reason = format!("its names have more than {} bytes", self.limits.name_bytes);
            return Err(self.archive.limit("name_bytes", reason));
        }
        Ok(())
    }

    /// Checks that data of this size can follow, and where the next header will be (rows 20 and 25).
    fn announce(&mut self, size: u64, place: &Place) -> Result<()> {
        let padded = size
            .checked_next_multiple_of(BLOCK as u64)
            .and_then(|padded| self.position.checked_add(padded))
            .filter(|end| *end <= self.limits.archive_bytes)
            .ok_or_else(|| {
                place.limit(
                    "archive_bytes",
                    format!("it has more than {} bytes", self.limits.archive_bytes),
                )
            })?;
        if let Tape::File { length, .. } = self.tape {
            let left = length.saturating_sub(self.position);
            if size > left {
                return Err(place.truncated(format!("{size} bytes needed, {left} left")));
            }
        }
        self.data_end = self.position + size;
        self.next_header = padded;
        Ok(())
    }

    /// Goes on to a position.
    fn pass_over(&mut self, target: u64) -> Result<()> {
        if let Tape::File { length, .. } = self.tape {
            // The padding of the last member may be missing together with the end mark.
            self.position = target.min(length);
            return Ok(());
        }
        // Contents of a stream are read to their end, so what is left is mostly padding.
        let mut buffer = [0; BLOCK];
        while self.position < target {
            let left = usize::try_from(target - self.position).unwrap_or(usize::MAX);
            let wanted = left.min(buffer.len());
            let read = self.fill(&mut buffer[..wanted])?;
            if read < wanted {
                // Only the padding may be missing.
                if self.position >= self.data_end {
                    return Ok(());
                }
                return Err(self.cut(self.data_end));
            }
        }
        Ok(())
    }

    /// Fills the buffer as far as the tape goes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = match &mut self.tape {
            Tape::Stream(stream) => {
                read_full(stream, buffer).map_err(|error| judge(error, &self.archive))?
            }
            Tape::File { file, .. } => read_full_at(file, buffer, self.position)
                .map_err(|source| self.archive.unreadable(source))?,
        };
        self.position += read as u64;
        if self.position > self.limits.archive_bytes {
            let reason = format!("it has more than {} bytes", self.limits.archive_bytes);
            return Err(self.archive.limit("archive_bytes", reason));
        }
        Ok(read)
    }

    /// Row 21.
    fn cut(&self, needed: u64) -> super::error::Error {
        self.archive.truncated(format!(
            "it should have at least {needed} bytes, but only {} came",
            self.position
        ))
    }
}

/// Fills the buffer from a place in a file, as far as the file goes.
pub(super) fn read_full_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Sets what must be unset.
fn replace<T>(place: &mut Option<T>, value: T) -> Result<(), ()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(()),
    }
}

/// The text of an `L` or `K` header ends with a NUL, which does not belong to it.
fn text(mut payload: Vec<u8>) -> Vec<u8> {
    if payload.last() == Some(&0) {
        payload.pop();
    }
    payload
}

/// The GNU and the PAX form of a name, which must be the same; without both, that of the header.
fn agreed(
    gnu: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    header: impl FnOnce() -> Vec<u8>,
) -> Option<Vec<u8>> {
    match (gnu, pax) {
        (Some(gnu), Some(pax)) => (gnu == pax).then_some(gnu),
        (Some(one), None) | (None, Some(one)) => Some(one),
        (None, None) => Some(header()),
    }
}

/// Rows 8 and 9: a PAX size fills in for one that the header cannot hold. It never contradicts it (CVE-2025-62518).
fn agreed_size(header: u64, pax: Option<u64>) -> Option<u64> {
    match pax {
        None => Some(header),
        Some(pax) if header == 0 || header == pax => Some(pax),
        Some(_) => None,
    }
}

/// Reads an `x` header (rows 7, 11, 12).
fn extended(payload: &[u8], place: &Place) -> Result<Extended> {
    let mut found = Extended::default();
    let mut seen = std::collections::HashSet::new();
    for (key, value) in records(payload, place)? {
        if !seen.insert(key) {
            return Err(place.unsafe_because("duplicate PAX key"));
        }
        match key {
            b"path" => found.path = Some(value.to_vec()),
            b"linkpath" => found.link_path = Some(value.to_vec()),
            b"size" => {
                let size = pax::decimal(value).ok_or_else(|| {
                    place.invalid("malformed PAX record: its size is not a plain number")
                })?;
                found.size = Some(size);
            }
            key if key.starts_with(b"GNU.sparse.") => {
                return Err(place.unsupported("sparse entry; write the archive without --sparse"));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Row 10: what changes entries may not stand in a global header; other keys say nothing about images.
fn check_global(payload: &[u8], place: &Place) -> Result<()> {
    for (key, _) in records(payload, place)? {
        let changes_entries =
            matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.");
        if changes_entries {
            return Err(place.unsafe_because("global header changes entries"));
        }
    }
    Ok(())
}

fn records<'p>(payload: &'p [u8], place: &Place) -> Result<Vec<(&'p [u8], &'p [u8])>> {
    pax::records(payload).map_err(|reason| place.invalid(format!("malformed PAX record: {reason}")))
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::archive::testing::Tar;

    /// Names and sizes of the members, or nothing if the archive is refused.
    fn members(bytes: &[u8], as_file: bool) -> Option<Vec<(Vec<u8>, u64)>> {
        let tape = if as_file {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            let (file, length) = (Arc::new(file), bytes.len() as u64);
            Tape::File { file, length }
        } else {
            Tape::Stream(Box::new(Cursor::new(bytes.to_vec())))
        };
        let limits = Limits::default();
        let mut walk = Walk::new(tape, &limits, Place::archive("app.tar"));
        let mut found = Vec::new();
        while let Some(member) = walk.next().ok()? {
            let size = match member.node {
                Node::File { size, .. } => size,
                Node::Directory | Node::Symlink { .. } | Node::Hardlink { .. } => 0,
            };
            found.push((member.name, size));
        }
        Some(found)
    }

    /// An archive as a library writes it: GNU headers for long names, PAX records where there are any.
    fn written(entries: &[(String, Vec<u8>, bool)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content, with_records) in entries {
            let mut header = if *with_records {
                let size = content.len().to_string();
                builder
                    .append_pax_extensions([("size", size.as_bytes()), ("path", name.as_bytes())])
                    .unwrap();
                tar::Header::new_ustar()
            } else {
                tar::Header::new_gnu()
            };
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            if *with_records {
                header.set_path("short").unwrap();
                header.set_cksum();
                builder.append(&header, content.as_slice()).unwrap();
            } else {
                builder
                    .append_data(&mut header, name, content.as_slice())
                    .unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    fn any_entries() -> impl Strategy<Value = Vec<(String, Vec<u8>, bool)>> {
        let content = proptest::collection::vec(any::<u8>(), 0..1500);
        proptest::collection::vec(
            (
                "[a-z]{1,9}(/[a-z0-9._-]{1,80}[a-z]){0,3}",
                content,
                any::<bool>(),
            ),
            0..4,
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_a_library_wrote_is_read_as_it_was_meant(entries in any_entries()) {
            let bytes = written(&entries);
            let expected: Vec<(Vec<u8>, u64)> = entries
                .iter()
                .map(|(name, content, _)| (name.clone().into_bytes(), content.len() as u64))
                .collect();
            for as_file in [true, false] {
                prop_assert_eq!(members(&bytes, as_file), Some(expected.clone()));
            }
        }

        /// Whatever is accepted means the same to another reader, and a file the same as a stream.
        #[test]
        fn no_two_readers_disagree_about_a_changed_archive(
            entries in any_entries(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = written(&entries);
            for (position, value) in changes {
                let position = position.index(bytes.len());
                bytes[position] = value;
            }
            crate::archive::fuzzing::archive(&bytes);
        }
    }

    #[test]
    fn the_data_of_a_member_ends_where_it_ends() {
        let bytes = Tar::default().file("a", "first").file("b", "second").end();
        let limits = Limits::default();
        let tape = Tape::Stream(Box::new(Cursor::new(bytes)));
        let mut walk = Walk::new(tape, &limits, Place::archive("app.tar"));
        for expected in [&b"first"[..], b"second"] {
            walk.next().unwrap().unwrap();
            let mut buffer = [0; 100];
            let read = walk.read(&mut buffer).unwrap();
            assert_eq!(&buffer[..read], expected);
            assert_eq!(walk.read(&mut buffer).unwrap(), 0);
        }
        assert!(walk.next().unwrap().is_none());
    }
}
