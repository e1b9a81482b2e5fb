//! What the operator answers: counters for columns, the first images and the last failures, never more than 16 KiB
//! ([`super::bounded`]). Numbers are signed, because unsigned formats draw warnings (operator rule C3); an absent value is
//! left out, never null (CRD finding F31).

#![expect(
    unreachable_pub,
    reason = "KubeSchema repeats each struct inside a function and keeps its visibility"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The observed generation of a mirror that nobody looked at yet.
pub(super) const NOTHING_OBSERVED: i64 = -1;

/// What the operator says about a mirror.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
// The default makes waiters see "nothing observed yet" on a fresh object (operator rule C6).
#[schemars(extend("default" = {"observedGeneration": -1}))]
pub struct ImageMirrorStatus {
    /// Generation of the spec that this status speaks of; -1 while none was looked at.
    // Sent in every patch: once sent and then omitted, server-side apply removes it (CRD finding F27).
    #[serde(default = "nothing_observed")]
    #[schemars(range(min = -1))]
    pub observed_generation: i64,
    /// Ready; Reconciling and Stalled are present only while they are True.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Names the copies that this status speaks of: an edit that asks for the same ones keeps it. Absent while the spec is
    /// wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub run_key: Option<String>,
    /// The value of the annotation requestedAt that was acted upon last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub last_handled_reconcile_at: Option<String>,
    /// The value of the annotation cancel that was acted upon last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub last_handled_cancel_at: Option<String>,
    /// When the last run ended, whatever its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync_time: Option<Time>,
    /// When the last run ended that left all images at all destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_successful_sync_time: Option<Time>,
    /// When the next run begins; absent when none is planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_sync_time: Option<Time>,
    /// Figures of the last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Images that all destinations have, of all images, for example 12/14.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synced: Option<String>,
    /// Status of the condition Ready, for field selectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// How far the running copy is; absent while nothing is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The first 20 images of the last run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub images: Vec<ImageStatus>,
    /// The last 10 failures of the last run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    pub failures: Vec<FailureStatus>,
    /// What each destination has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub destinations: Vec<DestinationStatus>,
    /// ConfigMaps of the same namespace that hold the whole report of the last run, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub report_ref: Vec<ReportReference>,
}

const fn nothing_observed() -> i64 {
    NOTHING_OBSERVED
}

impl Default for ImageMirrorStatus {
    fn default() -> Self {
        Self {
            observed_generation: NOTHING_OBSERVED,
            conditions: Vec::new(),
            run_key: None,
            last_handled_reconcile_at: None,
            last_handled_cancel_at: None,
            last_sync_time: None,
            last_successful_sync_time: None,
            next_sync_time: None,
            summary: None,
            synced: None,
            ready: None,
            progress: None,
            images: Vec::new(),
            failures: Vec::new(),
            destinations: Vec::new(),
            report_ref: Vec::new(),
        }
    }
}

/// Figures of a run, in images.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Images the mirror selects.
    #[schemars(range(min = 0))]
    pub total: i32,
    /// Images that were at all destinations before the run.
    #[schemars(range(min = 0))]
    pub up_to_date: i32,
    /// Images that were copied to at least one destination and are at all of them now.
    #[schemars(range(min = 0))]
    pub copied: i32,
    /// Images that at least one destination lacks.
    #[schemars(range(min = 0))]
    pub failed: i32,
}

/// How far a running copy is. Bytes done never fall, also when a transfer starts again.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Images the mirror selects.
    #[schemars(range(min = 0))]
    pub images_total: i32,
    /// Bytes that arrived or were there already.
    #[schemars(range(min = 0))]
    pub bytes_done: i64,
    /// Bytes known to be needed; grows while manifests are read.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Bytes per second over the last seconds.
    #[schemars(range(min = 0))]
    pub bytes_per_second: i64,
    /// Seconds left at this rate; absent while the rate is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub eta_seconds: Option<i64>,
    /// The same in short, for the column: 71%.
    #[schemars(length(max = 32))]
    pub text: String,
}

/// One image of the last run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// The image as selected: repository with tag or digest.
    #[schemars(length(max = 512))]
    pub source: String,
    /// Digest of its manifest; absent when that could not be learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 135))]
    pub digest: Option<String>,
    /// `UpToDate`, `Copied` or `Failed`.
    pub outcome: ImageOutcome,
}

/// How an image came out of a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageOutcome {
    /// All destinations had it.
    UpToDate,
    /// At least one destination got it, and all have it now.
    Copied,
    /// At least one destination lacks it.
    Failed,
}

/// One failure of the last run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FailureStatus {
    /// The image as selected: repository with tag or digest.
    #[schemars(length(max = 512))]
    pub source: String,
    /// Name of the destination; absent when the source failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub destination: Option<String>,
    /// The error's own name, for example `AuthenticationFailed`.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// What happened, at most 512 bytes.
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// What one destination has.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DestinationStatus {
    /// Name of the destination.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Images it has, of all images, for example 12/14.
    #[schemars(length(max = 32))]
    pub synced: String,
}

/// Names a ConfigMap of the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReportReference {
    /// Name of the ConfigMap; its key report.json holds a part of the report.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
