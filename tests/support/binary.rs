//! The project's own program, run as a user would: in a fresh folder, with nothing of the tester's environment.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::{Guarded, run, temporary_folder};
use super::{Context, Failure, Result};

/// A run that takes longer hangs.
const RUN_LIMIT: Duration = Duration::from_mins(5);

/// Between two looks at a run. The kernel keeps the peak itself, so only growth in a run's last millisecond is missed.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The binary that cargo built for this test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_docker-image-pusher"))
}

/// Runs the program once in a folder that nobody needs afterwards.
pub fn docker_image_pusher(arguments: &[&str]) -> Result<Finished> {
    Sandbox::new()?.run(arguments)
}

/// A folder and an environment for several runs.
#[derive(Debug)]
pub struct Sandbox {
    folder: TempDir,
    environment: Vec<(String, String)>,
}

/// A run that is still going on. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    captured: TempDir,
    started: Instant,
    peak_rss_bytes: u64,
}

/// A run that is over.
#[derive(Debug, Clone)]
pub struct Finished {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    /// The most memory the program had resident.
    pub peak_rss_bytes: u64,
    pub duration: Duration,
}

impl Sandbox {
    pub fn new() -> Result<Self> {
        Ok(Self {
            folder: temporary_folder("run")?,
            environment: Vec::new(),
        })
    }

    /// The folder that runs start in; it is also their home.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A variable for all further runs.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes a file for the runs and returns its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .context(format!("could not make {}", parent.display()))?;
        }
        std::fs::write(&path, content).context(format!("could not write {}", path.display()))?;
        Ok(path)
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Result<Finished> {
        self.start(arguments)?.wait()
    }

    /// Runs the program to its end with something on its stdin.
    pub fn run_with_stdin(&self, arguments: &[&str], stdin: &Path) -> Result<Finished> {
        let stdin = File::open(stdin).context(format!("could not open {}", stdin.display()))?;
        self.start_with(arguments, stdin.into())?.wait()
    }

    /// Starts the program, for tests that interrupt it.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        self.start_with(arguments, Stdio::null())
    }

    /// Runs a script in which `$program` is the program and its cache lies on a small volume that nobody else sees. The answer
    /// is whether it succeeded, and what it said on stdout and stderr.
    pub fn script_on_a_volume(&self, bytes: u64, script: &str) -> Result<(bool, String, String)> {
        let volume = self.path().join("volume");
        std::fs::create_dir_all(&volume).context("could not make a folder for a volume")?;
        let script = format!("mount -t tmpfs -o size={bytes} none \"$1\"; program=$2; {script}");
        let mut command = Command::new("unshare");
        self.prepare(&mut command);
        let output = command
            .args(["--user", "--map-root-user", "--mount", "sh", "-ec"])
            .args([&script, "sh"])
            .args([&volume, program()])
            .env("IMAGE_PUSHER_CACHE_DIR", volume.join("cache"))
            .output()
            .context("could not run unshare")?;
        let [told, said] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok((output.status.success(), told, said))
    }

    /// Starts the program under the guard, for long-lived ones: the controller. Its stdout and stderr are one log.
    pub fn start_guarded(&self, arguments: &[&str]) -> Result<Guarded> {
        let folder = temporary_folder("controller")?;
        Guarded::spawn("docker-image-pusher", folder, program(), |command| {
            command.args(arguments);
            // The guard needs the rest of the environment only for its own tools.
            self.prepare(command);
        })
    }

    /// Starts the program through another one, which gets the program and its arguments after its own.
    pub fn start_under(&self, wrapper: &[&str], arguments: &[&str]) -> Result<Running> {
        let [first, rest @ ..] = wrapper else {
            return self.start(arguments);
        };
        let mut command = Command::new(first);
        command.args(rest).arg(program());
        self.launch(command, arguments, Stdio::null())
    }

    fn start_with(&self, arguments: &[&str], stdin: Stdio) -> Result<Running> {
        self.launch(Command::new(program()), arguments, stdin)
    }

    fn launch(&self, mut command: Command, arguments: &[&str], stdin: Stdio) -> Result<Running> {
        let captured = temporary_folder("output")?;
        let capture = |name| {
            File::create(captured.path().join(name)).context("could not make a file for output")
        };
        command
            .args(arguments)
            .stdin(stdin)
            .stdout(capture("stdout")?)
            .stderr(capture("stderr")?);
        self.prepare(&mut command);
        let text = format!("docker-image-pusher {}", arguments.join(" "));
        let started = Instant::now();
        let child = command
            .spawn()
            .context(format!("could not start {command:?}"))?;
        Ok(Running {
            child,
            command: text,
            captured,
            started,
            peak_rss_bytes: 0,
        })
    }

    fn prepare(&self, command: &mut Command) {
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
    }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `INT` or `KILL`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        run(Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string()))
        .map(drop)
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.captured("stderr")
    }

    /// What it wrote to stdout so far.
    pub fn stdout(&self) -> String {
        self.captured("stdout")
    }

    /// Waits for the end. A run that hangs is killed and is a failure.
    pub fn wait(mut self) -> Result<Finished> {
        loop {
            self.look_at_memory();
            if let Some(status) = self
                .child
                .try_wait()
                .context(format!("could not wait for {}", self.command))?
            {
                return Ok(Finished {
                    command: self.command.clone(),
                    status,
                    stdout: self.stdout(),
                    stderr: self.stderr(),
                    peak_rss_bytes: self.peak_rss_bytes,
                    duration: self.started.elapsed(),
                });
            }
            if self.started.elapsed() > RUN_LIMIT {
                let stderr = self.stderr();
                return Err(Failure::new(format!(
                    "{} hangs after {RUN_LIMIT:?}; stderr:\n{stderr}",
                    self.command
                )));
            }
            std::thread::sleep(LOOK_INTERVAL);
        }
    }

    fn captured(&self, name: &str) -> String {
        std::fs::read(self.captured.path().join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn look_at_memory(&mut self) {
        if let Some(peak) = peak_rss_bytes(self.pid()) {
            self.peak_rss_bytes = self.peak_rss_bytes.max(peak);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is the usual case.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Finished {
    /// The exit code; empty when a signal ended the run.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The run itself if it ended with this code, else a failure with everything it said.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        if self.code() == Some(code) {
            return Ok(self);
        }
        let Self {
            command,
            status,
            stdout,
            stderr,
            peak_rss_bytes: _,
            duration: _,
        } = self;
        Err(Failure::new(format!(
            "{command}\nended with {status}, not with code {code}\nstdout:\n{stdout}\nstderr:\n{stderr}"
        )))
    }
}

/// The peak of a running process; empty once it is a zombie.
pub fn peak_rss_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}
