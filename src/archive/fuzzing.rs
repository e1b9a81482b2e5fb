//! What must hold for any bytes that come as an archive or as a part of one.

#![expect(
    clippy::expect_used,
    reason = "a property that does not hold ends the process"
)]

use std::{
    io::{self, Cursor, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cache::{Cache, Import},
    image::{Algorithm, Digest, ImageName, Platform, RawManifest, Tag},
    output::OutputManager,
};

use super::{
    configs::Planning,
    entries::{At, Entries},
    error::{Error, Place, Result},
    header::BLOCK,
    json::{Config, LayoutIndex, check_digests, elements, parse},
    limits::Limits,
    names::normalise,
    outer::{Form, Source, judge},
    pax::records,
    plan::plan,
    walk::{Member, Node, Tape, Walk},
    windows::Room,
};

/// Far below those of users, so that small inputs meet them too.
const fn limits() -> Limits {
    Limits {
        name_length: 512,
        name_bytes: 16 << 10,
        entries: 64,
        archive_bytes: 1 << 20,
        extension_header: 8 << 10,
        manifest_json: 64 << 10,
        config_json: 64 << 10,
        config_bytes: 128 << 10,
        manifest_bytes: 128 << 10,
        images: 8,
        descriptors: 64,
        index_depth: 4,
        expanded_bytes: 1 << 20,
        expansion_factor: 100,
        zstd_window_log: 20,
        layers_at_once: 1,
    }
}

fn place() -> Place {
    Place::archive("app.tar")
}

/// An archive is refused, or every reader finds the same in it: we in a file, we in a stream, and the crate `tar`. What it
/// holds lies inside of it, and so do the images that are found in it.
pub(crate) fn archive(bytes: &[u8]) {
    read_in_every_way(bytes);
    // Hardly any change keeps the checksum of a header; those that know of it must do no harm either.
    read_in_every_way(&with_right_checksums(bytes));
}

fn read_in_every_way(bytes: &[u8]) {
    let length = bytes.len() as u64;
    let limits = limits();
    let in_stream = members(stream(bytes), &limits);
    let in_file = members(file(bytes), &limits);
    assert_eq!(
        in_file.is_ok(),
        in_stream.is_ok(),
        "{in_file:?}, {in_stream:?}"
    );
    let (Ok(members), Ok(others)) = (in_file, in_stream) else {
        return;
    };
    assert_eq!(members.len(), others.len());
    let mut end = 0;
    for (member, other) in members.iter().zip(&others) {
        assert_eq!((&member.name, &member.node), (&other.name, &other.node));
        assert!(member.offset >= end && member.offset < length);
        assert!(is_key(&member.name), "{member:?}");
        end = member.offset + BLOCK as u64;
        if let Node::File { size, data } = member.node {
            assert!(data >= end);
            end = data.checked_add(size).expect("sizes are those of files");
            assert!(end <= length, "{member:?}");
        }
    }
    assert!(members.len() as u64 <= limits.entries);
    let names = members.iter().map(|member| member.name.len() as u64);
    assert!(names.sum::<u64>() <= limits.name_bytes);
    if let Some(expected) = members_by_the_crate(bytes) {
        let found: Vec<Found> = members.iter().map(Found::of).collect();
        assert_eq!(found, expected);
    }
    let (in_file, in_stream) = (images(file(bytes), length), images(stream(bytes), length));
    assert_eq!(in_file.ok(), in_stream.ok());
}

fn file(bytes: &[u8]) -> Tape {
    let file = tempfile::tempfile().expect("a temporary file");
    file.write_all_at(bytes, 0).expect("room for an archive");
    Tape::File {
        file: Arc::new(file),
        length: bytes.len() as u64,
    }
}

fn stream(bytes: &[u8]) -> Tape {
    Tape::Stream(Box::new(Cursor::new(bytes.to_vec())))
}

/// Goes through the archive, reading what is in its files.
fn members(tape: Tape, limits: &Limits) -> Result<Vec<Member>> {
    let mut walk = Walk::new(tape, limits, place());
    let mut members = Vec::new();
    let mut buffer = [0; 4096];
    while let Some(member) = walk.next()? {
        while walk.read(&mut buffer)? > 0 {}
        members.push(member);
    }
    Ok(members)
}

/// Whether a name is the canonical form of one that stays inside.
fn is_key(name: &[u8]) -> bool {
    name.is_empty()
        || normalise(name, &place()).is_ok_and(|key| key == name)
            && name
                .split(|byte| *byte == b'/')
                .all(|part| !matches!(part, b"" | b"." | b".."))
}

/// What two readers of an archive can be compared by: name, bytes and place of the data, target of a link.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    name: Vec<u8>,
    data: Option<(u64, u64)>,
    target: Option<Vec<u8>>,
}

impl Found {
    fn of(member: &Member) -> Self {
        let (data, target) = match &member.node {
            Node::File { size, data } => (Some((*size, *data)), None),
            Node::Directory => (None, None),
            Node::Symlink { target } | Node::Hardlink { target } => (None, Some(target.clone())),
        };
        Self {
            name: member.name.clone(),
            data,
            target,
        }
    }
}

/// The same by the crate `tar`, which puts extension headers together itself. None where it refuses the archive, and where it
/// is known to be wrong: it takes PAX records apart by lines, which a value may hold.
fn members_by_the_crate(bytes: &[u8]) -> Option<Vec<Found>> {
    let mut archive = tar::Archive::new(bytes);
    let mut found = Vec::new();
    for entry in archive.entries().ok()? {
        let mut entry = entry.ok()?;
        if let Some(mut records) = entry.pax_extensions().ok()?
            && records.any(|record| record.is_err())
        {
            return None;
        }
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let path = entry.path_bytes();
        let is_file = (kind.is_file() || kind.is_contiguous()) && !path.ends_with(b"/");
        let is_link = kind.is_symlink() || kind.is_hard_link();
        found.push(Found {
            name: normalise(&path, &place()).ok()?,
            data: is_file.then(|| (entry.size(), entry.raw_file_position())),
            target: is_link.then(|| entry.link_name_bytes().unwrap_or_default().into_owned()),
        });
    }
    Some(found)
}

/// Makes headers of all blocks that look like one.
fn with_right_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block[257..].starts_with(b"ustar") {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

/// An image as far as two ways to read it can be compared.
type Image = (Vec<ImageName>, Option<Tag>, Vec<Platform>, Option<Digest>);

/// The images of an archive, whose blobs all lie inside of it.
fn images(tape: Tape, length: u64) -> Result<Vec<Image>> {
    DESK.with(|desk| {
        let (limits, spool) = (limits(), desk.import.spool());
        let entries = Entries::read(tape, &place(), &limits, &spool, &mut || {})?;
        let planning = Planning {
            entries: &entries,
            limits: &limits,
            spool: &spool,
        };
        let (planned, _) = plan(planning)?;
        assert!(planned.len() <= 2 * limits.images);
        planned
            .into_iter()
            .map(|image| {
                for blob in image.source.blobs() {
                    if let At::Archive { data, .. } = blob.content.at {
                        assert!(data + blob.content.size <= length);
                    }
                    let bytes = blob.content.read_small(&place(), length, "length")?;
                    assert_eq!(bytes.len() as u64, blob.content.size);
                }
                let digest = image.source.digest(&place())?;
                Ok((image.names, image.tag_only, image.platforms, digest))
            })
            .collect()
    })
}

/// Where streams are written to, once for all archives: opening a cache takes longer than reading one.
struct Desk {
    import: Import,
    _folder: TempDir,
}

thread_local! {
    static DESK: Desk = Desk::new();
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let cache = Cache::open(folder.path(), OutputManager::silent()).expect("a cache");
        let import = runtime.block_on(cache.import()).expect("an import");
        Self {
            import,
            _folder: folder,
        }
    }
}

/// Packed bytes are refused, or expand to the same however they come, and never to more than the limits allow. The blame is
/// never on the disk.
pub(crate) fn packed(bytes: &[u8]) {
    let at_once = expanded(bytes, bytes);
    let in_bytes = expanded(bytes, OneByOne(bytes));
    assert_eq!(at_once.as_ref().ok(), in_bytes.as_ref().ok());
    for refused in [&at_once, &in_bytes]
        .into_iter()
        .filter_map(|result| result.as_ref().err())
    {
        assert!(
            !matches!(refused, Error::ArchiveUnreadable { .. }),
            "{refused}"
        );
    }
    let Ok(plain) = at_once else { return };
    let expected = match Form::of(bytes) {
        Form::Plain => Ok(bytes.to_vec()),
        Form::Zstd => zstd::decode_all(bytes),
        Form::Gzip => {
            let mut plain = Vec::new();
            let read = flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain);
            read.map(|_| plain)
        }
        other @ (Form::Xz | Form::Bzip2) => unreachable!("there is no decoder of {other}"),
    };
    assert_eq!(plain, expected.expect("another reader accepts it too"));
}

fn expanded(bytes: &[u8], source: impl Read + Send) -> Result<Vec<u8>> {
    let limits = limits();
    let (form, length) = (Form::of(bytes), bytes.len() as u64);
    let most = limits.expanded_bytes.max(limits.expansion_factor * length);
    let room = Room::of(form, &limits, || Ok(()))?;
    let mut plain = Vec::new();
    let read = form
        .decoder(Source(source), Some(length), &limits, room)
        .and_then(|mut decoder| decoder.read_to_end(&mut plain));
    assert!(plain.len() as u64 <= most || form == Form::Plain);
    read.map_err(|error| judge(error, &place()))?;
    Ok(plain)
}

/// Gives a byte at a time, as a slow pipe does.
struct OneByOne<'a>(&'a [u8]);

impl Read for OneByOne<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(1);
        self.0.read(&mut buffer[..most])
    }
}

/// Records are refused, or put together again they are the payload, and the crate `tar` agrees where it can read them: it
/// takes them apart by lines, which a value may hold.
pub(crate) fn pax(payload: &[u8]) {
    let Ok(records) = records(payload) else {
        return;
    };
    let mut rest = payload;
    for (key, value) in &records {
        let content = [b" ", *key, b"=", value, b"\n"].concat();
        // Nine bytes with the digit 9, or ten with the digits of 10: both are right.
        let is_right = |digits: &usize| (content.len() + digits).to_string().len() == *digits;
        let written = (1..20).filter(is_right).map(|digits| {
            let length = (content.len() + digits).to_string();
            [length.as_bytes(), &content].concat()
        });
        let behind = { written }.find_map(|record| rest.strip_prefix(record.as_slice()));
        rest = behind.expect("a record with its length");
    }
    assert!(rest.is_empty());
    let others: Option<Vec<(&[u8], &[u8])>> = tar::PaxExtensions::new(payload)
        .map(|record| {
            record
                .ok()
                .map(|record| (record.key_bytes(), record.value_bytes()))
        })
        .collect();
    if let Some(others) = others {
        assert_eq!(records, others);
    }
}

/// The JSON documents of an archive are refused, or taken as a reader takes them who has no types: as many parts, the same
/// words. A manifest that is kept names digests only that were judged.
pub(crate) fn documents(bytes: &[u8]) {
    let document = serde_json::from_slice::<Value>(bytes).ok();
    let length = |pointer: &str| {
        let list = document.as_ref().map(|document| document.pointer(pointer));
        list.map(|list| list.and_then(Value::as_array).map_or(0, Vec::len))
    };
    let agrees = |found: usize, pointer: &str| {
        let expected = length(pointer);
        assert!(
            expected.is_none_or(|expected| expected == found),
            "{pointer}: {found}, {expected:?}"
        );
    };
    if let Ok(elements) = elements(bytes, &place()) {
        agrees(elements.len(), "");
        for (number, element) in elements.iter().enumerate() {
            let config = document
                .as_ref()
                .map(|document| &document[number]["Config"]);
            assert!(config.is_none_or(|config| *config == element.config));
            agrees(
                element.layers.as_ref().map_or(0, Vec::len),
                &format!("/{number}/Layers"),
            );
            agrees(
                element.repo_tags.as_ref().map_or(0, Vec::len),
                &format!("/{number}/RepoTags"),
            );
        }
    }
    if let Ok(config) = parse::<Config>(bytes, &place()) {
        if let Ok(diff_ids) = config.diff_ids(&place()) {
            agrees(diff_ids.map_or(0, |list| list.len()), "/rootfs/diff_ids");
        }
        if let Ok(Some(platform)) = config.platform(&place()) {
            let text = platform.to_string();
            assert!(!platform.os.is_empty() && !platform.architecture.is_empty());
            assert!(text.len() <= 3 * 255 + 2, "{text}");
        }
    }
    if let Ok(index) = parse::<LayoutIndex>(bytes, &place()) {
        agrees(index.manifests.map_or(0, |list| list.len()), "/manifests");
    }
    let kept = RawManifest::new(bytes.to_vec().into(), None, Algorithm::Sha256);
    if kept.is_ok() {
        assert!(check_digests(bytes, &place()).is_ok());
    }
}
