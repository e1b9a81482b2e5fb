//! The folder of archives: a path of a resource is opened beneath it, and nothing else ever is.
//!
//! The path comes from a tenant and so does what lies in the folder, so each component is opened for itself and none may be
//! a symbolic link; what is found must be a regular file. A file that somebody is still writing is refused for now: whoever
//! waited for it here would keep others from their turn.

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
use tokio::time::sleep;

use crate::{
    archive::{self, Choice},
    cache::FileIdentity,
    error::{Class, Classified},
};

use super::{Error, Result};

/// When a file is looked at once more whose time cannot tell whether somebody is still writing it.
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

    /// Notes why this reading is refused, if it is the file that is at fault. What an archive relies on may come into the
    /// cache later.
    pub(super) fn note(&self, reading: Reading, error: &Arc<archive::Error>) {
        let lacks_others = matches!(
            **error,
            archive::Error::ArchiveBaseMissing { .. } | archive::Error::ArchiveBaseDamaged { .. }
        );
        if error.class() != Class::Archive || lacks_others {
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
    /// Opens `path`.
    ///
    /// # Errors
    /// [`Error::ArchiveUnsettled`] before it stood still for long enough.
    pub(super) async fn open(&self, path: &str) -> Result<File> {
        let (mut file, state) = self.look(path).await?;
        let mut rest = self.rest(state);
        if rest > 2 * self.settle {
            // The clock that wrote it is far ahead of ours: only a change tells that somebody is still writing.
            sleep(LOOK_AGAIN).await;
            let again;
            (file, again) = self.look(path).await?;
            rest = if again == state {
                Duration::ZERO
            } else {
                self.settle
            };
        }
        if rest.is_zero() {
            return Ok(file);
        }
        Err(Error::ArchiveUnsettled {
            path: path.to_owned(),
            settle: self.settle,
            rest,
        })
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

    /// For how long it still has to stand still; longer than it must where it was written in the future.
    fn rest(&self, state: State) -> Duration {
        if self.settle.is_zero() {
            return Duration::ZERO;
        }
        match SystemTime::now().duration_since(state.modified) {
            Ok(age) => self.settle.saturating_sub(age),
            Err(ahead) => self.settle.saturating_add(ahead.duration()),
        }
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
    use crate::{
        error::handlers::{Recovery, recovery},
        transfer::Failure,
    };

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
        let opened = folder.open(path).await;
        opened.unwrap_err().reason()
    }

    #[tokio::test]
    async fn a_file_below_the_folder_is_opened() {
        let (_directory, folder) = folder(Duration::ZERO);
        let file = folder.open("sub/app.tar").await;
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

    /// Opens it within two seconds, or says why not.
    async fn opened(folder: &ArchiveFolder, path: &str) -> Result<u64> {
        let opening = folder.open(path);
        let opened = tokio::time::timeout(Duration::from_secs(2), opening).await;
        let file = opened.expect("nobody waits for a file here")?;
        Ok(file.metadata().unwrap().len())
    }

    /// Archive reference A part 4.
    #[tokio::test]
    async fn a_file_that_was_written_just_now_is_refused_for_the_rest_of_the_pause() {
        let (_directory, folder) = folder(Duration::from_hours(1));
        set_modified(&folder, SystemTime::now() - Duration::from_mins(20));
        let error = opened(&folder, "sub/app.tar").await.unwrap_err();
        assert_eq!(minutes_left(&error), 40);
    }

    #[tokio::test]
    async fn a_clock_that_is_a_little_ahead_makes_the_pause_longer() {
        let (_directory, folder) = folder(Duration::from_hours(1));
        set_modified(&folder, SystemTime::now() + Duration::from_mins(20));
        let error = opened(&folder, "sub/app.tar").await.unwrap_err();
        assert_eq!(minutes_left(&error), 80);
    }

    #[tokio::test]
    async fn a_file_of_the_far_future_is_read_unless_it_changes_meanwhile() {
        let (_directory, folder) = folder(Duration::from_mins(1));
        let ahead = SystemTime::now() + Duration::from_hours(1);
        set_modified(&folder, ahead);
        assert_eq!(opened(&folder, "sub/app.tar").await.unwrap(), 5);
        let write = async {
            sleep(LOOK_AGAIN / 2).await;
            fs::write(folder.path.join("sub/app.tar"), "more bytes").unwrap();
            set_modified(&folder, ahead);
        };
        let (opened, ()) = tokio::join!(opened(&folder, "sub/app.tar"), write);
        assert_eq!(minutes_left(&opened.unwrap_err()), 1);
    }

    /// The pause that the error asks for, in minutes begun.
    fn minutes_left(error: &Error) -> u64 {
        let failure = Failure::from(error);
        assert_eq!(
            (failure.reason, recovery(failure.class)),
            ("ArchiveUnsettled", Recovery::Time)
        );
        failure.retry_after.unwrap().as_secs().div_ceil(60)
    }

    fn set_modified(folder: &ArchiveFolder, time: SystemTime) {
        let file = File::options()
            .append(true)
            .open(folder.path.join("sub/app.tar"));
        file.unwrap().set_modified(time).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_was_written_long_ago_is_read_at_once() {
        let (_directory, folder) = folder(Duration::from_hours(1));
        set_modified(&folder, SystemTime::now() - Duration::from_hours(2));
        assert_eq!(opened(&folder, "sub/app.tar").await.unwrap(), 5);
    }
}
