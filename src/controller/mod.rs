//! The operator: watches `ImageMirror` resources, has them copied, and says in their status what became of it.
//!
//! It supervises and never copies itself; the engine does, behind the seam in `engine.rs`. Start with `reconcile.rs`, one
//! look at one mirror; what it does is decided in `decide.rs` and put into words in `verdict.rs` and `present.rs`, all
//! three pure. Around them: `supervise.rs` owns the runs, `writer.rs` the statuses on their way, `cluster.rs` the API server.
//! This file puts the parts together and takes them down again.

mod admin;
mod annotations;
mod call;
mod claims;
mod cluster;
mod decide;
mod engine;
mod error;
mod events;
mod executor;
#[cfg(test)]
mod fixtures;
mod guard;
mod keeper;
mod metrics;
mod present;
mod progress;
mod reconcile;
mod reports;
#[cfg(test)]
mod scenarios;
mod schedule;
mod secrets;
mod signals;
mod supervise;
mod target;
mod verdict;
mod watch;
mod writer;

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{CacheLimit, Tenants},
    registry::Loopback,
};

pub use error::{Error, Result};

use admin::{Admin, Readiness};
use cluster::ClusterStatuses;
use engine::Engine;
use executor::Executor;
use keeper::Keeper;
use metrics::Metrics;
use reconcile::{Book, Context};
use reports::ClusterReports;
use schedule::Jitter;
use secrets::ClusterSecrets;
use signals::Signals;
use supervise::{Supervisor, Trigger, panic_text};
use target::Name;
use writer::StatusWriter;

/// How long cancelled copies may take to let go: each ends at its next await. With the four seconds of the status writer and
/// the ten that `main` gives to files this stays below the 20 s that a stop may take (operator rule K19).
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What the operator is told at its start.
#[derive(Debug, Clone)]
pub struct ControllerOptions {
    /// Folder of the cache.
    pub cache_dir: PathBuf,
    /// What its blobs must not outgrow.
    pub cache_limit: CacheLimit,
    /// How often its blobs are read again; never if it is zero.
    pub scrub_interval: Duration,
    /// Folder below which each namespace has its archives, if there are any.
    pub archive_dir: Option<PathBuf>,
    /// Whether mirrors may name registries on this machine, and what registries point to may be here.
    pub allow_loopback: bool,
    /// Mirrors that are copied at once; at least 1.
    pub concurrency: usize,
    /// Where `/livez`, `/readyz` and `/metrics` are answered.
    pub metrics_addr: SocketAddr,
    /// Namespaces whose mirrors count; empty for all.
    pub watch_namespaces: Vec<String>,
    /// By how many percent intervals differ at random; below 100.
    pub interval_jitter_percentage: u8,
    /// Name of this process in events, in a pod the pod's name.
    pub instance: Option<String>,
}

impl ControllerOptions {
    fn check(&self) -> Result<()> {
        let text = if self.concurrency == 0 {
            "the concurrency must be at least 1"
        } else if self.interval_jitter_percentage >= 100 {
            "the jitter percentage must be below 100"
        } else {
            return Ok(());
        };
        Err(Error::OptionInvalid {
            text: text.to_owned(),
        })
    }

    /// What listens on this machine for the operator alone is no business of whoever writes mirrors (registry rule R7).
    const fn loopback(&self) -> Loopback {
        if self.allow_loopback {
            Loopback::Allowed
        } else {
            Loopback::Refused
        }
    }

    /// One entry per watch: a namespace, or `None` for the whole cluster.
    fn scopes(&self) -> Vec<Option<String>> {
        if self.watch_namespaces.is_empty() {
            return vec![None];
        }
        let mut scopes: Vec<_> = self.watch_namespaces.iter().cloned().map(Some).collect();
        scopes.sort();
        scopes.dedup();
        scopes
    }
}

/// Runs the operator until a signal comes.
///
/// # Errors
/// When it cannot start (each message names the remedy), when a part that must live ends, and when a second signal cuts the
/// shutdown short.
pub async fn run(options: ControllerOptions) -> Result<()> {
    options.check()?;
    let signals = Signals::listen()?;
    let client = cluster::connect().await?;
    prepare_folder(&options.cache_dir).await?;
    let caches = Tenants::new(options.cache_dir.clone(), options.cache_limit);
    let engine = Arc::new(Executor::new(
        Arc::clone(&caches),
        options.archive_dir.clone(),
        options.loopback(),
    ));
    let metrics = Metrics::default();
    let keeper = Keeper {
        caches: Arc::clone(&caches),
        scrub_interval: options.scrub_interval,
        metrics: metrics.clone(),
    };
    // Whatever it does can be given up at any time.
    let _keeping = JoinSet::from_iter([keeper.run()]);
    let ended = supervise(options, client, engine, metrics, signals).await;
    // What is lost here is found in the files again.
    tokio::time::timeout(DRAIN_LIMIT, caches.flush()).await.ok();
    ended
}

/// Makes the cache folder, so that readiness has something to look at.
async fn prepare_folder(folder: &Path) -> Result<()> {
    let made = tokio::fs::create_dir_all(folder).await;
    made.map_err(|source| Error::CacheUnusable {
        path: folder.to_owned(),
        source,
    })?;
    admin::writable(folder)
}

/// Watches and supervises until a signal comes.
async fn supervise(
    options: ControllerOptions,
    client: Client,
    engine: Arc<dyn Engine>,
    metrics: Metrics,
    mut signals: Signals,
) -> Result<()> {
    let scopes = options.scopes();
    for scope in &scopes {
        cluster::check_served(&client, scope.as_deref()).await?;
    }
    warn_of_outdated_crd(&client).await;
    let readiness = Readiness::new(options.cache_dir.clone());
    let admin = Admin::bind(options.metrics_addr, readiness.clone(), metrics.clone()).await?;
    if let Some(address) = admin.address() {
        tracing::info!("probes and metrics are answered at {address}");
    }

    let watching = CancellationToken::new();
    let serving = CancellationToken::new();
    let (watches, intakes) = watch::open_watches(scopes);
    let writer = StatusWriter::new();
    let (events, publisher) =
        events::events(client.clone(), options.instance.clone(), metrics.clone());
    let trigger = {
        let watches = watches.clone();
        let trigger: Trigger = Arc::new(move |name: &Name| watches.look_again(name));
        trigger
    };
    let supervisor = Supervisor::new(
        options.concurrency,
        Arc::new(ClusterSecrets::new(client.clone())),
        Arc::new(ClusterReports::new(client.clone())),
        Arc::clone(&trigger),
        metrics.clone(),
    );
    let context = Arc::new(Context {
        client: client.clone(),
        engine,
        supervisor,
        writer: writer.clone(),
        events,
        metrics: metrics.clone(),
        jitter: Jitter::new(options.interval_jitter_percentage),
        now: || whole_second(Timestamp::now()),
        sample: fastrand::f64,
        book: Book::default(),
        look_again: trigger,
        surveyed: CancellationToken::new(),
    });

    let mut parts = JoinSet::new();
    parts.spawn(named(
        "the port for probes and metrics",
        admin.run(serving.clone()),
    ));
    parts.spawn(named("the publisher of events", publisher.run()));
    let sink = Arc::new(ClusterStatuses {
        client: client.clone(),
        watches: watches.clone(),
    });
    let mut writing = JoinSet::new();
    writing.spawn(named(
        "the writer of statuses",
        writer.run(sink, metrics.clone(), serving.clone()),
    ));
    let mut intaking = JoinSet::new();
    for intake in intakes {
        let watch = intake.run(client.clone(), Arc::clone(&context), watching.clone());
        intaking.spawn(named("the watch of ImageMirrors", watch));
    }
    let listed = watches.clone();
    let ready = readiness.clone();
    let surveyor = Arc::clone(&context);
    let becoming_ready = async move {
        listed.wait_until_listed().await;
        surveyor.survey(&listed.all());
        ready.set_listed(true);
        tracing::info!("ready");
        std::future::pending::<()>().await;
    };

    let ended = tokio::select! {
        () = signals.next() => None,
        () = becoming_ready => None,
        Some(part) = parts.join_next() => Some(part),
        Some(part) = writing.join_next() => Some(part),
        Some(part) = intaking.join_next() => Some(part),
    };
    if let Some(part) = ended {
        let part = part.unwrap_or("a part of the operator");
        return Err(Error::PartEnded { part });
    }
    tracing::info!("stopping: no new copies, running ones are cancelled");
    readiness.set_listed(false);
    let drain = async {
        watching.cancel();
        context.supervisor.shut_down(DRAIN_LIMIT).await;
        while intaking.join_next().await.is_some() {}
        serving.cancel();
        while writing.join_next().await.is_some() {}
    };
    tokio::select! {
        () = drain => Ok(()),
        () = signals.next() => Err(Error::Aborted),
    }
}

/// Says at the start what would fail with every status later.
async fn warn_of_outdated_crd(client: &Client) {
    let missing = cluster::missing_status_fields(client).await;
    if !missing.is_empty() {
        let text = format!("it lacks {}", missing.join(", "));
        tracing::error!("{}", Error::CrdOutdated { text });
    }
}

/// The name of a part that ended, by itself or by a panic: an operator without it must not stay "ready".
async fn named(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    // Nothing of the part is used afterwards: the process ends.
    if let Err(panic) = AssertUnwindSafe(part).catch_unwind().await {
        tracing::error!("{name} ended by a bug: {}", panic_text(&*panic));
    }
    name
}

/// Statuses hold whole seconds; a finer clock would make what was written differ from what is compared with it.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_is_known_by_its_name() {
        for panics in [false, true] {
            let mut parts = JoinSet::new();
            parts.spawn(named("the writer", async move {
                assert!(!panics, "index out of bounds");
            }));
            assert_eq!(parts.join_next().await.unwrap().unwrap(), "the writer");
        }
    }
}
