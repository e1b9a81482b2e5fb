//! What a manifest says about something it refers to.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Digest, MediaType, Platform, from_objects_only};

/// What a manifest says about something it refers to (image-spec, "Descriptor"). Fields that a copy does not need, such as
/// annotations and embedded `data`, are not read; they travel with the raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub struct Descriptor {
    /// Type of the content.
    pub media_type: MediaType,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content in bytes; a negative one does not parse (registry rule M6).
    pub size: u64,
    /// Where else a nondistributable layer may be fetched.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_is_empty"
    )]
    pub urls: Vec<String>,
    /// Platform of a child of an index.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "lenient_platform"
    )]
    pub platform: Option<Platform>,
}

from_objects_only!(Descriptor);

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl Descriptor {
    /// A nondistributable layer that names where its publisher serves it: it is neither pulled nor pushed, and clients find
    /// it by its `urls` (moby#33151).
    pub fn stays_with_its_publisher(&self) -> bool {
        self.media_type.is_nondistributable() && !self.urls.is_empty()
    }
}

/// `null` stands for "none" in lists of some producers.
pub(super) fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Platforms inform, they decide nothing that is copied whole: one that lacks a field does not make the index unreadable.
fn lenient_platform<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Platform>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}
