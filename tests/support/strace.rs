//! Faults in the program's own system calls, and kills at them: strace stands between the program and the kernel.
//!
//! Debian's strace 6.1 looks at the first path of a `rename` only, and counts calls for each thread by itself. So a call is
//! named by a path where one is known, and else by what the cache looks like when it is made: see [`kill_when`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::binary::{Finished, Running, Sandbox};
use super::process::poll;
use super::{Context, Failure, Result};

/// Longer than any run of these tests takes.
const LIMIT: Duration = Duration::from_mins(1);

/// How long a call is held up whose moment a test waits for.
const HELD_UP: Duration = Duration::from_millis(250);

/// What happens to some system calls of a run.
#[derive(Debug, Clone)]
pub struct Fault {
    calls: &'static str,
    path: Option<PathBuf>,
    injection: String,
    /// As strace's log shows it.
    sign: &'static str,
}

impl Fault {
    /// kill -9 instead of the call. `calls` are names that commas separate, or a regular expression behind a `/`.
    pub fn kill(calls: &'static str) -> Self {
        // With a result of its own, the call is not made, whichever comes first.
        Self::new(calls, "error=EIO:signal=SIGKILL", "killed by SIGKILL")
    }

    /// The call fails with this error of errno(3), and nothing is done.
    pub fn error(calls: &'static str, errno: &str) -> Self {
        Self::new(calls, &format!("error={errno}"), "(INJECTED)")
    }

    /// The call is held up, so that a test can look at what is there before it.
    pub fn hold_up(calls: &'static str) -> Self {
        let delay = HELD_UP.as_micros();
        Self::new(calls, &format!("delay_enter={delay}"), "(DELAYED)")
    }

    fn new(calls: &'static str, injection: &str, sign: &'static str) -> Self {
        Self {
            calls,
            path: None,
            injection: injection.to_owned(),
            sign,
        }
    }

    /// Only calls on this path, or on a file that was opened under it.
    #[must_use]
    pub fn of(mut self, path: &Path) -> Self {
        self.path = Some(path.to_owned());
        self
    }

    /// Only the call of this number, counted from 1 in each thread by itself.
    #[must_use]
    pub fn at(mut self, number: u32) -> Self {
        self.injection = format!("{}:when={number}", self.injection);
        self
    }

    /// Runs the program with it. A run that the fault never met is a failure.
    pub fn run(&self, sandbox: &Sandbox, arguments: &[&str]) -> Result<Finished> {
        let traced = self.start(sandbox, arguments)?;
        let log = traced.log.clone();
        let finished = traced.running.wait()?;
        let text = read(&log);
        if text.contains(self.sign) {
            return Ok(finished);
        }
        Err(Failure::new(format!(
            "{self:?} never met {}, which ended with {}; strace must be allowed to trace (ptrace). stderr:\n{}\nlog:\n{text}",
            finished.command, finished.status, finished.stderr,
        )))
    }

    /// As an expression for strace's option `-e`, without the path.
    pub fn injection(&self) -> String {
        format!("inject={}:{}", self.calls, self.injection)
    }

    /// Starts the program with it.
    pub fn start(&self, sandbox: &Sandbox, arguments: &[&str]) -> Result<Traced> {
        let inject = self.injection();
        let calls = format!("trace={}", self.calls);
        let mut options = vec!["-e", &calls, "-e", &inject];
        let path = self.path.as_ref().map(|path| path.display().to_string());
        if let Some(path) = &path {
            options.extend(["-P", path]);
        }
        trace(sandbox, &options, arguments)
    }
}

/// A run that strace looks at.
#[derive(Debug)]
pub struct Traced {
    pub running: Running,
    pub log: PathBuf,
    pid: PathBuf,
}

impl Traced {
    /// Sends the program itself a signal.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = poll(LIMIT, || {
            let text = std::fs::read_to_string(&self.pid).ok()?;
            text.strip_suffix('\n').map(str::to_owned)
        });
        let pid = pid.ok_or_else(|| Failure::new("strace starts nothing; is ptrace allowed?"))?;
        let mut kill = std::process::Command::new("kill");
        super::process::run(kill.arg(format!("-{signal}")).arg(pid)).map(drop)
    }

    /// Kills the program as soon as things look as wanted.
    pub fn kill_when(self, looks: impl Fn() -> bool) -> Result<Finished> {
        poll(LIMIT, || looks().then_some(())).ok_or_else(|| {
            let stderr = self.running.stderr();
            Failure::new(format!("the moment never came; stderr:\n{stderr}"))
        })?;
        self.signal("KILL")?;
        let finished = self.running.wait()?;
        if read(&self.log).contains("killed by SIGKILL") {
            return Ok(finished);
        }
        Err(Failure::new(format!(
            "{} was not killed, it ended with {}:\n{}",
            finished.command, finished.status, finished.stderr
        )))
    }
}

/// Starts the program under strace, whose log goes to a file. Not with --seccomp-bpf: signals are lost then.
pub fn trace(sandbox: &Sandbox, options: &[&str], arguments: &[&str]) -> Result<Traced> {
    let [log, pid] = ["strace.log", "strace.pid"].map(|name| sandbox.path().join(name));
    drop(std::fs::remove_file(&log));
    drop(std::fs::remove_file(&pid));
    let log_text = log.display().to_string();
    let own = ["strace", "-f", "-y", "-o", &log_text];
    // Signals are for the program and not for strace, so its number is needed.
    let shell = ["sh", "-c", "echo $$ > strace.pid; exec \"$@\"", "sh"];
    let wrapper = [&own[..], options, &shell[..]].concat();
    let running = sandbox.start_under(&wrapper, arguments)?;
    Ok(Traced { running, log, pid })
}

/// Runs the program, and kills it as soon as the cache looks as wanted, while it waits before one of the calls.
pub fn kill_when(
    sandbox: &Sandbox,
    calls: &'static str,
    arguments: &[&str],
    looks: impl Fn() -> bool,
) -> Result<Finished> {
    Fault::hold_up(calls)
        .start(sandbox, arguments)?
        .kill_when(looks)
}

/// strace's log.
pub fn read(log: &Path) -> String {
    let bytes = std::fs::read(log).context(format!("could not read {}", log.display()));
    // Without one nothing was traced, which whoever looks for something in it finds out.
    bytes.map_or_else(
        |failure| failure.to_string(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}
