//! `save`: from the cache into an archive.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, IsTerminal},
    num::NonZeroU64,
    os::fd::AsFd,
    path::PathBuf,
};

use clap::{Args, ValueEnum, builder::FalseyValueParser};

use crate::{
    archive::{SaveFormat, SaveReport, SaveRequest, SaveTarget, carried, save},
    cache::Cache,
    image::{self, Digest, ImageName, Platform},
    output::{ByteSize, parse_quantity},
};

use super::{
    Error, Result,
    error::Usage,
    options::{CacheOptions, STDIN},
    render::Screen,
};

/// The file that stands for standard output.
const STDOUT: &str = STDIN;

/// Save images of the cache into one archive
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher save -s library/ubuntu:22.04 -f ubuntu.tar
  docker-image-pusher save -s team/app:1.0 -s team/tool:2.1 -f images.tar
  docker-image-pusher save -s team/app:1.0 -f images.tar --split-size 4Gi
  docker-image-pusher save -s team/app:1.1 -f next.tar --since report-of-1.0.json
  docker-image-pusher save -s team/app:1.0 --format docker --platform linux/amd64 -f - | docker load

Whole images with all their platforms, byte for byte as they are in the cache, in an archive that extract, skopeo, podman and
containerd read; --format docker makes one for docker load. Equal images give equal bytes.")]
pub(super) struct Save {
    /// Image in the cache, as name:tag or name@digest; a name alone means its tag latest. May be given several times
    #[arg(
        short,
        long,
        env = "IMAGE_PUSHER_SOURCE",
        value_name = "NAME[:TAG|@DIGEST]",
        required = true,
        value_delimiter = ',',
        value_parser = image_name
    )]
    source: Vec<ImageName>,
    /// The archive; - writes to standard output
    #[arg(short, long, env = "IMAGE_PUSHER_FILE", value_name = "FILE")]
    file: String,
    /// Layout of the archive: oci, or docker for docker load, with one platform of each image
    #[arg(long, env = "IMAGE_PUSHER_FORMAT", value_enum, default_value_t = Format::Oci)]
    format: Format,
    /// One platform of images that have several [default: all of them]
    #[arg(
        long,
        env = "IMAGE_PUSHER_PLATFORM",
        value_name = "OS/ARCHITECTURE[/VARIANT]"
    )]
    platform: Option<Platform>,
    /// Write parts of at most this size, FILE.000, FILE.001 and so on, and FILE.sha256 with their checksums: bytes, or a number
    /// with Ki, Mi, Gi, k, M or G
    #[arg(long, env = "IMAGE_PUSHER_SPLIT_SIZE", value_name = "SIZE", value_parser = size)]
    split_size: Option<NonZeroU64>,
    /// Leave out layers that an earlier archive carries: what its save printed with --output json, in a file. Only for a cache
    /// that the earlier archive is extracted into first. May be given several times
    #[arg(long, env = "IMAGE_PUSHER_SINCE", value_name = "REPORT")]
    since: Vec<PathBuf>,
    /// Replace the file, or the parts, if they exist
    #[arg(long, env = "IMAGE_PUSHER_FORCE", value_parser = FalseyValueParser::new())]
    force: bool,
    #[command(flatten)]
    cache: CacheOptions,
}

/// The layouts by the names users know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Oci,
    Docker,
}

impl From<Format> for SaveFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Oci => Self::Oci,
            Format::Docker => Self::Docker,
        }
    }
}

/// The size of a part.
fn size(text: &str) -> Result<NonZeroU64, &'static str> {
    parse_quantity(text).ok_or("expected a size such as 4Gi or 650M")
}

/// A name as docker reads it: without tag it is the tag latest.
fn image_name(text: &str) -> Result<ImageName, image::Error> {
    match text.parse() {
        Err(image::Error::MissingReference { .. }) => format!("{text}:latest").parse(),
        parsed => parsed,
    }
}

impl Save {
    /// Whether standard output is to hold an archive and results.
    pub(super) fn writes_output_twice(&self, results_are_json: bool) -> bool {
        results_are_json && self.file == STDOUT
    }

    /// Whether layers are to be left out of an archive that cannot do without.
    pub(super) fn leaves_out_of_docker(&self) -> bool {
        !self.since.is_empty() && self.format == Format::Docker
    }

    /// Whether standard output is to hold several files.
    pub(super) fn splits_output(&self) -> bool {
        self.split_size.is_some() && self.file == STDOUT
    }

    pub(super) async fn run(self, screen: &Screen) -> Result<()> {
        let earlier = self.earlier()?;
        let target = self.target()?;
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        let request = SaveRequest {
            images: self.source,
            format: self.format.into(),
            platform: self.platform,
            earlier,
        };
        let report = save(&cache, &request, target, screen.output()).await?;
        let text = summary(&report);
        if self.file == STDOUT {
            // Standard output is the archive's.
            screen.output().info(&text);
            return Ok(());
        }
        screen.result(&text, &report)
    }

    /// What the archives of the reports carry.
    fn earlier(&self) -> Result<BTreeSet<Digest>, Usage> {
        let mut earlier = BTreeSet::new();
        for path in &self.since {
            let text = fs::read(path).map_err(|source| Usage::FileUnreadable {
                path: path.clone(),
                option: "--since",
                source,
            })?;
            let carried = carried(&text).map_err(|reason| Usage::SavedReportInvalid {
                path: path.clone(),
                reason,
            })?;
            earlier.extend(carried);
        }
        Ok(earlier)
    }

    fn target(&self) -> Result<SaveTarget> {
        if self.file != STDOUT {
            let (path, replace) = (PathBuf::from(&self.file), self.force);
            return Ok(match self.split_size {
                Some(size) => SaveTarget::Parts {
                    path,
                    size,
                    replace,
                },
                None => SaveTarget::File { path, replace },
            });
        }
        let stdout = io::stdout();
        if stdout.is_terminal() {
            return Err(Usage::ArchiveToTerminal.into());
        }
        // Without the buffer of Rust's own, which looks for ends of lines.
        let stdout = stdout
            .as_fd()
            .try_clone_to_owned()
            .map_err(Error::OutputFailed)?;
        Ok(SaveTarget::Stream(Box::new(File::from(stdout))))
    }
}

fn summary(report: &SaveReport) -> String {
    let mut lines: Vec<String> = report
        .images
        .iter()
        .map(|image| format!("saved {} {}", image.name, image.digest))
        .collect();
    let parts = match (report.parts.first(), report.parts.last()) {
        (Some(first), Some(last)) => {
            let count = report.parts.len();
            format!(", parts {count}: {} to {}", first.file, last.file)
        }
        _ => String::new(),
    };
    lines.push(format!(
        "{}: images {}, blobs {}, {}{parts}",
        report.file,
        report.images.len(),
        report.blobs.len(),
        ByteSize(report.bytes)
    ));
    if !report.relies.is_empty() {
        let bytes = report.relies.iter().map(|blob| blob.size).sum();
        lines.push(format!(
            "left out, since earlier archives carry them: layers {}, {}",
            report.relies.len(),
            ByteSize(bytes)
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tag_means_latest() {
        for (text, name) in [
            ("app", "app:latest"),
            ("localhost:5000/team/app", "localhost:5000/team/app:latest"),
            ("app:1", "app:1"),
        ] {
            assert_eq!(image_name(text).unwrap().to_string(), name);
        }
        assert!(image_name("App").is_err());
    }
}
