//! A slow link on loopback: a TCP proxy with a round trip, a rate that all its connections share, a window per connection
//! that opens slowly, and connections that die after so many bytes. It counts what passes.
//!
//! What it models, and what not: `connect` costs a round trip before the first byte goes out; a sender has at most a window
//! of bytes on its way and hears of their arrival a round trip later; the window begins at ten segments and doubles per
//! round trip up to its limit. Nothing is ever lost, so there is no congestion control beyond that, and connections share
//! the link fairly.
//!
//! One thread with one timer moves everything in ticks of a millisecond: on a machine with two cores the link must not take
//! the processor from the programs that are measured. Start reading at [`SlowLink`]; `pipe` is one direction of a connection.

mod bucket;
mod pipe;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use self::bucket::Bucket;
use self::pipe::{Budget, PIECE, Pipe};
use crate::support::{Context, Result};

/// Between two looks at the connections. A thousand a second cost about one percent of a core.
const TICK: Duration = Duration::from_millis(1);

/// The least a connection may take in a tick, so that many connections do not make tiny pieces.
const SMALLEST_SHARE: u64 = 16 * 1024;

/// What the link is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) round_trip: Duration,
    /// In each direction, shared by all connections; none is as fast as the machine.
    pub(crate) bytes_per_second: Option<u64>,
    /// The most bytes of one connection that are on their way in one direction.
    pub(crate) window: u64,
    /// A connection ends once it has given so many bytes to one of its ends.
    pub(crate) dies_after: Option<u64>,
}

/// What has passed so far. Bytes count when they are handed over at the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) connections: u64,
    /// From the clients to the server.
    pub(crate) up: u64,
    /// From the server to the clients.
    pub(crate) down: u64,
}

/// A link that is up. Dropping it cuts all connections.
#[derive(Debug)]
pub(crate) struct SlowLink {
    address: SocketAddr,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    up: AtomicU64,
    down: AtomicU64,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    up: Pipe,
    down: Pipe,
}

/// The server and both directions of the link before it.
struct Road {
    server: SocketAddr,
    link: Link,
    counters: Arc<Counters>,
    up: Bucket,
    down: Bucket,
    connections: Vec<Connection>,
    /// Who goes first changes from tick to tick.
    turn: usize,
    buffer: Vec<u8>,
}

impl SlowLink {
    /// Puts a link before the server and listens at a free port of loopback.
    pub(crate) fn start(server: SocketAddr, link: Link) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .context("could not listen for a slow link")?;
        listener
            .set_nonblocking(true)
            .context("could not set up a slow link")?;
        let address = listener
            .local_addr()
            .context("a listener without an address")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("could not start the runtime of a slow link")?;
        let counters = Arc::<Counters>::default();
        let road = Road {
            server,
            link,
            counters: Arc::clone(&counters),
            up: Bucket::new(link.bytes_per_second),
            down: Bucket::new(link.bytes_per_second),
            connections: Vec::new(),
            turn: 0,
            buffer: vec![0; PIECE],
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = road.run(listener) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            address,
            counters,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn passed(&self) -> Passed {
        Passed {
            connections: self.counters.connections.load(Ordering::Relaxed),
            up: self.counters.up.load(Ordering::Relaxed),
            down: self.counters.down.load(Ordering::Relaxed),
        }
    }
}

impl Drop for SlowLink {
    fn drop(&mut self) {
        // Dropping the sender ends the loop. A join fails only where the thread has panicked, and said so.
        drop(self.stop.take());
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Road {
    async fn run(mut self, listener: std::net::TcpListener) {
        let Ok(listener) = TcpListener::from_std(listener) else {
            return;
        };
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((client, _)) = accepted {
                        self.admit(client).await;
                    }
                }
                // Nothing is to be moved while nobody is connected.
                _ = ticks.tick(), if !self.connections.is_empty() => self.tick().await,
            }
        }
    }

    async fn admit(&mut self, client: TcpStream) {
        // A server that is gone shows as a connection that ends at once.
        let Ok(server) = TcpStream::connect(self.server).await else {
            return;
        };
        for socket in [&client, &server] {
            if socket.set_nodelay(true).is_err() {
                return;
            }
        }
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        self.connections.push(Connection {
            client,
            server,
            // The kernel has let the client in already: SYN and SYN-ACK are made up for here.
            up: Pipe::new(self.link, now + self.link.round_trip),
            down: Pipe::new(self.link, now),
        });
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        let count = self.connections.len();
        self.turn = (self.turn + 1) % count;
        // A fair share for each, then what is left for those that can take more.
        let fair = |bucket: &mut Bucket| {
            bucket.fill(now);
            (bucket.level() / count as u64).max(SMALLEST_SHARE)
        };
        let fair = [fair(&mut self.up), fair(&mut self.down)];
        let mut ended = vec![false; count];
        for share in [fair, [u64::MAX, u64::MAX]] {
            for position in 0..count {
                let position = (self.turn + position) % count;
                if !ended[position] {
                    ended[position] = !self.advance(position, share, now).await;
                }
            }
        }
        let mut ended = ended.into_iter();
        self.connections
            .retain(|_| !ended.next().unwrap_or_default());
    }

    /// Moves what can be moved of one connection; false once it is over.
    async fn advance(&mut self, position: usize, share: [u64; 2], now: Instant) -> bool {
        let Connection {
            client,
            server,
            up,
            down,
        } = &mut self.connections[position];
        let mut budget = Budget::new(&mut self.up, share[0], &mut self.buffer);
        let sent = up.advance(client, server, &mut budget, now).await;
        let mut budget = Budget::new(&mut self.down, share[1], &mut self.buffer);
        let received = down.advance(server, client, &mut budget, now).await;
        if let Ok(sent) = &sent {
            self.counters.up.fetch_add(*sent, Ordering::Relaxed);
        }
        if let Ok(received) = &received {
            self.counters.down.fetch_add(*received, Ordering::Relaxed);
        }
        let alive = sent.is_ok() && received.is_ok();
        let worn_out = self
            .link
            .dies_after
            .is_some_and(|limit| up.delivered() >= limit || down.delivered() >= limit);
        alive && !worn_out && !(up.is_over() && down.is_over())
    }
}
