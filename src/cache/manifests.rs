//! The manifest files: reading, writing and finding them.
//!
//! A file named by a tag is a reference, replaced by rename only; a file named by a digest never changes. Where a tag and
//! a folder need the same place, the tag gives way to `.tags/` (archive reference 5.2).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;

use crate::image::{Algorithm, Digest, ImageName, RawManifest, Reference, Repository, Tag};

use super::{
    disk::{Temporary, make_folder, open_regular, read_small, sync_folder},
    error::{Error, Result},
    layout::{ASIDE, Layout, TEMPORARY_PREFIX, relative_manifest, relative_tag_aside, tag_at},
};

/// No registry client of ours accepts a larger manifest (registry rule M1).
const MAX_MANIFEST_SIZE: u64 = 8 * 1024 * 1024;

/// Larger names cannot be asked for; deeper folders are not ours.
const MAX_REPOSITORY_LENGTH: usize = 255;

/// What a manifest file holds.
#[derive(Debug)]
pub(super) enum Stored {
    Manifest(RawManifest),
    Absent,
    /// Not a manifest, or not the one its name promises.
    Unreadable(String),
}

/// Reads a manifest; one that is named by a digest must have it.
pub(super) fn read_manifest(path: &Path, expected: Option<&Digest>) -> Result<Stored> {
    let bytes = match read_small(path, MAX_MANIFEST_SIZE)? {
        None => return Ok(Stored::Absent),
        Some(Err(size)) => {
            return Ok(Stored::Unreadable(format!(
                "it has {size} bytes, more than any manifest"
            )));
        }
        Some(Ok(bytes)) => Bytes::from(bytes),
    };
    let algorithm = expected.map_or(Algorithm::Sha256, Digest::algorithm);
    let manifest = match RawManifest::new(bytes, None, algorithm) {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Stored::Unreadable(error.to_string())),
    };
    match expected {
        Some(expected) if expected != manifest.digest() => Ok(Stored::Unreadable(format!(
            "its bytes have the digest {}",
            manifest.digest()
        ))),
        _ => Ok(Stored::Manifest(manifest)),
    }
}

/// Finds a manifest by its name and tells where it lies. The regular place comes first, since a tag may move aside between
/// the two looks, but never back.
pub(super) fn find_manifest(
    layout: &Layout,
    repository: &Repository,
    reference: &Reference,
) -> Result<(PathBuf, Stored)> {
    let path = layout.manifest(repository, reference);
    match (reference, read_manifest(&path, reference.digest())?) {
        (Reference::Tag(tag), Stored::Absent) => {
            let aside = layout.tag_aside(repository, tag);
            let stored = read_manifest(&aside, None)?;
            Ok((aside, stored))
        }
        (_, stored) => Ok((path, stored)),
    }
}

/// A tag file that has a folder's place.
#[derive(Debug)]
pub(super) struct Clash {
    pub(super) repository: Repository,
    pub(super) tag: Tag,
}

/// Makes the folder of a repository, unless a tag has a place on the way to it.
pub(super) fn make_repository(layout: &Layout, repository: &Repository) -> Result<Option<Clash>> {
    let name = repository.to_string();
    let components: Vec<&str> = name.split('/').collect();
    let mut path = layout.manifests();
    for (position, component) in components.iter().enumerate() {
        path.push(component);
        let in_the_way = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if in_the_way && let Some((repository, tag)) = tag_at(&components[..=position]) {
            return Ok(Some(Clash { repository, tag }));
        }
    }
    make_folder(&path)?;
    Ok(None)
}

/// Moves a tag aside, so that its place can become a folder. The caller holds the tag's lock.
pub(super) fn move_aside(layout: &Layout, clash: &Clash) -> Result<()> {
    let from = layout.manifest(&clash.repository, &Reference::Tag(clash.tag.clone()));
    let to = layout.tag_aside(&clash.repository, &clash.tag);
    let still_there = fs::symlink_metadata(&from).is_ok_and(|metadata| metadata.is_file());
    if !still_there {
        return Ok(());
    }
    let folder = to.parent().unwrap_or(&to);
    make_folder(folder)?;
    fs::rename(&from, &to).map_err(|source| Error::writing("move", &from, 0, source))?;
    sync_folder(folder)
}

/// Stores a manifest under its digest, unless it is there. The caller syncs the folder when all are in place.
pub(super) fn write_by_digest(
    layout: &Layout,
    repository: &Repository,
    manifest: &RawManifest,
) -> Result<()> {
    let reference = Reference::Digest(manifest.digest().clone());
    write_file(&layout.manifest(repository, &reference), manifest)
}

/// Makes a tag name this manifest and tells where it lies, relative to the cache folder. The caller holds the tag's lock
/// and has made the repository's folder.
pub(super) fn write_tag(
    layout: &Layout,
    repository: &Repository,
    tag: &Tag,
    manifest: &RawManifest,
) -> Result<String> {
    let reference = Reference::Tag(tag.clone());
    let regular = layout.manifest(repository, &reference);
    let aside = layout.tag_aside(repository, tag);
    let is_aside = fs::symlink_metadata(&aside).is_ok();
    let is_folder = || fs::symlink_metadata(&regular).is_ok_and(|metadata| metadata.is_dir());
    if !is_aside && !is_folder() {
        match write_file(&regular, manifest) {
            Ok(()) => {
                sync_folder(&layout.repository(repository))?;
                return Ok(relative_manifest(repository, &reference));
            }
            // Another run has just made the folder; the tag goes aside.
            Err(_) if is_folder() => {}
            Err(error) => return Err(error),
        }
    }
    let folder = layout.repository(repository).join(ASIDE);
    make_folder(&folder)?;
    write_file(&aside, manifest)?;
    sync_folder(&folder)?;
    Ok(relative_tag_aside(repository, tag))
}

/// Replaces a file, or only renews its time if it has these bytes: `--keep-within` counts from the last pull.
fn write_file(path: &Path, manifest: &RawManifest) -> Result<()> {
    if let Some(Ok(present)) = read_small(path, MAX_MANIFEST_SIZE)?
        && present == *manifest.bytes()
    {
        touch(path);
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path);
    Temporary::write(folder, manifest.bytes())?
        .rename(path)
        .map_err(|source| Error::writing("rename a new file to", path, manifest.size(), source))
}

/// Notes that an image was used now. A failure costs nothing but an earlier end of the image.
pub(super) fn touch(path: &Path) {
    if let Ok(Some((file, _))) = open_regular(path)
        && let Err(error) = file.set_modified(SystemTime::now())
    {
        tracing::debug!(path = %path.display(), %error, "the time of last use was not noted");
    }
}

/// A manifest file and the name it stands for.
#[derive(Debug, Clone)]
pub(super) struct StoredReference {
    pub(super) name: ImageName,
    pub(super) path: PathBuf,
    /// The path as the index has it.
    pub(super) relative: String,
    pub(super) modified: SystemTime,
}

impl StoredReference {
    pub(super) fn read(&self) -> Result<Stored> {
        read_manifest(&self.path, self.name.reference.digest())
    }
}

/// Everything below `manifests/`.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// In the order of their names.
    pub(super) references: Vec<StoredReference>,
    /// Files of runs that were killed.
    pub(super) leftovers: Vec<PathBuf>,
    /// What is no file where only files belong, or has no name of ours.
    pub(super) strangers: Vec<PathBuf>,
}

/// Looks through `manifests/`. What has no name of ours is left alone, and symlinks are not followed.
pub(super) fn scan(layout: &Layout) -> Result<Scan> {
    let mut found = Scan::default();
    let mut folders = vec![(layout.manifests(), String::new())];
    while let Some((folder, repository)) = folders.pop() {
        let failed = |source| Error::reading("look through", &folder, source);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let is_aside = folder.ends_with(ASIDE);
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                found.strangers.push(entry.path());
                continue;
            };
            if kind.is_dir() && !is_aside && name.parse::<Digest>().is_err() {
                let below = match repository.as_str() {
                    _ if name == ASIDE => repository.clone(),
                    "" => name.to_owned(),
                    above => format!("{above}/{name}"),
                };
                if below.len() <= MAX_REPOSITORY_LENGTH {
                    folders.push((entry.path(), below));
                }
            } else if kind.is_file() && name.starts_with(TEMPORARY_PREFIX) {
                found.leftovers.push(entry.path());
            } else if kind.is_file()
                && let Some(reference) = stored_reference(&repository, name, is_aside)
            {
                let metadata = entry.metadata().map_err(failed)?;
                found.references.push(StoredReference {
                    relative: reference.1,
                    name: reference.0,
                    path: entry.path(),
                    modified: metadata.modified().map_err(failed)?,
                });
            } else {
                found.strangers.push(entry.path());
            }
        }
    }
    found
        .references
        .sort_by(|one, other| one.relative.cmp(&other.relative));
    Ok(found)
}

/// The image a file stands for, and its path in the index.
fn stored_reference(repository: &str, file: &str, is_aside: bool) -> Option<(ImageName, String)> {
    let repository: Repository = repository.parse().ok()?;
    let reference: Reference = file.parse().ok()?;
    let relative = match &reference {
        Reference::Tag(tag) if is_aside => relative_tag_aside(&repository, tag),
        Reference::Digest(_) if is_aside => return None,
        other => relative_manifest(&repository, other),
    };
    let name = ImageName {
        repository,
        reference,
    };
    Some((name, relative))
}

/// Removes folders that became empty, from the deepest up. A folder that stays does no harm.
pub(super) fn remove_empty_folders(layout: &Layout) {
    let mut folders = vec![layout.manifests()];
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn manifest(text: &str) -> RawManifest {
        let bytes = json!({"schemaVersion": 2, "manifests": [], "note": text}).to_string();
        RawManifest::new(bytes.into(), None, Algorithm::Sha256).unwrap()
    }

    /// What `store_image` does, without its locks.
    fn store(layout: &Layout, name: &ImageName, manifest: &RawManifest) {
        while let Some(clash) = make_repository(layout, &name.repository).unwrap() {
            move_aside(layout, &clash).unwrap();
        }
        match &name.reference {
            Reference::Tag(tag) => {
                write_tag(layout, &name.repository, tag, manifest).unwrap();
            }
            Reference::Digest(_) => write_by_digest(layout, &name.repository, manifest).unwrap(),
        }
    }

    fn assert_found(layout: &Layout, wanted: &BTreeMap<ImageName, RawManifest>) {
        for (name, manifest) in wanted {
            let (path, found) = find_manifest(layout, &name.repository, &name.reference).unwrap();
            assert!(path.starts_with(layout.root()));
            assert!(
                matches!(&found, Stored::Manifest(found) if found == manifest),
                "{name}: {found:?}"
            );
        }
        let mut found: Vec<ImageName> = scan(layout)
            .unwrap()
            .references
            .into_iter()
            .map(|reference| reference.name)
            .collect();
        found.sort();
        assert_eq!(found, wanted.keys().cloned().collect::<Vec<_>>());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn names_that_contend_for_places_are_all_found_again(
            names in proptest::collection::vec("[ab](/[ab]){0,3}:[ab]", 1..12),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout::new(folder.path().join("cache"));
            let mut wanted = BTreeMap::new();
            for (position, name) in names.iter().enumerate() {
                let name: ImageName = name.parse().unwrap();
                let manifest = manifest(&position.to_string());
                store(&layout, &name, &manifest);
                wanted.insert(name, manifest);
            }
            assert_found(&layout, &wanted);
        }

        #[test]
        fn any_name_that_was_stored_is_found_by_a_look_through_the_folders(
            repository in r"[a-zA-Z0-9._:\[\]-]{1,8}(/[a-z0-9._-]{1,8}){0,2}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
        ) {
            let Ok(repository) = repository.parse::<Repository>() else { return Ok(()) };
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout::new(folder.path().join("cache"));
            let manifest = manifest("");
            let tag = Reference::Tag(tag.parse().unwrap());
            let digest = Reference::Digest(manifest.digest().clone());
            let mut wanted = BTreeMap::new();
            for reference in [tag, digest] {
                let name = ImageName { repository: repository.clone(), reference };
                store(&layout, &name, &manifest);
                wanted.insert(name, manifest.clone());
            }
            assert_found(&layout, &wanted);
        }
    }

    #[test]
    fn a_file_named_by_a_digest_it_does_not_have_is_unreadable() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().to_owned());
        let (one, other) = (manifest("one"), manifest("other"));
        let name = ImageName {
            repository: "app".parse().unwrap(),
            reference: Reference::Digest(one.digest().clone()),
        };
        store(&layout, &name, &one);
        let path = layout.manifest(&name.repository, &name.reference);
        fs::copy(&path, folder.path().join("copy")).unwrap();
        Temporary::write(folder.path(), other.bytes())
            .unwrap()
            .rename(&path)
            .unwrap();
        let (_, found) = find_manifest(&layout, &name.repository, &name.reference).unwrap();
        assert!(
            matches!(&found, Stored::Unreadable(reason) if reason.contains(&other.digest().to_string())),
            "{found:?}"
        );
        // Stored again, it is whole again.
        store(&layout, &name, &one);
        assert_found(&layout, &BTreeMap::from([(name, one)]));
    }

    #[test]
    fn symlinks_and_strangers_are_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path().join("cache"));
        let name: ImageName = "app:1".parse().unwrap();
        store(&layout, &name, &manifest("own"));
        let place = layout.repository(&name.repository);
        std::os::unix::fs::symlink(place.join("1"), place.join("2")).unwrap();
        std::os::unix::fs::symlink("..", place.join("loop")).unwrap();
        fs::File::create(place.join("-not-a-tag")).unwrap();
        fs::create_dir_all(place.join(".hidden/x")).unwrap();
        assert_found(&layout, &BTreeMap::from([(name, manifest("own"))]));
    }
}
