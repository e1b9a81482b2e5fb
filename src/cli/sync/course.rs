//! The mirrors at work, and what they come to.

use futures::{StreamExt, stream};
use parking_lot::Mutex;
use serde_json::json;

use crate::{
    cache::Cache,
    cli::{
        Error, Result,
        render::{Screen, columns},
        until_interrupted,
    },
    error::handlers,
    mirror::{MirrorOutcome, MirrorReport, MirrorRequest, PreparedMirror, PreparedWork, Report},
    output::OutputManager,
    transfer::{Failure, RunReport},
};

use super::PreparedSync;

/// Mirrors that are carried out at once; each has its own limit of transfers besides.
const MIRRORS_AT_ONCE: usize = 8;
/// Failed images of one mirror that are told one by one; the report has them all.
const MAX_TOLD: usize = 20;

/// A mirror that may have come to its end.
struct Entry {
    namespace: String,
    name: String,
    end: Mutex<Option<End>>,
}

/// What became of a mirror.
struct End {
    report: MirrorReport,
    first_failure: Option<Failure>,
}

/// A mirror that is still to run.
struct Waiting {
    /// Its place among the entries.
    position: usize,
    request: MirrorRequest,
    reads_cache: bool,
}

impl PreparedSync {
    /// Carries all mirrors out and writes the report, whatever comes of it.
    pub(in crate::cli) async fn run(self, screen: &Screen) -> Result<()> {
        let Self {
            mirrors,
            report,
            cache_dir,
            cache_limit,
        } = self;
        let (entries, waiting) = sort(mirrors, screen.output());
        let work = async {
            let mut cache = Cache::open(cache_dir, screen.output().clone())?;
            if let Some(limit) = cache_limit {
                cache = cache.with_limit(limit);
            }
            let carried_out = carry_out(&entries, waiting, &cache, screen.output()).await;
            cache.flush_index().await;
            carried_out
        };
        let outcome = until_interrupted(Box::pin(work)).await;
        let ends = ends(entries, outcome.as_ref().err());
        let written = Report::new(ends.iter().map(|end| end.report.clone()).collect());
        let kept = report.map_or(Ok(()), |file| file.write(&written));
        let outcome = outcome
            .and_then(|()| screen.summary(&table(&written), json!(written)))
            .and_then(|()| verdict(ends));
        if let (Err(_), Err(error)) = (&outcome, &kept) {
            screen.output().warning(handlers::message(error));
        }
        outcome.and(kept)
    }
}

/// The mirrors by their places, and those that are to run.
fn sort(mirrors: Vec<PreparedMirror>, output: &OutputManager) -> (Vec<Entry>, Vec<Waiting>) {
    let (mut entries, mut waiting) = (Vec::new(), Vec::new());
    for (position, mirror) in mirrors.into_iter().enumerate() {
        let PreparedMirror {
            namespace,
            name,
            work,
        } = mirror;
        let mut end = None;
        match work {
            PreparedWork::Suspended => {
                output.info(format!("{namespace}/{name}: is suspended, nothing is done"));
                end = Some(End {
                    report: MirrorReport::of_suspended(&namespace, &name),
                    first_failure: None,
                });
            }
            PreparedWork::Run {
                request,
                reads_cache,
                images,
            } => {
                if let Some(images) = images {
                    output.detail(format!("{namespace}/{name}: selects {images} images"));
                }
                waiting.push(Waiting {
                    position,
                    request: *request,
                    reads_cache,
                });
            }
        }
        entries.push(Entry {
            namespace,
            name,
            end: Mutex::new(end),
        });
    }
    (entries, waiting)
}

/// Runs the mirrors, those last that read what the others bring into the cache.
async fn carry_out(
    entries: &[Entry],
    waiting: Vec<Waiting>,
    cache: &Cache,
    output: &OutputManager,
) -> Result<()> {
    let (last, first): (Vec<_>, Vec<_>) =
        waiting.into_iter().partition(|mirror| mirror.reads_cache);
    if !first.is_empty() {
        // Before the first request: nobody waits for a download that cannot be kept.
        cache.ensure_writable().await?;
    }
    for group in [first, last] {
        stream::iter(group)
            .for_each_concurrent(MIRRORS_AT_ONCE, |mirror| async move {
                let entry = &entries[mirror.position];
                let end = entry.run(mirror.request, cache, output).await;
                *entry.end.lock() = Some(end);
            })
            .await;
    }
    Ok(())
}

impl Entry {
    async fn run(&self, request: MirrorRequest, cache: &Cache, output: &OutputManager) -> End {
        let Self {
            namespace, name, ..
        } = self;
        let output = output.about(&format!("{namespace}/{name}"));
        match Box::pin(request.run(cache)).await {
            Ok(run) => {
                tell_failures(&run, &output);
                End {
                    report: MirrorReport::of_run(namespace, name, &run),
                    first_failure: run.failures().next().map(|(_, _, failure)| failure.clone()),
                }
            }
            Err(error) => {
                let failure = Failure::of(&error);
                output.warning(&failure.message);
                self.failed(failure)
            }
        }
    }

    fn failed(&self, failure: Failure) -> End {
        End {
            report: MirrorReport::of_failure(&self.namespace, &self.name, &failure),
            first_failure: Some(failure),
        }
    }
}

fn tell_failures(run: &RunReport, output: &OutputManager) {
    for (_, _, failure) in run.failures().take(MAX_TOLD) {
        output.warning(&failure.message);
    }
    let more = run.failures().count().saturating_sub(MAX_TOLD);
    if more > 0 {
        output.warning(format!("{more} more failures: --report FILE has them all"));
    }
}

/// The ends of all mirrors. What stopped the command stopped those that have none of their own.
fn ends(entries: Vec<Entry>, stopped_by: Option<&Error>) -> Vec<End> {
    let entries = entries.into_iter();
    entries
        .filter_map(|entry| {
            let end = entry.end.lock().take();
            end.or_else(|| Some(entry.failed(Failure::of(stopped_by?))))
        })
        .collect()
}

fn table(report: &Report) -> String {
    let header = [
        "MIRROR",
        "IMAGES",
        "UP TO DATE",
        "COPIED",
        "FAILED",
        "OUTCOME",
        "FIRST FAILURE",
    ];
    columns(header, report.mirrors.iter().map(row))
}

fn row(report: &MirrorReport) -> [String; 7] {
    let MirrorReport {
        namespace,
        name,
        outcome,
        failure: _,
        totals,
        images: _,
    } = report;
    let outcome = match outcome {
        MirrorOutcome::Succeeded => "succeeded",
        MirrorOutcome::PartlyFailed => "partly failed",
        MirrorOutcome::Failed => "failed",
        MirrorOutcome::Suspended => "suspended",
    };
    let failure = report.first_failure();
    [
        format!("{namespace}/{name}"),
        totals.total.to_string(),
        totals.up_to_date.to_string(),
        totals.copied.to_string(),
        totals.failed.to_string(),
        outcome.to_owned(),
        failure.map_or_else(String::new, |failure| failure.reason.to_owned()),
    ]
}

/// What the command comes to: an error if any image or mirror failed.
fn verdict(ends: Vec<End>) -> Result<()> {
    let totals = || ends.iter().map(|end| end.report.totals);
    let failed = totals().map(|totals| totals.failed).sum();
    let done: usize = totals()
        .map(|totals| totals.up_to_date + totals.copied)
        .sum();
    let failure = ends.into_iter().find_map(|end| end.first_failure);
    match failure {
        None => Ok(()),
        Some(failure) if done > 0 => Err(Error::SomeImagesFailed { failed, failure }),
        Some(failure) => Err(Error::ImagesFailed { failed, failure }),
    }
}
