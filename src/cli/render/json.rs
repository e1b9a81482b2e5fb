//! Progress and results as JSON lines on standard output: each an object with the field `event`.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::output::{Event, Level, Renderer};

use super::{Verbosity, is_shown, pace::Pace, print_line};

/// Pause between two progress objects.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes events to standard output.
#[derive(Debug)]
pub(super) struct JsonLines {
    verbosity: Verbosity,
    pace: Pace,
}

impl JsonLines {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        Self {
            verbosity,
            pace: Pace::new(PAUSE),
        }
    }
}

impl Renderer for JsonLines {
    fn handle(&self, event: &Event<'_>) {
        let told = match *event {
            Event::Message { level, text } if is_shown(level, self.verbosity) => {
                let level = match level {
                    Level::Warning => "warning",
                    Level::Info => "info",
                    Level::Detail => "detail",
                };
                Some(line("message", &json!({ "level": level, "text": text })))
            }
            Event::Retrying {
                operation,
                cause,
                pause,
            } if self.verbosity > Verbosity::Quiet => Some(line(
                "retry",
                &json!({ "operation": operation, "cause": cause, "pauseSeconds": pause.as_secs_f64() }),
            )),
            _ => self.progress(event),
        };
        if let Some(told) = told {
            // Whoever closed standard output does not want to know; the result at the end tells of real failures.
            drop(print_line(&told));
        }
    }
}

impl JsonLines {
    fn progress(&self, event: &Event<'_>) -> Option<String> {
        let numbers = self.pace.observe(event)?;
        if self.verbosity == Verbosity::Quiet {
            return None;
        }
        Some(line(
            "progress",
            &json!({
                "blobsDone": numbers.blobs_done,
                "blobsTotal": numbers.blobs_total,
                "bytesDone": numbers.bytes_done,
                "bytesTotal": numbers.bytes_total,
            }),
        ))
    }
}

/// One line: `event` first, then the fields of `value`; what is no object stands under `value`.
pub(super) fn line(event: &str, value: &impl Serialize) -> String {
    let fields = match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        Ok(other) => serde_json::Map::from_iter([("value".to_owned(), other)]),
        Err(error) => serde_json::Map::from_iter([(
            "unreadable".to_owned(),
            Value::String(error.to_string()),
        )]),
    };
    let mut object =
        serde_json::Map::from_iter([("event".to_owned(), Value::String(event.to_owned()))]);
    object.extend(fields);
    Value::Object(object).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_an_object_that_names_its_event() {
        assert_eq!(
            line("result", &json!({ "digest": "x" })),
            r#"{"digest":"x","event":"result"}"#
        );
        assert_eq!(
            line("result", &json!(["a"])),
            r#"{"event":"result","value":["a"]}"#
        );
    }
}
