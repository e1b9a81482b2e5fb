//! What earlier archives carry, as their reports tell.

use std::collections::BTreeSet;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;

use crate::image::Digest;

use super::SavedBlob;

/// What matters of a report.
#[derive(Deserialize)]
struct Report {
    version: u64,
    blobs: Vec<SavedBlob>,
    #[serde(default)]
    relies: Vec<SavedBlob>,
    // Only `save` reports these beside a list of blobs.
    #[serde(rename = "images")]
    _images: Vec<IgnoredAny>,
}

/// The blobs that a cache has into which the archive of this report was extracted: those it carried, and those it relied on.
/// The text is what `save --output json` printed, with all its lines or the result alone.
///
/// # Errors
/// When there is no report in it, or one of a version that is not known; the text says which.
pub fn carried(text: &[u8]) -> Result<BTreeSet<Digest>, String> {
    let mut result = None;
    for value in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
        let value = value.map_err(|error| format!("it is no JSON: {error}"))?;
        let event = value.get("event").and_then(Value::as_str);
        if matches!(event, None | Some("result")) && result.replace(value).is_some() {
            return Err("it holds more than one result: give one file for each".to_owned());
        }
    }
    let result = result.ok_or("it holds no result: the archive was not written")?;
    let report: Report = serde_json::from_value(result)
        .map_err(|error| format!("it is not what `save --output json` writes: {error}"))?;
    if !matches!(report.version, 1 | 2) {
        let version = report.version;
        return Err(format!(
            "its version {version} is that of a newer program, which is needed to read it"
        ));
    }
    let blobs = report.blobs.into_iter().chain(report.relies);
    Ok(blobs.map(|blob| blob.digest).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_tells_what_was_carried_and_relied_on_in_whatever_lines_it_stands() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let report = json!({
            "version": 2, "images": [{"name": "a:1"}], "blobs": [{"digest": one, "size": 3}],
            "relies": [{"digest": two, "size": 3}], "new": [],
        });
        let mut line = report.clone();
        line["event"] = "result".into();
        let lines = format!("{}\n{line}\n", json!({"event": "message", "text": "x"}));
        for text in [
            report.to_string(),
            line.to_string(),
            lines,
            serde_json::to_string_pretty(&report).unwrap(),
        ] {
            let found = carried(text.as_bytes()).unwrap();
            assert_eq!(found, BTreeSet::from([one.clone(), two.clone()]), "{text}");
        }
    }

    #[test]
    fn what_is_no_report_is_told() {
        for (text, words) in [
            ("", "no result"),
            ("saved team/app:1", "no JSON"),
            ("{\"version\":1,\"ima", "no JSON"),
            (r#"{"event":"error","reason":"ArchiveExists"}"#, "no result"),
            (r#"{"version":1,"blobs":5,"images":[]}"#, "not what `save"),
            (r#"{"version":1,"blobs":[]}"#, "not what `save"),
            (
                r#"{"version":1,"images":[],"blobs":[{"digest":"sha256:1","size":1}]}"#,
                "not what `save",
            ),
            (r#"{"version":3,"images":[],"blobs":[]}"#, "version 3"),
            (
                r#"{"version":1,"images":[],"blobs":[]}{"version":1,"images":[],"blobs":[]}"#,
                "more than one",
            ),
        ] {
            let error = carried(text.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
