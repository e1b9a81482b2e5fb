//! The link against a server that sends as fast as it is read, or sends back what it gets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::proxy::{Link, SlowLink};
use crate::support::{Context, Result};

const MEBIBYTE: u64 = 1024 * 1024;

const PLAIN: Link = Link {
    round_trip: Duration::ZERO,
    bytes_per_second: None,
    window: 3 * MEBIBYTE,
    dies_after: None,
};

/// How far a figure may be off on a machine that does other things too. What was late because of them is tried again.
const TOLERANCE: f64 = 0.15;
const PATIENCE: Duration = Duration::from_mins(1);

/// A server whose threads end with their connections.
fn serve(talk: fn(TcpStream)) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("could not listen")?;
    let address = listener.local_addr().context("no address")?;
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(std::io::Result::ok) {
            std::thread::spawn(move || talk(connection));
        }
    });
    Ok(address)
}

/// Waits for a byte, then sends until nobody reads any more.
fn pour(mut connection: TcpStream) {
    let mut request = [0];
    if connection.read_exact(&mut request).is_ok() {
        let piece = vec![7; 64 * 1024];
        while connection.write_all(&piece).is_ok() {}
    }
}

fn echo(mut connection: TcpStream) {
    let mut byte = [0];
    while connection.read_exact(&mut byte).is_ok() && connection.write_all(&byte).is_ok() {}
}

/// Reads all there is and then says how much it was.
fn count(mut connection: TcpStream) {
    let bytes = read_all(&mut connection).to_be_bytes();
    drop(connection.write_all(&bytes));
}

fn connect(link: &SlowLink) -> Result<TcpStream> {
    TcpStream::connect(link.address()).context("could not connect")
}

fn ask(connection: &mut TcpStream) -> Result<()> {
    connection.write_all(&[1]).context("could not ask")
}

fn read(connection: &mut TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut left = usize::try_from(bytes).context("too many bytes")?;
    while left > 0 {
        let size = left.min(buffer.len());
        let read = connection.read(&mut buffer[..size]);
        match read.context("could not read")? {
            0 => return Err(crate::support::Failure::new("it ended too early")),
            length => left -= length,
        }
    }
    Ok(())
}

/// To the end, be it clean or not.
fn read_all(connection: &mut TcpStream) -> u64 {
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(length) => bytes += length as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return bytes,
        }
    }
}

/// Whether a measurement comes out as expected in one of its tries; else what it was. A link that is too fast or too slow is
/// so each time, a busy machine only mostly.
fn comes_close(expected: f64, measure: impl Fn() -> Result<f64>) -> Result<()> {
    let mut measured = Vec::new();
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let value = measure()?;
        if (value / expected - 1.0).abs() <= TOLERANCE {
            return Ok(());
        }
        measured.push(value);
    }
    Err(crate::support::Failure::new(format!(
        "{measured:?} instead of {expected}"
    )))
}

#[test]
fn the_first_byte_takes_two_round_trips_and_every_other_one() -> Result<()> {
    let server = serve(echo)?;
    let link = Link {
        round_trip: Duration::from_millis(40),
        ..PLAIN
    };
    let exchange = |connection: &mut TcpStream| -> Result<f64> {
        let started = Instant::now();
        ask(connection)?;
        read(connection, 1)?;
        Ok(started.elapsed().as_secs_f64())
    };
    comes_close(0.080, || {
        let link = SlowLink::start(server, link)?;
        exchange(&mut connect(&link)?)
    })?;
    comes_close(0.040, || {
        let link = SlowLink::start(server, link)?;
        let mut connection = connect(&link)?;
        exchange(&mut connection)?;
        exchange(&mut connection)
    })
}

#[test]
fn one_connection_gets_a_window_per_round_trip() -> Result<()> {
    let server = serve(pour)?;
    let link = Link {
        round_trip: Duration::from_millis(40),
        window: MEBIBYTE,
        ..PLAIN
    };
    let mebibytes_per_second = 1.0 / 0.040;
    comes_close(mebibytes_per_second, || {
        let link = SlowLink::start(server, link)?;
        let mut connection = connect(&link)?;
        ask(&mut connection)?;
        // By then the window is open.
        read(&mut connection, 3 * MEBIBYTE)?;
        let started = Instant::now();
        read(&mut connection, 15 * MEBIBYTE)?;
        Ok(15.0 / started.elapsed().as_secs_f64())
    })
}

#[test]
fn a_window_doubles_with_every_round_trip() -> Result<()> {
    let server = serve(pour)?;
    let link = Link {
        round_trip: Duration::from_millis(40),
        ..PLAIN
    };
    // 14480 bytes after two round trips, and 2, 4, 8, 16 times as many after each further one: 31 times as many in all.
    comes_close(0.080 + 4.0 * 0.040, || {
        let link = SlowLink::start(server, link)?;
        let started = Instant::now();
        let mut connection = connect(&link)?;
        ask(&mut connection)?;
        read(&mut connection, 31 * 14_480)?;
        Ok(started.elapsed().as_secs_f64())
    })
}

#[test]
fn many_connections_share_the_rate() -> Result<()> {
    let server = serve(pour)?;
    let link = Link {
        bytes_per_second: Some(50 * MEBIBYTE),
        ..PLAIN
    };
    comes_close(50.0, || {
        let link = SlowLink::start(server, link)?;
        let started = Instant::now();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut connection = connect(&link)?;
                        ask(&mut connection)?;
                        read(&mut connection, 3 * MEBIBYTE)
                    })
                })
                .collect();
            readers
                .into_iter()
                .try_for_each(|reader| reader.join().unwrap_or(Ok(())))
        })?;
        Ok(24.0 / started.elapsed().as_secs_f64())
    })
}

#[test]
fn a_connection_dies_at_its_last_byte_in_either_direction() -> Result<()> {
    let link = Link {
        dies_after: Some(1_000_000),
        ..PLAIN
    };
    let pouring = SlowLink::start(serve(pour)?, link)?;
    for _ in 0..2 {
        let mut connection = connect(&pouring)?;
        ask(&mut connection)?;
        assert_eq!(read_all(&mut connection), 1_000_000);
    }
    let passed = pouring.passed();
    assert_eq!((passed.connections, passed.down), (2, 2_000_000));

    let counting = SlowLink::start(serve(count)?, link)?;
    let mut connection = connect(&counting)?;
    // Nobody answers: the link is cut while the rest is still being sent, or after.
    drop(connection.write_all(&vec![1; 3_000_000]));
    assert_eq!(read_all(&mut connection), 0);
    assert_eq!(counting.passed().up, 1_000_000);
    Ok(())
}

#[test]
fn the_end_of_a_stream_passes_and_the_other_direction_stays_open() -> Result<()> {
    let link = Link {
        round_trip: Duration::from_millis(10),
        ..PLAIN
    };
    let link = SlowLink::start(serve(count)?, link)?;
    let mut connection = connect(&link)?;
    connection
        .write_all(&vec![1; 3_000_000])
        .context("could not send")?;
    connection
        .shutdown(std::net::Shutdown::Write)
        .context("could not end")?;
    let mut answer = [0; 8];
    connection.read_exact(&mut answer).context("no answer")?;
    assert_eq!(u64::from_be_bytes(answer), 3_000_000);
    // Bytes are counted just after they are handed over.
    let late = Instant::now() + Duration::from_secs(10);
    while link.passed().down < 8 && Instant::now() < late {
        std::thread::yield_now();
    }
    assert_eq!((link.passed().up, link.passed().down), (3_000_000, 8));
    Ok(())
}
