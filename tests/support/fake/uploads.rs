//! Uploads: in one piece, in chunks, mounted, asked about, cancelled.

use std::collections::HashMap;

use bytes::Bytes;
use hyper::body::Incoming;

use super::super::web::HangUp;
use super::call::{Call, MOVED, Taken};
use super::content::Content;
use super::fault::{Fault, Location, Lost, UploadRange};
use super::lock;
use super::reply::Reply;
use super::rule::fault_value;

/// What must come back as it was given (U5): encoded, double-encoded, and characters that are legal as they are.
const OPAQUE: &str = "_state=a%2Fb%252B~c%3D%3D&sig=x/y:@!$()*,;+-._%7E";

/// Uploads that were begun and neither committed nor cancelled.
#[derive(Debug, Default)]
pub struct Uploads {
    sessions: HashMap<String, Session>,
    begun: usize,
}

#[derive(Debug, Default)]
struct Session {
    pieces: Vec<Bytes>,
    size: u64,
    /// Where the last chunk began.
    chunk_start: u64,
    /// Counts the Locations that were given out.
    state: usize,
}

impl Uploads {
    /// Uploads that nobody ended.
    pub fn open(&self) -> usize {
        self.sessions.len()
    }
}

impl super::FakeRegistry {
    /// Uploads that were begun and neither committed nor cancelled.
    pub fn open_uploads(&self) -> usize {
        self.state.world.uploads().open()
    }

    /// Forgets all uploads, as a registry that was restarted.
    pub fn forget_uploads(&self) {
        self.state.world.uploads().sessions.clear();
    }
}

impl Call<'_> {
    pub(super) async fn start_upload(&self, body: Incoming) -> Taken<Reply> {
        let is_moved = self.path.starts_with(MOVED);
        let content = self.read_all(body).await?;
        if self.faults.has(|fault| matches!(fault, Fault::Post307)) && !is_moved {
            let query = if self.query.is_empty() {
                "from=%2F"
            } else {
                &self.query
            };
            return Ok(Reply::new(307).header("location", format!("{MOVED}{}?{query}", self.path)));
        }
        let is_single = self.query_value("digest");
        let ignores = |fault: &Fault| matches!(fault, Fault::PostDigest | Fault::Legacy);
        if let Some(digest) = is_single
            && !self.faults.has(ignores)
        {
            return Ok(self.keep(&digest, content));
        }
        Ok(self.open_session())
    }

    fn open_session(&self) -> Reply {
        let mut uploads = self.state.world.uploads();
        uploads.begun += 1;
        let id = format!("upload-{}", uploads.begun);
        uploads.sessions.insert(id.clone(), Session::default());
        drop(uploads);
        self.at_session(202, &id, 0, 0, 0)
    }

    pub(super) fn mount(&self) -> Reply {
        let from = self.query_value("from");
        if from.is_none() && self.faults.has(|fault| matches!(fault, Fault::MountAnon)) {
            return Reply::error(400, "NAME_INVALID", "invalid repository name");
        }
        let status = fault_value!(self.faults, Mount);
        if let Some(status) = status.filter(|status| *status >= 400) {
            return Reply::error(status, "UNSUPPORTED", "no mounts");
        }
        let digest = self.query_value("mount").unwrap_or_default();
        let found = {
            let storage = self.state.world.storage();
            let source =
                from.and_then(|from| Some(storage.find(&from)?.blobs.get(&digest)?.clone()));
            source.filter(|_| status != Some(202))
        };
        match found {
            Some(content) => self.keep(&digest, content),
            None => self.open_session(),
        }
    }

    pub(super) async fn patch(&self, body: Incoming) -> Taken<Reply> {
        if self.faults.has(|fault| matches!(fault, Fault::MonoOnly)) {
            self.read(body, |_| ()).await?;
            return Ok(Reply::error(
                400,
                "UNSUPPORTED",
                "must use monolithic uploads",
            ));
        }
        let before = match self.session_size() {
            Ok(size) => size,
            Err(refusal) => {
                self.read(body, |_| ()).await?;
                return Ok(refusal);
            }
        };
        if let Some(refusal) = self.follows_small_chunk() {
            self.read(body, |_| ()).await?;
            return Ok(refusal);
        }
        let start = self.seen_header("content-range");
        let start: Option<u64> = start.and_then(|range| range.split('-').next()?.parse().ok());
        let appends = self
            .faults
            .has(|fault| matches!(fault, Fault::AppendBadRange));
        if start.is_some_and(|start| start != before) && !appends {
            self.read(body, |_| ()).await?;
            return Ok(self.session_reply(416));
        }
        if let Some(most) = fault_value!(self.faults, ChunkMax) {
            let content = self.read_all(body).await?;
            if content.size() > most {
                return Ok(self.session_reply(416));
            }
            self.append(content.to_bytes());
        } else {
            // Piece by piece: what came before a break stays, as real registries keep it.
            self.read(body, |piece| self.append(piece)).await?;
        }
        self.end_chunk(before);
        if fault_value!(self.faults, PutLost).is_some() {
            return Err(HangUp);
        }
        Ok(self.session_reply(202))
    }

    /// A chunk that is too small may only be the last: nothing may follow it.
    fn follows_small_chunk(&self) -> Option<Reply> {
        let least = fault_value!(self.faults, ChunkMin)?;
        let uploads = self.state.world.uploads();
        let session = uploads.sessions.get(&self.object)?;
        let is_small = session.state > 0 && session.size - session.chunk_start < least;
        is_small.then(|| Reply::error(400, "BLOB_UPLOAD_INVALID", "LayerPartTooSmallException"))
    }

    /// Bytes received so far, or why this upload does not go on.
    fn session_size(&self) -> Result<u64, Reply> {
        if self.faults.has(|fault| matches!(fault, Fault::OpaqueQuery)) {
            let query = self.query.as_str();
            let is_same = query == OPAQUE
                || query
                    .strip_prefix(OPAQUE)
                    .is_some_and(|rest| rest.starts_with("&digest="));
            if !is_same {
                return Err(Reply::error(
                    400,
                    "BLOB_UPLOAD_INVALID",
                    "that is not my state",
                ));
            }
        }
        let uploads = self.state.world.uploads();
        let Some(session) = uploads.sessions.get(&self.object) else {
            return Err(Reply::error(
                404,
                "BLOB_UPLOAD_UNKNOWN",
                "blob upload unknown to registry",
            ));
        };
        let is_used_up = self.faults.has(|fault| matches!(fault, Fault::StateOnce))
            && self.query_value("_state") != Some(session.state.to_string());
        drop(uploads);
        if is_used_up {
            return Err(Reply::error(416, "RANGE_INVALID", "invalid content range"));
        }
        Ok(self.size_of_session())
    }

    fn size_of_session(&self) -> u64 {
        let uploads = self.state.world.uploads();
        uploads
            .sessions
            .get(&self.object)
            .map_or(0, |session| session.size)
    }

    fn append(&self, piece: Bytes) {
        let mut uploads = self.state.world.uploads();
        if let Some(session) = uploads.sessions.get_mut(&self.object) {
            session.size += piece.len() as u64;
            session.pieces.push(piece);
        }
    }

    fn end_chunk(&self, start: u64) {
        let mut uploads = self.state.world.uploads();
        if let Some(session) = uploads.sessions.get_mut(&self.object) {
            session.chunk_start = start;
            session.state += 1;
        }
    }

    /// An answer that tells how far the upload is and where it goes on.
    fn session_reply(&self, status: u16) -> Reply {
        let (size, chunk_start, state) = {
            let uploads = self.state.world.uploads();
            let session = uploads.sessions.get(&self.object);
            session.map_or((0, 0, 0), |session| {
                (session.size, session.chunk_start, session.state)
            })
        };
        self.at_session(status, &self.object, size, chunk_start, state)
    }

    fn at_session(
        &self,
        status: u16,
        id: &str,
        size: u64,
        chunk_start: u64,
        state: usize,
    ) -> Reply {
        let query = if self.faults.has(|fault| matches!(fault, Fault::OpaqueQuery)) {
            OPAQUE.to_owned()
        } else {
            format!("_state={state}")
        };
        let path = format!("/v2/{}/blobs/uploads/{id}?{query}", self.repository);
        let location = match fault_value!(self.faults, Location) {
            Some(Location::Absolute) => format!("{}{path}", self.own_url()),
            Some(Location::OtherHost(url)) => format!("{url}{path}"),
            Some(Location::Http) => {
                let host = self.seen_header("host").unwrap_or_default();
                let name = host.split(':').next().unwrap_or_default();
                format!("http://{name}{path}")
            }
            Some(Location::Relative) | None => path,
        };
        let mut reply = Reply::new(status)
            .header("location", location)
            .header("docker-upload-uuid", id);
        let end = size.saturating_sub(1);
        let range = match fault_value!(self.faults, RangeOf) {
            None => Some(format!("0-{end}")),
            Some(UploadRange::Stuck) => Some("0-0".to_owned()),
            Some(UploadRange::Relative) => Some(format!("0-{}", end.saturating_sub(chunk_start))),
            Some(UploadRange::Minus1) => Some(format!("0-{}", end.saturating_sub(1))),
            Some(UploadRange::Missing) => None,
        };
        if let Some(range) = range {
            reply = reply.header("range", range);
        }
        match fault_value!(self.faults, ChunkMin) {
            Some(least) => reply.header("oci-chunk-min-length", least.to_string()),
            None => reply,
        }
    }

    pub(super) async fn commit(&self, body: Incoming) -> Taken<Reply> {
        let length = self.seen_header("content-length").unwrap_or_default();
        let has_body = length != "0";
        if let Some(status) = fault_value!(self.faults, NoPutBody)
            && has_body
        {
            self.read(body, |_| ()).await?;
            return Ok(Reply::error(status, "UNSUPPORTED", "no body here"));
        }
        let digest = self.query_value("digest").unwrap_or_default();
        let key = (self.repository.clone(), digest.clone());
        let is_second = !lock(&self.state.world.commits).insert(key.clone());
        let _release = is_second
            .then_some(())
            .is_none()
            .then(|| Release(self, key));
        let collides = is_second && self.faults.has(|fault| matches!(fault, Fault::Conflict));
        if let Err(refusal) = self.session_size() {
            self.read(body, |_| ()).await?;
            return Ok(refusal);
        }
        // The login is checked by something before the registry, which sees none of these bytes.
        if has_body && self.faults.has(|fault| matches!(fault, Fault::Late401)) {
            self.read(body, |_| ()).await?;
            return Ok(self.late_challenge());
        }
        let refusal = self.follows_small_chunk().filter(|_| has_body);
        self.read(body, |piece| self.append(piece)).await?;
        if let Some(refusal) = refusal {
            return Ok(refusal);
        }
        if collides {
            return Ok(Reply::error(
                409,
                "CONFLICT",
                "somebody else uploads this blob",
            ));
        }
        if let Some(pause) = fault_value!(self.faults, SlowCommit) {
            tokio::time::sleep(pause).await;
        }
        let session = self.state.world.uploads().sessions.remove(&self.object);
        let content = Content::of_pieces(session.unwrap_or_default().pieces);
        match fault_value!(self.faults, PutLost) {
            Some(Lost::Dropped) => Err(HangUp),
            Some(Lost::Kept) => {
                self.keep(&digest, content);
                Err(HangUp)
            }
            None => Ok(self.keep(&digest, content)),
        }
    }

    /// 401 for a token that has ended while the body came.
    fn late_challenge(&self) -> Reply {
        let realm = format!("{}/token", self.own_url());
        let challenge = format!(
            r#"Bearer realm="{realm}",service="{}",scope="repository:{}:pull,push",error="invalid_token""#,
            super::SERVICE,
            self.repository
        );
        Reply::error(401, "UNAUTHORIZED", "token expired").header("www-authenticate", challenge)
    }

    /// Keeps a blob under its digest, if it is its digest.
    fn keep(&self, digest: &str, content: Content) -> Reply {
        let algorithm = digest.split(':').next().unwrap_or_default();
        if content.digest_with(algorithm) != digest {
            return Reply::error(
                400,
                "DIGEST_INVALID",
                "provided digest did not match uploaded content",
            );
        }
        let mut storage = self.state.world.storage();
        let blobs = &mut storage.repository(&self.repository).blobs;
        blobs.insert(digest.to_owned(), content);
        Reply::new(201)
            .header(
                "location",
                format!("/v2/{}/blobs/{digest}", self.repository),
            )
            .header("docker-content-digest", digest)
    }

    pub(super) fn upload_status(&self) -> Reply {
        let is_known = self
            .state
            .world
            .uploads()
            .sessions
            .contains_key(&self.object);
        if is_known {
            self.session_reply(204)
        } else {
            Reply::error(
                404,
                "BLOB_UPLOAD_UNKNOWN",
                "blob upload unknown to registry",
            )
        }
    }

    pub(super) fn cancel(&self) -> Reply {
        if let Some(status) = fault_value!(self.faults, Cancel)
            && status != 204
        {
            return Reply::error(status, "UNSUPPORTED", "told so");
        }
        match self.state.world.uploads().sessions.remove(&self.object) {
            Some(_) => Reply::new(204),
            None => Reply::error(
                404,
                "BLOB_UPLOAD_UNKNOWN",
                "blob upload unknown to registry",
            ),
        }
    }
}

/// Ends a commit, however it ends.
struct Release<'a>(&'a Call<'a>, (String, String));

impl Drop for Release<'_> {
    fn drop(&mut self) {
        lock(&self.0.state.world.commits).remove(&self.1);
    }
}
