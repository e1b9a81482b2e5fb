//! Which archives were extracted into this cache: an archive that did not change need not be read again. The notes name
//! digests only; whether the images are still there is looked up each time.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::handlers,
    image::{Digest, ImageName, Manifest, Platform, RawManifest, Reference, Tag},
};

use super::{
    Cache,
    disk::{blocking, make_folder, read_small, replace},
    error::Result,
    layout::Layout,
    manifests::{Stored, find_manifest},
    trust::open_sized,
};

/// A larger file is not one of ours: a note has some hundred bytes per image.
const MAX_SIZE: u64 = 4 * 1024 * 1024;

/// What tells a file from another, and from itself after a change.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileIdentity {
    /// The canonical path.
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified_seconds: i64,
    modified_nanoseconds: i64,
    /// When the system last changed anything about it, which nobody can set: another file may have the same times, size
    /// and, where the first was removed, number.
    changed_seconds: i64,
    changed_nanoseconds: i64,
}

impl FileIdentity {
    /// Of an open file, which lies at `path`.
    pub fn of(file: &File, path: &Path) -> io::Result<Self> {
        Ok(Self::new(&file.metadata()?, path.to_owned()))
    }

    fn new(metadata: &Metadata, path: PathBuf) -> Self {
        Self {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
            changed_seconds: metadata.ctime(),
            changed_nanoseconds: metadata.ctime_nsec(),
        }
    }

    /// Bytes of the file.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was done to its layers belongs to it: each has a note of its own. A path holds no NUL.
    fn key(&self, form: &str) -> Digest {
        let path = self.path.as_os_str().as_bytes();
        if form.is_empty() {
            return Digest::of(path);
        }
        Digest::of(&[path, b"\0", form.as_bytes()].concat())
    }
}

/// An image of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExtractedImage {
    /// Where it stands in the archive.
    pub position: usize,
    /// Its names in the archive.
    pub names: Vec<ImageName>,
    /// Its tag, where the archive gives no more than that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag_only: Option<Tag>,
    /// Its platforms.
    #[serde(default)]
    pub platforms: Vec<Platform>,
    /// Its digest, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The names under which it was stored.
    #[serde(default)]
    pub stored: Vec<ImageName>,
}

/// A manifest with those below it.
pub type ManifestTree = (RawManifest, Vec<RawManifest>);

/// The note about one archive.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    file: FileIdentity,
    images: Vec<ExtractedImage>,
}

impl Cache {
    /// The images of an archive that was extracted before and has not changed since; none if it is not known. `form` tells
    /// how its plain layers were compressed, and is empty if they were not. A note that cannot be read counts as none.
    pub async fn extraction(
        &self,
        file: &FileIdentity,
        form: &str,
    ) -> Result<Option<Vec<ExtractedImage>>> {
        let (path, file) = (self.shared.layout.extraction(&file.key(form)), file.clone());
        let bytes = blocking(move || read_small(&path, MAX_SIZE)).await?;
        let note = match bytes {
            Some(Ok(bytes)) => serde_json::from_slice::<Note>(&bytes).ok(),
            Some(Err(_)) | None => None,
        };
        Ok(note
            .filter(|note| note.file == file)
            .map(|note| note.images))
    }

    /// Notes what an archive holds. A failure only warns: the archive is read again next time.
    pub async fn remember_extraction(
        &self,
        file: &FileIdentity,
        form: &str,
        images: Vec<ExtractedImage>,
    ) {
        let path = self.shared.layout.extraction(&file.key(form));
        let note = Note {
            file: file.clone(),
            images,
        };
        let written = blocking(move || {
            // Names and digests only: this cannot fail.
            let bytes = serde_json::to_vec(&note).unwrap_or_default();
            make_folder(path.parent().unwrap_or(&path))?;
            replace(&path, &bytes)
        })
        .await;
        if let Err(error) = written {
            self.output.warning(format!(
                "the archive will be read again next time, since no note of it could be written: {}",
                handlers::message(&error)
            ));
        }
    }

    /// The image of this digest as it lies under one of these names, if all of it is there.
    pub async fn whole_image(
        &self,
        names: &[ImageName],
        digest: &Digest,
    ) -> Result<Option<ManifestTree>> {
        let (layout, names, digest) = (self.shared.layout.clone(), names.to_vec(), digest.clone());
        blocking(move || {
            for name in &names {
                if let Some(tree) = whole_image(&layout, name, &digest)? {
                    return Ok(Some(tree));
                }
            }
            Ok(None)
        })
        .await
    }
}

fn whole_image(layout: &Layout, name: &ImageName, digest: &Digest) -> Result<Option<ManifestTree>> {
    let read = |reference: &Reference| -> Result<Option<RawManifest>> {
        let (_, stored) = find_manifest(layout, &name.repository, reference)?;
        Ok(match stored {
            Stored::Manifest(manifest) => Some(manifest),
            Stored::Absent | Stored::Unreadable(_) => None,
        })
    };
    // The tag may stand for another image by now; this one lies under its digest, if it was pinned.
    let named = read(&name.reference)?.filter(|root| root.digest() == digest);
    let pinned = Reference::Digest(digest.clone());
    let Some(root) = named.map_or_else(|| read(&pinned), |root| Ok(Some(root)))? else {
        return Ok(None);
    };
    let mut children: Vec<RawManifest> = Vec::new();
    let mut open = vec![root.clone()];
    while let Some(manifest) = open.pop() {
        let index = match manifest.parse() {
            Ok(Manifest::Index(index)) => index,
            Ok(Manifest::Image(image)) => {
                for blob in image
                    .blobs()
                    .filter(|blob| !blob.stays_with_its_publisher())
                {
                    if open_sized(&layout.blob(&blob.digest), blob.size)?.is_none() {
                        return Ok(None);
                    }
                }
                continue;
            }
            Err(_) => return Ok(None),
        };
        for child in index.manifests {
            if children.iter().any(|known| *known.digest() == child.digest) {
                continue;
            }
            let Some(manifest) = read(&Reference::Digest(child.digest))? else {
                return Ok(None);
            };
            children.push(manifest.clone());
            open.push(manifest);
        }
    }
    // What names another comes before it here; it is stored after it.
    children.reverse();
    Ok(Some((root, children)))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::testing::{config, fixture, image, index_of, store_small, stored};
    use super::*;

    fn images(stored: &[&str]) -> Vec<ExtractedImage> {
        vec![ExtractedImage {
            position: 0,
            names: vec!["app:1".parse().unwrap()],
            tag_only: Some("1".parse().unwrap()),
            platforms: vec!["linux/amd64".parse().unwrap()],
            digest: Some(Digest::of(b"manifest")),
            stored: stored.iter().map(|name| name.parse().unwrap()).collect(),
        }]
    }

    #[tokio::test]
    async fn an_archive_is_known_until_it_changes() {
        let fixture = fixture();
        fixture.cache.ensure_writable().await.unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let identity = FileIdentity::of(file.as_file(), &path).unwrap();
        assert_eq!(fixture.cache.extraction(&identity, "").await.unwrap(), None);
        let images = images(&["team/app:1"]);
        fixture
            .cache
            .remember_extraction(&identity, "", images.clone())
            .await;
        let known = fixture.reopened().extraction(&identity, "").await.unwrap();
        assert_eq!(known, Some(images.clone()));
        file.write_all(b"more").unwrap();
        let changed = FileIdentity::of(file.as_file(), &path).unwrap();
        assert_eq!(fixture.cache.extraction(&changed, "").await.unwrap(), None);
        let elsewhere = FileIdentity::of(file.as_file(), Path::new("/other")).unwrap();
        assert_eq!(
            fixture.cache.extraction(&elsewhere, "").await.unwrap(),
            None
        );
        // One note per path: the newest.
        fixture
            .cache
            .remember_extraction(&changed, "", images.clone())
            .await;
        assert_eq!(fixture.cache.extraction(&identity, "").await.unwrap(), None);
        assert_eq!(
            fixture.cache.extraction(&changed, "").await.unwrap(),
            Some(images)
        );
        let note = fixture.cache.shared.layout.extraction(&identity.key(""));
        File::create(&note).unwrap().write_all(b"{").unwrap();
        assert_eq!(fixture.cache.extraction(&changed, "").await.unwrap(), None);
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_note_that_cannot_be_written_is_only_warned_of() {
        let fixture = fixture();
        fixture.cache.ensure_writable().await.unwrap();
        File::create(fixture.cache.directory().join(".state")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let identity = FileIdentity::of(file.as_file(), file.path()).unwrap();
        fixture
            .cache
            .remember_extraction(&identity, "", images(&[]))
            .await;
        assert_eq!(fixture.messages.count("will be read again"), 1);
        assert_eq!(fixture.cache.extraction(&identity, "").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_pinned_image_is_found_though_its_tag_stands_for_another() {
        let fixture = fixture();
        let cache = &fixture.cache;
        let first = image(cache, &config("x", "amd64"), &[b"first"]).await;
        let second = image(cache, &config("x", "amd64"), &[b"second"]).await;
        for root in [&first, &second] {
            let mut wanted = stored("app", "1", root);
            wanted.pinned = true;
            cache.store_image(wanted).await.unwrap();
        }
        let names = images(&["app:1"]).remove(0).stored;
        for root in [&first, &second] {
            let found = cache.whole_image(&names, root.digest()).await.unwrap();
            assert_eq!(found, Some((root.clone(), Vec::new())));
        }
    }

    #[tokio::test]
    async fn an_image_is_whole_with_all_its_manifests_and_blobs_only() {
        let fixture = fixture();
        let amd = image(&fixture.cache, &config("x", "amd64"), &[b"amd"]).await;
        let arm = image(&fixture.cache, &config("x", "arm64"), &[b"arm"]).await;
        let root = index_of(&[(&amd, "amd64"), (&arm, "arm64")]);
        let mut wanted = stored("app", "1", &root);
        wanted.children = vec![amd.clone(), arm.clone()];
        fixture.cache.store_image(wanted).await.unwrap();
        store_small(&fixture.cache, "app", "2", b"other").await;
        let names: Vec<ImageName> = ["gone:1", "app:2", "app:1"]
            .iter()
            .map(|name| name.parse().unwrap())
            .collect();
        let digest = root.digest();
        let (found, mut children) = fixture
            .cache
            .whole_image(&names, digest)
            .await
            .unwrap()
            .unwrap();
        children.sort_by_key(|child| *child != amd);
        assert_eq!((found, children), (root.clone(), vec![amd, arm]));
        let whole = fixture
            .cache
            .whole_image(&names[..2], digest)
            .await
            .unwrap();
        assert_eq!(whole, None);
        std::fs::remove_file(fixture.cache.shared.layout.blob(&Digest::of(b"arm"))).unwrap();
        let whole = fixture.cache.whole_image(&names, digest).await.unwrap();
        assert_eq!(whole, None);
    }
}
