//! The files of `examples/`, which people begin with: as they stand, the API server takes them, and with registries that
//! exist in the place of those they name, `sync` carries them out. The module `pods` has the operator do it.

use std::path::{Path, PathBuf};

use crate::manifests::control_plane;
use crate::support::binary::Sandbox;
use crate::support::forward_proxy::{ForwardProxy, behind};
use crate::support::images::Image;
use crate::support::process::run;
use crate::support::registry::{Registry, RegistryBuilder};
use crate::support::{Context, Result, skopeo};

/// The login in the examples.
const LOGIN: (&str, &str) = ("mirror", "change-me");
const UNKNOWN_DIGEST: &str =
    "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// The registries that the examples speak of, as they are here, with the images that they name.
pub(crate) struct Scene {
    hub: Registry,
    pub(crate) internal: Registry,
    branch: Registry,
    nginx: Image,
    alpine: Image,
    pinned: Image,
    app: Image,
}

impl Scene {
    /// With registries that begin as this one does.
    pub(crate) fn set(registry: &RegistryBuilder) -> Result<Self> {
        let closed = || registry.clone().htpasswd(LOGIN.0, LOGIN.1).start();
        let image = || Image::builder().layers(2, 40_000).build();
        let scene = Self {
            hub: registry.clone().start()?,
            internal: closed()?,
            branch: closed()?,
            nginx: Image::builder()
                .platforms(&["linux/amd64", "linux/arm64"])
                .build()?,
            alpine: image()?,
            pinned: image()?,
            app: image()?,
        };
        for (image, tag) in [
            (&scene.nginx, "1.27"),
            (&scene.alpine, "1.27-alpine"),
            (&scene.pinned, "1.26-of-last-week"),
        ] {
            image.push(scene.hub.access(), &format!("library/nginx:{tag}"))?;
        }
        Ok(scene)
    }

    /// The example for this namespace and these registries.
    pub(crate) fn example(&self, name: &str, namespace: &str) -> Result<String> {
        let text = read(&folder().join(name))?
            .replace("namespace: team-a", &format!("namespace: {namespace}"))
            .replace("docker.io", self.hub.address())
            .replace("registry.internal.example", self.internal.address())
            .replace("registry.branch.example:5000", self.branch.address())
            .replace(UNKNOWN_DIGEST, &self.pinned.digest);
        assert!(!text.contains(".example"), "{name}: {text}");
        Ok(with_plain_http(&text))
    }

    /// The archive `app.tar` of the examples.
    pub(crate) fn archive(&self, file: &Path) -> Result<()> {
        self.app.save_docker_archive(file, "app:1.2")
    }

    /// What registry-to-registry.yaml promises.
    pub(crate) fn assert_both_have_all(&self) -> Result<()> {
        for (tag, image) in [
            ("1.27", &self.nginx),
            ("1.27-alpine", &self.alpine),
            ("1.26", &self.pinned),
        ] {
            for (registry, repository) in [
                (&self.internal, "mirror/library/nginx"),
                (&self.branch, "hub/nginx"),
            ] {
                let name = format!("{repository}:{tag}");
                let digest = skopeo::digest(registry.access(), &name)?;
                assert_eq!(digest, image.digest, "{name}");
            }
        }
        Ok(())
    }

    /// What cache-to-registry.yaml promises.
    pub(crate) fn assert_pushed_from_cache(&self) -> Result<()> {
        let digest = skopeo::digest(self.internal.access(), "from-cache/library/nginx:1.27")?;
        assert_eq!(digest, self.nginx.digest);
        Ok(())
    }

    /// What archive-to-registry.yaml promises. Returns the digest.
    pub(crate) fn assert_pushed_from_archive(&self) -> Result<String> {
        let config = skopeo::config(self.internal.access(), "team/app:1.2")?;
        let layers = self.app.manifests[0].layers.iter();
        let expected: Vec<&str> = layers.map(|layer| layer.diff_id.as_str()).collect();
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(expected));
        skopeo::digest(self.internal.access(), "team/app:1.2")
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).context(format!("could not read {}", file.display()))
}

/// All that there are.
fn names() -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder()).context("there are no examples")?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().display().to_string())
        .filter(|name| name != "README.md")
        .collect();
    names.sort();
    Ok(names)
}

/// Registries of the bed have no TLS, unless they say so: `insecure: true` stands beside every repository but those of a
/// cache, which nobody asks over the network.
fn with_plain_http(text: &str) -> String {
    let mut lines = Vec::new();
    let mut is_of_cache = false;
    for line in text.lines() {
        lines.push(line.to_owned());
        let field = line.trim_start().trim_start_matches("- ");
        if field.starts_with("repository: ") && !is_of_cache {
            let indent = line.len() - field.len();
            lines.push(format!("{:indent$}insecure: true", ""));
        }
        is_of_cache = field == "cache:";
    }
    lines.join("\n")
}

#[tokio::test]
async fn the_api_server_takes_every_example_as_it_stands() -> Result<()> {
    let control_plane = control_plane().await?;
    let names = names()?;
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        let mut command = control_plane.kubectl();
        command
            .args(["apply", "--server-side", "--dry-run=server", "-f"])
            .arg(folder().join(&name));
        let taken = run(&mut command)?;
        let taken = String::from_utf8_lossy(&taken);
        assert!(taken.contains("serverside-applied"), "{name}: {taken}");
    }
    Ok(())
}

#[test]
fn sync_carries_out_every_example() -> Result<()> {
    let scene = Scene::set(&Registry::builder())?;
    let sandbox = Sandbox::new()?;
    scene.archive(&sandbox.path().join("app.tar"))?;
    let sync = |name: &str| {
        sandbox.file(name, scene.example(name, "team-a")?)?;
        sandbox.run(&["sync", "-f", name])?.expect_code(0).map(drop)
    };
    sync("registry-to-registry.yaml")?;
    scene.assert_both_have_all()?;

    scene.internal.empty()?;
    sync("pull-into-cache.yaml")?;
    sync("cache-to-registry.yaml")?;
    scene.assert_pushed_from_cache()?;

    sync("archive-into-cache.yaml")?;
    let listed = sandbox.run(&["list"])?.expect_code(0)?;
    assert!(
        listed.stdout.contains("library/app:1.2"),
        "{}",
        listed.stdout
    );
    sync("archive-to-registry.yaml")?;
    scene.assert_pushed_from_archive()?;

    let tried = [
        "archive-into-cache.yaml",
        "archive-to-registry.yaml",
        // `Cluster::put_archive` runs this one.
        "archive-upload-job.yaml",
        "cache-to-registry.yaml",
        // The test below.
        "private-registry.yaml",
        "pull-into-cache.yaml",
        "registry-to-registry.yaml",
    ];
    assert_eq!(names()?, tried, "an example without a test");
    Ok(())
}

#[test]
fn sync_reaches_the_private_registry_of_the_example_through_its_proxy() -> Result<()> {
    let vendor = Registry::builder().mutual_tls().start()?;
    let internal = Registry::with_htpasswd(LOGIN.0, LOGIN.1)?;
    let proxy = ForwardProxy::start("team-a", LOGIN.1)?;
    let image = Image::builder().build()?;
    image.push(vendor.access(), "product/agent:4.1")?;
    let (certificate, key) = vendor.client_files().unwrap();
    // The lines of a block in YAML.
    let block = |pem: &str| pem.trim_end().replace('\n', "\n    ");
    let text = read(&folder().join("private-registry.yaml"))?
        .replace("(the vendor's CA, PEM)", &block(vendor.ca_pem().unwrap()))
        .replace("(our certificate, PEM)", &block(&read(&certificate)?))
        .replace("(its key, PEM)", &block(&read(&key)?))
        .replace("registry.vendor.example", &behind(vendor.address()))
        .replace("proxy.example:3128", &proxy.address());
    // Of the two registries this one has no TLS.
    let text = text.replace(
        "serviceAccountName: default",
        "serviceAccountName: default\n    insecure: true",
    );
    let text = text.replace("registry.internal.example", internal.address());
    assert!(!text.contains(".example"), "{text}");
    let sandbox = Sandbox::new()?;
    sandbox.file("vendor.yaml", text)?;
    sandbox
        .run(&["sync", "-f", "vendor.yaml"])?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(internal.access(), "vendor/agent:4.1")?,
        image.digest
    );
    assert!(!proxy.sent_on().is_empty());
    Ok(())
}
