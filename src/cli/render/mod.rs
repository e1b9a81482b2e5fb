//! How a command shows what it does: bars on a terminal, lines elsewhere, JSON lines for programs.

mod bars;
mod json;
mod lines;
mod pace;
mod table;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::{
    error::{Classified, handlers},
    output::{Level, OutputManager, Silent},
};

use super::{
    Error, Result,
    hint::hint,
    options::{GlobalOptions, OutputFormat, Verbosity},
};

pub(super) use table::columns;

/// Where a command shows its progress and its result.
#[derive(Debug)]
pub(super) struct Screen {
    format: OutputFormat,
    verbosity: Verbosity,
    output: OutputManager,
}

impl Screen {
    /// The screen that the options and the terminal ask for.
    pub(super) fn new(options: &GlobalOptions) -> Self {
        let verbosity = options.verbosity();
        let output = match options.output {
            OutputFormat::Json => OutputManager::new(json::JsonLines::new(verbosity)),
            OutputFormat::Text if verbosity == Verbosity::Quiet => OutputManager::new(Silent),
            OutputFormat::Text if io::stderr().is_terminal() => {
                OutputManager::new(bars::Bars::new(verbosity))
            }
            OutputFormat::Text => OutputManager::new(lines::Lines::new(verbosity)),
        };
        Self {
            format: options.output,
            verbosity,
            output,
        }
    }

    /// The handle that the work speaks to.
    pub(super) const fn output(&self) -> &OutputManager {
        &self.output
    }

    /// Shows the result of a command: `text` for people, `value` for programs.
    pub(super) fn result(&self, text: &str, value: &impl Serialize) -> Result<()> {
        match self.format {
            OutputFormat::Json => print_line(&json::line("result", value)),
            OutputFormat::Text if self.verbosity == Verbosity::Quiet => Ok(()),
            OutputFormat::Text => print_line(text),
        }
    }

    /// Shows what the user asked to see, also when asked to be quiet.
    pub(super) fn content(&self, text: &str, value: &impl Serialize) -> Result<()> {
        match self.format {
            OutputFormat::Json => print_line(&json::line("result", value)),
            OutputFormat::Text => print_line(text),
        }
    }

    /// Ends a command that moved blobs: what it did, and the figures.
    pub(super) fn summary(&self, text: &str, mut value: serde_json::Value) -> Result<()> {
        let totals = self.output.totals();
        if let (Some(fields), Ok(figures)) = (value.as_object_mut(), serde_json::to_value(totals)) {
            fields.insert("totals".to_owned(), figures);
        }
        self.result(&format!("{text}\n{totals}"), &value)
    }

    /// Shows why a command failed, and the option that may mend it.
    #[expect(
        clippy::print_stderr,
        reason = "the one place where a command says why it failed"
    )]
    pub(super) fn error(&self, error: &Error) {
        let message = handlers::message(error);
        let hint = hint(error.reason());
        if self.format == OutputFormat::Json {
            let class: &str = error.class().into();
            let mut value = serde_json::json!({ "reason": error.reason(), "class": class, "message": message, "hint": hint });
            if let Some(problems) = error.problems() {
                value["problems"] = serde_json::json!(problems);
            }
            // The exit code still tells when standard output is gone.
            drop(print_line(&json::line("error", &value)));
        }
        eprintln!("error: {message}");
        if let Some(hint) = hint
            && self.verbosity > Verbosity::Quiet
        {
            eprintln!("hint: {hint}");
        }
    }
}

/// Whether a message of this level is shown at this verbosity.
pub(super) fn is_shown(level: Level, verbosity: Verbosity) -> bool {
    match level {
        Level::Warning | Level::Info => verbosity >= Verbosity::Normal,
        Level::Detail => verbosity >= Verbosity::Verbose,
    }
}

/// Writes one line to standard output. A reader that has gone away (`list | head -1`) is no failure: Rust ignores SIGPIPE,
/// so the write tells.
pub(super) fn print_line(line: &str) -> Result<()> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::OutputFailed(error)),
        _ => Ok(()),
    }
}
