//! What is around the bytes: compression, found by its first bytes and never by a name, and undone within limits.

use std::{
    fmt,
    io::{self, BufReader, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::bufread::MultiGzDecoder;

use super::{
    error::{Error, Place},
    limits::Limits,
    windows::Room,
};

/// Bytes that tell every form apart.
pub(super) const MAGIC: usize = 10;

/// What decoders read at once.
const CHUNK: usize = 128 * 1024;

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

impl Form {
    /// By the first bytes (archive reference part 2, step 1).
    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // Skippable frames may stand before the data.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // The first letters alone could be the name of the first file in a plain layer.
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ]
            | [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x17,
                0x72,
                0x45,
                0x38,
                0x50,
                0x90,
                ..,
            ] => Self::Bzip2,
            _ => Self::Plain,
        }
    }

    /// The decoder of the form, which gives at most what the limits allow; it keeps `room`, which is that of this form.
    pub(super) fn decoder<'a>(
        self,
        packed: impl Read + Send + 'a,
        known_size: Option<u64>,
        limits: &Limits,
        room: Room,
    ) -> io::Result<Box<dyn Read + Send + 'a>> {
        let consumed = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner: packed,
            bytes: Arc::clone(&consumed),
        };
        let buffered = BufReader::with_capacity(CHUNK, counted);
        let decoder: Box<dyn Read + Send + 'a> = match self {
            Self::Plain => return Ok(Box::new(buffered)),
            // Not GzDecoder, which stops in silence after the first of several members.
            Self::Gzip => Box::new(MultiGzDecoder::new(buffered)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
                decoder.window_log_max(limits.zstd_window_log)?;
                Box::new(decoder)
            }
            Self::Xz | Self::Bzip2 => return Err(io::Error::other(Unreadable(self))),
        };
        Ok(Box::new(Capped {
            inner: decoder,
            consumed,
            known_size,
            produced: 0,
            floor: limits.expanded_bytes,
            factor: limits.expansion_factor,
            _room: room,
        }))
    }
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// A form without decoder.
#[derive(Debug, thiserror::Error)]
#[error("compression {0}; decompress it first, or use gzip or zstd")]
struct Unreadable(Form);

/// Row 28: more bytes than any honest compression gives.
#[derive(Debug, thiserror::Error)]
#[error("it expands beyond {0} bytes, more than {1} times its size")]
struct Bomb(u64, u64);

/// A failure of the file or pipe itself, to be told from one of the decoder above it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct SourceFailed(io::Error);

/// Marks what the system says, below all decoders.
#[derive(Debug)]
pub(super) struct Source<R>(pub(super) R);

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(source_failed)
    }
}

/// Marks an error of the system; an interruption stays one, since it means to try again.
pub(super) fn source_failed(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::Interrupted => error,
        kind => io::Error::new(kind, SourceFailed(error)),
    }
}

/// Counts what is read.
#[derive(Debug)]
pub(super) struct Counted<R> {
    pub(super) inner: R,
    pub(super) bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Stops a decompression bomb.
struct Capped<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
    known_size: Option<u64>,
    produced: u64,
    floor: u64,
    factor: u64,
    // Behind the decoder, whose memory is free before this is given back.
    _room: Room,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.produced += read as u64;
        if self.produced > self.floor {
            let packed = self
                .known_size
                .unwrap_or_else(|| self.consumed.load(Ordering::Relaxed));
            let cap = packed.saturating_mul(self.factor).max(self.floor);
            if self.produced > cap {
                return Err(io::Error::other(Bomb(cap, self.factor)));
            }
        }
        Ok(read)
    }
}

/// What an error of a reader above means for the archive: the file failed, or its bytes are wrong.
pub(super) fn judge(error: io::Error, place: &Place) -> Error {
    let kind = error.kind();
    let text = error.to_string();
    match error.downcast::<SourceFailed>() {
        Ok(SourceFailed(source)) => place.unreadable(source),
        Err(error) if is::<Bomb>(&error) => place.limit("expansion_factor", text),
        Err(error) if is::<Unreadable>(&error) => place.unsupported(text),
        Err(_) if kind == io::ErrorKind::UnexpectedEof => {
            place.truncated("its compressed data is cut off")
        }
        // zstd's own words for a frame beyond window_log_max.
        Err(_) if text.contains("too much memory") => place.limit(
            "zstd_window_log",
            "its zstd data needs too much memory to decode; compress it again without --long and --ultra",
        ),
        Err(_) => place.invalid(format!(
            "its compressed data is damaged ({})",
            super::error::escaped(text.as_bytes())
        )),
    }
}

fn is<E: std::error::Error + 'static>(error: &io::Error) -> bool {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<E>())
        .is_some()
}

/// Reads until the buffer is full or the end has come.
pub(super) fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::archive::testing::{gzip, zstd};

    fn expand(packed: &[u8], limits: &Limits) -> Result<Vec<u8>, Error> {
        let place = Place::archive("app.tar");
        let mut plain = Vec::new();
        let form = Form::of(packed);
        let room = Room::of(form, limits, || Ok(()))?;
        form.decoder(Source(packed), Some(packed.len() as u64), limits, room)
            .and_then(|mut decoder| decoder.read_to_end(&mut plain))
            .map_err(|error| judge(error, &place))?;
        Ok(plain)
    }

    #[test]
    fn the_form_is_found_by_the_first_bytes() {
        for (bytes, form) in [
            (&gzip(b"x")[..], Form::Gzip),
            (&zstd(b"x"), Form::Zstd),
            (b"\x5a\x2a\x4d\x18", Form::Zstd),
            (b"\xfd7zXZ\0", Form::Xz),
            (b"BZh91AY&SY", Form::Bzip2),
            (b"BZh91AY.txt\0", Form::Plain),
            (b"BZh", Form::Plain),
            (b"\x1f", Form::Plain),
            (b"", Form::Plain),
        ] {
            assert_eq!(Form::of(bytes), form, "{bytes:?}");
        }
    }

    /// The must-pass list of archive reference part 4.
    #[test]
    fn several_members_and_skippable_frames_are_read() {
        let limits = Limits::default();
        let members = [gzip(b"one "), gzip(b""), gzip(b"two")].concat();
        assert_eq!(expand(&members, &limits).unwrap(), b"one two");
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        let frames = [
            skippable,
            &zstd(b"one ")[..],
            skippable,
            &zstd(b"two"),
            skippable,
        ]
        .concat();
        assert_eq!(expand(&frames, &limits).unwrap(), b"one two");
    }

    /// Row 27.
    #[test]
    fn a_stream_that_is_cut_or_goes_on_with_garbage_is_refused() {
        let limits = Limits::default();
        let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        for packed in [gzip(&content), zstd(&content)] {
            for cut in [packed.len() - 1, packed.len() / 2, 9] {
                let error = expand(&packed[..cut], &limits).unwrap_err();
                assert!(matches!(error, Error::ArchiveTruncated { .. }), "{error}");
            }
            for garbage in [&[0_u8; 512][..], b"garbage behind the end"] {
                let error = expand(&[&packed, garbage].concat(), &limits).unwrap_err();
                assert!(matches!(error, Error::ArchiveInvalid { .. }), "{error}");
            }
        }
        // gzip has a checksum, zstd an optional one: of a layer, its diff_id tells.
        let mut flipped = gzip(&content);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x55;
        let error = expand(&flipped, &limits).unwrap_err();
        assert!(matches!(error, Error::ArchiveInvalid { .. }), "{error}");
    }

    /// Row 28.
    #[test]
    fn a_bomb_is_stopped_and_what_is_small_may_grow() {
        let mut limits = Limits {
            expanded_bytes: 1 << 20,
            expansion_factor: 10,
            ..Limits::default()
        };
        let zeros = vec![0; 4 << 20];
        for packed in [gzip(&zeros), zstd(&zeros)] {
            let error = expand(&packed, &limits).unwrap_err();
            assert!(matches!(error, Error::ArchiveLimit { .. }), "{error}");
            assert!(error.to_string().contains("expansion_factor"), "{error}");
            limits.expanded_bytes = 4 << 20;
            assert_eq!(expand(&packed, &limits).unwrap().len(), 4 << 20);
            limits.expanded_bytes = 1 << 20;
        }
    }

    #[test]
    fn a_zstd_frame_that_wants_too_much_memory_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(20).unwrap();
        encoder.write_all(&vec![7; 3 << 20]).unwrap();
        let packed = encoder.finish().unwrap();
        let mut limits = Limits::default();
        assert_eq!(expand(&packed, &limits).unwrap().len(), 3 << 20);
        limits.zstd_window_log = 19;
        let error = expand(&packed, &limits).unwrap_err();
        assert!(matches!(error, Error::ArchiveLimit { .. }), "{error}");
    }

    /// `BuildKit` and podman write windows of up to 32 MiB at their highest level; `zstd --long` asks for more.
    #[test]
    fn windows_of_container_tools_are_decoded_and_larger_ones_refused_with_the_remedy() {
        for (log, is_fine) in [(23, true), (25, true), (26, false), (27, false)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(b"content").unwrap();
            let packed = encoder.finish().unwrap();
            match expand(&packed, &Limits::default()) {
                Ok(plain) => assert!(is_fine && plain == b"content", "{log}"),
                Err(error) => {
                    assert!(!is_fine, "{log}: {error}");
                    assert!(matches!(error, Error::ArchiveLimit { .. }), "{error}");
                    let text = error.to_string();
                    assert!(text.contains("limit zstd_window_log"), "{text}");
                    assert!(text.contains("without --long"), "{text}");
                }
            }
        }
    }

    #[test]
    fn a_form_without_decoder_names_the_remedy() {
        for packed in [&b"\xfd7zXZ\0"[..], b"BZh91AY&SY"] {
            let error = expand(packed, &Limits::default()).unwrap_err();
            assert!(matches!(error, Error::ArchiveUnsupported { .. }), "{error}");
            assert!(error.to_string().contains("decompress it first"), "{error}");
        }
    }

    #[test]
    fn a_failure_of_the_disk_is_not_blamed_on_the_archive() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(5))
            }
        }
        let place = Place::archive("app.tar");
        let magic = gzip(b"x");
        let broken = magic[..10].chain(Source(Broken));
        let limits = Limits::default();
        let room = Room::of(Form::Gzip, &limits, || Ok(())).unwrap();
        let mut decoder = Form::Gzip.decoder(broken, None, &limits, room).unwrap();
        let error = decoder.read_to_end(&mut Vec::new()).unwrap_err();
        let error = judge(error, &place);
        assert!(matches!(error, Error::ArchiveUnreadable { .. }), "{error}");
    }
}
