//! A blob of the cache, or one on its way there, as what an upload sends.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::OnceCell;

use crate::{
    cache::{BlobReader, Cache},
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

/// Keeps in the cache how far an upload is, so that another process can go on with it.
pub(super) struct Notes<'a> {
    pub(super) cache: &'a Cache,
    /// Names the upload: registry, repository and blob.
    pub(super) key: String,
}

impl UploadNotes for Notes<'_> {
    fn load(&self) -> BoxFuture<'_, Option<String>> {
        self.cache.upload_note(&self.key).boxed()
    }

    fn save(&self, note: Option<String>) -> BoxFuture<'_, ()> {
        async move {
            self.cache
                .keep_upload_note(&self.key, note.as_deref())
                .await;
        }
        .boxed()
    }
}
