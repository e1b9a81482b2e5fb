//! Names: hosts, repository paths, tags, and references to one manifest.
//!
//! Each is a type of its own, so that arguments cannot be swapped, and each can only be built by parsing: whoever holds one
//! may put it into a URL or a file path. Names are never repaired (archive reference 5.6): `..`, empty components, upper
//! case in a path or an overlong tag are refused.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{
    Digest,
    error::{Error, Result, shown},
};

/// Host and name together; many clients refuse more (distribution specification, "Pulling manifests").
const MAX_REPOSITORY_LENGTH: usize = 255;

/// A tag may have at most 128 characters (distribution specification).
const MAX_TAG_LENGTH: usize = 128;

/// A registry host with an optional port, exactly as written: folding its case would turn `MYHOST/app` into a Docker Hub
/// name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Box<str>);

impl Host {
    /// The host as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host without port, IPv6 without brackets.
    pub fn name(&self) -> &str {
        if let Some(bracketed) = self.0.strip_prefix('[') {
            return bracketed.split(']').next().unwrap_or_default();
        }
        self.0.rsplit_once(':').map_or(&*self.0, |(name, _)| name)
    }

    /// Whether the name or address is this machine's own loopback.
    pub fn is_loopback(&self) -> bool {
        let name = self.name();
        name.eq_ignore_ascii_case("localhost")
            || name
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    }

    /// Whether the first component of a name is a host rather than a part of the path (distribution, `reference`).
    fn is_host_component(component: &str) -> bool {
        component == "localhost"
            || component.contains(['.', ':'])
            || component.bytes().any(|byte| byte.is_ascii_uppercase())
    }
}

impl FromStr for Host {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidHost {
            value: shown(value),
            reason,
        };
        let port = if let Some(rest) = value.strip_prefix('[') {
            let (address, after) = rest
                .split_once(']')
                .ok_or_else(|| invalid("']' is missing"))?;
            address
                .parse::<Ipv6Addr>()
                .map_err(|_| invalid("the text in brackets is not an IPv6 address"))?;
            match after.strip_prefix(':') {
                Some(port) => Some(port),
                None if after.is_empty() => None,
                None => return Err(invalid("after ']' only :port may follow")),
            }
        } else {
            let (name, port) = match value.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (value, None),
            };
            if !name.split('.').all(is_host_label) {
                return Err(invalid("labels are letters, digits and inner '-'"));
            }
            port
        };
        if let Some(port) = port {
            let digits_only = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            if !digits_only || port.parse::<u16>().unwrap_or(0) == 0 {
                return Err(invalid("a port is a number from 1 to 65535"));
            }
        }
        Ok(Self(value.into()))
    }
}

/// A label of a host name: letters, digits and inner hyphens.
fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The name of a repository inside its registry, for example `library/ubuntu`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryPath(Box<str>);

impl RepositoryPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component: `{name}` of a destination template.
    pub fn last_component(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// Whether there is only one component, as in `ubuntu`.
    pub fn is_single_component(&self) -> bool {
        !self.0.contains('/')
    }
}

impl FromStr for RepositoryPath {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidRepository {
            value: shown(value),
            reason,
        };
        if value.is_empty() {
            return Err(invalid("it is empty"));
        }
        if value.len() > MAX_REPOSITORY_LENGTH {
            return Err(invalid("it has more than 255 characters"));
        }
        if !value.split('/').all(is_path_component) {
            return Err(invalid(
                "components are lower-case letters and digits, joined by '.', '_', '__' or '-'",
            ));
        }
        Ok(Self(value.into()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` (distribution specification).
fn is_path_component(component: &str) -> bool {
    let mut rest = component;
    loop {
        let word = rest
            .bytes()
            .take_while(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            .count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = match rest.as_bytes() {
            [b'_', b'_', ..] => 2,
            [b'.' | b'_', ..] => 1,
            [b'-', ..] => rest.bytes().take_while(|byte| *byte == b'-').count(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

/// A repository as people name it: a path, and the host where they wrote one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    host: Option<Host>,
    path: RepositoryPath,
}

impl Repository {
    /// Puts host and path together; both were checked, their joint length was not.
    pub fn new(host: Option<Host>, path: RepositoryPath) -> Result<Self> {
        let repository = Self { host, path };
        let text = repository.to_string();
        if text.len() > MAX_REPOSITORY_LENGTH {
            return Err(Error::InvalidRepository {
                value: shown(&text),
                reason: "host and path together have more than 255 characters",
            });
        }
        Ok(repository)
    }

    /// The host, if the name has one.
    pub const fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// The path without the host.
    pub const fn path(&self) -> &RepositoryPath {
        &self.path
    }
}

impl FromStr for Repository {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        match value.split_once('/') {
            Some((first, path)) if Host::is_host_component(first) => {
                Self::new(Some(first.parse()?), path.parse()?)
            }
            _ => Self::new(None, value.parse()?),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(formatter, "{host}/")?;
        }
        write!(formatter, "{}", self.path)
    }
}

/// A tag: a name that may move from one manifest to another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Box<str>);

impl Tag {
    /// The tag under which clients keep the list of what refers to a manifest, where the registry does not (distribution-spec,
    /// "Referrers Tag Schema"): algorithm and at most 64 digits.
    pub fn of_referrers(subject: &Digest) -> Self {
        let algorithm = subject.algorithm().name();
        Self(format!("{algorithm}-{:.64}", subject.hex()).into())
    }

    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        let mut bytes = value.bytes();
        let first_fits = bytes
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let others_fit =
            bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !first_fits || !others_fit || value.len() > MAX_TAG_LENGTH {
            return Err(Error::InvalidTag {
                value: shown(value),
            });
        }
        Ok(Self(value.into()))
    }
}

/// What names one manifest in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// By a tag, which may move.
    Tag(Tag),
    /// By its digest, which never changes.
    Digest(Digest),
}

impl Reference {
    /// The digest, when the reference is one.
    pub const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(digest),
        }
    }

    /// What stands between a repository and this reference: `:` before a tag, `@` before a digest.
    pub const fn separator(&self) -> char {
        match self {
            Self::Tag(_) => ':',
            Self::Digest(_) => '@',
        }
    }

    /// The tag, when the reference is one.
    pub const fn tag(&self) -> Option<&Tag> {
        match self {
            Self::Tag(tag) => Some(tag),
            Self::Digest(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        // A tag cannot hold a colon, a digest cannot be without one.
        if value.contains(':') {
            value.parse().map(Self::Digest)
        } else {
            value.parse().map(Self::Tag)
        }
    }
}

/// An image: `repository:tag` or `repository@digest`. In the cache it is the name under which an image lies there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    /// The repository as given, with or without host.
    pub repository: Repository,
    /// The tag or digest.
    pub reference: Reference,
}

impl ImageName {
    /// The name of exactly this image in the same repository.
    #[must_use]
    pub fn pinned(&self, digest: &Digest) -> Self {
        Self {
            repository: self.repository.clone(),
            reference: Reference::Digest(digest.clone()),
        }
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(value: &str) -> Result<Self> {
        if let Some((repository, digest)) = value.split_once('@') {
            return Ok(Self {
                repository: repository.parse()?,
                reference: Reference::Digest(digest.parse()?),
            });
        }
        // The colon of a tag comes after the last slash, that of a port before it.
        let name_start = value.rfind('/').map_or(0, |slash| slash + 1);
        let colon = value[name_start..]
            .find(':')
            .ok_or_else(|| Error::MissingReference {
                value: shown(value),
            })?;
        let (repository, tag) = value.split_at(name_start + colon);
        Ok(Self {
            repository: repository.parse()?,
            reference: Reference::Tag(tag[1..].parse()?),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            repository,
            reference,
        } = self;
        write!(
            formatter,
            "{repository}{}{reference}",
            reference.separator()
        )
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(formatter),
            Self::Digest(digest) => digest.fmt(formatter),
        }
    }
}

/// Names travel as text, in files and in reports, and are parsed again when read.
macro_rules! as_text {
    ($($name:ident),+) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    )+};
}
as_text!(Host, RepositoryPath, Repository, Tag, Reference, ImageName);

macro_rules! display_inner {
    ($($name:ident),+) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )+};
}
display_inner!(Host, RepositoryPath, Tag);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_component_is_a_host_only_where_it_looks_like_one() {
        for (value, host, path) in [
            ("ubuntu", None, "ubuntu"),
            ("library/ubuntu", None, "library/ubuntu"),
            (
                "docker.io/library/ubuntu",
                Some("docker.io"),
                "library/ubuntu",
            ),
            ("localhost/app", Some("localhost"), "app"),
            ("localhost", None, "localhost"),
            ("registry:5000/team/app", Some("registry:5000"), "team/app"),
            ("MYHOST/app", Some("MYHOST"), "app"),
            ("[::1]:5000/app", Some("[::1]:5000"), "app"),
            ("127.0.0.1:5000/app", Some("127.0.0.1:5000"), "app"),
        ] {
            let repository: Repository = value.parse().unwrap();
            assert_eq!(repository.host().map(Host::as_str), host, "{value}");
            assert_eq!(repository.path().as_str(), path, "{value}");
            assert_eq!(repository.to_string(), value);
        }
    }

    #[test]
    fn names_that_could_leave_a_folder_or_a_url_are_refused() {
        for value in [
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "a/./b",
            "a//b",
            "/a",
            "a/",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "A",
            "a/B",
            "a\\b",
            "a%2fb",
            "a\0b",
            "a b",
            "a:b",
            "host:0/a",
            "host:65536/a",
            "host:/a",
            "..:5000/a",
            "-h.x/a",
            "[::1/a",
            "[zz]:1/a",
            "[::1]x/a",
        ] {
            assert!(value.parse::<Repository>().is_err(), "{value:?}");
        }
        assert!(
            "a/".repeat(130)
                .trim_end_matches('/')
                .parse::<Repository>()
                .is_err()
        );
    }

    #[test]
    fn a_tag_has_at_most_128_characters_of_its_alphabet() {
        assert!("v1.2_3-x".parse::<Tag>().is_ok());
        assert!("a".repeat(128).parse::<Tag>().is_ok());
        for value in ["", ".a", "-a", "a/b", "a b", "ä", &"a".repeat(129)] {
            assert!(value.parse::<Tag>().is_err(), "{value}");
        }
    }

    #[test]
    fn the_tag_of_a_list_of_referrers_is_made_of_the_subjects_digest() {
        let digits = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Tag::of_referrers(&Digest::of(b"")).as_str(), digits);
        let long = Digest::with_algorithm(crate::image::Algorithm::Sha512, b"");
        let tag = Tag::of_referrers(&long);
        assert_eq!(tag.as_str().len(), "sha512-".len() + 64);
        assert_eq!(tag.as_str().parse::<Tag>().unwrap(), tag);
    }

    #[test]
    fn image_names_tell_a_port_from_a_tag() {
        for (value, repository, reference) in [
            ("ubuntu:22.04", "ubuntu", "22.04"),
            ("localhost:5000/app:1", "localhost:5000/app", "1"),
        ] {
            let name: ImageName = value.parse().unwrap();
            assert_eq!(
                (
                    name.repository.to_string().as_str(),
                    name.reference.to_string().as_str()
                ),
                (repository, reference)
            );
            assert_eq!(name.to_string(), value);
        }
        let by_digest = format!("localhost:5000/app@{}", Digest::of(b""));
        assert_eq!(
            by_digest.parse::<ImageName>().unwrap().to_string(),
            by_digest
        );
        for value in ["ubuntu", "localhost:5000/app", "app@", "app:1@sha256:abc"] {
            assert!(value.parse::<ImageName>().is_err(), "{value}");
        }
    }

    #[test]
    fn loopback_is_known_by_name_and_by_address() {
        for (value, expected) in [
            ("localhost:1", true),
            ("127.0.0.1", true),
            ("[::1]:5000", true),
            ("10.0.0.1", false),
            ("localhost.example", false),
        ] {
            assert_eq!(
                value.parse::<Host>().unwrap().is_loopback(),
                expected,
                "{value}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_accepted_name_prints_as_it_came_and_is_safe_in_a_path(text in r"[a-zA-Z0-9._/:@\\%\[\] -]{0,40}") {
            if let Ok(repository) = text.parse::<Repository>() {
                prop_assert_eq!(repository.to_string(), text.clone());
                for component in text.split('/') {
                    prop_assert!(!component.is_empty() && component != "." && component != ".." && !component.starts_with('.'));
                }
            }
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text.clone());
                prop_assert!(!text.contains('/') && !text.starts_with('.'));
            }
        }

        #[test]
        fn every_name_by_the_grammar_is_accepted(
            path in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,4}){0,2}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
        ) {
            prop_assert!(path.parse::<RepositoryPath>().is_ok());
            prop_assert!(tag.parse::<Tag>().is_ok());
        }
    }
}
