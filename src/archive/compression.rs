//! How plain layers are compressed where somebody asks for it.

use std::{fmt, ops::RangeInclusive};

use super::outer::Form;

/// The format that layers get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// gzip, which every registry and every engine knows.
    Gzip,
    /// zstd: smaller and several times as fast; engines of before 2021 do not know it.
    Zstd,
}

impl Method {
    /// The levels that can be asked for: those of the format's own tools, without those of zstd that need more memory to
    /// decode than engines give.
    pub const fn levels(self) -> RangeInclusive<u8> {
        match self {
            Self::Gzip => 1..=9,
            Self::Zstd => 1..=19,
        }
    }

    /// The level where none is asked for. Of gzip it is the fastest whose layers are about as small as skopeo's (4 % larger), of
    /// zstd that of its own tool.
    pub const fn default_level(self) -> u8 {
        match self {
            Self::Gzip => 2,
            Self::Zstd => 3,
        }
    }

    pub(super) const fn form(self) -> Form {
        match self {
            Self::Gzip => Form::Gzip,
            Self::Zstd => Form::Zstd,
        }
    }

    /// What decides the bytes besides the level. Other versions may write others, so what an earlier one compressed is not
    /// used in their place: one archive gives one digest with one version, whatever was done before. A test compares the
    /// versions with Cargo.lock.
    const fn encoder(self) -> &'static str {
        match self {
            Self::Gzip => "zlib-rs 0.6.8, blocks of 256 KiB",
            Self::Zstd => "zstd-sys 2.1.3+zstd.1.5.7, frames of 1 MiB",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.form().fmt(formatter)
    }
}

/// What is done to plain layers. Layers that are compressed already stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Compression {
    method: Method,
    level: u8,
}

impl Compression {
    /// Compression at the default level.
    pub const fn new(method: Method) -> Self {
        Self {
            method,
            level: method.default_level(),
        }
    }

    /// Compression at this level; none if the method has no such level.
    pub fn with_level(method: Method, level: u8) -> Option<Self> {
        let is_known = method.levels().contains(&level);
        is_known.then_some(Self { method, level })
    }

    /// The format.
    pub const fn method(self) -> Method {
        self.method
    }

    /// How hard it tries.
    pub const fn level(self) -> u8 {
        self.level
    }

    /// Everything that decides the bytes.
    pub(super) fn fingerprint(self) -> String {
        let Self { method, level } = self;
        format!(
            "{method} level {level}, {} {}, {}",
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            method.encoder()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_names_the_encoders_in_use() {
        let lock = std::fs::read_to_string("Cargo.lock").unwrap();
        for method in [Method::Gzip, Method::Zstd] {
            let package = method.encoder().split(',').next().unwrap();
            let (name, version) = package.split_once(' ').unwrap();
            let package = format!("name = \"{name}\"\nversion = \"{version}\"");
            assert!(lock.contains(&package), "{method}: {package}");
        }
    }

    #[test]
    fn a_method_has_the_levels_of_its_tools_and_no_others() {
        for (method, last) in [(Method::Gzip, 9), (Method::Zstd, 19)] {
            for (level, is_known) in [(0, false), (1, true), (last, true), (last + 1, false)] {
                let compression = Compression::with_level(method, level);
                assert_eq!(compression.is_some(), is_known, "{method} {level}");
            }
            assert!(method.levels().contains(&method.default_level()));
        }
    }
}
