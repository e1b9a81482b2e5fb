//! The project's own program, run and measured.

use crate::support::Result;
use crate::support::binary::{Sandbox, docker_image_pusher, peak_rss_bytes};

#[test]
fn a_run_is_captured_and_its_memory_is_measured() -> Result<()> {
    let finished = docker_image_pusher(&["--help"])?.expect_code(0)?;
    assert!(
        finished.stdout.contains("docker-image-pusher"),
        "{finished:?}"
    );
    // A run this short may be over before the first look: 0 then.
    assert!(finished.peak_rss_bytes < 1 << 30, "{finished:?}");
    assert!(peak_rss_bytes(std::process::id()) > Some(1 << 20));
    Ok(())
}

#[test]
fn a_wrong_exit_code_is_a_failure_that_shows_what_was_said() -> Result<()> {
    let failure = Sandbox::new()?
        .run(&["no-such-verb"])?
        .expect_code(0)
        .unwrap_err()
        .to_string();
    assert!(
        failure.contains("no-such-verb") && failure.contains("stderr:"),
        "{failure}"
    );
    Ok(())
}
