//! A YAML document as a tree that remembers where everything stands (CRD finding F36).

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value as Json};

/// A place in a file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

/// What kubectl makes of a value, so that a file means here what it means in the cluster.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A field with the place of its name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) value: Node,
}

/// Tells the kind alone: what stands in a Secret must not reach a log.
impl fmt::Debug for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kind())
    }
}

impl Value {
    /// The kind of value in words. Never the value itself, which may be a secret.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "an object",
        }
    }

    /// Plain text in one line of the file, which quotes would make a string.
    pub(super) const fn is_scalar(&self) -> bool {
        !matches!(self, Self::Sequence(_) | Self::Mapping(_))
    }
}

impl Node {
    /// The fields of an object; none of anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; none of anything else.
    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The field of this name. One that is null counts as absent (CRD finding F8).
    pub(super) fn field(&self, key: &str) -> Option<&Entry> {
        self.entries()
            .iter()
            .find(|entry| entry.key == key && entry.value.value != Value::Null)
    }

    /// The value at the end of these names.
    pub(super) fn descend(&self, keys: &[&str]) -> Option<&Self> {
        keys.iter()
            .try_fold(self, |node, key| Some(&node.field(key)?.value))
    }

    /// The text, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Where a field such as `spec.destinations[0].tag` stands; of one that is not there, the innermost thing that is.
    pub(super) fn position_of(&self, path: &str) -> Position {
        let mut node = self;
        let mut position = self.position;
        for part in path.split('.') {
            let (key, indices) = part.split_once('[').unwrap_or((part, ""));
            let Some(entry) = node.field(key) else {
                return position;
            };
            (node, position) = (&entry.value, entry.position);
            for index in indices.split_terminator(']') {
                let index = index.trim_start_matches('[').parse::<usize>();
                let Some(item) = index.ok().and_then(|index| node.items().get(index)) else {
                    return position;
                };
                (node, position) = (item, item.position);
            }
        }
        position
    }

    /// The same as JSON, without fields that are null: `suspend:` alone says nothing (CRD finding F8).
    pub(super) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Integer(value) => Json::from(*value),
            Value::Float(value) => Json::from(*value),
            Value::String(text) => Json::String(text.clone()),
            Value::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Value::Mapping(entries) => Json::Object(
                entries
                    .iter()
                    .filter(|entry| entry.value.value != Value::Null)
                    .map(|entry| (entry.key.clone(), entry.value.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}
