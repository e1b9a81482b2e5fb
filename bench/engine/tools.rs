//! The programs that are compared, and the words in which each is told a job. Every tool gets what it has for being fast:
//! where there are many images and it can work on several, sixteen at once.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use crate::rows::Task;
use crate::site::{ARCHIVE, DESTINATION_PARENT, DESTINATION_REPOSITORY, SOURCE_REPOSITORY, Site};
use crate::support::{Context, Result};

/// Images at once where there are many.
const AT_ONCE: u32 = 16;

/// The policy file and the logins of the machine have no say.
const SKOPEO_COPY: &str = "--insecure-policy copy --all --preserve-digests";
const ANONYMOUSLY_FROM: &str = "--src-tls-verify=false --src-no-creds";
const ANONYMOUSLY_TO: &str = "--dest-tls-verify=false --dest-no-creds";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tool {
    Ours,
    Skopeo,
    Crane,
    Regctl,
    Regsync,
}

/// Where the programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    ours: PathBuf,
    /// Folders beside those of the PATH.
    peers: Option<PathBuf>,
}

impl Tool {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Skopeo => "skopeo",
            Self::Crane => "crane",
            Self::Regctl => "regctl",
            Self::Regsync => "regsync",
        }
    }

    /// The command lines that do the job, one after the other, each beginning with the program's own arguments.
    pub(crate) fn commands(self, task: Task, site: &Site) -> Result<Vec<Vec<String>>> {
        match (self, task) {
            (Self::Ours, _) => ours(task, site).map(|command| vec![command]),
            (Self::Regsync, _) => regsync(site).map(|command| vec![command]),
            (_, Task::Copy { .. }) => {
                let destinations = 0..site.destinations.len();
                Ok(destinations
                    .map(|position| self.copy(site, position))
                    .collect())
            }
            (_, Task::KillAndAgain) => Ok(vec![self.copy(site, 0)]),
            (_, Task::Store) => Ok(vec![self.store(site)]),
            (_, Task::CopyTags | Task::NothingToDo) => Ok(vec![self.copy_tags(site)]),
            (_, Task::Archive | Task::Compress) => Ok(vec![self.push_archive(site)]),
        }
    }

    fn copy(self, site: &Site, destination: usize) -> Vec<String> {
        let (from, to) = (site.source_image(), site.destination_image(destination));
        match self {
            Self::Crane => words(&format!("copy --insecure {from} {to}")),
            Self::Regctl => {
                let plain = plain_http(&[&site.source, &site.destination(destination)]);
                words(&format!("{plain} image copy {from} {to}"))
            }
            _ => words(&format!(
                "{SKOPEO_COPY} {ANONYMOUSLY_FROM} {ANONYMOUSLY_TO} docker://{from} docker://{to}"
            )),
        }
    }

    fn store(self, site: &Site) -> Vec<String> {
        let from = site.source_image();
        match self {
            Self::Crane => words(&format!("pull --insecure --format=oci {from} store")),
            Self::Regctl => {
                let plain = plain_http(&[&site.source]);
                words(&format!("{plain} image copy {from} ocidir://store:1"))
            }
            _ => words(&format!(
                "{SKOPEO_COPY} {ANONYMOUSLY_FROM} docker://{from} oci:store:1"
            )),
        }
    }

    fn copy_tags(self, site: &Site) -> Vec<String> {
        let from = format!("{}/{SOURCE_REPOSITORY}", site.source);
        let to = site.destination(0);
        if self == Self::Crane {
            return words(&format!(
                "copy --insecure --all-tags --jobs {AT_ONCE} {from} {to}/{DESTINATION_REPOSITORY}"
            ));
        }
        let verb = "--insecure-policy sync --all --preserve-digests --src docker --dest docker";
        let to = format!("{to}/{DESTINATION_PARENT}");
        words(&format!(
            "{verb} {ANONYMOUSLY_FROM} {ANONYMOUSLY_TO} {from} {to}"
        ))
    }

    fn push_archive(self, site: &Site) -> Vec<String> {
        let to = site.destination_image(0);
        match self {
            Self::Crane => words(&format!("push --insecure {ARCHIVE} {to}")),
            Self::Regctl => {
                let plain = plain_http(&[&site.destination(0)]);
                words(&format!("{plain} image import {to} {ARCHIVE}"))
            }
            // An archive has no digest that could be preserved.
            _ => words(&format!(
                "--insecure-policy copy {ANONYMOUSLY_TO} docker-archive:{ARCHIVE} docker://{to}"
            )),
        }
    }
}

/// A resource for `sync`, or the options of `pull` and `push`.
fn ours(task: Task, site: &Site) -> Result<Vec<String>> {
    let command = match task {
        Task::Store => format!(
            "pull -r {SOURCE_REPOSITORY} -t 1 --registry http://{}",
            site.source
        ),
        Task::Archive | Task::Compress => {
            let compress = if task == Task::Compress {
                "--compress gzip"
            } else {
                ""
            };
            format!(
                "push -s {ARCHIVE} -r {DESTINATION_REPOSITORY} -t 1 --registry http://{} --max-concurrent 4 {compress}",
                site.destination(0)
            )
        }
        Task::Copy { .. } | Task::KillAndAgain | Task::CopyTags | Task::NothingToDo => {
            write(&site.home().join("mirror.yaml"), &mirror(site))?;
            "sync -f mirror.yaml".to_owned()
        }
    };
    Ok(words(&format!("{command} --cache-dir cache")))
}

fn mirror(site: &Site) -> Value {
    let destination = |position| {
        let repository = format!("{}/{DESTINATION_REPOSITORY}", site.destination(position));
        json!({"name": format!("d{position}"), "repository": repository, "insecure": true})
    };
    let destinations: Vec<_> = (0..site.destinations.len()).map(destination).collect();
    let repository = format!("{}/{SOURCE_REPOSITORY}", site.source);
    let mut spec = json!({
        "source": {"registry": {"repository": repository, "tags": site.tags, "insecure": true}},
        "destinations": destinations,
    });
    if site.tags.len() > 1 {
        spec["transfer"] = json!({"maxConcurrent": AT_ONCE});
    }
    json!({
        "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror",
        "metadata": {"name": "bench"}, "spec": spec,
    })
}

fn regsync(site: &Site) -> Result<Vec<String>> {
    let destination = site.destination(0);
    let config = json!({
        "version": 1,
        "creds": [{"registry": site.source, "tls": "disabled"}, {"registry": destination, "tls": "disabled"}],
        "defaults": {"parallel": AT_ONCE},
        "sync": [{
            "source": format!("{}/{SOURCE_REPOSITORY}", site.source),
            "target": format!("{destination}/{DESTINATION_REPOSITORY}"),
            "type": "repository",
        }],
    });
    write(&site.home().join("regsync.yml"), &config)?;
    Ok(words("once -c regsync.yml"))
}

/// regctl's options for registries without TLS.
fn plain_http(registries: &[&String]) -> String {
    let options: Vec<_> = registries
        .iter()
        .map(|registry| format!("--host reg={registry},tls=disabled"))
        .collect();
    options.join(" ")
}

/// Nothing in these command lines has a space in it.
fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

/// As JSON, which is a part of YAML.
fn write(file: &Path, content: &Value) -> Result<()> {
    std::fs::write(file, content.to_string()).context(format!("could not write {}", file.display()))
}

impl Programs {
    pub(crate) const fn new(ours: PathBuf, peers: Option<PathBuf>) -> Self {
        Self { ours, peers }
    }

    /// The tool's program; none if it is not installed.
    pub(crate) fn find(&self, tool: Tool) -> Option<PathBuf> {
        if tool == Tool::Ours {
            return Some(self.ours.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = self.peers.iter().cloned();
        folders
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(tool.name()))
            .find(|program| program.is_file())
    }

    /// What the tool says about its version.
    pub(crate) fn version(&self, tool: Tool) -> Option<String> {
        let arguments: &[&str] = match tool {
            Tool::Ours | Tool::Skopeo => &["--version"],
            Tool::Crane => &["version"],
            Tool::Regctl | Tool::Regsync => &["version", "--format", "{{.VCSTag}}"],
        };
        let output = Command::new(self.find(tool)?)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        Some(text.lines().next()?.trim().to_owned())
    }
}
