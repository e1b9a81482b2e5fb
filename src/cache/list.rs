//! What is in the cache, for people. Read from the files themselves; the index only adds where an image came from.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use crate::image::{Digest, ImageName, Manifest, MediaType, Platform, RawManifest, Reference};

use super::{
    Cache,
    disk::{blocking, read_small},
    error::Result,
    index::Entries,
    layout::{Layout, index_key},
    manifests::{Stored, StoredReference, read_manifest, scan},
    trust::open_sized,
};

/// A configuration is small; a larger one says nothing worth the memory.
const MAX_CONFIG_SIZE: u64 = 8 * 1024 * 1024;

/// How deep indexes may lie in indexes; nobody makes more than two levels.
const MAX_DEPTH: usize = 8;

/// An image in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedImage {
    /// Its name.
    pub name: ImageName,
    /// Digest of its manifest or index.
    pub digest: Digest,
    /// Type of its manifest or index.
    pub media_type: MediaType,
    /// The platforms it is for, as far as the cache has them.
    pub platforms: Vec<Platform>,
    /// Bytes of its blobs and manifests in the cache; what is shared with other images counts for each.
    pub size: u64,
    /// Address of the registry it came from, if known.
    pub registry: Option<String>,
    /// Manifests its index names that are not in the cache, as after a pull of some platforms. What its source did not have
    /// is not counted.
    pub missing_manifests: usize,
    /// Blobs its manifests name that are not in the cache.
    pub missing_blobs: usize,
}

impl ListedImage {
    /// Whether everything the image names is in the cache.
    pub const fn is_complete(&self) -> bool {
        self.missing_manifests == 0 && self.missing_blobs == 0
    }
}

/// Whether somebody asked for an image by this name: tags always, a digest unless it came as the child of an index. A
/// digest the index does not know counts as asked for, so that nothing is lost with the index.
pub(super) fn is_asked_for(name: &ImageName, entries: &Entries) -> bool {
    name.reference.tag().is_some()
        || entries
            .get(&index_key(&name.repository, &name.reference))
            .is_none_or(|entry| !entry.child)
}

impl Cache {
    /// The images in the cache by name; children of an index are part of it and not listed.
    pub async fn list(&self) -> Result<Vec<ListedImage>> {
        let _store = self.read_shared().await?;
        let entries = self
            .index
            .entries(&self.shared.layout, &self.output)
            .await?;
        let (layout, output) = (self.shared.layout.clone(), self.output.clone());
        blocking(move || {
            let mut images = Vec::new();
            for reference in scan(&layout)?.references {
                if !is_asked_for(&reference.name, &entries) {
                    continue;
                }
                match reference.read()? {
                    Stored::Manifest(manifest) => {
                        images.push(describe(&layout, &reference, &manifest, &entries)?);
                    }
                    Stored::Unreadable(reason) => output.warning(format!(
                        "{} is not listed: its manifest {} cannot be read: {reason}",
                        reference.name,
                        reference.path.display()
                    )),
                    // Removed since the look through the folders.
                    Stored::Absent => {}
                }
            }
            images.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(images)
        })
        .await
    }
}

/// What was found below one image.
#[derive(Default)]
struct Contents<'a> {
    seen: HashSet<Digest>,
    blobs: BTreeMap<Digest, bool>,
    platforms: Vec<Platform>,
    size: u64,
    missing_manifests: usize,
    /// What its source did not have.
    absent: &'a [String],
}

fn describe(
    layout: &Layout,
    reference: &StoredReference,
    root: &RawManifest,
    entries: &Entries,
) -> Result<ListedImage> {
    let key = index_key(&reference.name.repository, &reference.name.reference);
    let entry = entries.get(&key);
    let mut contents = Contents {
        absent: entry.map_or(&[], |entry| &entry.missing),
        ..Contents::default()
    };
    add(layout, &reference.name, root, None, 0, &mut contents)?;
    Ok(ListedImage {
        name: reference.name.clone(),
        digest: root.digest().clone(),
        media_type: root.media_type().clone(),
        platforms: contents.platforms,
        size: contents.size,
        registry: entry.and_then(|entry| entry.registry.clone()),
        missing_manifests: contents.missing_manifests,
        missing_blobs: contents.blobs.values().filter(|present| !**present).count(),
    })
}

/// Adds a manifest and everything below it.
fn add(
    layout: &Layout,
    name: &ImageName,
    manifest: &RawManifest,
    platform: Option<Platform>,
    depth: usize,
    contents: &mut Contents<'_>,
) -> Result<()> {
    if !contents.seen.insert(manifest.digest().clone()) {
        return Ok(());
    }
    contents.size += manifest.size();
    match manifest.parse() {
        Ok(Manifest::Image(image)) => {
            let travelling = image
                .blobs()
                .filter(|blob| !blob.stays_with_its_publisher());
            for blob in travelling {
                if contents.blobs.contains_key(&blob.digest) {
                    continue;
                }
                let present = open_sized(&layout.blob(&blob.digest), blob.size)?.is_some();
                contents.blobs.insert(blob.digest.clone(), present);
                if present {
                    contents.size += blob.size;
                }
            }
            let own = match (platform, &image.config) {
                (None, Some(config)) => config_platform(layout, &config.digest)?,
                (platform, _) => platform,
            };
            // Attestations are for the platform unknown/unknown.
            if let Some(own) = own
                && own.os != "unknown"
                && !contents.platforms.contains(&own)
            {
                contents.platforms.push(own);
            }
        }
        Ok(Manifest::Index(index)) => {
            for child in index.manifests {
                let reference = Reference::Digest(child.digest.clone());
                let path = layout.manifest(&name.repository, &reference);
                match read_manifest(&path, Some(&child.digest))? {
                    Stored::Manifest(below) if depth < MAX_DEPTH => {
                        add(layout, name, &below, child.platform, depth + 1, contents)?;
                    }
                    _ if contents.absent.contains(&child.digest.to_string()) => {}
                    _ => contents.missing_manifests += 1,
                }
            }
        }
        // Was parsed when it was read.
        Err(_) => {}
    }
    Ok(())
}

/// The platform an image configuration names, by the field names of a platform; other configurations name none.
fn config_platform(layout: &Layout, digest: &Digest) -> Result<Option<Platform>> {
    let config = read_small(&layout.blob(digest), MAX_CONFIG_SIZE)?;
    Ok(config
        .and_then(Result::ok)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{
        REGISTRY, config, fixture, image, index_of, layer, store_small, stored,
    };

    #[tokio::test]
    async fn an_image_is_listed_with_its_platforms_size_and_origin() {
        let fixture = fixture();
        let amd = image(&fixture.cache, &config("x", "amd64"), &[b"common", b"amd"]).await;
        let arm = image(&fixture.cache, &config("x", "arm64"), &[b"common", b"arm"]).await;
        let root = index_of(&[(&amd, "amd64"), (&arm, "arm64")]);
        let mut wanted = stored("multi/app", "1", &root);
        wanted.children = vec![amd.clone(), arm.clone()];
        fixture.cache.store_image(wanted).await.unwrap();
        store_small(&fixture.cache, "app", "1", b"one").await;

        let listed = fixture.reopened().list().await.unwrap();
        let names: Vec<String> = listed.iter().map(|image| image.name.to_string()).collect();
        assert_eq!(names, ["app:1", "multi/app:1"]);
        let platforms = |position: usize| -> Vec<String> {
            listed[position]
                .platforms
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(platforms(0), ["linux/amd64"]);
        assert_eq!(platforms(1), ["linux/amd64", "linux/arm64"]);
        let configs = config("x", "amd64").len() + config("x", "arm64").len();
        let blobs = configs + b"common".len() + b"amd".len() + b"arm".len();
        assert_eq!(
            listed[1].size,
            blobs as u64 + root.size() + amd.size() + arm.size()
        );
        assert_eq!(listed[1].digest, *root.digest());
        assert_eq!(listed[1].registry.as_deref(), Some(REGISTRY));
        assert!(listed.iter().all(super::ListedImage::is_complete));
    }

    #[tokio::test]
    async fn what_is_missing_is_told() {
        let fixture = fixture();
        let amd = image(&fixture.cache, &config("x", "amd64"), &[b"amd"]).await;
        let arm = image(&fixture.cache, &config("x", "arm64"), &[b"arm"]).await;
        let mut wanted = stored("app", "1", &index_of(&[(&amd, "amd64"), (&arm, "arm64")]));
        wanted.children = vec![amd];
        fixture.cache.store_image(wanted).await.unwrap();
        let listed = fixture.cache.list().await.unwrap();
        assert_eq!(
            (listed[0].missing_manifests, listed[0].missing_blobs),
            (1, 0)
        );
        std::fs::remove_file(fixture.cache.shared.layout.blob(&layer(b"amd").digest)).unwrap();
        let listed = fixture.cache.list().await.unwrap();
        assert_eq!(
            (listed[0].missing_manifests, listed[0].missing_blobs),
            (1, 1)
        );
    }

    async fn all_complete(cache: &super::Cache) -> bool {
        let listed = cache.list().await.unwrap();
        listed.iter().all(super::ListedImage::is_complete)
    }

    #[tokio::test]
    async fn what_the_source_did_not_have_is_not_missing() {
        let fixture = fixture();
        let amd = image(&fixture.cache, &config("x", "amd64"), &[b"amd"]).await;
        let arm = image(&fixture.cache, &config("x", "arm64"), &[b"arm"]).await;
        let root = index_of(&[(&amd, "amd64"), (&arm, "arm64")]);
        let mut wanted = stored("app", "1", &root);
        wanted.children = vec![amd];
        wanted.missing = vec![arm.digest().clone()];
        wanted.pinned = true;
        fixture.cache.store_image(wanted.clone()).await.unwrap();
        let cache = fixture.reopened();
        assert!(all_complete(&cache).await);
        // A run that goes on with exactly this image asks by its digest.
        let digest = root.digest().to_string();
        for reference in ["1", &digest] {
            let (repository, reference) = ("app".parse().unwrap(), reference.parse().unwrap());
            let missing = cache.missing(&repository, &reference).await;
            assert_eq!(missing, [arm.digest().clone()]);
        }

        // Entries of damaged files are made again from the folders, which know nothing of the source.
        let path = cache.directory().join("index.json");
        let mut index = fixture.index();
        index["broken"] = index["app/1"].clone();
        let mut file = std::fs::File::create(&path).unwrap();
        std::io::Write::write_all(&mut file, index.to_string().as_bytes()).unwrap();
        let cache = fixture.reopened();
        assert!(all_complete(&cache).await);

        // What comes later counts, and may get lost.
        wanted.children.push(arm.clone());
        wanted.missing.clear();
        cache.store_image(wanted).await.unwrap();
        let child = cache
            .directory()
            .join("manifests/app")
            .join(arm.digest().to_string());
        std::fs::remove_file(child).unwrap();
        assert!(!cache.list().await.unwrap()[0].is_complete());
    }

    #[tokio::test]
    async fn a_manifest_that_cannot_be_read_hides_no_other_image() {
        let fixture = fixture();
        store_small(&fixture.cache, "app", "1", b"one").await;
        store_small(&fixture.cache, "app", "2", b"two").await;
        let path = fixture.cache.directory().join("manifests/app/1");
        std::fs::File::create(&path).unwrap();
        assert_eq!(fixture.cache.list().await.unwrap().len(), 1);
        assert_eq!(fixture.messages.count("app:1 is not listed"), 1);
    }

    #[tokio::test]
    async fn a_cache_that_does_not_exist_is_empty_and_is_not_created() {
        let fixture = fixture();
        assert_eq!(fixture.cache.list().await.unwrap(), []);
        let _guard = fixture.cache.read_shared().await.unwrap();
        assert!(!fixture.cache.directory().exists());
    }
}
