//! Looking after a cache that is in use for long: blobs are read again now and then, and what nobody needs is removed.
//!
//! When a blob was last read is the time of its file: that of a new one is when it came.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use crate::image::Digest;

use super::{
    BlobVerdict, Cache, Error,
    disk::{blobs_in, blocking, is_older, open_regular},
    error::Result,
    evict,
};

impl Cache {
    /// The blobs that nobody has read for this long, the longest first.
    pub async fn unread_for(&self, limit: Duration) -> Result<Vec<Digest>> {
        let layout = self.shared.layout.clone();
        blocking(move || {
            let mut unread = Vec::new();
            for (digest, (path, _)) in blobs_in(&layout)? {
                if let Some((_, metadata)) = open_regular(&path)?
                    && is_older(&metadata, limit)
                {
                    unread.push((metadata.modified().ok(), digest));
                }
            }
            unread.sort();
            Ok(unread.into_iter().map(|(_, digest)| digest).collect())
        })
        .await
    }

    /// Reads a blob again. A wrong one is moved away, so that it is fetched again when it is next needed.
    ///
    /// # Errors
    /// When the disk fails in a way that is not this file's.
    pub async fn scrub(&self, digest: &Digest) -> Result<BlobVerdict> {
        let verdict = self.verify_blob(digest).await?;
        if let BlobVerdict::Right(_) = verdict {
            let path = self.shared.layout.blob(digest);
            blocking(move || {
                let noted = open_regular(&path)?
                    .map(|(file, _)| file.set_modified(SystemTime::now()));
                if let Some(Err(error)) = noted {
                    tracing::debug!(path = %path.display(), %error, "when the blob was read is not noted");
                }
                Ok(())
            })
            .await?;
        }
        Ok(verdict)
    }

    /// Removes what nothing names and no run needs, once it is old enough to be nobody's. The answer is how many bytes that
    /// were; nothing while somebody reads or extracts.
    ///
    /// # Errors
    /// When a manifest cannot be read, for nobody knows what it needs, and when the disk fails.
    pub async fn tidy(&self) -> Result<u64> {
        let store = match self
            .shared
            .locks
            .use_alone(evict::LOCK_WAIT, &self.output)
            .await
        {
            Ok(store) => store,
            Err(Error::CacheInUse { .. }) => return Ok(0),
            Err(error) => return Err(error),
        };
        let planned = self.plan_removal(store, 0, HashSet::new()).await?;
        let bytes = planned.sweep.bytes();
        if bytes > 0 {
            self.sweep(planned.sweep, planned.store).await?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::testing::{Fixture, fixture, layer, put, store_small};
    use super::*;
    use crate::cache::Problem;

    const WEEK: Duration = Duration::from_hours(7 * 24);

    fn age(fixture: &Fixture, content: &[u8], age: Duration) {
        let path = fixture.cache.shared.layout.blob(&layer(content).digest);
        let file = File::open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[tokio::test]
    async fn what_was_not_read_for_long_is_read_the_longest_unread_first() {
        let fixture = fixture();
        for (tag, content) in [("1", b"one"), ("2", b"two"), ("3", b"new")] {
            store_small(&fixture.cache, "app", tag, content).await;
        }
        age(&fixture, b"one", 2 * WEEK);
        age(&fixture, b"two", 3 * WEEK);
        let [one, two] = [layer(b"one").digest, layer(b"two").digest];
        assert_eq!(
            fixture.cache.unread_for(WEEK).await.unwrap(),
            [two.clone(), one.clone()]
        );
        let verdict = fixture.cache.scrub(&two).await.unwrap();
        assert!(matches!(verdict, BlobVerdict::Right(3)), "{verdict:?}");
        assert_eq!(fixture.cache.unread_for(WEEK).await.unwrap(), [one]);
    }

    #[tokio::test]
    async fn a_blob_that_went_bad_is_moved_away_and_named_with_its_images() {
        let fixture = fixture();
        store_small(&fixture.cache, "app", "1", b"good").await;
        let digest = layer(b"good").digest;
        let path = fixture.cache.shared.layout.blob(&digest);
        std::fs::remove_file(&path).unwrap();
        std::io::Write::write_all(&mut File::create(&path).unwrap(), b"evil").unwrap();
        let verdict = fixture.cache.scrub(&digest).await.unwrap();
        let BlobVerdict::Wrong(fault) = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(
            (fault.problem, fault.quarantined),
            (Problem::WrongContent, true)
        );
        assert_eq!(fault.images, ["app:1"]);
        assert!(!path.exists());
        let verdict = fixture.cache.scrub(&digest).await.unwrap();
        assert!(matches!(verdict, BlobVerdict::Absent), "{verdict:?}");
    }

    #[tokio::test]
    async fn what_is_nobodys_goes_when_it_is_old_enough() {
        let fixture = fixture();
        let cache = &fixture.cache;
        store_small(cache, "app", "1", b"one").await;
        for content in [b"old", b"new"] {
            put(cache, &layer(content), content).await.unwrap();
        }
        age(&fixture, b"one", WEEK);
        age(&fixture, b"old", WEEK);
        assert_eq!(cache.tidy().await.unwrap(), 3);
        assert_eq!(cache.tidy().await.unwrap(), 0);
        assert!(!cache.has_blob(&layer(b"old")).await.unwrap());
        for content in [b"one", b"new"] {
            assert!(cache.has_blob(&layer(content)).await.unwrap());
        }
        assert_eq!(cache.list().await.unwrap().len(), 1);
    }
}
