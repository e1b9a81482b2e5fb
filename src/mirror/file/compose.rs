//! From the text of a file to its documents. Whatever is wrong is noted and the reading goes on behind it, so that one look
//! shows everything.

use std::{collections::HashMap, rc::Rc};

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::{
    node::{Entry, Node, Position, Value},
    scalar::resolve,
};

/// Values of one file, with those that aliases repeat: far more than the largest mirror has, far less than a bomb of aliases.
const MAX_NODES: usize = 200_000;

/// Bytes of text that aliases repeat. A file is no longer than that, but each of its aliases copies what it names.
const MAX_REPEATED: usize = 64 * 1024 * 1024;

/// Values within values: a resource has a dozen levels, and what is walked by recursion must not exhaust the stack.
const MAX_DEPTH: usize = 64;

/// Something wrong at a place.
pub(super) type Finding = (Position, String);

/// The documents of a file, and what is wrong with its text.
pub(super) fn documents(text: &str) -> (Vec<Node>, Vec<Finding>) {
    let mut composer = Composer {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        room: MAX_NODES,
        text_room: MAX_REPEATED,
        depth: 0,
        findings: Vec::new(),
    };
    let mut documents = Vec::new();
    loop {
        match composer.document() {
            Ok(Some(document)) => documents.push(document),
            Ok(None) => break,
            Err(Stop::Document(finding)) => {
                composer.findings.push(finding);
                // Behind a broken document others may stand.
                if !composer.parser.proceed_next_document().unwrap_or(false) {
                    break;
                }
            }
            Err(Stop::File(finding)) => {
                composer.findings.push(finding);
                break;
            }
        }
    }
    (documents, composer.findings)
}

/// Why reading stops.
enum Stop {
    /// This document cannot be read.
    Document(Finding),
    /// Nothing more is read.
    File(Finding),
}

struct Composer<'input> {
    parser: Parser<'input, StrInput<'input>>,
    anchors: HashMap<usize, Rc<Node>>,
    room: usize,
    text_room: usize,
    depth: usize,
    findings: Vec<Finding>,
}

/// The fields of an object that is being read. They are found by name, since a Secret may have a hundred thousand.
#[derive(Default)]
struct Fields {
    entries: Vec<Entry>,
    positions: HashMap<String, Position>,
}

impl Fields {
    /// Adds a field. Where one of its name is there, it is given back with the place of that one.
    fn add(&mut self, entry: Entry) -> Result<(), (Entry, Position)> {
        if let Some(earlier) = self.positions.get(&entry.key) {
            return Err((entry, *earlier));
        }
        self.positions.insert(entry.key.clone(), entry.position);
        self.entries.push(entry);
        Ok(())
    }
}

/// The merge key of YAML 1.1, which kubectl knows.
const MERGE: &str = "<<";

impl<'input> Composer<'input> {
    /// The next document; none at the end of the file.
    fn document(&mut self) -> Result<Option<Node>, Stop> {
        self.anchors.clear();
        self.depth = 0;
        loop {
            let Some((event, span)) = self.next()? else {
                return Ok(None);
            };
            if event.is_node() {
                return self.node(event, span).map(Some);
            }
        }
    }

    fn next(&mut self) -> Result<Option<(Event<'input>, Span)>, Stop> {
        self.parser
            .next_event()
            .transpose()
            .map_err(|error| Stop::Document(unreadable(&error)))
    }

    /// The next event within a node, where the parser always has one.
    fn inner(&mut self, outer: Position) -> Result<(Event<'input>, Span), Stop> {
        loop {
            let next = self.next()?;
            let (event, span) = next.ok_or_else(|| {
                Stop::Document((outer, "ends in the middle of a value".to_owned()))
            })?;
            if !matches!(event, Event::Comment(..)) {
                return Ok((event, span));
            }
        }
    }

    fn node(&mut self, event: Event<'input>, span: Span) -> Result<Node, Stop> {
        let position = start(&span);
        self.take_room(1, position)?;
        self.go_deeper(1, position)?;
        let anchor = event.anchor_id();
        let value = match event {
            Event::Alias(id) => return self.aliased(id, position),
            Event::Scalar(text, style, _, tag) => {
                self.scalar(&text, style, tag.as_deref(), position)
            }
            Event::SequenceStart(..) => self.sequence(position)?,
            Event::MappingStart(..) => self.mapping(position)?,
            _ => Value::Null,
        };
        self.depth -= 1;
        let node = Node { position, value };
        if let Some(id) = anchor {
            self.take_room_of_copy(&node, position)?;
            self.anchors.insert(id, Rc::new(node.clone()));
        }
        Ok(node)
    }

    /// A copy of what an anchor names. Its parts keep their own places, since there they are mended.
    fn aliased(&mut self, id: usize, position: Position) -> Result<Node, Stop> {
        let Some(named) = self.anchors.get(&id).map(Rc::clone) else {
            return Err(Stop::Document((
                position,
                "this alias names what holds it".to_owned(),
            )));
        };
        self.take_room_of_copy(&named, position)?;
        // The alias and what it names are one level.
        let levels = depth(&named);
        self.go_deeper(levels - 1, position)?;
        self.depth -= levels;
        let value = named.value.clone();
        Ok(Node { position, value })
    }

    fn go_deeper(&mut self, levels: usize, position: Position) -> Result<(), Stop> {
        self.depth += levels;
        if self.depth > MAX_DEPTH {
            let text = format!("values lie more than {MAX_DEPTH} levels deep here");
            return Err(Stop::Document((position, text)));
        }
        Ok(())
    }

    fn take_room(&mut self, nodes: usize, position: Position) -> Result<(), Stop> {
        self.room = self.room.checked_sub(nodes).ok_or_else(|| {
            let text = format!("more than {MAX_NODES} values stand here: split the file");
            Stop::File((position, text))
        })?;
        Ok(())
    }

    /// Before the copy is made.
    fn take_room_of_copy(&mut self, node: &Node, position: Position) -> Result<(), Stop> {
        self.take_room(size(node), position)?;
        let left = self.text_room.checked_sub(text_length(node));
        self.text_room = left.ok_or_else(|| {
            let limit = MAX_REPEATED >> 20;
            let text = format!("aliases repeat more than {limit} MiB of text: split the file");
            Stop::File((position, text))
        })?;
        Ok(())
    }

    fn scalar(
        &mut self,
        text: &str,
        style: ScalarStyle,
        tag: Option<&Tag>,
        position: Position,
    ) -> Value {
        match tag.map(|tag| (tag.core_suffix(), tag)) {
            None if style == ScalarStyle::Plain => resolve(text),
            None | Some((Some("str"), _)) => Value::String(text.to_owned()),
            Some((Some("null" | "bool" | "int" | "float"), _)) => resolve(text),
            Some((None, tag)) if tag.original() == "!" => Value::String(text.to_owned()),
            Some(_) => {
                let text = "a tag of this kind has no meaning here: leave it out".to_owned();
                self.findings.push((position, text));
                Value::Null
            }
        }
    }

    fn sequence(&mut self, position: Position) -> Result<Value, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.inner(position)?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::Sequence(items));
            }
            items.push(self.node(event, span)?);
        }
    }

    fn mapping(&mut self, position: Position) -> Result<Value, Stop> {
        let (mut fields, mut merged) = (Fields::default(), Vec::new());
        loop {
            let (event, span) = self.inner(position)?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let is_merge = event.scalar() == Some((MERGE, ScalarStyle::Plain));
            let key = self.key(event, span)?;
            let (event, span) = self.inner(position)?;
            let value = self.node(event, span)?;
            match key {
                Some(_) if is_merge => merged.push(value),
                Some((key, position)) => self.add(
                    &mut fields,
                    Entry {
                        key,
                        position,
                        value,
                    },
                ),
                None => {}
            }
        }
        for value in merged {
            self.merge(&mut fields, value);
        }
        Ok(Value::Mapping(fields.entries))
    }

    /// The name of a field, unless it can be none.
    fn key(
        &mut self,
        event: Event<'input>,
        span: Span,
    ) -> Result<Option<(String, Position)>, Stop> {
        let position = start(&span);
        let text = match &event {
            Event::Scalar(text, ..) => text.to_string(),
            _ => String::new(),
        };
        let node = self.node(event, span)?;
        if let Value::String(text) = node.value {
            return Ok(Some((text, position)));
        }
        let kind = node.value.kind();
        let told = if node.value.is_scalar() {
            format!(
                "the key {} is {kind}: put it in quotes",
                text.escape_debug()
            )
        } else {
            format!("a key must be a string, not {kind}")
        };
        self.findings.push((position, told));
        Ok(None)
    }

    fn add(&mut self, fields: &mut Fields, entry: Entry) {
        if let Err((entry, earlier)) = fields.add(entry) {
            self.findings.push((
                entry.position,
                format!(
                    "the key {} stands here twice, first in line {}",
                    entry.key.escape_debug(),
                    earlier.line
                ),
            ));
        }
    }

    /// Adds the fields of other objects that are not there yet.
    fn merge(&mut self, fields: &mut Fields, from: Node) {
        match from.value {
            Value::Mapping(others) => {
                for other in others {
                    // What is there already goes before what is merged.
                    drop(fields.add(other));
                }
            }
            Value::Sequence(items) => {
                for item in items {
                    self.merge(fields, item);
                }
            }
            other => {
                let text = format!("{MERGE} takes objects, not {}", other.kind());
                self.findings.push((from.position, text));
            }
        }
    }
}

fn start(span: &Span) -> Position {
    Position {
        line: span.start.line(),
        column: span.start.col() + 1,
    }
}

/// The parser's words; they name at most one character of the text.
fn unreadable(error: &ScanError) -> Finding {
    let position = Position {
        line: error.marker().line(),
        column: error.marker().col() + 1,
    };
    (position, format!("this is no YAML: {}", error.info()))
}

fn size(node: &Node) -> usize {
    let items: usize = node.items().iter().map(size).sum();
    let fields: usize = node.entries().iter().map(|entry| size(&entry.value)).sum();
    1 + items + fields
}

/// Bytes of text in a value, the names of its fields included.
fn text_length(node: &Node) -> usize {
    let own = node.text().map_or(0, str::len);
    let items: usize = node.items().iter().map(text_length).sum();
    let fields = node.entries().iter();
    let fields: usize = fields
        .map(|entry| entry.key.len() + text_length(&entry.value))
        .sum();
    own + items + fields
}

fn depth(node: &Node) -> usize {
    let items = node.items().iter().map(depth).max();
    let fields = node.entries().iter().map(|entry| depth(&entry.value)).max();
    1 + items.max(fields).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let (_, findings) = documents(text);
        findings
            .into_iter()
            .map(|(at, text)| format!("{}:{}: {text}", at.line, at.column))
            .collect()
    }

    fn read(text: &str) -> Vec<serde_json::Value> {
        let (documents, findings) = documents(text);
        assert_eq!(findings, Vec::new(), "{text}");
        documents.iter().map(Node::to_json).collect()
    }

    #[test]
    fn documents_are_read_with_the_types_that_kubectl_sees() {
        let text = "# first\na: 1.10\nb: \"1.10\"\nc: !!str 4\nd: y\ne:\nf: |\n  text\n---\n---\n[1, 'x']\n...\n";
        assert_eq!(
            read(text),
            [
                json!({"a": 1.1, "b": "1.10", "c": "4", "d": true, "f": "text\n"}),
                json!(null),
                json!([1, "x"])
            ]
        );
        assert_eq!(read(""), Vec::<serde_json::Value>::new());
    }

    #[test]
    fn json_is_read_as_it_is_written() {
        let text = "{\r\n\t\"a\": [1, true, null, \"\\ud83e\\udd80 \\/\"],\r\n\t\"b\": {\"c\":\"d\"}\r\n}\r\n";
        assert_eq!(
            read(text),
            [json!({"a": [1, true, null, "🦀 /"], "b": {"c": "d"}})]
        );
        assert_eq!(read("\u{feff}{\"a\":\"b\"}"), [json!({"a": "b"})]);
    }

    #[test]
    fn anchors_and_merge_keys_are_filled_in() {
        let text = "base: &base {a: 1, b: 2}\nitem:\n  <<: *base\n  b: 3\nlist: [*base]\n";
        assert_eq!(
            read(text),
            [
                json!({"base": {"a": 1, "b": 2}, "item": {"b": 3, "a": 1}, "list": [{"a": 1, "b": 2}]})
            ]
        );
    }

    #[test]
    fn everything_wrong_with_a_text_is_told_with_its_place() {
        for (text, expected) in [
            (
                "a: 1\nb: 2\na: 3\n",
                &["3:1: the key a stands here twice, first in line 1"][..],
            ),
            (
                "{\"a\": 1,\n \"a\": 2}",
                &["2:2: the key a stands here twice, first in line 1"],
            ),
            (
                "on: 1\n1: 2\n",
                &[
                    "1:1: the key on is a boolean: put it in quotes",
                    "2:1: the key 1 is a number: put it in quotes",
                ],
            ),
            ("? [a]\n: 1\n", &["1:3: a key must be a string, not a list"]),
            (
                "a: !other x\nb: ! 1\n",
                &["1:11: a tag of this kind has no meaning here: leave it out"],
            ),
            ("<<: 4\n", &["1:5: << takes objects, not a number"]),
            ("a: &x [*x]\n", &["1:8: this alias names what holds it"]),
        ] {
            assert_eq!(findings(text), expected, "{text}");
        }
    }

    #[test]
    fn a_broken_document_does_not_hide_the_next_one() {
        let (documents, findings) = documents("a: [1\n---\nb: 2\n---\nc: {\n---\nd: 4\n");
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(
            findings
                .iter()
                .all(|(_, text)| text.starts_with("this is no YAML: "))
        );
        let read: Vec<_> = documents.iter().map(Node::to_json).collect();
        assert_eq!(read, [json!({"b": 2}), json!({"d": 4})]);
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let previous = format!("*a{}, ", level - 1).repeat(10);
            text = format!("{text}a{level}: &a{level} [{previous}]\n");
        }
        let told = findings(&text);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("more than 200000 values"), "{told:?}");
    }

    #[test]
    fn aliases_of_long_texts_are_refused_before_they_fill_the_memory() {
        // Few values each: what is repeated is their text, as a value and as a key.
        let long = "x".repeat(1_000_000);
        let aliases = |count: usize| "*a, ".repeat(count);
        for anchored in [format!("&a {long}"), format!("&a {{? {long} : y}}")] {
            let of_a = |count| format!("a: {anchored}\nb: [{}]\n", aliases(count));
            assert_eq!(findings(&of_a(50)), Vec::<String>::new());
            let told = findings(&of_a(200));
            assert_eq!(told.len(), 1);
            assert!(
                told[0].contains("aliases repeat more than 64 MiB"),
                "{}",
                told[0]
            );
        }
    }

    #[test]
    fn an_object_of_many_keys_is_read_in_a_moment() {
        use std::fmt::Write as _;

        let mut text = "base: &base\n".to_owned();
        for number in 0..45_000 {
            writeln!(text, "  a-rather-long-name-of-a-key-{number}:").unwrap();
        }
        text.push_str("other:\n  a-rather-long-name-of-a-key-7: 1\n  <<: *base\n");
        let started = std::time::Instant::now();
        assert_eq!(findings(&text), Vec::<String>::new());
        let (documents, _) = documents(&text);
        let other = &documents[0].field("other").unwrap().value;
        assert_eq!(other.entries().len(), 45_000);
        // Comparing each with each takes minutes.
        let took = started.elapsed();
        assert!(took < std::time::Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn what_lies_too_deep_is_refused_with_and_without_aliases() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(findings(&nested(64)), Vec::<String>::new());
        let told = ["1:65: values lie more than 64 levels deep here"];
        assert_eq!(findings(&nested(65)), told);
        // The object, the list and its 31 levels each way.
        let aliased = |levels| {
            format!(
                "a: &a {}\nb: {}*a{}\n",
                nested(levels),
                "[".repeat(31),
                "]".repeat(31)
            )
        };
        assert_eq!(findings(&aliased(32)), Vec::<String>::new());
        assert_eq!(
            findings(&aliased(33)),
            ["2:35: values lie more than 64 levels deep here"]
        );
    }

    #[test]
    fn places_are_found_by_the_path_of_a_field() {
        let (documents, _) = documents("spec:\n  list:\n  - a: 1\n  - a: 2\n    b: {c: 3}\n");
        for (path, line, column) in [
            ("spec", 1, 1),
            ("spec.list", 2, 3),
            ("spec.list[1]", 4, 5),
            ("spec.list[1].b.c", 5, 9),
            ("spec.list[1].missing", 4, 5),
            ("spec.list[7]", 2, 3),
            ("nothing", 1, 1),
        ] {
            assert_eq!(
                documents[0].position_of(path),
                Position { line, column },
                "{path}"
            );
        }
    }
}
