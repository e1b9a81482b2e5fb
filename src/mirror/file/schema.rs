//! Compares a document with a schema as the API server would, and names every difference with its place (CRD findings F36
//! and F37). Values never stand in what is told: they may be secrets.

use std::{collections::HashMap, sync::LazyLock};

use parking_lot::Mutex;
use regex::Regex;
use serde_json::{Map, Value as Json};

use super::{
    compose::Finding,
    node::{Entry, Node, Value},
};

/// Everything in `node` that `schema` does not let through.
pub(super) fn differences(node: &Node, schema: &Json) -> Differences {
    let mut differences = Differences::default();
    differences.value("", node, schema);
    differences
}

/// What a document has that its schema does not let through.
#[derive(Default)]
pub(super) struct Differences {
    /// Fields that the schema does not have.
    pub(super) unknown: Vec<Finding>,
    /// What keeps the fields that it has from being used.
    pub(super) wrong: Vec<Finding>,
}

impl Differences {
    fn tell(&mut self, node: &Node, path: &str, text: impl AsRef<str>) {
        let told = match path {
            "" => text.as_ref().to_owned(),
            path => format!("{path}: {}", text.as_ref()),
        };
        self.wrong.push((node.position, told));
    }

    fn value(&mut self, path: &str, node: &Node, schema: &Json) {
        match (schema["type"].as_str(), &node.value) {
            (Some("object"), Value::Mapping(entries)) => self.object(path, node, entries, schema),
            (Some("array"), Value::Sequence(items)) => self.list(path, node, items, schema),
            (Some("string"), Value::String(text)) => self.text(path, node, text, schema),
            (Some("boolean"), Value::Bool(_)) | (Some("number"), Value::Float(_)) | (None, _) => {}
            (Some("integer" | "number"), Value::Integer(number)) => {
                self.integer(path, node, *number, schema);
            }
            (Some(expected), found) => self.tell(node, path, mismatch(expected, found)),
        }
    }

    fn object(&mut self, path: &str, node: &Node, entries: &[Entry], schema: &Json) {
        let nothing = Map::new();
        let properties = schema["properties"].as_object();
        let others = &schema["additionalProperties"];
        // An object that nothing is said about may hold anything.
        let is_open = properties.is_none() && others.is_null() || *others == Json::Bool(true);
        let properties = properties.unwrap_or(&nothing);
        for Entry {
            key,
            position,
            value,
        } in entries
        {
            if let Some(property) = properties.get(key) {
                // Null says nothing (CRD finding F8).
                if value.value != Value::Null {
                    self.value(&joined(path, key), value, property);
                }
            } else if others.is_object() {
                self.value(&format!("{path}[{}]", key.escape_debug()), value, others);
            } else if !is_open {
                let text = unknown_field(&joined(path, key), key, properties);
                self.unknown.push((*position, text));
            }
        }
        for name in texts(&schema["required"]) {
            if node.field(name).is_none() {
                self.tell(node, &joined(path, name), "is required");
            }
        }
    }

    fn list(&mut self, path: &str, node: &Node, items: &[Node], schema: &Json) {
        let count = items.len() as u64;
        if let Some(limit) = schema["maxItems"].as_u64().filter(|limit| count > *limit) {
            self.tell(
                node,
                path,
                format!("must have at most {limit} items, not {count}"),
            );
        }
        if let Some(limit) = schema["minItems"].as_u64().filter(|limit| count < *limit) {
            self.tell(node, path, format!("must have at least {limit} items"));
        }
        for (index, item) in items.iter().enumerate() {
            self.value(&format!("{path}[{index}]"), item, &schema["items"]);
        }
    }

    fn text(&mut self, path: &str, node: &Node, text: &str, schema: &Json) {
        let length = text.chars().count() as u64;
        let choices: Vec<&str> = texts(&schema["enum"]).collect();
        if !choices.is_empty() && !choices.contains(&text) {
            self.tell(node, path, format!("must be one of {}", choices.join(", ")));
        }
        if schema["minLength"]
            .as_u64()
            .is_some_and(|limit| length < limit)
        {
            self.tell(node, path, "must not be empty");
        }
        if let Some(limit) = schema["maxLength"].as_u64().filter(|limit| length > *limit) {
            self.tell(
                node,
                path,
                format!("must have at most {limit} characters, not {length}"),
            );
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && !fits(text, pattern)
        {
            self.tell(node, path, format!("must match {pattern}"));
        }
        for message in broken_rules(text, schema) {
            self.tell(node, path, message);
        }
    }

    fn integer(&mut self, path: &str, node: &Node, number: i64, schema: &Json) {
        let (lowest, highest) = match schema["format"].as_str() {
            Some("int32") => (i32::MIN.into(), i32::MAX.into()),
            _ => (i64::MIN, i64::MAX),
        };
        let lowest = bound(&schema["minimum"]).unwrap_or(lowest);
        let highest = bound(&schema["maximum"]).unwrap_or(highest);
        if number < lowest {
            self.tell(node, path, format!("must be at least {lowest}"));
        }
        if number > highest {
            self.tell(node, path, format!("must be at most {highest}"));
        }
    }
}

/// A bound of whole numbers, which schemas write as `64.0`.
#[expect(clippy::cast_possible_truncation, reason = "bounds are small numbers")]
fn bound(value: &Json) -> Option<i64> {
    value.as_f64().map(|bound| bound as i64)
}

/// The messages of the rules that compare `text` with an expression in vain. What other rules say, `mirror::validate` knows.
fn broken_rules<'a>(text: &str, schema: &'a Json) -> impl Iterator<Item = &'a str> {
    let rules = schema["x-kubernetes-validations"].as_array();
    rules.into_iter().flatten().filter_map(move |rule| {
        let pattern = expression(rule["rule"].as_str()?)?;
        let message = rule["message"].as_str();
        message.filter(|_| !fits(text, &pattern))
    })
}

/// Whether a text is as a regular expression of our own schemas says. Each is made once: a thousand mirrors have it twenty
/// thousand times.
fn fits(text: &str, pattern: &str) -> bool {
    static MADE: LazyLock<Mutex<HashMap<String, Option<Regex>>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock();
    let expression = made
        .entry(pattern.to_owned())
        .or_insert_with(|| Regex::new(pattern).ok());
    expression
        .as_ref()
        .is_none_or(|expression| expression.is_match(text))
}

/// The regular expression that a rule demands, alone or before other demands: `self.matches('...') && ...`.
fn expression(rule: &str) -> Option<String> {
    let (quoted, rest) = rule.strip_prefix("self.matches('")?.split_once("')")?;
    (rest.is_empty() || rest.starts_with(" && ")).then(|| quoted.replace(r"\\", r"\"))
}

fn mismatch(expected: &str, found: &Value) -> String {
    let article = match expected {
        "object" | "array" | "integer" => "an",
        _ => "a",
    };
    let expected_kind = if expected == "array" {
        "a list".to_owned()
    } else {
        format!("{article} {expected}")
    };
    let told = format!("must be {expected_kind}, not {}", found.kind());
    match expected {
        "string" if found.is_scalar() && *found != Value::Null => {
            format!("{told}: put it in quotes")
        }
        _ => told,
    }
}

fn joined(path: &str, key: &str) -> String {
    let key = key.escape_debug();
    match path {
        "" => key.to_string(),
        path => format!("{path}.{key}"),
    }
}

fn texts(list: &Json) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
}

fn unknown_field(path: &str, key: &str, known: &Map<String, Json>) -> String {
    let near = known
        .keys()
        .map(|name| (distance(&key.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5)
        .min();
    match near {
        Some((_, name)) => format!("unknown field \"{path}\": did you mean {name}?"),
        None => format!("unknown field \"{path}\""),
    }
}

/// How many characters have to be put in, left out or changed to make one word of the other (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, character) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, candidate) in other.iter().enumerate() {
            let changed = diagonal + usize::from(character != *candidate);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{image_mirror_schema, secret_schema},
        mirror::file::compose::documents,
    };

    fn told(schema: &Json, text: &str) -> Vec<String> {
        let (documents, findings) = documents(text);
        assert_eq!(findings, Vec::new(), "{text}");
        let Differences { unknown, wrong } = differences(&documents[0], schema);
        let mut told = [unknown, wrong].concat();
        told.sort();
        told.into_iter()
            .map(|(at, text)| format!("{}:{}: {text}", at.line, at.column))
            .collect()
    }

    const MIRROR: &str = "\
apiVersion: imagepusher.io/v1alpha1
kind: ImageMirror
metadata: {name: app, labels: {a: b}, creationTimestamp: null}
spec:
  source:
    registry:
      repository: registry.example/team/app
      tags: [\"1.27\"]
  destinations:
  - name: internal
    repository: internal.example/mirror/{repository}
    insecure: true
  transfer: {maxConcurrent: 4, existingBlobs: Skip}
  suspend:
status: {whatever: [1]}
";

    /// What is told of [`MIRROR`] with this change.
    fn told_of(from: &str, to: &str) -> Vec<String> {
        let text = MIRROR.replacen(from, to, 1);
        assert_ne!(text, MIRROR, "{from}");
        told(&image_mirror_schema(), &text)
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_told_with_their_places() {
        assert_eq!(told(&image_mirror_schema(), MIRROR), Vec::<String>::new());
        for (from, to, expected) in [
            (
                "    insecure: true",
                "    skipTlsVerify: true",
                &[
                    r#"12:5: unknown field "spec.destinations[0].skipTlsVerify": did you mean skipTLSVerify?"#,
                ][..],
            ),
            (
                "  suspend:",
                "  suspended: 1",
                &[r#"14:3: unknown field "spec.suspended": did you mean suspend?"#],
            ),
            (
                "  suspend:",
                "  whatever: 1",
                &[r#"14:3: unknown field "spec.whatever""#],
            ),
            (
                "  suspend:",
                "  suspend: \"true\"",
                &["14:12: spec.suspend: must be a boolean, not a string"],
            ),
            (
                "\"1.27\"",
                "1.10, Off, x, null, [a]",
                &[
                    "8:14: spec.source.registry.tags[0]: must be a string, not a number: put it in quotes",
                    "8:20: spec.source.registry.tags[1]: must be a string, not a boolean: put it in quotes",
                    "8:28: spec.source.registry.tags[3]: must be a string, not null",
                    "8:34: spec.source.registry.tags[4]: must be a string, not a list",
                ],
            ),
            (
                "[\"1.27\"]",
                "{}",
                &["8:13: spec.source.registry.tags: must be a list, not an object"],
            ),
        ] {
            assert_eq!(told_of(from, to), expected, "{to}");
        }
    }

    #[test]
    fn what_lies_out_of_bounds_is_told_with_its_place() {
        for (from, to, expected) in [
            (
                "    repository: internal.example/mirror/{repository}\n",
                "",
                &["10:5: spec.destinations[0].repository: is required"][..],
            ),
            (
                "maxConcurrent: 4, existingBlobs: Skip",
                "maxConcurrent: 65, retryAttempts: -1, existingBlobs: skip",
                &[
                    "13:29: spec.transfer.maxConcurrent: must be at most 64",
                    "13:48: spec.transfer.retryAttempts: must be at least 0",
                    "13:67: spec.transfer.existingBlobs: must be one of Skip, Upload",
                ],
            ),
            (
                "maxConcurrent: 4",
                "maxConcurrent: \"4\"",
                &["13:29: spec.transfer.maxConcurrent: must be an integer, not a string"],
            ),
            (
                "maxConcurrent: 4",
                "maxConcurrent: 1.5",
                &["13:29: spec.transfer.maxConcurrent: must be an integer, not a number"],
            ),
            (
                "insecure: true",
                "secretRef: {name: Not_A_Name}",
                &[
                    r"12:23: spec.destinations[0].secretRef.name: must match ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
                ],
            ),
            (
                "insecure: true",
                "secretRef: login",
                &["12:16: spec.destinations[0].secretRef: must be an object, not a string"],
            ),
            (
                "name: internal",
                "name: Internal",
                &[
                    "10:11: spec.destinations[0].name: must be lower-case letters, digits and inner '-', at most 63",
                ],
            ),
            (
                "\"1.27\"",
                "1.27.3, a/b",
                &[
                    "8:22: spec.source.registry.tags[1]: must be a tag: letters, digits, '.', '_' and '-', at most 128",
                ],
            ),
            (
                "  suspend:",
                "  interval: 1",
                &["14:13: spec.interval: must be a string, not a number: put it in quotes"],
            ),
            (
                "  suspend:",
                "  interval: soon",
                &[
                    "14:13: spec.interval: must be a duration of at least 1m, for example 30m, 1h or 1h30m",
                ],
            ),
            (
                "{a: b}",
                "{a: 1}",
                &["3:35: metadata.labels[a]: must be a string, not a number: put it in quotes"],
            ),
            (
                "labels",
                "label",
                &[r#"3:23: unknown field "metadata.label": did you mean labels?"#],
            ),
        ] {
            assert_eq!(told_of(from, to), expected, "{to}");
        }
        let schema = image_mirror_schema();
        let long = MIRROR.replace("internal\n", &format!("{}\n", "x".repeat(64)));
        assert_eq!(
            told(&schema, &long),
            ["10:11: spec.destinations[0].name: must have at most 63 characters, not 64"]
        );
        let many = MIRROR.replace("\"1.27\"", &"x, ".repeat(501));
        assert_eq!(
            told(&schema, &many),
            ["8:13: spec.source.registry.tags: must have at most 500 items, not 501"]
        );
    }

    #[test]
    fn an_empty_text_is_told_as_such() {
        let schema = image_mirror_schema();
        let text = MIRROR.replace("insecure: true", "secretRef: {name: ''}");
        let told = told(&schema, &text);
        assert_eq!(
            told[0],
            "12:23: spec.destinations[0].secretRef.name: must match ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
        );
        assert_eq!(
            told[1],
            "12:23: spec.destinations[0].secretRef.name: must not be empty"
        );
    }

    /// A rule of another form would be passed over in silence.
    #[test]
    fn every_rule_with_an_expression_is_understood() {
        fn rules<'a>(schema: &'a Json, found: &mut Vec<&'a str>) {
            match schema {
                Json::Object(fields) => {
                    found.extend(fields.get("rule").and_then(Json::as_str));
                    fields.values().for_each(|value| rules(value, found));
                }
                Json::Array(items) => items.iter().for_each(|item| rules(item, found)),
                _ => {}
            }
        }
        let schema = image_mirror_schema();
        let mut found = Vec::new();
        rules(&schema, &mut found);
        found.retain(|rule| rule.contains("matches("));
        assert!(found.len() > 5, "{found:?}");
        for rule in found {
            let pattern = expression(rule).unwrap_or_else(|| panic!("{rule}"));
            assert!(Regex::new(&pattern).is_ok(), "{pattern}");
        }
    }

    #[test]
    fn a_secret_is_told_about_by_its_keys_alone() {
        let text = "metadata: {name: a}\nstringData:\n  password: 4711\n  token: {hunter2: 1}\ndatta: {}\n";
        let expected = [
            "3:13: stringData[password]: must be a string, not a number: put it in quotes",
            "4:10: stringData[token]: must be a string, not an object",
            r#"5:1: unknown field "datta": did you mean data?"#,
        ];
        assert_eq!(told(&secret_schema(), text), expected);
    }
}
