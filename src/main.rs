//! The `docker-image-pusher` binary: reads the command line, sets up logs and TLS, runs, and turns the outcome into an exit
//! code.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use docker_image_pusher::cli::{Cli, GlobalOptions, LogFormat, Verbosity};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// How long threads that are in the middle of a file operation may take at the end: bringing partial downloads to a slow disk
/// takes some seconds, a hung volume takes for ever. The operator's stop counts on it (operator rule K19).
const LAST_FILES: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = match Cli::from_process() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with exit code 0; a closed terminal changes neither.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    set_up_logs(cli.global(), cli.is_operator());
    // The one crypto provider of this binary; rustls panics at the first connection when it has none or two.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        tracing::warn!("a TLS crypto provider was installed before main");
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("the threads of this program could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(cli.run());
    runtime.shutdown_timeout(LAST_FILES);
    code
}

/// Logs go to standard error. Commands show their progress themselves, so they log only what was asked for with -v; the
/// operator has nothing else and logs what it does. `RUST_LOG` overrides both.
fn set_up_logs(options: &GlobalOptions, is_operator: bool) {
    let level = match (options.verbosity(), is_operator) {
        (Verbosity::Quiet, _) => LevelFilter::ERROR,
        (Verbosity::Normal, false) => LevelFilter::WARN,
        (Verbosity::Normal, true) | (Verbosity::Verbose, _) => LevelFilter::INFO,
        (Verbosity::Debug, _) => LevelFilter::DEBUG,
    };
    // Our own words at this level; libraries speak of every packet and are heard when something is wrong.
    let default = format!(
        // kube-client warns of an answer it cannot parse with the whole answer, which may be a Secret.
        "{},kube_client=error,docker_image_pusher={level}",
        level.min(LevelFilter::WARN)
    );
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match options.log_format {
        LogFormat::Json => logs.json().flatten_event(true).init(),
        LogFormat::Text => logs.with_target(false).init(),
    }
}
