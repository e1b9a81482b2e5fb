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
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use rustix::fs::Access;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    error::{Error, Result},
    metrics::Metrics,
};

/// The media type of the text format that Prometheus asks for.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether the operator is ready, as the parts that know it say.
#[derive(Debug, Clone)]
pub(super) struct Readiness {
    listed: Arc<AtomicBool>,
    cache_dir: PathBuf,
}

impl Readiness {
    /// Not ready yet.
    pub(super) fn new(cache_dir: PathBuf) -> Self {
        Self {
            listed: Arc::default(),
            cache_dir,
        }
    }

    /// The first list of all mirrors has arrived, or the drain begins.
    pub(super) fn set_listed(&self, listed: bool) {
        self.listed.store(listed, Ordering::Relaxed);
    }

    /// What stands in the way.
    fn obstacle(&self) -> Option<String> {
        if !self.listed.load(Ordering::Relaxed) {
            return Some("the list of ImageMirrors has not arrived".to_owned());
        }
        writable(&self.cache_dir)
            .err()
            .map(|error| error.to_string())
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

#[derive(Debug, Clone)]
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
    match state.readiness.obstacle() {
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
