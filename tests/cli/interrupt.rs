//! An interrupted command stops at once, leaves nothing half-written, and can be run again.

use std::time::Duration;

use hyper::Method;

use crate::commands::pull;
use crate::support::{
    Result,
    binary::Sandbox,
    gateway::{Action, Gateway, Rule},
    images::Image,
    process::poll,
    registry::Registry,
};

#[test]
fn an_interrupted_pull_exits_with_130_and_leaves_no_image_and_no_partial_blob() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder()
        .layers(2, 4_000_000)
        .gzip_level(0)
        .build()?;
    image.push(registry.access(), "team/app:1.0")?;
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(200_000));
    let gateway = Gateway::before(&registry).rule(slow).start()?;
    let sandbox = Sandbox::new()?;
    let address = gateway.address();
    let pull = pull("team/app", "1.0", &address);
    for signal in ["INT", "TERM"] {
        gateway.forget();
        let running = sandbox.start(&pull)?;
        poll(Duration::from_secs(20), || {
            (gateway.count(&Method::GET, "/blobs/") > 0).then_some(())
        })
        .expect("a download begins");
        running.signal(signal)?;
        let stopped = running.wait()?.expect_code(130)?;
        assert!(stopped.stderr.contains("interrupted"), "{}", stopped.stderr);
        let listed = sandbox.run(&["list"])?.expect_code(0)?;
        assert!(listed.stdout.contains("no images"), "{}", listed.stdout);
        let partials = std::fs::read_dir(sandbox.path().join(".cache/blobs/.partial"))
            .map_or(0, Iterator::count);
        assert_eq!(partials, 0);
    }
    gateway.clear_rules();
    sandbox.run(&pull)?.expect_code(0)?;
    Ok(())
}
