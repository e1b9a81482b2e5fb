//! What a failed attempt means for the next one.

use http::StatusCode;

use super::{
    super::error::Error,
    course::Course,
    ladder::{self, Tried, Verdict},
    session::Session,
};
use crate::error::{Class, Classified};

/// A smaller blob is sent again sooner than it is asked for.
const WORTH_RESUMING: u64 = 1024 * 1024;

/// What follows from a failure.
pub(super) enum Next {
    /// Another way, at once.
    OtherWay,
    /// The same again, if that is worth it.
    Retry(Error),
}

impl Course<'_> {
    /// What a failed attempt means for the next.
    pub(super) async fn next(&mut self, error: Error) -> Next {
        let Some(session) = self.session.take() else {
            return Next::Retry(error);
        };
        if let Some(tried) = self.tried
            && let Some(verdict) = ladder::verdict(tried, &error)
        {
            return self.other_way(session, tried, verdict, error);
        }
        if is_out_of_place(&error)
            && let Some(tried) = self.tried
        {
            return self.find_place(session, tried, error).await;
        }
        let is_pieced = session.is_pieced();
        match error.class() {
            // Bytes are there twice, or not at all: what the registry counted was wrong (U9).
            Class::Policy if is_pieced && !self.has_started_over => {
                self.has_started_over = true;
                self.limit = None;
                cancel(session);
                return Next::OtherWay;
            }
            _ if matches!(error, Error::UploadSessionLost { .. }) => self.forget(session),
            Class::Network | Class::RateLimited | Class::RegistryStorage
                if is_pieced || self.upload.source.size() >= WORTH_RESUMING =>
            {
                if let Some(tried) = self.tried.filter(|_| error.is_transport()) {
                    self.cut = Some(tried.taken);
                }
                self.session = Some(session);
            }
            _ => cancel(session),
        }
        Next::Retry(error)
    }

    /// The way that was tried does not work here.
    fn other_way(
        &mut self,
        session: Session,
        tried: Tried,
        verdict: Verdict,
        error: Error,
    ) -> Next {
        let rest = self.upload.source.size() - session.offset();
        let ladder = &self.client.shared.host.ladder;
        if !ladder.learn(tried, verdict, rest, self.limit) {
            cancel(session);
            return Next::Retry(self.first_refusal.take().unwrap_or(error));
        }
        self.first_refusal.get_or_insert(error);
        if session.offset() > 0 {
            self.session = Some(session);
        } else {
            cancel(session);
        }
        Next::OtherWay
    }

    /// A chunk was refused as out of place: either the registry is elsewhere (registry rule R20), or it is the size.
    async fn find_place(&mut self, mut session: Session, tried: Tried, error: Error) -> Next {
        match session.ask().await {
            Ok(Some(there)) if there == session.offset() => {
                let verdict = ladder::verdict_on_size(tried);
                return self.other_way(session, tried, verdict, error);
            }
            Ok(Some(there)) if there <= self.upload.source.size() => {
                session.go_on_from(there);
                self.session = Some(session);
            }
            Ok(_) => self.forget(session),
            Err(_) => self.session = Some(session),
        }
        Next::Retry(error)
    }

    /// The registry does not know it any more: there is nothing to cancel.
    fn forget(&mut self, mut session: Session) {
        session.stay();
        self.resumed_from = None;
    }
}

/// Nobody goes on with it, also not the next process.
fn cancel(mut session: Session) {
    session.go();
}

/// 416, for what is not where the registry is.
fn is_out_of_place(error: &Error) -> bool {
    matches!(
        error,
        Error::UploadSessionLost { answer, .. } if answer.status() == StatusCode::RANGE_NOT_SATISFIABLE
    )
}
