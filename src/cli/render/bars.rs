//! Progress on a terminal: a bar per blob that travels, messages above them.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;

use crate::output::{Direction, Event, Level, Renderer};

use super::{Verbosity, is_shown, lines::retry_text};

/// Redraws per second: smooth for the eye, invisible in a profile.
const REDRAWS_PER_SECOND: u8 = 10;

/// Draws bars on standard error.
#[derive(Debug)]
pub(super) struct Bars {
    verbosity: Verbosity,
    area: MultiProgress,
    running: Mutex<HashMap<u64, ProgressBar>>,
}

impl Bars {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        let target = ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND);
        Self {
            verbosity,
            area: MultiProgress::with_draw_target(target),
            running: Mutex::default(),
        }
    }

    fn add(&self, id: u64, bytes: u64, prefix: String) {
        let bar = self.area.add(ProgressBar::new(bytes));
        bar.set_style(style());
        bar.set_prefix(prefix);
        self.running.lock().insert(id, bar);
    }

    fn say(&self, text: &str) {
        // A terminal that cannot be written to shows nothing either way.
        drop(self.area.println(text));
    }
}

/// What was done, of how much, how fast, and how long it will take.
fn style() -> ProgressStyle {
    const TEMPLATE: &str = "{prefix} {bar:30} {binary_bytes:>10}/{binary_total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4}";
    ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Renderer for Bars {
    fn handle(&self, event: &Event<'_>) {
        match *event {
            Event::Message { level, text } if is_shown(level, self.verbosity) => {
                self.say(&if level == Level::Warning {
                    format!("warning: {text}")
                } else {
                    text.to_owned()
                });
            }
            Event::Started {
                id,
                direction,
                digest,
                bytes,
            } => {
                let verb = match direction {
                    Direction::Download => "pulling",
                    Direction::Upload => "pushing",
                    Direction::Extract => "extracting",
                };
                self.add(id, bytes, format!("{verb} {}", &digest.hex()[..12]));
            }
            Event::Reading { id, archive, bytes } => {
                self.add(id, bytes.unwrap_or_default(), format!("reading {archive}"));
            }
            Event::Writing { id, archive, bytes } => {
                self.add(id, bytes, format!("writing {archive}"));
            }
            Event::Advanced { id, bytes } => {
                if let Some(bar) = self.running.lock().get(&id) {
                    bar.inc(bytes);
                }
            }
            Event::Restarted { id, .. } => {
                if let Some(bar) = self.running.lock().get(&id) {
                    bar.reset();
                }
            }
            Event::Ended { id, .. } => {
                if let Some(bar) = self.running.lock().remove(&id) {
                    bar.finish_and_clear();
                    self.area.remove(&bar);
                }
            }
            Event::Retrying {
                operation,
                cause,
                pause,
            } => self.say(&retry_text(operation, cause, pause)),
            Event::Message { .. } | Event::Planned { .. } | Event::Skipped { .. } => {}
        }
    }
}
