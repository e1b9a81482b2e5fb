//! Every call to the API server ends within a time of ours (operator rule K3): the client's own retries go on for minutes,
//! and its reads have no limit at all.

use std::{future::Future, time::Duration};

use super::error::{Error, Result, api_error};

/// Longest wait for an answer. The API server answers in milliseconds and gives up itself after 60 s; whoever waits longer
/// than this holds up other mirrors for an answer that is of no use.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(10);

/// What became of a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The client or the server says no.
    #[error("{0}")]
    Refused(#[source] kube::Error),
    /// Nobody answered.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
}

impl CallError {
    /// The room's error for a call that was to do `operation`.
    pub(super) fn into_error(self, operation: &str) -> Error {
        match self {
            Self::Refused(error) => api_error(operation, &error),
            Self::Silent(limit) => Error::ApiServerSilent {
                operation: operation.to_owned(),
                limit,
            },
        }
    }

    /// The server's answer, if there is one.
    pub(super) fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Refused(kube::Error::Api(status)) => Some(status),
            Self::Refused(_) | Self::Silent(_) => None,
        }
    }
}

/// Waits for a call, but no longer than `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = kube::Result<T>> + Send,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(CallError::Refused),
        Err(_) => Err(CallError::Silent(limit)),
    }
}
