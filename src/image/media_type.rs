//! Media types of manifests, as registries and archives write them.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

/// Everything a client can copy, in one header line; without the whole list some registries answer 404 or convert the
/// image (registry rule R1; distribution#4385).
pub const MANIFEST_ACCEPT: &str = concat!(
    "application/vnd.oci.image.index.v1+json, ",
    "application/vnd.oci.image.manifest.v1+json, ",
    "application/vnd.docker.distribution.manifest.list.v2+json, ",
    "application/vnd.docker.distribution.manifest.v2+json, ",
    "application/vnd.docker.distribution.manifest.v1+prettyjws, ",
    "application/vnd.docker.distribution.manifest.v1+json, ",
    "application/vnd.oci.artifact.manifest.v1+json, ",
    "*/*;q=0.1"
);

/// A media type without parameters, in the spelling it came in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaType(Cow<'static, str>);

impl MediaType {
    /// OCI image index.
    pub const OCI_INDEX: Self = Self(Cow::Borrowed("application/vnd.oci.image.index.v1+json"));
    /// OCI image manifest.
    pub const OCI_MANIFEST: Self =
        Self(Cow::Borrowed("application/vnd.oci.image.manifest.v1+json"));
    /// OCI image configuration.
    pub const OCI_CONFIG: Self = Self(Cow::Borrowed("application/vnd.oci.image.config.v1+json"));
    /// Docker manifest list.
    pub const DOCKER_LIST: Self = Self(Cow::Borrowed(
        "application/vnd.docker.distribution.manifest.list.v2+json",
    ));
    /// Docker manifest, schema 2.
    pub const DOCKER_MANIFEST: Self = Self(Cow::Borrowed(
        "application/vnd.docker.distribution.manifest.v2+json",
    ));
    /// OCI artifact manifest: dropped before image-spec 1.1, still found; its bytes travel as they are.
    pub const OCI_ARTIFACT: Self = Self(Cow::Borrowed(
        "application/vnd.oci.artifact.manifest.v1+json",
    ));

    /// Reads a `Content-Type` header: parameters such as `charset` are ignored (registry rule M4).
    pub fn from_header(value: &str) -> Self {
        let essence = value.split(';').next().unwrap_or_default().trim();
        Self(Cow::Owned(essence.to_ascii_lowercase()))
    }

    /// The type as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An index or manifest list: its children are manifests.
    pub fn is_index(&self) -> bool {
        *self == Self::OCI_INDEX || *self == Self::DOCKER_LIST
    }

    /// A manifest of one image or artifact, whose children are blobs.
    pub fn is_manifest(&self) -> bool {
        *self == Self::OCI_MANIFEST || *self == Self::DOCKER_MANIFEST || *self == Self::OCI_ARTIFACT
    }

    /// Something that is asked for as a manifest, whether it can be copied or not.
    pub fn names_a_manifest(&self) -> bool {
        self.is_index() || self.is_manifest() || self.is_schema1()
    }

    /// Docker's first manifest format, signed or not: its digest does not cover its bytes.
    pub fn is_schema1(&self) -> bool {
        self.as_str()
            .starts_with("application/vnd.docker.distribution.manifest.v1+")
    }

    /// A layer that its publisher does not allow to be pushed elsewhere (moby#33151).
    pub fn is_nondistributable(&self) -> bool {
        self.as_str().contains(".nondistributable.") || self.as_str().contains(".foreign.")
    }
}

impl From<&str> for MediaType {
    fn from(value: &str) -> Self {
        Self(Cow::Owned(value.to_owned()))
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_content_type_are_ignored() {
        assert_eq!(
            MediaType::from_header("application/vnd.oci.image.index.v1+json; charset=utf-8"),
            MediaType::OCI_INDEX
        );
    }

    #[test]
    fn every_type_that_can_be_copied_is_asked_for() {
        for media_type in [
            MediaType::OCI_INDEX,
            MediaType::OCI_MANIFEST,
            MediaType::DOCKER_LIST,
            MediaType::DOCKER_MANIFEST,
            MediaType::OCI_ARTIFACT,
        ] {
            assert!(
                MANIFEST_ACCEPT.contains(media_type.as_str()),
                "{media_type}"
            );
        }
    }

    #[test]
    fn foreign_layers_are_recognised_in_both_dialects() {
        for value in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        ] {
            assert!(MediaType::from(value).is_nondistributable());
        }
        assert!(!MediaType::OCI_CONFIG.is_nondistributable());
    }
}
