//! strace, which kills runs and makes disks fail.

use crate::support::Result;
use crate::support::binary::Sandbox;
use crate::support::strace::Fault;

#[test]
fn a_fault_meets_the_call_it_names_or_the_run_is_a_failure() -> Result<()> {
    let sandbox = Sandbox::new()?;
    let file = sandbox.file("mirror.yaml", "kind: ImageMirror")?;
    let command = ["sync", "-f", "mirror.yaml"];
    let unread = Fault::error("/^open", "EIO").run(&sandbox, &command)?;
    assert_ne!(unread.code(), Some(0), "{unread:?}");
    let killed = Fault::kill("/^open").run(&sandbox, &command)?;
    assert_eq!(killed.code(), None, "{killed:?}");
    let elsewhere = Fault::error("syncfs", "EIO").of(&file);
    let failure = elsewhere.run(&sandbox, &["--help"]).unwrap_err();
    assert!(failure.to_string().contains("never met"), "{failure}");
    assert!(failure.to_string().contains("ptrace"), "{failure}");
    Ok(())
}
