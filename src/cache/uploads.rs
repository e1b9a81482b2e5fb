//! Notes of uploads that were begun and not finished, so that another run can go on with them. What they say is the
//! caller's; they may hold a session's secret, hence nobody else may read them.
//!
//! A note has one holder at a time, who locks its file: two that went on with one upload would disturb each other.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{error::handlers, image::Digest, output::OutputManager};

use super::{
    Cache,
    disk::{blocking, is_older, is_ours, make_folder, open_private},
    error::{Error, Result},
    notes::{sealed, unsealed},
};

/// Registries forget sessions after a while; none is known to keep them longer than a week, most for a day.
const MAX_AGE: Duration = Duration::from_hours(24);

/// Longest note.
const MAX_SIZE: usize = 64 * 1024;

/// The place of a note, which nobody else has until this value is dropped. The system takes it from a process that dies.
#[derive(Debug)]
pub struct UploadNote {
    file: Arc<File>,
    path: PathBuf,
    output: OutputManager,
}

impl Cache {
    /// The note under this key, unless somebody else has it, here or in another process.
    pub async fn upload_note(&self, key: &str) -> Option<UploadNote> {
        let path = self.upload_path(key);
        let place = path.clone();
        let taken = blocking(move || take(&place)).await;
        let file = taken.unwrap_or_else(|error| {
            let error = handlers::message(&error);
            self.output.detail(format!(
                "an upload cannot be gone on with later, for it is not noted: {error}"
            ));
            None
        })?;
        Some(UploadNote {
            file: Arc::new(file),
            path,
            output: self.output.clone(),
        })
    }

    fn upload_path(&self, key: &str) -> PathBuf {
        let name = Digest::of(key.as_bytes());
        self.shared.layout.uploads().join(name.hex())
    }
}

impl UploadNote {
    /// What was noted within the last 24 hours.
    pub async fn text(&self) -> Option<String> {
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let text =
            blocking(move || read(&file).map_err(|source| Error::reading("read", &path, source)))
                .await;
        text.unwrap_or_else(|error| {
            let error = handlers::message(&error);
            self.output
                .detail(format!("an unfinished upload begins anew: {error}"));
            None
        })
    }

    /// Notes something, or that there is nothing to note. If that fails, an interrupted upload begins anew.
    pub async fn keep(&self, note: Option<&str>) {
        // What is too long to be read again is not kept.
        let text = note.map(sealed).filter(|text| text.len() <= MAX_SIZE);
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let kept = blocking(move || {
            let text = text.unwrap_or_default();
            let failed = |source| Error::writing("write", &path, text.len() as u64, source);
            write(&file, &text).map_err(failed)
        })
        .await;
        if let Err(error) = kept {
            let error = handlers::message(&error);
            self.output
                .detail(format!("an unfinished upload is not noted: {error}"));
        }
    }
}

/// Where nothing is noted, nothing stays. It goes before the lock does: whoever was quicker sees that it has no name.
impl Drop for UploadNote {
    fn drop(&mut self) {
        if self.file.metadata().is_ok_and(|file| file.len() == 0) {
            // If that fails, an empty file is left, which says nothing and is cleaned away.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// Whether a note is too old to be used.
pub(super) fn is_old(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| is_older(&metadata, MAX_AGE))
}

/// Opens and locks the file of a note; none if somebody else has it.
fn take(path: &Path) -> Result<Option<File>> {
    make_folder(path.parent().unwrap_or(path))?;
    let file = open_private(path).map_err(|source| Error::writing("open", path, 0, source))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(source)) => return Err(Error::reading("lock", path, source)),
    }
    let metadata = file.metadata();
    let metadata = metadata.map_err(|source| Error::reading("look at", path, source))?;
    // Nor is it ours if its last holder has removed it meanwhile.
    Ok(is_ours(&metadata).then_some(file))
}

fn read(mut file: &File) -> io::Result<Option<String>> {
    if is_older(&file.metadata()?, MAX_AGE) {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(MAX_SIZE as u64).read_to_end(&mut bytes)?;
    Ok(unsealed(&bytes).map(str::to_owned))
}

/// In its place, since the lock is on the file and not on its name. Not synced: a note that is torn is no note.
fn write(mut file: &File, text: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::SystemTime};

    use super::super::{CleanRequest, testing::fixture};
    use super::*;

    /// What somebody finds who comes later.
    async fn found(cache: &Cache, key: &str) -> Option<String> {
        cache.upload_note(key).await.unwrap().text().await
    }

    async fn keep(cache: &Cache, key: &str, note: Option<&str>) {
        cache.upload_note(key).await.unwrap().keep(note).await;
    }

    #[tokio::test]
    async fn a_note_is_found_by_its_key_until_it_is_removed() {
        let fixture = fixture();
        let cache = &fixture.cache;
        let key = "registry.internal:5000/team/app sha256:../..";
        assert_eq!(found(cache, key).await, None);
        keep(cache, key, None).await;
        assert_eq!(fixture.files(), Vec::<String>::new());
        for note in [
            "first",
            "{\"location\": \"https://x\"}\nand a second line\n",
            "",
        ] {
            keep(cache, key, Some(note)).await;
            let found = found(&fixture.reopened(), key).await;
            assert_eq!(found.as_deref(), Some(note));
        }
        assert_eq!(found(cache, "another").await, None);
        let path = cache.upload_path(key);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fixture.files().len(), 1, "{:?}", fixture.files());
        keep(cache, key, None).await;
        assert_eq!(fixture.files(), Vec::<String>::new());
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_note_has_one_holder_at_a_time() {
        let fixture = fixture();
        let (cache, other) = (&fixture.cache, fixture.reopened());
        let held = cache.upload_note("key").await.unwrap();
        held.keep(Some("mine")).await;
        assert!(cache.upload_note("key").await.is_none());
        assert!(other.upload_note("key").await.is_none());
        assert!(other.upload_note("another").await.is_some());
        drop(held);
        let held = other.upload_note("key").await.unwrap();
        assert_eq!(held.text().await.as_deref(), Some("mine"));
        // Removed and noted anew, it is still the same holder's.
        held.keep(None).await;
        assert!(cache.upload_note("key").await.is_none());
        held.keep(Some("yours")).await;
        drop(held);
        assert_eq!(found(cache, "key").await.as_deref(), Some("yours"));
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn who_comes_while_a_note_is_removed_does_not_get_what_is_gone() {
        let fixture = fixture();
        let held = fixture.cache.upload_note("key").await.unwrap();
        let path = fixture.cache.upload_path("key");
        let opened = open_private(&path).unwrap();
        drop(held);
        opened.try_lock().unwrap();
        assert!(!is_ours(&opened.metadata().unwrap()));
        assert!(fixture.cache.upload_note("key").await.is_some());
    }

    #[tokio::test]
    async fn a_note_that_is_old_torn_or_too_long_is_none() {
        let fixture = fixture();
        let cache = &fixture.cache;
        let (key, path) = ("key", cache.upload_path("key"));
        let long = "x".repeat(MAX_SIZE);
        keep(cache, key, Some(&long)).await;
        assert_eq!(found(cache, key).await, None);

        keep(cache, key, Some(&long[..60_000])).await;
        assert_eq!(found(cache, key).await.unwrap().len(), 60_000);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(50_000).unwrap();
        assert_eq!(found(cache, key).await, None);

        keep(cache, key, Some("note")).await;
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - MAX_AGE / 2).unwrap();
        assert_eq!(found(cache, key).await.as_deref(), Some("note"));
        file.set_modified(SystemTime::now() - 2 * MAX_AGE).unwrap();
        assert_eq!(found(cache, key).await, None);
        cache.clean(&CleanRequest::default()).await.unwrap();
        assert_eq!(fixture.files(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_note_that_cannot_be_kept_is_a_detail() {
        let fixture = fixture();
        let uploads = fixture.cache.shared.layout.uploads();
        make_folder(uploads.parent().unwrap()).unwrap();
        File::create(&uploads).unwrap();
        assert!(fixture.cache.upload_note("key").await.is_none());
        assert_eq!(fixture.messages.count("is not noted"), 1);
    }
}
