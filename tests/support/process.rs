//! Programs that live as long as the test that started them, however that test ends.
//!
//! A `static` is never dropped and a killed process runs no destructor, so no program is a direct child of the tests:
//! `hack/guard.sh` runs it, and stops it once the pipe that [`Guarded`] holds is closed, which the kernel does for us
//! in every case. The guard also removes the program's folder.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Context, Failure, Result};

/// How often something that cannot announce itself is looked at again.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Lines of a log that a failure message shows.
const LOG_TAIL_LINES: usize = 40;

/// A running program, its folder and its log. Dropping it returns when the program is gone.
#[derive(Debug)]
pub struct Guarded {
    name: String,
    folder: PathBuf,
    guard: Child,
    pipe: Option<ChildStdin>,
}

impl Guarded {
    /// Starts `program` with the arguments and variables that `configure` adds. The folder becomes the guard's.
    pub fn spawn(
        name: &str,
        folder: TempDir,
        program: impl AsRef<OsStr>,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let mut command = Command::new(hack("guard.sh"));
        command.arg(folder.path()).arg(program);
        configure(&mut command);
        let mut guard = command
            .stdin(Stdio::piped())
            // Out of the terminal's foreground group: Ctrl-C ends the tests, and the guard then does its work.
            .process_group(0)
            .spawn()
            .context(format!("could not start {command:?}"))?;
        let guarded = Self {
            name: name.to_owned(),
            pipe: guard.stdin.take(),
            folder: folder.keep(),
            guard,
        };
        guarded.wait_for("its pid", Duration::from_secs(10), || guarded.pid())?;
        Ok(guarded)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The program's process id; empty only in the moment before it is started.
    pub fn pid(&self) -> Option<u32> {
        read_number(&self.folder.join("pid"))
    }

    /// The exit status, once the program ended by itself or by a signal sent with [`Guarded::signal`]. As in a shell,
    /// death by a signal is 128 plus its number.
    pub fn exit_status(&self) -> Option<i32> {
        read_number(&self.folder.join("exit-status"))
    }

    /// All that the program wrote to stdout and stderr so far.
    pub fn log(&self) -> String {
        std::fs::read(self.folder.join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The end of the log, as failure messages show it.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// Sends a signal by name, such as `TERM` or `KILL`, to the program and nobody else.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.pid().context(format!("{} has no pid", self.name))?;
        run(Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(pid.to_string()))
        .map(drop)
    }

    /// Waits until the program has ended by itself.
    pub fn wait_for_exit(&self, limit: Duration) -> Result<i32> {
        poll(limit, || self.exit_status()).context(format!(
            "{} still runs after {limit:?}; its log ends:\n{}",
            self.name,
            self.log_tail()
        ))
    }

    /// Polls until `look` finds something; fails early, with the log, when the program ends before that.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let found = poll(limit, || match look() {
            Some(found) => Some(Ok(found)),
            None => self.exit_status().map(Err),
        });
        let problem = match found {
            Some(Ok(found)) => return Ok(found),
            Some(Err(status)) => format!("ended with status {status} before {what}"),
            None => format!("did not get to {what} within {limit:?}"),
        };
        Err(Failure::new(format!(
            "{} {problem}; its log ends:\n{}",
            self.name,
            self.log_tail()
        )))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // The guard is bounded by its own grace period, so this wait is too; how it ended interests nobody any more.
        drop(self.guard.wait());
    }
}

/// A fresh folder, removed when dropped, unless it is given to a [`Guarded`].
pub fn temporary_folder(purpose: &str) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("image-pusher-{purpose}-"))
        .tempdir()
        .context("could not make a temporary folder")
}

/// The path of one of the scripts in `hack/`.
pub fn hack(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("hack")
        .join(script)
}

/// Runs a helper program to its end and returns its stdout; a failure says what was run and shows its stderr.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(format!("could not start {command:?}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!(
        "{command:?} ended with {}:\n{}",
        output.status,
        complaint.trim_end()
    )))
}

/// Looks every few milliseconds until there is something to see, or the time is over.
pub fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if started.elapsed() > limit {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

fn read_number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
