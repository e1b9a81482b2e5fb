//! The documents of files: mirrors, Secrets and ServiceAccounts. Other kinds are passed over and named.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    path::PathBuf,
    sync::LazyLock,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::Value as Json;

use crate::api::{ImageMirrorSpec, image_mirror_schema, secret_schema, service_account_schema};

use super::{
    compose::{self, Finding},
    node::{Entry, Node, Position, Value},
    schema,
};
use crate::mirror::{ONLY_REGISTRY, SecretDocument, access::is_object_name};

static MIRROR: LazyLock<Json> = LazyLock::new(image_mirror_schema);
static SECRET: LazyLock<Json> = LazyLock::new(secret_schema);
static SERVICE_ACCOUNT: LazyLock<Json> = LazyLock::new(service_account_schema);

const GROUP: &str = "imagepusher.io";
const API_VERSION: &str = "imagepusher.io/v1alpha1";
const KIND: &str = "ImageMirror";
/// The namespace of a document that names none, as kubectl has it.
const DEFAULT_NAMESPACE: &str = "default";
/// The type of a Secret that names none.
const DEFAULT_TYPE: &str = "Opaque";

/// Where documents were read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file, as messages name it.
    pub name: String,
    /// The folder that paths of archives in it are relative to where nothing else is said.
    pub folder: PathBuf,
}

/// Something at a place of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The place in it.
    #[serde(flatten)]
    pub position: Position,
    /// What is wrong with it, and what would be right.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            position: Position { line, column },
            text,
        } = self;
        write!(formatter, "{file}:{line}:{column}: {text}")
    }
}

/// Namespace and name of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ObjectName {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// An object of a file. `content` is empty where something is wrong with it, which has been told: it is known, so that
/// nobody misses it as well.
#[derive(Debug, Clone)]
pub(super) struct Document<T> {
    pub(super) origin: Origin,
    pub(super) node: Node,
    pub(super) content: Option<T>,
}

impl<T> Document<T> {
    /// A problem with the field at `path`.
    pub(super) fn problem(&self, path: &str, text: impl Into<String>) -> Problem {
        Problem {
            file: self.origin.name.clone(),
            position: self.node.position_of(path),
            text: text.into(),
        }
    }
}

/// Objects of one kind by name.
type Objects<T> = BTreeMap<ObjectName, Document<T>>;

/// Everything that was read.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    pub(super) mirrors: Objects<ImageMirrorSpec>,
    pub(super) secrets: Objects<SecretDocument>,
    /// With the names of the imagePullSecrets.
    pub(super) accounts: Objects<Vec<String>>,
    pub(super) problems: Vec<Problem>,
    passed_over: Vec<Problem>,
}

impl Documents {
    /// Reads a file. What is wrong with it is kept for the preparation, which tells everything at once.
    pub fn read(&mut self, origin: &Origin, bytes: &[u8]) {
        let position = Position { line: 1, column: 1 };
        let Ok(text) = std::str::from_utf8(bytes) else {
            let text = "this is not text in UTF-8".to_owned();
            return self.tell(origin, [(position, text)]);
        };
        let (nodes, findings) = compose::documents(text);
        self.tell(origin, findings);
        for node in nodes {
            self.add(origin, node);
        }
    }

    /// How many mirrors were read.
    pub fn mirror_count(&self) -> usize {
        self.mirrors.len()
    }

    /// Documents of kinds that nothing is done with.
    pub fn passed_over(&self) -> &[Problem] {
        &self.passed_over
    }

    fn tell(&mut self, origin: &Origin, findings: impl IntoIterator<Item = Finding>) {
        self.problems.extend(problems(origin, findings));
    }

    fn add(&mut self, origin: &Origin, node: Node) {
        if node.value == Value::Null {
            return;
        }
        let field = |key| node.field(key).and_then(|entry| entry.value.text());
        let (Some(api_version), Some(kind)) = (field("apiVersion"), field("kind")) else {
            let text = "must be an object with apiVersion and kind, both strings".to_owned();
            return self.tell(origin, [(node.position, text)]);
        };
        match (api_version, kind) {
            (API_VERSION, KIND) => self.add_mirror(origin, node),
            ("v1", "Secret") => self.add_secret(origin, node),
            ("v1", "ServiceAccount") => self.add_account(origin, node),
            ("v1", "List") | (API_VERSION, "ImageMirrorList") => self.add_items(origin, &node),
            (_, KIND) => {
                let text = format!("{KIND} is known in apiVersion {API_VERSION} only");
                self.tell(origin, [(node.position_of("apiVersion"), text)]);
            }
            (group, _) if group.split('/').next() == Some(GROUP) => {
                let text = format!("{GROUP} has no such kind: write {KIND}");
                self.tell(origin, [(node.position_of("kind"), text)]);
            }
            _ => {
                let text = format!(
                    "{} of {} is passed over",
                    kind.escape_debug(),
                    api_version.escape_debug()
                );
                self.passed_over
                    .extend(problems(origin, [(node.position, text)]));
            }
        }
    }

    /// What `kubectl get -o yaml` prints: the items are documents.
    fn add_items(&mut self, origin: &Origin, node: &Node) {
        let Some(Value::Sequence(items)) = node.field("items").map(|entry| &entry.value.value)
        else {
            let text = "items: must be a list".to_owned();
            return self.tell(origin, [(node.position_of("items"), text)]);
        };
        for item in items {
            self.add(origin, item.clone());
        }
    }

    fn add_mirror(&mut self, origin: &Origin, node: Node) {
        let Some((name, is_right)) = self.identify(origin, &node, &MIRROR) else {
            return;
        };
        let spec = is_right.then(|| self.spec(origin, &node)).flatten();
        let added = insert(&mut self.mirrors, KIND, name, origin, node, spec);
        self.problems.extend(added);
    }

    fn add_secret(&mut self, origin: &Origin, node: Node) {
        let Some((name, is_right)) = self.identify(origin, &node, &SECRET) else {
            return;
        };
        let secret = is_right.then(|| self.secret(origin, &name.name, &node));
        let added = insert(
            &mut self.secrets,
            "Secret",
            name,
            origin,
            node,
            secret.flatten(),
        );
        self.problems.extend(added);
    }

    fn add_account(&mut self, origin: &Origin, node: Node) {
        let Some((name, is_right)) = self.identify(origin, &node, &SERVICE_ACCOUNT) else {
            return;
        };
        let secrets = is_right.then(|| pull_secrets(&node));
        let added = insert(
            &mut self.accounts,
            "ServiceAccount",
            name,
            origin,
            node,
            secrets,
        );
        self.problems.extend(added);
    }

    /// The name of an object, if it has a right one, and whether its fields are as its schema says. Fields that the schema does
    /// not have are told, but hide nothing that is wrong with the others.
    fn identify(
        &mut self,
        origin: &Origin,
        node: &Node,
        schema: &Json,
    ) -> Option<(ObjectName, bool)> {
        let differences = schema::differences(node, schema);
        let is_right = differences.wrong.is_empty();
        self.tell(origin, differences.unknown);
        self.tell(origin, differences.wrong);
        match object_name(node) {
            Ok(name) => Some((name, is_right)),
            // A name of a wrong type was told already.
            Err(_)
                if node
                    .descend(&["metadata", "name"])
                    .is_some_and(|name| name.text().is_none()) =>
            {
                None
            }
            Err(finding) => {
                self.tell(origin, [finding]);
                None
            }
        }
    }

    fn spec(&mut self, origin: &Origin, node: &Node) -> Option<ImageMirrorSpec> {
        let spec = node.field("spec")?.value.to_json();
        match serde_path_to_error::deserialize(spec) {
            Ok(spec) => Some(spec),
            Err(error) => {
                let path = format!("spec.{}", error.path());
                let text = format!("{path}: {}", error.inner());
                self.tell(origin, [(node.position_of(&path), text)]);
                None
            }
        }
    }

    fn secret(&mut self, origin: &Origin, name: &str, node: &Node) -> Option<SecretDocument> {
        let (mut data, mut is_right) = (BTreeMap::new(), true);
        for Entry { key, value, .. } in fields(node, "data") {
            let Some(bytes) = decoded(value.text().unwrap_or_default()) else {
                let text = format!(
                    "data[{}]: is not base64; text as it is goes under stringData",
                    key.escape_debug()
                );
                self.tell(origin, [(value.position, text)]);
                is_right = false;
                continue;
            };
            data.insert(key.clone(), bytes);
        }
        for Entry { key, value, .. } in fields(node, "stringData") {
            let text = value.text().unwrap_or_default();
            data.insert(key.clone(), text.as_bytes().to_vec());
        }
        let kind = node.field("type").and_then(|entry| entry.value.text());
        is_right.then(|| SecretDocument {
            name: name.to_owned(),
            kind: kind.unwrap_or(DEFAULT_TYPE).to_owned(),
            data,
            registry: annotation(node, ONLY_REGISTRY).map(str::to_owned),
        })
    }
}

/// The value of an annotation of an object.
fn annotation<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    let metadata = &node.field("metadata")?.value;
    let annotations = &metadata.field("annotations")?.value;
    annotations.field(name)?.value.text()
}

fn problems(
    origin: &Origin,
    findings: impl IntoIterator<Item = Finding>,
) -> impl Iterator<Item = Problem> {
    let file = origin.name.clone();
    findings.into_iter().map(move |(position, text)| Problem {
        file: file.clone(),
        position,
        text,
    })
}

/// Adds an object; a second one of the same name is a problem.
fn insert<T>(
    objects: &mut Objects<T>,
    kind: &str,
    name: ObjectName,
    origin: &Origin,
    node: Node,
    content: Option<T>,
) -> Option<Problem> {
    let document = Document {
        origin: origin.clone(),
        node,
        content,
    };
    match objects.entry(name) {
        btree_map::Entry::Vacant(place) => {
            place.insert(document);
            None
        }
        btree_map::Entry::Occupied(first) => {
            let place = first.get().problem("metadata.name", "");
            Some(document.problem(
                "metadata.name",
                format!(
                    "{kind} {} stands in {}:{} already",
                    first.key(),
                    place.file,
                    place.position.line
                ),
            ))
        }
    }
}

fn object_name(node: &Node) -> Result<ObjectName, Finding> {
    if node.descend(&["metadata", "generateName"]).is_some() {
        let path = "metadata.generateName";
        let text = format!("{path}: a file needs a name that stays: write metadata.name");
        return Err((node.position_of(path), text));
    }
    let text = |key| node.descend(&["metadata", key]).and_then(Node::text);
    let name = text("name").ok_or_else(|| {
        // Where metadata lacks it, the schema of Kubernetes does not mind.
        let text = "metadata.name: is required".to_owned();
        (node.position_of("metadata"), text)
    })?;
    let namespace = text("namespace").unwrap_or(DEFAULT_NAMESPACE);
    let wrong = |path: &str, rule| (node.position_of(path), format!("{path}: {rule}"));
    if !is_object_name(name) {
        let rule = "must be lower-case letters, digits, '.' and '-', at most 253";
        return Err(wrong("metadata.name", rule));
    }
    if !is_object_name(namespace) || namespace.len() > 63 || namespace.contains('.') {
        let rule = "must be lower-case letters, digits and '-', at most 63";
        return Err(wrong("metadata.namespace", rule));
    }
    Ok(ObjectName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// The fields of the object in `key`, without those that are null.
fn fields<'a>(node: &'a Node, key: &str) -> impl Iterator<Item = &'a Entry> {
    let entries = node.field(key).map(|entry| entry.value.entries());
    let entries = entries.unwrap_or_default().iter();
    entries.filter(|entry| entry.value.text().is_some())
}

/// Base64 as the API server takes it: line breaks in it do not count.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let text: String = text.split(['\r', '\n']).collect();
    STANDARD.decode(text).ok()
}

fn pull_secrets(node: &Node) -> Vec<String> {
    let items = node
        .field("imagePullSecrets")
        .map(|entry| entry.value.items());
    let names = items.unwrap_or_default().iter();
    names
        .filter_map(|item| item.field("name")?.value.text().map(str::to_owned))
        .collect()
}
