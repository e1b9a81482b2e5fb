//! Notes of uploads that were begun and not finished, so that another run can go on with them. What they say is the
//! caller's; they may hold a session's secret, hence nobody else may read them.

use std::{
    fs::{self, Metadata, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use crate::{error::handlers, image::Digest};

use super::{
    Cache,
    disk::{Temporary, blocking, is_ours, make_folder, open_regular, read_small},
    error::{Error, Result},
    notes::{sealed, unsealed},
};

/// Registries forget sessions after a while; none is known to keep them longer than a week, most for a day.
const MAX_AGE: Duration = Duration::from_hours(24);

/// Longest note.
const MAX_SIZE: usize = 64 * 1024;

impl Cache {
    /// What was noted under this key within the last 24 hours.
    pub async fn upload_note(&self, key: &str) -> Option<String> {
        let path = self.upload_path(key);
        let read = blocking(move || read(&path)).await;
        read.unwrap_or_else(|error| {
            let error = handlers::message(&error);
            self.output
                .detail(format!("an unfinished upload begins anew: {error}"));
            None
        })
    }

    /// Notes something under this key, or removes what was noted. If that fails, an interrupted upload begins anew.
    pub async fn keep_upload_note(&self, key: &str, note: Option<&str>) {
        let path = self.upload_path(key);
        let text = note.map(sealed);
        let kept = blocking(move || match text {
            Some(text) if text.len() <= MAX_SIZE => write(&path, &text),
            // What is too long to be read again is not kept.
            Some(_) | None => remove(&path),
        })
        .await;
        if let Err(error) = kept {
            let error = handlers::message(&error);
            self.output
                .detail(format!("an unfinished upload is not noted: {error}"));
        }
    }

    fn upload_path(&self, key: &str) -> std::path::PathBuf {
        let name = Digest::of(key.as_bytes());
        self.shared.layout.uploads().join(name.hex())
    }
}

/// Whether a note is too old to be used.
pub(super) fn is_old(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| is_older(&metadata))
}

fn is_older(metadata: &Metadata) -> bool {
    // A time in the future (the clock was set back) counts as recent.
    metadata
        .modified()
        .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > MAX_AGE))
}

fn read(path: &Path) -> Result<Option<String>> {
    let Some((_, metadata)) = open_regular(path)? else {
        return Ok(None);
    };
    if is_older(&metadata) || !is_ours(&metadata) {
        return Ok(None);
    }
    let Some(Ok(bytes)) = read_small(path, MAX_SIZE as u64)? else {
        return Ok(None);
    };
    Ok(unsealed(&bytes).map(str::to_owned))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    make_folder(folder)?;
    let (mut file, temporary) = Temporary::create(folder)?;
    // Not synced: a note that a power loss tears is no note.
    file.set_permissions(Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| temporary.rename(path))
        .map_err(|source| Error::writing("write", path, text.len() as u64, source))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::writing("remove", path, 0, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, time::SystemTime};

    use super::super::{CleanRequest, testing::fixture};
    use super::*;

    #[tokio::test]
    async fn a_note_is_found_by_its_key_until_it_is_removed() {
        let fixture = fixture();
        let cache = &fixture.cache;
        let key = "registry.internal:5000/team/app sha256:../..";
        assert_eq!(cache.upload_note(key).await, None);
        cache.keep_upload_note(key, None).await;
        for note in [
            "first",
            "{\"location\": \"https://x\"}\nand a second line\n",
            "",
        ] {
            cache.keep_upload_note(key, Some(note)).await;
            let found = fixture.reopened().upload_note(key).await;
            assert_eq!(found.as_deref(), Some(note));
        }
        assert_eq!(cache.upload_note("another").await, None);
        let path = cache.upload_path(key);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fixture.files().len(), 1, "{:?}", fixture.files());
        cache.keep_upload_note(key, None).await;
        assert_eq!(fixture.files(), Vec::<String>::new());
        assert_eq!(fixture.messages.all(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_note_that_is_old_torn_or_too_long_is_none() {
        let fixture = fixture();
        let cache = &fixture.cache;
        let (key, path) = ("key", cache.upload_path("key"));
        let long = "x".repeat(MAX_SIZE);
        cache.keep_upload_note(key, Some(&long)).await;
        assert_eq!(cache.upload_note(key).await, None);

        cache.keep_upload_note(key, Some(&long[..60_000])).await;
        assert_eq!(cache.upload_note(key).await.unwrap().len(), 60_000);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(50_000).unwrap();
        assert_eq!(cache.upload_note(key).await, None);

        cache.keep_upload_note(key, Some("note")).await;
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - MAX_AGE / 2).unwrap();
        assert_eq!(cache.upload_note(key).await.as_deref(), Some("note"));
        file.set_modified(SystemTime::now() - 2 * MAX_AGE).unwrap();
        assert_eq!(cache.upload_note(key).await, None);
        cache.clean(&CleanRequest::default()).await.unwrap();
        assert_eq!(fixture.files(), ["index.json"]);
    }

    #[tokio::test]
    async fn a_note_that_cannot_be_kept_is_a_detail() {
        let fixture = fixture();
        let uploads = fixture.cache.shared.layout.uploads();
        make_folder(uploads.parent().unwrap()).unwrap();
        File::create(&uploads).unwrap();
        fixture.cache.keep_upload_note("key", Some("note")).await;
        assert_eq!(fixture.cache.upload_note("key").await, None);
        assert_eq!(fixture.messages.count("is not noted"), 1);
    }
}
