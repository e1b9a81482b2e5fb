//! A download goes on where it broke off: after lost connections, and after a process that died.

use std::time::Duration;

use hyper::Method;

use crate::commands::{pull, push};
use crate::support::{
    Result,
    binary::Sandbox,
    gateway::{Action, Gateway, Rule},
    images::Image,
    process::poll,
    registry::Registry,
    skopeo,
};

const MIB: u64 = 1024 * 1024;

#[test]
fn a_pull_that_was_killed_at_half_of_a_gibibyte_fetches_hardly_anything_twice() -> Result<()> {
    let registry = Registry::open()?;
    let size = 1024 * MIB;
    let image = Image::builder().layers(1, size).gzip_level(0).build()?;
    image.push(registry.access(), "big/app:1")?;
    // No faster than any machine takes it: what the gateway has sent is in the cache then, and not in the kernel's buffers.
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(4_000_000));
    let gateway = Gateway::before(&registry).rule(slow).start()?;
    let sandbox = Sandbox::new()?;
    let address = gateway.address();
    let command = pull("big/app", "1", &address);
    let fetched = || gateway.answer_bytes(|exchange| exchange.path.contains("/blobs/"));

    let running = sandbox.start(&command)?;
    poll(Duration::from_mins(3), || {
        (fetched() > size / 2).then_some(())
    })
    .expect("half of it comes");
    running.signal("KILL")?;
    running.wait()?;
    let before = fetched();
    assert!(before < size, "it was faster than the signal");
    gateway.clear_rules();

    sandbox.run(&command)?.expect_code(0)?;
    let whole = image.manifests[0].layers[0].blob.size;
    let twice = fetched() - whole;
    println!("{} MiB were fetched twice", twice / MIB);
    assert!(twice <= size / 20, "{} MiB were fetched twice", twice / MIB);

    let destination = Registry::open()?;
    let pushed = push("big/app:1", "big/app", "1", destination.address());
    sandbox.run(&pushed)?.expect_code(0)?;
    let digest = skopeo::digest(destination.access(), "big/app:1")?;
    assert_eq!(digest, image.digest);
    Ok(())
}

#[test]
fn a_layer_comes_through_connections_that_all_die_early() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder()
        .layers(1, 200_000_000)
        .gzip_level(0)
        .build()?;
    image.push(registry.access(), "big/app:1")?;
    let cut = Rule::on(&Method::GET, "/blobs/", Action::CutAnswer(20_000_000));
    let gateway = Gateway::before(&registry).rule(cut).start()?;
    let sandbox = Sandbox::new()?;
    let pulled = sandbox.run(&pull("big/app", "1", &gateway.address()))?;
    pulled.expect_code(0)?;
    let bytes = gateway.answer_bytes(|exchange| exchange.path.contains("/blobs/"));
    let whole = image.manifests[0].layers[0].blob.size;
    assert!(bytes <= whole + whole / 20, "{bytes} bytes for {whole}");
    Ok(())
}

#[test]
fn a_gibibyte_that_two_processes_pull_at_once_is_fetched_once() -> Result<()> {
    let registry = Registry::open()?;
    let image = Image::builder()
        .layer_sizes(&[700 * MIB, 323 * MIB, MIB])
        .gzip_level(0)
        .build()?;
    image.push(registry.access(), "big/app:1")?;
    // Slow enough that both are at it at once.
    let slow = Rule::on(&Method::GET, "/blobs/", Action::SlowAnswer(50_000_000));
    let gateway = Gateway::before(&registry).rule(slow).start()?;
    let address = gateway.address();
    let sandbox = Sandbox::new()?;
    let command = pull("big/app", "1", &address);
    let both = [sandbox.start(&command)?, sandbox.start(&command)?];
    for pulled in both {
        pulled.wait()?.expect_code(0)?;
    }
    let fetched = gateway.answer_bytes(|exchange| exchange.path.contains("/blobs/"));
    // Where one connection takes over the end of another one's range, what was on its way comes twice.
    let twice = fetched - image.size();
    assert!(twice <= image.size() / 1000, "{twice} bytes came twice");
    Ok(())
}
