//! Where and when a fault happens: everywhere it makes sense and always, unless a rule narrows it down.

use super::fault::{Fault, Step};

/// What a rule looks at.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    pub step: Step,
    pub repository: &'a str,
    /// Digest, tag or upload.
    pub object: &'a str,
    /// Bytes that the request's body shall have.
    pub length: u64,
    /// The request's connection had one before.
    pub is_reused: bool,
}

/// A fault with its place and time: everywhere it makes sense and always, unless narrowed down.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    steps: Vec<Step>,
    repository: Option<String>,
    object: Option<String>,
    least_length: u64,
    skip: usize,
    times: usize,
    seen: usize,
}

impl From<Fault> for Rule {
    fn from(fault: Fault) -> Self {
        Self {
            fault,
            steps: Vec::new(),
            repository: None,
            object: None,
            least_length: 0,
            skip: 0,
            times: usize::MAX,
            seen: 0,
        }
    }
}

impl Rule {
    /// Only in this step; several calls name several.
    #[must_use]
    pub fn on(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Only for this repository.
    #[must_use]
    pub fn of(mut self, repository: &str) -> Self {
        self.repository = Some(repository.to_owned());
        self
    }

    /// Only for this digest or tag.
    #[must_use]
    pub fn about(mut self, object: &str) -> Self {
        self.object = Some(object.to_owned());
        self
    }

    /// Only for requests with a body of so many bytes or more.
    #[must_use]
    pub fn at_least(mut self, bytes: u64) -> Self {
        self.least_length = bytes;
        self
    }

    /// Leaves the first requests alone.
    #[must_use]
    pub fn after(mut self, requests: usize) -> Self {
        self.skip = requests;
        self
    }

    /// Happens so many times only.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Whether it happens now; counts.
    fn happens(&mut self, situation: &Situation<'_>) -> bool {
        let is_here = if self.steps.is_empty() {
            self.fault.concerns(situation)
        } else {
            self.steps.contains(&situation.step)
        };
        let is_repository = self
            .repository
            .as_ref()
            .is_none_or(|repository| repository == situation.repository);
        let is_object = self
            .object
            .as_ref()
            .is_none_or(|object| object == situation.object);
        let waits_for_reuse = matches!(self.fault, Fault::StaleConn) && !situation.is_reused;
        let is_short = situation.length < self.least_length;
        if !is_here || !is_repository || !is_object || is_short || waits_for_reuse {
            return false;
        }
        self.seen += 1;
        self.seen > self.skip && self.seen - self.skip <= self.times
    }
}

/// The faults of one request.
#[derive(Debug, Clone, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    pub fn of(rules: &mut [Rule], situation: &Situation<'_>) -> Self {
        Self(
            rules
                .iter_mut()
                .filter_map(|rule| rule.happens(situation).then(|| rule.fault.clone()))
                .collect(),
        )
    }

    /// The first fault that `pick` wants.
    pub fn find<T>(&self, pick: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        self.0.iter().find_map(pick)
    }

    pub fn has(&self, is: impl Fn(&Fault) -> bool) -> bool {
        self.0.iter().any(is)
    }
}

/// The value of a variant with one field, if the request has that fault.
macro_rules! fault_value {
    ($faults:expr, $variant:ident) => {
        $faults.find(|fault| match fault {
            Fault::$variant(value) => Some(value.clone()),
            _ => None,
        })
    };
}
pub(super) use fault_value;
