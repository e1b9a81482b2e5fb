//! Manifests and indexes: the raw bytes that travel, and a typed view for reading them.
//!
//! The bytes are kept exactly as they came, since the digest is the hash of the bytes and not of what they mean. No image is
//! ever written from what was parsed.

use bytes::Bytes;
use serde::Deserialize;

use super::{
    Algorithm, Descriptor, Digest, MediaType,
    descriptor::null_is_empty,
    digest::unsupported_algorithm,
    error::{Error, Result, shown},
    from_objects_only,
};

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
    /// The manifest this one refers to, as of an image.
    pub subject: Option<Descriptor>,
}

/// The typed view of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image or artifact.
    Image(Box<ImageManifest>),
    /// Several manifests, mostly one per platform.
    Index(Index),
}

impl Manifest {
    /// The manifest this one refers to.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Image(image) => image.subject.as_ref(),
            Self::Index(index) => index.subject.as_ref(),
        }
    }
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
#[serde(rename_all = "camelCase", remote = "Self")]
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

from_objects_only!(Fields);

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
        let declared = content_type.filter(|value| value.names_a_manifest());
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

    /// Whether these are the bytes that `digest` names, by whichever algorithm: a registry may name a manifest by another one
    /// than it was asked for by (registry rule M2).
    pub fn has_digest(&self, digest: &Digest) -> bool {
        *digest == self.digest
            || (digest.algorithm() != self.digest.algorithm()
                && *digest == Digest::with_algorithm(digest.algorithm(), &self.bytes))
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
        // Readers of such a document would disagree about what it is (CVE-2021-41190).
        let is_both = if self.media_type.is_index() {
            fields.config.is_some() || !fields.layers.is_empty()
        } else {
            fields.manifests.is_some()
        };
        if is_both {
            return Err(invalid("it is an index and an image at once"));
        }
        if self.media_type.is_index() {
            let manifests = fields
                .manifests
                .ok_or_else(|| invalid("an index needs the list manifests"))?;
            return Ok(Manifest::Index(Index {
                manifests,
                subject: fields.subject,
            }));
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

/// Reads the fields, or tells why not.
fn parse_fields(bytes: &[u8], digest: &Digest) -> Result<Fields> {
    serde_json::from_slice(bytes).map_err(|error| match unsupported_digest(bytes) {
        Some(algorithm) => Error::AlgorithmUnsupported {
            digest: digest.clone(),
            algorithm,
        },
        None => Error::ManifestInvalid {
            digest: digest.clone(),
            reason: shown(&error.to_string()),
        },
    })
}

/// The algorithm of the first digest that is well formed, but by no algorithm of ours: such a manifest is good, only not for
/// us (registry rule M2).
fn unsupported_digest(bytes: &[u8]) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let lists = ["layers", "blobs", "manifests"]
        .into_iter()
        .filter_map(|name| manifest.get(name)?.as_array())
        .flatten();
    let single = ["config", "subject"]
        .into_iter()
        .filter_map(|name| manifest.get(name));
    lists
        .chain(single)
        .filter_map(|descriptor| descriptor.get("digest")?.as_str())
        .find_map(unsupported_algorithm)
        .map(str::to_owned)
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
        let mut config_as_list = image();
        config_as_list["config"] = json!(["text/plain", Digest::of(b"{}"), 2, [], null]);
        let all_as_list = json!([2, MediaType::OCI_MANIFEST, blob(b"{}"), [], [], null, null]);
        for text in [
            negative.to_string(),
            digest.to_string(),
            twice,
            config_as_list.to_string(),
            all_as_list.to_string(),
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
    fn a_document_that_is_an_index_and_an_image_at_once_is_refused() {
        let child = blob(b"child");
        for (media_type, fields) in [
            (
                MediaType::OCI_INDEX,
                json!({"manifests": [child], "layers": [child]}),
            ),
            (
                MediaType::DOCKER_LIST,
                json!({"manifests": [child], "config": child}),
            ),
            (
                MediaType::OCI_MANIFEST,
                json!({"config": child, "manifests": []}),
            ),
        ] {
            let mut manifest = json!({"schemaVersion": 2, "mediaType": media_type});
            let fields = fields.as_object().unwrap().clone();
            manifest.as_object_mut().unwrap().extend(fields);
            let error = raw(&manifest, None).unwrap_err();
            assert!(error.to_string().contains("at once"), "{error}");
        }
    }

    #[test]
    fn a_digest_by_an_algorithm_we_do_not_have_is_refused_by_its_name() {
        let hex = "0".repeat(64);
        let part = |text: &str| json!({"mediaType": "x", "digest": text, "size": 1});
        for (name, algorithm) in [
            ("blake3", "blake3"),
            ("sha256+b64", "sha256+b64"),
            ("multihash.x_y-z", "multihash.x_y-z"),
        ] {
            let foreign = part(&format!("{name}:{hex}"));
            let mut layer = image();
            layer["layers"] = json!([foreign]);
            let mut config = image();
            config["config"] = foreign.clone();
            let index = json!({"schemaVersion": 2, "manifests": [foreign]});
            for manifest in [layer, config, index] {
                let error = raw(&manifest, None).unwrap_err();
                let Error::AlgorithmUnsupported {
                    algorithm: named, ..
                } = &error
                else {
                    panic!("{error}")
                };
                assert_eq!(named, algorithm);
                assert!(error.to_string().contains("sha512"), "{error}");
            }
        }
        // No name of an algorithm at all: broken, not foreign.
        let mut broken = image();
        broken["config"] = part("../x:1");
        let error = raw(&broken, None).unwrap_err();
        assert!(matches!(error, Error::ManifestInvalid { .. }), "{error}");
    }

    #[test]
    fn artifacts_of_all_shapes_are_read() {
        let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2,
            "data": "e30="});
        let nothing = blob(b"");
        for (manifest, blobs) in [
            (
                json!({"mediaType": MediaType::OCI_MANIFEST, "config": empty, "layers": [empty]}),
                2,
            ),
            (
                json!({"mediaType": MediaType::OCI_MANIFEST, "config": empty, "layers": []}),
                1,
            ),
            (
                json!({"mediaType": MediaType::OCI_MANIFEST, "config": empty}),
                1,
            ),
            (
                json!({"mediaType": MediaType::OCI_MANIFEST, "config": empty, "layers": [nothing, nothing]}),
                3,
            ),
            (
                json!({"mediaType": MediaType::OCI_ARTIFACT, "blobs": [nothing], "subject": empty}),
                1,
            ),
            (json!({"mediaType": MediaType::OCI_ARTIFACT}), 0),
        ] {
            let manifest = raw(&manifest, None).unwrap();
            let parsed = manifest.parse().unwrap();
            assert_eq!(
                parsed.subject().is_some(),
                manifest
                    .bytes()
                    .windows(9)
                    .any(|part| part == b"\"subject\"")
            );
            let Manifest::Image(image) = parsed else {
                panic!("not an image")
            };
            assert_eq!(image.blobs().count(), blobs);
        }
    }

    #[test]
    fn both_algorithms_name_the_same_bytes() {
        let manifest = raw(&image(), None).unwrap();
        let other = Digest::with_algorithm(Algorithm::Sha512, manifest.bytes());
        assert!(manifest.has_digest(manifest.digest()) && manifest.has_digest(&other));
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            assert!(!manifest.has_digest(&Digest::with_algorithm(algorithm, b"other")));
        }
        let long = RawManifest::new(manifest.bytes().clone(), None, Algorithm::Sha512).unwrap();
        assert_eq!(*long.digest(), other);
    }

    #[test]
    fn a_document_of_any_depth_is_survived() {
        let nested = "[".repeat(100_000) + &"]".repeat(100_000);
        let text = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[],"x":{nested}}}"#,
            blob(b"{}")
        );
        // What it means is of no account, only that the stack lasts.
        drop(RawManifest::new(text.into(), None, Algorithm::Sha256));
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
