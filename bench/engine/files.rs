//! An archive as `docker save` writes it, of files that this machine has: random layers cannot be compressed.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::skopeo::{digest_text, sha256};
use crate::support::{Context, Result};

/// Programs, libraries, texts: what is in images.
const FOLDER: &str = "/usr/lib";

/// Writes an archive with so many plain layers of about so many bytes each, fewer where there are not enough files.
pub(crate) fn save(file: &Path, name: &str, layers: usize, layer_bytes: u64) -> Result<()> {
    let wrong = "could not write an archive of this machine's files";
    let mut archive = tar::Builder::new(File::create(file).context(wrong)?);
    let mut files = Vec::new();
    collect(Path::new(FOLDER), &mut files);
    let mut files = files.into_iter();
    let (mut paths, mut diff_ids) = (Vec::new(), Vec::new());
    for number in 0..layers {
        let mut layer = layer(&mut files, layer_bytes).context(wrong)?;
        diff_ids.push(digest_of(&mut layer).context(wrong)?);
        let path = format!("{number}/layer.tar");
        archive.append_file(&path, &mut layer).context(wrong)?;
        paths.push(path);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_path = format!("{}.json", sha256(config.as_bytes()).replace("sha256:", ""));
    let list = json!([{"Config": config_path, "RepoTags": [name], "Layers": paths}]).to_string();
    for (path, content) in [(&config_path[..], config), ("manifest.json", list)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        let appended = archive.append_data(&mut header, path, content.as_bytes());
        appended.context(wrong)?;
    }
    archive.finish().context(wrong)
}

/// Regular files, in the order of their names; what cannot be read is left out.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&entry.path(), files),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
}

fn layer(files: &mut impl Iterator<Item = PathBuf>, bytes: u64) -> io::Result<File> {
    let mut layer = tar::Builder::new(tempfile::tempfile()?);
    let mut taken = 0;
    for path in files {
        let Ok(mut file) = File::open(&path) else {
            continue;
        };
        let name = path.strip_prefix("/").unwrap_or(&path);
        layer.append_file(name, &mut file)?;
        taken += file.metadata()?.len();
        if taken >= bytes {
            break;
        }
    }
    layer.into_inner()
}

fn digest_of(file: &mut File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            file.seek(SeekFrom::Start(0))?;
            return Ok(digest_text(hasher.finalize().as_ref()));
        }
        hasher.update(&buffer[..read]);
    }
}
