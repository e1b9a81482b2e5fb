//! From what is to be answered to the answer on the wire, with what happens to it on the way.

use std::ops::Range;
use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use serde_json::{Value, json};

use super::super::web::{Answer, Body, HangUp};
use super::content::Content;
use super::fault::{ErrorBody, Fault, RangeAnswer, TokenForm};
use super::log::EndOnDrop;
use super::rule::{Faults, fault_value};

/// Before a cut the bytes that were promised get this long to leave; hyper drops what it has not written yet.
const FLUSH_TIME: Duration = Duration::from_millis(100);

/// A slow body comes in so many pieces per second, so that it flows instead of jumping.
const SLOW_PIECES: u64 = 20;

/// Bytes that are given to the connection at once.
const PIECE: u64 = 64 * 1024;

/// An answer as data.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub content: Content,
    /// What of the content is sent.
    pub range: Range<u64>,
    /// Without `Content-Length`.
    pub is_chunked: bool,
    /// The connection ends in order afterwards.
    pub closes: bool,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            content: Content::new(""),
            range: 0..0,
            is_chunked: false,
            closes: false,
        }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub fn content(mut self, content: Content) -> Self {
        self.range = 0..content.size();
        self.content = content;
        self
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self::new(status)
            .header("content-type", "application/json")
            .content(Content::new(value.to_string()))
    }

    /// An error of the protocol.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::error_with(status, code, message, &Value::Null)
    }

    pub fn error_with(status: u16, code: &str, message: &str, detail: &Value) -> Self {
        Self::json(
            status,
            &json!({"errors": [{"code": code, "message": message, "detail": detail}]}),
        )
    }

    pub fn set_header(&mut self, name: &str, value: &str) {
        self.remove_header(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    pub fn remove_header(&mut self, name: &str) {
        self.headers
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
    }

    /// Replaces the body of an error.
    pub fn disguise(&mut self, body: ErrorBody) {
        let (media_type, text) = match body {
            ErrorBody::Unknown => (
                "application/json",
                r#"{"errors":[{"code":"UNKNOWN","message":"UNKNOWN: Not Found"}]}"#,
            ),
            ErrorBody::Html => ("text/html", "<!DOCTYPE html><html><h1>nginx</h1></html>"),
            ErrorBody::Empty => ("text/plain", ""),
        };
        self.set_header("content-type", media_type);
        self.content = Content::new(text);
        self.range = 0..self.content.size();
    }

    /// The answer on the wire. Its entry in the log ends with the body.
    pub fn render(self, is_head: bool, flow: Flow, end: EndOnDrop) -> Answer {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(name, value);
        }
        let length = self.range.end - self.range.start;
        let has_length = self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        if !self.is_chunked && !has_length && !flow.is_endless && self.status != 204 {
            response = response.header("content-length", length);
        }
        if self.closes {
            response = response.header("connection", "close");
        }
        end.0.lock().status = Some(self.status);
        let range = if is_head { 0..0 } else { self.range };
        let body = stream_body(self.content, range, flow, end);
        // An impossible status or header is a mistake in the test; hanging up makes it fail there.
        response.body(body).map_err(|_| HangUp)
    }
}

/// What happens to a body on its way.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    cut_after: Option<u64>,
    stall_after: Option<u64>,
    bytes_per_second: Option<u64>,
    pause_before: Option<Duration>,
    is_endless: bool,
    is_unended: bool,
}

impl Flow {
    /// What the faults say about an answer's body. Those that are about blobs leave errors and redirects alone.
    pub fn of(faults: &Faults, reply: &Reply) -> Self {
        let is_endless =
            |fault: &Fault| matches!(fault, Fault::Endless | Fault::Token(TokenForm::Endless));
        let is_endless = faults.has(is_endless);
        if reply.status >= 300 {
            return Self {
                is_endless,
                ..Self::default()
            };
        }
        let offset = reply.range.start;
        let slow_range = fault_value!(faults, Range).and_then(|answer| match answer {
            // By position, so that a retry of the same range is slow again and others are not.
            RangeAnswer::SlowOne(rate) if (offset >> 20) % 8 == 1 => Some(rate),
            _ => None,
        });
        Self {
            cut_after: fault_value!(faults, CutAt),
            stall_after: fault_value!(faults, Stall),
            bytes_per_second: fault_value!(faults, Drip).or(slow_range),
            pause_before: fault_value!(faults, OutOfOrder).filter(|_| offset == 0),
            is_endless,
            is_unended: faults.has(|fault| matches!(fault, Fault::Unended)),
        }
    }
}

/// A body that is still sent.
struct Sending {
    content: Content,
    range: Range<u64>,
    flow: Flow,
    sent: u64,
    end: EndOnDrop,
}

fn stream_body(content: Content, range: Range<u64>, flow: Flow, end: EndOnDrop) -> Body {
    let sending = Sending {
        content,
        range,
        flow,
        sent: 0,
        end,
    };
    let pieces = stream::unfold(sending, |mut sending| async move {
        let piece = sending.next().await?;
        Some((piece, sending))
    });
    StreamBody::new(pieces).boxed_unsync()
}

impl Sending {
    async fn next(&mut self) -> Option<Result<Frame<bytes::Bytes>, HangUp>> {
        if let Some(pause) = self.flow.pause_before.take() {
            tokio::time::sleep(pause).await;
        }
        let mut limit = PIECE;
        if let Some(rate) = self.flow.bytes_per_second {
            limit = (rate / SLOW_PIECES).clamp(1, PIECE);
            let pause = limit * 1_000_000 / rate;
            tokio::time::sleep(Duration::from_micros(pause)).await;
        }
        if let Some(stall_after) = self.flow.stall_after {
            limit = limit.min(stall_after - self.sent);
            if limit == 0 {
                std::future::pending::<()>().await;
            }
        }
        if let Some(cut_after) = self.flow.cut_after {
            limit = limit.min(cut_after - self.sent);
            let is_cut = limit == 0 && self.range.start < self.range.end;
            if is_cut {
                tokio::time::sleep(FLUSH_TIME).await;
                return Some(Err(HangUp));
            }
        }
        let mut piece = self.content.read(
            self.range.start,
            limit.min(self.range.end - self.range.start),
        );
        if piece.is_empty() && self.flow.is_endless {
            // White space may follow any JSON, so only its length can end it.
            piece = vec![b' '; 16 * 1024].into();
        } else {
            self.range.start += piece.len() as u64;
        }
        if piece.is_empty() {
            if !self.flow.is_unended {
                return None;
            }
            tokio::time::sleep(FLUSH_TIME).await;
            return Some(Err(HangUp));
        }
        self.sent += piece.len() as u64;
        self.end.0.sent(piece.len());
        Some(Ok(Frame::data(piece)))
    }
}
