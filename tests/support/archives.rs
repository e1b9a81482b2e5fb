//! Image archives in the layouts of producers that cannot run here: each is put together as that producer does it, from the
//! same image. Small, and in memory.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::skopeo::sha256;
use super::{Context, Result};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Who wrote the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Producer {
    /// docker save up to version 24: a folder per layer, a symlink for a layer that comes twice.
    DockerClassic,
    /// docker save from version 25 on: an OCI layout with plain layers beside `manifest.json`.
    DockerHybrid,
    /// docker save with containerd's store, nerdctl, ctr: layers as pulled, entries sorted, `manifest.json` behind the blobs.
    ContainerdStore,
    /// crane, kaniko, ko: a configuration with a colon in its name, compressed layers, the list last.
    Crane,
    /// jib: `config.json` and compressed layers.
    Jib,
    /// nix `streamLayeredImage`: a folder per layer.
    Nix,
    /// buildx `type=oci`: a layout, the name is only a tag.
    BuildxOci,
}

/// An image in pieces.
#[derive(Debug, Clone)]
pub struct Parts {
    pub config: Vec<u8>,
    /// Uncompressed, in order; one may come twice.
    pub layers: Vec<Vec<u8>>,
}

impl Parts {
    /// An image whose layers are tars with one file each, which holds the given text.
    pub fn of(texts: &[&str]) -> Result<Self> {
        let layers = texts
            .iter()
            .map(|text| layer(text))
            .collect::<Result<Vec<_>>>()?;
        let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Ok(Self {
            config: config.to_string().into_bytes(),
            layers,
        })
    }

    /// The layers as they are pulled.
    pub fn compressed(&self) -> Result<Vec<Vec<u8>>> {
        self.layers.iter().map(|layer| gzip(layer)).collect()
    }

    /// The OCI manifest of the image with these layers.
    pub fn manifest(&self, layers: &[Vec<u8>]) -> Vec<u8> {
        let is_plain = layers == self.layers;
        let layer_type = if is_plain { PLAIN_LAYER } else { GZIP_LAYER };
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| describe(layer_type, layer))
            .collect();
        let config = describe(CONFIG, &self.config);
        // With spaces, as some producers write it: bytes must stay.
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        format!("{manifest:#}").into_bytes()
    }

    /// The archive under the name `app:1`.
    pub fn archive(&self, producer: Producer) -> Result<Vec<u8>> {
        match producer {
            Producer::DockerClassic => self.classic(),
            Producer::DockerHybrid => self.hybrid(&self.layers.clone(), false),
            Producer::ContainerdStore => self.hybrid(&self.compressed()?, true),
            Producer::Crane => self.crane(),
            Producer::Jib => self.jib(),
            Producer::Nix => self.nix(),
            Producer::BuildxOci => self.buildx(),
        }
    }

    fn classic(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::default();
        let mut paths: Vec<String> = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let id = hex(format!("layer {number}").as_bytes());
            tar.folder(&format!("{id}/"))?;
            tar.file(&format!("{id}/VERSION"), b"1.0")?;
            tar.file(&format!("{id}/json"), b"{}")?;
            let path = format!("{id}/layer.tar");
            match self.layers[..number]
                .iter()
                .position(|other| other == layer)
            {
                Some(first) => tar.symlink(&path, &format!("../{}", paths[first]))?,
                None => tar.file(&path, layer)?,
            }
            paths.push(path);
        }
        let config = format!("{}.json", hex(&self.config));
        tar.file(&config, &self.config)?;
        tar.json("manifest.json", &element(&config, &paths))?;
        tar.json("repositories", &json!({"app": {"1": "id"}}))?;
        tar.end()
    }

    fn hybrid(&self, layers: &[Vec<u8>], list_last: bool) -> Result<Vec<u8>> {
        let manifest = self.manifest(layers);
        let mut blobs: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
        blobs.extend([&self.config[..], &manifest]);
        blobs.sort_by_key(|blob| hex(blob));
        blobs.dedup();
        let paths: Vec<String> = layers.iter().map(|layer| blob_path(layer)).collect();
        let list = element(&blob_path(&self.config), &paths);
        let mut tar = Tar::default();
        tar.folder("blobs/")?;
        tar.folder("blobs/sha256/")?;
        if !list_last {
            tar.json("manifest.json", &list)?;
            // Docker also writes the old descriptions of the layers as blobs that nothing names.
            tar.file(&blob_path(b"{}"), b"{}")?;
        }
        for blob in blobs {
            tar.file(&blob_path(blob), blob)?;
        }
        tar.json(
            "index.json",
            &index(
                &manifest,
                &json!({"io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1"}),
            ),
        )?;
        if list_last {
            tar.json("manifest.json", &list)?;
        }
        tar.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        tar.end()
    }

    fn crane(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::default();
        let config = sha256(&self.config);
        tar.file(&config, &self.config)?;
        let mut paths: Vec<String> = Vec::new();
        for layer in self.compressed()? {
            let path = format!("{}.tar.gz", hex(&layer));
            if !paths.contains(&path) {
                tar.file(&path, &layer)?;
            }
            paths.push(path);
        }
        tar.json("manifest.json", &element(&config, &paths))?;
        tar.end()
    }

    fn jib(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::default();
        let mut paths = Vec::new();
        for layer in self.compressed()? {
            let path = format!("{}.tar.gz", hex(&layer));
            // The same layer is written again, byte for byte.
            tar.file(&path, &layer)?;
            paths.push(path);
        }
        tar.file("config.json", &self.config)?;
        tar.json("manifest.json", &element("config.json", &paths))?;
        tar.end()
    }

    fn nix(&self) -> Result<Vec<u8>> {
        let mut tar = Tar::default();
        let mut paths: Vec<String> = Vec::new();
        for layer in &self.layers {
            let path = format!("{}/layer.tar", hex(layer));
            if !paths.contains(&path) {
                tar.folder(&format!("{}/", hex(layer)))?;
                tar.file(&path, layer)?;
            }
            paths.push(path);
        }
        let config = format!("{}.json", hex(&self.config));
        tar.file(&config, &self.config)?;
        tar.json("manifest.json", &element(&config, &paths))?;
        tar.end()
    }

    fn buildx(&self) -> Result<Vec<u8>> {
        let layers = self.compressed()?;
        let manifest = self.manifest(&layers);
        let mut tar = Tar::default();
        tar.folder("blobs/")?;
        tar.folder("blobs/sha256/")?;
        let mut written: Vec<String> = Vec::new();
        for blob in layers.iter().chain([&self.config, &manifest]) {
            if !written.contains(&hex(blob)) {
                tar.file(&blob_path(blob), blob)?;
                written.push(hex(blob));
            }
        }
        tar.json(
            "index.json",
            &index(
                &manifest,
                &json!({"org.opencontainers.image.ref.name": "1"}),
            ),
        )?;
        tar.json("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        tar.end()
    }
}

/// `manifest.json` of one image.
fn element(config: &str, layers: &[String]) -> Value {
    json!([{"Config": config, "RepoTags": ["app:1"], "Layers": layers}])
}

fn index(manifest: &[u8], annotations: &Value) -> Value {
    let mut descriptor = describe(MANIFEST, manifest);
    descriptor["annotations"] = annotations.clone();
    json!({"schemaVersion": 2, "manifests": [descriptor]})
}

fn describe(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

fn hex(bytes: &[u8]) -> String {
    sha256(bytes).replace("sha256:", "")
}

fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(bytes))
}

/// A tar with one file.
fn layer(text: &str) -> Result<Vec<u8>> {
    let mut tar = Tar::default();
    tar.file(&format!("data/{text}"), text.repeat(1000).as_bytes())?;
    tar.end()
}

/// A gzip stream, the same each time.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .context("could not compress")
}

/// A tar in memory.
struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Tar {
    fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let mut header = header(tar::EntryType::Regular, 0o644);
        header.set_size(content.len() as u64);
        self.0
            .append_data(&mut header, name, content)
            .context("could not write an entry")
    }

    fn json(&mut self, name: &str, content: &Value) -> Result<()> {
        self.file(name, content.to_string().as_bytes())
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Directory, 0o755);
        self.0
            .append_data(&mut header, name, std::io::empty())
            .context("could not write a folder")
    }

    fn symlink(&mut self, name: &str, target: &str) -> Result<()> {
        let mut header = header(tar::EntryType::Symlink, 0o777);
        self.0
            .append_link(&mut header, name, target)
            .context("could not write a link")
    }

    fn end(self) -> Result<Vec<u8>> {
        self.0.into_inner().context("could not end an archive")
    }
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}
