//! What a verification has to look at, and what is wrong at first sight: from the references down to the blobs they need,
//! and what lies in the folders that nothing of ours is called. Reads manifests and folders, no blob.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use crate::image::{
    Algorithm, Descriptor, Digest, ImageName, Manifest, RawManifest, Reference, Repository,
};

use super::{
    clean::unknown,
    disk::{files_in, is_older},
    error::{Error, Result},
    index::Entries,
    layout::{Layout, STATE_SUFFIX, TEMPORARY_PREFIX, index_key, relative_blob},
    list::is_asked_for,
    lock::is_locked,
    manifests::{Scan, Stored, StoredReference, read_manifest, scan},
    quarantine::{Identity, look_at},
    rehash::{Examined, Wrong, not_a_file, unreadable},
    verify::{Problem, STALE_AFTER},
};

/// The images that are meant: all of them, those of a repository, or one.
pub(super) type Only = Option<(Repository, Option<Reference>)>;

const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// What a finding is about, which decides whose lock its move needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Subject {
    Blob(Digest),
    Manifest(ImageName),
    Stranger,
}

/// Something that is wrong.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) path: PathBuf,
    pub(super) subject: Subject,
    pub(super) problem: Problem,
    pub(super) detail: String,
    /// The images that need what is wrong.
    pub(super) images: BTreeSet<usize>,
    /// What is to be moved; nothing where nothing is, or where it is not ours to move.
    pub(super) seen: Option<Identity>,
}

/// A blob that images need.
#[derive(Debug, Default)]
pub(super) struct Need {
    pub(super) images: BTreeSet<usize>,
    /// Which size it has, by the word of which manifest.
    pub(super) sizes: Vec<(u64, usize)>,
}

/// A manifest that can be read.
#[derive(Debug)]
pub(super) struct ReadManifest {
    pub(super) path: PathBuf,
    pub(super) name: ImageName,
    pub(super) images: BTreeSet<usize>,
    seen: Option<Identity>,
    bytes: u64,
}

/// What there is to be looked at.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Names of images; the numbers of images elsewhere are positions in it.
    pub(super) names: Vec<String>,
    pub(super) manifests: Vec<ReadManifest>,
    pub(super) needs: BTreeMap<Digest, Need>,
    /// The blobs to be read, with the bytes they seem to have.
    pub(super) blobs: BTreeMap<Digest, u64>,
    /// By path.
    pub(super) findings: BTreeMap<PathBuf, Finding>,
    /// Downloads that nobody has gone on with for long.
    pub(super) stale: Vec<PathBuf>,
}

impl Survey {
    pub(super) fn take(layout: &Layout, only: &Only, entries: &Entries) -> Result<Self> {
        let mut surveyor = Surveyor::new(layout, entries);
        surveyor.look_at_folders()?;
        let found = if surveyor.is_open(&layout.manifests()) {
            scan(layout)?
        } else {
            Scan::default()
        };
        let roots = roots(layout, &found, only, entries)?;
        for root in roots {
            surveyor.walk(root)?;
        }
        surveyor.walk_what_is_about_them(&found.references)?;
        if only.is_none() {
            surveyor.read_the_rest(&found)?;
            surveyor.look_through_blobs()?;
            surveyor.look_for_stale_partials()?;
        }
        surveyor.look_for_needed_blobs()?;
        Ok(surveyor.survey)
    }

    pub(super) fn manifest_bytes(&self) -> u64 {
        self.manifests.iter().map(|manifest| manifest.bytes).sum()
    }

    /// Manifests that say of a right blob that it has another size.
    pub(super) fn contradicted(&self, digest: &Digest, length: u64) -> Vec<Finding> {
        let sizes = self.needs.get(digest).map_or(&[][..], |need| &need.sizes);
        let wrong = sizes.iter().filter(|(size, _)| *size != length);
        wrong
            .map(|(size, manifest)| {
                let manifest = &self.manifests[*manifest];
                contradiction(manifest, digest, *size, length)
            })
            .collect()
    }
}

fn contradiction(manifest: &ReadManifest, digest: &Digest, size: u64, length: u64) -> Finding {
    Finding {
        path: manifest.path.clone(),
        subject: Subject::Manifest(manifest.name.clone()),
        problem: Problem::WrongManifest,
        detail: format!("says that {digest} has {size} bytes, which has {length}"),
        images: manifest.images.clone(),
        seen: manifest.seen,
    }
}

/// The references from which the walk begins.
fn roots<'a>(
    layout: &Layout,
    found: &'a Scan,
    only: &Only,
    entries: &Entries,
) -> Result<Vec<&'a StoredReference>> {
    let roots: Vec<_> = found
        .references
        .iter()
        .filter(|reference| {
            let name = &reference.name;
            match only {
                None => is_asked_for(name, entries),
                Some((repository, None)) => {
                    name.repository == *repository && is_asked_for(name, entries)
                }
                Some((repository, Some(wanted))) => {
                    name.repository == *repository && name.reference == *wanted
                }
            }
        })
        .collect();
    match only {
        Some(only) if roots.is_empty() => Err(unknown(layout, only)),
        _ => Ok(roots),
    }
}

struct Surveyor<'a> {
    layout: &'a Layout,
    entries: &'a Entries,
    survey: Survey,
    /// What became of each manifest file that was read: its place in the survey, if it can be read.
    read: HashMap<PathBuf, Option<usize>>,
    /// Digests of the manifests that images reach.
    reached: HashSet<(Repository, Digest)>,
    /// Folders that are none: what lies behind them is not looked at.
    closed: BTreeSet<PathBuf>,
}

impl<'a> Surveyor<'a> {
    fn new(layout: &'a Layout, entries: &'a Entries) -> Self {
        Self {
            layout,
            entries,
            survey: Survey::default(),
            read: HashMap::new(),
            reached: HashSet::new(),
            closed: BTreeSet::new(),
        }
    }

    fn find(&mut self, path: &Path, subject: Subject, wrong: Wrong, images: &BTreeSet<usize>) {
        let finding = self
            .survey
            .findings
            .entry(path.to_owned())
            .or_insert_with(|| Finding {
                path: path.to_owned(),
                subject,
                problem: wrong.problem,
                detail: wrong.detail,
                images: BTreeSet::new(),
                seen: wrong.seen,
            });
        finding.images.extend(images);
    }

    /// Folders of ours that are something else, a symlink most likely: told, but not moved, since somebody may have meant it.
    fn look_at_folders(&mut self) -> Result<()> {
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

    fn is_open(&self, folder: &Path) -> bool {
        !self.closed.contains(folder)
    }

    /// Looks at everything below a reference.
    fn walk(&mut self, root: &StoredReference) -> Result<()> {
        let image = self.survey.names.len();
        self.survey.names.push(root.name.to_string());
        let key = index_key(&root.name.repository, &root.name.reference);
        let absent: &[String] = self
            .entries
            .get(&key)
            .map_or(&[], |entry| entry.missing.as_slice());
        let Some((number, manifest)) = self.read(&root.path, &root.name, Some(image))? else {
            return Ok(());
        };
        let mut seen = HashSet::new();
        let mut open = vec![(number, manifest)];
        while let Some((number, manifest)) = open.pop() {
            if !seen.insert(manifest.digest().clone()) {
                continue;
            }
            let repository = root.name.repository.clone();
            self.reached.insert((repository, manifest.digest().clone()));
            match manifest.parse() {
                Ok(Manifest::Image(parsed)) => {
                    let travelling = parsed
                        .blobs()
                        .filter(|blob| !blob.stays_with_its_publisher());
                    for blob in travelling {
                        self.need(blob, number, image);
                    }
                }
                Ok(Manifest::Index(index)) => {
                    for child in &index.manifests {
                        open.extend(self.child(root, child, absent, number, image)?);
                    }
                }
                // Was parsed when it was read.
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn need(&mut self, blob: &Descriptor, manifest: usize, image: usize) {
        let need = self.survey.needs.entry(blob.digest.clone()).or_default();
        need.images.insert(image);
        let said = (blob.size, manifest);
        if !need.sizes.contains(&said) {
            need.sizes.push(said);
        }
    }

    /// A manifest that an index names, where it can be read.
    fn child(
        &mut self,
        root: &StoredReference,
        child: &Descriptor,
        absent: &[String],
        parent: usize,
        image: usize,
    ) -> Result<Option<(usize, RawManifest)>> {
        let name = ImageName {
            repository: root.name.repository.clone(),
            reference: Reference::Digest(child.digest.clone()),
        };
        let path = self.layout.manifest(&name.repository, &name.reference);
        let read = self.read(&path, &name, Some(image))?;
        if let Some((_, manifest)) = &read {
            if manifest.size() != child.size {
                let parent = &self.survey.manifests[parent];
                let finding = contradiction(parent, &child.digest, child.size, manifest.size());
                let path = finding.path.clone();
                self.survey.findings.entry(path).or_insert(finding);
            }
            return Ok(read);
        }
        let is_told = self.survey.findings.contains_key(&path);
        if is_told || absent.contains(&child.digest.to_string()) {
            return Ok(None);
        }
        // Build caches are indexes that name blobs.
        if !child.media_type.names_a_manifest() {
            self.need(child, parent, image);
            return Ok(None);
        }
        let images = BTreeSet::from([image]);
        self.find(
            &path,
            Subject::Manifest(name),
            missing(Problem::ManifestMissing),
            &images,
        );
        Ok(None)
    }

    /// Reads a manifest; what is wrong with it is noted.
    fn read(
        &mut self,
        path: &Path,
        name: &ImageName,
        image: Option<usize>,
    ) -> Result<Option<(usize, RawManifest)>> {
        // Before the bytes: if another file comes in between, what is wrong with these moves nothing.
        let seen = Identity::at(path)?;
        let images: BTreeSet<usize> = image.into_iter().collect();
        let wrong = match read_manifest(path, name.reference.digest()) {
            Ok(Stored::Manifest(manifest)) => {
                let number = self.note(path, name, &manifest, seen);
                self.survey.manifests[number].images.extend(images);
                return Ok(Some((number, manifest)));
            }
            Ok(Stored::Unreadable(detail)) => Wrong {
                problem: Problem::WrongManifest,
                detail: format!("is not the manifest it should be: {detail}"),
                length: None,
                seen,
            },
            Ok(Stored::Absent) => match not_a_file(path)? {
                Examined::Wrong(wrong) => wrong,
                Examined::Gone | Examined::Right(_) => return Ok(None),
            },
            Err(error) => unreadable(error, path)?,
        };
        self.read.insert(path.to_owned(), None);
        self.find(path, Subject::Manifest(name.clone()), wrong, &images);
        Ok(None)
    }

    fn note(
        &mut self,
        path: &Path,
        name: &ImageName,
        manifest: &RawManifest,
        seen: Option<Identity>,
    ) -> usize {
        if let Some(Some(number)) = self.read.get(path) {
            return *number;
        }
        let number = self.survey.manifests.len();
        self.survey.manifests.push(ReadManifest {
            path: path.to_owned(),
            name: name.clone(),
            images: BTreeSet::new(),
            seen,
            bytes: manifest.size(),
        });
        self.read.insert(path.to_owned(), Some(number));
        number
    }

    /// Signatures and the like are kept with what they are about, so they must be whole, too.
    fn walk_what_is_about_them(&mut self, references: &[StoredReference]) -> Result<()> {
        loop {
            let mut more = false;
            for reference in references {
                let is_open = reference.name.reference.digest().is_some()
                    && !self.read.contains_key(&reference.path);
                if is_open && self.is_about_a_reached_one(reference) {
                    self.walk(reference)?;
                    more = true;
                }
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// One that cannot be read is about nothing; what is wrong with it shows when the rest is read.
    fn is_about_a_reached_one(&self, reference: &StoredReference) -> bool {
        let Ok(Stored::Manifest(manifest)) = reference.read() else {
            return false;
        };
        let Ok(parsed) = manifest.parse() else {
            return false;
        };
        parsed.subject().is_some_and(|subject| {
            let repository = reference.name.repository.clone();
            self.reached.contains(&(repository, subject.digest.clone()))
        })
    }

    /// Manifests that no image reaches, as a tag that moved leaves behind: their bytes must be right, no more.
    fn read_the_rest(&mut self, found: &Scan) -> Result<()> {
        for reference in &found.references {
            if !self.read.contains_key(&reference.path) {
                self.read(&reference.path, &reference.name, None)?;
            }
        }
        for path in &found.strangers {
            self.stranger(path)?;
        }
        Ok(())
    }

    /// Something that has no name of ours, or is no file.
    fn stranger(&mut self, path: &Path) -> Result<()> {
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
    fn look_through_blobs(&mut self) -> Result<()> {
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
    fn look_for_needed_blobs(&mut self) -> Result<()> {
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
    fn look_for_stale_partials(&mut self) -> Result<()> {
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

/// Something that images need and that is not there.
fn missing(problem: Problem) -> Wrong {
    Wrong {
        problem,
        detail: "is not there".to_owned(),
        length: None,
        seen: None,
    }
}
