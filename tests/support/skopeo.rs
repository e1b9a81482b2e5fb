//! skopeo, as a client that is known to do it right: it puts test images into registries and says what is there.

use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use super::process::run;
use super::registry::Access;
use super::{Context, Result};

/// One end of a copy.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// An image in a registry; the name is `repository:tag` or `repository@digest`.
    Registry(&'a Access, &'a str),
    /// Anything else in skopeo's own words, such as `oci:/folder:tag` or `docker-archive:/file.tar`.
    Local(&'a str),
}

/// Copies an image with all its platforms, byte for byte. Left alone, skopeo puts a layer that it remembers to be in the
/// registry in the place of one with the same content that is compressed in another way.
pub fn copy(source: End<'_>, destination: End<'_>) -> Result<()> {
    copy_with(source, destination, &["--all", "--preserve-digests"])
}

/// Copies an image with options of the caller's choice only.
pub fn copy_with(source: End<'_>, destination: End<'_>, options: &[&str]) -> Result<()> {
    let mut command = skopeo("copy");
    command.args(options);
    source.add_options(&mut command, "src-");
    destination.add_options(&mut command, "dest-");
    command.arg(source.name()).arg(destination.name());
    run(&mut command).map(drop)
}

/// The exact bytes of the manifest or index that a registry has under this name.
pub fn raw_manifest(access: &Access, name: &str) -> Result<Vec<u8>> {
    let end = End::Registry(access, name);
    let mut command = skopeo("inspect");
    command.arg("--raw");
    end.add_options(&mut command, "");
    run(command.arg(end.name()))
}

/// The digest of those bytes. `skopeo inspect` without `--raw` would say the digest of one platform of an index.
pub fn digest(access: &Access, name: &str) -> Result<String> {
    raw_manifest(access, name).map(|bytes| sha256(&bytes))
}

/// The configuration of an image, as the registry has it.
pub fn config(access: &Access, name: &str) -> Result<serde_json::Value> {
    let end = End::Registry(access, name);
    let mut command = skopeo("inspect");
    command.args(["--config", "--raw"]);
    end.add_options(&mut command, "");
    let bytes = run(command.arg(end.name()))?;
    serde_json::from_slice(&bytes).context(format!("the config of {name} is no JSON"))
}

/// The digests of the layers as skopeo sees them, in order.
pub fn layers(end: End<'_>) -> Result<Vec<String>> {
    let mut command = skopeo("inspect");
    end.add_options(&mut command, "");
    let output = run(command.arg(end.name()))?;
    let image: serde_json::Value =
        serde_json::from_slice(&output).context("skopeo's answer is no JSON")?;
    let layers = image["Layers"].as_array().cloned().unwrap_or_default();
    Ok(layers
        .iter()
        .filter_map(|layer| layer.as_str().map(str::to_owned))
        .collect())
}

/// Copies an image out of the registry into an OCI layout, which makes skopeo read and check every blob.
pub fn download(access: &Access, name: &str, folder: &Path) -> Result<()> {
    copy(
        End::Registry(access, name),
        End::Local(&format!("oci:{}:copy", folder.display())),
    )
}

/// `sha256:` and the hex digits.
pub fn sha256(bytes: &[u8]) -> String {
    digest_text(Sha256::digest(bytes).as_ref())
}

/// The text form of a finished SHA-256.
pub fn digest_text(hash: &[u8]) -> String {
    hash.iter().fold(String::from("sha256:"), |text, byte| {
        text + &format!("{byte:02x}")
    })
}

/// The policy file of the machine has no say in tests, and neither have the logins of whoever runs them.
fn skopeo(verb: &str) -> Command {
    let mut command = Command::new("skopeo");
    command.arg("--insecure-policy").arg(verb);
    command
}

impl End<'_> {
    fn name(&self) -> String {
        match self {
            End::Registry(access, name) => format!("docker://{}/{name}", access.address),
            End::Local(name) => (*name).to_owned(),
        }
    }

    fn add_options(&self, command: &mut Command, prefix: &str) {
        let End::Registry(access, _) = self else {
            return;
        };
        match &access.certificates {
            Some(folder) => command.arg(format!("--{prefix}cert-dir={}", folder.display())),
            None => command.arg(format!("--{prefix}tls-verify=false")),
        };
        match &access.credentials {
            Some((user, password)) => command.arg(format!("--{prefix}creds={user}:{password}")),
            None => command.arg(format!("--{prefix}no-creds")),
        };
    }
}
