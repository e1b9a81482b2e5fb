//! What the runs of a row come to: medians, the comparison with others, and whether the targets are met.

use serde::Serialize;

use crate::rows::{Row, Shown, Target};
use crate::run::Figures;
use crate::tools::Tool;

/// Measured seconds, counted bytes and requests: a target counts as met up to here. Manifests come on top of the blobs, and
/// "1.00 x" is said with two digits.
const ROUNDING: f64 = 0.005;

/// All runs of one tool in one row.
#[derive(Debug, Serialize)]
pub(crate) struct Runs {
    pub(crate) tool: Tool,
    pub(crate) figures: Vec<Figures>,
    /// Why it could not do the job; it is not tried again then.
    pub(crate) failure: Option<String>,
}

/// All tools in one row.
#[derive(Debug)]
pub(crate) struct RowSummary {
    pub(crate) row: &'static Row,
    pub(crate) image_bytes: u64,
    pub(crate) tools: Vec<Runs>,
}

impl Runs {
    pub(crate) const fn new(tool: Tool) -> Self {
        Self {
            tool,
            figures: Vec::new(),
            failure: None,
        }
    }

    /// Whether there is anything to say about it.
    pub(crate) fn has_succeeded(&self) -> bool {
        self.failure.is_none() && !self.figures.is_empty()
    }

    pub(crate) fn median(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        let values = self.sorted(of);
        match values.len() {
            0 => f64::NAN,
            count if count % 2 == 1 => values[count / 2],
            count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
        }
    }

    pub(crate) fn least(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        self.sorted(of).first().copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn most(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        self.sorted(of).last().copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self, of: impl Fn(&Figures) -> f64) -> Vec<f64> {
        let mut values: Vec<_> = self.figures.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

impl RowSummary {
    pub(crate) fn of(&self, tool: Tool) -> Option<&Runs> {
        self.tools.iter().find(|runs| runs.tool == tool)
    }

    /// Our runs, if all of them did the job.
    pub(crate) fn ours(&self) -> Option<&Runs> {
        self.of(Tool::Ours).filter(|runs| runs.has_succeeded())
    }

    /// The seconds of the fastest of the others.
    pub(crate) fn fastest(&self) -> Option<f64> {
        let others = self
            .tools
            .iter()
            .filter(|runs| runs.tool != Tool::Ours && runs.has_succeeded());
        others
            .map(|runs| runs.median(seconds))
            .min_by(f64::total_cmp)
    }

    /// Our seconds as a multiple of those of the fastest of the others.
    pub(crate) fn ratio(&self) -> Option<f64> {
        Some(self.ours()?.median(seconds) / self.fastest()?)
    }

    /// Whether a target is met; nobody knows where there is nobody to compare with.
    pub(crate) fn is_met(&self, target: Target) -> Option<bool> {
        self.of(Tool::Ours)?;
        let Some(ours) = self.ours() else {
            return Some(false);
        };
        let (is, limit) = match target {
            Target::Seconds(limit) => (ours.median(seconds), limit),
            Target::OfFastest(limit) => (self.ratio()?, limit),
            Target::MemoryMegabytes(limit) => (ours.median(megabytes), limit),
            Target::SourceRequests(limit) => (ours.median(source_requests), limit),
            Target::DestinationRequests(limit) => (ours.median(destination_requests), limit),
            Target::SourceBytes(limit) => (self.source_bytes(ours), limit),
            Target::FetchedTwice(limit) => (self.fetched_twice(ours), limit),
        };
        Some(is <= limit + ROUNDING)
    }

    /// What a cell of the table says.
    pub(crate) fn cell(&self, runs: &Runs, shown: Shown) -> String {
        match shown {
            Shown::Seconds => format!("{:.2} s", runs.median(seconds)),
            Shown::Memory => format!("{:.0} MB", runs.median(megabytes)),
            Shown::Requests => format!(
                "{}+{}",
                runs.median(source_requests),
                runs.median(destination_requests)
            ),
            Shown::DestinationRequests => runs.median(destination_requests).to_string(),
            Shown::SourceBytes => format!("{:.2} x", self.source_bytes(runs)),
            Shown::Stored => format!("{:.1} % kept", 100.0 * self.stored(runs)),
            Shown::FetchedTwice => format!("{:.1} %", 100.0 * self.fetched_twice(runs)),
        }
    }

    pub(crate) fn source_bytes(&self, runs: &Runs) -> f64 {
        runs.median(|figures| number(figures.source_bytes) / number(self.image_bytes))
    }

    fn stored(&self, runs: &Runs) -> f64 {
        runs.median(|figures| number(figures.stored_bytes) / number(self.image_bytes))
    }

    fn fetched_twice(&self, runs: &Runs) -> f64 {
        (self.source_bytes(runs) - 1.0).max(0.0)
    }
}

impl Target {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Seconds(limit) => format!("<= {limit:.1} s"),
            Self::OfFastest(limit) => format!("<= {limit:.1} x the fastest"),
            Self::MemoryMegabytes(limit) => format!("<= {limit} MB"),
            Self::SourceRequests(limit) => format!("<= {limit} at the source"),
            Self::DestinationRequests(limit) => format!("<= {limit} at the destination"),
            Self::SourceBytes(limit) => format!("<= {limit:.2} x the bytes"),
            Self::FetchedTwice(limit) => format!("<= {:.0} % twice", 100.0 * limit),
        }
    }
}

pub(crate) fn seconds(figures: &Figures) -> f64 {
    figures.seconds
}

pub(crate) fn megabytes(figures: &Figures) -> f64 {
    number(figures.peak_rss_bytes) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "fewer than 2^52 of anything")]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}

pub(crate) fn source_requests(figures: &Figures) -> f64 {
    number(figures.source_requests as u64)
}

pub(crate) fn destination_requests(figures: &Figures) -> f64 {
    number(figures.destination_requests as u64)
}
