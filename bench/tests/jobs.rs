//! The sites that jobs are done at are what tools believe them to be.

use crate::rows::{ROWS, Row, Task};
use crate::site::Source;
use crate::support::registry::Access;
use crate::support::skopeo::{self, End};
use crate::support::{Context, Result};
use crate::tools::Tool;

/// A row with little to do.
fn small(task: Task, images: usize) -> Result<Row> {
    let row = ROWS.iter().find(|row| row.name == "requests");
    let Row {
        name,
        job,
        tools,
        shown,
        targets,
        limit,
        ..
    } = row.context("no row")?;
    Ok(Row {
        name,
        job,
        images,
        layers: 2,
        layer_bytes: 1000,
        task,
        link: None,
        tools,
        shown,
        targets,
        limit: *limit,
    })
}

fn access(address: &str) -> Access {
    Access {
        address: address.to_owned(),
        certificates: None,
        credentials: None,
    }
}

#[test]
fn images_put_into_a_registry_the_short_way_can_be_copied_out_of_it() -> Result<()> {
    let row = small(Task::Copy { destinations: 1 }, 2)?;
    let source = Source::new(&row)?;
    let site = source.site(&row)?;
    let missing = source.look_at_destinations(&row, &site).unwrap_err();
    assert!(missing.to_string().contains("tag 1"), "{missing}");
    for tag in &site.tags {
        let (from, to) = (access(&site.source), access(&site.destination(0)));
        let (from_name, to_name) = (format!("bench/app:{tag}"), format!("copy/app:{tag}"));
        skopeo::copy(
            End::Registry(&from, &from_name),
            End::Registry(&to, &to_name),
        )?;
    }
    assert!(source.look_at_destinations(&row, &site)?.is_some());
    Ok(())
}

#[test]
fn where_nothing_is_to_do_everything_is_there() -> Result<()> {
    let row = small(Task::NothingToDo, 3)?;
    let source = Source::new(&row)?;
    let site = source.site(&row)?;
    assert!(source.look_at_destinations(&row, &site)?.is_some());
    let destination = access(&site.destination(0));
    let digest = skopeo::digest(&destination, "copy/app:3")?;
    assert_eq!(
        digest,
        skopeo::digest(&access(&site.source), "bench/app:3")?
    );
    Ok(())
}

#[test]
fn a_damaged_copy_is_seen() -> Result<()> {
    let row = small(Task::NothingToDo, 1)?;
    let source = Source::new(&row)?;
    let site = source.site(&row)?;
    let manifest = skopeo::raw_manifest(&access(&site.source), "bench/app:1")?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).context("no JSON")?;
    let layer = manifest["layers"][0]["digest"]
        .as_str()
        .context("no layer")?;
    let file = site.destinations[0].blob_file(layer);
    std::fs::remove_file(file).context("could not remove a layer")?;
    let failure = source.look_at_destinations(&row, &site).unwrap_err();
    assert!(failure.to_string().contains(layer), "{failure}");
    Ok(())
}

#[test]
fn every_tool_of_a_row_has_a_command_for_each_destination() -> Result<()> {
    for row in ROWS {
        let tiny = Row {
            link: None,
            ..small(row.task, 1)?
        };
        let source = Source::new(&tiny)?;
        let site = source.site(&tiny)?;
        for tool in row.tools {
            let commands = tool.commands(row.task, &site)?;
            let expected = match (tool, row.task) {
                // One run does it all.
                (Tool::Ours, _) => 1,
                (_, Task::Copy { destinations }) => destinations,
                _ => 1,
            };
            assert_eq!(commands.len(), expected, "{tool:?} {}", row.name);
        }
    }
    Ok(())
}
