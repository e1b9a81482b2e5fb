//! The mark phase of `clean`: which manifests and blobs are reached from the images that stay. Reads only.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::image::{Digest, Manifest, RawManifest, Repository};

use super::{
    error::{Error, Result},
    manifests::{Stored, StoredReference},
};

/// What the roots reach.
#[derive(Debug, Default)]
pub(super) struct Marks<'a> {
    /// Positions in the list of references.
    pub(super) manifests: HashSet<usize>,
    /// The digests of these manifests.
    digests: HashSet<(&'a Repository, Digest)>,
    pub(super) blobs: HashSet<Digest>,
}

impl<'a> Marks<'a> {
    /// Walks from `roots`, positions in the list. `doomed` are to go by name.
    pub(super) fn walk(
        references: &'a [StoredReference],
        roots: Vec<usize>,
        doomed: &BTreeSet<usize>,
    ) -> Result<Self> {
        let by_digest: HashMap<(&Repository, &Digest), usize> = references
            .iter()
            .enumerate()
            .filter_map(|(position, reference)| {
                let digest = reference.name.reference.digest()?;
                Some(((&reference.name.repository, digest), position))
            })
            .collect();
        let mut marks = Self::default();
        let mut open = roots;
        while !open.is_empty() {
            while let Some(position) = open.pop() {
                marks.mark(position, references, &by_digest, &mut open)?;
            }
            // Signatures and the like stay with what they are about, unless they are to go by name.
            let others = by_digest.values().filter(|position| {
                !marks.manifests.contains(*position) && !doomed.contains(*position)
            });
            for position in others {
                if marks.is_about_a_marked_one(&references[*position])? {
                    open.push(*position);
                }
            }
        }
        Ok(marks)
    }

    fn mark(
        &mut self,
        position: usize,
        references: &'a [StoredReference],
        by_digest: &HashMap<(&Repository, &Digest), usize>,
        open: &mut Vec<usize>,
    ) -> Result<()> {
        if !self.manifests.insert(position) {
            return Ok(());
        }
        let reference = &references[position];
        let repository = &reference.name.repository;
        let Some(manifest) = read_kept(reference)? else {
            return Ok(());
        };
        self.digests.insert((repository, manifest.digest().clone()));
        match manifest.parse() {
            Ok(Manifest::Image(image)) => {
                let digests = image.blobs().map(|blob| blob.digest.clone());
                self.blobs.extend(digests);
            }
            Ok(Manifest::Index(index)) => {
                // Build caches are indexes that name blobs; a manifest's digest among them does no harm.
                let digests = index.manifests.iter().map(|child| child.digest.clone());
                self.blobs.extend(digests);
                let children = index.manifests.iter();
                open.extend(
                    children.filter_map(|child| by_digest.get(&(repository, &child.digest))),
                );
            }
            Err(error) => return Err(unreadable(reference, error.to_string())),
        }
        Ok(())
    }

    /// Whether the subject of a manifest stays. One that cannot be read is about nothing.
    fn is_about_a_marked_one(&self, reference: &'a StoredReference) -> Result<bool> {
        let Stored::Manifest(manifest) = reference.read()? else {
            return Ok(false);
        };
        let Ok(parsed) = manifest.parse() else {
            return Ok(false);
        };
        Ok(parsed.subject().is_some_and(|subject| {
            self.digests
                .contains(&(&reference.name.repository, subject.digest.clone()))
        }))
    }
}

/// Reads a manifest that stays; one that cannot be read hides which blobs it needs.
fn read_kept(reference: &StoredReference) -> Result<Option<RawManifest>> {
    match reference.read()? {
        Stored::Absent => Ok(None),
        Stored::Unreadable(reason) => Err(unreadable(reference, reason)),
        Stored::Manifest(manifest) => Ok(Some(manifest)),
    }
}

fn unreadable(reference: &StoredReference, reason: String) -> Error {
    Error::CachedManifestUnreadable {
        path: reference.path.clone(),
        image: reference.name.to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{fixture, layer, put, raw, read, store_small, stored};
    use crate::{cache::CleanRequest, image::MediaType};

    #[tokio::test]
    async fn what_is_about_an_image_stays_with_it_also_if_it_is_an_index() {
        let fixture = fixture();
        store_small(&fixture.cache, "app", "1", b"one").await;
        let subject = read(&fixture.cache, "app", "1").await.unwrap();
        let about = raw(&json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [],
            "subject": {"mediaType": subject.media_type(), "digest": subject.digest(), "size": subject.size()},
        }));
        let digest = about.digest().to_string();
        let mut image = stored("app", "1", &subject);
        image.pinned = true;
        image.children = vec![about.clone()];
        fixture.cache.store_image(image).await.unwrap();
        let other = CleanRequest {
            only: Some(("other".parse().unwrap(), None)),
            ..CleanRequest::default()
        };
        store_small(&fixture.cache, "other", "1", b"other").await;
        fixture.cache.clean(&other).await.unwrap();
        assert_eq!(read(&fixture.cache, "app", &digest).await, Some(about));
        let image = CleanRequest {
            only: Some(("app".parse().unwrap(), Some("1".parse().unwrap()))),
            ..CleanRequest::default()
        };
        fixture.cache.clean(&image).await.unwrap();
        assert_eq!(read(&fixture.cache, "app", &digest).await, None);
    }

    #[tokio::test]
    async fn a_blob_that_an_index_names_stays_with_it() {
        let fixture = fixture();
        let blob = layer(b"of a build cache");
        put(&fixture.cache, &blob, b"of a build cache")
            .await
            .unwrap();
        let index = raw(&json!({
            "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [blob],
        }));
        fixture
            .cache
            .store_image(stored("cache", "1", &index))
            .await
            .unwrap();
        store_small(&fixture.cache, "app", "1", b"other").await;
        let others = CleanRequest {
            only: Some(("app".parse().unwrap(), None)),
            ..CleanRequest::default()
        };
        fixture.cache.clean(&others).await.unwrap();
        assert!(fixture.cache.has_blob(&blob).await.unwrap());
        fixture.cache.clean(&CleanRequest::default()).await.unwrap();
        assert!(!fixture.cache.has_blob(&blob).await.unwrap());
    }
}
