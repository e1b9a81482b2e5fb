//! What can be wrong with a command, and the errors of the rooms that commands pass on.

use std::path::PathBuf;

use crate::{
    archive::{self, Method},
    cache, controller,
    error::{Class, Classified, handlers},
    image::{self, Host},
    mirror::Problem,
    registry,
    transfer::{self, Failure},
};

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with the options, found before anything starts.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Usage {
    /// The name of the image and `--registry` disagree.
    #[error(
        "the repository names the host {host}, --registry names {registry}: leave one of them out, or make them the same"
    )]
    RegistryConflict {
        /// Host in `--repository`.
        host: Host,
        /// Host of `--registry`.
        registry: Host,
    },
    /// A user name without a password.
    #[error(
        "--username needs a password: give it with --password-stdin or in the variable IMAGE_PUSHER_PASSWORD"
    )]
    PasswordMissing,
    /// A password without a user name.
    #[error("a password needs --username (or the variable IMAGE_PUSHER_USERNAME)")]
    UsernameMissing,
    /// Standard input could not be read, or is not a password.
    #[error("--password-stdin could not read a password from standard input: {reason}")]
    PasswordUnreadable {
        /// What is wrong.
        reason: String,
    },
    /// Half a name for an image of an archive.
    #[error(
        "--repository and --reference name an image only together: give both, or leave both out"
    )]
    NameIncomplete,
    /// What is to be pushed is neither a file nor a name.
    #[error(
        "{path} is neither a file nor the name of an image in the cache, as name:tag or name@digest"
    )]
    SourceUnknown {
        /// What was given.
        path: String,
        /// Why it is no name.
        #[source]
        source: image::Error,
    },
    /// An archive would go to a terminal.
    #[error(
        "an archive is not for a terminal: give a file with -f, or send standard output elsewhere"
    )]
    ArchiveToTerminal,
    /// An image of an archive was chosen, but no archive is given.
    #[error(
        "--image chooses one of an archive's images, but {source_name} names one in the cache: leave --image out"
    )]
    ImageWithoutArchive {
        /// What `--source` says.
        source_name: String,
    },
    /// Compression for what is no archive.
    #[error(
        "--compress is for the layers of an archive, but {source_name} names an image in the cache, which is sent as it is: leave \
         --compress out"
    )]
    CompressionWithoutArchive {
        /// What `--source` says.
        source_name: String,
    },
    /// How hard to compress, but not with what.
    #[error("--compress-level needs --compress gzip or --compress zstd beside it")]
    LevelWithoutMethod,
    /// The method of compression has no such level.
    #[error(
        "--compress-level {level} is none of {method}: give one from {} to {}",
        method.levels().start(), method.levels().end()
    )]
    LevelUnknown {
        /// What `--compress` says.
        method: Method,
        /// What `--compress-level` says.
        level: u8,
    },
    /// A file given by an option cannot be read.
    #[error("could not read {path}, given with {option}")]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// The option that named it.
        option: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A report of an earlier archive is none.
    #[error("{path}, given with --since, is no report of an archive: {reason}")]
    SavedReportInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error(
        "{given} needs {missing} beside it: our own certificate is of no use without its key, nor the key without it"
    )]
    ClientCertificateIncomplete {
        /// The option or file that is there.
        given: String,
        /// The option or file that is not.
        missing: String,
    },
    /// A folder with certificates, or a file in it, cannot be read.
    #[error("could not read {path}, where docker and podman keep certificates for this registry")]
    CertificatesUnreadable {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A login file cannot be read.
    #[error("could not read the login file {path}")]
    LoginFileUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// The options that make a client are wrong: its address or its certificates.
    #[error("the registry cannot be used as given")]
    Access(#[source] registry::Error),
    /// A file with credentials is broken.
    #[error("could not use the credentials file {path}")]
    CredentialsUnreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: registry::Error,
    },
    /// Files of mirrors are wrong.
    #[error("nothing was started, since this is wrong:\n{}", lines(.problems))]
    FilesInvalid {
        /// Everything that is wrong, by file and place.
        problems: Vec<Problem>,
    },
    /// Files of mirrors hold none.
    #[error("there is no ImageMirror in {files}: check what was given with -f")]
    NoMirrors {
        /// The files and folders.
        files: String,
    },
    /// The place of a report is none.
    #[error("--report {path} cannot be written: {reason}")]
    ReportTarget {
        /// The place.
        path: PathBuf,
        /// Why, and what would be right.
        reason: &'static str,
    },
    /// A report cannot be written to its folder.
    #[error("--report {path} cannot be written")]
    ReportUnwritable {
        /// The report.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Why a command failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    /// The options are wrong.
    #[error(transparent)]
    Usage(#[from] Usage),
    /// The copy failed.
    #[error(transparent)]
    Transfer(#[from] transfer::Error),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// No archive was written.
    #[error(transparent)]
    Save(#[from] archive::SaveError),
    /// The operator failed.
    #[error(transparent)]
    Controller(#[from] controller::Error),
    /// No image of any mirror is where it should be.
    #[error("{}", failed_images(*.failed, .failure))]
    ImagesFailed {
        /// How many images failed; none where mirrors could not be carried out at all.
        failed: usize,
        /// The first failure.
        failure: Failure,
    },
    /// Some images failed, others are where they should be.
    #[error("{}", failed_images(*.failed, .failure))]
    SomeImagesFailed {
        /// How many images failed.
        failed: usize,
        /// The first failure.
        failure: Failure,
    },
    /// The report could not be written.
    #[error("could not write the report {path}")]
    ReportFailed {
        /// The report.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Files of the cache are not what they should be.
    #[error(
        "{faults} {} in the cache {directory}; pull the images that need them again",
        if *faults == 1 { "fault" } else { "faults" }
    )]
    CacheDamaged {
        /// The folder.
        directory: String,
        /// How many.
        faults: usize,
    },
    /// Other runs work on images that were to be removed.
    #[error(
        "{images} {} in the cache {directory} stay, since other runs work on them; try again when they are done",
        if *images == 1 { "image" } else { "images" }
    )]
    CachedImagesInUse {
        /// The folder.
        directory: String,
        /// How many.
        images: usize,
    },
    /// Standard output could not be written.
    #[error("could not write to standard output")]
    OutputFailed(#[source] std::io::Error),
    /// The user interrupted the command.
    #[error("interrupted; nothing half-written is left, run the same command again to go on")]
    Interrupted,
}

impl Error {
    /// Whether work had begun: before, an error is one of usage.
    pub fn happened_at_work(&self) -> bool {
        match self {
            Self::Usage(_) => false,
            // Which image of an archive is meant shows only when it is looked into; nothing was kept by then.
            Self::Transfer(transfer::Error::Extract(source)) => source.class() != Class::Config,
            // The same for what is to be saved.
            Self::Save(source) => source.class() != Class::Config,
            _ => true,
        }
    }

    /// What is wrong with files, each with its place.
    pub const fn problems(&self) -> Option<&Vec<Problem>> {
        match self {
            Self::Usage(Usage::FilesInvalid { problems }) => Some(problems),
            _ => None,
        }
    }

    /// The exit code of a command that ends with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::SomeImagesFailed { .. } => handlers::EXIT_PARTLY_FAILED,
            Self::ImagesFailed { .. } => handlers::EXIT_FAILED,
            other => handlers::exit_code(other.class(), other.happened_at_work()),
        }
    }
}

fn failed_images(failed: usize, failure: &Failure) -> String {
    let message = &failure.message;
    match failed {
        0 => message.clone(),
        1 => format!("an image failed: {message}"),
        failed => format!("{failed} images failed, the first one: {message}"),
    }
}

impl Classified for Usage {
    fn class(&self) -> Class {
        Class::Config
    }

    #[deny(clippy::wildcard_enum_match_arm)]
    fn reason(&self) -> &'static str {
        match self {
            Self::Access(error) | Self::CredentialsUnreadable { source: error, .. } => {
                error.reason()
            }
            Self::RegistryConflict { .. }
            | Self::PasswordMissing
            | Self::UsernameMissing
            | Self::PasswordUnreadable { .. }
            | Self::NameIncomplete
            | Self::ArchiveToTerminal
            | Self::SourceUnknown { .. }
            | Self::ImageWithoutArchive { .. }
            | Self::CompressionWithoutArchive { .. }
            | Self::LevelWithoutMethod
            | Self::LevelUnknown { .. }
            | Self::FileUnreadable { .. }
            | Self::SavedReportInvalid { .. }
            | Self::FilesInvalid { .. }
            | Self::NoMirrors { .. }
            | Self::ReportTarget { .. }
            | Self::ReportUnwritable { .. }
            | Self::ClientCertificateIncomplete { .. }
            | Self::CertificatesUnreadable { .. }
            | Self::LoginFileUnreadable { .. } => self.into(),
        }
    }
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::Usage(error) => error.class(),
            Self::Transfer(error) => error.class(),
            Self::Cache(error) => error.class(),
            Self::Save(error) => error.class(),
            Self::Controller(error) => error.class(),
            Self::ImagesFailed { failure, .. } | Self::SomeImagesFailed { failure, .. } => {
                failure.class
            }
            Self::OutputFailed(_)
            | Self::ReportFailed { .. }
            | Self::CacheDamaged { .. }
            | Self::CachedImagesInUse { .. } => Class::Storage,
            Self::Interrupted => Class::Cancelled,
        }
    }

    #[deny(clippy::wildcard_enum_match_arm)]
    fn reason(&self) -> &'static str {
        match self {
            Self::Usage(error) => error.reason(),
            Self::Transfer(error) => error.reason(),
            Self::Cache(error) => error.reason(),
            Self::Save(error) => error.reason(),
            Self::Controller(error) => error.reason(),
            Self::ImagesFailed { .. }
            | Self::SomeImagesFailed { .. }
            | Self::ReportFailed { .. }
            | Self::CacheDamaged { .. }
            | Self::CachedImagesInUse { .. }
            | Self::OutputFailed(_)
            | Self::Interrupted => self.into(),
        }
    }
}
