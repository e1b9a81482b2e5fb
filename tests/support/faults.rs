//! What goes wrong at a [`super::gateway::Gateway`], as data.

use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Method, Request};

/// Which requests something happens to, and what.
#[derive(Debug, Clone)]
pub struct Rule {
    method: Option<Method>,
    path_contains: String,
    header: Option<String>,
    skip: usize,
    times: usize,
    action: Action,
    seen: usize,
}

/// What happens to a request. The first two end it; the others shape its way to the registry and back, and add up.
#[derive(Debug, Clone)]
pub enum Action {
    /// The registry never sees the request.
    Respond {
        status: u16,
        headers: Vec<(String, String)>,
        body: Bytes,
    },
    /// The connection ends without an answer.
    HangUp,
    /// The request waits before it is passed on.
    Delay(Duration),
    /// The answer's body ends with the connection after this many bytes.
    CutAnswer(u64),
    /// The connection ends after this many bytes of the request's body.
    CutRequest(u64),
    /// The answer's body comes at this rate, in bytes per second.
    SlowAnswer(u64),
    /// The byte at this offset of the answer's body is another one.
    CorruptAnswer(u64),
}

/// All faults of one request.
#[derive(Default)]
pub struct Faults {
    pub ending: Option<Action>,
    pub delay: Duration,
    pub request: Shape,
    pub answer: Shape,
}

/// What happens to a body on its way.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    pub cut_after: Option<u64>,
    pub bytes_per_second: Option<u64>,
    pub corrupt_at: Option<u64>,
}

impl Action {
    /// An answer without headers of its own.
    pub fn status(status: u16) -> Self {
        Self::Respond {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    /// 429 with `Retry-After`, and an error body as registries send it.
    pub fn too_many_requests(retry_after_seconds: u64) -> Self {
        Self::Respond {
            status: 429,
            headers: vec![
                ("retry-after".to_owned(), retry_after_seconds.to_string()),
                ("content-type".to_owned(), "application/json".to_owned()),
            ],
            body: Bytes::from_static(
                br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
            ),
        }
    }

    /// A web page where a registry's answer was expected, as captive portals and wrong hosts send it.
    pub fn html_page(status: u16) -> Self {
        Self::Respond {
            status,
            headers: vec![("content-type".to_owned(), "text/html".to_owned())],
            body: Bytes::from_static(b"<!DOCTYPE html><html><body><h1>Welcome</h1></body></html>"),
        }
    }

    /// An error body of the distribution protocol.
    pub fn registry_error(status: u16, code: &str, message: &str) -> Self {
        Self::Respond {
            status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: serde_json::json!({"errors": [{"code": code, "message": message}]})
                .to_string()
                .into(),
        }
    }
}

impl Rule {
    /// For all requests with this method and a path that contains `part`.
    pub fn on(method: &Method, part: &str, action: Action) -> Self {
        Self {
            method: Some(method.clone()),
            ..Self::on_any(part, action)
        }
    }

    /// For all requests with a path that contains `part`.
    pub fn on_any(part: &str, action: Action) -> Self {
        let path_contains = part.to_owned();
        Self {
            method: None,
            path_contains,
            header: None,
            skip: 0,
            times: usize::MAX,
            action,
            seen: 0,
        }
    }

    /// Only for requests that carry this header, such as `range`.
    #[must_use]
    pub fn with_header(mut self, name: &str) -> Self {
        self.header = Some(name.to_owned());
        self
    }

    /// Not for the first so many of them.
    #[must_use]
    pub fn skip(mut self, count: usize) -> Self {
        self.skip = count;
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, count: usize) -> Self {
        self.times = count;
        self
    }

    /// Counts a request, and says whether it is one that the rule is for.
    fn applies(&mut self, request: &Request<Incoming>) -> bool {
        let wanted = self
            .method
            .as_ref()
            .is_none_or(|method| method == request.method())
            && request.uri().path().contains(&self.path_contains)
            && self
                .header
                .as_ref()
                .is_none_or(|name| request.headers().contains_key(name));
        if !wanted {
            return false;
        }
        self.seen += 1;
        self.seen > self.skip && self.seen - self.skip <= self.times
    }
}

/// Counts a request at all rules, and adds up those that are for it.
pub fn faults_of(request: &Request<Incoming>, rules: &mut [Rule]) -> Faults {
    let mut faults = Faults::default();
    for rule in rules {
        if !rule.applies(request) {
            continue;
        }
        match rule.action.clone() {
            // The first of them decides.
            ending @ (Action::Respond { .. } | Action::HangUp) => {
                faults.ending.get_or_insert(ending);
            }
            Action::Delay(delay) => faults.delay += delay,
            Action::CutAnswer(bytes) => faults.answer.cut_after = Some(bytes),
            Action::CutRequest(bytes) => faults.request.cut_after = Some(bytes),
            Action::SlowAnswer(rate) => faults.answer.bytes_per_second = Some(rate.max(1)),
            Action::CorruptAnswer(offset) => faults.answer.corrupt_at = Some(offset),
        }
    }
    faults
}
