//! What goes wrong at a [`super::FakeRegistry`], as data: the fault list of the protocol's reference (X2). Behind each variant
//! stands the rule that it serves. Some of the list have no variant, because they are made of other parts:
//!
//! | in the list | here |
//! |---|---|
//! | `fail-once`, `head-403`, `head-429`, `push-403`, `invalid-wraps-403` | [`Fault::Status`], [`Fault::RetryAfter`], [`Fault::Refuse`] with [`Rule::on`] and [`Rule::times`] |
//! | `die-at`, `drop-every`, `416-complete`, `no-206` | [`Fault::Reset`] with [`Rule::after`], [`Fault::CutAt`], [`Fault::Unended`], [`RangeAnswer::Ignored`] |
//! | `realm-relative`, `realm-evil`, `clock-skew` | [`Fault::Realm`], [`TokenForm::Skewed`] |
//! | `count`, `leak` | the log of a second server, to which redirect, Location, realm, `Link` or `urls` lead |
//! | `tls-broken`, `creds-rotated` | a server without TLS asked with it, `FakeRegistry::change_password` |
//! | `odd-json`, `big-manifest`, `algo`, `schema1`, `artifact-manifest`, `negative-size`, `foreign` | a [`super::Sample`] |

use std::time::Duration;

use super::rule::{Rule, Situation};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    Ping,
    Token,
    ManifestHead,
    ManifestGet,
    ManifestPut,
    ManifestDelete,
    BlobHead,
    BlobGet,
    BlobDelete,
    /// `POST` without `mount`.
    UploadStart,
    /// `POST ?mount=`.
    Mount,
    Patch,
    /// `PUT` of an upload.
    Put,
    UploadStatus,
    Cancel,
    Tags,
    Referrers,
    Catalog,
    /// `GET` of a blob's bytes at object storage: where [`Fault::Redirect`] leads.
    Storage,
    Other,
}

/// One fault. Where it applies by itself is said by [`Fault::concerns`]; [`Rule`] narrows that down.
#[derive(Debug, Clone)]
pub enum Fault {
    // Any step.
    /// Error answers have this body instead of the protocol's (G3).
    ErrBody(ErrorBody),
    /// The answer is this status, with the protocol's own body; the request's body was read (R14, `fail-once`, `status`).
    Status(u16),
    /// The answer is an error with this code and message (G3, R5, M12).
    Refuse(u16, &'static str, &'static str),
    /// The connection ends without an answer (R13, `fail-once:reset`; with [`Rule::after`] also M7, `die-at`).
    Reset,
    /// The registry's own storage fails (R14).
    Storage(StorageTrouble),
    /// A connection that was used before ends without an answer (R13).
    StaleConn,
    /// The connection ends in order after the answer: what is left of a GOAWAY in HTTP/1.1 (R14).
    Goaway,
    /// The status with a `Retry-After` (R15).
    RetryAfter(u16, RetryAfter),
    /// The answer's body stands still after so many bytes, for ever (D5, P12).
    Stall(u64),
    /// The answer's body comes at so many bytes per second (P12).
    Drip(u64),
    /// No answer at all, the connection stays (P12).
    NoHeader,
    /// A `Warning` header (R12).
    Warning(&'static str),
    /// The answer's body never ends (R11); for the token endpoint see [`TokenForm::Endless`].
    Endless,
    /// Digest, range, length and tag of an answer's headers are wrong where HTTP allows it (G2).
    LyingHeaders,
    /// 429 for blob transfers beyond so many at once (P13).
    ThrottleAbove(usize),
    /// None of the signals that came with and after version 1.1 (E4).
    Legacy,
    /// So long before each answer.
    Delay(Duration),

    // Login.
    /// A 401 without challenge, but on the root of the API (A1).
    NoChallenge,
    /// The challenge in one of its legal forms (A2).
    Challenge(ChallengeForm),
    /// No `service` in the challenge, and 400 for who sends one (A3).
    NoService,
    /// The challenge's `realm` (A4, A5, R6); a text without scheme is relative.
    Realm(String),
    /// Tokens by `POST`, or by `GET`, are refused with this status (A7).
    TokenPost(u16),
    TokenGet(u16),
    /// 400 for who asks for an offline token (A8).
    OfflineToken,
    /// The token answer's form (A9, A15).
    Token(TokenForm),
    /// Tokens have only this action, whatever was asked for (A10).
    TokenLess(&'static str),
    /// Only the first scope is granted (A12).
    FirstScopeOnly,
    /// Tokens grow by 3 KiB per scope, and a request whose login is larger than 8 KiB gets 400 (A12).
    Header8k,
    /// A request for more than one scope is refused with this status (A13).
    SecondScope(u16),
    /// Each token is refused so many times before it becomes valid (A15).
    NotYetValid(usize),
    /// Each token is accepted so many times, then the answer is 401 (R16).
    TokenUses(usize),
    /// A token ends so long after it was given out, whatever it says (A16).
    TokenLife(Duration),
    /// 401 after the whole body was read (A17).
    Late401,
    /// The identity token is taken by `POST` only, and its user has no password (A19).
    Acr,

    // Manifests.
    /// 404 unless the one `Accept` line names the manifest's type and is complete (R1).
    StrictAccept,
    /// So many manifests may be read, then 429; the headers tell (R3).
    RateLimit(usize),
    /// HEAD without digest (R4).
    HeadNoDigest,
    /// `Docker-Content-Digest` of manifests (M3).
    DigestHeader(DigestHeader),
    /// `Content-Type` of manifests (M4).
    ContentType(ContentType),
    /// 400 for a manifest that names something that is not there (M7).
    StrictRefs,
    /// Everything is answered with success, nothing is kept (M8).
    YesMan,
    /// A blob of the manifest is forgotten, and the manifest refused for its sake (M9).
    BlobUnknown,
    /// 400 for an index without all of its children (M10).
    NoSparse,
    /// A tag may not be moved: this status (M11).
    Immutable(u16),
    /// Manifests with this type in them are refused (M13).
    RefuseType(&'static str),

    // Reading blobs.
    /// The blob is elsewhere: status and root URL of the storage (D1, R6).
    Redirect(u16, String),
    /// The storage answers 400 to a request with a login (R9).
    Presigned,
    /// A signed URL may be used so many times, then 403 (D8).
    PresignExpire(usize),
    /// A packed body, or only the label of one (D2).
    CeGzip(Packed),
    /// The connection ends after so many bytes of the body (D3); for every answer also `drop-every` (R21).
    CutAt(u64),
    /// What ranges get (D3, D9).
    Range(RangeAnswer),
    /// All bytes come, but the body has no end; there is no more behind them (D3, `416-complete`).
    Unended,
    /// A request for several ranges gets garbage (D4).
    MultiRange,
    /// The blob is another one than its digest says (D6).
    Blob(WrongBlob),
    /// Earlier ranges come later (D10): the first one waits so long.
    OutOfOrder(Duration),

    // Uploads.
    /// PATCH is refused (U1).
    MonoOnly,
    /// PUT with a body is refused with this status (U2).
    NoPutBody(u16),
    /// PATCH takes no less than so many bytes, but for the last (U3).
    ChunkMin(u64),
    /// PATCH takes no more than so many bytes: 416 (U3).
    ChunkMax(u64),
    /// A proxy before the registry takes no body beyond so many bytes: 413, at once (R19).
    BodyLimit(u64),
    /// `POST ?digest=` is ignored: 202 (U4).
    PostDigest,
    /// POST is redirected once, to a path that must not be encoded anew (R10).
    Post307,
    /// The Location's query is compared byte by byte (U5).
    OpaqueQuery,
    /// The Location's form (U6, U7, R8).
    Location(Location),
    /// A Location may be used once (U8).
    StateOnce,
    /// PATCH and PUT are answered with this status (G5).
    Any2xx(u16),
    /// What `Range` says of an upload (U9).
    RangeOf(UploadRange),
    /// A chunk that does not fit is appended all the same (U9).
    AppendBadRange,
    /// The answer to the commit gets lost; the blob is there, or not (U11). In [`Step::Patch`] the chunk is there.
    PutLost(Lost),
    /// The commit takes so long (U12).
    SlowCommit(Duration),
    /// 409 for a second upload of a blob at the same time (U13).
    Conflict,
    /// 411 without `Content-Length` (U14).
    StrictLength,
    /// What DELETE of an upload is answered (U15).
    Cancel(u16),
    /// What a mount is answered; with 202 it is the upload's start (U16).
    Mount(u16),
    /// 400 for a mount without `from` (U17).
    MountAnon,

    // Lists.
    Catalog(u16),
    /// The tag list's form (T1, T3).
    Tags(TagList),
    /// 400 for pages beyond so many (T2).
    NMax(usize),
    /// No referrers: this status (T4).
    Referrers(u16),
    /// The fallback tag of a digest is that very manifest (T5).
    FallbackSelf,
    /// Somebody else adds an entry to the fallback index before each write, once (T6).
    Race,
    Delete(u16),
}

/// Bodies of errors that are not the protocol's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorBody {
    /// `UNKNOWN`, as Red Hat's registry and Harbor say it for anything.
    Unknown,
    Html,
    Empty,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageTrouble {
    /// Status 507.
    Full,
    /// 500 that names the storage driver.
    Driver,
    /// 403 that names the quota.
    Quota,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    Seconds(u64),
    /// An HTTP date, so many seconds from now.
    DateIn(u64),
    /// Docker Hub's way: the second since 1970.
    EpochIn(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeForm {
    /// `BASIC realm="..."`, which only makes sense with a Basic login.
    BasicUpper,
    /// Basic and Bearer on two lines.
    TwoLines,
    /// Negotiate and Bearer on one line.
    NegotiateFirst,
    /// Escaped quotes and commas within strings.
    QuotedComma,
    UnknownParam,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenForm {
    /// `access_token` instead of `token`.
    AccessToken,
    NoExpiry,
    /// `expires_in` of 1 second, which counts as 60.
    Short,
    Endless,
    /// `issued_at` is so many seconds off.
    Skewed(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestHeader {
    Wrong,
    /// Without `sha256:`, as Huawei's registry sends it.
    NoPrefix,
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    Charset,
    /// Another type of manifest.
    Mismatch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// The body is gzipped.
    Real,
    /// Only the header says so.
    LabelOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeAnswer {
    /// 200 and all bytes.
    Ignored,
    /// 206 from another offset than asked for.
    Shifted,
    /// 206 with a wrong total.
    WrongTotal,
    /// One range in eight comes at so many bytes per second.
    SlowOne(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WrongBlob {
    Longer,
    Shorter,
    /// Without end.
    Bomb,
    /// The right size, but one other byte.
    Corrupt,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    Relative,
    Absolute,
    /// The same path at another server.
    OtherHost(String),
    /// `http://` although https is spoken, and without port.
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadRange {
    /// Always what the first answer said.
    Stuck,
    /// Of the last chunk only.
    Relative,
    /// One byte less.
    Minus1,
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    Kept,
    Dropped,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagList {
    /// Pages of so many, with `Link`; absolute.
    AbsoluteLink(usize),
    /// Pages of what was asked for, without `Link`.
    NoLink,
    /// `Link` leads to the page itself.
    Loop,
    ExtraFields,
    /// `Link` leads to another server.
    ForeignLink(String),
    /// `tags` is null.
    Null,
    Shuffled,
}

impl Fault {
    /// Only in this step.
    #[must_use]
    pub fn on(self, step: Step) -> Rule {
        Rule::from(self).on(step)
    }

    /// Only for this repository.
    #[must_use]
    pub fn of(self, repository: &str) -> Rule {
        Rule::from(self).of(repository)
    }

    /// Only for this digest or tag.
    #[must_use]
    pub fn about(self, object: &str) -> Rule {
        Rule::from(self).about(object)
    }

    /// From the request after so many on.
    #[must_use]
    pub fn after(self, requests: usize) -> Rule {
        Rule::from(self).after(requests)
    }

    /// So many times only.
    #[must_use]
    pub fn times(self, times: usize) -> Rule {
        Rule::from(self).times(times)
    }

    /// Where the fault makes sense by itself: those that shape bodies work on blobs, those that end a request on all.
    pub(super) fn concerns(&self, situation: &Situation<'_>) -> bool {
        let step = situation.step;
        match self {
            Self::Stall(_)
            | Self::Drip(_)
            | Self::CutAt(_)
            | Self::Range(_)
            | Self::Unended
            | Self::MultiRange
            | Self::Blob(_)
            | Self::CeGzip(_)
            | Self::OutOfOrder(_) => matches!(step, Step::BlobGet | Step::Storage),
            Self::Redirect(..) => step == Step::BlobGet,
            Self::Presigned | Self::PresignExpire(_) => step == Step::Storage,
            Self::PutLost(_) | Self::SlowCommit(_) | Self::Late401 => step == Step::Put,
            Self::BlobUnknown | Self::YesMan | Self::Race => step == Step::ManifestPut,
            Self::Token(_) => step == Step::Token,
            _ => true,
        }
    }
}
