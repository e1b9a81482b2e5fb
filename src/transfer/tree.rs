//! An image as a tree of manifests: the root, for an index the manifests below it, and the blobs of all of them.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt, stream};

use crate::{
    image::{Descriptor, Digest, ImageName, Manifest, RawManifest},
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
}

impl ImageTree {
    /// Gets everything below `root` with `get`, level by level.
    pub(super) async fn collect<Get, Answer>(
        image: &ImageName,
        root: RawManifest,
        get: Get,
    ) -> Result<Self>
    where
        Get: Fn(Digest) -> Answer,
        Answer: Future<Output = Result<RawManifest>>,
    {
        let unreadable = |source| Error::Manifest {
            image: image.clone(),
            source,
        };
        let mut seen: HashSet<Digest> = HashSet::from([root.digest().clone()]);
        let mut found: Vec<RawManifest> = Vec::new();
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
                return Self::new(root, children).map_err(unreadable);
            }
            let too_large = || Error::IndexTooLarge {
                image: image.clone(),
                manifests: MAX_MANIFESTS,
                bytes: MAX_MANIFEST_BYTES,
            };
            if found.len() + wanted.len() > MAX_MANIFESTS {
                return Err(too_large());
            }
            level.clear();
            let mut answers = stream::iter(wanted)
                .map(|child| get(child.digest))
                .buffered(MANIFESTS_AT_ONCE);
            while let Some(manifest) = answers.try_next().await? {
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

    /// Collects the blobs of `root` and of the manifests below it.
    fn new(root: RawManifest, children: Vec<RawManifest>) -> crate::image::Result<Self> {
        let mut seen = HashSet::new();
        let (mut configs, mut layers) = (Vec::new(), Vec::new());
        for manifest in children.iter().chain([&root]) {
            let Manifest::Image(image) = manifest.parse()? else {
                continue;
            };
            configs.extend(
                image
                    .config
                    .into_iter()
                    .filter(|config| seen.insert(config.digest.clone())),
            );
            let travelling = image
                .layers
                .into_iter()
                .filter(|layer| !layer.stays_with_its_publisher());
            layers.extend(travelling.filter(|layer| seen.insert(layer.digest.clone())));
        }
        // The largest blob bounds the time of the whole: it starts first.
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        Ok(Self {
            root,
            children,
            configs,
            layers,
        })
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

/// Orders manifests so that each comes after everything it names. Digests make circles impossible.
fn bottom_up(manifests: Vec<RawManifest>) -> crate::image::Result<Vec<RawManifest>> {
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
fn children_of(manifest: &RawManifest) -> crate::image::Result<Vec<Descriptor>> {
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
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::image::{Algorithm, MediaType};

    fn blob(media_type: &str, content: &str) -> Value {
        json!({"mediaType": media_type, "digest": Digest::of(content.as_bytes()), "size": content.len()})
    }

    fn raw(value: &Value) -> RawManifest {
        RawManifest::new(value.to_string().into(), None, Algorithm::Sha256).unwrap()
    }

    fn index(children: &[&RawManifest]) -> RawManifest {
        let manifests: Vec<_> = children
            .iter()
            .map(|child| json!({"mediaType": child.media_type(), "digest": child.digest(), "size": child.size()}))
            .collect();
        raw(&json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests}))
    }

    /// Collects a tree from manifests that lie in memory.
    async fn collect(root: &RawManifest, below: &[&RawManifest]) -> Result<ImageTree> {
        let image = "app:1".parse().unwrap();
        ImageTree::collect(&image, root.clone(), |digest| {
            let found = below.iter().find(|manifest| *manifest.digest() == digest);
            std::future::ready(Ok(
                (*found.expect("only known children are asked for")).clone()
            ))
        })
        .await
    }

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn image(config: &str, layers: &[&str]) -> RawManifest {
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

    #[test]
    fn a_layer_that_only_its_publisher_may_serve_stays_there() {
        let mut foreign = blob(
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "windows",
        );
        foreign["urls"] = json!(["https://publisher.example/layer"]);
        let manifest = raw(&json!({
            "schemaVersion": 2,
            "mediaType": MediaType::DOCKER_MANIFEST,
            "config": blob("application/vnd.docker.container.image.v1+json", "{}"),
            "layers": [foreign, blob(LAYER, "ours")],
        }));
        assert_eq!(ImageTree::new(manifest, vec![]).unwrap().layers.len(), 1);
    }
}
