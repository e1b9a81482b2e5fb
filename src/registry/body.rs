//! Reading bodies that somebody else sends: never more than expected, never longer than anything moves.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use tokio::time::Instant;

use super::{
    error::{Error, Operation, Result},
    wire,
};

/// Largest manifest and largest page of a list: twice of what the specification wants taken (registry rules M1, R11).
pub(super) const DOCUMENT_LIMIT: u64 = 8 * 1024 * 1024;

/// Largest error or token answer (R11).
pub(super) const SMALL_LIMIT: u64 = 64 * 1024;

/// So long nothing may arrive in the middle of a body (P12).
pub(super) const IDLE_LIMIT: Duration = Duration::from_mins(1);

/// What arrives more slowly than this over [`IDLE_LIMIT`] never ends: a new connection is better (P12).
const SLOWEST_BYTES_PER_SECOND: u64 = 1024;

/// An error's text is not worth a longer wait.
const ERROR_TIME_LIMIT: Duration = Duration::from_secs(5);

/// What became of reading a body.
pub(super) enum Capped {
    /// All of it.
    Whole(Bytes),
    /// It is larger than allowed; the rest was not read.
    TooLarge,
}

/// Reads a body of at most `limit` bytes, whatever its `Content-Length` says.
pub(super) async fn read_capped(
    mut response: reqwest::Response,
    limit: u64,
    operation: &Operation,
) -> Result<Capped> {
    let mut bytes = BytesMut::new();
    let mut pace = Pace::default();
    while let Some(chunk) = next_chunk(&mut response, &mut pace, operation).await? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Ok(Capped::TooLarge);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Capped::Whole(bytes.freeze()))
}

/// The next piece of a body, nothing at its end.
pub(super) async fn next_chunk(
    response: &mut reqwest::Response,
    pace: &mut Pace,
    operation: &Operation,
) -> Result<Option<Bytes>> {
    let stalled = || Error::TransferStalled {
        operation: operation.clone(),
        sending: false,
        limit: IDLE_LIMIT,
    };
    let asked = Instant::now();
    match tokio::time::timeout(IDLE_LIMIT, response.chunk()).await {
        Ok(Ok(Some(chunk))) if pace.is_enough(asked.elapsed(), chunk.len()) => Ok(Some(chunk)),
        Ok(Ok(None)) => Ok(None),
        Ok(Err(error)) => Err(wire::failure(operation, &error)),
        Ok(Ok(Some(_))) | Err(_) => Err(stalled()),
    }
}

/// How fast a body comes. Only the time spent waiting for it counts: whoever reads it may have other things to do.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes a piece that was waited for. Whether the body still comes fast enough.
    fn is_enough(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < IDLE_LIMIT {
            return true;
        }
        let is_enough = self.bytes >= self.waited.as_secs() * SLOWEST_BYTES_PER_SECOND;
        *self = Self::default();
        is_enough
    }
}

/// As much of an error's body as may be shown; a body that fails is no body.
pub(super) async fn read_error(mut response: reqwest::Response) -> Bytes {
    let mut bytes = BytesMut::new();
    let all = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            if (bytes.len() + chunk.len()) as u64 > SMALL_LIMIT {
                break;
            }
            bytes.extend_from_slice(&chunk);
        }
    };
    // Too slow is as good as nothing: what arrived is judged.
    let _finished = tokio::time::timeout(ERROR_TIME_LIMIT, all).await.is_ok();
    bytes.freeze()
}

/// Whether an answer says that it is made for a browser.
pub(super) fn is_web_page(response: &reqwest::Response) -> bool {
    response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.trim().to_ascii_lowercase().starts_with("text/html"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_come_slowly_but_not_by_drops() {
        for (seconds, bytes, ends_after) in [
            (1, 1024, None),
            (1, 1023, Some(60)),
            (1, 100, Some(60)),
            (59, 120 * 1024, None),
            (59, 1024, Some(2)),
            // Fast enough, since nobody waited.
            (0, 1, None),
        ] {
            let mut pace = Pace::default();
            let slow = (1..1000).find(|_| !pace.is_enough(Duration::from_secs(seconds), bytes));
            assert_eq!(slow, ends_after, "{bytes} bytes in {seconds} s");
        }
    }
}
