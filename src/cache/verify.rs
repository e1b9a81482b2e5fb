//! Verifying: every byte of the cache is read again and compared with the name it lies under, and every image must have what
//! it needs. What is wrong moves to `.quarantine/`, so that it is never served and the next pull fetches it again.
//!
//! The folders are looked at while nothing can be cleaned away. The blobs, which takes long, are read without any lock: one
//! that goes meanwhile is no fault, and what is to be moved must still be the very file that was looked at.

use std::{path::Path, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::image::{Digest, Reference, Repository};

use super::{
    Cache,
    disk::blocking,
    error::{Error, Result},
    lock::LockName,
    quarantine::{Identity, quarantine},
    rehash::{Examined, Wrong, examine},
    survey::{Finding, Subject, Survey},
};

/// Version of the JSON that reports are written as.
pub const VERIFY_REPORT_VERSION: u32 = 1;

/// When a download that nobody went on with is told.
pub(super) const STALE_AFTER: Duration = Duration::from_hours(24);

/// Reports of bytes read that may wait to be told.
const REPORTS: usize = 64;

/// What to verify.
#[derive(Debug, Clone, Default)]
pub struct VerifyRequest {
    /// Only what this repository, or this one image, needs; without, everything in the cache.
    pub only: Option<(Repository, Option<Reference>)>,
    /// Tells what is wrong, and moves nothing.
    pub dry_run: bool,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyProgress {
    /// So much is to be read.
    Planned {
        /// Blobs.
        blobs: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// So many bytes more were read.
    Read {
        /// Bytes since the last report.
        bytes: u64,
    },
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, strum::IntoStaticStr)]
pub enum Problem {
    /// A blob whose bytes have another digest than its name.
    WrongContent,
    /// The same, of another size than manifests say: it was cut, or it grew.
    WrongSize,
    /// No manifest, not the one its name promises, or one that contradicts what it names.
    WrongManifest,
    /// A blob that images need and that is not there.
    BlobMissing,
    /// A manifest that an index names and that is not there.
    ManifestMissing,
    /// A symlink, a folder or a device in a file's place.
    NotAFile,
    /// A symlink or a file in the place of one of the cache's folders.
    NotAFolder,
    /// A file whose name nothing in the cache has.
    UnknownName,
    /// The system does not give the bytes.
    Unreadable,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    /// Where, relative to the cache folder.
    pub path: String,
    /// The digest that its name promises, where it promises one.
    pub digest: Option<Digest>,
    /// What is wrong.
    pub problem: Problem,
    /// The same in words; completes the sentence "it ...".
    pub detail: String,
    /// The images that need it, by name.
    pub images: Vec<String>,
    /// Whether it was moved away.
    pub quarantined: bool,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VerifyReport {
    /// Version of this form.
    pub version: u32,
    /// Blobs that were read.
    pub blobs: u64,
    /// Bytes of blobs and manifests that were read.
    pub bytes: u64,
    /// Manifests that were read.
    pub manifests: u64,
    /// Everything that is wrong, by path.
    pub faults: Vec<Fault>,
    /// Unfinished downloads that nobody went on with for a day, relative to the cache folder. No fault: `clean` removes them.
    pub stale_partials: Vec<String>,
    /// Whether faults stay where they are since the cache cannot be written.
    pub unwritable: bool,
}

/// What a look at one blob shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobVerdict {
    /// It is right, and has so many bytes.
    Right(u64),
    /// It is not in the cache.
    Absent,
    /// It is wrong.
    Wrong(Box<Fault>),
}

/// What became of a finding.
enum Settled {
    Fault(Fault),
    /// It stays, since nothing can be written.
    Unwritable(Fault),
    /// It has gone, or something else has its place.
    Outdated,
}

impl Cache {
    /// Reads everything again and tells what is wrong; wrong files move away, unless the request or the volume forbids it.
    ///
    /// # Errors
    /// When the image to be verified is not there, and when the disk fails in a way that is not one file's.
    pub async fn verify(
        &self,
        request: &VerifyRequest,
        progress: impl Fn(VerifyProgress),
    ) -> Result<VerifyReport> {
        let mut survey = self.survey(request.only.clone()).await?;
        progress(VerifyProgress::Planned {
            blobs: survey.blobs.len() as u64,
            bytes: survey.blobs.values().sum(),
        });
        let mut report = VerifyReport {
            version: VERIFY_REPORT_VERSION,
            blobs: 0,
            bytes: survey.manifest_bytes(),
            manifests: survey.manifests.len() as u64,
            faults: Vec::new(),
            stale_partials: survey
                .stale
                .iter()
                .map(|path| self.relative(path))
                .collect(),
            unwritable: false,
        };
        self.read_blobs(&mut survey, &mut report, progress).await?;
        for finding in std::mem::take(&mut survey.findings).into_values() {
            match self.settle(finding, &survey.names, request.dry_run).await? {
                Settled::Fault(fault) => report.faults.push(fault),
                Settled::Unwritable(fault) => {
                    report.unwritable = true;
                    report.faults.push(fault);
                }
                Settled::Outdated => {}
            }
        }
        Ok(report)
    }

    /// Reads one blob again; a wrong one moves away, where that can be done.
    ///
    /// # Errors
    /// When the disk fails in a way that is not this file's.
    pub async fn verify_blob(&self, digest: &Digest) -> Result<BlobVerdict> {
        // Nobody is told of bytes; when this call is given up, the receiver goes and the reading ends.
        let (reports, mut heard) = mpsc::channel(REPORTS);
        let reading = self.examine(digest.clone(), reports);
        let hearing = async { while heard.recv().await.is_some() {} };
        let ((_, examined), ()) = tokio::join!(reading, hearing);
        let wrong = match examined? {
            Examined::Right(length) => return Ok(BlobVerdict::Right(length)),
            Examined::Gone => return Ok(BlobVerdict::Absent),
            Examined::Wrong(wrong) => wrong,
        };
        let survey = self.survey(None).await?;
        let finding = self.wrong_blob(&survey, digest.clone(), wrong);
        Ok(match self.settle(finding, &survey.names, false).await? {
            Settled::Fault(fault) | Settled::Unwritable(fault) => {
                BlobVerdict::Wrong(Box::new(fault))
            }
            Settled::Outdated => BlobVerdict::Absent,
        })
    }

    async fn survey(&self, only: Option<(Repository, Option<Reference>)>) -> Result<Survey> {
        let store = self.read_shared().await?;
        let entries = self
            .index
            .entries(&self.shared.layout, &self.output)
            .await?;
        let layout = self.shared.layout.clone();
        blocking(move || {
            let _store = store;
            Survey::take(&layout, &only, &entries)
        })
        .await
    }

    /// Reads the blobs, as many at once as there are processors, and adds to the survey what is wrong with them.
    async fn read_blobs(
        &self,
        survey: &mut Survey,
        report: &mut VerifyReport,
        progress: impl Fn(VerifyProgress),
    ) -> Result<()> {
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let (reports, mut heard) = mpsc::channel(REPORTS);
        let mut waiting = std::mem::take(&mut survey.blobs).into_keys();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < at_once
                && let Some(digest) = waiting.next()
            {
                running.push(self.examine(digest, reports.clone()));
            }
            let (digest, examined) = tokio::select! {
                Some(bytes) = heard.recv() => {
                    report.bytes += bytes;
                    progress(VerifyProgress::Read { bytes });
                    continue;
                }
                done = running.next() => match done {
                    Some(done) => done,
                    None => break,
                },
            };
            match examined? {
                Examined::Gone => {}
                Examined::Right(length) => {
                    report.blobs += 1;
                    for finding in survey.contradicted(&digest, length) {
                        let path = finding.path.clone();
                        survey.findings.entry(path).or_insert(finding);
                    }
                }
                Examined::Wrong(wrong) => {
                    report.blobs += u64::from(wrong.length.is_some());
                    let finding = self.wrong_blob(survey, digest, wrong);
                    survey.findings.insert(finding.path.clone(), finding);
                }
            }
        }
        while let Ok(bytes) = heard.try_recv() {
            report.bytes += bytes;
            progress(VerifyProgress::Read { bytes });
        }
        Ok(())
    }

    /// Reads a blob on a thread of its own, which ends when nobody listens any more.
    async fn examine(
        &self,
        digest: Digest,
        reports: mpsc::Sender<u64>,
    ) -> (Digest, Result<Examined>) {
        let (path, wanted) = (self.shared.layout.blob(&digest), digest.clone());
        let examined = blocking(move || {
            examine(&path, &wanted, &mut |bytes| {
                let sent = reports.blocking_send(bytes);
                sent.map_err(|_| Error::CacheInterrupted)
            })
        });
        (digest, examined.await)
    }

    fn wrong_blob(&self, survey: &Survey, digest: Digest, wrong: Wrong) -> Finding {
        let need = survey.needs.get(&digest);
        let said = need.and_then(|need| need.sizes.first()).map(|said| said.0);
        let (problem, detail) = match (wrong.problem, said, wrong.length) {
            (Problem::WrongContent, Some(said), Some(length)) if said != length => (
                Problem::WrongSize,
                format!("has {length} bytes instead of {said}"),
            ),
            (problem, ..) => (problem, wrong.detail),
        };
        Finding {
            path: self.shared.layout.blob(&digest),
            subject: Subject::Blob(digest),
            problem,
            detail,
            images: need.map(|need| need.images.clone()).unwrap_or_default(),
            seen: wrong.seen,
        }
    }

    /// Moves away what is wrong, and tells of it.
    async fn settle(&self, finding: Finding, names: &[String], dry_run: bool) -> Result<Settled> {
        let fault = self.fault(&finding, names);
        let Some(seen) = finding.seen else {
            return Ok(Settled::Fault(fault));
        };
        let path = finding.path.clone();
        if blocking(move || Identity::at(&path)).await? != Some(seen) {
            return Ok(Settled::Outdated);
        }
        if dry_run {
            return Ok(Settled::Fault(fault));
        }
        match self.move_away(&finding, seen).await {
            Ok(true) => Ok(Settled::Fault(Fault {
                quarantined: true,
                ..fault
            })),
            Ok(false) => Ok(Settled::Outdated),
            Err(Error::CacheUnwritable { .. } | Error::CacheFull { .. }) => {
                Ok(Settled::Unwritable(fault))
            }
            Err(error) => Err(error),
        }
    }

    /// Moves a file under the lock of who would write it.
    async fn move_away(&self, finding: &Finding, seen: Identity) -> Result<bool> {
        let store = self.use_shared().await?;
        let (locks, output) = (&self.shared.locks, &self.output);
        let (lock, name) = match &finding.subject {
            Subject::Blob(digest) => {
                let lock = locks.exclusive(LockName::Blob(digest), output).await?;
                (Some(lock), digest.to_string())
            }
            Subject::Manifest(image) => {
                let name = LockName::Reference(&image.repository, &image.reference);
                let lock = locks.exclusive(name, output).await?;
                (Some(lock), format!("manifest-{}", image.reference))
            }
            Subject::Stranger => {
                let name = finding.path.file_name().unwrap_or_default();
                (None, format!("unknown-{}", name.to_string_lossy()))
            }
        };
        let (shared, path) = (Arc::clone(&self.shared), finding.path.clone());
        blocking(move || {
            let _locks = (store, lock);
            quarantine(&shared.layout, &path, &name, seen)
        })
        .await
    }

    fn fault(&self, finding: &Finding, names: &[String]) -> Fault {
        let images = finding.images.iter();
        let images = images.filter_map(|image| names.get(*image).cloned());
        Fault {
            path: self.relative(&finding.path),
            digest: match &finding.subject {
                Subject::Blob(digest) => Some(digest.clone()),
                Subject::Manifest(name) => name.reference.digest().cloned(),
                Subject::Stranger => None,
            },
            problem: finding.problem,
            detail: finding.detail.clone(),
            images: images.collect(),
            quarantined: false,
        }
    }

    fn relative(&self, path: &Path) -> String {
        let inside = path.strip_prefix(self.directory()).unwrap_or(path);
        inside.display().to_string()
    }
}
