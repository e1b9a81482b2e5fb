//! Which files are read, and their bytes.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    cli::error::Usage,
    mirror::{Documents, Origin},
};

type Result<T> = std::result::Result<T, Usage>;

/// Longer files hold no mirrors, but are given by mistake.
const MAX_LENGTH: u64 = 64 * 1024 * 1024;
/// What kubectl takes from a folder.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Reads a file, the files of a folder in the order of their names, or standard input.
pub(super) fn read(path: &Path, documents: &mut Documents) -> Result<()> {
    if path == Path::new("-") {
        let origin = Origin {
            name: "standard input".to_owned(),
            folder: PathBuf::from("."),
        };
        return add(documents, &origin, path, &mut io::stdin().lock());
    }
    if path.is_dir() {
        let files = files_of(path).map_err(|source| unreadable(path, source))?;
        return files.iter().try_for_each(|file| read_file(file, documents));
    }
    read_file(path, documents)
}

fn read_file(path: &Path, documents: &mut Documents) -> Result<()> {
    let mut file = File::open(path).map_err(|source| unreadable(path, source))?;
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let origin = Origin {
        name: path.display().to_string(),
        folder: folder.map_or_else(|| PathBuf::from("."), Path::to_owned),
    };
    add(documents, &origin, path, &mut file)
}

/// The files of a folder that can hold documents, not of folders in it.
fn files_of(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
    paths.retain(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension)) && path.is_file()
    });
    paths.sort();
    Ok(paths)
}

fn add(
    documents: &mut Documents,
    origin: &Origin,
    path: &Path,
    source: &mut dyn Read,
) -> Result<()> {
    let mut bytes = Vec::new();
    source
        .take(MAX_LENGTH + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| unreadable(path, source))?;
    if bytes.len() as u64 > MAX_LENGTH {
        let source = io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 MiB");
        return Err(unreadable(path, source));
    }
    documents.read(origin, &bytes);
    Ok(())
}

fn unreadable(path: &Path, source: io::Error) -> Usage {
    Usage::FileUnreadable {
        path: path.to_owned(),
        option: "-f",
        source,
    }
}
