//! `verify`: reads the cache again and moves away what is wrong.

use clap::{Args, builder::FalseyValueParser};

use crate::{
    cache::{Cache, Fault, VerifyProgress, VerifyReport, VerifyRequest},
    output::{ByteSize, OutputManager, Transfer},
};

use super::{
    Error, Result,
    options::{CacheOptions, NamedImages},
    render::Screen,
};

/// Read the images in the cache again, compare them with their digests, and move away what is wrong
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher verify
  docker-image-pusher verify -r library/ubuntu -t 22.04
  docker-image-pusher verify --dry-run --output json")]
pub(super) struct Verify {
    #[command(flatten)]
    only: NamedImages,
    /// Show what is wrong, move nothing
    #[arg(long, env = "IMAGE_PUSHER_DRY_RUN", value_parser = FalseyValueParser::new())]
    dry_run: bool,
    #[command(flatten)]
    cache: CacheOptions,
}

impl Verify {
    pub(super) async fn run(self, screen: &Screen) -> Result<()> {
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        let request = VerifyRequest {
            only: self.only.named(),
            dry_run: self.dry_run,
        };
        let directory = cache.directory().display().to_string();
        let bar = Bar::new(screen.output().clone(), &directory);
        let report = cache.verify(&request, |told| bar.show(told)).await?;
        bar.complete();
        if report.unwritable {
            screen.output().warning(format!(
                "the cache {directory} cannot be written: what is wrong stays where it is"
            ));
        }
        screen.result(&text(&report), &report)?;
        match report.faults.len() {
            0 => Ok(()),
            faults => Err(Error::CacheDamaged { directory, faults }),
        }
    }
}

/// Shows the reading as that of one file.
struct Bar<'a> {
    output: OutputManager,
    directory: &'a str,
    reading: std::cell::OnceCell<Transfer>,
}

impl<'a> Bar<'a> {
    const fn new(output: OutputManager, directory: &'a str) -> Self {
        Self {
            output,
            directory,
            reading: std::cell::OnceCell::new(),
        }
    }

    fn show(&self, told: VerifyProgress) {
        match told {
            VerifyProgress::Planned { bytes, .. } => {
                self.reading
                    .get_or_init(|| self.output.reading(self.directory, Some(bytes)));
            }
            VerifyProgress::Read { bytes } => {
                if let Some(reading) = self.reading.get() {
                    reading.advance(bytes);
                }
            }
        }
    }

    fn complete(self) {
        if let Some(reading) = self.reading.into_inner() {
            reading.complete();
        }
    }
}

/// A line for each fault, and the figures.
fn text(report: &VerifyReport) -> String {
    let mut lines: Vec<String> = report.faults.iter().map(line).collect();
    let stale = report.stale_partials.iter();
    lines.extend(stale.map(|path| {
        format!("{path} is a download that nobody went on with; the command clean removes it")
    }));
    lines.push(format!(
        "verified {} blobs and {} manifests, {}: {} faults",
        report.blobs,
        report.manifests,
        ByteSize(report.bytes),
        report.faults.len()
    ));
    lines.join("\n")
}

fn line(fault: &Fault) -> String {
    let problem: &str = fault.problem.into();
    let moved = if fault.quarantined {
        "; moved to .quarantine"
    } else {
        ""
    };
    let images = match fault.images.as_slice() {
        [] => String::new(),
        images => format!("; needed by {}", images.join(", ")),
    };
    format!("{problem}: {} {}{moved}{images}", fault.path, fault.detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Problem, VERIFY_REPORT_VERSION};

    #[test]
    fn a_fault_is_told_with_its_place_what_became_of_it_and_who_needs_it() {
        let fault = Fault {
            path: "blobs/sha256/ab".into(),
            digest: None,
            problem: Problem::WrongSize,
            detail: "has 2 bytes instead of 3".into(),
            images: vec!["app:1".into(), "app:2".into()],
            quarantined: true,
        };
        let report = VerifyReport {
            version: VERIFY_REPORT_VERSION,
            blobs: 4,
            bytes: 2048,
            manifests: 3,
            faults: vec![fault],
            stale_partials: vec!["blobs/.partial/x".into()],
            unwritable: false,
        };
        let expected = "\
WrongSize: blobs/sha256/ab has 2 bytes instead of 3; moved to .quarantine; needed by app:1, app:2
blobs/.partial/x is a download that nobody went on with; the command clean removes it
verified 4 blobs and 3 manifests, 2.0 KiB: 1 faults";
        assert_eq!(text(&report), expected);
    }
}
