//! Parts that the tests of this room share: a small writer of tar archives that can also write what no tool would, images in
//! the layouts of several producers, a cache in a temporary folder.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cache::Cache,
    error::{Classified, handlers},
    image::{Digest, ImageName, MediaType, RawManifest},
    output::{Event, Level, OutputManager, Renderer},
};

use super::{
    Archive, ArchiveContents, Limits, StoredArchiveImage, TarUtils, error::Result, header::BLOCK,
};

/// A gzip member.
pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Puts a file there.
pub(super) fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    let mut file = File::create(path).unwrap();
    file.write_all(bytes.as_ref()).unwrap();
}

/// A zstd frame.
pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A PAX record; the length counts its own digits.
pub(super) fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length += 1;
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Writes a tar archive from hand-made headers.
#[derive(Clone, Default)]
pub(super) struct Tar(Vec<u8>);

impl Tar {
    /// Any entry; `change` may put what it likes into the header before its checksum is made.
    pub(super) fn entry(
        mut self,
        kind: u8,
        name: &[u8],
        content: &[u8],
        change: impl FnOnce(&mut [u8; BLOCK]),
    ) -> Self {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name);
        header[100..107].copy_from_slice(b"0000644");
        set_size(&mut header, content.len() as u64);
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut header);
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.data(content)
    }

    /// Bytes and their padding.
    pub(super) fn data(mut self, content: &[u8]) -> Self {
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    pub(super) fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        // What the header has no room for stands before it.
        if name.len() > 100 {
            let tar = self.pax(&[("path", name)]);
            return tar.entry(b'0', b"long", content.as_ref(), |_| {});
        }
        self.entry(b'0', name.as_bytes(), content.as_ref(), |_| {})
    }

    pub(super) fn folder(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), b"", |_| {})
    }

    pub(super) fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.entry(kind, name.as_bytes(), b"", |header| {
            header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        })
    }

    /// An extension header: `x`, `g`, `L` or `K`.
    pub(super) fn extension(self, kind: u8, payload: &[u8]) -> Self {
        self.entry(kind, b"extension", payload, |_| {})
    }

    /// An `x` header with these records.
    pub(super) fn pax(self, records: &[(&str, &str)]) -> Self {
        let payload: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| pax_record(key, value.as_bytes()))
            .collect();
        self.extension(b'x', &payload)
    }

    /// Everything of another archive.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// The bytes so far, without end mark.
    pub(super) fn open_end(self) -> Vec<u8> {
        self.0
    }

    /// The whole archive.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 2 * BLOCK]);
        self.0
    }
}

/// Sets the size field.
pub(super) fn set_size(header: &mut [u8; BLOCK], size: u64) {
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
}

/// An image in pieces, from which the layouts are put together.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) layers: Vec<Vec<u8>>,
    pub(super) config: Vec<u8>,
}

/// An image of two plain layers.
pub(super) fn sample() -> Sample {
    Sample::of(&[b"the first layer", b"the second layer"])
}

impl Sample {
    /// The layers are what they are before compression.
    pub(super) fn of(layers: &[&[u8]]) -> Self {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self {
            layers: layers.iter().map(|layer| layer.to_vec()).collect(),
            config: config.to_string().into_bytes(),
        }
    }

    pub(super) fn config_digest(&self) -> Digest {
        Digest::of(&self.config)
    }

    /// The same image with layers of another form; the configuration stays.
    pub(super) fn packed(mut self, pack: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        for layer in &mut self.layers {
            *layer = pack(layer);
        }
        self
    }

    /// `manifest.json` with layers at `layer-<n>`, and the configuration at `config.json`.
    pub(super) fn manifest(&self, tags: &Value) -> Value {
        let layers: Vec<String> = (0..self.layers.len())
            .map(|number| format!("layer-{number}"))
            .collect();
        json!([{"Config": "config.json", "RepoTags": tags, "Layers": layers}])
    }

    /// A simple archive of Docker's kind, without its end.
    pub(super) fn docker(&self) -> Tar {
        self.parts().file(
            "manifest.json",
            self.manifest(&json!(["app:1"])).to_string(),
        )
    }

    /// The same without `manifest.json`.
    pub(super) fn parts(&self) -> Tar {
        let tar = Tar::default().file("config.json", &self.config);
        (0..)
            .zip(&self.layers)
            .fold(tar, |tar: Tar, (number, layer): (i32, _)| {
                tar.file(&format!("layer-{number}"), layer)
            })
    }

    /// An OCI manifest of the image.
    pub(super) fn oci_manifest(&self, layer_type: &str) -> Vec<u8> {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor(layer_type, layer))
            .collect();
        json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": descriptor(MediaType::OCI_CONFIG.as_str(), &self.config), "layers": layers,
        })
        .to_string()
        .into_bytes()
    }

    /// An OCI archive of the image, without its end.
    pub(super) fn oci_archive(&self) -> Tar {
        let manifest = self.oci_manifest(PLAIN);
        let top = descriptor(MediaType::OCI_MANIFEST.as_str(), &manifest);
        layout(blob(self.oci_blobs(), &manifest), &[top])
    }

    /// The blobs of an OCI layout, without manifests.
    pub(super) fn oci_blobs(&self) -> Tar {
        self.layers
            .iter()
            .fold(blob(Tar::default(), &self.config), |tar, layer| {
                blob(tar, layer)
            })
    }
}

pub(super) const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A descriptor of some bytes.
pub(super) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// A blob under its digest.
pub(super) fn blob(tar: Tar, bytes: &[u8]) -> Tar {
    tar.file(&format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes)
}

/// An OCI layout with these top descriptors.
pub(super) fn layout(tar: Tar, descriptors: &[Value]) -> Tar {
    let index = json!({"schemaVersion": 2, "manifests": descriptors});
    tar.file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.to_string())
}

/// How an archive reaches the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    File,
    Stream,
    GzipFile,
    ZstdStream,
}

pub(super) const WAYS: [Way; 4] = [Way::File, Way::Stream, Way::GzipFile, Way::ZstdStream];

/// Keeps what was said.
#[derive(Clone, Default)]
pub(super) struct Messages(Arc<Mutex<Vec<String>>>);

impl Renderer for Messages {
    fn handle(&self, event: &Event<'_>) {
        if let Event::Message {
            level: Level::Warning,
            text,
        } = event
        {
            self.0.lock().unwrap().push((*text).to_owned());
        }
    }
}

/// A cache in a folder of its own, and somebody who listens to warnings.
pub(super) struct Bed {
    pub(super) cache: Cache,
    pub(super) output: OutputManager,
    pub(super) limits: Limits,
    messages: Messages,
    folder: TempDir,
}

pub(super) fn bed() -> Bed {
    let folder = tempfile::tempdir().unwrap();
    let messages = Messages::default();
    let output = OutputManager::new(messages.clone());
    Bed {
        cache: Cache::open(folder.path().join("cache"), output.clone()).unwrap(),
        output,
        limits: Limits::default(),
        messages,
        folder,
    }
}

impl Bed {
    pub(super) fn warnings(&self) -> Vec<String> {
        self.messages.0.lock().unwrap().clone()
    }

    /// Writes a file beside the cache.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        put(&path, bytes);
        path
    }

    pub(super) fn archive(&self, bytes: &[u8], way: Way) -> Archive {
        let stream = |bytes: Vec<u8>| {
            Archive::from_reader(std::io::Cursor::new(bytes), "standard input".to_owned())
        };
        match way {
            Way::File => Archive::open(&self.write("app.tar", bytes)).unwrap(),
            Way::GzipFile => Archive::open(&self.write("app.tar.gz", &gzip(bytes))).unwrap(),
            Way::Stream => stream(bytes.to_vec()),
            Way::ZstdStream => stream(zstd(bytes)),
        }
    }

    pub(super) async fn parse(&self, bytes: &[u8], way: Way) -> Result<ArchiveContents> {
        let archive = self.archive(bytes, way);
        TarUtils::parse_image_info(archive, &self.cache, &self.limits, &self.output).await
    }

    /// Stores every image under its own names.
    pub(super) async fn store(&self, bytes: &[u8], way: Way) -> Result<Vec<StoredArchiveImage>> {
        let contents = self.parse(bytes, way).await?;
        let chosen: Vec<_> = contents
            .images()
            .iter()
            .map(|image| (image.position, image.names.clone()))
            .collect();
        contents.store(&chosen).await
    }

    /// The manifest under a name of the cache.
    pub(super) async fn manifest(&self, name: &str) -> Option<RawManifest> {
        let name: ImageName = name.parse().unwrap();
        self.cache
            .manifest(&name.repository, &name.reference)
            .await
            .unwrap()
    }

    /// Every file of the cache but locks and notes.
    pub(super) fn files(&self) -> Vec<String> {
        let root = self.cache.directory();
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let relative = path.strip_prefix(root).unwrap().display().to_string();
                if relative == ".locks" || relative == ".state" {
                } else if path.is_dir() {
                    folders.push(path);
                } else {
                    found.push(relative);
                }
            }
        }
        found.sort();
        found
    }
}

/// That an archive is refused, whichever way it comes, for this reason and with these words, and leaves nothing behind.
pub(super) async fn refused(bytes: &[u8], reason: &str, words: &str) {
    refused_within(&Limits::default(), bytes, reason, words).await;
}

pub(super) async fn refused_within(limits: &Limits, bytes: &[u8], reason: &str, words: &str) {
    for way in WAYS {
        let mut bed = bed();
        bed.limits = limits.clone();
        let error = bed.store(bytes, way).await.unwrap_err();
        let text = handlers::message(&error);
        assert_eq!(error.reason(), reason, "{way:?}: {text}");
        assert!(text.contains(words), "{way:?}: {text}");
        assert_eq!(bed.files(), Vec::<String>::new(), "{way:?}: {text}");
    }
}

/// That an archive is accepted, whichever way it comes; gives the digests, which are the same each time.
pub(super) async fn accepted(bytes: &[u8]) -> Vec<Digest> {
    let mut all = Vec::new();
    for way in WAYS {
        let bed = bed();
        let stored = match bed.store(bytes, way).await {
            Ok(stored) => stored,
            Err(error) => panic!("{way:?}: {}", handlers::message(&error)),
        };
        assert!(!bed.files().iter().any(|file| file.contains(".partial")));
        all.push(
            stored
                .into_iter()
                .map(|image| image.digest)
                .collect::<Vec<_>>(),
        );
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{all:?}");
    all.remove(0)
}
