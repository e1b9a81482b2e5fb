//! `docs/protocol.md` says what the tests test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The rules of each section of the reference, by its letter and its last number.
const RULES: [(char, u32); 8] = [
    ('G', 6),
    ('E', 4),
    ('A', 20),
    ('R', 21),
    ('M', 13),
    ('D', 12),
    ('U', 17),
    ('T', 8),
];

/// Rules about what this program does not do yet: catalogs, copying referrers, deleting.
const LATER: [&str; 4] = ["E1", "T4", "T5", "T7"];

/// One row of the page.
struct Row {
    rule: String,
    module: String,
    tests: Vec<String>,
}

fn rows() -> Vec<Row> {
    include_str!("../../docs/protocol.md")
        .lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line
                .strip_prefix("| ")?
                .strip_suffix(" |")?
                .split(" | ")
                .collect();
            let [rule, _, module, tests] = cells.try_into().ok()?;
            (rule != "rule").then(|| Row {
                rule: rule.to_owned(),
                module: module.trim_matches('`').to_owned(),
                tests: tests
                    .split(", ")
                    .map(|name| name.trim_matches('`').to_owned())
                    .collect(),
            })
        })
        .collect()
}

/// The text of every Rust file below a folder of the project.
fn sources(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_rule_has_its_row_and_every_row_its_rule() {
    let written: Vec<String> = rows().into_iter().map(|row| row.rule).collect();
    let unique: BTreeSet<String> = written.iter().cloned().collect();
    assert_eq!(unique.len(), written.len(), "a rule stands there twice");
    let expected: BTreeSet<String> = RULES
        .iter()
        .flat_map(|(letter, last)| (1..=*last).map(move |number| format!("{letter}{number}")))
        .filter(|rule| !LATER.contains(&rule.as_str()))
        .collect();
    let missing: Vec<_> = expected.difference(&unique).collect();
    let unknown: Vec<_> = unique.difference(&expected).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "missing {missing:?}, unknown {unknown:?}"
    );
}

#[test]
fn every_test_and_every_module_of_the_page_is_there() {
    let mut text = String::new();
    sources(&root().join("src"), &mut text);
    sources(&root().join("tests"), &mut text);
    for row in rows() {
        assert!(!row.tests.is_empty(), "{} has no test", row.rule);
        for test in &row.tests {
            assert!(
                text.contains(&format!("fn {test}(")),
                "{}: there is no test {test}",
                row.rule
            );
        }
        let path = root().join("src").join(row.module.replace("::", "/"));
        let is_there = path.with_extension("rs").exists() || path.join("mod.rs").exists();
        assert!(is_there, "{}: there is no module {}", row.rule, row.module);
    }
}
