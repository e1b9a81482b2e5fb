//! Nothing that a test starts outlives it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::process::{Guarded, poll, temporary_folder};
use crate::support::{Context, Result};

/// Where the holder below leaves what the test has to look for.
const REPORT: &str = "IMAGE_PUSHER_TEST_REPORT";

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn dropping_stops_the_program_its_children_and_its_folder() -> Result<()> {
    let guarded = Guarded::spawn("a shell", temporary_folder("guard")?, "sh", |command| {
        // A child that ignores the polite signal, and outlives its parent.
        command.args(["-c", "(trap '' TERM; sleep 1000) & echo child $!; wait"]);
    })?;
    let child = guarded.wait_for("its child", Duration::from_secs(10), || {
        guarded
            .log()
            .lines()
            .find_map(|line| line.strip_prefix("child ")?.parse::<u32>().ok())
    })?;
    let (pid, folder) = (guarded.pid().unwrap(), guarded.folder().to_owned());
    assert!(is_running(pid) && is_running(child) && folder.exists());
    drop(guarded);
    assert!(!is_running(pid) && !folder.exists());
    assert!(
        poll(Duration::from_secs(2), || (!is_running(child))
            .then_some(()))
        .is_some()
    );
    Ok(())
}

#[test]
fn a_program_that_ends_early_is_reported_with_its_log() -> Result<()> {
    let guarded = Guarded::spawn("a shell", temporary_folder("guard")?, "sh", |command| {
        command.args(["-c", "echo no such thing; exit 7"]);
    })?;
    let failure = guarded
        .wait_for("ready", Duration::from_secs(10), || None::<()>)
        .unwrap_err()
        .to_string();
    assert!(
        failure.contains("a shell ended with status 7 before ready"),
        "{failure}"
    );
    assert!(failure.ends_with("no such thing"), "{failure}");
    Ok(())
}

#[test]
fn a_signal_reaches_the_program_and_its_end_is_seen() -> Result<()> {
    let guarded = Guarded::spawn("a shell", temporary_folder("guard")?, "sh", |command| {
        command.args([
            "-c",
            "trap 'echo polite; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        ]);
    })?;
    guarded.wait_for("ready", Duration::from_secs(10), || {
        guarded.log().contains("ready").then_some(())
    })?;
    guarded.signal("TERM")?;
    assert_eq!(guarded.wait_for_exit(Duration::from_secs(10))?, 3);
    assert!(guarded.log().contains("polite"));
    Ok(())
}

#[test]
fn killing_the_test_process_stops_what_it_started() -> Result<()> {
    let folder = temporary_folder("report")?;
    let report = folder.path().join("report");
    let mut holder = Command::new(std::env::current_exe().context("which program is this?")?)
        .args([
            "--exact",
            "guard::holds_a_program_until_it_is_killed",
            "--ignored",
        ])
        .env(REPORT, &report)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("could not start the holder")?;
    let (pid, guarded_folder) = poll(Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&report).ok()?;
        let (pid, folder) = text.strip_suffix('\n')?.split_once(' ')?;
        Some((pid.parse::<u32>().ok()?, PathBuf::from(folder)))
    })
    .context("the holder did not report")?;
    assert!(is_running(pid) && guarded_folder.exists());
    holder.kill().context("could not kill the holder")?;
    holder.wait().context("could not wait for the holder")?;
    let gone = poll(Duration::from_secs(10), || {
        (!is_running(pid) && !guarded_folder.exists()).then_some(())
    });
    assert!(
        gone.is_some(),
        "{pid} still runs or {} is still there",
        guarded_folder.display()
    );
    Ok(())
}

#[test]
#[ignore = "the other half of killing_the_test_process_stops_what_it_started, which runs it"]
fn holds_a_program_until_it_is_killed() -> Result<()> {
    let Some(report) = std::env::var_os(REPORT) else {
        return Ok(());
    };
    let guarded = Guarded::spawn("sleep", temporary_folder("guard")?, "sleep", |command| {
        command.arg("1000");
    })?;
    std::fs::write(
        report,
        format!(
            "{} {}\n",
            guarded.pid().unwrap(),
            guarded.folder().display()
        ),
    )
    .context("could not report")?;
    std::thread::sleep(Duration::from_mins(1));
    Ok(())
}
