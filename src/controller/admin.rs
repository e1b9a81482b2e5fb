//! One port for probes and metrics: `/livez`, `/readyz`, `/metrics`.
//!
//! Alive means that this process answers; ready, that it knows its objects and can write to its cache. A drain turns
//! readiness off and leaves liveness alone (operator rule L5).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use rustix::fs::Access;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::error::handlers;

use super::{
    error::{Error, Result},
    metrics::Metrics,
};

/// The media type of the text format that Prometheus asks for.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long the volume of the cache may take to answer: less than the second that a kubelet waits by default, so that it
/// gets to hear why.
const CHECK_LIMIT: Duration = Duration::from_millis(800);

/// A look at the folder of the cache. It may block.
type Check = Arc<dyn Fn() -> Result<()> + Send + Sync>;

/// Whether the operator is ready, as the parts that know it say.
#[derive(Clone)]
pub(super) struct Readiness {
    listed: Arc<AtomicBool>,
    check: Check,
    /// One check at a time: on a volume that hangs, each probe would cost a thread for good.
    checking: Arc<Semaphore>,
}

impl Readiness {
    /// Not ready yet.
    pub(super) fn new(cache_dir: PathBuf) -> Self {
        Self::with_check(Arc::new(move || writable(&cache_dir)))
    }

    fn with_check(check: Check) -> Self {
        Self {
            listed: Arc::default(),
            check,
            checking: Arc::new(Semaphore::new(1)),
        }
    }

    /// The first list of all mirrors has arrived, or the drain begins.
    pub(super) fn set_listed(&self, listed: bool) {
        self.listed.store(listed, Ordering::Relaxed);
    }

    /// What stands in the way.
    async fn obstacle(&self) -> Option<String> {
        if !self.listed.load(Ordering::Relaxed) {
            return Some("the list of ImageMirrors has not arrived".to_owned());
        }
        match tokio::time::timeout(CHECK_LIMIT, self.check()).await {
            Ok(checked) => checked.err(),
            Err(_) => Some(format!(
                "the volume of the cache has not answered for {} ms",
                CHECK_LIMIT.as_millis()
            )),
        }
    }

    /// Looks at the cache beside the threads that serve: a volume can hang for minutes.
    async fn check(&self) -> Result<(), String> {
        let turn = Arc::clone(&self.checking).acquire_owned().await;
        let check = Arc::clone(&self.check);
        let checking = tokio::task::spawn_blocking(move || {
            // Until the volume has answered, even when nobody waits for it any more.
            let _turn = turn;
            check()
        });
        match checking.await {
            Ok(checked) => checked.map_err(|error| handlers::message(&error)),
            Err(error) => Err(format!("the cache could not be checked: {error}")),
        }
    }
}

/// Whether the folder exists and takes new files.
pub(super) fn writable(folder: &Path) -> Result<()> {
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        Error::CacheUnusable {
            path: folder.to_owned(),
            source: error.into(),
        }
    })
}

/// Answers until told to stop.
pub(super) struct Admin {
    listener: TcpListener,
    state: AdminState,
}

#[derive(Clone)]
struct AdminState {
    readiness: Readiness,
    metrics: Metrics,
}

impl Admin {
    /// Takes the port.
    pub(super) async fn bind(
        address: SocketAddr,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::AdminAddress { address, source })?;
        Ok(Self {
            listener,
            state: AdminState { readiness, metrics },
        })
    }

    /// Where it listens, for those who asked for any port.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers until told to stop.
    pub(super) async fn run(self, stop: CancellationToken) {
        let router = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self.state);
        let serve =
            axum::serve(self.listener, router).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = serve.await {
            tracing::error!("the port for probes and metrics failed: {error}");
        }
    }
}

async fn ready(State(state): State<AdminState>) -> Response {
    match state.readiness.obstacle().await {
        None => "ok\n".into_response(),
        Some(obstacle) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")).into_response()
        }
    }
}

async fn metrics(State(state): State<AdminState>) -> Response {
    match state.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError, atomic::AtomicUsize, mpsc};

    use super::*;

    #[tokio::test]
    async fn ready_means_listed_and_writable() {
        let folder = tempfile::tempdir().unwrap();
        let readiness = Readiness::new(folder.path().to_owned());
        assert!(readiness.obstacle().await.unwrap().contains("list"));
        readiness.set_listed(true);
        assert_eq!(readiness.obstacle().await, None);
        folder.close().unwrap();
        let obstacle = readiness.obstacle().await.unwrap();
        assert!(obstacle.contains("No such file"), "{obstacle}");
    }

    #[tokio::test]
    async fn a_volume_that_hangs_is_not_ready_and_costs_one_thread() {
        let (let_go, hanging) = mpsc::channel::<()>();
        let (checks, hanging) = (Arc::new(AtomicUsize::new(0)), Mutex::new(hanging));
        let readiness = {
            let checks = Arc::clone(&checks);
            Readiness::with_check(Arc::new(move || {
                checks.fetch_add(1, Ordering::SeqCst);
                // Ends when the sender is dropped.
                let hanging = hanging.lock().unwrap_or_else(PoisonError::into_inner);
                assert!(hanging.recv().is_err());
                Ok(())
            }))
        };
        readiness.set_listed(true);
        let probes = [(); 3].map(|()| readiness.obstacle());
        // The probes are answered on the only thread of this test: the check is elsewhere.
        for obstacle in futures::future::join_all(probes).await {
            let obstacle = obstacle.unwrap();
            assert!(obstacle.contains("has not answered"), "{obstacle}");
        }
        assert_eq!(checks.load(Ordering::SeqCst), 1);
        drop(let_go);
        assert_eq!(readiness.obstacle().await, None, "it answers again");
    }
}
