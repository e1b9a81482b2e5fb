//! The figures for programs: docs/performance.md describes the fields.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::summary::RowSummary;
use crate::support::{Context, Result};
use crate::tools::{Programs, Tool};

/// Goes up when a field changes its meaning or goes.
const VERSION: u32 = 1;

pub(crate) fn write(
    file: &Path,
    summaries: &[RowSummary],
    tools: &[Tool],
    programs: &Programs,
) -> Result<()> {
    let versions: serde_json::Map<_, _> = tools
        .iter()
        .map(|tool| (tool.name().to_owned(), json!(programs.version(*tool))))
        .collect();
    let ended = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let report = json!({
        "version": VERSION,
        "ended": ended.as_secs(),
        "machine": machine(),
        "programs": versions,
        "rows": summaries.iter().map(row).collect::<Vec<_>>(),
    });
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent).context(format!("could not make {}", parent.display()))?;
    }
    let text = serde_json::to_string_pretty(&report).context("could not write the report")?;
    std::fs::write(file, text + "\n").context(format!("could not write {}", file.display()))
}

fn row(summary: &RowSummary) -> Value {
    let targets: Vec<_> = summary
        .row
        .targets
        .iter()
        .map(|target| json!({"text": target.text(), "met": summary.is_met(*target)}))
        .collect();
    json!({
        "name": summary.row.name,
        "job": summary.row.job,
        "imageBytes": summary.image_bytes,
        "tools": summary.tools,
        "ratioToFastest": summary.ratio(),
        "targets": targets,
    })
}

fn machine() -> Value {
    let cpus = std::thread::available_parallelism().map(usize::from).ok();
    let read = |file| {
        std::fs::read_to_string(file)
            .map(|text| text.trim().to_owned())
            .ok()
    };
    json!({
        "cpus": cpus,
        "kernel": read("/proc/sys/kernel/osrelease"),
        "load": read("/proc/loadavg"),
    })
}
