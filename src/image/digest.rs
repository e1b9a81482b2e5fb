//! Content digests: the only name under which bytes are stored, compared and trusted.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest as _, Sha256, Sha512};

use super::error::{Error, Result, shown};

/// The registered names of algorithms have at most nine characters; a longer one fits no message.
const MAX_ALGORITHM_LENGTH: usize = 64;

/// The algorithms of the image specification that registries use (image-spec, "Registered algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// `sha256`, 64 hex digits.
    Sha256,
    /// `sha512`, 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hex digits a digest of this algorithm has.
    pub const fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A digest `algorithm:hex` in its one canonical spelling, so that equality of values is equality of content.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Box<str>,
}

impl Digest {
    /// The SHA-256 digest of `bytes`, the one a registry uses when nobody asks for another.
    pub fn of(bytes: &[u8]) -> Self {
        Self::with_algorithm(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes` by the algorithm another digest used.
    pub fn with_algorithm(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The bare hex digits: the file name of a blob in the cache.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidDigest {
            value: shown(value),
            reason,
        };
        let (name, hex) = value
            .split_once(':')
            .ok_or_else(|| invalid("there is no ':'"))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(invalid("the algorithm is not supported")),
        };
        if hex.len() != algorithm.hex_length() {
            return Err(invalid(
                "the number of hex digits does not fit the algorithm",
            ));
        }
        if !hex
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(invalid("hex digits are 0-9 and a-f"));
        }
        Ok(Self {
            algorithm,
            hex: hex.into(),
        })
    }
}

/// The algorithm of a digest that is well formed (image-spec, "Digests"), but by none of ours.
pub(super) fn unsupported_algorithm(value: &str) -> Option<&str> {
    let (name, encoded) = value.split_once(':')?;
    let is_component = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_encoded = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'=' | b'_' | b'-');
    let is_well_formed = name.len() <= MAX_ALGORITHM_LENGTH
        && name.split(['+', '.', '_', '-']).all(is_component)
        && !encoded.is_empty()
        && encoded.bytes().all(is_encoded);
    (is_well_formed && !matches!(name, "sha256" | "sha512")).then_some(name)
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Hashes a stream of bytes piece by piece.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher that has seen no byte yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes seen.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => Digest {
                algorithm: Algorithm::Sha256,
                hex: hex(&state.finalize()),
            },
            Self::Sha512(state) => Digest {
                algorithm: Algorithm::Sha512,
                hex: hex(&state.finalize()),
            },
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Hasher").finish_non_exhaustive()
    }
}

/// Lower-case hex digits of `bytes`.
fn hex(bytes: &[u8]) -> Box<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text.into_boxed_str()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From RFC 6234: the digests of the empty message.
    const EMPTY_256: &str =
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_digest_of_nothing_is_the_published_one() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY_256);
        assert!(
            Digest::with_algorithm(Algorithm::Sha512, b"")
                .to_string()
                .starts_with(
                    "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
                )
        );
    }

    #[test]
    fn hashing_in_pieces_equals_hashing_at_once() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut hasher = Hasher::new(algorithm);
            hasher.update(b"some ");
            hasher.update(b"bytes");
            assert_eq!(
                hasher.finish(),
                Digest::with_algorithm(algorithm, b"some bytes")
            );
        }
    }

    #[test]
    fn other_spellings_of_a_digest_are_refused() {
        let upper = EMPTY_256.replace("e3b0", "E3B0");
        for value in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &upper,
            &format!("{EMPTY_256} "),
        ] {
            let error = value.parse::<Digest>().unwrap_err();
            assert!(
                error.to_string().contains("sha256:<64 hex digits>"),
                "{value}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_digest_survives_printing_and_parsing(bytes in proptest::collection::vec(any::<u8>(), 0..64), long: bool) {
            let algorithm = if long { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let digest = Digest::with_algorithm(algorithm, &bytes);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest.clone());
            let json = serde_json::to_string(&digest).unwrap();
            prop_assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }

        #[test]
        fn parsing_any_text_gives_a_canonical_digest_or_an_error(text in ".{0,140}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }
}
