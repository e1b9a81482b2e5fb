//! What the API server makes of the resource before any operator sees it.

use std::io::Write as _;
use std::process::Stdio;

use docker_image_pusher::{api::ImageMirrorSpec, mirror::validate};
use serde_json::{Value, json};

use crate::bed::{Bed, cluster};
use crate::support::Result;
use crate::support::control_plane::ControlPlane;

fn valid() -> Value {
    json!({
        "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror",
        "metadata": {"name": "tried", "namespace": "default"},
        "spec": {
            "source": {"registry": {"repository": "docker.io/library/nginx", "tags": ["1.27"]}},
            "destinations": [{"repository": "registry.internal:5000/mirror/{repository}"}],
        },
    })
}

/// What the server says to this object; empty when it takes it.
fn complaint(cluster: &ControlPlane, object: &Value) -> String {
    let mut child = cluster
        .kubectl()
        .args(["create", "--dry-run=server", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = object.to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), stderr.is_empty(), "{stderr}");
    stderr
}

/// What stands at a path of a valid object instead, and what the server says to it; nothing where it is right.
#[expect(
    clippy::too_many_lines,
    reason = "one table: every rule of the resource, right and wrong"
)]
fn cases() -> Vec<(String, Value, &'static str)> {
    const REPOSITORY: &str = "must be host[:port]/path without scheme, tag or digest";
    const TARGET: &str = "repository must be host[:port]/path; the path may hold {registry}, {repository} and {name}";
    const TAG: &str = "must be a tag: letters, digits, '.', '_' and '-', at most 128";
    const TEMPLATE: &str =
        "tag may hold letters, digits, '.', '_', '-' and the placeholders {tag} and {digest}";
    const DIGEST: &str = "must be [tag@]sha256:<64 hex digits> or [tag@]sha512:<128 hex digits>";
    const INTERVAL: &str = "must be a duration of at least 1m, for example 30m, 1h or 1h30m";
    const SOURCE: &str = "exactly one of registry, archive and cache must be set";
    const PATH: &str = "path must be relative and without empty, . and .. segments";
    const EITHER: &str = "exactly one of name and index must be set";
    const KNOWN_AS: &str = "must be [host/]repository:tag, for example team/app:1.2";
    const LOGIN: &str = "secretRef and serviceAccountName both name a login: set one of them";
    const TIMEOUT: &str = "must be a duration such as 90s, 30m or 6h";
    let archive = |archive: &Value| json!({"archive": archive});
    let archive_image = |image: &Value| json!({"archive": {"path": "app.tar", "images": [image]}});
    let cached = |repository: &str, reference: &str| json!({"cache": {"repository": repository, "reference": reference}});
    let (short, long) = ("a".repeat(64), "b".repeat(128));
    let many_tags: Vec<String> = (0..501).map(|number| number.to_string()).collect();
    let many_destinations: Vec<Value> = (0..17)
        .map(|number| json!({"name": format!("d{number}"), "repository": "localhost:1/x"}))
        .collect();
    let registry = "/spec/source/registry";
    let first = "/spec/destinations/0";
    vec![
        ("/spec".into(), valid()["spec"].clone(), ""),
        ("/spec/source".into(), json!({}), SOURCE),
        (
            "/spec/source".into(),
            json!({"archive": {"path": "app.tar"}, "cache": {"repository": "localhost/a", "reference": "1"}}),
            SOURCE,
        ),
        (
            "/spec/source".into(),
            json!({"archive": {"path": "team-a/app.tar"}}),
            "",
        ),
        (
            "/spec/source".into(),
            json!({"archive": {"path": "app.tar", "images": [
                {"name": "app:1.2", "as": "registry.example:5000/team/app:1.2"}, {"index": 0, "as": "tool:1"},
                {"index": 1},
            ]}}),
            "",
        ),
        (
            "/spec/source".into(),
            archive(&json!({"path": "app.tar", "compression": "Zstd"})),
            "",
        ),
        (
            "/spec/source".into(),
            archive(&json!({"path": "app.tar", "compression": "gzip"})),
            "Unsupported value",
        ),
        (
            "/spec/source".into(),
            archive(&json!({"path": "/app.tar"})),
            PATH,
        ),
        (
            "/spec/source".into(),
            archive(&json!({"path": "../app.tar"})),
            PATH,
        ),
        (
            "/spec/source".into(),
            archive(&json!({"path": "a/./b.tar"})),
            PATH,
        ),
        (
            "/spec/source".into(),
            archive(&json!({"path": "a//b.tar"})),
            PATH,
        ),
        ("/spec/source".into(), archive(&json!({"path": "a/"})), PATH),
        (
            "/spec/source".into(),
            archive(&json!({"path": ""})),
            "should be at least 1 chars long",
        ),
        (
            "/spec/source".into(),
            archive_image(&json!({"name": "app:1", "index": 0})),
            EITHER,
        ),
        (
            "/spec/source".into(),
            archive_image(&json!({"as": "app:1"})),
            EITHER,
        ),
        (
            "/spec/source".into(),
            archive_image(&json!({"index": -1})),
            "should be greater than or equal to 0",
        ),
        (
            "/spec/source".into(),
            archive_image(&json!({"index": 0, "as": "app"})),
            KNOWN_AS,
        ),
        (
            "/spec/source".into(),
            archive_image(&json!({"index": 0, "as": "team/App:1"})),
            KNOWN_AS,
        ),
        (
            "/spec/source".into(),
            cached("docker.io/library/nginx", "1.27"),
            "",
        ),
        (
            "/spec/source".into(),
            cached("localhost:5000/app", &format!("sha256:{short}")),
            "",
        ),
        (
            "/spec/source".into(),
            cached("library/nginx", "1.27"),
            REPOSITORY,
        ),
        (
            "/spec/source".into(),
            cached("docker.io/library/nginx", "sha256:abc"),
            "must be a tag or a digest",
        ),
        (
            "/spec/source".into(),
            json!({"cache": {"repository": "docker.io/library/nginx"}}),
            "spec.source.cache.reference: Required value",
        ),
        (
            registry.into(),
            json!({"repository": "docker.io/library/nginx"}),
            "nothing selected: set at least one of tags and digests",
        ),
        (
            registry.into(),
            json!({"repository": "docker.io/library/nginx", "tags": []}),
            "nothing selected",
        ),
        (
            format!("{registry}/repository"),
            json!("localhost:5000/app"),
            "",
        ),
        (
            format!("{registry}/repository"),
            json!("[::1]:5000/team/app"),
            "",
        ),
        (
            format!("{registry}/repository"),
            json!("https://docker.io/library/nginx"),
            REPOSITORY,
        ),
        (
            format!("{registry}/repository"),
            json!("docker.io/library/nginx:1.27"),
            REPOSITORY,
        ),
        (
            format!("{registry}/repository"),
            json!("library/nginx"),
            REPOSITORY,
        ),
        (
            format!("{registry}/repository"),
            json!("docker.io/Library/nginx"),
            REPOSITORY,
        ),
        (format!("{registry}/tags/0"), json!("v1.2_3-x"), ""),
        (format!("{registry}/tags/0"), json!(".hidden"), TAG),
        (format!("{registry}/tags/0"), json!("a b"), TAG),
        (
            format!("{registry}/tags/0"),
            json!("x".repeat(129)),
            "Too long: may not be more than 128",
        ),
        (
            format!("{registry}/tags"),
            json!(many_tags),
            "must have at most 500 items",
        ),
        (
            format!("{registry}/digests"),
            json!([format!("1.26@sha256:{short}"), format!("sha512:{long}")]),
            "",
        ),
        (format!("{registry}/digests"), json!(["sha256:abc"]), DIGEST),
        (
            format!("{registry}/digests"),
            json!([format!("@sha256:{short}")]),
            DIGEST,
        ),
        (format!("{registry}/insecure"), json!(true), ""),
        (
            format!("{registry}/secretRef"),
            json!({"name": "../other"}),
            "spec.source.registry.secretRef.name",
        ),
        (format!("{registry}/secretRef"), Value::Null, ""),
        (
            registry.into(),
            json!({"repository": "localhost/a", "tags": ["1"], "insecure": true, "skipTLSVerify": true}),
            "insecure means plain http, skipTLSVerify cannot apply",
        ),
        (
            format!("{registry}/serviceAccountName"),
            json!("puller"),
            "",
        ),
        (
            format!("{registry}/serviceAccountName"),
            json!("../puller"),
            "spec.source.registry.serviceAccountName",
        ),
        (
            format!("{registry}/proxySecretRef"),
            json!({"name": "proxy"}),
            "",
        ),
        (
            registry.into(),
            json!({"repository": "localhost/a", "tags": ["1"], "secretRef": {"name": "a"}, "serviceAccountName": "b"}),
            LOGIN,
        ),
        (
            first.into(),
            json!({"repository": "localhost/a", "secretRef": {"name": "a"}, "serviceAccountName": "b"}),
            LOGIN,
        ),
        ("/spec/destinations".into(), json!([]), ""),
        (
            "/spec/destinations".into(),
            json!(many_destinations),
            "must have at most 16 items",
        ),
        (
            "/spec/destinations".into(),
            json!([{"repository": "localhost/a"}, {"repository": "localhost/b"}]),
            "Duplicate value",
        ),
        (
            format!("{first}/repository"),
            json!("registry.internal/{registry}/{name}-x"),
            "",
        ),
        (
            format!("{first}/repository"),
            json!("registry.internal/{tag}"),
            TARGET,
        ),
        (
            format!("{first}/repository"),
            json!("{registry}/app"),
            TARGET,
        ),
        (format!("{first}/tag"), json!("mirrored-{tag}"), ""),
        (format!("{first}/tag"), json!("{digest}"), ""),
        (format!("{first}/tag"), json!("{date}"), TEMPLATE),
        (
            format!("{first}/name"),
            json!("Main"),
            "must be lower-case letters, digits and inner '-', at most 63",
        ),
        (format!("{first}/skipTLSVerify"), json!(true), ""),
        ("/spec/interval".into(), json!("1h30m"), ""),
        ("/spec/interval".into(), Value::Null, ""),
        ("/spec/interval".into(), json!("30s"), INTERVAL),
        ("/spec/interval".into(), json!("1d"), INTERVAL),
        (
            "/spec/transfer".into(),
            json!({"existingBlobs": "Upload"}),
            "",
        ),
        (
            "/spec/transfer".into(),
            json!({"existingBlobs": "Sometimes"}),
            "Unsupported value",
        ),
        (
            "/spec/transfer".into(),
            json!({"maxConcurrent": 0}),
            "should be greater than or equal to 1",
        ),
        (
            "/spec/transfer".into(),
            json!({"retryAttempts": -1}),
            "should be greater than or equal to 0",
        ),
        ("/spec/timeout".into(), json!("90s"), ""),
        ("/spec/timeout".into(), json!("1h30m"), ""),
        ("/spec/timeout".into(), Value::Null, ""),
        ("/spec/timeout".into(), json!("0s"), TIMEOUT),
        ("/spec/timeout".into(), json!("999ms"), TIMEOUT),
        ("/spec/timeout".into(), json!("1d"), TIMEOUT),
        ("/spec/suspend".into(), json!(true), ""),
        ("/spec/suspend".into(), json!("yes"), "suspend"),
        (
            "/spec/suspended".into(),
            json!(true),
            "unknown field \"spec.suspended\"",
        ),
    ]
}

#[tokio::test]
async fn each_rule_takes_what_is_right_and_says_in_words_what_is_not() -> Result<()> {
    let cluster = cluster().await?;
    let mut disagreements = Vec::new();
    for (path, value, expected) in cases() {
        let mut object = valid();
        let (parent, key) = path.rsplit_once('/').unwrap();
        match object.pointer_mut(parent).unwrap() {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
            map => map[key] = value.clone(),
        }
        let complaint = complaint(cluster, &object);
        if expected.is_empty() {
            assert_eq!(complaint, "", "{path} = {value}");
        } else {
            assert!(
                complaint.contains(expected),
                "{path} = {value}: {complaint}"
            );
        }
        // Files for `sync` never meet a server.
        let refusal = refusal_without_server(&object);
        let is_of_both = !ONLY_OF_THE_SERVER
            .iter()
            .any(|rule| expected.contains(rule))
            // Looked at once archives are read.
            && object.pointer("/spec/source/archive/images").is_none();
        if is_of_both && refusal.is_none() != expected.is_empty() {
            disagreements.push(format!("{path} = {value}: {refusal:?}"));
        }
    }
    assert_eq!(disagreements, Vec::<String>::new());
    Ok(())
}

/// What has no meaning without a server: its bounds on lists, which only keep its rules cheap, and fields it does not know.
const ONLY_OF_THE_SERVER: [&str; 3] = ["must have at most", "unknown field", "Duplicate value"];

/// What our own checks say to the object; nothing where they take it. Nulls count as absent, as for the server.
fn refusal_without_server(object: &Value) -> Option<String> {
    let mut spec = object["spec"].clone();
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let spec: ImageMirrorSpec = match serde_json::from_value(spec) {
        Ok(spec) => spec,
        Err(error) => return Some(error.to_string()),
    };
    validate(&spec).err().map(|error| error.to_string())
}

#[tokio::test]
async fn columns_selectors_and_explanations_are_there() -> Result<()> {
    let bed = Bed::new("columns").await?;
    bed.mirror("shown", &valid()["spec"])?;
    let fresh = bed.object("shown")?;
    assert_eq!(fresh["status"], json!({"observedGeneration": -1}));
    assert_eq!(fresh["spec"]["destinations"][0]["name"], "default");
    assert_eq!(fresh["spec"]["destinations"][0]["tag"], "{tag}");
    let status = json!({"status": {
        "observedGeneration": 1, "ready": "True", "synced": "12/14", "nextSyncTime": "2026-01-02T03:04:05Z",
        "progress": {"imagesTotal": 14, "bytesDone": 71, "bytesTotal": 100, "bytesPerSecond": 1, "text": "71%"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Succeeded", "message": "all is well",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-02T03:04:05Z"}],
    }});
    bed.kubectl(&[
        "patch",
        "imir",
        "shown",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ])?;
    let table = bed.kubectl(&["get", "imir", "-o", "wide"])?;
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "NAME", "SOURCE", "SYNCED", "PROGRESS", "READY", "STATUS", "NEXT", "AGE"
        ]
    );
    assert_eq!(
        lines[1][..9],
        [
            "shown",
            "docker.io/library/nginx",
            "12/14",
            "71%",
            "True",
            "all",
            "is",
            "well",
            "2026-01-02T03:04:05Z"
        ]
    );
    let names = |selector: &str| {
        bed.kubectl(&[
            "get",
            "imagepusher",
            "-o",
            "name",
            "--field-selector",
            selector,
        ])
    };
    assert!(
        names("status.ready=True,spec.source.registry.repository=docker.io/library/nginx")?
            .contains("shown")
    );
    assert_eq!(names("status.ready=False")?, "");
    let explained = bed.kubectl(&["explain", "imir.spec.transfer.maxConcurrent"])?;
    assert!(explained.contains("1 to 64. Default: 8."), "{explained}");
    Ok(())
}
