//! The operator's figures for Prometheus. Labels hold only words from this program, never a name or a text from outside, so
//! the number of series is fixed. The library appends `_total` to counters itself.

use std::{sync::Arc, time::Instant};

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::output::Direction;

/// One label, whose values are words of this program.
type Label = [(&'static str, &'static str); 1];

/// The figures. Clones count into the same ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Counters {
    reconcile: Family<Label, Counter>,
    reconcile_duration_seconds: Histogram,
    jobs_running: Gauge,
    jobs_queued: Gauge,
    bytes: Family<Label, Counter>,
    blobs: Family<Label, Counter>,
    registry_retry: Counter,
    status_patches: Family<Label, Counter>,
    events: Family<Label, Counter>,
    scrubbed: Family<Label, Counter>,
}

impl Default for Counters {
    fn default() -> Self {
        // A reconcile makes no or few calls: from a millisecond to the limit of a call.
        const BUCKETS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 5.0, 10.0];
        Self {
            reconcile: Family::default(),
            reconcile_duration_seconds: Histogram::new(BUCKETS),
            jobs_running: Gauge::default(),
            jobs_queued: Gauge::default(),
            bytes: Family::default(),
            blobs: Family::default(),
            registry_retry: Counter::default(),
            status_patches: Family::default(),
            events: Family::default(),
            scrubbed: Family::default(),
        }
    }
}

impl Metrics {
    /// A reconcile ended; `result` is `ok` or `error`.
    pub(super) fn reconcile(&self, result: &'static str) {
        self.counters
            .reconcile
            .get_or_create(&[("result", result)])
            .inc();
    }

    /// Measures a reconcile until the value is dropped.
    pub(super) fn reconcile_timer(&self) -> impl Drop + use<> {
        Timer {
            histogram: self.counters.reconcile_duration_seconds.clone(),
            started: Instant::now(),
        }
    }

    /// A run waits for its turn until the value is dropped.
    pub(super) fn queued(&self) -> impl Drop + use<> {
        Held::new(&self.counters.jobs_queued)
    }

    /// A run copies until the value is dropped.
    pub(super) fn running(&self) -> impl Drop + use<> {
        Held::new(&self.counters.jobs_running)
    }

    /// Bytes of blobs travelled.
    pub(super) fn bytes(&self, direction: Direction, bytes: u64) {
        let direction = match direction {
            Direction::Download => "download",
            Direction::Upload => "upload",
            Direction::Extract => "extract",
        };
        self.counters
            .bytes
            .get_or_create(&[("direction", direction)])
            .inc_by(bytes);
    }

    /// A blob was done with: `downloaded`, `uploaded` or `exists`.
    pub(super) fn blob(&self, outcome: &'static str) {
        self.counters
            .blobs
            .get_or_create(&[("outcome", outcome)])
            .inc();
    }

    /// A registry operation is tried again.
    pub(super) fn retry(&self) {
        self.counters.registry_retry.inc();
    }

    /// A status was written or not: `succeeded`, `failed`, `timeout` or `dropped`.
    pub(super) fn status_patch(&self, result: &'static str) {
        self.counters
            .status_patches
            .get_or_create(&[("result", result)])
            .inc();
    }

    /// A blob of a cache was read again: `right` or `wrong`.
    pub(super) fn scrubbed(&self, result: &'static str) {
        self.counters
            .scrubbed
            .get_or_create(&[("result", result)])
            .inc();
    }

    /// An event was published or not: `succeeded`, `failed` or `dropped`.
    pub(super) fn event(&self, result: &'static str) {
        self.counters
            .events
            .get_or_create(&[("result", result)])
            .inc();
    }

    /// All figures in the text format.
    pub(super) fn text(&self) -> Result<String, std::fmt::Error> {
        let Counters {
            reconcile,
            reconcile_duration_seconds,
            jobs_running,
            jobs_queued,
            bytes,
            blobs,
            registry_retry,
            status_patches,
            events,
            scrubbed,
        } = &*self.counters;
        let mut registry = Registry::with_prefix("imagepusher");
        registry.register("reconcile", "Reconciles by result", reconcile.clone());
        registry.register(
            "reconcile_duration_seconds",
            "Time a reconcile took",
            reconcile_duration_seconds.clone(),
        );
        registry.register(
            "jobs_running",
            "Mirrors that are copied now",
            jobs_running.clone(),
        );
        registry.register(
            "jobs_queued",
            "Mirrors that wait for a free slot",
            jobs_queued.clone(),
        );
        registry.register(
            "bytes",
            "Bytes of blobs by direction, repeats included",
            bytes.clone(),
        );
        registry.register("blobs", "Blobs by outcome", blobs.clone());
        registry.register(
            "registry_retry",
            "Registry operations that were tried again",
            registry_retry.clone(),
        );
        registry.register(
            "status_patches",
            "Status writes by result",
            status_patches.clone(),
        );
        registry.register("events", "Kubernetes events by result", events.clone());
        registry.register(
            "cache_blobs_scrubbed",
            "Blobs of the caches that were read again, by result: right or wrong",
            scrubbed.clone(),
        );
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(text)
    }
}

struct Timer {
    histogram: Histogram,
    started: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.histogram.observe(self.started.elapsed().as_secs_f64());
    }
}

/// One more in a gauge for as long as it lives.
struct Held(Gauge);

impl Held {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_holds_what_was_counted() {
        let metrics = Metrics::default();
        metrics.reconcile("ok");
        metrics.bytes(Direction::Download, 7);
        metrics.blob("exists");
        metrics.status_patch("succeeded");
        metrics.retry();
        metrics.event("succeeded");
        let running = metrics.running();
        drop(metrics.queued());
        drop(metrics.reconcile_timer());
        let text = metrics.text().unwrap();
        for line in [
            "imagepusher_reconcile_total{result=\"ok\"} 1",
            "imagepusher_reconcile_duration_seconds_count 1",
            "imagepusher_bytes_total{direction=\"download\"} 7",
            "imagepusher_blobs_total{outcome=\"exists\"} 1",
            "imagepusher_status_patches_total{result=\"succeeded\"} 1",
            "imagepusher_registry_retry_total 1",
            "imagepusher_jobs_running 1",
            "imagepusher_jobs_queued 0",
            "imagepusher_events_total{result=\"succeeded\"} 1",
        ] {
            assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
        }
        drop(running);
        assert!(
            metrics
                .text()
                .unwrap()
                .contains("imagepusher_jobs_running 0")
        );
    }
}
