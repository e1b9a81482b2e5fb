//! Bodies that somebody on the way packed although nobody asked for it (registry rule D2): proxies and object storages do,
//! and some only say so (moby#17595, moby#27642, distribution#3754).

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::{HeaderMap, header};

/// So much is unpacked at once: at gzip's best rate, about a thousand, it becomes 4 MiB.
const STEP: usize = 4 * 1024;

/// What an answer says of how its bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentEncoding {
    Gzip,
    /// One that nothing of ours unpacks.
    Other,
}

impl ContentEncoding {
    /// What the headers say; nothing where the bytes are said to be as they are.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::CONTENT_ENCODING)?.as_bytes();
        match value.trim_ascii().to_ascii_lowercase().as_slice() {
            b"" | b"identity" => None,
            b"gzip" | b"x-gzip" => Some(Self::Gzip),
            _ => Some(Self::Other),
        }
    }
}

/// Unpacks a body step by step.
#[derive(Debug)]
pub(super) struct Unpacker {
    decoder: MultiGzDecoder<Vec<u8>>,
    packed: Bytes,
}

impl Unpacker {
    pub(super) fn new() -> Self {
        Self {
            decoder: MultiGzDecoder::new(Vec::new()),
            packed: Bytes::new(),
        }
    }

    /// Gives it more to unpack, once it has nothing left.
    pub(super) fn feed(&mut self, packed: Bytes) {
        self.packed = packed;
    }

    /// The next unpacked piece; nothing when more is to be fed.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.packed.is_empty() {
            let step = self.packed.split_to(STEP.min(self.packed.len()));
            self.decoder.write_all(&step)?;
            if let Some(piece) = self.unpacked() {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// The last piece after all was fed; an error when the packed bytes are incomplete.
    pub(super) fn finish(&mut self) -> io::Result<Option<Bytes>> {
        self.decoder.try_finish()?;
        Ok(self.unpacked())
    }

    fn unpacked(&mut self) -> Option<Bytes> {
        let piece = std::mem::take(self.decoder.get_mut());
        (!piece.is_empty()).then(|| piece.into())
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn packed(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn unpack(packed: &[u8], step: usize) -> io::Result<Vec<u8>> {
        let mut unpacker = Unpacker::new();
        let mut all = Vec::new();
        for piece in packed.chunks(step) {
            unpacker.feed(Bytes::copy_from_slice(piece));
            while let Some(piece) = unpacker.next()? {
                assert!(piece.len() <= 5 * 1024 * 1024, "a bomb opens step by step");
                all.extend_from_slice(&piece);
            }
        }
        while let Some(piece) = unpacker.finish()? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    #[test]
    fn what_was_packed_comes_out_again_however_it_arrives() {
        let zeros = vec![0; 20 << 20];
        for content in [b"".as_slice(), b"layer", &zeros] {
            for step in [1_usize, 100, 1 << 20] {
                let mut twice = packed(content);
                twice.extend(packed(content));
                assert!(unpack(&twice, step).unwrap() == [content, content].concat());
            }
        }
    }

    #[test]
    fn what_is_cut_off_or_not_packed_is_an_error() {
        let whole = packed(b"a layer of some bytes");
        for cut in [1, 5, whole.len() - 1] {
            assert!(unpack(&whole[..cut], 100).is_err(), "{cut}");
        }
        assert!(unpack(b"plain bytes", 100).is_err());
    }

    #[test]
    fn bytes_are_packed_where_an_answer_says_so() {
        for (value, expected) in [
            ("gzip", Some(ContentEncoding::Gzip)),
            (" X-GZIP ", Some(ContentEncoding::Gzip)),
            ("identity", None),
            ("", None),
            ("zstd", Some(ContentEncoding::Other)),
            ("gzip, br", Some(ContentEncoding::Other)),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(header::CONTENT_ENCODING, value.parse().unwrap());
            assert_eq!(ContentEncoding::of(&headers), expected, "{value}");
        }
        assert_eq!(ContentEncoding::of(&HeaderMap::new()), None);
    }
}
