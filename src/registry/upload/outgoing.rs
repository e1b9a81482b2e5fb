//! Part of a blob on its way in the body of a request: read one piece ahead, watched by whoever waits for the answer.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures::{future::BoxFuture, stream};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{self, UnboundedReceiver, UnboundedSender},
};

use super::{super::BlobSource, turn::Turn};
use crate::output::Transfer;

/// One read: large enough that the cost of handing it from thread to thread does not show (reads of 4 KiB reach 0.16 GB/s,
/// of 256 KiB 8 GB/s; registry rule P3), small enough that 16 uploads with two pieces each stay within 16 MiB.
const PIECE: usize = 512 * 1024;

/// What a connection is given beyond what went into its socket. Left to itself it would take 400 KiB, in each of many uploads.
const WINDOW: usize = 256 * 1024;

/// A source that has nothing for so long costs its upload the turn: two registries that are copied to each other would
/// otherwise wait for each other for ever. Below that, giving it back and queueing again costs more than it is worth.
const PATIENCE: Duration = Duration::from_secs(1);

/// After an early answer the connection stays open for so long, since the answer's text is still to be read from it.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Registries that keep a blob in object storage copy it before they answer. GHCR was seen to take 11 s for 700 MB, S3
/// minutes for several gigabytes (registry rules U11, U12; jib#4301).
const COMMIT_LIMIT: Duration = Duration::from_mins(10);

/// Slowest copy that is still one: it lets the limit grow with the blob (P12). A guess, an order of magnitude below what
/// object storage does.
const SLOWEST_COPY_PER_SECOND: u64 = 16 * 1024 * 1024;

/// What becomes of a body.
#[derive(Debug)]
pub(in crate::registry) enum Sent {
    /// The connection takes more than the source has.
    Waiting,
    /// So many more bytes were taken.
    Bytes(u64),
    /// The last byte was taken.
    All,
    /// The source could not be read.
    Failed(io::Error),
}

/// Tells what a body does. Unbounded, since there are small messages only, one or two for each piece.
pub(in crate::registry) type Meter = UnboundedReceiver<Sent>;

/// A range of a blob in one request, which may be sent several times (registry rule G4).
pub(in crate::registry) struct Outgoing<'a> {
    pub(super) source: &'a BlobSource,
    pub(super) range: Range<u64>,
    pub(super) progress: &'a Transfer,
    pub(super) turn: &'a Arc<Turn>,
    /// How much of the range the connection took the last time.
    taken: AtomicU64,
}

impl<'a> Outgoing<'a> {
    pub(super) const fn new(
        source: &'a BlobSource,
        range: Range<u64>,
        progress: &'a Transfer,
        turn: &'a Arc<Turn>,
    ) -> Self {
        Self {
            source,
            range,
            progress,
            turn,
            taken: AtomicU64::new(0),
        }
    }

    /// How many bytes the request has.
    pub(in crate::registry) const fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// How many of them the connection took the last time.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Whether the connection took all of them.
    pub(in crate::registry) fn is_spent(&self) -> bool {
        self.taken() == self.length()
    }

    /// How long the answer may take once the body is sent. What is stored then is the whole blob, not this range.
    pub(in crate::registry) fn answer_limit(&self) -> Duration {
        COMMIT_LIMIT + Duration::from_secs(self.source.size() / SLOWEST_COPY_PER_SECOND)
    }

    /// The connection took more.
    pub(in crate::registry) fn advance(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.progress.advance(bytes);
    }

    /// The body, from the range's first byte whatever an earlier request has sent, and what tells about it.
    pub(in crate::registry) fn body(&self) -> (reqwest::Body, Meter) {
        self.taken.store(0, Ordering::Relaxed);
        self.progress.restart_at(self.range.start);
        let (sender, meter) = mpsc::unbounded_channel();
        if self.range.is_empty() {
            // Nobody polls a body without bytes; the wait for the answer begins at once.
            sender.send(Sent::All).ok();
            return (reqwest::Body::from(Bytes::new()), meter);
        }
        let reader = Reader {
            source: self.source.clone(),
            rest: self.range.clone(),
            next: None,
            sender,
            turn: Arc::clone(self.turn),
            window: Arc::new(Semaphore::new(WINDOW)),
        };
        let pieces = stream::try_unfold(reader, Reader::advance);
        (reqwest::Body::wrap_stream(pieces), meter)
    }
}

/// Reads one piece while the one before is being sent.
struct Reader {
    source: BlobSource,
    rest: Range<u64>,
    next: Option<Read>,
    sender: UnboundedSender<Sent>,
    turn: Arc<Turn>,
    /// What is left of [`WINDOW`].
    window: Arc<Semaphore>,
}

/// Bytes that the connection has. Dropped when they are in its socket.
struct Given {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Given {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A read that was begun.
enum Read {
    Done(io::Result<Bytes>),
    Coming(BoxFuture<'static, io::Result<Bytes>>),
}

impl Reader {
    async fn advance(mut self) -> io::Result<Option<(Bytes, Self)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        if self.sender.is_closed() {
            // The answer came before the end: whoever got it reads its text, then the connection is given up, since the
            // rest of the body would have to be sent before the next request (registry rule R19).
            tokio::time::sleep(LAST_WORDS).await;
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = match self.next.take() {
            Some(read) => read,
            None => self.begin_read(),
        };
        let read = match read {
            Read::Done(read) => read,
            Read::Coming(read) => self.wait_for(read).await,
        };
        let bytes = match read.and_then(|bytes| self.checked(bytes)) {
            Ok(bytes) => bytes,
            Err(error) => {
                let told = io::Error::from(error.kind());
                self.tell(Sent::Failed(error));
                return Err(told);
            }
        };
        self.turn.take().await;
        let bytes = self.fit(bytes).await?;
        self.turn.note_bytes(bytes.len());
        self.rest.start += bytes.len() as u64;
        self.tell(Sent::Bytes(bytes.len() as u64));
        if self.rest.is_empty() {
            self.tell(Sent::All);
        } else {
            self.next = Some(self.begin_read());
        }
        Ok(Some((bytes, self)))
    }

    /// Begins to read the next piece.
    fn begin_read(&self) -> Read {
        let rest = self.rest.end - self.rest.start;
        let limit = usize::try_from(rest).map_or(PIECE, |rest| rest.min(PIECE));
        let mut read = self.source.read(self.rest.start, limit);
        // The first poll sets it going; nobody has to be woken, the next look is when the piece is wanted.
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match read.as_mut().poll(&mut context) {
            Poll::Ready(read) => Read::Done(read),
            Poll::Pending => Read::Coming(read),
        }
    }

    /// Waits for a piece, without the turn where that takes long.
    async fn wait_for(
        &mut self,
        mut read: BoxFuture<'static, io::Result<Bytes>>,
    ) -> io::Result<Bytes> {
        self.tell(Sent::Waiting);
        if let Ok(read) = tokio::time::timeout(PATIENCE, &mut read).await {
            return read;
        }
        self.turn.give_back();
        read.await
    }

    /// Waits until the connection has room for these bytes.
    async fn fit(&mut self, bytes: Bytes) -> io::Result<Bytes> {
        let room = u32::try_from(bytes.len().min(WINDOW)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.window).acquire_many_owned(room).await;
        let given = Given {
            bytes,
            _room: room.map_err(io::Error::other)?,
        };
        Ok(Bytes::from_owner(given))
    }

    /// What was read, unless it is nothing or more than there is room for.
    fn checked(&self, bytes: Bytes) -> io::Result<Bytes> {
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() as u64 > self.rest.end - self.rest.start {
            return Err(io::Error::other("more was read than asked for"));
        }
        Ok(bytes)
    }

    /// Nobody listens any more when the request was given up; then nobody needs to know.
    fn tell(&self, event: Sent) {
        self.sender.send(event).ok();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;
    use crate::registry::{
        BlobContent, ClientOptions, Error, Operation,
        testing::{client_at, upload_progress},
        upload::turn::Attempt,
        wire,
    };

    /// A blob whose every piece takes this long, and that ends early where it is to.
    #[derive(Debug)]
    struct Slow {
        pause: Duration,
        pieces: u64,
        fails_at: Option<u64>,
    }

    impl BlobContent for Slow {
        fn size(&self) -> u64 {
            self.pieces
        }

        fn read(&self, offset: u64, _limit: usize) -> BoxFuture<'_, io::Result<Bytes>> {
            Box::pin(async move {
                tokio::time::sleep(self.pause).await;
                if self.fails_at == Some(offset) {
                    return Err(io::Error::other("the download was given up"));
                }
                Ok(Bytes::from_static(b"x"))
            })
        }
    }

    /// A blob of ten pieces of so many bytes, all there.
    #[derive(Debug)]
    struct InPieces(usize);

    impl BlobContent for InPieces {
        fn size(&self) -> u64 {
            self.0 as u64 * 10
        }

        fn read(&self, _offset: u64, _limit: usize) -> BoxFuture<'_, io::Result<Bytes>> {
            Box::pin(async { Ok(Bytes::from(vec![7; self.0])) })
        }
    }

    /// Sends a blob to a registry that takes a piece each so often, and answers at the end.
    async fn send(content: Slow, registry_pause: Duration) -> Result<usize, Error> {
        let client = client_at("http://r.example", ClientOptions::default());
        let turn = Attempt::begin(&client.shared).await;
        let (size, progress) = (content.size(), upload_progress());
        let source = BlobSource::new(Arc::new(content));
        let outgoing = Outgoing::new(&source, 0..size, &progress, &turn);
        let (mut body, meter) = outgoing.body();
        let taken = std::cell::Cell::new(0);
        let exchange = async {
            while let Some(Ok(_)) = body.frame().await {
                taken.set(taken.get() + 1);
                tokio::time::sleep(registry_pause).await;
            }
            Ok(http::Response::new(Bytes::new()).into())
        };
        let operation = Operation::new("upload");
        let limit = outgoing.answer_limit();
        let sent = wire::watched(exchange, &operation, meter, limit, |bytes| {
            outgoing.advance(bytes);
        });
        let sent = sent.await.map(|_| taken.get());
        if sent.is_ok() {
            assert!(outgoing.is_spent());
        }
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_may_take_its_time() {
        let started = Instant::now();
        let content = Slow {
            pause: Duration::from_hours(1),
            pieces: 5,
            fails_at: None,
        };
        assert_eq!(send(content, Duration::ZERO).await.unwrap(), 5);
        assert_eq!(started.elapsed().as_secs() / 3600, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_may_not() {
        let content = Slow {
            pause: Duration::ZERO,
            pieces: 5,
            fails_at: None,
        };
        let failed = send(content, Duration::from_secs(61)).await.unwrap_err();
        assert!(matches!(
            failed,
            Error::TransferStalled { sending: true, .. }
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_piece_is_read_while_the_one_before_is_sent() {
        let started = Instant::now();
        let content = Slow {
            pause: Duration::from_secs(10),
            pieces: 5,
            fails_at: None,
        };
        send(content, Duration::from_secs(10)).await.unwrap();
        assert_eq!(started.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_gets_no_more_than_it_sends() {
        let client = client_at("http://r.example", ClientOptions::default());
        let turn = Attempt::begin(&client.shared).await;
        let progress = upload_progress();
        let source = BlobSource::new(Arc::new(InPieces(100 * 1024)));
        let outgoing = Outgoing::new(&source, 0..source.size(), &progress, &turn);
        let (mut body, _meter) = outgoing.body();
        let mut sent = 0;
        while sent < source.size() {
            let mut given = Vec::new();
            while let Ok(Some(piece)) =
                tokio::time::timeout(Duration::from_secs(1), body.frame()).await
            {
                given.push(piece.unwrap().into_data().unwrap());
            }
            // As many as there is room for, and the next when these are sent.
            assert_eq!(given.len(), 2);
            sent += given.concat().len() as u64;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_fails_says_so_itself() {
        let content = Slow {
            pause: Duration::from_secs(1),
            pieces: 5,
            fails_at: Some(3),
        };
        let failed = send(content, Duration::ZERO).await.unwrap_err();
        assert!(
            matches!(&failed, Error::SourceUnreadable { source, .. } if source.to_string().contains("given up"))
        );
    }
}
