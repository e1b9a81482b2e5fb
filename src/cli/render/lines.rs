//! Progress as plain lines, for logs and pipes: one every few seconds, and messages as they come.

use std::time::Duration;

use crate::output::{ByteSize, Event, Level, Renderer};

use super::{Verbosity, is_shown, pace::Pace};

/// Pause between two lines of progress: a log of an hour stays readable.
const PAUSE: Duration = Duration::from_secs(5);

/// A shorter wait would read "in 0.0 s".
const SHOWN_PAUSE: Duration = Duration::from_millis(50);

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
    let when = if pause < SHOWN_PAUSE {
        "at once".to_owned()
    } else {
        format!("in {:.1} s", pause.as_secs_f64())
    };
    format!("retrying {operation} {when}: {cause}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_without_a_pause_comes_at_once() {
        for (milliseconds, when) in [
            (0, "at once"),
            (49, "at once"),
            (50, "in 0.1 s"),
            (30_000, "in 30.0 s"),
        ] {
            let text = retry_text("to push", "reset", Duration::from_millis(milliseconds));
            assert_eq!(text, format!("retrying to push {when}: reset"));
        }
    }
}
