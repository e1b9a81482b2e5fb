//! One header block, read strictly: type, size and names as every reader would understand them, or an error.
//!
//! The crate `tar` knows where the fields lie. Its own readings are lenient where readers disagree (a size field with a sign,
//! a number of 96 bits cut to 64), so numbers are read here.

use tar::Header as Block;

use super::error::{Place, Result};

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;

/// What a header announces; the letters of POSIX and of GNU tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Hardlink,
    Symlink,
    Directory,
    /// `x`: PAX records of the next entry.
    Extended,
    /// `g`: PAX records of all entries that follow.
    Global,
    /// `L`: the name of the next entry.
    LongName,
    /// `K`: the link target of the next entry.
    LongLink,
}

impl Kind {
    /// Whether it is about another entry.
    pub(super) const fn is_extension(self) -> bool {
        matches!(
            self,
            Self::Extended | Self::Global | Self::LongName | Self::LongLink
        )
    }
}

/// A header whose checksum and format are right.
#[derive(Debug)]
pub(super) struct Header {
    block: Block,
    kind: Kind,
    size: u64,
}

impl Header {
    /// Reads a block that is not all zeros. The place is where messages say it lies, without a name.
    pub(super) fn read(bytes: &[u8; BLOCK], place: &dyn Fn(&[u8]) -> Place) -> Result<Self> {
        let block = Block::from_byte_slice(bytes).clone();
        let place = place(&block.path_bytes());
        if !has_right_checksum(bytes) {
            return Err(place.invalid(
                "header checksum: its first block is damaged, or this is not a tar archive",
            ));
        }
        let is_old = bytes[257..265] == [0; 8];
        if !is_old && &bytes[257..265] != b"ustar\x0000" && &bytes[257..265] != b"ustar  \0" {
            return Err(place.invalid("unknown header format"));
        }
        let kind = kind_of(bytes[156], &place)?;
        if is_old && kind.is_extension() {
            return Err(place.unsafe_because("extension in a v7 header"));
        }
        let field = block.as_old().size;
        let size = number(&field).map_err(|reason| place.invalid(reason))?;
        Ok(Self { block, kind, size })
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// The size field; PAX records may say another.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// The name in the header itself.
    pub(super) fn name(&self) -> Vec<u8> {
        self.block.path_bytes().into_owned()
    }

    /// The link target in the header itself.
    pub(super) fn link(&self) -> Vec<u8> {
        self.block
            .link_name_bytes()
            .map(std::borrow::Cow::into_owned)
            .unwrap_or_default()
    }
}

/// Whether the first bytes of a file can be those of a tar archive: of a header, or of an archive without entries.
pub(super) fn may_be_header(head: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK]>::try_from(head) else {
        return false;
    };
    block[257..].starts_with(b"ustar") || *block == [0; BLOCK] || has_right_checksum(block)
}

/// Rows 4 and 7 of the refuse list: what no image needs is not read at all.
fn kind_of(letter: u8, place: &Place) -> Result<Kind> {
    Ok(match letter {
        0 | b'0' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'5' => Kind::Directory,
        b'x' => Kind::Extended,
        b'g' => Kind::Global,
        b'L' => Kind::LongName,
        b'K' => Kind::LongLink,
        b'S' => return Err(place.unsupported("sparse entry; write the archive without --sparse")),
        other => {
            let letter = char::from(other).escape_debug();
            return Err(place.unsupported(format!(
                "entry type '{letter}'; an image archive has files, folders and links only"
            )));
        }
    })
}

/// Row 17: the sum of all bytes, those of the sum itself counted as spaces.
fn has_right_checksum(bytes: &[u8; BLOCK]) -> bool {
    let sum: u64 = bytes
        .iter()
        .enumerate()
        .map(|(position, byte)| match position {
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        })
        .sum();
    number(&bytes[148..156]) == Ok(sum)
}

/// A number field: octal digits, or GNU's base-256 form (rows 15 and 16).
fn number(field: &[u8]) -> Result<u64, &'static str> {
    if field[0] & 0x80 != 0 {
        return binary(field);
    }
    let text = field.trim_ascii_start();
    let digits = text
        .iter()
        .take_while(|byte| matches!(byte, b'0'..=b'7'))
        .count();
    let (digits, rest) = text.split_at(digits);
    let ends_well = rest.iter().all(|byte| matches!(byte, 0 | b' '));
    let starts_well =
        field.iter().take_while(|byte| **byte == b' ').count() == field.len() - text.len();
    if digits.is_empty() || !ends_well || !starts_well {
        return Err("bad size field");
    }
    Ok(digits
        .iter()
        .fold(0, |value, digit| value * 8 + u64::from(digit - b'0')))
}

/// The first bit is the mark; what follows is one big-endian number, of which only sizes of files are accepted.
fn binary(field: &[u8]) -> Result<u64, &'static str> {
    let (head, tail) = field.split_at(field.len() - size_of::<u64>());
    let [mark, between @ ..] = head else {
        return Err("size out of range");
    };
    let value = tail
        .iter()
        .fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));
    let fits = *mark == 0x80 && between.iter().all(|byte| *byte == 0);
    if !fits || i64::try_from(value).is_err() {
        return Err("size out of range");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_field(text: &[u8]) -> Result<u64, &'static str> {
        let mut field = [0; 12];
        field[..text.len()].copy_from_slice(text);
        number(&field)
    }

    /// Row 16.
    #[test]
    fn a_size_is_octal_digits_and_nothing_else() {
        for (text, expected) in [
            (&b"00000000017"[..], 15),
            (b"       17", 15),
            (b"17 ", 15),
            (b"17\0  \0", 15),
            (b"777777777777", 0o777_777_777_777),
            (b"0", 0),
        ] {
            assert_eq!(size_field(text), Ok(expected), "{text:?}");
        }
        for text in [
            &b""[..],
            b" ",
            b"+17",
            b"-17",
            b"1a",
            b"8",
            b"17\x0018",
            b"1 7",
            b"\t17",
            b"\x00017",
            b"0x17",
        ] {
            assert_eq!(size_field(text), Err("bad size field"), "{text:?}");
        }
    }

    /// Rows 9 and 15.
    #[test]
    fn a_binary_size_is_that_of_a_file() {
        let field = |mark: u8, between: u8, value: u64| {
            let mut field = [between; 12];
            field[0] = mark;
            field[4..].copy_from_slice(&value.to_be_bytes());
            number(&field)
        };
        assert_eq!(field(0x80, 0, 9 << 30), Ok(9 << 30));
        assert_eq!(field(0x80, 0, i64::MAX as u64), Ok(i64::MAX as u64));
        for refused in [
            field(0x80, 0, 1 << 63),
            field(0x80, 1, 5),
            field(0x81, 0, 5),
            field(0xff, 0xff, u64::MAX),
        ] {
            assert_eq!(refused, Err("size out of range"));
        }
    }
}
