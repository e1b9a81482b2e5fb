//! Platforms of the children of an index.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::error::{Error, shown};

/// `os/architecture[/variant]` (image-spec, image index, `platform`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// Operating system, for example `linux`.
    pub os: String,
    /// Architecture, for example `arm64`.
    pub architecture: String,
    /// Variant, for example `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidPlatform {
            value: shown(value),
        };
        let component = |part: Option<&str>| {
            part.filter(|part| {
                !part.is_empty()
                    && part
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            })
            .map(str::to_owned)
            .ok_or_else(invalid)
        };
        let mut parts = value.split('/');
        let (os, architecture) = (component(parts.next())?, component(parts.next())?);
        let variant = parts.next().map(|part| component(Some(part))).transpose()?;
        if parts.next().is_some() {
            return Err(invalid());
        }
        Ok(Self {
            os,
            architecture,
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(formatter, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_survive_printing_and_parsing() {
        for value in ["linux/amd64", "linux/arm64/v8", "windows/amd64"] {
            assert_eq!(value.parse::<Platform>().unwrap().to_string(), value);
        }
    }

    #[test]
    fn incomplete_or_overlong_platforms_are_refused() {
        for value in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/arm64/v8/x",
            "linux/amd 64",
        ] {
            assert!(value.parse::<Platform>().is_err(), "{value}");
        }
    }
}
