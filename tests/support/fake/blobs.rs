//! Reading blobs: whole or in ranges, here or at the storage.

use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::{Compression, write::GzEncoder};

use super::call::Call;
use super::content::Content;
use super::fault::{Fault, Packed, RangeAnswer, Step, WrongBlob};
use super::lock;
use super::reply::Reply;
use super::rule::fault_value;

/// Makes every signed URL another one.
static SIGNATURES: AtomicUsize = AtomicUsize::new(0);

impl Call<'_> {
    pub(super) fn get_blob(&self) -> Reply {
        let found = {
            let storage = self.state.world.storage();
            let repository = storage.find(&self.repository);
            repository.and_then(|repository| repository.blobs.get(&self.object).cloned())
        };
        let Some(content) = found else {
            return Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
        };
        let redirect = self.faults.find(|fault| match fault {
            Fault::Redirect(status, root) => Some((*status, root.clone())),
            _ => None,
        });
        if let Some((status, root)) = redirect {
            let number = SIGNATURES.fetch_add(1, Ordering::Relaxed);
            let location = format!("{root}/storage/{}?signature={number}%2Fx", self.object);
            return Reply::new(status).header("location", location);
        }
        self.send_blob(content)
    }

    /// The bytes at object storage, behind a signed URL.
    pub(super) fn get_stored(&self) -> Reply {
        let is_logged_in = self.seen_header("authorization").is_some();
        if is_logged_in && self.faults.has(|fault| matches!(fault, Fault::Presigned)) {
            return Reply::new(400)
                .content(Content::new("<Error><Code>InvalidArgument</Code></Error>"));
        }
        if let Some(uses) = fault_value!(self.faults, PresignExpire) {
            let mut signatures = lock(&self.state.world.signatures);
            let used = signatures.entry(self.query.clone()).or_default();
            *used += 1;
            if *used > uses {
                return Reply::new(403)
                    .content(Content::new("<Error><Code>AccessDenied</Code></Error>"));
            }
        }
        let content = self.state.world.storage().any_blob(&self.object);
        match content {
            Some(content) => self.send_blob(content),
            None => Reply::new(404).content(Content::new("<Error><Code>NoSuchKey</Code></Error>")),
        }
    }

    fn send_blob(&self, content: Content) -> Reply {
        let whole = |content: Content| {
            Reply::new(200)
                .header("content-type", "application/octet-stream")
                .header("docker-content-digest", &self.object)
                .header("etag", format!("\"{}\"", self.object))
                .content(content)
        };
        match fault_value!(self.faults, CeGzip) {
            Some(Packed::Real) => {
                return whole(gzip(&content)).header("content-encoding", "gzip");
            }
            Some(Packed::LabelOnly) => {
                return whole(content).header("content-encoding", "gzip");
            }
            None => {}
        }
        let wrong = fault_value!(self.faults, Blob).filter(|_| self.step != Step::BlobHead);
        if wrong == Some(WrongBlob::Bomb) {
            let mut reply = whole(Content::seeded(1, 1 << 40));
            reply.is_chunked = true;
            return reply;
        }
        let content = wrong.map_or_else(|| content.clone(), |wrong| spoil(&content, wrong));
        let answer = fault_value!(self.faults, Range);
        let range = self.seen_header("range");
        if answer == Some(RangeAnswer::Ignored) {
            return whole(content);
        }
        let Some(range) = range else {
            return whole(content).header("accept-ranges", "bytes");
        };
        if range.contains(',') && self.faults.has(|fault| matches!(fault, Fault::MultiRange)) {
            return Reply::new(206)
                .header("content-type", "multipart/byteranges; boundary=x")
                .content(Content::new("--y\r\ngarbage"));
        }
        match parse_range(&range, content.size()) {
            None => whole(content),
            Some(range) if range.is_empty() => {
                Reply::new(416).header("content-range", format!("bytes */{}", content.size()))
            }
            Some(range) => partial(whole(content), range, answer),
        }
    }

    pub(super) fn delete_blob(&self) -> Reply {
        if let Some(status) = fault_value!(self.faults, Delete) {
            return Reply::error(status, "UNSUPPORTED", "told so");
        }
        let mut storage = self.state.world.storage();
        let blobs = &mut storage.repository(&self.repository).blobs;
        match blobs.remove(&self.object) {
            Some(_) => Reply::new(202),
            None => Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
        }
    }
}

fn partial(mut reply: Reply, mut range: Range<u64>, answer: Option<RangeAnswer>) -> Reply {
    let mut total = reply.content.size();
    match answer {
        Some(RangeAnswer::Shifted) => range.start = (range.start + 1).min(range.end - 1),
        Some(RangeAnswer::WrongTotal) => total += 5,
        _ => {}
    }
    reply.status = 206;
    reply.set_header(
        "content-range",
        &format!("bytes {}-{}/{total}", range.start, range.end - 1),
    );
    reply.range = range;
    reply
}

/// One range of a blob; empty when it begins behind the end, nothing when it is no single range.
fn parse_range(text: &str, size: u64) -> Option<Range<u64>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start: u64 = from.parse().ok()?;
    let end = match to {
        "" => size,
        to => to.parse::<u64>().ok()?.checked_add(1)?.min(size),
    };
    (start < end || start >= size).then_some(start..end.max(start))
}

fn spoil(content: &Content, wrong: WrongBlob) -> Content {
    let mut bytes = content.to_bytes().to_vec();
    match wrong {
        WrongBlob::Longer => bytes.extend([7; 1000]),
        WrongBlob::Shorter => bytes.truncate(bytes.len() / 2),
        WrongBlob::Corrupt => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
        }
        WrongBlob::Bomb => {}
    }
    Content::new(bytes)
}

fn gzip(content: &Content) -> Content {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory does not fail.
    drop(gzip.write_all(&content.to_bytes()));
    Content::new(gzip.finish().unwrap_or_default())
}
