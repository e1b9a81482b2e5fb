//! The figures for people: a table of the jobs, then one of what each tool needed. Both are Markdown, so that a page can
//! quote them.

use crate::rows::Shown;
use crate::summary::{RowSummary, Runs, destination_requests, megabytes, seconds, source_requests};
use crate::tools::Tool;

/// The tools in the order of the columns, ours last.
const COLUMNS: [Tool; 5] = [
    Tool::Skopeo,
    Tool::Crane,
    Tool::Regctl,
    Tool::Regsync,
    Tool::Ours,
];

/// job | others | ours | ratio to the fastest other | target | met?
pub(crate) fn jobs(summaries: &[RowSummary]) -> String {
    let mut lines = vec![
        ["job"]
            .into_iter()
            .chain(COLUMNS.map(Tool::name))
            .chain(["to fastest", "target", "met?"])
            .map(str::to_owned)
            .collect(),
    ];
    lines.extend(summaries.iter().map(job));
    markdown(&lines)
}

fn job(summary: &RowSummary) -> Vec<String> {
    let row = summary.row;
    let cells = COLUMNS.map(|tool| match summary.of(tool) {
        None => String::new(),
        Some(runs) if runs.has_succeeded() => row
            .shown
            .iter()
            .map(|shown| summary.cell(runs, *shown))
            .collect::<Vec<_>>()
            .join(", "),
        Some(_) => "fails".to_owned(),
    });
    let timed = row.shown.contains(&Shown::Seconds);
    let ratio = summary
        .ratio()
        .filter(|_| timed)
        .map(|ratio| format!("{ratio:.2} x"));
    let targets: Vec<_> = row.targets.iter().map(|target| target.text()).collect();
    let met: Vec<_> = row
        .targets
        .iter()
        .map(|target| match summary.is_met(*target) {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "?",
        })
        .collect();
    [row.job.to_owned()]
        .into_iter()
        .chain(cells)
        .chain([
            ratio.unwrap_or_default(),
            targets.join(", "),
            met.join(", "),
        ])
        .collect()
}

/// What each tool needed in each row.
pub(crate) fn details(summaries: &[RowSummary]) -> String {
    let head = [
        "row",
        "tool",
        "runs",
        "seconds (least - most)",
        "until exit",
        "CPU user + system",
        "RSS",
        "requests",
        "source bytes",
        "connections",
    ];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for summary in summaries {
        lines.extend(summary.tools.iter().map(|runs| detail(summary, runs)));
    }
    markdown(&lines)
}

fn detail(summary: &RowSummary, runs: &Runs) -> Vec<String> {
    let start = [summary.row.name.to_owned(), runs.tool.name().to_owned()];
    if !runs.has_succeeded() {
        let why = runs.failure.clone().unwrap_or_default();
        let why: String = why.replace('|', "/").chars().take(100).collect();
        let rest = std::iter::repeat_n(String::new(), 6);
        let end = ["0".to_owned(), format!("fails: {why}")];
        return start.into_iter().chain(end).chain(rest).collect();
    }
    let connections = runs.figures.iter().find_map(|run| run.source_connections);
    let rest = [
        runs.figures.len().to_string(),
        format!(
            "{:.2} ({:.2} - {:.2})",
            runs.median(seconds),
            runs.least(seconds),
            runs.most(seconds)
        ),
        format!("{:.2}", runs.median(|run| run.exit_seconds)),
        format!(
            "{:.2} + {:.2}",
            runs.median(|run| run.user_seconds),
            runs.median(|run| run.system_seconds)
        ),
        format!("{:.0} MB", runs.median(megabytes)),
        format!(
            "{} + {}",
            runs.median(source_requests),
            runs.median(destination_requests)
        ),
        format!("{:.3} x", summary.source_bytes(runs)),
        connections.map_or_else(String::new, |count| count.to_string()),
    ];
    start.into_iter().chain(rest).collect()
}

/// Lines of cells, the first of them the head.
fn markdown(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells
            .map(|cell: &String| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text: Vec<_> = lines
        .iter()
        .map(|line| {
            let cells = line.iter().zip(&widths);
            let cells: Vec<_> = cells
                .map(|(cell, width)| format!("| {cell:width$} "))
                .collect();
            cells.concat() + "|\n"
        })
        .collect();
    let rule = widths
        .iter()
        .map(|width| format!("|{}", "-".repeat(width + 2)));
    text.insert(1, rule.collect::<String>() + "|\n");
    text.concat()
}
