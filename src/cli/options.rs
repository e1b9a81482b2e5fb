//! Options that several commands share.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, ValueEnum, builder::FalseyValueParser};
use secrecy::SecretString;

use crate::{
    api::parse_duration,
    archive::{Compression, Method},
    cache::CacheLimit,
    image::{Reference, Repository},
    output::parse_quantity,
    transfer::Tar,
};

use super::error::Usage;

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct GlobalOptions {
    /// Show errors only
    #[arg(short, long, global = true, env = "IMAGE_PUSHER_QUIET", value_parser = FalseyValueParser::new())]
    quiet: bool,
    /// Show details; twice, also each request
    #[arg(short, long, global = true, env = "IMAGE_PUSHER_VERBOSE", action = ArgAction::Count)]
    verbose: u8,
    /// Form of log lines on standard error
    #[arg(long, global = true, env = "IMAGE_PUSHER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Form of progress and results: text, or one JSON object per line
    #[arg(long, global = true, env = "IMAGE_PUSHER_OUTPUT", value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// What a user wants to know.
    Normal,
    /// Details of the work.
    Verbose,
    /// Each request too.
    Debug,
}

impl GlobalOptions {
    /// Whether it asks for less and for more.
    pub(super) const fn contradicts_itself(&self) -> bool {
        self.quiet && self.verbose > 0
    }

    /// Whether results are for programs.
    pub(super) const fn is_json(&self) -> bool {
        matches!(self.output, OutputFormat::Json)
    }

    /// How much is said.
    pub const fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, 1) => Verbosity::Verbose,
            (false, _) => Verbosity::Debug,
        }
    }
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Form of progress and results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// One JSON object per line on standard output.
    Json,
}

/// Where the cache is.
#[derive(Debug, Clone, Args)]
pub(super) struct CacheOptions {
    /// Folder of the cache
    #[arg(
        long,
        env = "IMAGE_PUSHER_CACHE_DIR",
        default_value = ".cache",
        value_name = "DIR"
    )]
    pub(super) cache_dir: PathBuf,
}

/// Which images of the cache a command is about; without options all of them.
#[derive(Debug, Args)]
pub(super) struct NamedImages {
    /// Only images of this repository, as `list` shows it
    #[arg(
        short,
        long,
        env = "IMAGE_PUSHER_REPOSITORY",
        value_name = "REPOSITORY"
    )]
    repository: Option<Repository>,
    /// Only this tag or digest of the repository
    #[arg(
        short = 't',
        long,
        env = "IMAGE_PUSHER_REFERENCE",
        value_name = "TAG|DIGEST",
        requires = "repository"
    )]
    reference: Option<Reference>,
}

impl NamedImages {
    /// The repository that is named, and the image in it.
    pub(super) fn named(self) -> Option<(Repository, Option<Reference>)> {
        self.repository
            .map(|repository| (repository, self.reference))
    }
}

/// The grammar of durations in the resource, so that one spelling serves everywhere.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .ok_or_else(|| "expected a duration such as 90s, 30m, 24h or 1h30m".to_owned())
}

/// A largest size for the cache: bytes as Kubernetes writes them, or a part of the volume.
pub(super) fn cache_limit(text: &str) -> Result<CacheLimit, String> {
    let percent = text.strip_suffix('%').map(str::parse::<u8>);
    match percent {
        Some(Ok(percent @ 1..=100)) => Ok(CacheLimit::Percent(percent)),
        Some(_) => Err("expected 1% to 100%".to_owned()),
        None => parse_quantity(text)
            .map(|bytes| CacheLimit::Bytes(bytes.get()))
            .ok_or_else(|| {
                "expected a size such as 20Gi or 500M, or a part of the volume such as 80%"
                    .to_owned()
            }),
    }
}

/// What is done to plain layers of an archive.
#[derive(Debug, Clone, Args)]
pub(super) struct CompressionOptions {
    /// Compress the plain layers of the archive: smaller uploads, another digest [default: layers stay as they are]
    #[arg(
        long = "compress",
        env = "IMAGE_PUSHER_COMPRESS",
        value_enum,
        value_name = "METHOD"
    )]
    method: Option<CompressionMethod>,
    /// How hard to compress: gzip 1 to 9, zstd 1 to 19 [default: 2 for gzip, 3 for zstd]
    #[arg(
        long = "compress-level",
        env = "IMAGE_PUSHER_COMPRESS_LEVEL",
        value_name = "LEVEL"
    )]
    level: Option<u8>,
}

/// A form of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompressionMethod {
    /// Known by every registry and engine
    Gzip,
    /// Smaller and faster; needs engines of 2021 or later
    Zstd,
}

impl CompressionOptions {
    /// Whether layers are to be compressed.
    pub(super) const fn is_wanted(&self) -> bool {
        self.method.is_some()
    }

    /// What the options say together.
    pub(super) fn compression(&self) -> Result<Option<Compression>, Usage> {
        let method = match self.method {
            Some(CompressionMethod::Gzip) => Method::Gzip,
            Some(CompressionMethod::Zstd) => Method::Zstd,
            None if self.level.is_some() => return Err(Usage::LevelWithoutMethod),
            None => return Ok(None),
        };
        let Some(level) = self.level else {
            return Ok(Some(Compression::new(method)));
        };
        let compression = Compression::with_level(method, level);
        compression
            .map(Some)
            .ok_or(Usage::LevelUnknown { method, level })
    }
}

/// Which image at which registry, and how to get in.
#[derive(Debug, Clone, Args)]
pub(super) struct RegistryOptions {
    /// Repository, for example library/ubuntu or registry.example:5000/team/app
    #[arg(
        short,
        long,
        env = "IMAGE_PUSHER_REPOSITORY",
        value_name = "REPOSITORY"
    )]
    pub(super) repository: Repository,
    /// Tag, or digest such as sha256:...
    #[arg(
        short = 't',
        long,
        env = "IMAGE_PUSHER_REFERENCE",
        value_name = "TAG|DIGEST"
    )]
    pub(super) reference: Reference,
    /// Address of the registry. Without scheme: https, for a loopback host http [default: the host of the repository, else
    /// Docker Hub]
    #[arg(long, env = "IMAGE_PUSHER_REGISTRY", value_name = "ADDRESS")]
    pub(super) registry: Option<String>,
    /// User name at the registry [default: from the docker and podman login files]
    #[arg(
        short,
        long,
        env = "IMAGE_PUSHER_USERNAME",
        value_name = "NAME",
        help_heading = "Access"
    )]
    pub(super) username: Option<String>,
    #[command(flatten)]
    pub(super) password: PasswordOptions,
    /// Do not verify the registry's certificate
    #[arg(long, env = "IMAGE_PUSHER_SKIP_TLS", value_parser = FalseyValueParser::new(), help_heading = "Access")]
    pub(super) skip_tls: bool,
    #[command(flatten)]
    pub(super) certificates: CertificateOptions,
}

/// Which certificates are trusted and shown, beside those in the folders of docker and podman.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct CertificateOptions {
    /// File with CA certificates (PEM) to trust beside those of the system
    #[arg(
        long = "ca-file",
        env = "IMAGE_PUSHER_CA_FILE",
        value_name = "FILE",
        help_heading = "Access"
    )]
    pub(super) authority: Option<PathBuf>,
    /// File with our own certificate (PEM), for a registry that asks for one
    #[arg(
        long = "cert-file",
        env = "IMAGE_PUSHER_CERT_FILE",
        value_name = "FILE",
        help_heading = "Access"
    )]
    pub(super) certificate: Option<PathBuf>,
    /// File with the key (PEM) of our own certificate
    #[arg(
        long = "key-file",
        env = "IMAGE_PUSHER_KEY_FILE",
        value_name = "FILE",
        help_heading = "Access"
    )]
    pub(super) key: Option<PathBuf>,
}

/// How a password is given.
#[derive(Debug, Clone, Args)]
pub(super) struct PasswordOptions {
    /// Password at the registry; others can read it in the list of processes
    #[arg(
        short,
        long,
        env = "IMAGE_PUSHER_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        help_heading = "Access"
    )]
    pub(super) password: Option<SecretString>,
    /// Read the password from standard input
    #[arg(long, env = "IMAGE_PUSHER_PASSWORD_STDIN", value_parser = FalseyValueParser::new(), help_heading = "Access")]
    pub(super) password_stdin: bool,
}

/// Retries in a row where nobody says otherwise.
pub(super) const DEFAULT_RETRY_ATTEMPTS: u32 = 3;

/// What names standard input where a file is asked for.
pub(super) const STDIN: &str = "-";

/// The tar that an option names.
pub(super) fn tar_of(file: &str) -> Tar {
    if file == STDIN {
        Tar::Stdin
    } else {
        Tar::File(file.into())
    }
}
