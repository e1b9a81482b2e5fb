//! What lies in the folders of the cache beside its manifests: blobs, what only looks like one, downloads that were given up.
//! Nothing is followed: a symlink is told as what it is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::image::{Algorithm, Digest};

use super::{
    disk::{files_in, is_older},
    error::{Error, Result},
    layout::{Layout, STATE_SUFFIX, TEMPORARY_PREFIX, relative_blob},
    lock::is_locked,
    quarantine::{Identity, look_at},
    rehash::{Examined, Wrong, not_a_file},
    survey::{Subject, Surveyor, missing},
    verify::{Problem, STALE_AFTER},
};

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

impl Surveyor<'_> {
    /// Folders of ours that are something else, a symlink most likely: told, but not moved, since somebody may have meant it.
    pub(super) fn look_at_folders(&mut self) -> Result<()> {
        let layout = self.layout;
        let blobs = layout.root().join("blobs");
        let below = ALGORITHMS.map(|algorithm| layout.blobs(algorithm));
        let folders = [layout.manifests(), blobs, layout.partials()];
        for folder in folders.into_iter().chain(below) {
            // Not through a symlink, not even to tell that what lies behind it is one.
            if !folder.parent().is_none_or(|above| self.is_open(above)) {
                self.closed.insert(folder);
                continue;
            }
            if let Some(metadata) = look_at(&folder)?
                && !metadata.is_dir()
            {
                let wrong = Wrong {
                    problem: Problem::NotAFolder,
                    detail: "is no folder; what lies behind it is not looked at".to_owned(),
                    length: None,
                    seen: None,
                };
                self.find(&folder, Subject::Stranger, wrong, &BTreeSet::new());
                self.closed.insert(folder);
            }
        }
        Ok(())
    }

    pub(super) fn is_open(&self, folder: &Path) -> bool {
        !self.closed.contains(folder)
    }

    /// Something that has no name of ours, or is no file.
    pub(super) fn stranger(&mut self, path: &Path) -> Result<()> {
        let wrong = match not_a_file(path)? {
            Examined::Wrong(wrong) => wrong,
            Examined::Gone | Examined::Right(_) => match Identity::at(path)? {
                None => return Ok(()),
                seen => Wrong {
                    problem: Problem::UnknownName,
                    detail: "has a name that nothing in the cache has".to_owned(),
                    length: None,
                    seen,
                },
            },
        };
        self.find(path, Subject::Stranger, wrong, &BTreeSet::new());
        Ok(())
    }

    /// Everything that lies where blobs do.
    pub(super) fn look_through_blobs(&mut self) -> Result<()> {
        let blobs = self.layout.root().join("blobs");
        let own = ["sha256", "sha512", ".partial"];
        for path in self.entries_of(&blobs)? {
            let is_ours = path.file_name().and_then(|name| name.to_str());
            if !is_ours.is_some_and(|name| own.contains(&name)) {
                self.stranger(&path)?;
            }
        }
        for algorithm in ALGORITHMS {
            for path in self.entries_of(&self.layout.blobs(algorithm))? {
                let name = path.file_name().and_then(|name| name.to_str());
                let digest = name.and_then(|name| {
                    let digest = format!("{}:{name}", algorithm.name());
                    digest.parse::<Digest>().ok()
                });
                match digest {
                    Some(digest) => self.add_blob(digest, &path)?,
                    None => self.stranger(&path)?,
                }
            }
        }
        Ok(())
    }

    /// The paths in a folder; none in one that is closed or not there.
    fn entries_of(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        if !self.is_open(folder) || look_at(folder)?.is_none() {
            return Ok(Vec::new());
        }
        let failed = |source| Error::reading("look through", folder, source);
        fs::read_dir(folder)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
            .collect()
    }

    fn add_blob(&mut self, digest: Digest, path: &Path) -> Result<()> {
        if let Some(metadata) = look_at(path)? {
            let length = if metadata.is_file() {
                metadata.len()
            } else {
                0
            };
            self.survey.blobs.insert(digest, length);
        }
        Ok(())
    }

    /// Blobs that images need and that are not there.
    pub(super) fn look_for_needed_blobs(&mut self) -> Result<()> {
        let needs = std::mem::take(&mut self.survey.needs);
        for (digest, need) in &needs {
            let folder = self.layout.blobs(digest.algorithm());
            if !self.is_open(&folder) {
                let blobs = self.layout.root().join("blobs");
                for path in [folder, blobs] {
                    if let Some(finding) = self.survey.findings.get_mut(&path) {
                        finding.images.extend(&need.images);
                    }
                }
                continue;
            }
            let path = self.layout.root().join(relative_blob(digest));
            self.add_blob(digest.clone(), &path)?;
            if !self.survey.blobs.contains_key(digest) {
                let subject = Subject::Blob(digest.clone());
                self.find(&path, subject, missing(Problem::BlobMissing), &need.images);
            }
        }
        self.survey.needs = needs;
        Ok(())
    }

    /// Downloads that were begun and that nobody went on with.
    pub(super) fn look_for_stale_partials(&mut self) -> Result<()> {
        let folder = self.layout.partials();
        if !self.is_open(&folder) {
            return Ok(());
        }
        let is_partial =
            |name: &str| !name.ends_with(STATE_SUFFIX) && !name.starts_with(TEMPORARY_PREFIX);
        for (path, _) in files_in(&folder, is_partial)? {
            let is_stale = look_at(&path)?.is_some_and(|metadata| is_older(&metadata, STALE_AFTER));
            if is_stale && !is_in_use(self.layout, &path) {
                self.survey.stale.push(path);
            }
        }
        self.survey.stale.sort();
        Ok(())
    }
}

/// Whether somebody works on a partial: a download has the lock of its digest, an import that of the file that began it.
fn is_in_use(layout: &Layout, partial: &Path) -> bool {
    let name = partial.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    match name.parse::<Digest>() {
        Ok(digest) => is_locked(&layout.locks().join(digest.to_string())),
        Err(_) => is_locked(&partial.with_file_name(name.split('-').next().unwrap_or(name))),
    }
}
