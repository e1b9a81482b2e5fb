//! A blob of the cache, or one on its way there, as what an upload sends.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::OnceCell;

use crate::{
    cache::{BlobReader, Cache, UploadNote},
    image::Descriptor,
    registry::{BlobContent, UploadNotes},
};

use super::{
    arrival::{Arrival, Stage},
    road::Road,
};

/// The bytes of a blob as they come.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) cache: Cache,
    pub(super) blob: Descriptor,
    pub(super) arrival: Arrival,
    /// Bytes are given out as fast as this road allows.
    pub(super) road: Arc<Road>,
    reader: OnceCell<BlobReader>,
}

impl Incoming {
    pub(super) fn new(
        cache: &Cache,
        blob: &Descriptor,
        arrival: &Arrival,
        road: &Arc<Road>,
    ) -> Self {
        Self {
            cache: cache.clone(),
            blob: blob.clone(),
            arrival: arrival.clone(),
            road: Arc::clone(road),
            reader: OnceCell::new(),
        }
    }

    /// Finds the bytes, once there are any.
    async fn open(&self) -> io::Result<BlobReader> {
        match self.arrival.clone().readable().await {
            Stage::Arriving(reader) => Ok(reader),
            Stage::Here => {
                let found = self.cache.read_blob(&self.blob).await;
                found.map_err(io::Error::other)?.ok_or_else(|| {
                    let message = format!("blob {} is no longer in the cache", self.blob.digest);
                    io::Error::new(io::ErrorKind::NotFound, message)
                })
            }
            Stage::Waiting | Stage::Lost => Err(io::Error::other("the blob was not fetched")),
        }
    }
}

impl BlobContent for Incoming {
    fn size(&self) -> u64 {
        self.blob.size
    }

    fn read(&self, offset: u64, limit: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        async move {
            let reader = self.reader.get_or_try_init(|| self.open()).await?;
            let bytes = reader.read(offset, limit).await?;
            self.road.bandwidth.take(bytes.len()).await;
            Ok(bytes)
        }
        .boxed()
    }
}

/// Keeps in the cache how far an upload is, so that another process can go on with it. Of those who send one blob to one
/// place at once, the first has the note; the others do without.
pub(super) struct Notes<'a> {
    cache: &'a Cache,
    /// Names the upload: registry, repository and blob.
    key: String,
    /// Taken when the upload asks for it: most are too small for a note.
    note: OnceCell<Option<UploadNote>>,
}

impl<'a> Notes<'a> {
    pub(super) fn new(cache: &'a Cache, key: String) -> Self {
        Self {
            cache,
            key,
            note: OnceCell::new(),
        }
    }

    async fn note(&self) -> Option<&UploadNote> {
        let take = || self.cache.upload_note(&self.key);
        self.note.get_or_init(take).await.as_ref()
    }
}

impl UploadNotes for Notes<'_> {
    fn load(&self) -> BoxFuture<'_, Option<String>> {
        async { self.note().await?.text().await }.boxed()
    }

    fn save(&self, note: Option<String>) -> BoxFuture<'_, ()> {
        async move {
            if let Some(place) = self.note().await {
                place.keep(note.as_deref()).await;
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use crate::output::OutputManager;

    use super::*;

    #[tokio::test]
    async fn two_that_send_one_blob_to_one_place_do_not_share_a_note() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Cache::open(folder.path(), OutputManager::silent()).unwrap();
        let caches = [open(), open()];
        let [first, second] = caches
            .each_ref()
            .map(|cache| Notes::new(cache, "registry repository digest".to_owned()));
        first.save(Some("first".to_owned())).await;
        assert_eq!(second.load().await, None);
        second.save(Some("second".to_owned())).await;
        second.save(None).await;
        assert_eq!(first.load().await.as_deref(), Some("first"));
        drop(first);
        let third = Notes::new(&caches[1], second.key);
        assert_eq!(third.load().await.as_deref(), Some("first"));
    }
}
