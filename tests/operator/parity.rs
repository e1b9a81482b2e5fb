//! One file, two programs: `sync` and the operator carry it out alike, down to the words of the report.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::bed::{Bed, PATIENCE, condition};
use crate::support::binary::Sandbox;
use crate::support::images::Image;
use crate::support::process::temporary_folder;
use crate::support::registry::Registry;
use crate::support::{Context, Result, skopeo};

/// Where images come from and go to.
struct Registries {
    from: Registry,
    open: Registry,
    closed: Registry,
}

impl Registries {
    fn start() -> Result<Self> {
        let registries = Self {
            from: Registry::open()?,
            open: Registry::open()?,
            closed: Registry::with_htpasswd("robot", "right")?,
        };
        for tag in ["1", "2", "alone"] {
            let image = Image::builder().layers(2, 30_000).build()?;
            image.push(registries.from.access(), &format!("team/app:{tag}"))?;
        }
        Ok(registries)
    }

    fn source(&self, tags: &[&str]) -> Value {
        json!({"registry": {
            "repository": format!("{}/team/app", self.from.address()), "tags": tags, "insecure": true,
        }})
    }

    fn to_open(&self, mirror: &str) -> Value {
        let repository = format!("{}/{mirror}/{{repository}}", self.open.address());
        json!({"name": "open", "repository": repository, "insecure": true})
    }

    fn to_closed(&self, mirror: &str, secret: &str) -> Value {
        let repository = format!("{}/{mirror}/{{name}}", self.closed.address());
        json!({
            "name": "closed", "repository": repository, "insecure": true, "secretRef": {"name": secret},
        })
    }

    /// Specs of mirrors that end in each way a run can end, by their names.
    fn specs(&self) -> Vec<(&'static str, Value)> {
        let archive = |path: &str| json!({"archive": {"path": path}});
        let both = |name| [self.to_open(name), self.to_closed(name, "login")];
        vec![
            (
                "absent",
                json!({"source": self.source(&["absent", "lost"]), "destinations": [self.to_open("absent")]}),
            ),
            (
                "all",
                json!({"source": self.source(&["1", "2"]), "destinations": both("all")}),
            ),
            (
                "archived",
                json!({"source": archive("app.tar"), "destinations": both("archived")}),
            ),
            (
                // What no other mirror brings into the cache before it.
                "cached",
                json!({"source": self.source(&["alone"]), "destinations": []}),
            ),
            (
                "cut",
                json!({"source": archive("cut.tar"), "destinations": [self.to_open("cut")]}),
            ),
            (
                "later",
                json!({"source": self.source(&["1"]), "destinations": [self.to_open("later")], "suspend": true}),
            ),
            (
                "no-file",
                json!({"source": archive("none.tar"), "destinations": [self.to_open("no-file")]}),
            ),
            (
                "partly",
                json!({"source": self.source(&["1", "absent", "2"]), "destinations": both("partly")}),
            ),
            (
                "refused",
                json!({
                    "source": self.source(&["1"]),
                    "destinations": [self.to_open("refused"), self.to_closed("refused", "wrong")],
                }),
            ),
        ]
    }
}

/// The mirrors and their Secrets as one text.
fn documents(namespace: &str, specs: &[(&str, Value)]) -> String {
    let secrets = [("login", "right"), ("wrong", "a-canary")].map(|(name, password)| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/basic-auth",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": {"username": "robot", "password": password},
        })
    });
    let mirrors = specs.iter().map(|(name, spec)| {
        json!({
            "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror", "spec": spec,
            "metadata": {"name": name, "namespace": namespace},
        })
    });
    let documents: Vec<String> = secrets
        .into_iter()
        .chain(mirrors)
        .map(|document| document.to_string())
        .collect();
    documents.join("\n---\n")
}

/// A whole archive and half of one, both of long ago.
fn fill(folder: &Path) -> Result<()> {
    fs::create_dir(folder).context("could not make a folder")?;
    let whole = folder.join("app.tar");
    let image = Image::builder().layers(2, 30_000).build()?;
    image.save_docker_archive(&whole, "team/tool:3")?;
    let bytes = fs::read(&whole).context("no archive")?;
    fs::write(folder.join("cut.tar"), &bytes[..bytes.len() / 2]).context("could not write")?;
    for name in ["app.tar", "cut.tar"] {
        let file = File::options().append(true).open(folder.join(name));
        file.and_then(|file| file.set_modified(SystemTime::now() - Duration::from_hours(1)))
            .context("could not set the time of an archive")?;
    }
    Ok(())
}

/// What `sync` says of each mirror.
fn by_sync(documents: &str, archives: &Path) -> Result<Vec<Value>> {
    let sandbox = Sandbox::new()?;
    sandbox.file("mirrors.yaml", documents)?;
    let archives = archives.to_str().unwrap();
    sandbox
        .run(&[
            "sync",
            "-f",
            "mirrors.yaml",
            "--archive-dir",
            archives,
            "--report",
            "report.json",
        ])?
        .expect_code(3)?;
    let text = fs::read_to_string(sandbox.path().join("report.json")).context("no report")?;
    let report: Value = serde_json::from_str(&text).context("the report is no JSON")?;
    Ok(report["mirrors"].as_array().unwrap().clone())
}

/// What the operator says of a mirror in its ConfigMaps, put together.
fn by_operator(bed: &Bed<'_>, name: &str) -> Result<Value> {
    let object = bed.wait_until(name, PATIENCE, |object| {
        object["status"]["reportRef"].is_array()
            && condition(object, "Ready")["status"] != "Unknown"
            && condition(object, "Reconciling").is_null()
    })?;
    let mut whole = Value::Null;
    for reference in object["status"]["reportRef"].as_array().unwrap() {
        let map = reference["name"].as_str().unwrap();
        let path = "jsonpath={.data.report\\.json}";
        let text = bed.kubectl(&["get", "configmap", map, "-o", path])?;
        let mut part: Value = serde_json::from_str(&text).context("the report is no JSON")?;
        let images = part["images"].take();
        for field in ["version", "part", "parts"] {
            part.as_object_mut().unwrap().remove(field);
        }
        if whole.is_null() {
            whole = part;
            whole["images"] = json!([]);
        }
        let all = whole["images"].as_array_mut().unwrap();
        all.extend(images.as_array().unwrap().iter().cloned());
    }
    Ok(whole)
}

#[tokio::test]
async fn the_same_files_give_the_same_report_by_sync_and_by_the_operator() -> Result<()> {
    let registries = Registries::start()?;
    let bed = Bed::new("parity").await?;
    let shelf = temporary_folder("shelf")?;
    let archives = shelf.path().join(&bed.namespace);
    fill(&archives)?;
    let specs = registries.specs();
    let documents = documents(&bed.namespace, &specs);

    let expected = by_sync(&documents, &archives)?;
    let copied = || skopeo::digest(registries.closed.access(), "archived/tool:3");
    let digest = copied()?;
    registries.open.empty()?;
    registries.closed.empty()?;
    assert!(copied().is_err());

    let _operator = bed.operator_with(&[
        "--watch-namespace",
        &bed.namespace,
        "--archive-dir",
        shelf.path().to_str().unwrap(),
    ])?;
    bed.cluster.apply(&documents)?;
    let mut outcomes = Vec::new();
    for ((name, _), expected) in specs.iter().zip(&expected) {
        assert_eq!(expected["name"], *name);
        outcomes.push((*name, expected["outcome"].as_str().unwrap()));
        if *name == "later" {
            // The operator writes reports of runs.
            let object = bed.wait_ready(name, "Unknown", "Suspended")?;
            assert!(object["status"].get("reportRef").is_none(), "{object:#}");
            continue;
        }
        assert_eq!(by_operator(&bed, name)?, *expected);
    }
    assert_eq!(
        outcomes,
        [
            ("absent", "Failed"),
            ("all", "Succeeded"),
            ("archived", "Succeeded"),
            ("cached", "Succeeded"),
            ("cut", "Failed"),
            ("later", "Suspended"),
            ("no-file", "Failed"),
            ("partly", "PartlyFailed"),
            ("refused", "Failed"),
        ]
    );
    assert_eq!(copied()?, digest);
    Ok(())
}
