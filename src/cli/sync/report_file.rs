//! The report as a file: there as a whole or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    cli::error::{Error, Usage},
    mirror::Report,
};

/// A report that is still to be written, beside its place. Made before anything starts, so that nobody waits for a copy whose
/// report cannot be kept.
#[derive(Debug)]
pub(super) struct ReportFile {
    target: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl ReportFile {
    /// Prepares a report at `path`.
    pub(super) fn create(path: &Path) -> Result<Self, Usage> {
        let refused = |reason| Usage::ReportTarget {
            path: path.to_owned(),
            reason,
        };
        if path == Path::new("-") {
            return Err(refused(
                "it must be a file; --output json writes the same to standard output",
            ));
        }
        let unwritable = |source| Usage::ReportUnwritable {
            path: path.to_owned(),
            source,
        };
        // Renaming over a link would replace the link, over a device the device.
        let target = match fs::canonicalize(path) {
            Ok(target) if target.is_file() => target,
            Ok(_) => return Err(refused("something that is no file stands there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(unwritable(error)),
        };
        let (temporary, file) = new_file_beside(&target).map_err(unwritable)?;
        Ok(Self {
            target,
            temporary,
            file,
        })
    }

    /// Writes the report to its place.
    pub(super) fn write(mut self, report: &Report) -> Result<(), Error> {
        self.put(report).map_err(|source| Error::ReportFailed {
            path: self.target.clone(),
            source,
        })
    }

    fn put(&mut self, report: &Report) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(report)?;
        text.push(b'\n');
        self.file.write_all(&text)?;
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.target)
    }
}

/// A new, empty file with a name nobody else has. Process ids would not do: in a container they are always the same, and a run
/// that was killed has left its file behind.
fn new_file_beside(target: &Path) -> io::Result<(PathBuf, File)> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let temporary = target.with_file_name(format!(".{name}.{:016x}.tmp", fastrand::u64(..)));
        match File::create_new(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

impl Drop for ReportFile {
    fn drop(&mut self) {
        // It is not there any more when the report was written.
        drop(fs::remove_file(&self.temporary));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_behind_keeps_no_later_one_from_its_report() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("report.json");
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect::<Vec<_>>()
        };
        // In a container every run has the same process id.
        let _killed = std::mem::ManuallyDrop::new(ReportFile::create(&target).unwrap());
        assert_eq!(names().len(), 1);
        drop(ReportFile::create(&target).unwrap());
        assert_eq!(names().len(), 1, "{:?}", names());
    }
}
