//! One run of a program, measured: time, processor, memory.
//!
//! The bench runs itself once more as a small process between: what the kernel counts for a child begins with the memory of
//! the process that started it, and the bench with its links and registries is larger than what it measures. The small one
//! starts the program, waits for it and says in one line of JSON what the kernel counted.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::support::{Context, Failure, Result};

/// The first argument of the small process.
pub(crate) const VERB: &str = "measure";

/// Between two looks at a run.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// What the kernel counted, of the program and of those it started itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) wall_seconds: f64,
    pub(crate) user_seconds: f64,
    pub(crate) system_seconds: f64,
    /// Of the largest of its processes.
    pub(crate) peak_rss_bytes: u64,
    /// None when a signal ended it.
    pub(crate) exit_code: Option<i32>,
}

/// A program that runs.
pub(crate) struct Measured {
    text: String,
    started: SystemTime,
    limit: Instant,
    small: Child,
    pid: Pid,
    lines: BufReader<std::process::ChildStdout>,
    stderr: std::path::PathBuf,
}

/// What the small process does: `measure PROGRAM ARGUMENT...`.
pub(crate) fn be_the_small_process(arguments: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let mut arguments = arguments;
    let program = arguments.next().context("no program to measure")?;
    let started = Instant::now();
    let mut child = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        // Ours carries what was measured.
        .stdout(Stdio::null())
        .spawn()
        .context(format!("could not start {}", program.display()))?;
    say(&child.id().to_string())?;
    let status = child.wait().context("could not wait for a program")?;
    let wall_seconds = started.elapsed().as_secs_f64();
    let counted = getrusage(UsageWho::RUSAGE_CHILDREN).context("could not ask for the usage")?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "a run takes less than 2^52 microseconds"
    )]
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    let usage = Usage {
        wall_seconds,
        user_seconds: seconds(counted.user_time()),
        system_seconds: seconds(counted.system_time()),
        peak_rss_bytes: u64::try_from(counted.max_rss()).unwrap_or_default() * 1024,
        exit_code: status.code(),
    };
    say(&serde_json::to_string(&usage).context("could not write the usage")?)?;
    Ok(ExitCode::SUCCESS)
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("nobody listens to what was measured")
}

impl Measured {
    /// Starts the program in this folder, which is also its home, with nothing else of the environment but the PATH.
    pub(crate) fn start(arguments: &[String], home: &Path, limit: Duration) -> Result<Self> {
        let text = arguments.join(" ");
        let stderr = home.join("stderr");
        let capture = File::create(&stderr).context("could not make a file for stderr")?;
        let own = std::env::current_exe().context("a bench without a program")?;
        let mut small = Command::new(own)
            .arg(VERB)
            .args(arguments)
            .current_dir(home)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(capture)
            .spawn()
            .context(format!("could not start {text}"))?;
        let mut lines = BufReader::new(small.stdout.take().context("a child without stdout")?);
        let (pid, started) = (read_line(&mut lines), SystemTime::now());
        let pid = pid?.parse().ok().and_then(Pid::from_raw);
        let Some(pid) = pid else {
            drop(small.wait());
            return Err(Failure::new(format!("{text}: {}", tail_of(&stderr))));
        };
        Ok(Self {
            text,
            started,
            limit: Instant::now() + limit,
            small,
            pid,
            lines,
            stderr,
        })
    }

    /// When it was started.
    pub(crate) const fn started(&self) -> SystemTime {
        self.started
    }

    /// Whether it has ended. One that takes too long is killed, and is a failure.
    pub(crate) fn has_ended(&mut self) -> Result<bool> {
        if Instant::now() > self.limit {
            self.kill();
            return Err(Failure::new("too long"));
        }
        std::thread::sleep(LOOK_INTERVAL);
        let ended = self
            .small
            .try_wait()
            .context("could not wait for a program")?;
        Ok(ended.is_some())
    }

    /// Ends it at once, as `kill -9` does.
    pub(crate) fn kill(&self) {
        // An error means that it was faster.
        kill_process(self.pid, Signal::KILL).unwrap_or_default();
    }

    /// Waits for the end, however it comes.
    pub(crate) fn wait(mut self) -> Result<Usage> {
        while !self.has_ended()? {}
        let line = read_line(&mut self.lines)?;
        serde_json::from_str(&line).context(format!("{} was not measured: {line}", self.text))
    }

    /// Waits for the end, which shall be a success.
    pub(crate) fn wait_for_success(self) -> Result<Usage> {
        let stderr = self.stderr.clone();
        let usage = self.wait()?;
        if usage.exit_code == Some(0) {
            return Ok(usage);
        }
        Err(Failure::new(tail_of(&stderr)))
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if matches!(self.small.try_wait(), Ok(None)) {
            self.kill();
            drop(self.small.wait());
        }
    }
}

fn read_line(lines: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    lines
        .read_line(&mut line)
        .context("could not read what was measured")?;
    Ok(line.trim_end().to_owned())
}

/// The last line that a program wrote to stderr, which is where all of them say what is wrong.
fn tail_of(stderr: &Path) -> String {
    let text = std::fs::read(stderr).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    last.unwrap_or("it failed without a word").to_owned()
}
