//! The documentation says what the program does.

use std::collections::BTreeSet;

use docker_image_pusher::{archive, cache, cli, controller, image, mirror, registry, transfer};
use strum::VariantNames;

/// Reasons that are no errors, or errors that pass on another one's name.
const OF_A_COURSE: [&str; 6] = [
    "Cancelled",
    "Suspended",
    "Succeeded",
    "Progressing",
    "ProgressingWithRetry",
    "RunPanicked",
];
/// Troubles of a mirror that only the operator has.
const OF_THE_OPERATOR: [&str; 1] = ["ApiServerUnavailable"];
/// Variants that only say where an error of another room happened, and show its reason.
const WRAPPERS: [&str; 17] = [
    "Access",
    "AccessInvalid",
    "Archive",
    "Cache",
    "Controller",
    "CredentialsUnreadable",
    "Extract",
    "InvalidName",
    "Manifest",
    "ManifestUnusable",
    "OfArchive",
    "Pull",
    "Push",
    "Save",
    "SecretUnreadable",
    "Transfer",
    "Usage",
];

fn reasons_of_the_program() -> BTreeSet<&'static str> {
    [
        image::Error::VARIANTS,
        registry::Error::VARIANTS,
        cache::Error::VARIANTS,
        archive::Error::VARIANTS,
        archive::SaveError::VARIANTS,
        transfer::Error::VARIANTS,
        mirror::Error::VARIANTS,
        controller::Error::VARIANTS,
        cli::Error::VARIANTS,
        cli::Usage::VARIANTS,
        &OF_A_COURSE,
        &OF_THE_OPERATOR,
    ]
    .into_iter()
    .flatten()
    .copied()
    .filter(|name| !WRAPPERS.contains(name))
    .collect()
}

#[test]
fn every_reason_is_documented_and_no_other() {
    let page = include_str!("../docs/reasons.md");
    let documented: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .flat_map(|cell| cell.split(", "))
        .filter(|name| *name != "reason")
        .collect();
    let unique: BTreeSet<_> = documented.iter().copied().collect();
    assert_eq!(
        unique.len(),
        documented.len(),
        "a reason stands there twice"
    );
    let expected = reasons_of_the_program();
    let missing: Vec<_> = expected.difference(&unique).collect();
    let unknown: Vec<_> = unique.difference(&expected).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "missing {missing:?}, unknown {unknown:?}"
    );
}
