//! A streamed body that faults work on: cut off, slowed down, or with a byte changed.

use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;

use super::faults::Shape;
use super::web::HangUp;

/// A body that is counted, and shaped where a rule says so.
pub struct Shaped<B> {
    body: B,
    shape: Shape,
    on_piece: Box<dyn FnMut(u64) + Send + Sync>,
    /// Bytes taken from the body, and of them those that were not given on yet.
    taken: u64,
    held: Bytes,
    pause: Option<Pin<Box<Sleep>>>,
    cut: Cut,
}

#[derive(Clone, Copy, PartialEq)]
enum Cut {
    NotReached,
    /// What is held is the last that gets through.
    Reached,
    /// That is on its way.
    Flushed,
}

/// Before a cut the bytes that were promised get this long to leave; hyper drops what it has not written yet.
const FLUSH_TIME: Duration = Duration::from_millis(100);

/// A slow body comes in pieces this far apart, so that it flows instead of jumping.
const PIECE_INTERVAL: Duration = Duration::from_millis(50);

impl<B> Shaped<B> {
    /// `on_piece` is told the size of each piece that is given on. It is dropped with the body, however that ends.
    pub fn new(body: B, shape: Shape, on_piece: impl FnMut(u64) + Send + Sync + 'static) -> Self {
        let (held, pause, cut) = (Bytes::new(), None, Cut::NotReached);
        Self {
            body,
            shape,
            on_piece: Box::new(on_piece),
            taken: 0,
            held,
            pause,
            cut,
        }
    }

    /// Takes bytes from the body, less those behind a cut.
    fn take(&mut self, mut data: Bytes) {
        if let Some(limit) = self.shape.cut_after {
            let left = limit.saturating_sub(self.taken);
            if data.len() as u64 > left {
                data.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                self.cut = Cut::Reached;
            }
        }
        if let Some(offset) = self.shape.corrupt_at {
            let here = offset
                .checked_sub(self.taken)
                .and_then(|offset| usize::try_from(offset).ok());
            if let Some(here) = here.filter(|here| *here < data.len()) {
                let mut changed = data.to_vec();
                changed[here] ^= 0xff;
                data = changed.into();
            }
        }
        self.taken += data.len() as u64;
        self.held = data;
        self.pause = self.shape.bytes_per_second.map(|_| pause(PIECE_INTERVAL));
    }

    /// Gives on what is held, or the next piece of it.
    fn give(&mut self) -> Bytes {
        let piece = match self.shape.bytes_per_second {
            None => std::mem::take(&mut self.held),
            Some(rate) => {
                let size = u128::from(rate) * PIECE_INTERVAL.as_millis() / 1000;
                let size = usize::try_from(size).unwrap_or(usize::MAX).max(1);
                self.pause = Some(pause(PIECE_INTERVAL));
                self.held.split_to(size.min(self.held.len()))
            }
        };
        (self.on_piece)(piece.len() as u64);
        piece
    }
}

fn pause(duration: Duration) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep(duration))
}

impl<B> HttpBody for Shaped<B>
where
    B: HttpBody<Data = Bytes, Error = HangUp> + Unpin,
{
    type Data = Bytes;
    type Error = HangUp;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, HangUp>>> {
        let this = self.get_mut();
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(context));
                this.pause = None;
            }
            if !this.held.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(this.give()))));
            }
            match this.cut {
                Cut::NotReached => {}
                Cut::Reached => {
                    this.cut = Cut::Flushed;
                    this.pause = Some(pause(FLUSH_TIME));
                    continue;
                }
                Cut::Flushed => return Poll::Ready(Some(Err(HangUp))),
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.take(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.cut == Cut::NotReached && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What the other side announced, in spite of a cut: the client shall miss the rest.
        let mut hint = self.body.size_hint();
        if let Some(exact) = hint.exact() {
            hint.set_exact(exact + self.held.len() as u64);
        }
        hint
    }
}
