//! Mark and sweep: what nothing reaches any more goes.
//!
//! Roots are tags and digests somebody asked for, and what runs that are alive have pinned; from them the walk goes through
//! indexes to configurations and layers. All is decided and moved into the trash while the store lock is held alone, so
//! nobody pins or stores anything meanwhile; the system gets the bytes back afterwards. References go before blobs, with a
//! barrier between, so that no reference outlives its blobs.

use std::{
    collections::{BTreeSet, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::image::Digest;

use super::{
    Cache, Shared,
    clean::CleanReport,
    disk::{
        SizedFile, blobs_in, blocking, files_in, is_older, open_regular, remove_leftover, sized,
    },
    error::{Error, Result},
    index::{Change, Entries},
    layout::{Layout, STATE_SUFFIX, TEMPORARY_PREFIX, index_key},
    lease::Pinned,
    list::is_asked_for,
    lock::{Held, LockName},
    manifests::{Scan, StoredReference, remove_empty_folders},
    mark::Marks,
    quarantine::{self, make_real_folder},
    uploads,
};

/// A file of a run that is alive is younger: it is renamed as soon as it is written.
const TEMPORARIES_LIVE: Duration = Duration::from_hours(1);

/// What is to go.
#[derive(Debug)]
pub(super) struct Removal {
    /// Positions of the references, in the order of the scan.
    pub(super) doomed: BTreeSet<usize>,
    pub(super) grace: Grace,
}

/// How old things must be that no reference names, to go as well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grace {
    /// Blobs; those of images that go now go at once.
    pub(super) blobs: Duration,
    /// Downloads that were not finished.
    pub(super) partials: Duration,
    /// Whether notes about uploads, and what is in quarantine, go whatever their age.
    pub(super) everything: bool,
}

impl Grace {
    pub(super) const fn nothing(everything: bool) -> Self {
        Self {
            blobs: Duration::ZERO,
            partials: Duration::ZERO,
            everything,
        }
    }
}

/// What will be removed.
#[derive(Debug)]
pub(super) struct Sweep {
    images: Vec<String>,
    kept: Vec<String>,
    manifests: Vec<SizedFile>,
    blobs: Vec<SizedFile>,
    /// Downloads that were not finished: by digest, with the notes about them.
    partials: Vec<(Digest, SizedFile)>,
    leftovers: Vec<SizedFile>,
    quarantined: Vec<SizedFile>,
    /// Keys of the index that name nothing then.
    keys: Vec<String>,
    /// Leases of runs that are not alive.
    dead: Vec<PathBuf>,
}

impl Sweep {
    /// Decides what goes. Blocks, and changes nothing.
    pub(super) fn plan(
        layout: &Layout,
        found: &Scan,
        entries: &Entries,
        pinned: &Pinned,
        removal: &Removal,
    ) -> Result<Self> {
        let Removal { doomed, grace } = removal;
        let references = &found.references;
        let is_root = |position: usize, reference: &StoredReference| {
            !doomed.contains(&position) && is_asked_for(&reference.name, entries)
                || pinned.has(reference)
        };
        let roots = references.iter().enumerate();
        let roots = roots.filter(|(position, reference)| is_root(*position, reference));
        let roots = roots.map(|(position, _)| position).collect();
        let marks = Marks::walk(references, roots, doomed)?;
        let of_the_doomed = if grace.blobs.is_zero() {
            HashSet::new()
        } else {
            blobs_of(references, doomed)
        };
        let mut sweep = Self {
            images: Vec::new(),
            kept: Vec::new(),
            manifests: Vec::new(),
            blobs: Vec::new(),
            partials: Vec::new(),
            leftovers: Vec::new(),
            quarantined: quarantine::to_be_removed(layout, grace.everything)?,
            keys: Vec::new(),
            dead: pinned.dead.clone(),
        };
        let mut stays = HashSet::new();
        for (position, reference) in references.iter().enumerate() {
            let name = reference.name.to_string();
            let key = index_key(&reference.name.repository, &reference.name.reference);
            let goes = doomed.contains(&position);
            if marks.manifests.contains(&position) {
                if goes {
                    sweep.kept.push(name);
                }
                stays.insert(key);
                continue;
            }
            if goes {
                sweep.images.push(name);
            }
            sweep.manifests.extend(sized(&reference.path)?);
        }
        let keys = entries.keys().filter(|key| !stays.contains(*key));
        sweep.keys = keys.cloned().collect();
        let is_needed =
            |digest: &Digest| marks.blobs.contains(digest) || pinned.digests.contains(digest);
        let goes = |digest: &Digest, path: &Path| {
            !is_needed(digest) && (of_the_doomed.contains(digest) || is_at_least(path, grace.blobs))
        };
        let blobs = blobs_in(layout)?.into_iter();
        let blobs = blobs.filter(|(digest, (path, _))| goes(digest, path));
        sweep.blobs = blobs.map(|(_, file)| file).collect();
        sweep.add_partials(layout, &is_needed, grace.partials)?;
        sweep.add_leftovers(layout, &found.leftovers, pinned.anybody, grace.everything)?;
        Ok(sweep)
    }

    fn add_partials(
        &mut self,
        layout: &Layout,
        is_needed: &dyn Fn(&Digest) -> bool,
        age: Duration,
    ) -> Result<()> {
        let is_note =
            |name: &str| name.ends_with(STATE_SUFFIX) || name.starts_with(TEMPORARY_PREFIX);
        for (path, size) in files_in(&layout.partials(), |name| !is_note(name))? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match name.parse::<Digest>() {
                Ok(digest) if is_needed(&digest) || !is_at_least(&path, age) => {}
                Ok(digest) => {
                    let note = sized(&layout.partial_state(&digest))?;
                    let size = size + note.map_or(0, |(_, size)| size);
                    self.partials.push((digest, (path, size)));
                }
                // Of an import that was killed: a living one holds the store lock.
                Err(_) => self.leftovers.push((path, size)),
            }
        }
        Ok(())
    }

    /// Files that nobody gave a name, and notes about downloads that are gone.
    fn add_leftovers(
        &mut self,
        layout: &Layout,
        found: &[PathBuf],
        anybody: bool,
        everything: bool,
    ) -> Result<()> {
        let mut temporaries = Vec::new();
        for path in found {
            temporaries.extend(sized(path)?);
        }
        let is_temporary = |name: &str| name.starts_with(TEMPORARY_PREFIX);
        temporaries.extend(files_in(layout.root(), is_temporary)?);
        temporaries.extend(files_in(&layout.partials(), is_temporary)?);
        temporaries.retain(|(path, _)| !anybody || is_at_least(path, TEMPORARIES_LIVE));
        self.leftovers.extend(temporaries);
        let notes = files_in(&layout.partials(), |name| name.ends_with(STATE_SUFFIX))?;
        self.leftovers.extend(notes.into_iter().filter(|(path, _)| {
            // The note goes with its partial; this is about those whose partial went before them.
            let partial = path.with_extension("");
            matches!(open_regular(&partial), Ok(None))
        }));
        for (path, size) in files_in(&layout.uploads(), |_| true)? {
            if (everything && !anybody) || uploads::is_old(&path) {
                self.leftovers.push((path, size));
            }
        }
        self.leftovers.extend(files_in(&layout.trash(), |_| true)?);
        Ok(())
    }

    pub(super) fn report(&self) -> CleanReport {
        CleanReport {
            images: self.images.clone(),
            kept: self.kept.clone(),
            in_use: Vec::new(),
            manifests: self.manifests.len() as u64,
            blobs: (self.blobs.len() + self.partials.len()) as u64,
            bytes: self.bytes(),
        }
    }

    /// Bytes of all files that go.
    pub(super) fn bytes(&self) -> u64 {
        let files = [
            &self.manifests,
            &self.blobs,
            &self.leftovers,
            &self.quarantined,
        ];
        let partials = self.partials.iter().map(|(_, file)| file);
        let all = files.into_iter().flatten().chain(partials);
        all.map(|(_, size)| size).sum()
    }

    /// Moves everything into the trash.
    fn execute(&self, shared: &Shared) -> Result<()> {
        let layout = &shared.layout;
        let trash = layout.trash();
        make_real_folder(&trash)?;
        let discard =
            |files: &[SizedFile]| files.iter().try_for_each(|(path, _)| discard(path, &trash));
        discard(&self.manifests)?;
        if !self.manifests.is_empty() {
            let root = layout.root();
            fs::File::open(root)
                .and_then(|volume| rustix::fs::syncfs(&volume).map_err(Into::into))
                .map_err(|source| Error::writing("sync", root, 0, source))?;
        }
        discard(&self.blobs)?;
        for (digest, file) in &self.partials {
            // Whoever fetches it just now did not pin it, but has its lock.
            if let Some(_lock) = shared.locks.try_exclusive(LockName::Blob(digest))? {
                discard(std::slice::from_ref(file))?;
                remove_leftover(&layout.partial_state(digest));
            }
        }
        for (path, _) in &self.leftovers {
            remove_leftover(path);
        }
        for (path, _) in &self.quarantined {
            quarantine::remove(path)
                .or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })
                .map_err(|error| Error::writing("remove", path, 0, error))?;
        }
        for path in &self.dead {
            remove_leftover(path);
        }
        remove_empty_folders(layout);
        Ok(())
    }
}

impl Cache {
    /// Removes what was planned. `store` is the store lock, held alone since before the plan was made.
    pub(super) async fn sweep(&self, sweep: Sweep, store: Held) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let keys = blocking(move || {
            // Held until all is decided and done, even if nobody waits for that any more.
            let store = store;
            let moved = sweep.execute(&shared);
            drop(store);
            empty(&shared.layout.trash());
            moved.map(|()| sweep.keys)
        })
        .await?;
        self.update_index(keys.into_iter().map(Change::Remove).collect())
            .await;
        self.flush_index().await;
        Ok(())
    }
}

/// Takes a file out of sight.
fn discard(path: &Path, trash: &Path) -> Result<()> {
    let target = trash.join(format!("{:016x}", fastrand::u64(..)));
    match fs::rename(path, target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::writing("remove", path, 0, error))
        }
        _ => Ok(()),
    }
}

/// Gives everything in the trash back to the system. What cannot be removed now goes with the next sweep.
fn empty(trash: &Path) {
    for (path, _) in files_in(trash, |_| true).unwrap_or_default() {
        remove_leftover(&path);
    }
    // Only if it is empty: somebody else may be filling it.
    fs::remove_dir(trash).ok();
}

/// What the images need that go now: it is nobody's from now on, whatever its age. One that cannot be read tells nothing.
fn blobs_of(references: &[StoredReference], doomed: &BTreeSet<usize>) -> HashSet<Digest> {
    let going = doomed.iter().copied().collect();
    let marks = Marks::walk(references, going, &BTreeSet::new());
    marks.map(|marks| marks.blobs).unwrap_or_default()
}

/// Whether a file is so old. What cannot be looked at is not; a time in the future counts as young.
fn is_at_least(path: &Path, age: Duration) -> bool {
    age.is_zero() || fs::symlink_metadata(path).is_ok_and(|metadata| is_older(&metadata, age))
}
