//! `index.json`: what is in the cache, in one file that people and other programs can read.
//!
//! It is a projection of `manifests/` and `blobs/`. It remembers where an image came from, but is never asked whether
//! something exists or where: damaged, hostile or missing, it is built anew with one warning. Changes of several images
//! that end at the same time are written together, read-merge-write under the index's lock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::Metadata,
    os::unix::fs::MetadataExt,
    sync::{Mutex, PoisonError},
};

use crate::{
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

/// The entries by their keys.
pub(super) type Entries = BTreeMap<String, CacheEntry>;

/// One change of the index.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(Box<CacheEntry>),
    Remove(String),
}

/// The index of one cache folder, for the tasks of one process.
#[derive(Debug, Default)]
pub(super) struct Index {
    loaded: tokio::sync::Mutex<Loaded>,
    pending: Mutex<Pending>,
}

/// What was read last, and from which file.
#[derive(Debug, Default)]
struct Loaded {
    entries: Entries,
    stamp: Option<Stamp>,
    /// Whether the entries say more than the file.
    unsaved: bool,
    /// The youngest change that is in the file.
    written: u64,
}

/// Changes that wait for the next write.
#[derive(Debug, Default)]
struct Pending {
    changes: Vec<Change>,
    /// Number of the youngest change.
    requested: u64,
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
        if self.refreshed(layout, output).await?.stamp.is_some() {
            return Ok(());
        }
        self.apply(Vec::new(), layout, locks, output).await
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
        let written = state.written;
        loaded.written = written;
        *loaded = blocking(move || {
            refresh(&layout, &output, &mut state)?;
            Ok(state)
        })
        .await?;
        Ok(loaded)
    }

    /// Writes changes, together with those of others that wait.
    pub(super) async fn apply(
        &self,
        changes: Vec<Change>,
        layout: &Layout,
        locks: &Locks,
        output: &OutputManager,
    ) -> Result<()> {
        let ticket = self.enqueue(changes);
        let mut loaded = self.loaded.lock().await;
        if loaded.written >= ticket {
            return Ok(());
        }
        let lock = locks.exclusive(LockName::Index, output).await?;
        let (batch, covers) = self.take_pending();
        let (layout, output) = (layout.clone(), output.clone());
        let mut state = std::mem::take(&mut *loaded);
        loaded.written = state.written;
        let outcome = blocking(move || {
            // Dropped when the file is written, even if nobody waits for that any more.
            let _lock = lock;
            let written = write_batch(&layout, &output, &mut state, &batch);
            Ok((state, batch, written))
        })
        .await;
        let (state, batch, result) = outcome?;
        match result {
            Ok(()) => {
                *loaded = Loaded {
                    written: covers,
                    ..state
                };
                Ok(())
            }
            Err(error) => {
                self.put_back(batch);
                Err(error)
            }
        }
    }

    fn enqueue(&self, changes: Vec<Change>) -> u64 {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.changes.extend(changes);
        pending.requested += 1;
        pending.requested
    }

    fn take_pending(&self) -> (Vec<Change>, u64) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        (std::mem::take(&mut pending.changes), pending.requested)
    }

    /// Keeps changes that could not be written for the next attempt, before those that came meanwhile.
    fn put_back(&self, mut batch: Vec<Change>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        batch.append(&mut pending.changes);
        pending.changes = batch;
    }
}

/// Merges changes into the file.
fn write_batch(
    layout: &Layout,
    output: &OutputManager,
    state: &mut Loaded,
    batch: &[Change],
) -> Result<()> {
    refresh(layout, output, state)?;
    for change in batch {
        state.unsaved |= merge(&mut state.entries, change.clone());
    }
    if !state.unsaved && state.stamp.is_some() {
        return Ok(());
    }
    let path = layout.index();
    let mut bytes = serde_json::to_vec_pretty(&state.entries)
        .map_err(|error| Error::writing("write", &path, 0, error.into()))?;
    bytes.push(b'\n');
    replace(&path, &bytes)?;
    state.stamp = open_regular(&path)?.map(|(_, metadata)| Stamp::of(&metadata));
    state.unsaved = false;
    Ok(())
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
    }
}

/// Brings the entries up to date with the file, or with the folders if the file is of no use.
fn refresh(layout: &Layout, output: &OutputManager, state: &mut Loaded) -> Result<()> {
    let path = layout.index();
    let stamp = open_regular(&path)?.map(|(_, metadata)| Stamp::of(&metadata));
    if stamp.is_some() && stamp == state.stamp {
        return Ok(());
    }
    let (former, trouble) = match read_small(&path, MAX_INDEX_SIZE)? {
        None => (Entries::new(), "is missing".to_owned()),
        Some(Err(size)) => (Entries::new(), format!("has {size} bytes")),
        Some(Ok(bytes)) => match serde_json::from_slice::<Entries>(&bytes) {
            Err(error) => (Entries::new(), format!("cannot be read ({error})")),
            Ok(entries) => {
                let all = entries.len();
                let sound: Entries = entries
                    .into_iter()
                    .filter(|(key, entry)| entry.is_sound(key))
                    .collect();
                if sound.len() == all {
                    state.entries = sound;
                    state.stamp = stamp;
                    state.unsaved = false;
                    return Ok(());
                }
                (sound, "holds entries that contradict themselves".to_owned())
            }
        },
    };
    state.entries = rebuild(layout, former)?;
    state.stamp = stamp;
    state.unsaved = stamp.is_some() || !state.entries.is_empty();
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

/// Builds the entries from what is there. Manifests by digest that no other manifest reaches count as asked for by name.
fn rebuild(layout: &Layout, mut former: Entries) -> Result<Entries> {
    let mut entries = Entries::new();
    let mut children = HashSet::new();
    let mut asked_for = HashMap::new();
    for reference in scan(layout)?.references {
        let Stored::Manifest(manifest) = reference.read()? else {
            continue;
        };
        let repository = &reference.name.repository;
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
