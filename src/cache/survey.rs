//! What a verification has to look at, and what is wrong at first sight: from the references down to the blobs they need,
//! and what lies in the folders that nothing of ours is called. Reads manifests and folders, no blob.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::{Path, PathBuf},
};

use crate::image::{Descriptor, Digest, ImageName, Manifest, RawManifest, Reference, Repository};

use super::{
    clean::unknown,
    error::Result,
    index::Entries,
    layout::{Layout, index_key},
    list::is_asked_for,
    manifests::{Scan, Stored, StoredReference, read_manifest, scan},
    quarantine::Identity,
    rehash::{Examined, Wrong, not_a_file, unreadable},
    verify::Problem,
};

/// The images that are meant: all of them, those of a repository, or one.
pub(super) type Only = Option<(Repository, Option<Reference>)>;

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

/// Looks at one thing after the other; `folders` has the part that begins at the folders.
pub(super) struct Surveyor<'a> {
    pub(super) layout: &'a Layout,
    pub(super) entries: &'a Entries,
    pub(super) survey: Survey,
    /// What became of each manifest file that was read: its place in the survey, if it can be read.
    pub(super) read: HashMap<PathBuf, Option<usize>>,
    /// Digests of the manifests that images reach.
    pub(super) reached: HashSet<(Repository, Digest)>,
    /// Folders that are none: what lies behind them is not looked at.
    pub(super) closed: BTreeSet<PathBuf>,
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

    pub(super) fn find(
        &mut self,
        path: &Path,
        subject: Subject,
        wrong: Wrong,
        images: &BTreeSet<usize>,
    ) {
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
}

/// Something that images need and that is not there.
pub(super) fn missing(problem: Problem) -> Wrong {
    Wrong {
        problem,
        detail: "is not there".to_owned(),
        length: None,
        seen: None,
    }
}
