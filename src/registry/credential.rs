//! Who we are to a registry.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use super::error::{Error, Result};

/// A user name that says that the password is an identity token (registry rule A19; docker/cli).
const IDENTITY_USER: &str = "<token>";

/// The user under which Azure's registry takes an identity token (A19; `rules_oci#600`).
const AZURE_USER: &str = "00000000-0000-0000-0000-000000000000";

/// Who we are to a registry.
#[derive(Debug, Clone, Default)]
pub enum Credential {
    /// Nobody.
    #[default]
    Anonymous,
    /// A user with a password or an access token in its place.
    Basic {
        /// The user's name.
        username: String,
        /// The password.
        password: SecretString,
    },
    /// A token to get other tokens with, as `docker login` stores it for some registries.
    IdentityToken(SecretString),
    /// A token to be sent as it is.
    RegistryToken(SecretString),
}

/// Where a credential came from and may lie anew: logins of clouds end after hours, and whoever makes them puts the next one
/// into the same Secret, file or helper (registry rule A20).
pub trait CredentialSource: Send + Sync + fmt::Debug {
    /// What lies there now; nothing when it cannot be read. Asked only after a registry refused what lay there before.
    fn reread(&self) -> BoxFuture<'_, Option<Credential>>;
}

/// A credential, and where to look for the next one.
#[derive(Debug, Clone, Default)]
pub struct Login {
    /// The credential.
    pub credential: Credential,
    /// Where it came from, if that can change.
    pub source: Option<Arc<dyn CredentialSource>>,
}

impl From<Credential> for Login {
    /// A credential that is given once and for all.
    fn from(credential: Credential) -> Self {
        Self {
            credential,
            source: None,
        }
    }
}

impl Credential {
    /// Whether another credential would be sent as the same bytes.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same =
            |one: &SecretString, other: &SecretString| one.expose_secret() == other.expose_secret();
        match (self, other) {
            (Self::Anonymous, Self::Anonymous) => true,
            (
                Self::Basic { username, password },
                Self::Basic {
                    username: other_name,
                    password: other_password,
                },
            ) => username == other_name && same(password, other_password),
            (Self::IdentityToken(one), Self::IdentityToken(other))
            | (Self::RegistryToken(one), Self::RegistryToken(other)) => same(one, other),
            _ => false,
        }
    }

    /// What a user name with a password is; some names say that the password is an identity token.
    pub fn from_login(username: String, password: SecretString) -> Self {
        if username == IDENTITY_USER || username == AZURE_USER {
            Self::IdentityToken(password)
        } else {
            Self::Basic { username, password }
        }
    }

    /// Whether this is nobody.
    pub const fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }
}

/// The header of a user and password; nothing for nobody.
pub(super) fn basic_header(credential: &Credential, host: &str) -> Result<Option<HeaderValue>> {
    let (username, password) = match credential {
        Credential::Anonymous | Credential::RegistryToken(_) => return Ok(None),
        Credential::Basic { username, password } => (username.as_str(), password),
        Credential::IdentityToken(token) => (IDENTITY_USER, token),
    };
    let text = STANDARD.encode(format!("{username}:{}", password.expose_secret()));
    let mut header =
        HeaderValue::from_str(&format!("Basic {text}")).map_err(|_| Error::InvalidCredential {
            host: host.to_owned(),
        })?;
    header.set_sensitive(true);
    Ok(Some(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_user_names_say_what_the_password_is() {
        for name in [IDENTITY_USER, AZURE_USER] {
            let credential = Credential::from_login(name.to_owned(), "x".into());
            assert!(matches!(credential, Credential::IdentityToken(_)), "{name}");
        }
        let credential = Credential::from_login("me".to_owned(), "x".into());
        assert!(matches!(credential, Credential::Basic { .. }));
    }

    #[test]
    fn a_credential_is_the_same_when_all_of_it_is() {
        let basic = |username: &str, password: &str| Credential::Basic {
            username: username.to_owned(),
            password: password.into(),
        };
        let all = [
            Credential::Anonymous,
            basic("a", "x"),
            basic("a", "y"),
            basic("b", "x"),
            Credential::IdentityToken("x".into()),
            Credential::IdentityToken("y".into()),
            Credential::RegistryToken("x".into()),
        ];
        for (number, one) in all.iter().enumerate() {
            for (other_number, other) in all.iter().enumerate() {
                assert_eq!(one.is_same(other), number == other_number);
            }
        }
    }

    #[test]
    fn no_debug_output_shows_a_credential() {
        let secret = || SecretString::from("hunter2");
        for credential in [
            Credential::Basic {
                username: "me".to_owned(),
                password: secret(),
            },
            Credential::IdentityToken(secret()),
            Credential::RegistryToken(secret()),
        ] {
            assert!(!format!("{credential:?}").contains("hunter2"));
            let header = basic_header(&credential, "h").unwrap();
            assert!(!format!("{header:?}").contains("aHVudGVy"));
        }
    }

    #[test]
    fn an_identity_token_is_the_password_of_a_user_of_that_name() {
        let header = basic_header(&Credential::IdentityToken("abc".into()), "h")
            .unwrap()
            .unwrap();
        assert_eq!(header, format!("Basic {}", STANDARD.encode("<token>:abc")));
    }
}
