//! From documents to runs: every mirror gets the Secrets it names, and nothing starts before all of them are right.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use crate::{
    api::ImageMirrorSpec,
    error::handlers,
    output::OutputManager,
    registry::{Hosts, Loopback},
};

use super::{
    documents::{Document, Documents, ObjectName, Problem},
    node::Node,
};
use crate::mirror::{
    ArchiveFolder, Error, Given, Logins, MirrorRequest, RefusedArchives, SecretDocument,
    ValidatedMirror, validate,
};

/// What the files do not say.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Logins for ServiceAccounts that have no document.
    pub logins: Option<Logins>,
    /// The folder that paths of archives are relative to; none = that of the file.
    pub archives: Option<PathBuf>,
    /// What the process knows of registries.
    pub hosts: Hosts,
}

/// A mirror that is ready.
#[derive(Debug)]
pub struct PreparedMirror {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// What is to be done.
    pub work: PreparedWork,
}

/// What is to be done for a mirror.
#[derive(Debug)]
pub enum PreparedWork {
    /// Nothing: it is suspended.
    Suspended,
    /// A run.
    Run {
        /// The run; it tells of itself under the mirror's name.
        request: Box<MirrorRequest>,
        /// Whether it reads what the other mirrors bring into the cache.
        reads_cache: bool,
        /// How many images the mirror selects; of an archive it shows when it is read.
        images: Option<usize>,
    },
}

/// A mirror whose spec is right.
struct Judged<'a> {
    name: &'a ObjectName,
    document: &'a Document<ImageMirrorSpec>,
    mirror: ValidatedMirror,
    is_suspended: bool,
}

impl Documents {
    /// Makes a run of every mirror, in the order of their names.
    ///
    /// # Errors
    /// Everything that is wrong with any of the documents, by file and place.
    pub fn prepare(
        mut self,
        surroundings: &Surroundings,
        output: &OutputManager,
    ) -> Result<Vec<PreparedMirror>, Vec<Problem>> {
        let mut problems = std::mem::take(&mut self.problems);
        let judged = self.judge(&mut problems);
        refuse_conflicts(&judged, &mut problems);
        let prepared: Vec<_> = judged
            .into_iter()
            .filter_map(|judged| self.prepare_one(judged, surroundings, output, &mut problems))
            .collect();
        if problems.is_empty() {
            return Ok(prepared);
        }
        problems.sort();
        problems.dedup();
        Err(problems)
    }

    fn judge(&self, problems: &mut Vec<Problem>) -> Vec<Judged<'_>> {
        let mut judged = Vec::new();
        for (name, document) in &self.mirrors {
            let Some(spec) = &document.content else {
                continue;
            };
            match validate(spec) {
                Ok(mirror) => judged.push(Judged {
                    name,
                    document,
                    mirror,
                    is_suspended: spec.is_suspended(),
                }),
                Err(error) => problems.push(problem(document, &error)),
            }
        }
        judged
    }

    /// The run of a mirror; none where something is wrong, which has been told.
    fn prepare_one(
        &self,
        judged: Judged<'_>,
        surroundings: &Surroundings,
        output: &OutputManager,
        problems: &mut Vec<Problem>,
    ) -> Option<PreparedMirror> {
        let Judged {
            name,
            document,
            mirror,
            is_suspended,
        } = judged;
        let work = if is_suspended {
            PreparedWork::Suspended
        } else {
            let given = self.given(name, document, &mirror, surroundings, problems)?;
            let (reads_cache, images) = (mirror.reads_cache(), mirror.image_count());
            match mirror.into_request(given, &output.about(&name.to_string())) {
                Ok(request) => PreparedWork::Run {
                    request: Box::new(request),
                    reads_cache,
                    images,
                },
                Err(error) => {
                    problems.push(problem(document, &error));
                    return None;
                }
            }
        };
        let ObjectName { namespace, name } = name.clone();
        Some(PreparedMirror {
            namespace,
            name,
            work,
        })
    }

    /// What the mirror cannot say itself.
    fn given(
        &self,
        name: &ObjectName,
        document: &Document<ImageMirrorSpec>,
        mirror: &ValidatedMirror,
        surroundings: &Surroundings,
        problems: &mut Vec<Problem>,
    ) -> Option<Given> {
        let namespace = &name.namespace;
        let secrets = self.secrets_of(document, namespace, &mirror.secret_names(), problems);
        let accounts = mirror.service_accounts();
        let has_logins = surroundings.logins.is_some();
        let pull_secrets = self.pull_secrets(document, namespace, &accounts, has_logins, problems);
        let folder = surroundings.archives.as_ref();
        Some(Given {
            secrets: secrets?,
            pull_secrets: pull_secrets?,
            // A file does not change under whoever reads it.
            reader: None,
            logins: surroundings.logins.clone(),
            archives: Some(ArchiveFolder {
                path: folder.unwrap_or(&document.origin.folder).clone(),
                // Nobody writes to the file while its owner asks to read it.
                settle: Duration::ZERO,
                refused: RefusedArchives::default(),
            }),
            hosts: surroundings.hosts.clone(),
            tenant: namespace.as_str().into(),
            // What was asked for by hand stays until it is cleaned by hand.
            owner: None,
            loopback: Loopback::Named,
            // Whoever typed the command waits for it, and can stop it.
            waits_for_quota: true,
        })
    }

    fn secrets_of(
        &self,
        document: &Document<ImageMirrorSpec>,
        namespace: &str,
        names: &BTreeSet<String>,
        problems: &mut Vec<Problem>,
    ) -> Option<BTreeMap<String, SecretDocument>> {
        let mut found = Some(BTreeMap::new());
        for name in names {
            match self.secret_named(namespace, name) {
                Named::Known(secret) => {
                    if let Some(found) = &mut found {
                        found.insert(name.clone(), secret.clone());
                    }
                    continue;
                }
                Named::Broken => {}
                Named::Missing => {
                    let references = ["secretRef", "certSecretRef", "proxySecretRef"];
                    for path in fields_with(&document.node, &references, name) {
                        let text = format!(
                            "{path}: Secret {name} is in none of the files: add it, in namespace {namespace}"
                        );
                        problems.push(document.problem(&path, text));
                    }
                }
            }
            found = None;
        }
        found
    }

    fn pull_secrets(
        &self,
        document: &Document<ImageMirrorSpec>,
        namespace: &str,
        accounts: &BTreeSet<String>,
        has_logins: bool,
        problems: &mut Vec<Problem>,
    ) -> Option<BTreeMap<String, Vec<SecretDocument>>> {
        let mut found = Some(BTreeMap::new());
        for account in accounts {
            let name = ObjectName {
                namespace: namespace.to_owned(),
                name: account.clone(),
            };
            match self.accounts.get(&name) {
                Some(described) => {
                    let secrets = self.secrets_of_account(described, namespace, problems);
                    found = found.zip(secrets).map(|(mut found, secrets)| {
                        found.insert(account.clone(), secrets);
                        found
                    });
                }
                None if has_logins => {}
                None => {
                    for path in fields_with(&document.node, &["serviceAccountName"], account) {
                        let text = format!(
                            "{path}: ServiceAccount {account} is in none of the files: add it, in namespace {namespace}, or \
                             use --docker-auth"
                        );
                        problems.push(document.problem(&path, text));
                    }
                    found = None;
                }
            }
        }
        found
    }

    fn secrets_of_account(
        &self,
        account: &Document<Vec<String>>,
        namespace: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<SecretDocument>> {
        let mut found = Some(Vec::new());
        for (index, name) in account.content.as_ref()?.iter().enumerate() {
            match self.secret_named(namespace, name) {
                Named::Known(secret) => {
                    if let Some(found) = &mut found {
                        found.push(secret.clone());
                    }
                    continue;
                }
                Named::Broken => {}
                Named::Missing => {
                    let path = format!("imagePullSecrets[{index}]");
                    let text = format!(
                        "{path}: Secret {name} is in none of the files: add it, in namespace {namespace}"
                    );
                    problems.push(account.problem(&path, text));
                }
            }
            found = None;
        }
        found
    }

    fn secret_named(&self, namespace: &str, name: &str) -> Named<'_> {
        let name = ObjectName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        match self.secrets.get(&name) {
            Some(document) => document
                .content
                .as_ref()
                .map_or(Named::Broken, Named::Known),
            None => Named::Missing,
        }
    }
}

/// What a name of a Secret leads to.
enum Named<'a> {
    Known(&'a SecretDocument),
    /// To one that something is wrong with, which has been told.
    Broken,
    Missing,
}

fn problem<T>(document: &Document<T>, error: &Error) -> Problem {
    document.problem(error.field().unwrap_or("spec"), handlers::message(error))
}

/// The fields of registry accesses that hold this name, with their paths.
fn fields_with(node: &Node, fields: &[&str], name: &str) -> Vec<String> {
    let source = node.descend(&["spec", "source", "registry"]);
    let source = source.map(|node| ("spec.source.registry".to_owned(), node));
    let destinations = node.descend(&["spec", "destinations"]).map(Node::items);
    let destinations = destinations.unwrap_or_default().iter().enumerate();
    let destinations =
        destinations.map(|(index, node)| (format!("spec.destinations[{index}]"), node));
    let mut found = Vec::new();
    for (path, access) in source.into_iter().chain(destinations) {
        for field in fields {
            let value = access.field(field).map(|entry| &entry.value);
            let text =
                value.and_then(|value| value.text().or_else(|| value.field("name")?.value.text()));
            if text == Some(name) {
                found.push(format!("{path}.{field}"));
            }
        }
    }
    found
}

/// Two mirrors that write different images to one place undo each other's work. A suspended one writes nothing.
fn refuse_conflicts(judged: &[Judged<'_>], problems: &mut Vec<Problem>) {
    let mut writers: HashMap<String, (&ObjectName, String)> = HashMap::new();
    for Judged {
        name,
        document,
        mirror,
        ..
    } in judged.iter().filter(|judged| !judged.is_suspended)
    {
        for (target, written) in mirror.targets() {
            let (first, image) = writers
                .entry(target.clone())
                .or_insert_with(|| (*name, written.clone()));
            if *first == *name || *image == written {
                continue;
            }
            let text = format!(
                "{target} would be written by {first} with {image} and by {name} with {written}: give one of them another tag \
                 or repository"
            );
            problems.push(document.problem("spec.destinations", text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mirror::Origin;

    /// The folder that a mirror of this file looks for archives in.
    fn archives(file: &str, surroundings: &Surroundings) -> PathBuf {
        let mut documents = Documents::default();
        let folder = std::path::Path::new(file).parent().unwrap().to_owned();
        let origin = Origin {
            name: file.to_owned(),
            folder,
        };
        let text = "{apiVersion: imagepusher.io/v1alpha1, kind: ImageMirror, metadata: {name: app}, \
                    spec: {source: {archive: {path: app.tar}}}}";
        documents.read(&origin, text.as_bytes());
        let mut problems = Vec::new();
        let judged = documents.judge(&mut problems);
        let Judged {
            name,
            document,
            mirror,
            ..
        } = &judged[0];
        let given = documents.given(name, document, mirror, surroundings, &mut problems);
        let folder = given.unwrap().archives.unwrap();
        assert_eq!(folder.settle, Duration::ZERO);
        folder.path
    }

    #[test]
    fn archives_lie_beside_the_file_unless_a_folder_is_named() {
        let mut surroundings = Surroundings::default();
        let file = "mirrors/app.yaml";
        assert_eq!(archives(file, &surroundings), PathBuf::from("mirrors"));
        surroundings.archives = Some("/archives".into());
        assert_eq!(archives(file, &surroundings), PathBuf::from("/archives"));
    }
}
