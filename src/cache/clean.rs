//! Removing images: mark what stays, sweep the rest.
//!
//! Roots are tags and digests somebody asked for; from them the walk goes through indexes to configurations and layers.
//! Nothing is swept while anybody uses the cache, so what is not reached belongs to nobody: the store lock is held alone.
//! References go before blobs, with a barrier between, so that no reference outlives its blobs.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::image::{Algorithm, Digest, Manifest, RawManifest, Reference, Repository};

use super::{
    Cache,
    disk::blocking,
    error::{Error, Result},
    index::{Change, Entries},
    layout::{Layout, TEMPORARY_PREFIX, index_key},
    list::is_asked_for,
    manifests::{Stored, StoredReference, scan},
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
    /// When somebody uses the cache for longer than ten seconds, when the image to be removed is not there, and when a
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
        let written = self
            .index
            .apply(
                removed,
                &self.shared.layout,
                &self.shared.locks,
                &self.output,
            )
            .await;
        if let Err(error) = written {
            self.warn_of_the_index(&error);
        }
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

fn unknown(layout: &Layout, (repository, reference): &(Repository, Option<Reference>)) -> Error {
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

/// A file and its size.
type Sized = (PathBuf, u64);

/// What will be removed.
#[derive(Debug)]
struct Plan {
    images: Vec<String>,
    kept: Vec<String>,
    manifests: Vec<Sized>,
    blobs: Vec<Sized>,
    leftovers: Vec<Sized>,
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
            plan.manifests.push(sized(&reference.path)?);
        }
        plan.keys = entries
            .into_keys()
            .filter(|key| !stays.contains(key))
            .collect();
        for path in found.leftovers {
            plan.leftovers.push(sized(&path)?);
        }
        plan.leftovers.extend(files(layout.root(), |name| {
            name.starts_with(TEMPORARY_PREFIX)
        })?);
        plan.blobs = unreached_blobs(layout, &marks.blobs)?;
        Ok(plan)
    }

    fn report(&self) -> CleanReport {
        let all = [&self.manifests, &self.blobs, &self.leftovers];
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
        let remove = |files: &[Sized]| {
            files
                .iter()
                .try_for_each(|(path, _)| match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(Error::writing("remove", path, 0, error))
                    }
                    _ => Ok(()),
                })
        };
        remove(&self.manifests)?;
        if !self.manifests.is_empty() {
            let root = layout.root();
            fs::File::open(root)
                .and_then(|volume| rustix::fs::syncfs(&volume).map_err(Into::into))
                .map_err(|source| Error::writing("sync", root, 0, source))?;
        }
        remove(&self.blobs)?;
        remove(&self.leftovers)?;
        remove_empty_folders(&layout.manifests());
        Ok(self.keys.into_iter().map(Change::Remove).collect())
    }
}

/// What the roots reach.
#[derive(Debug, Default)]
struct Marks<'a> {
    /// Positions in the list of references.
    manifests: HashSet<usize>,
    /// The digests of these manifests.
    digests: HashSet<(&'a Repository, Digest)>,
    blobs: HashSet<Digest>,
}

impl<'a> Marks<'a> {
    fn walk(
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
        let subject = match manifest.parse() {
            Ok(Manifest::Image(image)) => image.subject,
            Ok(Manifest::Index(_)) | Err(_) => None,
        };
        Ok(subject.is_some_and(|subject| {
            self.digests
                .contains(&(&reference.name.repository, subject.digest))
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

/// Blobs without a mark, and everything that was not finished: nobody else is at work.
fn unreached_blobs(layout: &Layout, reached: &HashSet<Digest>) -> Result<Vec<Sized>> {
    let mut found = files(&layout.partials(), |_| true)?;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        found.extend(files(&layout.blobs(algorithm), |name| {
            format!("{}:{name}", algorithm.name())
                .parse::<Digest>()
                .is_ok_and(|digest| !reached.contains(&digest))
        })?);
    }
    Ok(found)
}

/// The files of a folder whose names fit; folders are left alone.
fn files(folder: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<Sized>> {
    let failed = |source| Error::reading("look through", folder, source);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let is_folder = entry.file_type().map_err(failed)?.is_dir();
        if !is_folder && entry.file_name().to_str().is_some_and(&fits) {
            found.push(sized(&entry.path())?);
        }
    }
    Ok(found)
}

fn sized(path: &Path) -> Result<Sized> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok((path.to_owned(), metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path.to_owned(), 0)),
        Err(error) => Err(Error::reading("look at", path, error)),
    }
}

/// Removes folders that became empty, from the deepest up. A folder that stays does no harm.
fn remove_empty_folders(manifests: &Path) {
    let mut folders = vec![manifests.to_owned()];
    let mut position = 0;
    while let Some(folder) = folders.get(position).cloned() {
        position += 1;
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        let below = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(below.map(|entry| entry.path()));
    }
    for folder in folders.iter().skip(1).rev() {
        if let Err(error) = fs::remove_dir(folder)
            && error.kind() != io::ErrorKind::DirectoryNotEmpty
        {
            tracing::debug!(path = %folder.display(), %error, "an empty folder stays");
        }
    }
}
