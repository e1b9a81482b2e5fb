//! Removing images at somebody's wish: which ones go, and what goes with them.
//!
//! What runs that are alive need stays, and is named. Nothing else is spared for its age, unless that is wished.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::image::{Reference, Repository};

use super::{
    Cache,
    disk::blocking,
    error::{Error, Result},
    layout::Layout,
    lease::Pinned,
    list::is_asked_for,
    manifests::{StoredReference, scan},
    sweep::{Grace, Removal, Sweep},
};

/// How long `clean` waits for other runs: long enough for what they do in one go, short enough for a person.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// What to remove.
#[derive(Debug, Clone, Default)]
pub struct CleanRequest {
    /// Only this repository, or this one image; without, everything.
    pub only: Option<(Repository, Option<Reference>)>,
    /// Spares images that were pulled within this time.
    pub keep_within: Option<Duration>,
    /// Tells what would be removed, and removes nothing.
    pub dry_run: bool,
}

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CleanReport {
    /// The images, by name.
    pub images: Vec<String>,
    /// Images that were asked for and stay, since they were pulled recently or another image needs them.
    pub kept: Vec<String>,
    /// Images that were asked for and stay, since another run works on them.
    pub in_use: Vec<String>,
    /// Manifest files, those of the images included.
    pub manifests: u64,
    /// Blobs, unfinished ones included.
    pub blobs: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Cache {
    /// Removes images, then the manifests and blobs that nothing reaches any more. What other runs work on stays.
    ///
    /// # Errors
    /// When somebody reads or extracts into the cache for longer than ten seconds (the caller's own guards count), when the
    /// image to be removed is not there, and when a manifest that stays cannot be read; then nothing is removed.
    pub async fn clean(&self, request: &CleanRequest) -> Result<CleanReport> {
        self.clean_within(request, LOCK_WAIT).await
    }

    pub(super) async fn clean_within(
        &self,
        request: &CleanRequest,
        wait: Duration,
    ) -> Result<CleanReport> {
        if !self.exists().await? {
            return self.nothing_there(request);
        }
        if request.dry_run {
            let _store = self.read_shared().await?;
            return Ok(self.plan(request).await?.0);
        }
        let store = self.shared.locks.use_alone(wait, &self.output).await?;
        let (report, sweep) = self.plan(request).await?;
        self.sweep(sweep, store).await?;
        Ok(report)
    }

    async fn exists(&self) -> Result<bool> {
        let root = self.shared.layout.root().to_owned();
        blocking(move || Ok(root.is_dir())).await
    }

    fn nothing_there(&self, request: &CleanRequest) -> Result<CleanReport> {
        match &request.only {
            None => Ok(CleanReport::default()),
            Some(only) => Err(unknown(&self.shared.layout, only)),
        }
    }

    async fn plan(&self, request: &CleanRequest) -> Result<(CleanReport, Sweep)> {
        let entries = self
            .index
            .entries(&self.shared.layout, &self.output)
            .await?;
        let (layout, request) = (self.shared.layout.clone(), request.clone());
        blocking(move || {
            let found = scan(&layout)?;
            let pinned = Pinned::read(&layout)?;
            let chosen = Chosen::of(&found.references, &request, &pinned, |reference| {
                is_asked_for(&reference.name, &entries)
            });
            if let Some(only) = &request.only
                && !chosen.anything_meant
            {
                return Err(unknown(&layout, only));
            }
            let everything = request.only.is_none() && request.keep_within.is_none();
            let removal = Removal {
                doomed: chosen.doomed,
                grace: Grace::nothing(everything),
            };
            let sweep = Sweep::plan(&layout, &found, &entries, &pinned, &removal)?;
            let mut report = sweep.report();
            report.kept.splice(..0, chosen.kept);
            report.in_use = chosen.in_use;
            Ok((report, sweep))
        })
        .await
    }
}

pub(super) fn unknown(
    layout: &Layout,
    (repository, reference): &(Repository, Option<Reference>),
) -> Error {
    let image = match reference {
        None => repository.to_string(),
        Some(Reference::Tag(tag)) => format!("{repository}:{tag}"),
        Some(Reference::Digest(digest)) => format!("{repository}@{digest}"),
    };
    Error::CachedImageUnknown {
        directory: layout.root().to_owned(),
        image,
    }
}

/// Which images are meant, and what is to become of them.
#[derive(Debug, Default)]
struct Chosen {
    doomed: BTreeSet<usize>,
    kept: Vec<String>,
    in_use: Vec<String>,
    anything_meant: bool,
}

impl Chosen {
    fn of(
        references: &[StoredReference],
        request: &CleanRequest,
        pinned: &Pinned,
        is_asked_for: impl Fn(&StoredReference) -> bool,
    ) -> Self {
        let now = SystemTime::now();
        // A time in the future (the clock was set back) counts as recent.
        let is_recent = |reference: &StoredReference| {
            request.keep_within.is_some_and(|limit| {
                now.duration_since(reference.modified)
                    .map_or(true, |age| age <= limit)
            })
        };
        let mut chosen = Self::default();
        for (position, reference) in references.iter().enumerate() {
            if !request.means(reference, &is_asked_for) {
                continue;
            }
            chosen.anything_meant = true;
            let name = reference.name.to_string();
            if pinned.images.contains(&name) {
                chosen.in_use.push(name);
            } else if is_recent(reference) {
                chosen.kept.push(name);
            } else {
                chosen.doomed.insert(position);
            }
        }
        chosen
    }
}

impl CleanRequest {
    /// Whether an image is to go: one that somebody asked for, or that is named right here.
    fn means(
        &self,
        reference: &StoredReference,
        is_asked_for: impl Fn(&StoredReference) -> bool,
    ) -> bool {
        match &self.only {
            None => is_asked_for(reference),
            Some((repository, None)) => {
                reference.name.repository == *repository && is_asked_for(reference)
            }
            Some((repository, Some(wanted))) => {
                reference.name.repository == *repository && reference.name.reference == *wanted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use serde_json::json;

    use super::super::testing::{
        Fixture, blob, config, fixture, image, index_of, layer, put, raw, store_small, stored,
    };
    use super::*;
    use crate::{cache::Claim, image::MediaType};

    fn only(repository: &str, reference: Option<&str>) -> CleanRequest {
        CleanRequest {
            only: Some((
                repository.parse().unwrap(),
                reference.map(|reference| reference.parse().unwrap()),
            )),
            ..CleanRequest::default()
        }
    }

    /// Two tags that share a layer, and an image for two platforms.
    async fn filled() -> Fixture {
        let fixture = fixture();
        for tag in ["1", "2"] {
            let root = image(
                &fixture.cache,
                &config(tag, "amd64"),
                &[b"common", tag.as_bytes()],
            )
            .await;
            fixture
                .cache
                .store_image(stored("app", tag, &root))
                .await
                .unwrap();
        }
        let amd = image(&fixture.cache, &config("x", "amd64"), &[b"common", b"amd"]).await;
        let arm = image(&fixture.cache, &config("x", "arm64"), &[b"common", b"arm"]).await;
        let mut wanted = stored(
            "team/multi",
            "1",
            &index_of(&[(&amd, "amd64"), (&arm, "arm64")]),
        );
        wanted.children = vec![amd, arm];
        fixture.cache.store_image(wanted).await.unwrap();
        fixture
    }

    async fn names(fixture: &Fixture) -> Vec<String> {
        let listed = fixture.cache.list().await.unwrap();
        assert!(listed.iter().all(super::super::ListedImage::is_complete));
        listed.iter().map(|image| image.name.to_string()).collect()
    }

    #[tokio::test]
    async fn cleaning_everything_leaves_no_blob_and_no_manifest() {
        let fixture = filled().await;
        let root = fixture.cache.directory().to_owned();
        let partial = format!("blobs/.partial/{}", layer(b"interrupted").digest);
        for leftover in [".tmp-1", "manifests/app/.tmp-2", &partial] {
            File::create(root.join(leftover)).unwrap();
        }
        File::create(root.join("blobs/sha256/notes.txt")).unwrap();
        let report = fixture.cache.clean(&CleanRequest::default()).await.unwrap();
        assert_eq!(report.images, ["app:1", "app:2", "team/multi:1"]);
        assert_eq!(report.manifests, 5);
        // Three layers of their own, a common one, four configurations, a partial.
        assert_eq!(report.blobs, 2 + 2 + 1 + 4 + 1);
        assert_eq!(fixture.files(), ["blobs/sha256/notes.txt", "index.json"]);
        assert_eq!(fixture.index(), json!({}));
        assert!(
            std::fs::read_dir(root.join("manifests"))
                .unwrap()
                .next()
                .is_none()
        );
        assert_eq!(
            fixture.cache.clean(&CleanRequest::default()).await.unwrap(),
            CleanReport::default()
        );
        store_small(&fixture.cache, "app", "1", b"again").await;
        assert_eq!(names(&fixture).await, ["app:1"]);
    }

    #[tokio::test]
    async fn cleaning_one_tag_keeps_what_others_need() {
        let fixture = filled().await;
        let report = fixture.cache.clean(&only("app", Some("1"))).await.unwrap();
        assert_eq!(report.images, ["app:1"]);
        assert_eq!((report.manifests, report.blobs), (1, 2));
        assert_eq!(names(&fixture).await, ["app:2", "team/multi:1"]);
        assert!(fixture.cache.has_blob(&layer(b"common")).await.unwrap());
        assert!(!fixture.cache.has_blob(&layer(b"1")).await.unwrap());
        assert_eq!(fixture.index().as_object().unwrap().len(), 4);

        let report = fixture
            .cache
            .clean(&only("team/multi", None))
            .await
            .unwrap();
        assert_eq!(report.images, ["team/multi:1"]);
        assert_eq!((report.manifests, report.blobs), (3, 4));
        assert_eq!(names(&fixture).await, ["app:2"]);
    }

    #[tokio::test]
    async fn a_dry_run_tells_the_same_and_changes_nothing() {
        let fixture = filled().await;
        let before = fixture.files();
        let mut request = only("app", Some("1"));
        request.dry_run = true;
        let planned = fixture.cache.clean(&request).await.unwrap();
        assert_eq!(fixture.files(), before);
        request.dry_run = false;
        assert_eq!(fixture.cache.clean(&request).await.unwrap(), planned);
        assert_ne!(fixture.files(), before);
    }

    #[tokio::test]
    async fn an_image_that_is_not_there_is_an_error_that_names_it() {
        let fixture = filled().await;
        for request in [only("app", Some("3")), only("other", None)] {
            let error = fixture.cache.clean(&request).await.unwrap_err();
            assert!(matches!(error, Error::CachedImageUnknown { .. }), "{error}");
        }
        let empty = super::super::testing::fixture();
        assert!(empty.cache.clean(&only("app", None)).await.is_err());
        assert_eq!(
            empty.cache.clean(&CleanRequest::default()).await.unwrap(),
            CleanReport::default()
        );
        assert!(!empty.cache.directory().exists());
    }

    #[tokio::test]
    async fn recent_images_are_kept_within_the_duration() {
        let fixture = filled().await;
        let set_age = |tag: &str, time: SystemTime| {
            let path = fixture.cache.directory().join("manifests/app").join(tag);
            File::open(path).unwrap().set_modified(time).unwrap();
        };
        let hour = Duration::from_hours(1);
        set_age("1", SystemTime::now() - 2 * hour);
        set_age("2", SystemTime::now() + 48 * hour);
        let request = CleanRequest {
            keep_within: Some(hour),
            ..CleanRequest::default()
        };
        let report = fixture.cache.clean(&request).await.unwrap();
        assert_eq!(report.images, ["app:1"]);
        assert_eq!(report.kept, ["app:2", "team/multi:1"]);
        // A pull that finds everything in place counts as recent, too.
        set_age("2", SystemTime::now() - 2 * hour);
        let root = image(&fixture.cache, &config("2", "amd64"), &[b"common", b"2"]).await;
        fixture
            .cache
            .store_image(stored("app", "2", &root))
            .await
            .unwrap();
        assert_eq!(
            fixture.cache.clean(&request).await.unwrap().images,
            Vec::<String>::new()
        );
    }

    #[tokio::test]
    async fn what_a_moved_tag_left_behind_goes_with_the_next_clean() {
        let fixture = filled().await;
        let root = image(&fixture.cache, &config("y", "amd64"), &[b"new"]).await;
        fixture
            .cache
            .store_image(stored("team/multi", "1", &root))
            .await
            .unwrap();
        let report = fixture.cache.clean(&only("app", Some("1"))).await.unwrap();
        // The two children of the old index, which nobody asked for by name.
        assert_eq!(report.manifests, 1 + 2);
        assert_eq!(names(&fixture).await, ["app:2", "team/multi:1"]);
    }

    #[tokio::test]
    async fn a_signature_stays_with_its_image() {
        let fixture = filled().await;
        let subject = image(&fixture.cache, &config("s", "amd64"), &[b"signed"]).await;
        put(&fixture.cache, &layer(b"signature"), b"signature")
            .await
            .unwrap();
        put(
            &fixture.cache,
            &blob(b"{}", MediaType::OCI_CONFIG.as_str()),
            b"{}",
        )
        .await
        .unwrap();
        let signature = raw(&json!({
            "schemaVersion": 2, "config": blob(b"{}", MediaType::OCI_CONFIG.as_str()), "layers": [layer(b"signature")],
            "subject": {"mediaType": subject.media_type(), "digest": subject.digest(), "size": subject.size()},
        }));
        let mut wanted = stored("signed", "1", &subject);
        wanted.children = vec![signature];
        fixture.cache.store_image(wanted).await.unwrap();
        fixture.cache.clean(&only("app", Some("1"))).await.unwrap();
        assert!(fixture.cache.has_blob(&layer(b"signature")).await.unwrap());
        let report = fixture
            .cache
            .clean(&only("signed", Some("1")))
            .await
            .unwrap();
        assert_eq!(report.manifests, 2);
        assert!(!fixture.cache.has_blob(&layer(b"signature")).await.unwrap());
    }

    #[tokio::test]
    async fn a_manifest_that_stays_and_cannot_be_read_stops_the_sweep() {
        let fixture = filled().await;
        let path = fixture.cache.directory().join("manifests/app/2");
        File::create(&path).unwrap();
        let before = fixture.files();
        let error = fixture
            .cache
            .clean(&only("app", Some("1")))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("manifests/app/2 of app:2"),
            "{error}"
        );
        assert_eq!(fixture.files(), before);
        let report = fixture.cache.clean(&only("app", Some("2"))).await.unwrap();
        assert_eq!(report.images, ["app:2"]);
        assert_eq!(names(&fixture).await, ["app:1", "team/multi:1"]);
    }

    #[tokio::test]
    async fn a_cache_in_use_is_not_cleaned_and_a_cleaned_one_can_be_used() {
        let fixture = filled().await;
        let run = fixture.reopened().use_shared().await.unwrap();
        let wait = Duration::from_millis(1200);
        let error = fixture
            .cache
            .clean_within(&CleanRequest::default(), wait)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::CacheInUse { directory } if directory == fixture.cache.directory()),
            "{error}"
        );
        assert_eq!(fixture.messages.count("waiting up to"), 1);
        assert_eq!(names(&fixture).await.len(), 3);
        drop(run);
        fixture
            .cache
            .clean_within(&CleanRequest::default(), wait)
            .await
            .unwrap();
        assert_eq!(names(&fixture).await.len(), 0);
    }

    #[tokio::test]
    async fn an_unfinished_download_stays_while_somebody_works_on_it() {
        let fixture = filled().await;
        let content = vec![7; 2 << 20];
        let descriptor = layer(&content);
        let claim = fixture.cache.claim_blob(&descriptor).await.unwrap();
        let Claim::Fetch(writer) = claim else {
            panic!("nobody has fetched it")
        };
        let other = fixture.reopened();
        assert_eq!(
            other
                .clean(&CleanRequest::default())
                .await
                .unwrap()
                .images
                .len(),
            3
        );
        writer.write_at(0, content.into()).await.unwrap();
        writer.finish().await.unwrap();
        assert!(fixture.cache.has_blob(&descriptor).await.unwrap());
    }

    #[tokio::test]
    async fn what_a_living_run_has_pinned_stays_and_is_named() {
        let fixture = filled().await;
        let blob = layer(b"of no image yet");
        let names = ["app:1".parse().unwrap()];
        let lease = fixture.cache.lease(&names, [&blob.digest]).await.unwrap();
        put(&fixture.cache, &blob, b"of no image yet")
            .await
            .unwrap();
        let other = fixture.reopened();
        for dry_run in [true, false] {
            let request = CleanRequest {
                dry_run,
                ..CleanRequest::default()
            };
            let report = other.clean(&request).await.unwrap();
            assert_eq!(report.in_use, ["app:1"]);
            assert_eq!(report.images, ["app:2", "team/multi:1"]);
        }
        let error = other.clean(&only("app", Some("2"))).await.unwrap_err();
        assert!(matches!(error, Error::CachedImageUnknown { .. }), "{error}");
        assert_eq!(self::names(&fixture).await, ["app:1"]);
        assert!(fixture.cache.has_blob(&blob).await.unwrap());
        drop(lease);
        let report = other.clean(&CleanRequest::default()).await.unwrap();
        assert_eq!((report.in_use.len(), report.images.len()), (0, 1));
        assert_eq!(fixture.files(), ["index.json"]);
    }
}
