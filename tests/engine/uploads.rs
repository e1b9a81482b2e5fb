//! Uploads that do not go through at once, to the real registry.

use std::sync::Arc;

use docker_image_pusher::{
    image::{Descriptor, Digest, MediaType},
    output::{Direction, OutputManager},
    registry::{BlobSource, BlobUpload, ClientOptions, Endpoint, RegistryClient, Uploaded},
};
use http::Method;

use crate::support::{
    Context, Result,
    faults::{Action, Rule},
    gateway::Gateway,
    install_crypto_provider,
    registry::Registry,
};

const MIB: usize = 1024 * 1024;

/// Sends a blob through a gateway that does `action` to the first `PUT`, and gives the methods that went to the registry.
async fn upload_past(action: Action) -> Result<Vec<Method>> {
    install_crypto_provider();
    let registry = Registry::open()?;
    let rule = Rule::on(&Method::PUT, "/uploads/", action).times(1);
    let gateway = Gateway::before(&registry).rule(rule).start()?;
    let content: Vec<u8> = (0..=250).cycle().take(20 * MIB).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file.as_file(), &content).unwrap();
    let descriptor = Descriptor {
        media_type: MediaType::from("application/octet-stream"),
        digest: Digest::of(&content),
        size: content.len() as u64,
        urls: Vec::new(),
        platform: None,
    };
    let output = OutputManager::silent();
    let options = ClientOptions::default();
    let endpoint = Endpoint::parse(&gateway.url()).context("address")?;
    let client = RegistryClient::new(endpoint, options, output.clone()).context("client")?;
    let progress = output.transfer(Direction::Upload, &descriptor.digest, descriptor.size);
    let upload = BlobUpload {
        repository: &"team/app".parse().unwrap(),
        descriptor: &descriptor,
        source: &BlobSource::of_file(Arc::new(file.reopen().unwrap()), descriptor.size),
        progress: &progress,
        mount_from: None,
        notes: None,
    };
    let uploaded = client
        .upload_blob_with_token(&upload, None)
        .await
        .context("upload")?;
    progress.complete();
    assert_eq!(uploaded, Uploaded::Sent);
    let stored = registry.blob_file(&descriptor.digest.to_string());
    assert_eq!(
        Digest::of(&std::fs::read(stored).unwrap()),
        descriptor.digest
    );
    let exchanges = gateway.exchanges();
    Ok(exchanges
        .into_iter()
        .map(|exchange| exchange.method)
        .filter(|method| method != Method::DELETE)
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_a_proxy_goes_in_chunks() -> Result<()> {
    use Method as M;
    let methods = upload_past(Action::status(413)).await?;
    assert_eq!(
        methods,
        [M::POST, M::PUT, M::POST, M::PATCH, M::PATCH, M::PUT]
    );
    Ok(())
}

/// Tried by hand too: distribution 2.8.2 has the bytes on its disk, but gives no way to go on with them.
#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_and_is_forgotten_goes_in_chunks_that_do_not_break() -> Result<()> {
    let mut methods = upload_past(Action::CutRequest(10 * MIB as u64)).await?;
    // Where the kernel took the whole body before the connection ended, it is asked first whether the blob arrived.
    methods.retain(|method| method != Method::HEAD);
    assert_eq!(
        methods[..4],
        [Method::POST, Method::PUT, Method::GET, Method::POST],
        "{methods:?}"
    );
    assert!(
        methods[4..methods.len() - 1]
            .iter()
            .all(|method| method == Method::PATCH),
        "{methods:?}"
    );
    assert_eq!(methods.last(), Some(&Method::PUT));
    Ok(())
}
