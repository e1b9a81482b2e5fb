//! What is made of the figures.

use crate::rows::{ROWS, Row, Shown, Target};
use crate::run::Figures;
use crate::summary::{RowSummary, Runs, seconds};
use crate::support::{Context, Result};
use crate::table;
use crate::tools::Tool;

fn row(name: &str) -> Result<&'static Row> {
    ROWS.iter().find(|row| row.name == name).context("no row")
}

fn runs(tool: Tool, seconds: &[f64]) -> Runs {
    let figures = seconds.iter().map(|seconds| Figures {
        seconds: *seconds,
        exit_seconds: *seconds,
        peak_rss_bytes: 48_000_000,
        source_bytes: 1_030_000,
        ..Figures::default()
    });
    Runs {
        figures: figures.collect(),
        ..Runs::new(tool)
    }
}

fn failed(tool: Tool) -> Runs {
    Runs {
        failure: Some("connection reset".to_owned()),
        ..runs(tool, &[0.1])
    }
}

fn summary(tools: Vec<Runs>) -> Result<RowSummary> {
    Ok(RowSummary {
        row: row("loop8")?,
        image_bytes: 1_000_000,
        tools,
    })
}

#[test]
fn a_median_is_the_middle_or_between_the_two_in_the_middle() {
    let three = runs(Tool::Ours, &[9.0, 1.0, 2.0]);
    let four = runs(Tool::Ours, &[9.0, 1.0, 2.0, 3.0]);
    let of = |runs: &Runs| {
        [
            runs.least(seconds),
            runs.median(seconds),
            runs.most(seconds),
        ]
    };
    assert!((of(&three)[1] - 2.0).abs() < 1e-9);
    assert!((of(&four)[1] - 2.5).abs() < 1e-9);
    assert!(of(&four)[0] < 1.1 && of(&four)[2] > 8.9);
}

#[test]
fn the_fastest_is_one_that_did_the_job_and_is_not_ours() -> Result<()> {
    let tools = vec![
        runs(Tool::Ours, &[1.0]),
        runs(Tool::Skopeo, &[4.0]),
        failed(Tool::Crane),
        runs(Tool::Regctl, &[2.0]),
    ];
    let ratio = summary(tools)?.ratio().context("no ratio")?;
    assert!((ratio - 0.5).abs() < 1e-9, "{ratio}");
    Ok(())
}

#[test]
fn a_target_is_met_missed_or_not_known() -> Result<()> {
    let all = summary(vec![runs(Tool::Ours, &[2.1]), runs(Tool::Crane, &[2.0])])?;
    let table = [
        (Target::Seconds(2.1), true),
        (Target::Seconds(2.0), false),
        (Target::OfFastest(1.1), true),
        (Target::OfFastest(1.0), false),
        (Target::MemoryMegabytes(48.0), true),
        (Target::MemoryMegabytes(47.0), false),
        (Target::SourceBytes(1.05), true),
        (Target::SourceBytes(1.0), false),
        (Target::FetchedTwice(0.05), true),
        (Target::FetchedTwice(0.02), false),
        (Target::DestinationRequests(0.0), true),
        (Target::SourceRequests(-1.0), false),
    ];
    for (target, met) in table {
        assert_eq!(all.is_met(target), Some(met), "{target:?}");
    }
    let alone = summary(vec![runs(Tool::Ours, &[2.1])])?;
    assert_eq!(alone.is_met(Target::OfFastest(1.1)), None);
    let without = summary(vec![runs(Tool::Crane, &[2.0])])?;
    assert_eq!(without.is_met(Target::Seconds(9.0)), None);
    let failing = summary(vec![failed(Tool::Ours), runs(Tool::Crane, &[2.0])])?;
    assert_eq!(failing.is_met(Target::Seconds(9.0)), Some(false));
    Ok(())
}

#[test]
fn the_tables_say_who_failed_and_which_target_is_missed() -> Result<()> {
    let tools = vec![
        runs(Tool::Ours, &[3.0]),
        runs(Tool::Crane, &[2.0]),
        failed(Tool::Skopeo),
    ];
    let summaries = [summary(tools)?];
    let jobs = table::jobs(&summaries);
    let line = jobs.lines().last().context("no line")?;
    let cells: Vec<_> = line.split('|').map(str::trim).collect();
    assert_eq!(
        cells[2..],
        [
            "fails",
            "2.00 s, 48 MB",
            "",
            "",
            "3.00 s, 48 MB",
            "1.50 x",
            "<= 1.1 x the fastest, <= 48 MB",
            "NO, yes",
            ""
        ]
    );
    let details = table::details(&summaries);
    assert!(details.contains("fails: connection reset"), "{details}");
    Ok(())
}

#[test]
fn every_row_has_a_name_of_its_own_tools_figures_and_targets() {
    for (position, row) in ROWS.iter().enumerate() {
        assert!(ROWS[..position].iter().all(|other| other.name != row.name));
        assert!(!row.shown.is_empty() && !row.targets.is_empty(), "{row:?}");
        assert!(row.tools.first() == Some(&Tool::Ours), "{row:?}");
        let timed = row
            .targets
            .iter()
            .any(|target| matches!(target, Target::Seconds(_) | Target::OfFastest(_)));
        assert!(!timed || row.shown.contains(&Shown::Seconds), "{row:?}");
    }
}
