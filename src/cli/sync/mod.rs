//! `sync`: carries out the mirrors of files, once.

mod course;
mod files;
mod report_file;

use std::path::PathBuf;

use clap::{Args, builder::FalseyValueParser};

use crate::{
    cache::CacheLimit,
    mirror::{Documents, PreparedMirror, Surroundings},
    registry::Hosts,
};

use super::{
    Result,
    error::Usage,
    logins,
    options::{CacheOptions, cache_limit},
    render::Screen,
};
use report_file::ReportFile;

/// Carry out the ImageMirrors of files once
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher sync -f mirrors.yaml
  docker-image-pusher sync -f mirrors/ -f secrets.yaml --report report.json
  kubectl get imagemirrors,secrets -o yaml | docker-image-pusher sync -f - --docker-auth

The files are those for kubectl, Secrets included. Everything is checked before anything starts.")]
pub(super) struct Sync {
    /// File with ImageMirror, Secret and ServiceAccount documents, folder of such files, or - for standard input; may be
    /// given several times
    #[arg(
        short,
        long,
        env = "IMAGE_PUSHER_FILE",
        required = true,
        value_name = "FILE|DIR|-"
    )]
    file: Vec<PathBuf>,
    /// Write what became of each image to this file, as JSON
    #[arg(long, env = "IMAGE_PUSHER_REPORT", value_name = "FILE")]
    report: Option<PathBuf>,
    /// Folder that paths of archives are relative to [default: the folder of the file]
    #[arg(long, env = "IMAGE_PUSHER_ARCHIVE_DIR", value_name = "DIR")]
    archive_dir: Option<PathBuf>,
    /// Use the logins of docker and podman for ServiceAccounts that the files do not hold
    #[arg(long, env = "IMAGE_PUSHER_DOCKER_AUTH", value_parser = FalseyValueParser::new(), help_heading = "Access")]
    docker_auth: bool,
    #[command(flatten)]
    cache: CacheOptions,
    /// Size that the cached blobs may have, such as 20Gi, or a part of the volume, such as 80%; images that all their
    /// destinations have leave when room is needed
    #[arg(long, env = "IMAGE_PUSHER_CACHE_MAX_SIZE", value_name = "SIZE|PERCENT", value_parser = cache_limit)]
    cache_max_size: Option<CacheLimit>,
}

/// Mirrors that are ready, and where they go.
#[derive(Debug)]
pub(super) struct PreparedSync {
    mirrors: Vec<PreparedMirror>,
    report: Option<ReportFile>,
    cache_dir: PathBuf,
    cache_limit: Option<CacheLimit>,
}

impl Sync {
    /// Reads and checks everything. Apart from the work, since it may wait for standard input.
    pub(super) fn prepare(&self, screen: &Screen) -> Result<PreparedSync> {
        let documents = self.documents()?;
        for document in documents.passed_over() {
            screen.output().warning(document.to_string());
        }
        let is_empty = documents.mirror_count() == 0;
        let logins = self.docker_auth.then(|| logins::logins(screen.output()));
        let surroundings = Surroundings {
            logins: logins.transpose()?,
            archives: self.archive_dir.clone(),
            hosts: Hosts::default(),
        };
        let mirrors = documents
            .prepare(&surroundings, screen.output())
            .map_err(|problems| Usage::FilesInvalid { problems })?;
        if is_empty {
            let files: Vec<_> = self
                .file
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            let files = files.join(", ");
            return Err(Usage::NoMirrors { files }.into());
        }
        Ok(PreparedSync {
            mirrors,
            report: self.report.as_deref().map(ReportFile::create).transpose()?,
            cache_dir: self.cache.cache_dir.clone(),
            cache_limit: self.cache_max_size,
        })
    }

    fn documents(&self) -> Result<Documents> {
        let mut documents = Documents::default();
        for path in &self.file {
            files::read(path, &mut documents)?;
        }
        Ok(documents)
    }
}
