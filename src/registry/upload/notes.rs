//! What is remembered of an upload beyond the life of the process.

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use url::Url;

use super::super::{account::AccountKey, address};

/// Older and newer programs write other notes.
const VERSION: u32 = 2;

/// Keeps a note about one upload: one blob on its way to one repository. A note may name a place that only its holder knows
/// and that takes bytes from whoever knows it: it is to be kept like a password.
pub trait UploadNotes: Send + Sync {
    /// The note that was saved last, perhaps by another process.
    fn load(&self) -> BoxFuture<'_, Option<String>>;

    /// Replaces the note, or removes it. What goes wrong then only costs the resumption.
    fn save(&self, note: Option<String>) -> BoxFuture<'_, ()>;
}

/// The note itself. It has no `Debug`, for the sake of the location.
#[derive(Serialize, Deserialize)]
pub(super) struct Note {
    version: u32,
    /// Whose upload it is: nobody goes on with another one's.
    account: AccountKey,
    location: String,
    /// So many bytes the registry had taken.
    pub(super) offset: u64,
}

impl Note {
    pub(super) fn new(account: &AccountKey, location: &Url, offset: u64) -> Self {
        Self {
            version: VERSION,
            account: account.clone(),
            location: location.to_string(),
            offset,
        }
    }

    /// A note that was written by this version for this account; everything else is none.
    pub(super) fn read(account: &AccountKey, text: &str) -> Option<Self> {
        let note: Self = serde_json::from_str(text).ok()?;
        (note.version == VERSION && note.account == *account).then_some(note)
    }

    /// Strings and numbers can always be written.
    pub(super) fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// The place, if a registry at `base` may name it.
    pub(super) fn location(&self, base: &Url) -> Option<Url> {
        let url = self.location.parse().ok()?;
        address::refusal(base, &url).is_none().then_some(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Credential;

    #[test]
    fn a_note_leads_back_to_where_the_upload_was_and_nowhere_else() {
        let nobody = AccountKey::of(&Credential::Anonymous);
        let base: Url = "https://r.example/v2/".parse().unwrap();
        let place: Url = "https://r.example/u/1?_state=a%2Fb".parse().unwrap();
        let text = Note::new(&nobody, &place, 7).text().unwrap();
        let note = Note::read(&nobody, &text).unwrap();
        assert_eq!((note.location(&base), note.offset), (Some(place), 7));
        for text in [
            "",
            "{}",
            r#"{"version":1,"location":"https://r.example/u","offset":0}"#,
            r#"{"version":3,"account":null,"location":"https://r.example/u","offset":0}"#,
        ] {
            assert!(Note::read(&nobody, text).is_none(), "{text}");
        }
        for place in ["http://r.example/u", "https://169.254.169.254/u", "u/1"] {
            let text = format!(r#"{{"version":2,"account":null,"location":"{place}","offset":0}}"#);
            let note = Note::read(&nobody, &text).unwrap();
            assert_eq!(note.location(&base), None, "{place}");
        }
    }

    #[test]
    fn a_note_is_none_for_another_account() {
        let login = |password: &str| Credential::from_login("me".to_owned(), password.into());
        let mine = AccountKey::of(&login("hunter2"));
        let place: Url = "https://r.example/u/1".parse().unwrap();
        let text = Note::new(&mine, &place, 7).text().unwrap();
        assert!(Note::read(&mine, &text).is_some());
        for other in [login("other"), Credential::Anonymous] {
            assert!(Note::read(&AccountKey::of(&other), &text).is_none());
        }
        assert!(
            !text.contains("hunter2") && !text.contains("me\""),
            "{text}"
        );
    }
}
