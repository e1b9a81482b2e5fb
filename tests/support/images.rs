//! Images made on the spot: random layers of a chosen number and size, for one platform or several, as an OCI layout
//! that skopeo carries to where a test wants it. Nothing is held in memory, so a layer may be as large as the disk.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::process::temporary_folder;
use super::registry::Access;
use super::skopeo::{self, End};
use super::{Context, Result};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What an image shall be like: by default one layer of 100 kB for linux/amd64.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    layers: Vec<u64>,
    platforms: Vec<String>,
    gzip_level: u32,
    seed: u64,
}

/// A finished image in a folder of its own.
#[derive(Debug)]
pub struct Image {
    folder: TempDir,
    /// Of the index if there are several platforms, else of the manifest.
    pub digest: String,
    pub manifests: Vec<ImageManifest>,
}

/// One platform's part.
#[derive(Debug, Clone)]
pub struct ImageManifest {
    pub platform: String,
    pub digest: String,
    pub config: Blob,
    pub layers: Vec<Layer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub digest: String,
    pub size: u64,
}

#[derive(Debug, Clone)]
pub struct Layer {
    pub blob: Blob,
    /// The digest of the layer before compression.
    pub diff_id: String,
}

impl Image {
    pub fn builder() -> ImageBuilder {
        ImageBuilder {
            layers: vec![100_000],
            platforms: vec!["linux/amd64".to_owned()],
            gzip_level: 1,
            // Different images by default, so that tests which share a registry do not share blobs.
            seed: fastrand::u64(..),
        }
    }

    /// The OCI layout.
    pub fn layout(&self) -> &Path {
        self.folder.path()
    }

    /// Puts the image with all its platforms into a registry; `name` is `repository:tag`.
    pub fn push(&self, access: &Access, name: &str) -> Result<()> {
        skopeo::copy(self.end().as_end(), End::Registry(access, name))
    }

    /// The same with skopeo's options of the caller's choice, such as `--format v2s2` for Docker's media types.
    pub fn push_with(&self, access: &Access, name: &str, options: &[&str]) -> Result<()> {
        skopeo::copy_with(self.end().as_end(), End::Registry(access, name), options)
    }

    /// Writes what `docker save` would: the first platform, under `name:tag`.
    pub fn save_docker_archive(&self, file: &Path, name: &str) -> Result<()> {
        let destination = format!("docker-archive:{}:{name}", file.display());
        skopeo::copy_with(self.end().as_end(), End::Local(&destination), &[])
    }

    /// Writes the layout as one tar file.
    pub fn save_oci_archive(&self, file: &Path, tag: &str) -> Result<()> {
        let destination = format!("oci-archive:{}:{tag}", file.display());
        skopeo::copy(self.end().as_end(), End::Local(&destination))
    }

    /// The file of one of the image's blobs or manifests.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        blob_file(self.folder.path(), digest)
    }

    /// Every config and layer once.
    pub fn blobs(&self) -> Vec<Blob> {
        let mut blobs: Vec<Blob> = Vec::new();
        for manifest in &self.manifests {
            for blob in std::iter::once(&manifest.config)
                .chain(manifest.layers.iter().map(|layer| &layer.blob))
            {
                if !blobs.contains(blob) {
                    blobs.push(blob.clone());
                }
            }
        }
        blobs
    }

    /// The bytes of all of them.
    pub fn size(&self) -> u64 {
        self.blobs().iter().map(|blob| blob.size).sum()
    }

    fn end(&self) -> LayoutName {
        LayoutName(format!("oci:{}", self.folder.path().display()))
    }
}

/// The layout in skopeo's words, owned, because [`End`] borrows.
struct LayoutName(String);

impl LayoutName {
    fn as_end(&self) -> End<'_> {
        End::Local(&self.0)
    }
}

impl ImageBuilder {
    /// So many layers, each with this many random bytes.
    #[must_use]
    pub fn layers(self, count: usize, bytes: u64) -> Self {
        self.layer_sizes(&vec![bytes; count])
    }

    /// One layer per size.
    #[must_use]
    pub fn layer_sizes(mut self, sizes: &[u64]) -> Self {
        self.layers = sizes.to_vec();
        self
    }

    /// `os/architecture` or `os/architecture/variant`; more than one makes an index. Each platform has its own layers.
    #[must_use]
    pub fn platforms(mut self, platforms: &[&str]) -> Self {
        self.platforms = platforms.iter().map(ToString::to_string).collect();
        self
    }

    /// 0 stores, which is fastest; random bytes do not shrink anyway.
    #[must_use]
    pub fn gzip_level(mut self, level: u32) -> Self {
        self.gzip_level = level;
        self
    }

    /// The same seed and shape give the same image, digest for digest.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    pub fn build(&self) -> Result<Image> {
        let folder = temporary_folder("image")?;
        std::fs::create_dir_all(folder.path().join("blobs/sha256"))
            .context("could not make an OCI layout")?;
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut manifests = Vec::new();
        let mut entries = Vec::new();
        for platform in &self.platforms {
            let (manifest, entry) = self.add_platform(folder.path(), platform, &mut random)?;
            manifests.push(manifest);
            entries.push(entry);
        }
        let top = match entries.as_slice() {
            [only] => only.clone(),
            several => {
                let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": several});
                describe(INDEX, &add_json(folder.path(), &index)?)
            }
        };
        let digest = top["digest"].as_str().unwrap_or_default().to_owned();
        write_json(
            &folder.path().join("oci-layout"),
            &json!({"imageLayoutVersion": "1.0.0"}),
        )?;
        write_json(
            &folder.path().join("index.json"),
            &json!({"schemaVersion": 2, "manifests": [top]}),
        )?;
        Ok(Image {
            folder,
            digest,
            manifests,
        })
    }

    /// Writes one platform's blobs and gives its entry for an index.
    fn add_platform(
        &self,
        folder: &Path,
        platform: &str,
        random: &mut fastrand::Rng,
    ) -> Result<(ImageManifest, Value)> {
        let mut layers = Vec::new();
        for &size in &self.layers {
            layers.push(add_layer(folder, size, self.gzip_level, random)?);
        }
        let platform_json = platform_json(platform);
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let mut config = json!({"config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        merge(&mut config, &platform_json);
        let config = add_json(folder, &config)?;
        let manifest = add_json(
            folder,
            &json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": describe(CONFIG, &config),
                "layers": layers.iter().map(|layer| describe(LAYER, &layer.blob)).collect::<Vec<_>>(),
            }),
        )?;
        let mut entry = describe(MANIFEST, &manifest);
        entry["platform"] = platform_json;
        Ok((
            ImageManifest {
                platform: platform.to_owned(),
                digest: manifest.digest,
                config,
                layers,
            },
            entry,
        ))
    }
}

fn platform_json(platform: &str) -> Value {
    let mut parts = platform.split('/');
    let mut json = json!({"os": parts.next(), "architecture": parts.next()});
    if let Some(variant) = parts.next() {
        json["variant"] = variant.into();
    }
    json
}

fn merge(target: &mut Value, source: &Value) {
    for (key, value) in source.as_object().into_iter().flatten() {
        target[key] = value.clone();
    }
}

/// A descriptor as manifests contain them.
fn describe(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
}

fn add_json(folder: &Path, content: &Value) -> Result<Blob> {
    let bytes = content.to_string();
    let digest = skopeo::sha256(bytes.as_bytes());
    std::fs::write(blob_file(folder, &digest), &bytes).context("could not write a blob")?;
    Ok(Blob {
        digest,
        size: bytes.len() as u64,
    })
}

fn write_json(file: &Path, content: &Value) -> Result<()> {
    std::fs::write(file, content.to_string()).context(format!("could not write {}", file.display()))
}

fn blob_file(folder: &Path, digest: &str) -> PathBuf {
    folder.join("blobs").join(digest.replace(':', "/"))
}

/// A gzipped tar with one file of random bytes, hashed on both sides of the compression while it is written.
fn add_layer(
    folder: &Path,
    size: u64,
    gzip_level: u32,
    random: &mut fastrand::Rng,
) -> Result<Layer> {
    let unnamed = folder.join("blobs/unnamed");
    let file = File::create(&unnamed).context("could not make a layer")?;
    let compressed = Hashing::new(BufWriter::with_capacity(1 << 20, file));
    let plain = Hashing::new(GzEncoder::new(compressed, Compression::new(gzip_level)));

    let mut tar = tar::Builder::new(plain);
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    let name = format!("data/{:016x}", random.u64(..));
    tar.append_data(
        &mut header,
        name,
        RandomBytes {
            random,
            remaining: size,
        },
    )
    .context("could not write a layer")?;
    let (diff_id, gzip) = tar
        .into_inner()
        .context("could not end a layer's tar")?
        .finish();
    let (digest, mut file) = gzip
        .finish()
        .context("could not end a layer's compression")?
        .finish();
    file.flush().context("could not write a layer")?;

    let size = std::fs::metadata(&unnamed)
        .context("could not look at a layer")?
        .len();
    std::fs::rename(&unnamed, blob_file(folder, &digest)).context("could not name a layer")?;
    Ok(Layer {
        blob: Blob { digest, size },
        diff_id,
    })
}

/// Passes bytes on and hashes them.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    fn finish(self) -> (String, W) {
        (
            skopeo::digest_text(self.hash.finalize().as_ref()),
            self.inner,
        )
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

struct RandomBytes<'a> {
    random: &'a mut fastrand::Rng,
    remaining: u64,
}

impl Read for RandomBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = usize::try_from(self.remaining)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.random.fill(&mut buffer[..length]);
        self.remaining -= length as u64;
        Ok(length)
    }
}
