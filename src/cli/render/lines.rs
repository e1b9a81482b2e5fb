//! Progress as plain lines, for logs and pipes: one every few seconds, and messages as they come.

use std::time::Duration;

use crate::output::{ByteSize, Event, Level, Renderer};

use super::{Verbosity, is_shown, pace::Pace};

/// Pause between two lines of progress: a log of an hour stays readable.
const PAUSE: Duration = Duration::from_secs(5);

/// Writes lines to standard error.
#[derive(Debug)]
pub(super) struct Lines {
    verbosity: Verbosity,
    pace: Pace,
}

impl Lines {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        Self {
            verbosity,
            pace: Pace::new(PAUSE),
        }
    }
}

impl Renderer for Lines {
    #[expect(
        clippy::print_stderr,
        reason = "progress goes to standard error, and to no log"
    )]
    fn handle(&self, event: &Event<'_>) {
        match *event {
            Event::Message { level, text } if is_shown(level, self.verbosity) => match level {
                Level::Warning => eprintln!("warning: {text}"),
                Level::Info | Level::Detail => eprintln!("{text}"),
            },
            Event::Retrying {
                operation,
                cause,
                pause,
            } => eprintln!("{}", retry_text(operation, cause, pause)),
            _ => {}
        }
        if let Some(numbers) = self.pace.observe(event) {
            eprintln!(
                "{} of {} ({} %), {} of {} blobs",
                ByteSize(numbers.bytes_done),
                ByteSize(numbers.bytes_total),
                numbers.percent(),
                numbers.blobs_done,
                numbers.blobs_total,
            );
        }
    }
}

/// The line that tells of a retry.
pub(super) fn retry_text(operation: &str, cause: &str, pause: Duration) -> String {
    format!(
        "retrying {operation} in {:.1} s: {cause}",
        pause.as_secs_f64()
    )
}
