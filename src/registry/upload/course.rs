//! The course of an upload: attempts, what is gone on from, and which way is tried next.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tracing::debug;

use super::{
    super::{
        Answer, RegistryClient,
        error::{Error, Operation, Result},
    },
    BlobUpload, UploadNotes, Uploaded,
    ladder::{self, Tried, Way},
    next::Next,
    notes::Note,
    outgoing::Outgoing,
    session::{Mounted, Session},
    turn::{Attempt, Turn},
};
use crate::{
    error::{Class, Classified},
    image::RepositoryPath,
};

/// A smaller blob is sent again sooner than a file is written about it.
const WORTH_NOTING: u64 = 8 * 1024 * 1024;

/// Pauses before each further look for a blob that was just sent (registry rule R18).
const SECOND_LOOKS: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// What outlives a single attempt.
pub(super) struct Course<'a> {
    pub(super) client: RegistryClient,
    pub(super) upload: &'a BlobUpload<'a>,
    operation: Operation,
    /// Where to remember it, if it is worth that.
    notes: Option<&'a dyn UploadNotes>,
    /// Where to mount from, until that was tried.
    mount_from: Option<&'a RepositoryPath>,
    /// An upload that broke off and may be gone on with.
    pub(super) session: Option<Session>,
    /// The last request that carried bytes, until something else was asked.
    pub(super) tried: Option<Tried>,
    /// Our own limit for one request, after a connection broke and the registry kept nothing.
    pub(super) limit: Option<u64>,
    /// How many bytes went through before the connection broke.
    pub(super) cut: Option<u64>,
    /// The farthest the registry ever was, and where that was at the last failure.
    farthest: u64,
    mark: u64,
    /// The session is that of a note, and nobody asked for it yet.
    is_remembered: bool,
    /// What it turned out to have.
    pub(super) resumed_from: Option<u64>,
    pub(super) has_started_over: bool,
    /// Why the first way failed: where all fail, this says most.
    pub(super) first_refusal: Option<Error>,
}

impl<'a> Course<'a> {
    pub(super) fn new(client: RegistryClient, upload: &'a BlobUpload<'a>) -> Self {
        let operation = Operation::new(format!(
            "upload blob {} to {} at {}",
            upload.descriptor.digest, upload.repository, client.address
        ));
        Self {
            client,
            upload,
            operation,
            notes: upload
                .notes
                .filter(|_| upload.source.size() >= WORTH_NOTING),
            mount_from: upload.mount_from.filter(|from| *from != upload.repository),
            session: None,
            tried: None,
            limit: None,
            cut: None,
            farthest: 0,
            mark: 0,
            is_remembered: false,
            resumed_from: None,
            has_started_over: false,
            first_refusal: None,
        }
    }

    /// Tries until the blob is there, or until there is no more point in trying.
    pub(super) async fn run(mut self) -> Result<Uploaded> {
        self.session = self.remembered().await;
        let mut retry = self.client.retry();
        loop {
            let turn = Attempt::begin(&self.client.shared).await;
            let error = match self.attempt(&turn).await {
                Ok(uploaded) => {
                    self.note(None).await;
                    return Ok(uploaded);
                }
                Err(error) => error,
            };
            // What was there before and got lost is no progress.
            retry.progressed(self.farthest - self.mark);
            self.mark = self.farthest;
            let error = match self.next(error).await {
                Next::OtherWay => continue,
                Next::Retry(error) => error,
            };
            if let Some(pause) = turn.crowded_out(&error) {
                debug!(operation = %self.operation, %error, "too many at once");
                // With the turn in hand: whoever got it now would be refused just so.
                tokio::time::sleep(pause).await;
                continue;
            }
            drop(turn);
            let is_retried = self.client.pause_after(&mut retry, &self.operation, &error);
            if !is_retried.await {
                self.give_up(&error).await;
                return Err(self.client.diagnosed(error).await);
            }
        }
    }

    /// One attempt: goes on with an upload or opens one, sends what is missing, names the digest.
    async fn attempt(&mut self, turn: &Arc<Turn>) -> Result<Uploaded> {
        self.tried = None;
        let Some(mut session) = self.enter().await? else {
            return Ok(Uploaded::Mounted);
        };
        let sent = self.send(&mut session, turn).await;
        match sent {
            Ok(()) => {
                session.stay();
                Ok(match self.resumed_from {
                    Some(from) => Uploaded::Resumed { from },
                    None => Uploaded::Sent,
                })
            }
            Err(error) => {
                self.session = Some(session);
                Err(error)
            }
        }
    }

    /// An open upload, or nothing where the blob was mounted.
    async fn enter(&mut self) -> Result<Option<Session>> {
        if let Some(session) = self.session.take()
            && let Some(session) = self.go_on(session).await?
        {
            return Ok(Some(session));
        }
        self.resumed_from = None;
        let session = match self.mount().await? {
            Some(Mounted::Done) => return Ok(None),
            Some(Mounted::Opened(session)) => *session,
            None => {
                let BlobUpload { repository, .. } = self.upload;
                Session::open(&self.client, repository, &self.operation).await?
            }
        };
        Ok(Some(self.noted(session).await))
    }

    /// An upload of before, if the registry still knows it.
    async fn go_on(&mut self, mut session: Session) -> Result<Option<Session>> {
        let there = match session.ask().await {
            Ok(there) => there,
            Err(error) => {
                self.session = Some(session);
                return Err(error);
            }
        };
        let is_remembered = std::mem::take(&mut self.is_remembered);
        let cut = self.cut.take();
        // What was acknowledged counts, whatever is said later (registry rule U9).
        let offset = there.map(|there| there.max(session.offset()));
        if let Some(offset) = offset.filter(|offset| *offset <= self.upload.source.size()) {
            if is_remembered && offset > 0 {
                self.resumed_from = Some(offset);
            }
            if cut.is_some() && offset <= session.offset() {
                // Nothing came through: somebody on the way may have hung up on a body of this size.
                let sent = self.limit.unwrap_or_else(|| self.upload.source.size());
                self.lower_limit(ladder::chunk_below(sent));
            }
            session.go_on_from(offset);
            self.farthest = self.farthest.max(offset);
            return Ok(Some(session));
        }
        // Nothing to cancel, and nothing is there of what went through: smaller requests may fit into the life of one
        // connection.
        session.stay();
        self.note(None).await;
        self.lower_limit(cut.and_then(ladder::chunk_below));
        Ok(None)
    }

    fn lower_limit(&mut self, limit: Option<u64>) {
        self.limit = self.limit.into_iter().chain(limit).min();
    }

    /// Asks once for the blob of another repository; whatever is wrong with that, the bytes can still be sent (U16).
    async fn mount(&mut self) -> Result<Option<Mounted>> {
        let BlobUpload {
            repository,
            descriptor,
            ..
        } = self.upload;
        let Some(from) = self.mount_from.take() else {
            return Ok(None);
        };
        let digest = &descriptor.digest;
        let mounted = Session::mount(&self.client, repository, &self.operation, digest, from).await;
        match mounted {
            Ok(mounted) => Ok(Some(mounted)),
            Err(error) if error.class() == Class::RateLimited => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Sends what the registry does not have yet, and makes sure that it has all.
    async fn send(&mut self, session: &mut Session, turn: &Arc<Turn>) -> Result<()> {
        let size = self.upload.source.size();
        let rest = size - session.offset();
        let way = self.client.shared.host.ladder.way(rest, self.limit);
        let chunk = match way {
            Way::Whole => return self.commit(session, turn).await,
            Way::Stream => rest,
            Way::Chunks(chunk) => chunk,
        };
        while session.offset() < size {
            let start = session.offset();
            let end = start.saturating_add(chunk).min(size);
            let upload = self.upload;
            let bytes = Outgoing::new(upload.source, start..end, upload.progress, turn);
            let is_chunk = matches!(way, Way::Chunks(_));
            let sent = session.append(&bytes, is_chunk, self.limit.is_some()).await;
            self.tried = Some(Tried {
                way,
                length: bytes.length(),
                taken: bytes.taken(),
            });
            sent?;
            self.farthest = self.farthest.max(session.offset());
            self.note(Some(session)).await;
        }
        self.tried = None;
        self.commit(session, turn).await
    }

    /// Sends the rest with the digest, and looks whether the blob is there where the answer leaves that open.
    async fn commit(&mut self, session: &Session, turn: &Arc<Turn>) -> Result<()> {
        let upload = self.upload;
        let range = session.offset()..upload.source.size();
        let rest = Outgoing::new(upload.source, range, upload.progress, turn);
        let sent = session.commit(&rest, &upload.descriptor.digest).await;
        if rest.length() > 0 {
            self.tried = Some(Tried {
                way: Way::Whole,
                length: rest.length(),
                taken: rest.taken(),
            });
        }
        match sent {
            // Success, but not the one a finished upload has: make sure (registry rule G5).
            Ok(response) if response.status() == StatusCode::ACCEPTED => {
                if self.is_there().await {
                    return Ok(());
                }
                Err(Error::UnexpectedAnswer {
                    operation: self.operation.clone(),
                    answer: Answer::of_status(response.status()),
                    problem: "the registry took the bytes, but does not have the blob",
                })
            }
            Ok(_) => Ok(()),
            // The answer got lost, the upload perhaps not (registry rule U11; jib#4301): sending it again would cost more
            // than asking.
            Err(error) if error.class() == Class::Network && rest.is_spent() => {
                if self.is_there().await {
                    return Ok(());
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks whether the blob arrived, and again where it is not seen: some registries need a moment to see what they have
    /// (registry rule R18). No answer counts as no.
    async fn is_there(&self) -> bool {
        let BlobUpload {
            repository,
            descriptor,
            ..
        } = self.upload;
        let call = self.client.head_blob_call(repository, descriptor);
        for pause in SECOND_LOOKS {
            match self.client.attempt(&call).await {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                    tokio::time::sleep(pause).await;
                }
                found => return found.is_ok(),
            }
        }
        let found = self.client.attempt(&call).await;
        found.is_ok_and(|response| response.status().is_success())
    }

    /// The upload that a note tells of.
    async fn remembered(&mut self) -> Option<Session> {
        let text = self.notes?.load().await?;
        let note = Note::read(&self.client.shared.account_key, &text)?;
        let location = note.location(&self.client.shared.base)?;
        self.is_remembered = true;
        Some(Session::known(
            &self.client,
            self.upload.repository,
            &self.operation,
            location,
            note.offset,
        ))
    }

    /// The session, which from now on outlives the process where notes are kept.
    async fn noted(&self, mut session: Session) -> Session {
        if self.notes.is_some() {
            session.stay();
        }
        self.note(Some(&session)).await;
        session
    }

    /// Keeps a note of how far the upload is, or none.
    async fn note(&self, session: Option<&Session>) {
        let Some(notes) = self.notes else {
            return;
        };
        let account = &self.client.shared.account_key;
        let note = session
            .map(|session| Note::new(account, session.location(), session.offset()))
            .and_then(|note| note.text());
        notes.save(note).await;
    }

    /// What is not tried again now may be gone on with by the next run, if only the way there was bad.
    async fn give_up(&mut self, error: &Error) {
        let session = self.session.take();
        if session.is_some() && self.notes.is_some() && error.class() == Class::Network {
            return;
        }
        self.note(None).await;
        if let Some(mut session) = session {
            session.go();
        }
    }
}
