//! What must be true of a cache whatever happened to it, as a stranger sees it who knows only its published layout.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{Context, Failure, Result, skopeo};

/// Every file below a folder that is there.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.exists() {
        return Ok(files);
    }
    let listed = fs::read_dir(folder).context(format!("could not list {}", folder.display()))?;
    for entry in listed {
        let path = entry.context("could not list")?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// Looks at a cache as a stranger who knows only its published layout: every blob is what its name says, every manifest is
/// whole, and whatever it names is there.
pub(crate) fn check(cache: &Path) -> Result<()> {
    for algorithm in ["sha256", "sha512"] {
        for blob in files_below(&cache.join("blobs").join(algorithm))? {
            let bytes = read(&blob)?;
            let name = blob.file_name().unwrap_or_default().to_string_lossy();
            if skopeo::sha256(&bytes) != format!("sha256:{name}") {
                return wrong(&blob, "its bytes are others");
            }
        }
    }
    check_images(cache)?;
    let index = cache.join("index.json");
    if index.exists() && serde_json::from_slice::<Value>(&read(&index)?).is_err() {
        return wrong(&index, "it is torn");
    }
    Ok(())
}

/// Every manifest is whole, and whatever it names is there with the right bytes. Blobs that no manifest names may be anything.
pub(crate) fn check_images(cache: &Path) -> Result<()> {
    for manifest in files_below(&cache.join("manifests"))? {
        let name = manifest.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".tmp-") {
            continue;
        }
        let bytes = read(&manifest)?;
        if name.starts_with("sha256:") && skopeo::sha256(&bytes) != name {
            return wrong(&manifest, "its bytes are others");
        }
        check_manifest(cache, &manifest, &bytes)?;
    }
    Ok(())
}

fn check_manifest(cache: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else {
        return wrong(path, "it is torn");
    };
    let list = |field: &str| manifest[field].as_array().cloned().unwrap_or_default();
    for child in list("manifests") {
        let digest = child["digest"].as_str().unwrap_or_default();
        if !path.with_file_name(digest).is_file() {
            return wrong(path, &format!("it names {digest}, which is not there"));
        }
    }
    let blobs = manifest
        .get("config")
        .cloned()
        .into_iter()
        .chain(list("layers"));
    for blob in blobs {
        let hex = blob["digest"]
            .as_str()
            .unwrap_or_default()
            .replace("sha256:", "");
        let file = cache.join("blobs/sha256").join(&hex);
        let size = fs::metadata(&file).ok().map(|metadata| metadata.len());
        if size != blob["size"].as_u64() {
            return wrong(
                path,
                &format!("it names {hex}, of which {size:?} bytes are there"),
            );
        }
        if skopeo::sha256(&read(&file)?) != format!("sha256:{hex}") {
            return wrong(
                path,
                &format!("it names {hex}, of which the bytes are others"),
            );
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(format!("could not read {}", path.display()))
}

fn wrong(path: &Path, what: &str) -> Result<()> {
    Err(Failure::new(format!("{}: {what}", path.display())))
}
