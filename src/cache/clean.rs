//! Removing images: mark what stays, sweep the rest.
//!
//! Roots are tags and digests somebody asked for; from them the walk goes through indexes to configurations and layers.
//! Nothing is swept while anybody uses the cache, so what is not reached belongs to nobody: the store lock is held alone.
//! References go before blobs, with a barrier between, so that no reference outlives its blobs.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::image::{Algorithm, Digest, Reference, Repository};

use super::{
    Cache,
    disk::{SizedFile, blocking, files_in, sized},
    error::{Error, Result},
    index::{Change, Entries},
    layout::{Layout, STATE_SUFFIX, TEMPORARY_PREFIX, index_key},
    list::is_asked_for,
    manifests::{StoredReference, remove_empty_folders, scan},
    mark::Marks,
    quarantine, uploads,
};

/// How long `clean` waits for other runs: long enough for one that is about to end, short enough for a person.
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
    /// Manifest files, those of the images included.
    pub manifests: u64,
    /// Blobs, unfinished ones included.
    pub blobs: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Cache {
    /// Removes images, then the manifests and blobs that nothing reaches any more.
    ///
    /// # Errors
    /// When somebody uses the cache for longer than ten seconds (the caller's own guards count), when the image to be removed is not there, and when a
    /// manifest that stays cannot be read; then nothing is removed.
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
            return Ok(self.plan(request).await?.report());
        }
        let store = self.shared.locks.use_alone(wait, &self.output).await?;
        let plan = self.plan(request).await?;
        let layout = self.shared.layout.clone();
        let report = plan.report();
        let removed = blocking(move || {
            // Held until the last file is gone, even if nobody waits for that any more.
            let _store = store;
            plan.execute(&layout)
        })
        .await?;
        self.update_index(removed).await;
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

    async fn plan(&self, request: &CleanRequest) -> Result<Plan> {
        let entries = self
            .index
            .entries(&self.shared.layout, &self.output)
            .await?;
        let (layout, request) = (self.shared.layout.clone(), request.clone());
        blocking(move || Plan::new(&layout, &request, entries)).await
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

/// What will be removed.
#[derive(Debug)]
struct Plan {
    images: Vec<String>,
    kept: Vec<String>,
    manifests: Vec<SizedFile>,
    blobs: Vec<SizedFile>,
    leftovers: Vec<SizedFile>,
    quarantined: Vec<SizedFile>,
    /// Keys of the index that name nothing then.
    keys: Vec<String>,
}

impl Plan {
    fn new(layout: &Layout, request: &CleanRequest, entries: Entries) -> Result<Self> {
        let found = scan(layout)?;
        let now = SystemTime::now();
        let is_meant = |reference: &StoredReference| match &request.only {
            None => true,
            Some((repository, None)) => reference.name.repository == *repository,
            Some((repository, Some(wanted))) => {
                reference.name.repository == *repository && reference.name.reference == *wanted
            }
        };
        // A time in the future (the clock was set back) counts as recent.
        let is_recent = |reference: &StoredReference| {
            request.keep_within.is_some_and(|limit| {
                now.duration_since(reference.modified)
                    .map_or(true, |age| age <= limit)
            })
        };
        let (mut doomed, mut kept) = (BTreeSet::new(), Vec::new());
        let mut roots = Vec::new();
        let mut anything_meant = false;
        for (position, reference) in found.references.iter().enumerate() {
            let asked_for = is_asked_for(&reference.name, &entries);
            let named = request
                .only
                .as_ref()
                .is_some_and(|(_, name)| name.is_some());
            let meant = is_meant(reference) && (asked_for || named);
            anything_meant |= meant;
            if meant && !is_recent(reference) {
                doomed.insert(position);
            } else if asked_for {
                roots.push(position);
            }
            if meant && is_recent(reference) {
                kept.push(reference.name.to_string());
            }
        }
        if let Some(only) = &request.only
            && !anything_meant
        {
            return Err(unknown(layout, only));
        }
        let marks = Marks::walk(&found.references, roots, &doomed)?;
        let mut plan = Self {
            images: Vec::new(),
            kept,
            manifests: Vec::new(),
            blobs: Vec::new(),
            leftovers: Vec::new(),
            quarantined: Vec::new(),
            keys: Vec::new(),
        };
        let mut stays = HashSet::new();
        for (position, reference) in found.references.iter().enumerate() {
            let name = reference.name.to_string();
            let key = index_key(&reference.name.repository, &reference.name.reference);
            if marks.manifests.contains(&position) {
                if doomed.contains(&position) {
                    plan.kept.push(name);
                }
                stays.insert(key);
                continue;
            }
            if doomed.contains(&position) {
                plan.images.push(name);
            }
            plan.manifests.extend(sized(&reference.path)?);
        }
        plan.keys = entries
            .into_keys()
            .filter(|key| !stays.contains(key))
            .collect();
        for path in found.leftovers {
            plan.leftovers.extend(sized(&path)?);
        }
        plan.leftovers.extend(files_in(layout.root(), |name| {
            name.starts_with(TEMPORARY_PREFIX)
        })?);
        plan.leftovers
            .extend(notes(layout, request.only.is_none())?);
        let everything = request.only.is_none() && request.keep_within.is_none();
        plan.quarantined = quarantine::to_be_removed(layout, everything)?;
        plan.blobs = unreached_blobs(layout, &marks.blobs)?;
        Ok(plan)
    }

    fn report(&self) -> CleanReport {
        let all = [
            &self.manifests,
            &self.blobs,
            &self.leftovers,
            &self.quarantined,
        ];
        CleanReport {
            images: self.images.clone(),
            kept: self.kept.clone(),
            manifests: self.manifests.len() as u64,
            blobs: self.blobs.len() as u64,
            bytes: all.into_iter().flatten().map(|(_, size)| size).sum(),
        }
    }

    /// Removes the files and tells what changes in the index.
    fn execute(self, layout: &Layout) -> Result<Vec<Change>> {
        let remove_by = |files: &[SizedFile], remove: fn(&Path) -> io::Result<()>| {
            files.iter().try_for_each(|(path, _)| match remove(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(Error::writing("remove", path, 0, error))
                }
                _ => Ok(()),
            })
        };
        let remove = |files: &[SizedFile]| remove_by(files, |path| fs::remove_file(path));
        remove(&self.manifests)?;
        if !self.manifests.is_empty() {
            let root = layout.root();
            fs::File::open(root)
                .and_then(|volume| rustix::fs::syncfs(&volume).map_err(Into::into))
                .map_err(|source| Error::writing("sync", root, 0, source))?;
        }
        remove(&self.blobs)?;
        remove(&self.leftovers)?;
        remove_by(&self.quarantined, quarantine::remove)?;
        remove_empty_folders(layout);
        Ok(self.keys.into_iter().map(Change::Remove).collect())
    }
}

/// Whether a file among the partials only tells about one.
fn is_note(name: &str) -> bool {
    name.ends_with(STATE_SUFFIX) || name.starts_with(TEMPORARY_PREFIX)
}

/// Notes about what was not finished: of downloads, and of uploads that nobody will go on with.
fn notes(layout: &Layout, all: bool) -> Result<Vec<SizedFile>> {
    let mut found = files_in(&layout.partials(), is_note)?;
    for (path, size) in files_in(&layout.uploads(), |_| true)? {
        if all || uploads::is_old(&path) {
            found.push((path, size));
        }
    }
    Ok(found)
}

/// Blobs without a mark, and everything that was not finished: nobody else is at work.
fn unreached_blobs(layout: &Layout, reached: &HashSet<Digest>) -> Result<Vec<SizedFile>> {
    let mut found = files_in(&layout.partials(), |name| !is_note(name))?;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        found.extend(files_in(&layout.blobs(algorithm), |name| {
            format!("{}:{name}", algorithm.name())
                .parse::<Digest>()
                .is_ok_and(|digest| !reached.contains(&digest))
        })?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use serde_json::json;

    use super::super::testing::{
        Fixture, blob, config, fixture, image, index_of, layer, put, raw, store_small, stored,
    };
    use super::*;
    use crate::image::MediaType;

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
        for leftover in [".tmp-1", "manifests/app/.tmp-2", "blobs/.partial/sha256:3"] {
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
    async fn an_unfinished_download_keeps_the_cache_in_use() {
        let fixture = filled().await;
        let claim = fixture.cache.claim_blob(&layer(b"slow")).await.unwrap();
        let wait = Duration::from_millis(10);
        let refused = fixture
            .cache
            .clean_within(&CleanRequest::default(), wait)
            .await;
        assert!(matches!(refused, Err(Error::CacheInUse { .. })));
        drop(claim);
        // The thrown away download is removed in the background.
        let wait = Duration::from_secs(5);
        fixture
            .cache
            .clean_within(&CleanRequest::default(), wait)
            .await
            .unwrap();
    }
}
