//! Storing an image whose blobs are in place: barrier, manifests by digest, the reference, the index, in this order. A run
//! that is killed in between leaves the old image whole or the new one complete.

use std::{collections::HashSet, sync::Arc};

use crate::{
    error::handlers,
    image::{Digest, ImageName, Manifest, RawManifest, Reference, Repository},
};

use super::{
    Cache,
    disk::{blocking, sync_folder},
    entry::CacheEntry,
    error::{Error, Result},
    index::{Change, Due},
    keep::Keep,
    layout::{Layout, relative_manifest},
    lock::LockName,
    manifests::{Stored, find_manifest, make_repository, move_aside, write_by_digest, write_tag},
    trust::open_sized,
};

/// How the origin of an image begins that came from an archive: the rest is the archive's name. Registries have addresses
/// with a scheme.
pub const ARCHIVE_ORIGIN: &str = "archive ";

/// An image whose blobs are in the cache.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// Where it is to lie.
    pub repository: Repository,
    /// The tag or digest it was asked for by.
    pub reference: Reference,
    /// Address of the registry it came from; for an archive [`ARCHIVE_ORIGIN`] and its name.
    pub registry: String,
    /// The manifest or index the reference stands for.
    pub root: RawManifest,
    /// Every manifest below an index, at any depth.
    pub children: Vec<RawManifest>,
    /// What indexes among these name and the source does not have.
    pub missing: Vec<Digest>,
    /// Whether the root is kept under its digest as well, for those who go on with exactly this image: the tag may stand
    /// for another one by then.
    pub pinned: bool,
}

impl StoredImage {
    fn name(&self) -> ImageName {
        ImageName {
            repository: self.repository.clone(),
            reference: self.reference.clone(),
        }
    }

    /// The digests of everything: manifests and blobs.
    fn digests(&self) -> HashSet<Digest> {
        let manifests = self.manifests().map(|manifest| manifest.digest().clone());
        let images = self
            .manifests()
            .filter_map(|manifest| match manifest.parse() {
                Ok(Manifest::Image(image)) => Some(image),
                Ok(Manifest::Index(_)) | Err(_) => None,
            });
        let blobs = images.flat_map(|image| {
            let blobs = image.blobs().map(|blob| blob.digest.clone());
            blobs.collect::<Vec<_>>()
        });
        manifests.chain(blobs).collect()
    }

    fn manifests(&self) -> impl Iterator<Item = &RawManifest> {
        self.children.iter().chain([&self.root])
    }

    /// The manifests that are kept by digest, besides the one that the reference names.
    fn by_digest(&self) -> impl Iterator<Item = &RawManifest> {
        let pinned = self.pinned && self.reference.digest().is_none();
        self.children.iter().chain(pinned.then_some(&self.root))
    }

    /// What the source does not have of a manifest: of the root at any depth, of a child what it names itself.
    fn missing_of(&self, manifest: &RawManifest) -> Vec<String> {
        let names = |digest: &&Digest| match manifest.parse() {
            Ok(Manifest::Index(index)) => {
                index.manifests.iter().any(|child| child.digest == **digest)
            }
            Ok(Manifest::Image(_)) | Err(_) => false,
        };
        let is_root = manifest == &self.root;
        let missing = self
            .missing
            .iter()
            .filter(|digest| is_root || names(digest));
        missing.map(ToString::to_string).collect()
    }
}

impl Cache {
    /// Makes an image part of the cache.
    ///
    /// # Errors
    /// When a blob is missing (layers that may not be distributed excepted), when the root is not what a digest reference
    /// names, and when the disk fails. A failed write of the index is only warned of: it can be rebuilt.
    pub async fn store_image(&self, image: StoredImage) -> Result<()> {
        if let Some(expected) = image.reference.digest()
            && expected != image.root.digest()
        {
            return Err(Error::DigestMismatch {
                expected: expected.clone(),
                actual: image.root.digest().clone(),
            });
        }
        let image = Arc::new(image);
        match self.store(Arc::clone(&image)).await {
            Err(Error::CacheFull { needed, .. }) if self.evict(needed, image.digests()).await? => {
                self.store(image).await
            }
            stored => stored,
        }
    }

    async fn store(&self, image: Arc<StoredImage>) -> Result<()> {
        let store = self.use_shared().await?;
        if self.shared.barrier.is_needed() || !self.is_stored(&image).await? {
            self.shared.barrier.pass(&self.shared.layout).await?;
        }
        let (layout, locks) = (&self.shared.layout, &self.shared.locks);
        if let Err(error) = self.index.create(layout, locks, &self.output).await {
            self.warn_of_the_index(&error);
        }
        self.make_repository(&image.repository).await?;
        self.warn_of_another_origin(&image).await?;
        let lock = self
            .shared
            .locks
            .exclusive(
                LockName::Reference(&image.repository, &image.reference),
                &self.output,
            )
            .await?;
        let (layout, keep) = (self.shared.layout.clone(), self.keep.clone());
        let changes = blocking(move || {
            // Held until the files are in place, even if nobody waits for that any more.
            let _locks = (store, lock);
            write(&layout, &image, &keep)
        })
        .await?;
        self.update_index(changes).await;
        Ok(())
    }

    /// Changes the index: soon in the file, at once for whoever asks this process.
    pub(super) async fn update_index(&self, changes: Vec<Change>) {
        match self.index.change(changes) {
            Due::Now => self.flush_index().await,
            Due::Scheduled => {}
            Due::At(time) => {
                let cache = self.clone();
                // Whoever ends before that writes it himself.
                self.index.later(async move {
                    tokio::time::sleep_until(time).await;
                    cache.flush_index().await;
                });
            }
        }
    }

    /// Writes what waits to be written into the index; for the end of a run. A failure only warns: the images are worth more
    /// than their entries, which can be rebuilt.
    pub async fn flush_index(&self) {
        let (layout, locks) = (&self.shared.layout, &self.shared.locks);
        if let Err(error) = self.index.flush(layout, locks, &self.output).await {
            self.warn_of_the_index(&error);
        }
    }

    pub(super) fn warn_of_the_index(&self, error: &Error) {
        self.output.warning(format!(
            "the cache index could not be written: {}",
            handlers::message(error)
        ));
    }

    /// Whether all manifests are in place with these bytes: then a barrier has covered their blobs before.
    async fn is_stored(&self, image: &Arc<StoredImage>) -> Result<bool> {
        let (layout, image) = (self.shared.layout.clone(), Arc::clone(image));
        blocking(move || {
            let is_in_place = |reference: &Reference, manifest: &RawManifest| {
                let (_, stored) = find_manifest(&layout, &image.repository, reference)?;
                Ok(matches!(stored, Stored::Manifest(present) if present == *manifest))
            };
            for child in image.by_digest() {
                if !is_in_place(&Reference::Digest(child.digest().clone()), child)? {
                    return Ok(false);
                }
            }
            is_in_place(&image.reference, &image.root)
        })
        .await
    }

    /// Makes the folder of a repository; a tag that has its place moves aside. Done before the image's own reference is
    /// locked, so that nobody ever waits for one reference while holding another.
    async fn make_repository(&self, repository: &Repository) -> Result<()> {
        loop {
            let (layout, wanted) = (self.shared.layout.clone(), repository.clone());
            let Some(clash) = blocking(move || make_repository(&layout, &wanted)).await? else {
                return Ok(());
            };
            let reference = Reference::Tag(clash.tag.clone());
            let lock = self
                .shared
                .locks
                .exclusive(
                    LockName::Reference(&clash.repository, &reference),
                    &self.output,
                )
                .await?;
            let layout = self.shared.layout.clone();
            blocking(move || {
                let _lock = lock;
                move_aside(&layout, &clash)
            })
            .await?;
        }
    }

    /// Two registries may have different images of one name; only one of them can lie in the cache.
    async fn warn_of_another_origin(&self, image: &StoredImage) -> Result<()> {
        let former = self
            .index
            .entry(
                &self.shared.layout,
                &self.output,
                &image.repository,
                &image.reference,
            )
            .await?
            .and_then(|entry| entry.registry);
        // The next build of an image comes in another file: one archive after the other is the usual thing.
        let are_archives = |former: &str| {
            former.starts_with(ARCHIVE_ORIGIN) && image.registry.starts_with(ARCHIVE_ORIGIN)
        };
        if let Some(former) = former
            && former != image.registry
            && !are_archives(&former)
        {
            self.output.warning(format!(
                "the cached image {} came from {former}; it is replaced by the one from {}",
                image.name(),
                image.registry
            ));
        }
        Ok(())
    }
}

/// Writes the manifests and tells what changes in the index.
fn write(layout: &Layout, image: &StoredImage, keep: &Keep) -> Result<Vec<Change>> {
    // After the barrier: if that failed for another image, blobs are gone.
    for manifest in image.manifests() {
        require_blobs(layout, image, manifest)?;
    }
    let mut changes = Vec::with_capacity(image.children.len() + 1);
    for child in image.by_digest() {
        write_by_digest(layout, &image.repository, child)?;
        let reference = Reference::Digest(child.digest().clone());
        let path = relative_manifest(&image.repository, &reference);
        let mut entry = CacheEntry::describe(layout, &image.repository, &reference, path, child)?;
        entry.registry = Some(image.registry.clone());
        entry.child = true;
        entry.missing = image.missing_of(child);
        changes.push(Change::Put(Box::new(entry)));
    }
    if image.by_digest().next().is_some() {
        sync_folder(&layout.repository(&image.repository))?;
    }
    let path = match &image.reference {
        Reference::Tag(tag) => write_tag(layout, &image.repository, tag, &image.root)?,
        Reference::Digest(_) => {
            write_by_digest(layout, &image.repository, &image.root)?;
            sync_folder(&layout.repository(&image.repository))?;
            relative_manifest(&image.repository, &image.reference)
        }
    };
    let mut entry = CacheEntry::describe(
        layout,
        &image.repository,
        &image.reference,
        path,
        &image.root,
    )?;
    entry.registry = Some(image.registry.clone());
    keep.note(&mut entry);
    entry.missing = image.missing_of(&image.root);
    changes.push(Change::Put(Box::new(entry)));
    Ok(changes)
}

/// A reference never names a blob that is not there.
fn require_blobs(layout: &Layout, image: &StoredImage, manifest: &RawManifest) -> Result<()> {
    let Ok(Manifest::Image(parsed)) = manifest.parse() else {
        return Ok(());
    };
    for blob in parsed.blobs() {
        let may_be_absent = blob.stays_with_its_publisher();
        if !may_be_absent && open_sized(&layout.blob(&blob.digest), blob.size)?.is_none() {
            return Err(Error::CachedBlobMissing {
                image: image.name().to_string(),
                digest: blob.digest.clone(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::testing::{
        REGISTRY, blob, config, fixture, image, index_of, layer, put, raw, read, store_small,
        stored,
    };
    use super::*;
    use crate::{cache::CleanRequest, image::MediaType};

    #[tokio::test]
    async fn the_index_and_the_layout_are_those_of_the_published_format() {
        let fixture = fixture();
        let gzip = [&[0x1f, 0x8b][..], b"layer"].concat();
        let config = config("x", "amd64");
        let root = image(&fixture.cache, &config, &[&gzip, b"plain"]).await;
        fixture
            .cache
            .store_image(stored("library/ubuntu", "22.04", &root))
            .await
            .unwrap();
        let entry = |content: &[u8], is_config: bool, compressed: bool, media_type: &str| {
            let digest = Digest::of(content);
            json!({
                "digest": digest,
                "size": content.len(),
                "path": format!("blobs/sha256/{}", digest.hex()),
                "is_config": is_config,
                "compressed": compressed,
                "media_type": media_type,
            })
        };
        let layer_type = layer(b"").media_type.to_string();
        assert_eq!(
            fixture.index(),
            json!({
                "library/ubuntu/22.04": {
                    "repository": "library/ubuntu",
                    "reference": "22.04",
                    "manifest_path": "manifests/library/ubuntu/22.04",
                    "config_digest": Digest::of(&config),
                    "blobs": {
                        Digest::of(&config).to_string(): entry(&config, true, false, MediaType::OCI_CONFIG.as_str()),
                        Digest::of(&gzip).to_string(): entry(&gzip, false, true, &layer_type),
                        Digest::of(b"plain").to_string(): entry(b"plain", false, false, &layer_type),
                    },
                    "registry": REGISTRY,
                }
            })
        );
        let mut expected: Vec<String> = [&config[..], &gzip, b"plain"]
            .iter()
            .map(|content| format!("blobs/sha256/{}", Digest::of(content).hex()))
            .collect();
        expected.sort();
        expected.extend(["index.json".into(), "manifests/library/ubuntu/22.04".into()]);
        assert_eq!(fixture.files(), expected);
        let bytes = std::fs::read(
            fixture
                .cache
                .directory()
                .join("manifests/library/ubuntu/22.04"),
        );
        assert_eq!(bytes.unwrap(), *root.bytes());
    }

    #[tokio::test]
    async fn the_children_of_an_index_lie_by_digest_with_their_own_entries() {
        let fixture = fixture();
        let amd = image(&fixture.cache, &config("x", "amd64"), &[b"amd"]).await;
        let arm = image(&fixture.cache, &config("x", "arm64"), &[b"arm"]).await;
        let root = index_of(&[(&amd, "amd64"), (&arm, "arm64")]);
        let mut wanted = stored("app", "1", &root);
        wanted.children = vec![amd.clone(), arm.clone()];
        fixture.cache.store_image(wanted).await.unwrap();
        let index = fixture.index();
        let entry = &index["app/1"];
        assert_eq!(
            (&entry["config_digest"], &entry["blobs"]),
            (&json!(""), &json!({}))
        );
        for child in [&amd, &arm] {
            let entry = &index[format!("app/{}", child.digest())];
            assert_eq!(
                entry["manifest_path"],
                json!(format!("manifests/app/{}", child.digest()))
            );
            assert_eq!(entry["blobs"].as_object().unwrap().len(), 2);
            let found = read(&fixture.cache, "app", &child.digest().to_string()).await;
            assert_eq!(found.as_ref(), Some(child));
        }
    }

    #[tokio::test]
    async fn an_image_whose_blob_is_not_there_gets_no_reference() {
        let fixture = fixture();
        let root = image(&fixture.cache, b"{}", &[b"layer"]).await;
        std::fs::remove_file(fixture.cache.shared.layout.blob(&Digest::of(b"layer"))).unwrap();
        let error = fixture
            .cache
            .store_image(stored("app", "1", &root))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::CachedBlobMissing { .. }), "{error}");
        assert!(error.to_string().contains("app:1"), "{error}");
        assert_eq!(read(&fixture.cache, "app", "1").await, None);
    }

    #[tokio::test]
    async fn a_layer_that_may_not_be_distributed_may_be_absent() {
        let fixture = fixture();
        put(
            &fixture.cache,
            &blob(b"{}", MediaType::OCI_CONFIG.as_str()),
            b"{}",
        )
        .await
        .unwrap();
        let mut foreign = blob(
            b"far",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        );
        foreign.urls = vec!["https://publisher.example/layer".to_owned()];
        let root = raw(&json!({
            "schemaVersion": 2, "config": blob(b"{}", MediaType::OCI_CONFIG.as_str()), "layers": [foreign],
        }));
        fixture
            .cache
            .store_image(stored("app", "1", &root))
            .await
            .unwrap();
        assert_eq!(
            fixture.index()["app/1"]["blobs"].as_object().unwrap().len(),
            1
        );
    }

    #[tokio::test]
    async fn a_digest_that_names_other_bytes_is_refused() {
        let fixture = fixture();
        let root = image(&fixture.cache, b"{}", &[]).await;
        let wanted = stored("app", &Digest::of(b"other").to_string(), &root);
        let error = fixture.cache.store_image(wanted).await.unwrap_err();
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
        let wanted = stored("app", &root.digest().to_string(), &root);
        fixture.cache.store_image(wanted).await.unwrap();
    }

    #[tokio::test]
    async fn replacing_an_image_of_another_registry_is_said_aloud() {
        let fixture = fixture();
        store_small(&fixture.cache, "app", "1", b"one").await;
        store_small(&fixture.cache, "app", "1", b"two").await;
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
        let root = image(&fixture.cache, b"{}", &[b"three"]).await;
        let mut other = stored("app", "1", &root);
        other.registry = "https://quay.io".to_owned();
        fixture.cache.store_image(other).await.unwrap();
        assert_eq!(
            fixture
                .messages
                .count("app:1 came from http://localhost:5000"),
            1
        );
        for archive in ["archive a.tar", "archive b.tar"] {
            let mut other = stored("app", "1", &root);
            other.registry = archive.to_owned();
            fixture.cache.store_image(other).await.unwrap();
        }
        assert_eq!(
            fixture
                .messages
                .count("replaced by the one from archive a.tar"),
            1
        );
        assert_eq!(fixture.messages.all().len(), 2);
        let mut other = stored("app", "1", &root);
        other.registry = "https://quay.io".to_owned();
        fixture.cache.store_image(other).await.unwrap();
        assert_eq!(fixture.messages.count("came from archive b.tar"), 1);
        let origin = fixture.reopened();
        let origin = origin
            .origin(&"app".parse().unwrap(), &"1".parse().unwrap())
            .await;
        assert_eq!(origin.as_deref(), Some("https://quay.io"));
    }

    #[tokio::test]
    async fn a_tag_and_a_folder_of_one_name_live_together_whichever_comes_first() {
        for order in [["a/b", "a/b/c"], ["a/b/c", "a/b"]] {
            let fixture = fixture();
            for repository in order {
                let tag = if repository == "a/b" { "c" } else { "1" };
                store_small(&fixture.cache, repository, tag, repository.as_bytes()).await;
            }
            // Once more: it must be found where it is, not stored twice.
            store_small(&fixture.cache, "a/b", "c", b"newer").await;
            let manifests: Vec<String> = fixture
                .files()
                .into_iter()
                .filter(|path| path.starts_with("manifests"))
                .collect();
            assert_eq!(manifests, ["manifests/a/b/.tags/c", "manifests/a/b/c/1"]);
            for (repository, tag) in [("a/b", "c"), ("a/b/c", "1")] {
                let found = read(&fixture.cache, repository, tag).await;
                assert!(found.is_some(), "{repository}:{tag}");
            }
            assert_eq!(
                fixture.index()["a/b/c"]["manifest_path"],
                json!("manifests/a/b/.tags/c")
            );
            let names: Vec<String> = fixture
                .reopened()
                .list()
                .await
                .unwrap()
                .iter()
                .map(|image| image.name.to_string())
                .collect();
            assert_eq!(names, ["a/b:c", "a/b/c:1"]);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn fifty_images_stored_at_once_by_two_runs_are_all_there() {
        let fixture = fixture();
        let mut tasks = tokio::task::JoinSet::new();
        let caches = [fixture.cache.clone(), fixture.reopened()];
        for number in 0..50 {
            let cache = caches[number % 2].clone();
            tasks.spawn(async move {
                let name = format!("app-{}", number % 7);
                store_small(
                    &cache,
                    &name,
                    &format!("v{number}"),
                    format!("{number}").as_bytes(),
                )
                .await;
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        caches[1].flush_index().await;
        assert_eq!(fixture.index().as_object().unwrap().len(), 50);
        assert_eq!(fixture.reopened().list().await.unwrap().len(), 50);
        assert_eq!(
            fixture.messages.count("rebuilt"),
            0,
            "{:?}",
            fixture.messages.all()
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_store_that_is_given_up_halfway_loses_nothing_and_locks_nobody_out() {
        let fixture = fixture();
        for number in 0_u8..60 {
            let root = image(&fixture.cache, &config("x", "amd64"), &[&[number]]).await;
            let tag = number.to_string();
            let store = fixture.cache.store_image(stored("app", &tag, &root));
            let patience = Duration::from_micros(u64::from(number) * 50);
            let in_time = tokio::time::timeout(patience, store).await.is_ok();
            let found = read(&fixture.cache, "app", &tag).await;
            assert!(found.is_none_or(|found| found == root));
            if !in_time || number % 2 == 0 {
                fixture
                    .cache
                    .store_image(stored("app", &tag, &root))
                    .await
                    .unwrap();
            }
        }
        assert_eq!(fixture.index().as_object().unwrap().len(), 60);
        let report = fixture.cache.clean(&CleanRequest::default()).await.unwrap();
        assert_eq!(report.images.len(), 60);
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }
}
