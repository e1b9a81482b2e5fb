//! The benches measure what they say: the slow link is as slow as it claims, and what is made of the figures is right.
#![allow(
    dead_code,
    reason = "the parts of the bench are tested, the whole is what runs them"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "what is tested here blocks and writes plain files"
)]

#[path = "../engine/files.rs"]
mod files;
#[path = "../engine/measure.rs"]
mod measure;
#[path = "../proxy/mod.rs"]
mod proxy;
#[path = "../engine/rows.rs"]
mod rows;
#[path = "../engine/run.rs"]
mod run;
#[path = "../engine/site.rs"]
mod site;
#[path = "../engine/summary.rs"]
mod summary;
#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../engine/table.rs"]
mod table;
#[path = "../engine/tools.rs"]
mod tools;

mod figures;
mod jobs;
mod slow_link;
