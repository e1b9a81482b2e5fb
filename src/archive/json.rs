//! The small JSON documents of an archive, into typed structs only: a critical key that stands there twice is an error, and
//! what has no field is passed over without being kept (archive reference rows 30 to 32 and 36).

use serde::{Deserialize, de::DeserializeOwned};

use crate::image::{Digest, MediaType, Platform, from_objects_only};

use super::error::{Place, Result, escaped};

/// Media types of configurations that list the layers' `diff_ids`.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// An element of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", remote = "Self")]
pub(super) struct Element {
    pub(super) config: String,
    /// `null` is legal: saved by id.
    #[serde(default)]
    pub(super) repo_tags: Option<Vec<String>>,
    /// `null` stands for none.
    #[serde(default)]
    pub(super) layers: Option<Vec<String>>,
}

impl Element {
    /// The names and paths in it.
    pub(super) fn count(&self) -> usize {
        let lists = [&self.repo_tags, &self.layers];
        1 + lists.into_iter().flatten().map(Vec::len).sum::<usize>()
    }
}

/// What matters here of an image's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct Config {
    rootfs: Option<RootFs>,
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

impl Config {
    /// The digests of the layers before compression; none if the configuration has no such list.
    pub(super) fn diff_ids(&self, place: &Place) -> Result<Option<Vec<Digest>>> {
        self.rootfs
            .as_ref()
            .and_then(|rootfs| rootfs.diff_ids.as_ref())
            .map(|list| list.iter().map(|text| digest(text, place)).collect())
            .transpose()
    }

    /// The platform; none if the configuration does not tell. Every image that names the configuration has a copy of it,
    /// hence its length has a limit.
    pub(super) fn platform(&self, place: &Place) -> Result<Option<Platform>> {
        /// Bytes of a word; real ones have ten.
        const LONGEST: usize = 255;
        let words = [&self.os, &self.architecture, &self.variant];
        if words.into_iter().flatten().any(|word| word.len() > LONGEST) {
            return Err(place.invalid(format!(
                "its os, architecture or variant has more than {LONGEST} bytes"
            )));
        }
        let [os, architecture, variant] =
            words.map(|word| word.clone().filter(|word| !word.is_empty()));
        Ok(os.zip(architecture).map(|(os, architecture)| Platform {
            os,
            architecture,
            variant,
        }))
    }
}

/// `index.json` of an OCI layout.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct LayoutIndex {
    /// `null` is what some versions write for images saved by digest (moby#47210).
    #[serde(default)]
    pub(super) manifests: Option<Vec<LayoutDescriptor>>,
    #[serde(default)]
    annotations: Option<LayoutAnnotations>,
}

/// The annotation that marks an archive without the blobs of an earlier one.
pub(super) const INCREMENTAL: &str = "io.imagepusher.incremental";

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct LayoutAnnotations {
    #[serde(rename = "io.imagepusher.incremental")]
    incremental: Option<String>,
}

impl LayoutIndex {
    /// Whether the archive leaves out what an earlier one carried.
    pub(super) fn is_incremental(&self) -> bool {
        let annotations = self.annotations.as_ref();
        annotations.is_some_and(|annotations| annotations.incremental.as_deref() == Some("true"))
    }
}

/// A descriptor of `index.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", remote = "Self")]
pub(super) struct LayoutDescriptor {
    pub(super) media_type: Option<MediaType>,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) annotations: Option<Annotations>,
}

/// The annotations that name an image.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self")]
pub(super) struct Annotations {
    #[serde(rename = "io.containerd.image.name")]
    pub(super) full_name: Option<String>,
    #[serde(rename = "org.opencontainers.image.ref.name")]
    pub(super) reference_name: Option<String>,
}

/// The digests in a manifest, before it is read as one: their algorithms are judged first.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct Digests {
    config: Option<DigestOnly>,
    layers: Option<Vec<DigestOnly>>,
    manifests: Option<Vec<DigestOnly>>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct DigestOnly {
    digest: Option<String>,
}

from_objects_only!(
    Element,
    Config,
    RootFs,
    LayoutIndex,
    LayoutAnnotations,
    LayoutDescriptor,
    Annotations,
    Digests,
    DigestOnly
);

/// Reads a document.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], place: &Place) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text = escaped(error.to_string().as_bytes());
        place.invalid(format!("its JSON cannot be read: {text}"))
    })
}

/// `manifest.json`, which is a list in every archive; an object is the manifest in a folder that skopeo wrote.
pub(super) fn elements(bytes: &[u8], place: &Place) -> Result<Vec<Element>> {
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        return Err(place.unsupported(
            "this is a folder of skopeo's dir: format; write docker-archive: or oci-archive: instead",
        ));
    }
    Ok(parse::<Option<Vec<Element>>>(bytes, place)?.unwrap_or_default())
}

/// A digest as text (row 36).
pub(super) fn digest(text: &str, place: &Place) -> Result<Digest> {
    text.parse().map_err(|error: crate::image::Error| {
        if names_unknown_algorithm(text) {
            let shown = escaped(text.as_bytes());
            place.unsupported(format!("the digest '{shown}' is neither sha256 nor sha512"))
        } else {
            place.invalid(error.to_string())
        }
    })
}

/// Whether it is a digest by the grammar of the image specification, of an algorithm we do not know.
fn names_unknown_algorithm(text: &str) -> bool {
    let Some((algorithm, encoded)) = text.split_once(':') else {
        return false;
    };
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let is_encoded = !encoded.is_empty()
        && encoded
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'=' | b'_' | b'-'));
    is_encoded
        && algorithm.split(['+', '.', '_', '-']).all(is_word)
        && !matches!(algorithm, "sha256" | "sha512")
}

/// Judges the digests in a manifest.
pub(super) fn check_digests(manifest: &[u8], place: &Place) -> Result<()> {
    let found: Digests = parse(manifest, place)?;
    let lists = [found.layers, found.manifests];
    found
        .config
        .iter()
        .chain(lists.iter().flatten().flatten())
        .filter_map(|descriptor| descriptor.digest.as_deref())
        .try_for_each(|text| digest(text, place).map(drop))
}

/// Whether a configuration of this type lists `diff_ids`; those of artifacts may be anything.
pub(super) fn is_image_config(media_type: &MediaType) -> bool {
    *media_type == MediaType::OCI_CONFIG || media_type.as_str() == DOCKER_CONFIG
}

/// Whether a layer of this type is a tar, of which `diff_ids` speak. Attestations have JSON in the place of layers, and what
/// is encrypted cannot be unpacked.
pub(super) fn is_tar_layer(media_type: &MediaType) -> bool {
    let text = media_type.as_str();
    let is_layer = [
        "application/vnd.oci.image.layer.",
        "application/vnd.docker.image.rootfs.",
    ]
    .iter()
    .any(|prefix| text.starts_with(prefix));
    is_layer && !text.ends_with("+encrypted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Error;

    fn place() -> Place {
        Place::archive("app.tar")
    }

    /// Row 32.
    #[test]
    fn a_critical_key_that_stands_there_twice_is_refused() {
        for text in [
            r#"[{"Config":"a","Config":"b","Layers":[]}]"#,
            r#"[{"Config":"a","Layers":[],"Layers":["x"]}]"#,
            r#"[{"Config":"a","RepoTags":[],"RepoTags":["x:1"],"Layers":[]}]"#,
        ] {
            let error = elements(text.as_bytes(), &place()).unwrap_err();
            assert!(error.to_string().contains("duplicate field"), "{error}");
        }
        for text in [
            r#"{"rootfs":{"diff_ids":[]},"rootfs":{}}"#,
            r#"{"rootfs":{"diff_ids":[],"diff_ids":["x"]}}"#,
        ] {
            let error = parse::<Config>(text.as_bytes(), &place()).unwrap_err();
            assert!(error.to_string().contains("duplicate field"), "{error}");
        }
        let text = r#"{"manifests":[{"digest":"a","digest":"b","size":1}]}"#;
        let error = parse::<LayoutIndex>(text.as_bytes(), &place()).unwrap_err();
        assert!(error.to_string().contains("duplicate field"), "{error}");
        let text =
            r#"{"org.opencontainers.image.ref.name":"a","org.opencontainers.image.ref.name":"b"}"#;
        assert!(parse::<Annotations>(text.as_bytes(), &place()).is_err());
    }

    /// Row 31.
    #[test]
    fn deep_and_broad_bombs_are_refused() {
        for text in [
            format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)),
            format!(r#"{{"x":{}}}"#, "[".repeat(100_000)),
            format!("[{}]", vec!["{}"; 100_000].join(",")),
            "[[],[]]".to_owned(),
            r#"[["config.json",["app:1"],["layer.tar"]]]"#.to_owned(),
            String::new(),
        ] {
            assert!(matches!(
                parse::<Vec<Element>>(text.as_bytes(), &place()),
                Err(Error::ArchiveInvalid { .. })
            ));
        }
        // What nobody asks for is passed over without recursion, however deep it is.
        let deep = format!(
            r#"{{"history":{}{}}}"#,
            "[".repeat(1 << 20),
            "]".repeat(1 << 20)
        );
        assert!(parse::<Config>(deep.as_bytes(), &place()).is_ok());
    }

    /// Row 36.
    #[test]
    fn a_digest_of_an_unknown_algorithm_is_told_from_a_broken_one() {
        for text in [
            "blake3:abc",
            "sha256+b64u:abc=",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
        ] {
            let error = digest(text, &place()).unwrap_err();
            assert!(matches!(error, Error::ArchiveUnsupported { .. }), "{error}");
        }
        for text in [
            "",
            "sha256:abc",
            "SHA256:abc",
            "abc",
            ":",
            "a:",
            "sha256:../../x",
        ] {
            let error = digest(text, &place()).unwrap_err();
            assert!(matches!(error, Error::ArchiveInvalid { .. }), "{error}");
        }
        for manifest in [
            r#"{"config":{"digest":"blake3:abc"}}"#,
            r#"{"layers":[{"digest":"blake3:abc"}]}"#,
            r#"{"manifests":[{"digest":"blake3:abc"}]}"#,
        ] {
            let error = check_digests(manifest.as_bytes(), &place()).unwrap_err();
            assert!(matches!(error, Error::ArchiveUnsupported { .. }), "{error}");
        }
    }

    #[test]
    fn a_platform_has_words_of_some_length() {
        let os = |os: &str| {
            let text = serde_json::json!({"os": os, "architecture": "amd64"}).to_string();
            let config: Config = parse(text.as_bytes(), &place()).unwrap();
            config.platform(&place())
        };
        assert_eq!(os("linux").unwrap().unwrap().to_string(), "linux/amd64");
        assert_eq!(os("").unwrap(), None);
        let error = os(&"x".repeat(256)).unwrap_err();
        assert!(error.to_string().contains("more than 255 bytes"), "{error}");
    }

    #[test]
    fn null_stands_for_none_where_producers_write_it() {
        let list = elements(
            br#"[{"Config":"a","RepoTags":null,"Layers":null}]"#,
            &place(),
        )
        .unwrap();
        assert!(list[0].repo_tags.is_none() && list[0].layers.is_none());
        assert!(elements(b"null", &place()).unwrap().is_empty());
        let index: LayoutIndex =
            parse(br#"{"schemaVersion":2,"manifests":null}"#, &place()).unwrap();
        assert!(index.manifests.is_none());
    }

    #[test]
    fn a_folder_of_skopeo_is_named_as_what_it_is() {
        let error = elements(br#" {"schemaVersion":2}"#, &place()).unwrap_err();
        assert!(error.to_string().contains("dir:"), "{error}");
    }
}
