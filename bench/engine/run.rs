//! One tool does one job once.

use std::time::SystemTime;

use serde::Serialize;

use crate::measure::{Measured, Usage};
use crate::proxy::SlowLink;
use crate::rows::{Row, Task};
use crate::site::{Site, Source};
use crate::support::registry::LoggedRequest;
use crate::support::{Context, Failure, Result};
use crate::tools::{Programs, Tool};

/// What one run cost.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Figures {
    /// Until the last tag was in place, or until the tool ended where it writes none.
    pub(crate) seconds: f64,
    /// Until the tool ended.
    pub(crate) exit_seconds: f64,
    pub(crate) user_seconds: f64,
    pub(crate) system_seconds: f64,
    pub(crate) peak_rss_bytes: u64,
    pub(crate) source_requests: usize,
    pub(crate) destination_requests: usize,
    /// What the source sent: on the link where the row has one, else the bodies of its answers.
    pub(crate) source_bytes: u64,
    /// What the destinations kept.
    pub(crate) stored_bytes: u64,
    /// Connections to the source, where the row has a link.
    pub(crate) source_connections: Option<u64>,
}

impl Figures {
    /// Runs the tool at a fresh site and looks whether it did its job.
    pub(crate) fn of(tool: Tool, row: &Row, source: &Source, programs: &Programs) -> Result<Self> {
        let site = source.site(row)?;
        let before = source.registry.requests().len();
        let commands = command_lines(tool, row, &site, programs)?;
        // What earlier runs wrote shall not be waited for in this one.
        rustix::fs::sync();
        let (started, usages) = carry_out(&commands, row, source, &site)?;
        let ended_seconds = total(&usages, |usage| usage.wall_seconds);
        let tagged = source
            .look_at_destinations(row, &site)?
            .and_then(|tagged| tagged.duration_since(started).ok());
        let requests = source.registry.requests().split_off(before);
        let passed = site.link.as_ref().map(SlowLink::passed);
        Ok(Self {
            // A tag that was there before is older.
            seconds: tagged.map_or(ended_seconds, |tagged| tagged.as_secs_f64()),
            exit_seconds: ended_seconds,
            user_seconds: total(&usages, |usage| usage.user_seconds),
            system_seconds: total(&usages, |usage| usage.system_seconds),
            peak_rss_bytes: usages
                .iter()
                .map(|usage| usage.peak_rss_bytes)
                .max()
                .unwrap_or_default(),
            source_requests: requests.len(),
            destination_requests: site
                .destinations
                .iter()
                .map(|destination| destination.requests().len())
                .sum(),
            source_bytes: passed.map_or_else(|| bytes_sent(&requests), |passed| passed.down),
            stored_bytes: site.stored_bytes(),
            source_connections: passed.map(|passed| passed.connections),
        })
    }
}

fn command_lines(
    tool: Tool,
    row: &Row,
    site: &Site,
    programs: &Programs,
) -> Result<Vec<Vec<String>>> {
    let program = programs.find(tool).context("it is not installed")?;
    let program = program.display().to_string();
    let commands = tool.commands(row.task, site)?.into_iter();
    Ok(commands
        .map(|arguments| [vec![program.clone()], arguments].concat())
        .collect())
}

fn carry_out(
    commands: &[Vec<String>],
    row: &Row,
    source: &Source,
    site: &Site,
) -> Result<(SystemTime, Vec<Usage>)> {
    let mut started = None;
    let mut usages = Vec::new();
    for command in commands {
        let start = || Measured::start(command, site.home(), row.limit);
        let mut running = start()?;
        started.get_or_insert_with(|| running.started());
        if row.task == Task::KillAndAgain {
            wait_for_half(&mut running, source, site)?;
            running.kill();
            usages.push(running.wait()?);
            running = start()?;
        }
        usages.push(running.wait_for_success()?);
    }
    Ok((started.context("nothing to do")?, usages))
}

/// Until half of the images' bytes have passed the link.
fn wait_for_half(running: &mut Measured, source: &Source, site: &Site) -> Result<()> {
    let link = site.link.as_ref().context("nothing counts the bytes")?;
    while link.passed().down < source.bytes() / 2 {
        if running.has_ended()? {
            return Err(Failure::new("it ended before half of the bytes had come"));
        }
    }
    Ok(())
}

fn bytes_sent(requests: &[LoggedRequest]) -> u64 {
    requests
        .iter()
        .filter(|request| request.method == "GET")
        .map(|request| request.bytes)
        .sum()
}

fn total(usages: &[Usage], of: impl Fn(&Usage) -> f64) -> f64 {
    usages.iter().map(of).sum()
}
