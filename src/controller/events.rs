//! Kubernetes events: one per transition of a mirror's verdict, for better as for worse, none for progress (operator rule
//! K17). Publishing is best effort: the status says the same, and it is never dropped.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;

use crate::api::{
    ImageMirrorStatus,
    condition::{READY, RECONCILING, find},
};

use super::{
    call::{CALL_LIMIT, within},
    metrics::Metrics,
    target::Target,
};

/// Who reports.
const CONTROLLER: &str = "imagepusher.io/imagemirror-controller";
/// What was done, in every event.
const ACTION: &str = "Mirror";
/// Events that wait to be published. Transitions are rare: more of them at once means that the API server is away.
const QUEUE_LENGTH: usize = 256;

/// What an event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    /// Whether somebody should look.
    pub(super) warning: bool,
    /// The reason of Ready.
    pub(super) reason: String,
    /// What Ready says.
    pub(super) note: String,
}

/// What is worth an event between two statuses of one mirror.
pub(super) fn transition(
    before: &ImageMirrorStatus,
    after: &ImageMirrorStatus,
) -> Option<Announcement> {
    let was = find(&before.conditions, READY);
    let is = find(&after.conditions, READY)?;
    let status_was = was.map_or("Unknown", |was| was.status.as_str());
    let worked = |status: &ImageMirrorStatus| find(&status.conditions, RECONCILING).is_some();
    let warning = match is.status.as_str() {
        // It was not, or it was and something new was copied.
        "True" if !worked(after) && (status_was != "True" || worked(before)) => false,
        "False" if status_was != "False" || was.is_none_or(|was| was.reason != is.reason) => true,
        _ => return None,
    };
    let Condition {
        reason, message, ..
    } = is;
    Some(Announcement {
        warning,
        reason: reason.clone(),
        note: message.clone(),
    })
}

/// The handle by which events are handed over. Clones share the queue.
#[derive(Clone)]
pub(super) struct Events {
    queue: mpsc::Sender<(Target, Announcement)>,
    metrics: Metrics,
}

/// The other end of the queue.
pub(super) struct Publisher {
    queue: mpsc::Receiver<(Target, Announcement)>,
    recorder: Recorder,
    metrics: Metrics,
}

/// Both ends; `instance` names this process among others of its kind.
pub(super) fn events(
    client: Client,
    instance: Option<String>,
    metrics: Metrics,
) -> (Events, Publisher) {
    let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
    let reporter = Reporter {
        controller: CONTROLLER.to_owned(),
        instance,
    };
    let events = Events {
        queue: sender,
        metrics: metrics.clone(),
    };
    let publisher = Publisher {
        queue: receiver,
        recorder: Recorder::new(client, reporter),
        metrics,
    };
    (events, publisher)
}

impl Events {
    /// Hands an event over. Returns at once.
    pub(super) fn announce(&self, target: &Target, announcement: Announcement) {
        let Announcement {
            warning,
            reason,
            note,
        } = &announcement;
        if *warning {
            tracing::warn!(mirror = %target.name, reason, "{note}");
        } else {
            tracing::info!(mirror = %target.name, reason, "{note}");
        }
        if self.queue.try_send((target.clone(), announcement)).is_err() {
            self.metrics.event("dropped");
        }
    }
}

impl Publisher {
    /// Publishes until the last handle is dropped.
    pub(super) async fn run(mut self) {
        while let Some((target, announcement)) = self.queue.recv().await {
            let Announcement {
                warning,
                reason,
                note,
            } = announcement;
            let event = Event {
                type_: if warning {
                    EventType::Warning
                } else {
                    EventType::Normal
                },
                reason,
                note: Some(note),
                action: ACTION.to_owned(),
                secondary: None,
            };
            let reference = target.reference();
            match within(CALL_LIMIT, self.recorder.publish(&event, &reference)).await {
                Ok(()) => self.metrics.event("succeeded"),
                Err(error) => {
                    self.metrics.event("failed");
                    let error = error.into_error("publish an event");
                    tracing::warn!(mirror = %target.name, "{error}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;
    use crate::api::condition::{Truth, condition};

    fn status(ready: Option<(Truth, &str)>, working: bool) -> ImageMirrorStatus {
        let now = Time(Timestamp::UNIX_EPOCH);
        let mut conditions = Vec::new();
        if let Some((truth, reason)) = ready {
            conditions.push(condition(READY, truth, reason, "text", 1, &now));
        }
        if working {
            conditions.push(condition(
                RECONCILING,
                Truth::True,
                "Progressing",
                "text",
                1,
                &now,
            ));
        }
        ImageMirrorStatus {
            conditions,
            ..ImageMirrorStatus::default()
        }
    }

    #[test]
    fn transitions_are_announced_and_nothing_else_is() {
        use Truth::{False, True, Unknown};
        let cases = [
            // (before, working before, after, working after, announced as warning)
            (None, false, (Unknown, "Progressing"), true, None),
            (
                Some((Unknown, "Progressing")),
                true,
                (Unknown, "Progressing"),
                true,
                None,
            ),
            (
                Some((Unknown, "Progressing")),
                true,
                (True, "Succeeded"),
                false,
                Some(false),
            ),
            (None, false, (True, "Succeeded"), false, Some(false)),
            (
                Some((True, "Succeeded")),
                false,
                (True, "Succeeded"),
                false,
                None,
            ),
            (
                Some((True, "Succeeded")),
                false,
                (True, "Succeeded"),
                true,
                None,
            ),
            (
                Some((True, "Succeeded")),
                true,
                (True, "Succeeded"),
                false,
                Some(false),
            ),
            (
                Some((True, "Succeeded")),
                false,
                (False, "SecretNotFound"),
                false,
                Some(true),
            ),
            (
                Some((False, "SecretNotFound")),
                false,
                (False, "SecretNotFound"),
                false,
                None,
            ),
            (
                Some((False, "SecretNotFound")),
                false,
                (False, "AccessDenied"),
                false,
                Some(true),
            ),
            (
                Some((False, "SecretNotFound")),
                false,
                (False, "SecretNotFound"),
                true,
                None,
            ),
            (
                Some((False, "ProgressingWithRetry")),
                true,
                (False, "ProgressingWithRetry"),
                true,
                None,
            ),
            (
                Some((False, "AccessDenied")),
                false,
                (True, "Succeeded"),
                false,
                Some(false),
            ),
        ];
        for (before, worked, after, works, expected) in cases {
            let announced = transition(&status(before, worked), &status(Some(after), works));
            assert_eq!(
                announced.map(|announcement| announcement.warning),
                expected,
                "{before:?} {worked} to {after:?} {works}"
            );
        }
    }
}
