//! What holds for the generated CRD without a server; `tests/operator` asks a real one.

use serde_json::json;

use super::*;

fn crd() -> Value {
    serde_json::to_value(ImageMirror::crd()).unwrap()
}

fn version() -> Value {
    crd()["spec"]["versions"][0].clone()
}

/// Calls `visit` with the path of every property below `schema`.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        visit(&path, property);
        walk(&path, property, visit);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], visit);
    }
}

fn every_property() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    walk(
        "",
        &version()["schema"]["openAPIV3Schema"],
        &mut |path, schema| {
            found.push((path.to_owned(), schema.clone()));
        },
    );
    found
}

#[test]
fn the_committed_crd_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/imagemirrors.yaml");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == crd_yaml(),
        "{path} is out of date: write the output of `docker-image-pusher crd` to it"
    );
}

#[test]
fn the_committed_reference_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == crd_markdown(),
        "{path} is out of date: `make crds` writes it"
    );
}

#[test]
fn every_field_has_a_description() {
    let bare: Vec<String> = every_property()
        .into_iter()
        .filter(|(_, schema)| schema["description"].as_str().is_none_or(str::is_empty))
        .map(|(path, _)| path)
        .filter(|path| path != ".metadata")
        .collect();
    assert_eq!(bare, Vec::<String>::new());
}

#[test]
fn a_description_names_the_default() {
    for (path, schema) in every_property() {
        let text = schema["description"].as_str().unwrap_or_default();
        if path.starts_with(".spec") && schema.get("default").is_some() {
            assert!(text.contains("Default:"), "{path}: {text}");
        }
    }
}

#[test]
fn no_number_has_a_format_that_draws_a_warning() {
    for (path, schema) in every_property() {
        let format = schema["format"].as_str().unwrap_or_default();
        assert!(
            matches!(format, "" | "int32" | "int64" | "date-time"),
            "{path}: {format}"
        );
        // Conditions are Kubernetes' own type.
        if schema["type"] == "integer" && !path.starts_with(".status.conditions") {
            assert!(schema["minimum"].is_number(), "{path} has no minimum");
        }
    }
}

#[test]
fn every_string_and_list_of_the_spec_is_bounded() {
    for (path, schema) in every_property() {
        if !path.starts_with(".spec") || schema.get("enum").is_some() {
            continue;
        }
        match schema["type"].as_str() {
            Some("string") => assert!(schema["maxLength"].is_number(), "{path}"),
            Some("array") => assert!(schema["maxItems"].is_number(), "{path}"),
            _ => {}
        }
    }
}

/// The path without the condition of a list: `.a[?(@.b=="c")].d` is `.a[].d`.
fn without_filter(path: &str) -> String {
    match (path.find("[?("), path.find(")]")) {
        (Some(start), Some(end)) => format!("{}[]{}", &path[..start], &path[end + 2..]),
        _ => path.to_owned(),
    }
}

/// The paths that a union such as `.a['b','c']` stands for.
fn spelled_out(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once("['") else {
        return vec![path.to_owned()];
    };
    let (names, after) = rest.split_once("']").unwrap();
    let names = names.split("','");
    names
        .flat_map(|name| spelled_out(&format!("{before}.{name}{after}")))
        .collect()
}

/// A path that does not exist is accepted by the server and prints nothing (CRD finding F21).
#[test]
fn every_column_and_selector_names_a_field_that_exists() {
    let known: Vec<String> = every_property().into_iter().map(|(path, _)| path).collect();
    let version = version();
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let selectors = version["selectableFields"].as_array().unwrap();
    let names: Vec<&str> = columns
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "Source", "Synced", "Progress", "Ready", "Status", "Next", "Age"
        ]
    );
    for path in columns
        .iter()
        .chain(selectors)
        .map(|each| each["jsonPath"].as_str().unwrap())
    {
        let exists = |plain: &String| {
            plain == ".metadata.creationTimestamp" || known.contains(&without_filter(plain))
        };
        // Of a union one name is enough: no source has all of them.
        assert!(spelled_out(path).iter().any(exists), "{path}");
    }
}

#[test]
fn a_serialised_status_holds_no_null_and_always_the_observed_generation() {
    let status = serde_json::to_value(ImageMirrorStatus::default()).unwrap();
    assert_eq!(status, json!({"observedGeneration": -1}));
}

#[test]
fn defaults_fill_what_is_not_written() {
    let spec: ImageMirrorSpec = serde_json::from_value(json!({
        "source": {"registry": {"repository": "docker.io/library/nginx", "tags": ["1"], "skipTLSVerify": true}},
        "destinations": [{"repository": "localhost:5000/x", "secretRef": {"name": "login"}}],
        "transfer": {"maxConcurrent": 2},
    }))
    .unwrap();
    let destination = &spec.destinations[0];
    assert_eq!(
        (destination.name.as_str(), destination.tag.as_str()),
        ("default", "{tag}")
    );
    assert_eq!(
        destination.access.secret_ref.as_ref().unwrap().name,
        "login"
    );
    assert!(
        spec.source
            .registry
            .unwrap()
            .access
            .skips_tls_verification()
    );
    assert_eq!(
        spec.transfer,
        Some(Transfer {
            max_concurrent: 2,
            retry_attempts: 3,
            existing_blobs: ExistingBlobs::Skip,
            bandwidth_limit: None,
        })
    );
}
