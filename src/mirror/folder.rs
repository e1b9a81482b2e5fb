//! The folder of archives: a path of a resource is opened beneath it, and nothing else ever is.
//!
//! The path comes from a tenant and so does what lies in the folder, so each component is opened for itself and none may be
//! a symbolic link; what is found must be a regular file. A file that somebody is still writing is waited for.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustix::{
    fs::{Mode, OFlags, open, openat},
    io::Errno,
};
use tokio::time::{Instant, sleep};

use crate::{
    archive::{self, Choice},
    cache::FileIdentity,
    error::{Class, Classified},
    output::OutputManager,
};

use super::{Error, Result};

/// How often a file is looked at that somebody is still writing.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The folder that paths of archives are relative to.
#[derive(Debug, Clone)]
pub struct ArchiveFolder {
    /// The folder itself, which may be reached by symbolic links: it is the operator's choice.
    pub path: PathBuf,
    /// How long a file must have stood still before it is read.
    pub settle: Duration,
    /// What is known of files that were refused, for as long as they do not change.
    pub refused: RefusedArchives,
}

/// Archives that were read and found bad. Who looks at one again after each interval need not read it again.
#[derive(Debug, Clone, Default)]
pub struct RefusedArchives(Arc<Mutex<HashMap<Reading, Arc<archive::Error>>>>);

/// A file, and the images that were wanted of it: damage to one image is none to the others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    pub(super) file: FileIdentity,
    /// None: all that have a name.
    pub(super) images: Vec<Choice>,
}

impl RefusedArchives {
    /// More bad archives than this are not remembered: reading one again is no harm.
    const LIMIT: usize = 1000;

    /// Why this reading was refused, if it was.
    pub(super) fn verdict(&self, reading: &Reading) -> Option<Arc<archive::Error>> {
        self.0.lock().get(reading).cloned()
    }

    /// Notes why this reading is refused, if it is the file that is at fault.
    pub(super) fn note(&self, reading: Reading, error: &Arc<archive::Error>) {
        if error.class() != Class::Archive {
            return;
        }
        let mut refused = self.0.lock();
        if refused.len() >= Self::LIMIT {
            refused.clear();
        }
        refused.insert(reading, Arc::clone(error));
    }
}

/// What tells that a file stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    size: u64,
    modified: SystemTime,
}

impl ArchiveFolder {
    /// Opens `path`, once it stood still.
    pub(super) async fn open(&self, path: &str, output: &OutputManager) -> Result<File> {
        let (mut file, mut state) = self.look(path).await?;
        if self.is_settled(state) {
            return Ok(file);
        }
        output.info(format!(
            "{path} was written to just now: waiting until it stands still for {} s",
            self.settle.as_secs()
        ));
        let mut since = Instant::now();
        // By our own clock: the one that wrote the file may be wrong.
        while since.elapsed() < self.settle {
            sleep(LOOK_AGAIN.min(self.settle)).await;
            let before = state;
            (file, state) = self.look(path).await?;
            if state != before {
                since = Instant::now();
            }
        }
        Ok(file)
    }

    /// Opened anew each time: uploads are often finished by renaming another file to this name.
    async fn look(&self, path: &str) -> Result<(File, State)> {
        let (folder, path) = (self.path.clone(), path.to_owned());
        let task = tokio::task::spawn_blocking(move || {
            let file = open_beneath(&folder, &path)?;
            let unreadable = |source| Error::ArchiveUnreadable {
                path: path.clone(),
                source,
            };
            let metadata = file.metadata().map_err(unreadable)?;
            if !metadata.is_file() {
                return Err(Error::ArchivePathRefused {
                    path,
                    what: "is not a regular file",
                });
            }
            let state = State {
                size: metadata.len(),
                modified: metadata.modified().map_err(unreadable)?,
            };
            Ok((file, state))
        });
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn is_settled(&self, state: State) -> bool {
        let age = SystemTime::now().duration_since(state.modified);
        self.settle.is_zero() || age.is_ok_and(|age| age >= self.settle)
    }
}

/// Opens a file below `folder`, component by component.
fn open_beneath(folder: &Path, path: &str) -> Result<File> {
    let failed = |errno: Errno| match errno {
        Errno::NOENT => Error::ArchiveNotFound {
            path: path.to_owned(),
            folder: folder.to_owned(),
        },
        // What O_NOFOLLOW says of a symbolic link, and O_DIRECTORY of one in the middle.
        Errno::LOOP | Errno::NOTDIR => Error::ArchivePathRefused {
            path: path.to_owned(),
            what: "leads through a symbolic link or through something that is no folder",
        },
        other => Error::ArchiveUnreadable {
            path: path.to_owned(),
            source: io::Error::from(other),
        },
    };
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut place = open(folder, directory, Mode::empty()).map_err(failed)?;
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() {
            directory
        } else {
            // A pipe must not keep us waiting for somebody to write to it.
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC
        };
        place = openat(&place, part, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?;
    }
    Ok(File::from(place))
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::disallowed_methods,
        reason = "tests write plain files, one of them while another looks"
    )]

    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn folder(settle: Duration) -> (tempfile::TempDir, ArchiveFolder) {
        let directory = tempfile::tempdir().unwrap();
        let folder = ArchiveFolder {
            path: directory.path().join("archives/team-a"),
            settle,
            refused: RefusedArchives::default(),
        };
        fs::create_dir_all(folder.path.join("sub")).unwrap();
        fs::write(folder.path.join("sub/app.tar"), "bytes").unwrap();
        fs::write(directory.path().join("secret.tar"), "bytes").unwrap();
        (directory, folder)
    }

    async fn reason(folder: &ArchiveFolder, path: &str) -> &'static str {
        let opened = folder.open(path, &OutputManager::silent()).await;
        opened.unwrap_err().reason()
    }

    #[tokio::test]
    async fn a_file_below_the_folder_is_opened() {
        let (_directory, folder) = folder(Duration::ZERO);
        let file = folder.open("sub/app.tar", &OutputManager::silent()).await;
        assert_eq!(file.unwrap().metadata().unwrap().len(), 5);
    }

    #[tokio::test]
    async fn nothing_outside_is_opened_by_dots_links_or_pipes() {
        let (directory, folder) = folder(Duration::ZERO);
        symlink(directory.path(), folder.path.join("up")).unwrap();
        symlink(
            directory.path().join("secret.tar"),
            folder.path.join("link.tar"),
        )
        .unwrap();
        // Inside too: what a link points to can change between our look and our reading.
        symlink("sub/app.tar", folder.path.join("inner.tar")).unwrap();
        let pipe = folder.path.join("pipe.tar");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        for path in [
            "up/secret.tar",
            "link.tar",
            "inner.tar",
            "pipe.tar",
            "sub",
            "sub/app.tar/x",
        ] {
            assert_eq!(reason(&folder, path).await, "ArchivePathRefused", "{path}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_said_to_be_missing() {
        let (_directory, folder) = folder(Duration::ZERO);
        assert_eq!(reason(&folder, "sub/other.tar").await, "ArchiveNotFound");
        let nowhere = ArchiveFolder {
            path: folder.path.join("nowhere"),
            ..folder
        };
        assert_eq!(reason(&nowhere, "app.tar").await, "ArchiveNotFound");
    }

    #[tokio::test]
    async fn a_file_that_still_grows_is_waited_for() {
        let (_directory, folder) = folder(Duration::from_secs(1));
        let path = folder.path.join("sub/app.tar");
        let writer = tokio::spawn(async move {
            for size in 1..=3 {
                sleep(Duration::from_millis(700)).await;
                fs::write(&path, vec![0; size * 1000]).unwrap();
            }
        });
        let file = folder.open("sub/app.tar", &OutputManager::silent()).await;
        assert!(writer.is_finished());
        assert_eq!(file.unwrap().metadata().unwrap().len(), 3000);
    }

    #[tokio::test]
    async fn a_file_that_was_written_long_ago_is_read_at_once() {
        let (_directory, folder) = folder(Duration::from_hours(1));
        let path = folder.path.join("sub/app.tar");
        let long_ago = SystemTime::now() - Duration::from_hours(2);
        File::options()
            .append(true)
            .open(path)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        let opened = folder.open("sub/app.tar", &OutputManager::silent()).await;
        assert!(opened.is_ok());
    }
}
