//! One direction of a connection: bytes are taken from the sender as its window and the link allow, are on their way for
//! half a round trip, are handed over, and half a round trip later the sender knows.

use std::collections::VecDeque;
use std::io::{ErrorKind, Result};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::bucket::Bucket;
use super::{Link, TICK};

/// Linux sends ten segments before it hears from the other side.
const FIRST_WINDOW: u64 = 10 * 1448;

/// The most that is taken at once: a piece is moved in one call and stays in the processor's cache.
pub(super) const PIECE: usize = 256 * 1024;

/// What a connection may take from the link in this turn, and where it is read to.
pub(super) struct Budget<'a> {
    bucket: &'a mut Bucket,
    left: u64,
    buffer: &'a mut [u8],
}

pub(super) struct Pipe {
    half_trip: Duration,
    limit: u64,
    /// The handover ends here, to the byte.
    last_byte: u64,
    opens: Instant,
    window: u64,
    /// Taken from the sender, which has not heard of their arrival yet.
    unacknowledged: u64,
    on_their_way: VecDeque<Piece>,
    acknowledgements: VecDeque<(Instant, u64)>,
    delivered: u64,
    /// When the end of the sender's bytes reaches the receiver.
    end: Option<Instant>,
    over: bool,
}

struct Piece {
    arrives: Instant,
    bytes: Vec<u8>,
    handed_over: usize,
}

impl<'a> Budget<'a> {
    pub(super) fn new(bucket: &'a mut Bucket, share: u64, buffer: &'a mut [u8]) -> Self {
        let left = share.min(bucket.level());
        Self {
            bucket,
            left,
            buffer,
        }
    }

    fn spend(&mut self, bytes: u64) {
        self.left -= bytes;
        self.bucket.take(bytes);
    }
}

impl Pipe {
    pub(super) fn new(link: Link, opens: Instant) -> Self {
        Self {
            half_trip: link.round_trip / 2,
            limit: link.window,
            last_byte: link.dies_after.unwrap_or(u64::MAX),
            opens,
            window: FIRST_WINDOW.min(link.window),
            unacknowledged: 0,
            on_their_way: VecDeque::new(),
            acknowledgements: VecDeque::new(),
            delivered: 0,
            end: None,
            over: false,
        }
    }

    /// Bytes handed over so far.
    pub(super) const fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Whether the sender has ended and the receiver knows.
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    /// Does what is due and gives the number of bytes handed over. An error means that one of the two ends is gone.
    pub(super) async fn advance(
        &mut self,
        from: &TcpStream,
        to: &mut TcpStream,
        budget: &mut Budget<'_>,
        now: Instant,
    ) -> Result<u64> {
        // What is due in less than half a tick is early now and would be later next time: so the error has no direction.
        let due = now + TICK / 2;
        self.hear(due);
        let before = self.delivered;
        self.hand_over(to, due)?;
        if now >= self.opens && self.end.is_none() {
            self.take(from, budget, now)?;
        }
        if self.end.is_some_and(|end| end <= due) && self.on_their_way.is_empty() && !self.over {
            self.over = true;
            to.shutdown().await?;
        }
        Ok(self.delivered - before)
    }

    /// The sender hears of what arrived; each byte that did lets it send two.
    fn hear(&mut self, due: Instant) {
        while let Some((_, bytes)) = self.acknowledgements.pop_front_if(|(at, _)| *at <= due) {
            self.unacknowledged -= bytes;
            self.window = (self.window + bytes).min(self.limit);
        }
    }

    fn hand_over(&mut self, to: &TcpStream, due: Instant) -> Result<()> {
        while let Some(piece) = self.on_their_way.front_mut() {
            let left = usize::try_from(self.last_byte - self.delivered).unwrap_or(usize::MAX);
            let rest = &piece.bytes[piece.handed_over..];
            let rest = &rest[..rest.len().min(left)];
            if piece.arrives > due || rest.is_empty() {
                return Ok(());
            }
            let Some(written) = unless_it_blocks(to.try_write(rest))? else {
                // The receiver does not read. What it takes later arrives later.
                piece.arrives = due;
                return Ok(());
            };
            piece.handed_over += written;
            self.delivered += written as u64;
            let acknowledged = piece.arrives + self.half_trip;
            self.acknowledgements
                .push_back((acknowledged, written as u64));
            if piece.handed_over == piece.bytes.len() {
                self.on_their_way.pop_front();
            }
        }
        Ok(())
    }

    fn take(&mut self, from: &TcpStream, budget: &mut Budget<'_>, now: Instant) -> Result<()> {
        loop {
            let room = (self.window - self.unacknowledged).min(budget.left);
            let size = usize::try_from(room).map_or(PIECE, |room| room.min(PIECE));
            let buffer = &mut budget.buffer[..size];
            if buffer.is_empty() {
                return Ok(());
            }
            let Some(length) = unless_it_blocks(from.try_read(buffer))? else {
                return Ok(());
            };
            let arrives = now + self.half_trip;
            if length == 0 {
                self.end = Some(arrives);
                return Ok(());
            }
            self.on_their_way.push_back(Piece {
                arrives,
                bytes: buffer[..length].to_vec(),
                handed_over: 0,
            });
            self.unacknowledged += length as u64;
            budget.spend(length as u64);
            if length < size {
                return Ok(());
            }
        }
    }
}

/// None where there is nothing to read, or no room to write.
fn unless_it_blocks(result: Result<usize>) -> Result<Option<usize>> {
    match result {
        Ok(length) => Ok(Some(length)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
