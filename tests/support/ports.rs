//! Free loopback ports, for programs that cannot be told to pick one themselves and say which.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, PoisonError};

use super::{Failure, Result};

/// Below the range from which Linux takes the ports of outgoing connections (32768 and up): there, a connection of
/// another test could take the port between this look and the program's bind.
const CANDIDATES: std::ops::Range<u16> = 20_000..32_000;

static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port on 127.0.0.1 that nobody listens on, and that this process gives to nobody else. Another test binary running
/// at the same moment may draw the same number; with 12,000 to draw from that is accepted.
pub fn free_port() -> Result<u16> {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..1_000 {
        let port = fastrand::u16(CANDIDATES);
        if !handed_out.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            handed_out.insert(port);
            return Ok(port);
        }
    }
    Err(Failure::new(format!(
        "no free port among {CANDIDATES:?} after 1000 draws"
    )))
}
