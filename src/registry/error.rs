//! What can go wrong between us and a registry. The name of a variant is the reason that users see in conditions, events
//! and reports; the message names the operation with its object and host, the reason, and the remedy.
//!
//! Nothing here can hold a credential: URLs appear as scheme and host only, causes as the text of the innermost one, and
//! what a registry says only as far as [`Answer`] lets it through.

use std::{error::Error as StdError, fmt, io, net::IpAddr, sync::Arc, time::Duration};

use http::StatusCode;

use crate::{
    error::{Class, Classified},
    image::{self, Digest, Tag},
};

use super::{
    answer::{Answer, shown},
    proxy::Proxy,
    retry::LONGEST_WAIT,
};

/// The room's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What was being done, to what, where: `read manifest library/app:1 at https://registry.example`. Follows "could not" in
/// messages and stands alone in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Operation(Arc<str>);

impl Operation {
    /// From a verb phrase without credentials.
    pub(crate) fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The same, by way of a proxy.
    pub(super) fn through(&self, proxy: &Proxy) -> Self {
        Self::new(format!("{self} through the proxy {proxy}"))
    }

    /// The phrase.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, formatter)
    }
}

/// Why an exchange failed: the text of the innermost cause. The layers around it say only "error sending request" and show
/// the whole URL, whose query may be a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Cause(String);

impl Cause {
    /// The innermost cause of an error.
    pub(super) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut innermost = error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        Self(shown(&innermost.to_string()))
    }

    /// An answer that tells the cause.
    pub(super) fn said(answer: &Answer) -> Self {
        Self(answer.to_string())
    }
}

/// Everything this room fails with.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
pub enum Error {
    // What the user gave.
    /// Not an address.
    #[error(
        "'{address}' is not the address of a registry: {reason}; expected [https://]host[:port], for example \
         https://registry.example:5000"
    )]
    InvalidAddress {
        /// What was given, escaped, without user and password.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The host of an address is none.
    #[error("'{address}' is not the address of a registry")]
    InvalidHost {
        /// What was given, escaped.
        address: String,
        /// What is wrong with it.
        source: image::Error,
    },
    /// A CA certificate, or our own certificate, cannot be used.
    #[error("the {what} for {host} cannot be used: {reason}; expected PEM text")]
    InvalidCertificate {
        /// Which of the certificates.
        what: &'static str,
        /// For which registry.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A proxy that cannot be used, from the environment or from a Secret.
    #[error(
        "{what} '{address}' cannot be used: {reason}; expected http[s]://host[:port], for example http://proxy.example:3128"
    )]
    InvalidProxy {
        /// Where it comes from: the name of a variable, or "the proxy".
        what: String,
        /// What was given, escaped, without user and password.
        address: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A user name, password or token holds characters that cannot be sent.
    #[error(
        "the credential for {host} cannot be sent: it contains control characters; check for a stray line break"
    )]
    InvalidCredential {
        /// For which registry.
        host: String,
    },
    /// A docker or podman configuration that cannot be read. Its text is never shown.
    #[error(
        "the registry credentials are not readable: {reason}; expected the JSON of a docker config.json"
    )]
    InvalidDockerConfig {
        /// What is wrong, without contents.
        reason: String,
    },
    /// A program that should know the credential is not there.
    #[error(
        "the login for {server} is to come from the program {program}, which is not installed: install it, or take it out of          credHelpers or credsStore in the login file"
    )]
    CredentialHelperMissing {
        /// The program.
        program: String,
        /// For which registry.
        server: String,
    },
    /// A program that should know the credential does not tell it. What it said is never shown.
    #[error(
        "the login for {server} is to come from the program {program}, and {reason}; to see why, run: echo {server} |          {program} get"
    )]
    CredentialHelperFailed {
        /// The program.
        program: String,
        /// For which registry.
        server: String,
        /// What went wrong.
        reason: &'static str,
    },
    /// There is no certificate authority to trust.
    #[error(
        "no CA certificates were found on this machine, so {host} cannot be verified: install the package \
         ca-certificates, set SSL_CERT_FILE, or give the registry's own CA"
    )]
    NoTrustedRoots {
        /// Which registry.
        host: String,
    },
    /// The HTTP client could not be set up.
    #[error("the HTTP client for {host} could not be set up")]
    ClientUnusable {
        /// Which registry.
        host: String,
        /// Why.
        source: Cause,
    },

    // The way there.
    /// The name has no address.
    #[error(
        "could not {operation}: there is no host of that name; check the spelling, or the DNS of this machine"
    )]
    HostNotFound {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: Cause,
    },
    /// Nobody listens there.
    #[error(
        "could not {operation}: the host is there, but nothing listens on that port; check the port, or start the registry"
    )]
    ConnectionRefused {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: Cause,
    },
    /// No connection in time.
    #[error("could not {operation}: no connection within {} s; check address, firewall and proxy", .limit.as_secs())]
    ConnectionTimedOut {
        /// What was being done.
        operation: Operation,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke.
    #[error("could not {operation}: the connection was lost")]
    ConnectionFailed {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: Cause,
    },
    /// Nothing moves any more, or next to nothing.
    #[error("could not {operation}: next to nothing was {} for {} s", if *.sending { "taken" } else { "received" }, .limit.as_secs())]
    TransferStalled {
        /// What was being done.
        operation: Operation,
        /// Whether the other side stopped reading rather than writing.
        sending: bool,
        /// How long was waited.
        limit: Duration,
    },
    /// The other side speaks plain HTTP.
    #[error(
        "could not {operation}: the other side does not speak TLS; if it is meant to speak plain HTTP, write http:// before \
         the host, or set insecure: true"
    )]
    NotTls {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: Cause,
    },
    /// The other side speaks TLS, and we did not.
    #[error(
        "could not {operation}: the other side wants TLS; write https:// before the host, or leave out insecure: true"
    )]
    TlsRequired {
        /// What was being done.
        operation: Operation,
    },
    /// TLS, but no agreement.
    #[error(
        "could not {operation}: the TLS handshake failed; check that the host is a registry with TLS 1.2 or newer, and whether it \
         wants a client certificate"
    )]
    TlsHandshakeFailed {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: Cause,
    },
    /// The registry's certificate is not good enough.
    #[error("could not {operation}: {reason}")]
    CertificateInvalid {
        /// What was being done.
        operation: Operation,
        /// What is wrong, and what to do.
        reason: &'static str,
        /// The verifier's words.
        source: Cause,
    },

    /// The registry wants a certificate from us, another than the one it got.
    #[error(
        "could not {operation}: the registry did not accept our client certificate, or wants one; give a certificate that it \
         trusts with its key, in certSecretRef or with --cert-file and --key-file"
    )]
    ClientCertificateRefused {
        /// What was being done.
        operation: Operation,
        /// The registry's words.
        source: Cause,
    },

    // The proxy on the way there.
    /// The proxy does not answer, or not as a proxy.
    #[error(
        "could not {operation}: the proxy cannot be reached; check its address, or except the registry's host from it"
    )]
    ProxyUnreachable {
        /// What was being done, with the proxy.
        operation: Operation,
        /// Why.
        source: Cause,
    },
    /// The proxy wants a login, or another than the one it got.
    #[error(
        "could not {operation}: the proxy asks for a login, or does not accept ours; check the user name and password \
         of the proxy"
    )]
    ProxyAuthenticationRequired {
        /// What was being done, with the proxy.
        operation: Operation,
    },
    /// The proxy does not let us through to the registry.
    #[error(
        "could not {operation}: the proxy does not let us through ({said}); check that the registry is reachable from there \
         and allowed, or except its host from the proxy"
    )]
    ProxyRefused {
        /// What was being done, with the proxy.
        operation: Operation,
        /// What the proxy answered.
        said: String,
        /// Whether it does not want to, rather than cannot.
        is_denied: bool,
    },

    // Who we are.
    /// Nobody is logged in, and the registry wants somebody.
    #[error(
        "could not {operation}: the registry asks for a login ({answer}); log in, or check that the name is right"
    )]
    AuthenticationRequired {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The login is not accepted.
    #[error(
        "could not {operation}: the login was not accepted ({answer}); check user name and password or token"
    )]
    AuthenticationFailed {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The token service is not one to be trusted with a credential.
    #[error(
        "could not {operation}: the registry sends us to {realm} for a token, and {reason}; nothing was sent there"
    )]
    TokenServiceRefused {
        /// What was being done.
        operation: Operation,
        /// Scheme and host of the service.
        realm: String,
        /// Why it is refused.
        reason: &'static str,
    },
    /// Known, but not allowed.
    #[error(
        "could not {operation}: access is denied ({answer}); this needs the permission {permission}"
    )]
    AccessDenied {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
        /// What would be needed.
        permission: &'static str,
    },

    // What is there.
    /// The registry does not have the manifest.
    #[error(
        "could not {operation}: the registry has no such manifest ({answer}); check name and tag"
    )]
    ManifestUnknown {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The registry does not have the repository.
    #[error(
        "could not {operation}: the registry has no such repository ({answer}); check the name, or create it there"
    )]
    RepositoryUnknown {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The registry does not have the blob.
    #[error(
        "could not {operation}: the registry has no such blob ({answer}); the image is incomplete there"
    )]
    BlobUnknown {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The registry misses parts of a manifest that is being pushed.
    #[error(
        "could not {operation}: the registry says that parts of it are missing there ({answer})"
    )]
    ManifestBlobUnknown {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
        /// Which parts, where it named them.
        missing: Vec<Digest>,
    },
    /// What answers is not a registry.
    #[error(
        "could not {operation}: what answers there is not a registry ({answer}); check host and port"
    )]
    NotARegistry {
        /// What was being done.
        operation: Operation,
        /// What it said.
        answer: Answer,
    },

    // What it refuses.
    /// The tag may not be moved.
    #[error(
        "could not {operation}: the tag exists with another content and is immutable ({answer}); choose another tag"
    )]
    TagImmutable {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The registry does not take this manifest.
    #[error("could not {operation}: the registry does not accept this manifest ({answer}){remedy}")]
    ManifestRejected {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
        /// What may help, as the end of the sentence; empty where nothing is known of the manifest.
        remedy: String,
    },
    /// The registry, or a proxy before it, does not take so much at once.
    #[error(
        "could not {operation}: it is too large for the registry or a proxy before it ({answer}); raise the limit there"
    )]
    RequestTooLarge {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The registry refuses, for a reason of its own.
    #[error("could not {operation}: the registry refuses it ({answer})")]
    RequestRefused {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// A redirect that is not followed.
    #[error(
        "could not {operation}: the registry points to {target}, which is not followed: {reason}"
    )]
    RedirectRefused {
        /// What was being done.
        operation: Operation,
        /// Scheme and host of the target.
        target: String,
        /// Why.
        reason: &'static str,
    },

    /// A host is at an address that is never asked.
    #[error(
        "could not {operation}: {host} is at {address}, {reason}; no connection was made, check the name and its DNS entry"
    )]
    AddressRefused {
        /// What was being done.
        operation: Operation,
        /// The host, as somebody named it.
        host: String,
        /// Where it is.
        address: IpAddr,
        /// Why nothing is asked there.
        reason: &'static str,
    },

    // What it cannot do now.
    /// Asked too often.
    #[error("could not {operation}: too many requests ({answer}); {}", comes_back(*.retry_after))]
    TooManyRequests {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
        /// How long to wait, where it was said.
        retry_after: Option<Duration>,
    },
    /// The registry fails.
    #[error("could not {operation}: the registry is not available ({answer})")]
    RegistryUnavailable {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
        /// How long to wait, where it was said.
        retry_after: Option<Duration>,
    },
    /// The registry's own storage fails.
    #[error(
        "could not {operation}: the registry accepted the request but its storage failed ({answer}); its owner must look at it"
    )]
    RegistryStorageFailed {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The registry's storage is used up.
    #[error(
        "could not {operation}: the storage quota at the registry is used up ({answer}); free space there or raise the quota"
    )]
    RegistryQuotaExceeded {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },
    /// The registry forgot an upload in the middle.
    #[error("could not {operation}: the registry lost the upload ({answer})")]
    UploadSessionLost {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
    },

    // What it sends.
    /// Others write the same list at the same time.
    #[error(
        "could not {operation}: others kept changing the list of referrers {tag} there at the same time; another attempt mostly \
         gets through"
    )]
    ReferrersContended {
        /// What was being done.
        operation: Operation,
        /// The tag of the list.
        tag: Tag,
    },
    /// Bytes are not what their digest says.
    #[error("could not {operation}: the content has the digest {actual}, not {expected}")]
    DigestMismatch {
        /// What was being done.
        operation: Operation,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A blob is longer or shorter than its manifest says.
    #[error("could not {operation}: it has {} bytes, not {expected}", if *.longer { "more".to_owned() } else { .actual.to_string() })]
    SizeMismatch {
        /// What was being done.
        operation: Operation,
        /// What the manifest says.
        expected: u64,
        /// What was received.
        actual: u64,
        /// Whether it went on beyond.
        longer: bool,
    },
    /// A manifest beyond all reason.
    #[error("could not {operation}: the manifest is larger than {} MiB", .limit >> 20)]
    ManifestTooLarge {
        /// What was being done.
        operation: Operation,
        /// The limit in bytes.
        limit: u64,
    },
    /// A list or token beyond all reason.
    #[error("could not {operation}: the answer is larger than {limit} bytes")]
    AnswerTooLarge {
        /// What was being done.
        operation: Operation,
        /// The limit in bytes.
        limit: u64,
    },
    /// A manifest that cannot be copied.
    #[error("could not {operation}")]
    ManifestUnusable {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: image::Error,
    },
    /// An answer that makes no sense.
    #[error("could not {operation}: the answer makes no sense: {problem} ({answer})")]
    UnexpectedAnswer {
        /// What was being done.
        operation: Operation,
        /// What the registry said.
        answer: Answer,
        /// What is wrong with it.
        problem: &'static str,
    },

    // Our side.
    /// The bytes to send cannot be read.
    #[error("could not {operation}: the bytes to send could not be read")]
    SourceUnreadable {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: io::Error,
    },
}

/// When to come back.
fn comes_back(retry_after: Option<Duration>) -> String {
    retry_after.map_or_else(
        || "try again later".to_owned(),
        |pause| format!("try again in {} s", pause.as_secs()),
    )
}

impl Error {
    /// How long the other side asked us to wait.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. }
            | Self::RegistryUnavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether trying again is pointless although the class says otherwise: a full quota does not empty itself.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::RegistryQuotaExceeded { .. })
    }

    /// Whether a body ended before all had come.
    pub(super) const fn is_too_short(&self) -> bool {
        matches!(self, Self::SizeMismatch { longer: false, .. })
    }

    /// Whether a refusal may be due to how much is asked at once. One for a long time is about a quota.
    pub(super) fn is_refusal_of_many(&self) -> bool {
        match self {
            Self::TooManyRequests { retry_after, .. } => {
                retry_after.is_none_or(|pause| pause <= LONGEST_WAIT)
            }
            Self::RegistryUnavailable { answer, .. } => {
                answer.status() == StatusCode::SERVICE_UNAVAILABLE
            }
            _ => false,
        }
    }

    /// Whether the exchange itself failed, without an answer.
    pub(super) const fn is_transport(&self) -> bool {
        matches!(
            self,
            Self::HostNotFound { .. }
                | Self::ConnectionRefused { .. }
                | Self::ConnectionTimedOut { .. }
                | Self::ConnectionFailed { .. }
                | Self::TransferStalled { .. }
                | Self::TlsHandshakeFailed { .. }
                | Self::ProxyUnreachable { .. }
                | Self::ProxyRefused { .. }
        )
    }
}

impl Classified for Error {
    #[deny(clippy::wildcard_enum_match_arm)]
    fn class(&self) -> Class {
        match self {
            Self::InvalidAddress { .. }
            | Self::InvalidHost { .. }
            | Self::InvalidCertificate { .. }
            | Self::InvalidProxy { .. }
            | Self::InvalidDockerConfig { .. }
            | Self::CredentialHelperMissing { .. }
            | Self::NoTrustedRoots { .. }
            | Self::ClientUnusable { .. } => Class::Config,
            Self::HostNotFound { .. }
            | Self::ConnectionRefused { .. }
            | Self::ConnectionTimedOut { .. }
            | Self::ConnectionFailed { .. }
            | Self::TransferStalled { .. }
            | Self::TlsHandshakeFailed { .. }
            | Self::ProxyUnreachable { .. }
            | Self::ProxyRefused {
                is_denied: false, ..
            }
            | Self::RegistryUnavailable { .. }
            | Self::UploadSessionLost { .. }
            // Eventual consistency: mostly there a moment later (registry rule M9).
            | Self::ManifestBlobUnknown { .. }
            | Self::ReferrersContended { .. } => Class::Network,
            // The cure lies in the Secret or the login file that holds it.
            Self::InvalidCredential { .. }
            | Self::CredentialHelperFailed { .. }
            | Self::AuthenticationRequired { .. }
            | Self::AuthenticationFailed { .. }
            | Self::TokenServiceRefused { .. }
            | Self::ClientCertificateRefused { .. }
            | Self::ProxyAuthenticationRequired { .. }
            | Self::AccessDenied { .. } => Class::Auth,
            Self::ManifestUnknown { .. }
            | Self::RepositoryUnknown { .. }
            | Self::BlobUnknown { .. }
            | Self::NotARegistry { .. } => Class::NotFound,
            // Not `Config`: the registry's owner may mend these while our resource stays as it is.
            Self::NotTls { .. }
            | Self::TlsRequired { .. }
            | Self::CertificateInvalid { .. }
            | Self::ProxyRefused {
                is_denied: true, ..
            }
            | Self::TagImmutable { .. }
            | Self::ManifestRejected { .. }
            | Self::RequestTooLarge { .. }
            | Self::RequestRefused { .. }
            | Self::RedirectRefused { .. }
            | Self::AddressRefused { .. }
            | Self::ManifestTooLarge { .. }
            | Self::AnswerTooLarge { .. }
            | Self::UnexpectedAnswer { .. } => Class::Policy,
            Self::TooManyRequests { .. } => Class::RateLimited,
            Self::RegistryStorageFailed { .. } | Self::RegistryQuotaExceeded { .. } => {
                Class::RegistryStorage
            }
            Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => Class::Digest,
            Self::ManifestUnusable { source, .. } => source.class(),
            Self::SourceUnreadable { .. } => Class::Storage,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::ManifestUnusable { source, .. } => source.reason(),
            other => other.into(),
        }
    }
}
