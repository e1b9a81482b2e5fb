//! Where everything lies (archive reference 5.1 and 5.2). Pure: from names to paths and back, no I/O.
//!
//! ```text
//! manifests/{repository}/{tag}             the manifest's bytes
//! manifests/{repository}/.tags/{tag}       the same, where a folder has the tag's place
//! manifests/{repository}/sha256:{hex}      children of an index, and images asked for by digest
//! blobs/sha256/{hex}, blobs/sha512/{hex}   complete and verified
//! blobs/.partial/{digest}                  on its way, with notes for a later run in {digest}.state
//! blobs/.partial/{run}, {run}-{n}          entries of an archive, on their way
//! .locks/                                  never deleted
//! .leases/                                 what runs that are alive need
//! .trash/                                  removed, and about to be given back to the system
//! .quarantine/                             what `verify` found wrong, until `clean`
//! .state/archives/                         which archives were extracted; never trusted for existence
//! .state/layers/                           what plain layers became; never trusted for existence
//! .state/uploads/                          which uploads were begun
//! .state/origins/                          where blobs came from, for other tenants on the volume
//! index.json                               a projection of the above
//! ```
//!
//! Only checked types are turned into paths, so no name can lead out of the folder. A dot begins neither a tag nor a
//! component of a name, which keeps our own files apart from everybody's.

use std::path::{Path, PathBuf};

use crate::image::{Algorithm, Digest, Reference, Repository, Tag};

/// Folder of the tags whose own place is taken by a folder.
pub(super) const ASIDE: &str = ".tags";

/// Beginning of the names of files that were not finished.
pub(super) const TEMPORARY_PREFIX: &str = ".tmp-";

/// End of the names of notes about partials.
pub(super) const STATE_SUFFIX: &str = ".state";

/// The paths of one cache folder.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub(super) fn repository(&self, repository: &Repository) -> PathBuf {
        self.root.join(format!("manifests/{repository}"))
    }

    /// The regular place of a manifest.
    pub(super) fn manifest(&self, repository: &Repository, reference: &Reference) -> PathBuf {
        self.root.join(relative_manifest(repository, reference))
    }

    /// The place of a tag whose regular one is a folder.
    pub(super) fn tag_aside(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.root.join(relative_tag_aside(repository, tag))
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join(relative_blob(digest))
    }

    pub(super) fn blobs(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.name())
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("blobs/.partial")
    }

    pub(super) fn partial(&self, digest: &Digest) -> PathBuf {
        self.partials().join(digest.to_string())
    }

    /// What is noted of a partial, for a later run.
    pub(super) fn partial_state(&self, digest: &Digest) -> PathBuf {
        self.partials().join(format!("{digest}{STATE_SUFFIX}"))
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join(".state/uploads")
    }

    pub(super) fn packed_layers(&self) -> PathBuf {
        self.root.join(".state/layers")
    }

    /// What a layer became when it was compressed in this way.
    pub(super) fn packed(&self, diff_id: &Digest, form: &str) -> PathBuf {
        let name = Digest::of(format!("{diff_id} {form}").as_bytes());
        self.packed_layers().join(name.hex())
    }

    /// What is known about an archive at a path that has this digest.
    pub(super) fn extraction(&self, path: &Digest) -> PathBuf {
        self.root
            .join(format!(".state/archives/{}.json", path.hex()))
    }

    /// Which blobs came from the repository that has this digest.
    pub(super) fn origin(&self, origin: &Digest) -> PathBuf {
        self.root.join(format!(".state/origins/{}", origin.hex()))
    }

    /// Where wrong files go.
    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join(".quarantine")
    }

    /// What runs that are alive need.
    pub(super) fn leases(&self) -> PathBuf {
        self.root.join(".leases")
    }

    /// What was removed and not yet given back to the system.
    pub(super) fn trash(&self) -> PathBuf {
        self.root.join(".trash")
    }

    pub(super) fn locks(&self) -> PathBuf {
        self.root.join(".locks")
    }
}

/// `manifest_path` of an entry.
pub(super) fn relative_manifest(repository: &Repository, reference: &Reference) -> String {
    format!("manifests/{repository}/{reference}")
}

/// `manifest_path` of a tag that had to move.
pub(super) fn relative_tag_aside(repository: &Repository, tag: &Tag) -> String {
    format!("manifests/{repository}/{ASIDE}/{tag}")
}

/// `path` of a blob.
pub(super) fn relative_blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// The key of an image in the index; its last `/` separates the reference.
pub(super) fn index_key(repository: &Repository, reference: &Reference) -> String {
    format!("{repository}/{reference}")
}

/// The tag whose file lies at the folder `components` of `manifests/`; none if no image can lie there.
pub(super) fn tag_at(components: &[&str]) -> Option<(Repository, Tag)> {
    let (tag, repository) = components.split_last()?;
    Some((repository.join("/").parse().ok()?, tag.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    fn stays_inside(path: &Path) -> bool {
        path.strip_prefix("/cache").is_ok_and(|inside| {
            inside.components().count() > 1
                && inside
                    .components()
                    .all(|component| matches!(component, Component::Normal(_)))
        })
    }

    proptest! {
        #[test]
        fn any_accepted_name_stays_inside_the_folder(
            repository in r"[a-zA-Z0-9._/:@\\%\[\]-]{1,30}",
            reference in r"[a-zA-Z0-9._/:-]{1,30}",
        ) {
            let layout = Layout::new("/cache".into());
            if let (Ok(repository), Ok(reference)) = (repository.parse::<Repository>(), reference.parse::<Reference>()) {
                prop_assert!(stays_inside(&layout.manifest(&repository, &reference)));
                if let Some(tag) = reference.tag() {
                    prop_assert!(stays_inside(&layout.tag_aside(&repository, tag)));
                }
            }
        }

        #[test]
        fn every_digest_stays_inside_the_folder_and_apart_from_others(bytes: [u8; 8], other: [u8; 8]) {
            let layout = Layout::new("/cache".into());
            for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
                let digest = Digest::with_algorithm(algorithm, &bytes);
                prop_assert!(stays_inside(&layout.blob(&digest)));
                prop_assert!(stays_inside(&layout.partial(&digest)));
                prop_assert_eq!(
                    layout.blob(&digest) == layout.blob(&Digest::with_algorithm(algorithm, &other)),
                    bytes == other
                );
            }
        }

        #[test]
        fn no_image_shares_a_place_with_our_own_files(
            path in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,4}){0,2}",
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
        ) {
            let layout = Layout::new("/cache".into());
            // What looks like a host must be one.
            let Ok(repository) = path.parse() else { return Ok(()) };
            let manifest = layout.manifest(&repository, &tag.parse().unwrap());
            let hidden = manifest.components().any(|component| {
                component.as_os_str().to_str().is_some_and(|text| text.starts_with('.'))
            });
            prop_assert!(!hidden);
        }
    }

    #[test]
    fn paths_are_those_of_the_published_layout() {
        let layout = Layout::new("/cache".into());
        let repository: Repository = "library/ubuntu".parse().unwrap();
        let digest = Digest::of(b"");
        assert_eq!(
            layout.manifest(&repository, &"22.04".parse().unwrap()),
            Path::new("/cache/manifests/library/ubuntu/22.04")
        );
        assert_eq!(
            layout.manifest(&repository, &Reference::Digest(digest.clone())),
            Path::new("/cache/manifests/library/ubuntu").join(digest.to_string())
        );
        assert_eq!(
            layout.blob(&digest),
            Path::new("/cache/blobs/sha256").join(digest.hex())
        );
    }

    #[test]
    fn a_file_in_the_way_of_a_folder_is_recognised_as_a_tag() {
        let (repository, tag) = tag_at(&["a", "b", "c"]).unwrap();
        assert_eq!(
            (repository.to_string().as_str(), tag.as_str()),
            ("a/b", "c")
        );
        assert!(tag_at(&["a"]).is_none());
        assert!(tag_at(&["..", "c"]).is_none());
    }
}
