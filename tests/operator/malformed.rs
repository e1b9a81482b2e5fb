//! One object that the operator cannot read stops nobody else.

use serde_json::json;

use crate::bed::{ACCOUNT, Bed, condition, destination, install, source};
use crate::support::Result;
use crate::support::control_plane::{ControlPlane, Controllers};
use crate::support::images::Image;
use crate::support::registry::Registry;

/// On a control plane of its own, whose CRD lets anything through, and with an operator that watches all namespaces.
#[tokio::test]
async fn a_malformed_mirror_is_told_so_its_neighbour_is_copied_and_both_can_be_deleted()
-> Result<()> {
    let cluster = tokio::task::spawn_blocking(|| ControlPlane::start(Controllers::Without))
        .await
        .unwrap()?;
    install(&cluster)?;
    let enumeration = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/transfer/properties/existingBlobs/enum";
    let patch = json!([{"op": "remove", "path": enumeration}]).to_string();
    cluster.run_kubectl(&[
        "patch",
        "crd",
        "imagemirrors.imagepusher.io",
        "--type=json",
        "-p",
        &patch,
    ])?;

    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder().build()?.push(from.access(), "app:1")?;
    let bed = Bed::on(&cluster, "malformed", ACCOUNT)?;
    let mut spec = json!({
        "source": source(from.access(), "app", &["1"]),
        "destinations": [destination("default", to.access())],
    });
    bed.mirror("good", &spec)?;
    spec["transfer"] = json!({"existingBlobs": "Sideways"});
    bed.mirror("bad", &spec)?;
    let _operator = bed.operator_with(&[])?;
    bed.wait_ready("good", "True", "Succeeded")?;
    let object = bed.wait_ready("bad", "False", "InvalidSpec")?;
    let message = condition(&object, "Stalled")["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.starts_with("spec.transfer.existingBlobs: unknown variant `Sideways`"),
        "{message}"
    );
    bed.kubectl(&["delete", "imir", "good", "bad", "--timeout=20s"])?;
    Ok(())
}
