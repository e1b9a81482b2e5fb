//! An image as a tree of manifests: the root, for an index the manifests below it, and the blobs of all of them.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, stream};

use crate::{
    image::{self, Descriptor, Digest, ImageName, Manifest, RawManifest},
    output::OutputManager,
};

use super::{Error, Result};

/// Indexes within indexes are legal; no producer is known that nests them even twice.
const MAX_INDEX_DEPTH: usize = 4;

/// Manifests of one image: the largest public images have some hundred, attestations included.
const MAX_MANIFESTS: usize = 10_000;

/// Bytes of the manifests of one image, which are all in memory at once; a usual one has a few kilobytes.
const MAX_MANIFEST_BYTES: u64 = 64 * 1024 * 1024;

/// Manifests of one index that are asked for at once: small answers, bounded by round trips.
const MANIFESTS_AT_ONCE: usize = 8;

/// A whole image: its manifests, root last, and what they refer to.
#[derive(Debug, Clone)]
pub(super) struct ImageTree {
    /// The manifest the reference names.
    pub(super) root: RawManifest,
    /// Everything below an index, each before whatever refers to it; empty for a single image.
    pub(super) children: Vec<RawManifest>,
    /// Configurations of the image manifests, each once.
    pub(super) configs: Vec<Descriptor>,
    /// Layers and other blobs of the image manifests, each once, largest first.
    pub(super) layers: Vec<Descriptor>,
    /// Layers that stay with their publisher, each once: they do not travel unless somebody wants them to.
    pub(super) foreign: Vec<Descriptor>,
    /// What an index names and its source does not have, each once: the index is copied without it, byte for byte.
    pub(super) missing: Vec<Descriptor>,
}

impl ImageTree {
    /// Gets everything below `root` with `get`, level by level. `get` gives nothing for what its source does not have.
    pub(super) async fn collect<Get, Answer>(
        image: &ImageName,
        root: RawManifest,
        get: Get,
    ) -> Result<Self>
    where
        Get: Fn(Descriptor) -> Answer,
        Answer: Future<Output = Result<Option<RawManifest>>>,
    {
        let unreadable = |source| Error::Manifest {
            image: image.clone(),
            source,
        };
        let mut seen: HashSet<Digest> = HashSet::from([root.digest().clone()]);
        let mut found: Vec<RawManifest> = Vec::new();
        let mut absent: Vec<Descriptor> = Vec::new();
        let mut level = vec![root.clone()];
        let mut bytes = root.size();
        for _ in 0..=MAX_INDEX_DEPTH {
            let mut wanted = Vec::new();
            for manifest in &level {
                let children = children_of(manifest).map_err(unreadable)?;
                wanted.extend(
                    children
                        .into_iter()
                        .filter(|child| seen.insert(child.digest.clone())),
                );
            }
            if wanted.is_empty() {
                let children = bottom_up(found).map_err(unreadable)?;
                let tree = Self::new(root, children, absent).map_err(unreadable)?;
                return tree.unless_hollow(image);
            }
            let too_large = || Error::IndexTooLarge {
                image: image.clone(),
                manifests: MAX_MANIFESTS,
                bytes: MAX_MANIFEST_BYTES,
            };
            if found.len() + absent.len() + wanted.len() > MAX_MANIFESTS {
                return Err(too_large());
            }
            level.clear();
            let mut answers = stream::iter(wanted)
                .map(|child| async { (get(child.clone()).await, child) })
                .buffered(MANIFESTS_AT_ONCE);
            while let Some((answer, child)) = answers.next().await {
                let Some(manifest) = answer? else {
                    absent.push(child);
                    continue;
                };
                bytes += manifest.size();
                if bytes > MAX_MANIFEST_BYTES {
                    return Err(too_large());
                }
                level.push(manifest);
            }
            found.extend(level.iter().cloned());
        }
        Err(Error::IndexTooDeep {
            image: image.clone(),
            limit: MAX_INDEX_DEPTH,
        })
    }

    /// Collects the blobs of `root` and of the manifests below it. Of what is `absent`, a blob that an index names directly
    /// travels as one: build caches are made so.
    fn new(
        root: RawManifest,
        children: Vec<RawManifest>,
        absent: Vec<Descriptor>,
    ) -> image::Result<Self> {
        check_sizes(&root, &children)?;
        let (missing, blobs): (Vec<_>, Vec<_>) = absent
            .into_iter()
            .partition(|child| child.media_type.names_a_manifest());
        let (mut configs, mut layers, mut foreign) = (Vec::new(), blobs, Vec::new());
        for manifest in children.iter().chain([&root]) {
            let Manifest::Image(image) = manifest.parse()? else {
                continue;
            };
            configs.extend(image.config);
            let (staying, travelling): (Vec<_>, Vec<_>) = image
                .layers
                .into_iter()
                .partition(Descriptor::stays_with_its_publisher);
            layers.extend(travelling);
            foreign.extend(staying);
        }
        let mut seen = HashSet::new();
        for list in [&mut configs, &mut layers, &mut foreign] {
            list.retain(|blob| seen.insert(blob.digest.clone()));
        }
        // The largest blob bounds the time of the whole: it starts first.
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        Ok(Self {
            root,
            children,
            configs,
            layers,
            foreign,
            missing,
        })
    }

    /// The same, with the layers that stay with their publisher among those that travel.
    pub(super) fn with_foreign(mut self) -> Self {
        self.layers.append(&mut self.foreign);
        self.layers
            .sort_by_key(|layer| std::cmp::Reverse(layer.size));
        self
    }

    /// The digests of everything: manifests and blobs.
    pub(super) fn digests(&self) -> impl Iterator<Item = &Digest> {
        let manifests = self.children.iter().chain([&self.root]);
        let blobs = self.blobs().map(|blob| &blob.digest);
        manifests.map(RawManifest::digest).chain(blobs)
    }

    /// Every blob of the image.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.layers.iter().chain(&self.configs)
    }

    /// Tells that every blob is to travel so many times: once into the cache, unless it is there, and to each destination.
    /// Told at once, so that progress never goes back.
    pub(super) fn plan(&self, times: u64, output: &OutputManager) {
        let (blobs, bytes) = self.size();
        output.planned(blobs * times, bytes.saturating_mul(times));
    }

    /// Number and bytes of the blobs.
    fn size(&self) -> (u64, u64) {
        self.blobs().fold((0, 0), |(count, bytes), blob| {
            (count + 1, bytes.saturating_add(blob.size))
        })
    }
}

/// Refuses an image whose parts disagree about the size of another part, or about that of a manifest that was received: one of
/// them lies, and readers would differ in what they take.
fn check_sizes(root: &RawManifest, children: &[RawManifest]) -> image::Result<()> {
    let manifests = || children.iter().chain([root]);
    let mut sizes: HashMap<Digest, u64> = manifests()
        .map(|manifest| (manifest.digest().clone(), manifest.size()))
        .collect();
    for manifest in manifests() {
        let parts: Vec<Descriptor> = match manifest.parse()? {
            Manifest::Image(image) => image.blobs().cloned().collect(),
            Manifest::Index(index) => index.manifests,
        };
        for Descriptor { digest, size, .. } in parts {
            let known = *sizes.entry(digest.clone()).or_insert(size);
            if known != size {
                return Err(image::Error::ManifestInvalid {
                    digest: manifest.digest().clone(),
                    reason: format!(
                        "it says that {digest} has {size} bytes, elsewhere it has {known}"
                    ),
                });
            }
        }
    }
    Ok(())
}

/// Orders manifests so that each comes after everything it names. Digests make circles impossible.
fn bottom_up(manifests: Vec<RawManifest>) -> image::Result<Vec<RawManifest>> {
    let mut waiting: HashSet<Digest> = manifests
        .iter()
        .map(|manifest| manifest.digest().clone())
        .collect();
    let mut rest = manifests;
    let mut ordered = Vec::with_capacity(rest.len());
    while !rest.is_empty() {
        let mut next = Vec::new();
        for manifest in std::mem::take(&mut rest) {
            if children_of(&manifest)?
                .iter()
                .any(|child| waiting.contains(&child.digest))
            {
                next.push(manifest);
            } else {
                waiting.remove(manifest.digest());
                ordered.push(manifest);
            }
        }
        rest = next;
    }
    Ok(ordered)
}

/// The manifests an index names directly, each once.
fn children_of(manifest: &RawManifest) -> image::Result<Vec<Descriptor>> {
    let mut seen: HashSet<Digest> = HashSet::new();
    Ok(match manifest.parse()? {
        Manifest::Image(_) => Vec::new(),
        Manifest::Index(index) => index
            .manifests
            .into_iter()
            .filter(|child| seen.insert(child.digest.clone()))
            .collect(),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::image::{Algorithm, MediaType};

    fn blob(media_type: &str, content: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(content.as_bytes()), "size": content.len()})
    }

    pub(in super::super) fn raw(value: &Value) -> RawManifest {
        RawManifest::new(value.to_string().into(), None, Algorithm::Sha256).unwrap()
    }

    pub(in super::super) fn index(children: &[&RawManifest]) -> RawManifest {
        let manifests: Vec<_> = children
            .iter()
            .map(|child| json!({"mediaType": child.media_type(), "digest": child.digest(), "size": child.size()}))
            .collect();
        raw(&json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests}))
    }

    /// Collects a tree from manifests that lie in memory.
    pub(in super::super) async fn collect(
        root: &RawManifest,
        below: &[&RawManifest],
    ) -> Result<ImageTree> {
        let image = "app:1".parse().unwrap();
        ImageTree::collect(&image, root.clone(), |child| {
            let found = below
                .iter()
                .find(|manifest| *manifest.digest() == child.digest);
            std::future::ready(Ok(found.map(|manifest| (*manifest).clone())))
        })
        .await
    }

    /// Why an image is refused.
    async fn refusal(root: &RawManifest, below: &[&RawManifest]) -> String {
        match collect(root, below).await {
            Err(Error::Manifest { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        }
    }

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    pub(in super::super) fn image(config: &str, layers: &[&str]) -> RawManifest {
        let layers: Vec<_> = layers.iter().map(|content| blob(LAYER, content)).collect();
        raw(&json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_MANIFEST,
            "config": blob(MediaType::OCI_CONFIG.as_str(), config),
            "layers": layers,
        }))
    }

    #[tokio::test]
    async fn a_layer_that_two_platforms_share_is_moved_once_and_the_largest_goes_first() {
        let (amd, arm) = (
            image("amd", &["shared", "a"]),
            image("arm", &["the largest of all", "shared"]),
        );
        let tree = collect(&index(&[&amd, &arm, &arm]), &[&amd, &arm])
            .await
            .unwrap();
        let sizes: Vec<_> = tree.layers.iter().map(|layer| layer.size).collect();
        assert_eq!(sizes, [18, 6, 1]);
        assert_eq!((tree.children.len(), tree.configs.len()), (2, 2));
        assert_eq!(tree.size(), (5, 18 + 6 + 1 + 3 + 3));
    }

    #[tokio::test]
    async fn a_manifest_comes_after_everything_it_names_on_whatever_level() {
        let leaf = image("leaf", &["layer"]);
        let inner = index(&[&leaf]);
        let middle = index(&[&inner, &leaf]);
        let tree = collect(&index(&[&leaf, &middle, &inner]), &[&leaf, &inner, &middle])
            .await
            .unwrap();
        assert_eq!(tree.children, [leaf, inner, middle]);
    }

    #[tokio::test]
    async fn an_index_with_more_children_than_any_image_has_is_refused() {
        let children: Vec<_> = (0..=MAX_MANIFESTS)
            .map(|number| json!({"mediaType": MediaType::OCI_MANIFEST, "digest": Digest::of(&number.to_ne_bytes()), "size": 2}))
            .collect();
        let root = raw(
            &json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": children}),
        );
        assert!(matches!(
            collect(&root, &[]).await,
            Err(Error::IndexTooLarge { .. })
        ));
    }

    #[tokio::test]
    async fn indexes_that_nest_too_deep_are_refused() {
        let mut chain = vec![image("leaf", &[])];
        for _ in 0..=MAX_INDEX_DEPTH {
            chain.push(index(&[chain.last().unwrap()]));
        }
        let root = chain.pop().unwrap();
        let below: Vec<_> = chain.iter().collect();
        assert!(matches!(
            collect(&root, &below).await,
            Err(Error::IndexTooDeep { .. })
        ));
    }

    #[tokio::test]
    async fn a_layer_that_only_its_publisher_may_serve_stays_there() {
        let foreign_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let mut foreign = blob(foreign_type, "windows");
        foreign["urls"] = json!(["https://publisher.example/layer"]);
        // Without a place to fetch it from it can only travel, and so does one that is somebody else's usual layer.
        let unplaced = blob(foreign_type, "unplaced");
        let mut shared = blob(foreign_type, "ours");
        shared["urls"] = json!(["https://publisher.example/ours"]);
        let manifest = raw(&json!({
            "schemaVersion": 2,
            "mediaType": MediaType::DOCKER_MANIFEST,
            "config": blob("application/vnd.docker.container.image.v1+json", "{}"),
            "layers": [foreign, shared, foreign, unplaced, blob(LAYER, "ours")],
        }));
        let tree = collect(&manifest, &[]).await.unwrap();
        let digests = |blobs: &[Descriptor]| -> Vec<Digest> {
            blobs.iter().map(|blob| blob.digest.clone()).collect()
        };
        assert_eq!(
            digests(&tree.layers),
            [Digest::of(b"unplaced"), Digest::of(b"ours")]
        );
        assert_eq!(digests(&tree.foreign), [Digest::of(b"windows")]);
    }

    #[tokio::test]
    async fn an_image_of_all_that_is_odd_and_legal_is_read() {
        let empty = "application/vnd.oci.empty.v1+json";
        let artifact = raw(&json!({
            "mediaType": MediaType::OCI_ARTIFACT, "blobs": [blob("x", ""), blob("x", "")], "subject": blob("x", "elsewhere"),
        }));
        let same_twice = raw(&json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": blob(empty, "{}"), "layers": [blob(empty, "{}"), blob(empty, "{}")],
        }));
        let tree = collect(&index(&[&artifact, &same_twice]), &[&artifact, &same_twice])
            .await
            .unwrap();
        let counts = (tree.children.len(), tree.configs.len(), tree.layers.len());
        assert_eq!((counts, tree.size()), ((2, 1, 1), (2, 2)));
    }

    #[tokio::test]
    async fn digests_of_both_kinds_live_in_one_image() {
        let long = |text: &str| Digest::with_algorithm(Algorithm::Sha512, text.as_bytes());
        let text = json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": {"mediaType": "x", "digest": long("{}"), "size": 2},
            "layers": [{"mediaType": "x", "digest": long("layer"), "size": 5}, blob(LAYER, "layer")],
        });
        let child = RawManifest::new(text.to_string().into(), None, Algorithm::Sha512).unwrap();
        let tree = collect(&index(&[&child]), &[&child]).await.unwrap();
        assert_eq!((tree.children.len(), tree.size().0), (1, 3));
        assert_eq!(tree.configs[0].digest, long("{}"));
    }

    #[tokio::test]
    async fn an_index_may_name_blobs() {
        let (amd, cache) = (image("amd", &["a"]), blob(LAYER, "cache"));
        let mut root: Value = serde_json::from_slice(index(&[&amd]).bytes()).unwrap();
        root["manifests"].as_array_mut().unwrap().push(cache);
        let tree = collect(&raw(&root), &[&amd]).await.unwrap();
        assert_eq!(tree.layers[0].digest, Digest::of(b"cache"));
        assert!(tree.missing.is_empty());
    }

    #[tokio::test]
    async fn parts_that_disagree_about_a_size_are_refused() {
        let amd = image("amd", &["a"]);
        let mut arm: Value = serde_json::from_slice(image("arm", &["a"]).bytes()).unwrap();
        arm["layers"][0]["size"] = json!(7);
        let arm = raw(&arm);
        let layers = refusal(&index(&[&amd, &arm]), &[&amd, &arm]).await;
        assert!(layers.contains("has 7 bytes"), "{layers}");

        let mut root: Value = serde_json::from_slice(index(&[&amd]).bytes()).unwrap();
        root["manifests"][0]["size"] = json!(1);
        let child = refusal(&raw(&root), &[&amd]).await;
        assert!(child.contains("has 1 bytes"), "{child}");

        let mut twice: Value = serde_json::from_slice(amd.bytes()).unwrap();
        twice["config"]["digest"] = json!(Digest::of(b"a"));
        let one = refusal(&raw(&twice), &[]).await;
        assert!(one.contains("elsewhere it has"), "{one}");
    }
}
