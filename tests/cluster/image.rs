//! The image that is made without a container engine is the one that the Dockerfile describes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};
use tar::{Archive, EntryType};

use crate::support::cluster::make_image;
use crate::support::process::temporary_folder;
use crate::support::{Context, Result};

const DOCKERFILE: &str = include_str!("../../Dockerfile");

/// The files of a tar by their names, with who owns them and what they are for.
type Files = BTreeMap<String, File>;

struct File {
    mode: u32,
    owner: (u64, u64),
    content: Vec<u8>,
}

fn files(tar: &[u8]) -> Result<Files> {
    let mut files = Files::new();
    let mut archive = Archive::new(tar);
    for entry in archive.entries().context("no tar")? {
        let mut entry = entry.context("a torn tar")?;
        if entry.header().entry_type() == EntryType::Directory {
            continue;
        }
        let name = entry.path().context("a name")?.display().to_string();
        let header = entry.header();
        let (mode, owner) = (
            header.mode().context("a mode")?,
            (
                header.uid().context("an owner")?,
                header.gid().context("a group")?,
            ),
        );
        let mut content = Vec::new();
        entry
            .read_to_end(&mut content)
            .context("could not read a tar")?;
        files.insert(
            name,
            File {
                mode,
                owner,
                content,
            },
        );
    }
    Ok(files)
}

/// The layer's files and the configuration of a docker archive with one image.
fn parts(archive: &[u8]) -> Result<(Value, Value, Files)> {
    let files_of_archive = files(archive)?;
    let read = |name: &Value| &files_of_archive[name.as_str().unwrap_or_default()].content;
    let manifest: Value = serde_json::from_slice(&files_of_archive["manifest.json"].content)
        .context("manifest.json is no JSON")?;
    let config = serde_json::from_slice(read(&manifest[0]["Config"]))
        .context("the configuration is no JSON")?;
    let layer = files(read(&manifest[0]["Layers"][0]))?;
    Ok((manifest, config, layer))
}

/// What the instructions of this name say in the Dockerfile's last stage.
fn instructions(name: &str) -> Vec<&'static str> {
    let (_, last_stage) = DOCKERFILE.rsplit_once("\nFROM ").unwrap();
    last_stage
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .collect()
}

fn image_tag_of_the_deployment() -> String {
    let deployment = include_str!("../../deploy/kustomize/base/deployment.yaml");
    let mut images = deployment
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: "));
    images.next().unwrap().to_owned()
}

#[test]
fn make_image_makes_what_the_dockerfile_describes() -> Result<()> {
    let folder = temporary_folder("image")?;
    let file = folder.path().join("image.tar");
    make_image(&file)?;
    let archive = std::fs::read(&file).context("could not read the image")?;
    let (manifest, config, layer) = parts(&archive)?;

    assert_eq!(config["config"]["User"], *instructions("USER")[0]);
    let entrypoint: Value = serde_json::from_str(instructions("ENTRYPOINT")[0])
        .context("the entry point is not in the form that is JSON")?;
    assert_eq!(config["config"]["Entrypoint"], entrypoint);
    let labels: BTreeMap<&str, Value> = instructions("LABEL")
        .into_iter()
        .map(|label| label.split_once('=').unwrap())
        .map(|(name, value)| (name, serde_json::from_str(value).unwrap()))
        .collect();
    assert_eq!(config["config"]["Labels"], json!(labels));
    assert_eq!(
        labels["org.opencontainers.image.version"],
        env!("CARGO_PKG_VERSION")
    );
    // Both fill the image by the same script, and with nothing else.
    assert_eq!(
        instructions("COPY"),
        ["--from=build /root-of-the-image/ /"],
        "what else the Dockerfile copies, make image would not"
    );
    assert!(DOCKERFILE.contains("hack/image-root.sh /root-of-the-image "));
    assert_eq!(
        layer.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        BTreeSet::from([
            "docker-image-pusher",
            "etc/group",
            "etc/passwd",
            "etc/ssl/certs/ca-certificates.crt",
        ])
    );
    assert_eq!(
        manifest[0]["RepoTags"],
        json!([image_tag_of_the_deployment()])
    );

    // As a user without a name and a right, who can change none of it.
    for (name, file) in &layer {
        assert_eq!(file.owner, (0, 0), "{name}");
        assert_eq!(file.mode & 0o022, 0, "{name} is {:o}", file.mode);
        assert_eq!(file.mode & 0o004, 0o004, "{name} is {:o}", file.mode);
    }
    assert_eq!(layer["docker-image-pusher"].mode, 0o755);
    let passwd = String::from_utf8_lossy(&layer["etc/passwd"].content);
    let user = config["config"]["User"].as_str().unwrap();
    assert!(passwd.contains(&format!(":x:{user}:")), "{passwd}");

    make_image(&file)?;
    assert!(
        archive == std::fs::read(&file).context("could not read the image")?,
        "the same input gave other bytes"
    );
    Ok(())
}

#[test]
fn a_program_that_needs_a_loader_is_refused() -> Result<()> {
    let folder = temporary_folder("image")?;
    // A program of the machine, which is linked dynamically on every Debian.
    let finished = std::process::Command::new(crate::support::process::hack("image.sh"))
        .arg(folder.path().join("image.tar"))
        .arg("/bin/ls")
        .output()
        .context("could not start image.sh")?;
    let complaint = String::from_utf8_lossy(&finished.stderr);
    assert!(!finished.status.success());
    assert!(
        complaint.contains("/bin/ls is not linked statically") && complaint.contains("RUSTFLAGS"),
        "{complaint}"
    );
    assert!(!folder.path().join("image.tar").exists());
    Ok(())
}

#[test]
fn dockerfile_and_toolchain_name_the_same_rust() {
    let toolchain = include_str!("../../rust-toolchain.toml");
    let version = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))
        .unwrap()
        .trim_matches('"');
    assert!(
        DOCKERFILE.contains(&format!("rust:{version}-")),
        "{version}"
    );
    assert!(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(".dockerignore")
            .exists()
    );
}
