//! The bytes of a blob to send: from a file, or from wherever they are just arriving.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::task;

/// Bytes that can be read at any offset, as often as needed and by several senders at once: there is no shared cursor.
pub trait BlobContent: Send + Sync + fmt::Debug {
    /// How many bytes there are, or will be.
    fn size(&self) -> u64;

    /// At least one and at most `limit` bytes from `offset`. Waits where they are still to come; an error says that they
    /// never will. Work begins with the first poll and goes on by itself.
    fn read(&self, offset: u64, limit: usize) -> BoxFuture<'_, io::Result<Bytes>>;
}

/// A blob to send. Clones share the content.
#[derive(Debug, Clone)]
pub struct BlobSource(Arc<dyn BlobContent>);

impl BlobSource {
    /// Any content.
    pub fn new(content: Arc<dyn BlobContent>) -> Self {
        Self(content)
    }

    /// The first `size` bytes of a file.
    pub fn of_file(file: Arc<File>, size: u64) -> Self {
        Self::new(Arc::new(FileContent { file, size }))
    }

    /// A whole file.
    ///
    /// # Errors
    /// When the file cannot be opened. This blocks for as long as the file system does.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        Ok(Self::of_file(Arc::new(file), size))
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// Reads as [`BlobContent::read`] does, for a body that outlives the caller.
    pub(super) fn read(&self, offset: u64, limit: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        let content = Arc::clone(&self.0);
        async move { content.read(offset, limit).await }.boxed()
    }
}

/// The beginning of a file.
#[derive(Debug)]
struct FileContent {
    file: Arc<File>,
    size: u64,
}

impl BlobContent for FileContent {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, limit: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        let file = Arc::clone(&self.file);
        let rest = self.size.saturating_sub(offset);
        let length = usize::try_from(rest).map_or(limit, |rest| rest.min(limit));
        async move {
            let read = task::spawn_blocking(move || {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(Bytes::from(bytes))
            });
            read.await.map_err(io::Error::other)?
        }
        .boxed()
    }
}
