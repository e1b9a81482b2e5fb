//! The engine side by side with public tools: the same job, one tool after the other, on registries of this machine.
//!
//! `cargo bench --bench engine -- --help` shows the options, docs/performance.md tells how to read the figures. The jobs
//! are in `rows`, the tools in `tools`; `run` is one tool doing one job once, at a `site` of its own, under `measure`.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench writes plain files, waits, and prints what it found"
)]

mod files;
mod measure;
#[path = "../proxy/mod.rs"]
mod proxy;
mod report;
mod rows;
mod run;
mod site;
mod summary;
#[path = "../../tests/support/mod.rs"]
mod support;
mod table;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use rows::{ROWS, Row};
use run::Figures;
use site::Source;
use summary::{RowSummary, Runs};
use support::{Failure, Result};
use tools::{Programs, Tool};

/// A tool that took so many seconds in a row is not run again there: it is far from the others, and its figure is clear.
const SECONDS_PER_TOOL: f64 = 60.0;

/// Compares the engine with public tools.
#[derive(Debug, Parser)]
struct Options {
    /// Only these rows; `--list` shows their names.
    #[arg(long = "row", value_delimiter = ',')]
    rows: Vec<String>,
    /// Only these tools.
    #[arg(long, value_delimiter = ',', value_enum)]
    tools: Vec<Tool>,
    /// Runs of each tool in each row.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The program that is ours, instead of the one that cargo built for the bench.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// A folder with other tools, before those of the PATH.
    #[arg(long)]
    peers: Option<PathBuf>,
    /// Writes the figures to this file, as JSON.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Shows the rows and does nothing.
    #[arg(long)]
    list: bool,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let verb = arguments.nth(1);
    let done = if verb.is_some_and(|verb| verb == measure::VERB) {
        measure::be_the_small_process(arguments)
    } else {
        compare(Options::parse()).map(|()| ExitCode::SUCCESS)
    };
    done.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        ExitCode::FAILURE
    })
}

fn compare(options: Options) -> Result<()> {
    let rows = chosen_rows(&options.rows)?;
    if options.list {
        for row in rows {
            println!("{:10} {}", row.name, row.job);
        }
        return Ok(());
    }
    let ours = options
        .binary
        .unwrap_or_else(|| support::binary::program().to_owned());
    let programs = Programs::new(ours, options.peers);
    let tools = chosen_tools(&options.tools, &programs);
    let mut summaries = Vec::new();
    for row in rows {
        summaries.push(measure_row(row, &tools, options.runs, &programs)?);
    }
    println!(
        "{}\n{}",
        table::jobs(&summaries),
        table::details(&summaries)
    );
    match options.output {
        Some(file) => report::write(&file, &summaries, &tools, &programs),
        None => Ok(()),
    }
}

fn chosen_rows(names: &[String]) -> Result<Vec<&'static Row>> {
    let unknown = names
        .iter()
        .find(|name| ROWS.iter().all(|row| row.name != **name));
    if let Some(name) = unknown {
        return Err(Failure::new(format!(
            "there is no row '{name}': see --list"
        )));
    }
    let chosen = |row: &&Row| names.is_empty() || names.iter().any(|name| name == row.name);
    Ok(ROWS.iter().filter(chosen).collect())
}

fn chosen_tools(wanted: &[Tool], programs: &Programs) -> Vec<Tool> {
    let all = [
        Tool::Ours,
        Tool::Skopeo,
        Tool::Crane,
        Tool::Regctl,
        Tool::Regsync,
    ];
    all.into_iter()
        .filter(|tool| wanted.is_empty() || wanted.contains(tool))
        .filter(|tool| {
            let found = programs.find(*tool).is_some();
            if !found {
                eprintln!("{} is not installed: left out", tool.name());
            }
            found
        })
        .collect()
}

/// All tools take turns, and another one begins each round: what the machine does besides hits all alike.
fn measure_row(
    row: &'static Row,
    tools: &[Tool],
    runs: u32,
    programs: &Programs,
) -> Result<RowSummary> {
    eprintln!("{}: {}", row.name, row.job);
    let source = Source::new(row)?;
    let tools = row.tools.iter().filter(|tool| tools.contains(tool));
    let mut tools: Vec<_> = tools.copied().map(Runs::new).collect();
    for _ in 0..runs {
        for runs in &mut tools {
            measure_once(runs, row, &source, programs);
        }
        if !tools.is_empty() {
            tools.rotate_left(1);
        }
    }
    tools.sort_by_key(|runs| row.tools.iter().position(|tool| *tool == runs.tool));
    Ok(RowSummary {
        row,
        image_bytes: source.bytes(),
        tools,
    })
}

fn measure_once(runs: &mut Runs, row: &Row, source: &Source, programs: &Programs) {
    let spent: f64 = runs.figures.iter().map(|run| run.exit_seconds).sum();
    if runs.failure.is_some() || spent > SECONDS_PER_TOOL {
        return;
    }
    let name = runs.tool.name();
    match Figures::of(runs.tool, row, source, programs) {
        Ok(figures) => {
            eprintln!("  {name:8} {:.2} s", figures.seconds);
            runs.figures.push(figures);
        }
        Err(failure) => {
            eprintln!("  {name:8} fails: {failure}");
            runs.failure = Some(failure.to_string());
        }
    }
}
