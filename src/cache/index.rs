//! `index.json`: what is in the cache, in one file that people and other programs can read.
//!
//! It is a projection of `manifests/` and `blobs/`. It remembers where an image came from, but is never asked whether
//! something exists or where: damaged, hostile or missing, it is built anew with one warning. Changes of several images
//! that end within two seconds are written together, read-merge-write under the index's lock; whoever asks this process
//! meanwhile hears of those that wait as well.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};

use crate::{
    error::handlers,
    image::{Manifest, Reference, Repository},
    output::OutputManager,
};

use super::{
    disk::{blocking, open_regular, read_small, replace},
    entry::CacheEntry,
    error::{Error, Result},
    layout::{Layout, index_key},
    lock::{LockName, Locks},
    manifests::{Stored, scan},
};

/// A file of this size describes some 100,000 images of ten layers; a larger one is not ours.
const MAX_INDEX_SIZE: u64 = 256 * 1024 * 1024;

/// Between two writes of a process: a run of many images must not write a file of megabytes for each of them.
const WRITTEN_EVERY: Duration = Duration::from_secs(2);

/// The entries by their keys.
pub(super) type Entries = BTreeMap<String, CacheEntry>;

/// One change of the index.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(Box<CacheEntry>),
    Remove(String),
    /// What an owner wanted has ended.
    Release {
        key: String,
        owner: String,
    },
}

impl Change {
    fn knows_of_gaps(&self) -> bool {
        match self {
            Self::Put(entry) => !entry.missing.is_empty(),
            Self::Remove(_) | Self::Release { .. } => false,
        }
    }
}

/// The index of one cache folder, for the tasks of one process.
#[derive(Debug, Default)]
pub(super) struct Index {
    loaded: tokio::sync::Mutex<Loaded>,
    pending: Mutex<Pending>,
    flushing: Mutex<JoinSet<()>>,
}

/// What was read last, and from which file.
#[derive(Debug, Default)]
struct Loaded {
    entries: Entries,
    file: Seen,
    /// Whether the entries say more than the file.
    unsaved: bool,
    /// How many of the changes that wait are in the entries.
    merged: usize,
}

/// Changes that wait for the next write.
#[derive(Debug, Default)]
struct Pending {
    changes: Vec<Change>,
    written: Option<Instant>,
    /// Whether somebody will write them.
    is_scheduled: bool,
}

/// When changes are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    /// By the caller.
    At(Instant),
    /// Somebody else will do it.
    Scheduled,
}

/// What was seen of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Seen {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// There was none.
    Nothing,
    /// It was in this state.
    File(Stamp),
}

/// Tells one state of the file from another: every write makes a new inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.size(),
            seconds: metadata.ctime(),
            nanoseconds: metadata.ctime_nsec(),
        }
    }
}

impl Seen {
    fn look(path: &Path) -> Result<Self> {
        Ok(match open_regular(path)? {
            Some((_, metadata)) => Self::File(Stamp::of(&metadata)),
            None => Self::Nothing,
        })
    }

    const fn is_file(self) -> bool {
        matches!(self, Self::File(_))
    }
}

impl Index {
    /// What the index says about one image.
    pub(super) async fn entry(
        &self,
        layout: &Layout,
        output: &OutputManager,
        repository: &Repository,
        reference: &Reference,
    ) -> Result<Option<CacheEntry>> {
        let loaded = self.refreshed(layout, output).await?;
        Ok(loaded
            .entries
            .get(&index_key(repository, reference))
            .cloned())
    }

    /// Makes sure that there is a file before the first manifest is: one that is missing beside manifests was lost.
    pub(super) async fn create(
        &self,
        layout: &Layout,
        locks: &Locks,
        output: &OutputManager,
    ) -> Result<()> {
        if self.refreshed(layout, output).await?.file.is_file() {
            return Ok(());
        }
        self.write(layout, locks, output).await
    }

    /// The keys of the entries that fit.
    pub(super) async fn keys(
        &self,
        layout: &Layout,
        output: &OutputManager,
        fits: impl Fn(&String, &CacheEntry) -> bool,
    ) -> Result<Vec<String>> {
        let loaded = self.refreshed(layout, output).await?;
        let fitting = loaded
            .entries
            .iter()
            .filter(|(key, entry)| fits(key, entry));
        Ok(fitting.map(|(key, _)| key.clone()).collect())
    }

    /// All entries.
    pub(super) async fn entries(&self, layout: &Layout, output: &OutputManager) -> Result<Entries> {
        Ok(self.refreshed(layout, output).await?.entries.clone())
    }

    async fn refreshed(
        &self,
        layout: &Layout,
        output: &OutputManager,
    ) -> Result<tokio::sync::MutexGuard<'_, Loaded>> {
        let mut loaded = self.loaded.lock().await;
        let (layout, output) = (layout.clone(), output.clone());
        // Taken out for the time of reading: if this future is dropped, the next one reads the file again.
        let mut state = std::mem::take(&mut *loaded);
        *loaded = blocking(move || {
            refresh(&layout, &output, &mut state)?;
            Ok(state)
        })
        .await?;
        let waiting = self.waiting(loaded.merged);
        loaded.merge(waiting);
        Ok(loaded)
    }

    /// Adds changes to those that wait, and tells when they are to be written. What cannot be found out from the files again
    /// does not wait: what the source of an image did not have.
    pub(super) fn change(&self, changes: Vec<Change>) -> Due {
        let is_urgent = changes.iter().any(Change::knows_of_gaps);
        let mut pending = self.pending();
        pending.changes.extend(changes);
        let due = pending.written.map(|written| written + WRITTEN_EVERY);
        match due.filter(|due| !is_urgent && *due > Instant::now()) {
            None => Due::Now,
            Some(_) if pending.is_scheduled => Due::Scheduled,
            Some(due) => {
                pending.is_scheduled = true;
                Due::At(due)
            }
        }
    }

    /// Lets the future run that will write what waits.
    pub(super) fn later(&self, flush: impl Future<Output = ()> + Send + 'static) {
        let mut flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        while flushing.try_join_next().is_some() {}
        flushing.spawn(flush);
    }

    /// Writes what waits, and what was rebuilt.
    pub(super) async fn flush(
        &self,
        layout: &Layout,
        locks: &Locks,
        output: &OutputManager,
    ) -> Result<()> {
        let is_unsaved = self.loaded.lock().await.unsaved;
        let is_pending = {
            let mut pending = self.pending();
            pending.is_scheduled = false;
            !pending.changes.is_empty()
        };
        if is_unsaved || is_pending {
            self.write(layout, locks, output).await?;
        }
        Ok(())
    }

    async fn write(&self, layout: &Layout, locks: &Locks, output: &OutputManager) -> Result<()> {
        let mut loaded = self.loaded.lock().await;
        let lock = locks.exclusive(LockName::Index, output).await?;
        let (layout, output) = (layout.clone(), output.clone());
        let mut state = std::mem::take(&mut *loaded);
        let waiting = self.waiting(0);
        let count = waiting.len();
        state = blocking(move || {
            // Dropped when the file is written, even if nobody waits for that any more.
            let _lock = lock;
            refresh(&layout, &output, &mut state)?;
            let merged = state.merged;
            state.merge(waiting.into_iter().skip(merged).collect());
            save(&layout, &mut state)?;
            Ok(state)
        })
        .await?;
        let mut pending = self.pending();
        pending.changes.drain(..count);
        pending.written = Some(Instant::now());
        state.merged = 0;
        *loaded = state;
        Ok(())
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The changes that wait, without the first `merged` ones. They stay until they are written.
    fn waiting(&self, merged: usize) -> Vec<Change> {
        self.pending()
            .changes
            .iter()
            .skip(merged)
            .cloned()
            .collect()
    }
}

impl Loaded {
    /// Makes changes that wait.
    fn merge(&mut self, changes: Vec<Change>) {
        self.merged += changes.len();
        for change in changes {
            self.unsaved |= merge(&mut self.entries, change);
        }
    }
}

/// Writes the entries, if they say more than the file.
fn save(layout: &Layout, state: &mut Loaded) -> Result<()> {
    if !state.unsaved && state.file.is_file() {
        return Ok(());
    }
    let path = layout.index();
    let bytes = in_lines(&state.entries)
        .map_err(|error| Error::writing("write", &path, 0, error.into()))?;
    replace(&path, &bytes)?;
    state.file = Seen::look(&path)?;
    state.unsaved = false;
    Ok(())
}

/// The published format with a line for each image: people can search it, and it takes half the time of an indented one.
fn in_lines(entries: &Entries) -> serde_json::Result<Vec<u8>> {
    let mut bytes = b"{".to_vec();
    for (number, (key, entry)) in entries.iter().enumerate() {
        bytes.extend_from_slice(if number == 0 { b"\n" } else { b",\n" });
        serde_json::to_writer(&mut bytes, key)?;
        bytes.extend_from_slice(b": ");
        serde_json::to_writer(&mut bytes, entry)?;
    }
    bytes.extend_from_slice(if entries.is_empty() { b"}\n" } else { b"\n}\n" });
    Ok(bytes)
}

/// Makes one change and tells whether it was one.
fn merge(entries: &mut Entries, change: Change) -> bool {
    match change {
        Change::Put(mut entry) => {
            let key = entry.key();
            let former = entries.get(&key);
            if let Some(former) = former {
                entry.succeed(former.clone());
            }
            if former == Some(&*entry) {
                return false;
            }
            entries.insert(key, *entry);
            true
        }
        Change::Remove(key) => entries.remove(&key).is_some(),
        Change::Release { key, owner } => entries
            .get_mut(&key)
            .is_some_and(|entry| entry.release(&owner)),
    }
}

/// Brings the entries up to date with the file, or with the folders if the file is of no use.
fn refresh(layout: &Layout, output: &OutputManager, state: &mut Loaded) -> Result<()> {
    let path = layout.index();
    let file = Seen::look(&path)?;
    if state.file == file {
        return Ok(());
    }
    state.merged = 0;
    let (former, trouble) = match read_small(&path, MAX_INDEX_SIZE) {
        Err(error) if error.is_of_the_medium() => {
            let trouble = handlers::message(&error);
            (Entries::new(), format!("cannot be used ({trouble})"))
        }
        Err(error) => return Err(error),
        Ok(None) => (Entries::new(), "is missing".to_owned()),
        Ok(Some(Err(size))) => (Entries::new(), format!("has {size} bytes")),
        Ok(Some(Ok(bytes))) => match serde_json::from_slice::<Entries>(&bytes) {
            Err(error) => (Entries::new(), format!("cannot be read ({error})")),
            Ok(entries) => {
                let all = entries.len();
                let sound: Entries = entries
                    .into_iter()
                    .filter(|(key, entry)| entry.is_sound(key))
                    .collect();
                if sound.len() == all {
                    state.entries = sound;
                    state.file = file;
                    state.unsaved = false;
                    return Ok(());
                }
                (sound, "holds entries that contradict themselves".to_owned())
            }
        },
    };
    state.entries = rebuild(layout, former)?;
    state.file = file;
    state.unsaved = file.is_file() || !state.entries.is_empty();
    // A new cache has no index and nothing to put into one.
    if state.unsaved {
        output.warning(format!(
            "the cache index {} {trouble}: it was rebuilt from the {} manifests in the cache",
            path.display(),
            state.entries.len()
        ));
    }
    Ok(())
}

/// Builds the entries from what is there. Manifests by digest that no other manifest reaches, and that no tag stands for,
/// count as asked for by name.
fn rebuild(layout: &Layout, mut former: Entries) -> Result<Entries> {
    let mut entries = Entries::new();
    let mut children = HashSet::new();
    let mut asked_for = HashMap::new();
    for reference in scan(layout)?.references {
        let Stored::Manifest(manifest) = reference.read()? else {
            continue;
        };
        let repository = &reference.name.repository;
        if reference.name.reference.tag().is_some() {
            let pinned = Reference::Digest(manifest.digest().clone());
            children.insert(index_key(repository, &pinned));
        }
        if let Ok(Manifest::Index(index)) = manifest.parse() {
            for child in index.manifests {
                children.insert(index_key(repository, &Reference::Digest(child.digest)));
            }
        }
        let mut entry = CacheEntry::describe(
            layout,
            repository,
            &reference.name.reference,
            reference.relative.clone(),
            &manifest,
        )?;
        let key = entry.key();
        if let Some(former) = former.remove(&key) {
            asked_for.insert(key.clone(), !former.child);
            entry.succeed(former);
        }
        entries.insert(key, entry);
    }
    for (key, entry) in &mut entries {
        let asked_for = asked_for.get(key).copied().unwrap_or_default();
        entry.child = children.contains(key) && !asked_for;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::testing::{
        Fixture, REGISTRY, config, fixture, image, index_of, store_small, stored,
    };

    /// A cache with one image of one platform, and one of two.
    async fn filled() -> Fixture {
        let fixture = fixture();
        store_small(&fixture.cache, "app", "1", b"one").await;
        let amd = image(&fixture.cache, &config("x", "amd64"), &[b"amd"]).await;
        let arm = image(&fixture.cache, &config("x", "arm64"), &[b"arm"]).await;
        let mut wanted = stored(
            "multi/app",
            "1",
            &index_of(&[(&amd, "amd64"), (&arm, "arm64")]),
        );
        wanted.children = vec![amd, arm];
        fixture.cache.store_image(wanted).await.unwrap();
        fixture
    }

    fn overwrite(fixture: &Fixture, bytes: &[u8]) {
        let path = fixture.cache.directory().join("index.json");
        std::fs::remove_file(&path).unwrap();
        std::io::Write::write_all(&mut std::fs::File::create(&path).unwrap(), bytes).unwrap();
    }

    async fn names(fixture: &Fixture) -> Vec<String> {
        let listed = fixture.cache.list().await.unwrap();
        listed.iter().map(|image| image.name.to_string()).collect()
    }

    #[tokio::test]
    async fn a_torn_or_hostile_index_is_rebuilt_with_one_warning() {
        let fixture = filled().await;
        let mut whole = fixture.index();
        for (_, entry) in whole.as_object_mut().unwrap() {
            entry.as_object_mut().unwrap().remove("registry");
        }
        let text = serde_json::to_vec(&whole).unwrap();
        let hostile = |pointer: &str, value: Value| {
            let mut index = whole.clone();
            *index.pointer_mut(pointer).unwrap() = value;
            index.to_string().into_bytes()
        };
        let first_blob = whole["app/1"]["blobs"]
            .as_object()
            .unwrap()
            .keys()
            .next()
            .unwrap()
            .clone();
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        let mut said = 0;
        for damaged in [
            Vec::new(),
            vec![0; 4096],
            text[..text.len() / 2].to_vec(),
            b"[]".to_vec(),
            br#"{"app/1": 7}"#.to_vec(),
            br#"{"app/1": {"repository": "app"}}"#.to_vec(),
            deep,
            hostile("/app~11/manifest_path", json!("../../etc/passwd")),
            hostile("/app~11/repository", json!("../..")),
            hostile(
                &format!("/app~11/blobs/{first_blob}/path"),
                json!("/etc/passwd"),
            ),
            hostile(
                &format!("/app~11/blobs/{first_blob}/digest"),
                json!("sha256:0"),
            ),
            hostile("/app~11/config_digest", json!("sha256:../x")),
        ] {
            overwrite(&fixture, &damaged);
            assert_eq!(names(&fixture).await, ["app:1", "multi/app:1"]);
            assert_eq!(names(&fixture).await.len(), 2);
            said += 1;
            assert_eq!(
                fixture.messages.count("rebuilt"),
                said,
                "{:?}",
                fixture.messages.all()
            );
            store_small(&fixture.cache, "app", "1", b"one").await;
            let mut rebuilt = fixture.index();
            for (_, entry) in rebuilt.as_object_mut().unwrap() {
                entry.as_object_mut().unwrap().remove("registry");
            }
            assert_eq!(rebuilt, whole);
        }
        assert_eq!(fixture.messages.all().len(), said);
    }

    #[tokio::test]
    async fn a_missing_index_is_rebuilt_and_a_huge_one_is_not_read() {
        let fixture = filled().await;
        std::fs::remove_file(fixture.cache.directory().join("index.json")).unwrap();
        for _ in 0..2 {
            assert_eq!(names(&fixture).await.len(), 2);
        }
        assert_eq!(fixture.messages.count("is missing"), 1);
        store_small(&fixture.cache, "app", "1", b"one").await;
        let path = fixture.cache.directory().join("index.json");
        std::fs::remove_file(&path).unwrap();
        std::fs::File::create(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert_eq!(names(&fixture).await.len(), 2);
        assert_eq!(fixture.messages.count("1099511627776 bytes"), 1);
    }

    #[tokio::test]
    async fn fields_of_others_are_kept() {
        let fixture = filled().await;
        let mut index = fixture.index();
        index["app/1"]["x-note"] = json!({"by": "somebody"});
        let blob = index["app/1"]["blobs"]
            .as_object_mut()
            .unwrap()
            .values_mut()
            .next()
            .unwrap();
        blob["x-scanned"] = json!(true);
        overwrite(&fixture, index.to_string().as_bytes());
        store_small(&fixture.cache, "app", "2", b"two").await;
        store_small(&fixture.reopened(), "app", "1", b"one").await;
        assert_eq!(fixture.index()["app/1"], index["app/1"]);
        assert_eq!(fixture.index()["app/1"]["registry"], json!(REGISTRY));
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn an_image_asked_for_by_digest_stays_one_when_an_index_has_it_too() {
        let fixture = filled().await;
        let child = image(&fixture.cache, &config("x", "arm64"), &[b"arm"]).await;
        let name = format!("multi/app@{}", child.digest());
        assert!(!names(&fixture).await.contains(&name));
        let wanted = stored("multi/app", &child.digest().to_string(), &child);
        fixture.cache.store_image(wanted).await.unwrap();
        assert!(names(&fixture).await.contains(&name));
        let mut wanted = stored("multi/app", "1", &index_of(&[(&child, "arm64")]));
        wanted.children = vec![child];
        fixture.cache.store_image(wanted).await.unwrap();
        assert!(names(&fixture).await.contains(&name));
    }

    #[tokio::test]
    async fn storing_the_same_image_again_writes_nothing() {
        let fixture = filled().await;
        let inode = || {
            use std::os::unix::fs::MetadataExt;
            ["index.json", "manifests/app/1"].map(|path| {
                fixture
                    .cache
                    .directory()
                    .join(path)
                    .metadata()
                    .unwrap()
                    .ino()
            })
        };
        fixture.flush();
        let before = inode();
        store_small(&fixture.cache, "app", "1", b"one").await;
        let other = fixture.reopened();
        store_small(&other, "app", "1", b"one").await;
        other.flush_index().await;
        assert_eq!(inode(), before);
    }
}
