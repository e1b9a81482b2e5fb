//! The data sets that a copy has to bring over byte for byte (registry reference, X3), and odd ones of other rules. All are
//! made from a number, so the same number gives the same digests.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::content::Content;
use super::storage::Document;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// An image or artifact as a registry holds it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// What the tag stands for, with its digest.
    pub root: (String, Document),
    /// Everything else that has a manifest, children first.
    pub manifests: Vec<(String, Document)>,
    pub blobs: Vec<(String, Content)>,
    /// Blobs that are not copied.
    pub staying: BTreeSet<String>,
}

/// Builds samples part by part.
#[derive(Debug, Clone)]
struct Maker {
    seed: u64,
    algorithm: &'static str,
    manifests: Vec<(String, Document)>,
    blobs: Vec<(String, Content)>,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            algorithm: "sha256",
            manifests: Vec::new(),
            blobs: Vec::new(),
        }
    }

    fn blob(&mut self, media_type: &str, content: Content) -> Value {
        let digest = content.digest_with(self.algorithm);
        let size = content.size();
        if self.blobs.iter().all(|(known, _)| *known != digest) {
            self.blobs.push((digest.clone(), content));
        }
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn layer(&mut self, size: u64) -> Value {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        self.blob(LAYER, Content::seeded(self.seed, size))
    }

    fn config(&mut self, architecture: &str) -> Value {
        let config = json!({
            "architecture": architecture, "os": "linux", "author": format!("seed {}", self.seed),
            "rootfs": {"type": "layers", "diff_ids": []}, "config": {},
        });
        self.blob(CONFIG, Content::new(config.to_string()))
    }

    fn image(&mut self, layers: &[u64]) -> Value {
        let layers: Vec<Value> = layers.iter().map(|size| self.layer(*size)).collect();
        let config = self.config("amd64");
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    }

    fn document(&self, media_type: &str, text: String) -> (String, Document) {
        let digest = Content::new(text.clone()).digest_with(self.algorithm);
        let document = Document {
            bytes: text.into(),
            media_type: media_type.to_owned(),
        };
        (digest, document)
    }

    /// Adds a manifest below the root and describes it.
    fn child(&mut self, value: &Value) -> Value {
        let media_type = value["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
        let (digest, document) = self.document(&media_type, value.to_string());
        let size = document.bytes.len();
        self.manifests.push((digest.clone(), document));
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    fn platform(&mut self, architecture: &str, layers: &[u64]) -> Value {
        let mut image = self.image(layers);
        image["config"] = self.config(architecture);
        let mut child = self.child(&image);
        child["platform"] = json!({"architecture": architecture, "os": "linux"});
        child
    }

    fn index(manifests: &[Value]) -> Value {
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    }

    fn finish(self, root: &Value) -> Sample {
        let media_type = root["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
        self.finish_text(&media_type, root.to_string())
    }

    fn finish_text(mut self, media_type: &str, text: String) -> Sample {
        // Images whose configuration was replaced leave the first one behind.
        let all: String = self
            .manifests
            .iter()
            .map(|(_, document)| String::from_utf8_lossy(&document.bytes).into_owned())
            .chain([text.clone()])
            .collect();
        self.blobs
            .retain(|(digest, _)| all.contains(digest.as_str()));
        let root = self.document(media_type, text);
        Sample {
            root,
            manifests: self.manifests,
            blobs: self.blobs,
            staying: BTreeSet::new(),
        }
    }
}

impl Sample {
    /// One platform, a layer per size.
    pub fn image(seed: u64, layers: &[u64]) -> Self {
        let mut maker = Maker::new(seed);
        let image = maker.image(layers);
        maker.finish(&image)
    }

    /// Docker's own types.
    pub fn docker_image(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let mut image = maker.image(&[20_000]);
        image["mediaType"] = json!(DOCKER_MANIFEST);
        image["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
        image["layers"][0]["mediaType"] =
            json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
        maker.finish(&image)
    }

    pub fn index(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let children = [
            maker.platform("amd64", &[30_000, 10_000]),
            maker.platform("arm64", &[25_000]),
        ];
        maker.finish(&Maker::index(&children))
    }

    pub fn nested_index(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let inner = [maker.platform("amd64", &[30_000])];
        let inner = maker.child(&Maker::index(&inner));
        let outer = [inner, maker.platform("arm64", &[25_000])];
        maker.finish(&Maker::index(&outer))
    }

    /// An index one of whose children is nowhere.
    pub fn sparse_index(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let there = maker.platform("amd64", &[30_000]);
        let mut missing = there.clone();
        missing["digest"] = json!(Content::new(format!("missing {seed}")).digest());
        missing["platform"]["architecture"] = json!("s390x");
        maker.finish(&Maker::index(&[there, missing]))
    }

    /// An artifact with the empty configuration.
    pub fn artifact(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let artifact = artifact(&mut maker, None);
        maker.finish(&artifact)
    }

    /// An artifact about an image that lies beside it.
    pub fn subject(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let image = maker.image(&[12_000]);
        let subject = maker.child(&image);
        let artifact = artifact(&mut maker, Some(subject));
        let mut sample = maker.finish(&artifact);
        // A tag names the artifact only; its subject is an image of its own.
        let (digest, document) = sample.manifests.remove(0);
        sample
            .blobs
            .retain(|(blob, _)| !String::from_utf8_lossy(&document.bytes).contains(blob.as_str()));
        drop(digest);
        sample
    }

    /// An artifact about something that is nowhere.
    pub fn subject_missing(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let digest = Content::new(format!("no subject {seed}")).digest();
        let subject = json!({"mediaType": MANIFEST, "digest": digest, "size": 1234});
        let artifact = artifact(&mut maker, Some(subject));
        maker.finish(&artifact)
    }

    /// An index of artifacts.
    pub fn artifact_list(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let mut children = Vec::new();
        for _ in 0..2 {
            let artifact = artifact(&mut maker, None);
            children.push(maker.child(&artifact));
        }
        let mut index = Maker::index(&children);
        index["artifactType"] = json!("application/vnd.example.list");
        maker.finish(&index)
    }

    /// A layer whose bytes stand in its descriptor too.
    pub fn data_field(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let mut image = maker.image(&[9_000]);
        let text = format!("embedded {seed}");
        let mut layer = maker.blob("text/plain", Content::new(text.clone()));
        layer["data"] = json!(base64::Engine::encode(
            &base64::prelude::BASE64_STANDARD,
            text
        ));
        if let Some(layers) = image["layers"].as_array_mut() {
            layers.push(layer);
        }
        maker.finish(&image)
    }

    /// A layer that stays with its publisher, at `urls`.
    pub fn nondistributable(seed: u64, urls: &[String]) -> Self {
        let mut maker = Maker::new(seed);
        let mut image = maker.image(&[9_000, 15_000]);
        image["layers"][1]["mediaType"] = json!(NONDISTRIBUTABLE);
        image["layers"][1]["urls"] = json!(urls);
        let digest = image["layers"][1]["digest"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut sample = maker.finish(&image);
        sample.staying.insert(digest);
        sample
    }

    pub fn custom_fields(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let mut image = maker.image(&[9_000]);
        image["org.example.unknown"] = json!({"nested": [1, 2.50, null, "\u{e9}\u{1f433}"]});
        image["config"]["org.example.unknown"] = json!(true);
        image["annotations"] = json!({"": "an empty key", "b": "2", "a": "1"});
        maker.finish(&image)
    }

    pub fn no_layers(seed: u64) -> Self {
        Self::image(seed, &[])
    }

    /// A layer without bytes.
    pub fn empty_blob(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let mut image = maker.image(&[9_000]);
        let empty = maker.blob(LAYER, Content::new(""));
        if let Some(layers) = image["layers"].as_array_mut() {
            layers.push(empty);
        }
        maker.finish(&image)
    }

    /// Everything by SHA-512.
    pub fn sha512(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        maker.algorithm = "sha512";
        let image = maker.image(&[9_000, 11_000]);
        maker.finish(&image)
    }

    /// Odd white space, order of keys, unknown fields and a trailing newline: all of it is part of the digest (G1).
    pub fn odd_json(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let image = maker.image(&[9_000]);
        let (config, layers) = (&image["config"], &image["layers"]);
        let text = format!(
            "\n\t{{ \"layers\" :{layers},\r\n  \"unknown\": 1e0, \"config\":{config} ,\n\"mediaType\": \"{MANIFEST}\",   \
             \"schemaVersion\":2}}  \n"
        );
        maker.finish_text(MANIFEST, text)
    }

    /// A manifest of exactly so many bytes.
    pub fn big_manifest(seed: u64, bytes: usize) -> Self {
        let mut maker = Maker::new(seed);
        let mut image = maker.image(&[9_000]);
        image["annotations"] = json!({"padding": ""});
        let missing = bytes.saturating_sub(image.to_string().len());
        image["annotations"]["padding"] = json!("x".repeat(missing));
        maker.finish(&image)
    }

    /// Docker's schema 1, signatures left out (M5).
    pub fn schema1() -> Document {
        let text = json!({
            "schemaVersion": 1, "name": "team/app", "tag": "1", "architecture": "amd64",
            "fsLayers": [{"blobSum": Content::new("x").digest()}],
            "history": [{"v1Compatibility": "{}"}], "signatures": [],
        });
        Document {
            bytes: text.to_string().into(),
            media_type: SCHEMA1.to_owned(),
        }
    }

    /// The artifact manifest that was dropped before OCI 1.1 (M5).
    pub fn artifact_manifest(seed: u64) -> Self {
        let mut maker = Maker::new(seed);
        let blob = maker.layer(7_000);
        let artifact = json!({
            "mediaType": ARTIFACT, "artifactType": "application/vnd.example.sbom", "blobs": [blob],
        });
        maker.finish(&artifact)
    }

    /// A change of the root's JSON, for manifests that contradict themselves.
    pub fn root_with(&self, change: impl FnOnce(&mut Value)) -> Document {
        let mut value: Value = serde_json::from_slice(&self.root.1.bytes).unwrap_or_default();
        change(&mut value);
        Document {
            bytes: value.to_string().into(),
            media_type: self.root.1.media_type.clone(),
        }
    }

    /// The digest of the root.
    pub fn digest(&self) -> &str {
        &self.root.0
    }

    /// The blobs' bytes together, those that stay left out.
    pub fn size(&self) -> u64 {
        let travelling = self
            .blobs
            .iter()
            .filter(|(digest, _)| !self.staying.contains(digest));
        travelling.map(|(_, content)| content.size()).sum()
    }

    /// The digest of the largest blob.
    pub fn largest_blob(&self) -> &str {
        let largest = self.blobs.iter().max_by_key(|(_, content)| content.size());
        largest.map_or("", |(digest, _)| digest)
    }
}

fn artifact(maker: &mut Maker, subject: Option<Value>) -> Value {
    let config = maker.blob(EMPTY, Content::new("{}"));
    let layer = maker.layer(5_000);
    let mut artifact = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.sbom",
        "config": config, "layers": [layer],
    });
    if let Some(subject) = subject {
        artifact["subject"] = subject;
    }
    artifact
}
