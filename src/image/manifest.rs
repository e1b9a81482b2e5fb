//! Manifests and indexes: the raw bytes that travel, and a typed view for reading them.
//!
//! The bytes are kept exactly as they came, since the digest is the hash of the bytes and not of what they mean. Nothing in
//! this project writes a manifest it has parsed.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Algorithm, Digest, MediaType, Platform,
    error::{Error, Result, shown},
};

/// What a manifest says about something it refers to (image-spec, "Descriptor"). Fields that a copy does not need are not
/// read; they travel with the raw bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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

impl Descriptor {
    /// A nondistributable layer that names where its publisher serves it: it is neither pulled nor pushed, and clients find
    /// it by its `urls` (moby#33151).
    pub fn stays_with_its_publisher(&self) -> bool {
        self.media_type.is_nondistributable() && !self.urls.is_empty()
    }
}

/// `null` stands for "none" in lists of some producers.
fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

/// Platforms inform, they decide nothing that is copied whole: one that lacks a field does not make the index unreadable.
fn lenient_platform<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Platform>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

/// A manifest of one image or artifact: its children are blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The configuration; an old OCI artifact manifest has none.
    pub config: Option<Descriptor>,
    /// The layers in order, or the blobs of an artifact.
    pub layers: Vec<Descriptor>,
    /// The manifest this one refers to, for signatures, attestations and the like.
    pub subject: Option<Descriptor>,
}

impl ImageManifest {
    /// Every blob of the manifest, configuration first.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers)
    }
}

/// An index or manifest list: its children are manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The children in order.
    pub manifests: Vec<Descriptor>,
}

/// The typed view of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image or artifact.
    Image(Box<ImageManifest>),
    /// Several manifests, mostly one per platform.
    Index(Index),
}

/// The bytes of a manifest with their type and digest. The digest is always computed from the bytes, never taken from
/// anybody's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawManifest {
    bytes: Bytes,
    media_type: MediaType,
    digest: Digest,
}

/// What the bytes say about themselves; everything optional, since producers leave out what the type implies.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    schema_version: Option<i64>,
    media_type: Option<MediaType>,
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_empty")]
    layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "null_is_empty")]
    blobs: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
}

impl RawManifest {
    /// Takes the bytes as they came, with the `Content-Type` they came under, where there was one. The digest is SHA-256
    /// unless the manifest was asked for by a digest of another algorithm.
    ///
    /// # Errors
    /// When the bytes are not a manifest, when they contradict their `Content-Type` (registry rule M4), and for Docker's
    /// first format, whose digest does not cover its bytes (M5).
    pub fn new(
        bytes: Bytes,
        content_type: Option<&MediaType>,
        algorithm: Algorithm,
    ) -> Result<Self> {
        let digest = Digest::with_algorithm(algorithm, &bytes);
        let invalid = |reason: String| Error::ManifestInvalid {
            digest: digest.clone(),
            reason,
        };
        let fields = parse_fields(&bytes, &digest)?;
        // A body of another type says so by a header that is about manifests; `application/json` says nothing.
        let declared = content_type.filter(|value| is_manifest_type(value));
        let schema1 =
            fields.schema_version == Some(1) || declared.is_some_and(MediaType::is_schema1);
        if schema1 {
            return Err(Error::ManifestUnsupported {
                digest,
                media_type: declared
                    .map_or_else(|| "Docker schema 1".to_owned(), ToString::to_string),
                remedy: "this format is no longer served by registries; rebuild the image, or pull and push it with a current Docker",
            });
        }
        if let (Some(header), Some(own)) = (declared, &fields.media_type)
            && header != own
        {
            return Err(invalid(format!(
                "its Content-Type is {}, its mediaType {}",
                shown(header.as_str()),
                shown(own.as_str())
            )));
        }
        let media_type = match (fields.media_type.as_ref().or(declared), &fields) {
            (Some(media_type), _) => media_type.clone(),
            // OCI made mediaType optional at first: the shape decides.
            (
                None,
                Fields {
                    manifests: Some(_), ..
                },
            ) => MediaType::OCI_INDEX,
            (
                None,
                Fields {
                    config: Some(_), ..
                },
            ) => MediaType::OCI_MANIFEST,
            (None, _) => {
                return Err(invalid(
                    "it has neither mediaType, manifests nor config".to_owned(),
                ));
            }
        };
        let manifest = Self {
            bytes,
            media_type,
            digest,
        };
        manifest.view(fields)?;
        Ok(manifest)
    }

    /// The bytes, exactly as they came.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The type to send them under.
    pub const fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// The digest of the bytes.
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The typed view. It was parsed once when the value was built, so it fails only for bytes nobody checked.
    pub fn parse(&self) -> Result<Manifest> {
        self.view(parse_fields(&self.bytes, &self.digest)?)
    }

    /// Sorts the fields by what the media type says they must be.
    fn view(&self, fields: Fields) -> Result<Manifest> {
        let invalid = |reason: &str| Error::ManifestInvalid {
            digest: self.digest.clone(),
            reason: reason.to_owned(),
        };
        if self.media_type.is_index() {
            let manifests = fields
                .manifests
                .ok_or_else(|| invalid("an index needs the list manifests"))?;
            return Ok(Manifest::Index(Index { manifests }));
        }
        if self.media_type == MediaType::OCI_ARTIFACT {
            return Ok(Manifest::Image(Box::new(ImageManifest {
                config: None,
                layers: fields.blobs,
                subject: fields.subject,
            })));
        }
        if self.media_type.is_manifest() {
            let config = fields
                .config
                .ok_or_else(|| invalid("an image manifest needs a config"))?;
            return Ok(Manifest::Image(Box::new(ImageManifest {
                config: Some(config),
                layers: fields.layers,
                subject: fields.subject,
            })));
        }
        Err(Error::ManifestUnsupported {
            digest: self.digest.clone(),
            media_type: shown(self.media_type.as_str()),
            remedy: "only OCI and Docker images, indexes and artifacts can be copied",
        })
    }
}

/// Whether a `Content-Type` claims to be about a manifest at all; plain `application/json` and the like do not.
fn is_manifest_type(media_type: &MediaType) -> bool {
    media_type.is_index() || media_type.is_manifest() || media_type.is_schema1()
}

/// Reads the fields, or tells why not.
fn parse_fields(bytes: &[u8], digest: &Digest) -> Result<Fields> {
    serde_json::from_slice(bytes).map_err(|error| Error::ManifestInvalid {
        digest: digest.clone(),
        reason: shown(&error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn blob(content: &[u8]) -> serde_json::Value {
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": Digest::of(content), "size": content.len()})
    }

    fn image() -> serde_json::Value {
        json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "config": blob(b"{}"), "layers": [blob(b"layer")]})
    }

    fn raw(value: &serde_json::Value, content_type: Option<&str>) -> Result<RawManifest> {
        RawManifest::new(
            value.to_string().into(),
            content_type.map(MediaType::from).as_ref(),
            Algorithm::Sha256,
        )
    }

    #[test]
    fn an_image_manifest_lists_its_config_before_its_layers() {
        let manifest = raw(&image(), None).unwrap();
        let Manifest::Image(image) = manifest.parse().unwrap() else {
            panic!("not an image")
        };
        let digests: Vec<_> = image.blobs().map(|blob| blob.digest.clone()).collect();
        assert_eq!(digests, [Digest::of(b"{}"), Digest::of(b"layer")]);
    }

    #[test]
    fn odd_white_space_and_unknown_fields_keep_their_bytes() {
        let text = format!(
            "{{ \"x\" : 1,\n \"schemaVersion\":2, \"config\": {}, \"layers\": null }}\n\n",
            blob(b"{}")
        );
        let manifest =
            RawManifest::new(Bytes::from(text.clone()), None, Algorithm::Sha256).unwrap();
        assert_eq!(manifest.bytes(), text.as_bytes());
        assert_eq!(*manifest.digest(), Digest::of(text.as_bytes()));
        assert_eq!(*manifest.media_type(), MediaType::OCI_MANIFEST);
    }

    #[test]
    fn an_index_without_a_media_type_is_known_by_its_children() {
        let manifest = raw(
            &json!({"schemaVersion": 2, "manifests": [blob(b"child")]}),
            Some("application/json"),
        )
        .unwrap();
        assert_eq!(*manifest.media_type(), MediaType::OCI_INDEX);
    }

    #[test]
    fn a_content_type_that_contradicts_the_body_is_refused() {
        let error = raw(&image(), Some(MediaType::OCI_INDEX.as_str())).unwrap_err();
        assert!(error.to_string().contains("Content-Type"), "{error}");
    }

    #[test]
    fn dockers_first_format_is_refused_with_a_remedy() {
        let error = raw(&json!({"schemaVersion": 1, "fsLayers": []}), None).unwrap_err();
        assert!(error.to_string().contains("rebuild the image"), "{error}");
    }

    #[test]
    fn manifests_that_lie_about_their_shape_are_refused() {
        let mut negative = image();
        negative["layers"][0]["size"] = json!(-1);
        let mut digest = image();
        digest["config"]["digest"] = json!("sha256:../../etc/passwd");
        let twice = format!(
            r#"{{"schemaVersion":2,"config":{0},"config":{0},"layers":[]}}"#,
            blob(b"{}")
        );
        for text in [
            negative.to_string(),
            digest.to_string(),
            twice,
            "[]".into(),
            "{}".into(),
            String::new(),
            "<html>".into(),
        ] {
            let refused = RawManifest::new(Bytes::from(text.clone()), None, Algorithm::Sha256);
            assert!(
                matches!(refused, Err(Error::ManifestInvalid { .. })),
                "{text}: {refused:?}"
            );
        }
    }

    #[test]
    fn an_unknown_manifest_type_is_refused_by_name() {
        let error = raw(
            &json!({"schemaVersion": 2, "mediaType": "application/x-other", "config": blob(b"{}")}),
            None,
        )
        .unwrap_err();
        assert!(error.to_string().contains("application/x-other"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_manifest_with_their_own_digest_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(manifest) = RawManifest::new(bytes.clone().into(), None, Algorithm::Sha256) {
                prop_assert_eq!(manifest.digest(), &Digest::of(&bytes));
            }
        }
    }
}
