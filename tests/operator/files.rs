//! A file means to `sync` what it means to the cluster: the same texts through kubectl and through our reader.

use std::io::Write as _;
use std::process::Stdio;

use docker_image_pusher::{
    mirror::{Documents, Origin, Surroundings},
    output::OutputManager,
};

use crate::bed::cluster;
use crate::support::{Result, control_plane::ControlPlane, install_crypto_provider};

const MIRROR: &str = "\
apiVersion: imagepusher.io/v1alpha1
kind: ImageMirror
metadata:
  name: tried
  labels: {team: a}
spec:
  source:
    registry:
      repository: docker.io/library/nginx
      tags: [\"1.27\"]
  destinations:
  - repository: registry.internal:5000/mirror/{repository}
    tag: \"{tag}\"
  transfer:
    maxConcurrent: 4
";

/// What kubectl and the server say to this text; empty when they take it.
fn said_by_the_cluster(cluster: &ControlPlane, text: &str) -> String {
    let mut child = cluster
        .kubectl()
        .args(["create", "--dry-run=server", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What `sync` says to it.
fn said_by_sync(text: &str) -> String {
    let mut documents = Documents::default();
    let origin = Origin {
        name: "file".into(),
        folder: ".".into(),
    };
    documents.read(&origin, text.as_bytes());
    let prepared = documents.prepare(&Surroundings::default(), &OutputManager::silent());
    let problems = prepared.map_or_else(|problems| problems, |_| Vec::new());
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Changes of [`MIRROR`] that both take.
const RIGHT: [(&str, &str); 24] = [
    ("apiVersion", "# a comment\n---\n\napiVersion"),
    (
        "\"1.27\"",
        "1.27.3, v1, latest, 1.27-alpine, \"y\", 'Off', !!str 1.10, 1a",
    ),
    (
        "[\"1.27\"]",
        "\n      - '1.27'\n      - |-\n        1.28\n      - >-\n        1.29",
    ),
    ("maxConcurrent: 4", "maxConcurrent: 8.0"),
    ("maxConcurrent: 4", "maxConcurrent: 0x10"),
    ("maxConcurrent: 4", "maxConcurrent: 010"),
    ("maxConcurrent: 4", "maxConcurrent: 1_0"),
    ("maxConcurrent: 4", "maxConcurrent:"),
    (
        "maxConcurrent: 4",
        "{existingBlobs: Upload, maxConcurrent: 1}",
    ),
    ("maxConcurrent: 4", "bandwidthLimit: 50Mi"),
    ("maxConcurrent: 4", "bandwidthLimit: 500k"),
    ("spec:", "spec:\n  suspend: yes"),
    ("spec:", "spec:\n  suspend: Off"),
    ("spec:", "spec:\n  suspend:"),
    ("spec:", "spec:\n  interval: 90m"),
    ("spec:", "spec:\n  interval: ~"),
    ("team: a", "team: 'yes', other: b-c"),
    ("name: tried", "name: tried\n  creationTimestamp: null"),
    (
        "name: tried",
        "name: tried\n  annotations: {imagepusher.io/requestedAt: now}",
    ),
    ("name: tried", "name: a.b-c"),
    ("    tag:", "    insecure: on\n    tag:"),
    ("    tag:", "    <<: {insecure: true}\n    tag:"),
    ("transfer:", "timeout: 6h\n  transfer:"),
    ("spec:", "status: {}\nspec:"),
];

/// Changes that both refuse. A key that stands there twice is not among them: kubectl takes the last one without a word, we
/// refuse it.
const WRONG: [(&str, &str); 41] = [
    ("\"1.27\"", "1.10"),
    ("\"1.27\"", "8"),
    ("\"1.27\"", "y"),
    ("\"1.27\"", "Off"),
    ("\"1.27\"", "~"),
    ("\"1.27\"", "1e3"),
    ("\"1.27\"", "0x1F"),
    ("\"1.27\"", "'a b'"),
    ("\"1.27\"", "''"),
    ("[\"1.27\"]", "1.27.3"),
    ("[\"1.27\"]", "{a: b}"),
    ("tags:", "tagss:"),
    ("\"{tag}\"", "{tag}"),
    ("\"{tag}\"", "'{version}'"),
    ("    tag:", "    skipTlsVerify: true\n    tag:"),
    ("    tag:", "    name: Main\n    tag:"),
    ("    tag:", "    insecure: \"true\"\n    tag:"),
    ("    tag:", "    insecure: 1\n    tag:"),
    ("    tag:", "    secretRef: {name: Login}\n    tag:"),
    ("    tag:", "    secretRef: {}\n    tag:"),
    ("    tag:", "    secretRef: login\n    tag:"),
    (
        "    tag:",
        "    insecure: true\n    skipTLSVerify: true\n    tag:",
    ),
    (
        "  - repository: registry.internal:5000/mirror/{repository}\n    ",
        "  - ",
    ),
    (
        "registry.internal:5000/mirror",
        "https://registry.internal/mirror",
    ),
    ("maxConcurrent: 4", "maxConcurrent: 65"),
    ("maxConcurrent: 4", "maxConcurrent: 1.5"),
    ("maxConcurrent: 4", "maxConcurrent: \"4\""),
    ("maxConcurrent: 4", "existingBlobs: skip"),
    ("maxConcurrent: 4", "bandwidthLimit: 50"),
    ("maxConcurrent: 4", "bandwidthLimit: 0Mi"),
    ("maxConcurrent: 4", "bandwidthLimit: 50MB"),
    ("spec:", "spec:\n  suspend: \"true\""),
    ("spec:", "spec:\n  interval: 30s"),
    ("spec:", "spec:\n  interval: 1d"),
    ("spec:", "spec:\n  interval: 60"),
    ("spec:", "spce:"),
    ("team: a", "team: 1"),
    ("team: a", "team: yes"),
    ("labels", "label"),
    ("name: tried", "name: Tried"),
    ("name: tried", "name: 4711"),
];

#[tokio::test]
async fn a_text_is_taken_or_refused_as_in_the_cluster() -> Result<()> {
    install_crypto_provider();
    let cluster = cluster().await?;
    assert_eq!(said_by_sync(MIRROR), "");
    let changes = RIGHT.map(|change| (change, true));
    let changes = changes
        .into_iter()
        .chain(WRONG.map(|change| (change, false)));
    let mut differences = Vec::new();
    for ((from, to), is_right) in changes {
        let text = MIRROR.replacen(from, to, 1);
        assert_ne!(text, MIRROR, "{from}");
        let (cluster, sync) = (said_by_the_cluster(cluster, &text), said_by_sync(&text));
        if cluster.is_empty() != is_right || sync.is_empty() != is_right {
            differences.push(format!("{from} -> {to}\ncluster: {cluster}\nsync: {sync}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
    Ok(())
}
