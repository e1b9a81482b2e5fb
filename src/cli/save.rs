//! `save`: from the cache into an archive.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    path::PathBuf,
};

use clap::{Args, ValueEnum, builder::FalseyValueParser};

use crate::{
    archive::{SaveFormat, SaveReport, SaveRequest, SaveTarget, save},
    cache::Cache,
    image::{self, ImageName, Platform},
    output::ByteSize,
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
    /// Replace the file if it exists
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

    pub(super) async fn run(self, screen: &Screen) -> Result<()> {
        let target = self.target()?;
        let cache = Cache::open(self.cache.cache_dir, screen.output().clone())?;
        let request = SaveRequest {
            images: self.source,
            format: self.format.into(),
            platform: self.platform,
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

    fn target(&self) -> Result<SaveTarget> {
        if self.file != STDOUT {
            return Ok(SaveTarget::File {
                path: PathBuf::from(&self.file),
                replace: self.force,
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
    lines.push(format!(
        "{}: images {}, blobs {}, {}",
        report.file,
        report.images.len(),
        report.blobs.len(),
        ByteSize(report.bytes)
    ));
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
