//! What a registry grants to one account, apart from what it grants to others.

use std::sync::{Mutex, PoisonError};

use http::HeaderMap;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};

use crate::image::Digest;

use super::{credential::Credential, gate::Gate, quota::Quota};

/// One account at one registry. What one tenant has used up must not park another, who has an account of his own.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Closed while the account's quota is used up.
    pub(super) gate: Gate,
    quota: Mutex<Option<Quota>>,
}

/// Tells accounts apart without keeping who they are; all who are nobody share the account of this machine's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct AccountKey(Option<Digest>);

impl AccountKey {
    pub(super) fn of(credential: &Credential) -> Self {
        let proof = match credential {
            Credential::Anonymous => None,
            // With the password: whoever only knows a name must not be able to park whose name it is.
            Credential::Basic { username, password } => {
                Some(format!("{username}:{}", password.expose_secret()))
            }
            Credential::IdentityToken(token) | Credential::RegistryToken(token) => {
                Some(token.expose_secret().to_owned())
            }
        };
        Self(proof.map(|proof| Digest::of(proof.as_bytes())))
    }
}

impl Account {
    /// What the registry last said, if it ever did.
    pub(super) fn quota(&self) -> Option<Quota> {
        *self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what an answer says; nothing for answers that say nothing.
    pub(super) fn note(&self, headers: &HeaderMap) {
        if let Some(quota) = Quota::of(headers) {
            *self.quota.lock().unwrap_or_else(PoisonError::into_inner) = Some(quota);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_told_apart_by_who_they_are() {
        let user = |name: &str, password: &str| {
            AccountKey::of(&Credential::from_login(name.to_owned(), password.into()))
        };
        assert_eq!(user("a", "x"), user("a", "x"));
        assert_ne!(user("a", "x"), user("a", "y"));
        assert_ne!(user("a", "x"), user("b", "x"));
        assert_ne!(user("a", "x"), AccountKey::of(&Credential::Anonymous));
        assert!(!format!("{:?}", user("hunter2", "hunter2")).contains("hunter2"));
    }
}
