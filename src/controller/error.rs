//! What can end the operator or one reconcile, and how errors of the API server are put into words.
//!
//! Troubles of a mirror are no errors here: they become its status.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::error::{Class, Classified};

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the operator, or one of its calls to the API server, failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    /// Neither a kubeconfig nor a service account is there.
    #[error(
        "no way to reach the API server was found: set KUBECONFIG, or run in a pod with a service account"
    )]
    NoCluster(#[source] Box<kube::config::InferConfigError>),
    /// The configuration is there, but no client can be made of it.
    #[error("the client for the API server could not be set up: {0}")]
    ClientInvalid(String),
    /// The API server does not know `ImageMirror`.
    #[error(
        "the API server does not serve ImageMirrors: install the CRD with \
         `docker-image-pusher crd | kubectl apply --server-side -f -`"
    )]
    CrdMissing,
    /// The operator's account may not do what it must.
    #[error(
        "the API server refused to {operation}: {text}; apply the ClusterRole in deploy/kustomize/base"
    )]
    AccessDenied {
        /// What was asked, as a verb phrase.
        operation: String,
        /// The server's words.
        text: String,
    },
    /// A call failed otherwise.
    #[error("could not {operation}: {text}")]
    ApiServer {
        /// What was asked, as a verb phrase.
        operation: String,
        /// What went wrong.
        text: String,
    },
    /// A call was not answered in time (operator rule K3).
    #[error("could not {operation}: no answer from the API server within {} s", limit.as_secs())]
    ApiServerSilent {
        /// What was asked, as a verb phrase.
        operation: String,
        /// How long the answer was waited for.
        limit: Duration,
    },
    /// The CRD that is installed lacks what the operator writes (CRD finding F30).
    #[error(
        "the installed CRD is older than this operator, no status can be written: {text}; install the current one with \
         `docker-image-pusher crd | kubectl apply --server-side -f -`"
    )]
    CrdOutdated {
        /// What is missing.
        text: String,
    },
    /// The place of a report is taken.
    #[error(
        "the ConfigMap {name} is not owned by this mirror and stays untouched: remove it, or give the mirror another name"
    )]
    ReportNotWritten {
        /// The ConfigMap.
        name: String,
    },
    /// A bug of ours.
    #[error("looking at the mirror ended by a bug of this program: {text}")]
    LookPanicked {
        /// What the panic said.
        text: String,
    },
    /// The port for probes and metrics is not to be had.
    #[error("could not listen at {address} for probes and metrics")]
    AdminAddress {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder of the cache is missing or not writable.
    #[error("the cache folder {} cannot be used", path.display())]
    CacheUnusable {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The cache could not be opened.
    #[error("the cache could not be opened: {text}")]
    CacheBroken {
        /// What the cache said.
        text: String,
        /// The class of its error.
        class: Class,
    },
    /// Options contradict each other or are out of bounds.
    #[error("{text}")]
    OptionInvalid {
        /// What is wrong and what would be right.
        text: String,
    },
    /// The process cannot hear signals.
    #[error("the signals that stop the operator cannot be caught")]
    Signals(#[source] std::io::Error),
    /// A second signal came during the shutdown.
    #[error("stopped at once by a second signal; the next start copies what is still missing")]
    Aborted,
    /// A part that must live as long as the operator ended.
    #[error("{part} ended unexpectedly")]
    PartEnded {
        /// Which part.
        part: &'static str,
    },
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::NoCluster(_)
            | Self::ClientInvalid(_)
            | Self::CrdMissing
            | Self::CrdOutdated { .. }
            | Self::AdminAddress { .. }
            | Self::OptionInvalid { .. }
            | Self::Signals(_) => Class::Config,
            Self::AccessDenied { .. } => Class::Auth,
            Self::ReportNotWritten { .. } => Class::Policy,
            Self::ApiServer { .. }
            | Self::LookPanicked { .. }
            | Self::ApiServerSilent { .. }
            | Self::PartEnded { .. } => Class::Network,
            Self::CacheUnusable { .. } => Class::Storage,
            Self::CacheBroken { class, .. } => *class,
            Self::Aborted => Class::Cancelled,
        }
    }

    fn reason(&self) -> &'static str {
        self.into()
    }
}

/// What a failed call says to people. The `Display` of kube's error would print the whole `Status` object (CRD finding
/// F34).
pub(super) fn api_text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server answered {}", status.code),
        // Its text already holds its causes (kube-rs/kube#2021), unlike ours.
        other => other.to_string(),
    }
}

/// Judges a failed call.
pub(super) fn api_error(operation: &str, error: &kube::Error) -> Error {
    let (operation, text) = (operation.to_owned(), api_text(error));
    match error {
        kube::Error::Api(status) if status.is_forbidden() => {
            Error::AccessDenied { operation, text }
        }
        kube::Error::Api(status) if status.message.contains("field not declared in schema") => {
            Error::CrdOutdated { text }
        }
        _ => Error::ApiServer { operation, text },
    }
}
