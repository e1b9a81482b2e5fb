//! Programs that know credentials: `docker-credential-NAME`, which docker and podman name in their configuration (registry
//! rule A18). What such a program says beside the credential is never shown: nobody knows what it holds.

use std::{ffi::OsStr, fmt, io, process::Stdio, time::Duration};

use secrecy::SecretString;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use super::{
    credential::Credential,
    error::{Error, Result},
};

/// Some ask a cloud, some wait for a finger on a key; one that waits longer waits for nobody.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// A token of a cloud has a few kilobytes.
const OUTPUT_LIMIT: u64 = 64 * 1024;

/// What helpers say, on standard output, of a registry that they have nothing for (docker/docker-credential-helpers).
const NOT_FOUND: &str = "credentials not found";

/// A program, and the registry that it is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialHelper {
    name: String,
    server: String,
}

/// What a helper writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

impl CredentialHelper {
    pub(super) fn new(name: &str, server: &str) -> Self {
        Self {
            name: name.to_owned(),
            server: server.to_owned(),
        }
    }

    /// Runs the program; nothing when it knows no credential for the registry.
    ///
    /// # Errors
    /// When there is no such program, and when it fails or says something else than a credential.
    pub async fn credential(&self) -> Result<Option<Credential>> {
        // The name becomes part of a path; there is no shell that could make more of it.
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || !self.name.chars().all(is_name) {
            return Err(self.failed("its name is not one of letters, digits, '-', '_' and '.'"));
        }
        self.run(self.to_string().as_ref(), TIME_LIMIT).await
    }

    async fn run(&self, program: &OsStr, limit: Duration) -> Result<Option<Credential>> {
        let asked = tokio::time::timeout(limit, self.ask(program));
        let Ok(outcome) = asked.await else {
            return Err(self.failed("it did not answer in time"));
        };
        outcome
    }

    /// One question and its answer. Dropping this ends the program.
    async fn ask(&self, program: &OsStr) -> Result<Option<Credential>> {
        let mut child = self.start(program)?;
        if let Some(mut input) = child.stdin.take() {
            // One that does not want to know the registry may still know its credential.
            input.write_all(self.server.as_bytes()).await.ok();
        }
        let mut text = Vec::new();
        if let Some(output) = child.stdout.take() {
            let mut output = output.take(OUTPUT_LIMIT + 1);
            let read = output.read_to_end(&mut text).await;
            read.map_err(|_| self.failed("its output could not be read"))?;
        }
        if text.len() as u64 > OUTPUT_LIMIT {
            return Err(self.failed("it said more than any credential holds"));
        }
        let ended = child.wait().await;
        let has_succeeded = ended.is_ok_and(|status| status.success());
        if !has_succeeded {
            let said = String::from_utf8_lossy(&text).to_ascii_lowercase();
            if said.contains(NOT_FOUND) {
                return Ok(None);
            }
            return Err(self.failed("it ended with an error"));
        }
        let found: Found = serde_json::from_slice(&text)
            .map_err(|_| self.failed("it said something else than a credential"))?;
        let is_empty = found.secret.is_empty();
        let secret = SecretString::from(found.secret);
        Ok((!is_empty).then(|| Credential::from_login(found.username, secret)))
    }

    fn start(&self, program: &OsStr) -> Result<Child> {
        Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => Error::CredentialHelperMissing {
                    program: self.to_string(),
                    server: self.server.clone(),
                },
                _ => self.failed("it could not be started"),
            })
    }

    fn failed(&self, reason: &'static str) -> Error {
        Error::CredentialHelperFailed {
            program: self.to_string().escape_debug().to_string(),
            server: self.server.clone(),
            reason,
        }
    }
}

/// The name of the program.
impl fmt::Display for CredentialHelper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "docker-credential-{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        os::unix::fs::PermissionsExt,
        path::{Path, PathBuf},
        time::Instant,
    };

    use secrecy::ExposeSecret;
    use tempfile::TempDir;

    use super::*;
    use crate::error::{Class, Classified};

    /// A helper that runs these lines of shell, with the folder that it lies in.
    fn script(lines: &str) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("helper");
        // Another process writes it: what anybody has open for writing cannot be run, and any test beside this one may be
        // forking just now.
        let mut writer = std::process::Command::new("tee")
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = writer.stdin.take().unwrap();
        write!(input, "#!/bin/sh\n{lines}\n").unwrap();
        drop(input);
        assert!(writer.wait().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        (folder, path)
    }

    async fn answer_of(path: &Path, limit: Duration) -> Result<Option<Credential>> {
        let helper = CredentialHelper::new("test", "r.example:5000");
        helper.run(path.as_os_str(), limit).await
    }

    async fn answer(lines: &str) -> Result<Option<Credential>> {
        let (_folder, path) = script(lines);
        answer_of(&path, TIME_LIMIT).await
    }

    #[tokio::test]
    async fn a_helper_is_asked_about_a_registry_and_gives_its_login() {
        let lines = r#"server=$(cat); echo "{\"ServerURL\":\"$server\",\"Username\":\"$1 $server\",\"Secret\":\"s\"}""#;
        let Some(Credential::Basic { username, password }) = answer(lines).await.unwrap() else {
            panic!("not a user with a password")
        };
        assert_eq!(username, "get r.example:5000");
        assert_eq!(password.expose_secret(), "s");
    }

    #[tokio::test]
    async fn a_helper_that_asks_nothing_and_says_more_is_understood() {
        let lines = r#"exec <&-; echo '{"Username":"<token>","Secret":"s","More":[1]}'"#;
        let found = answer(lines).await.unwrap();
        assert!(matches!(found, Some(Credential::IdentityToken(_))));
    }

    #[tokio::test]
    async fn a_helper_that_has_nothing_leaves_us_without_login() {
        for lines in [
            "echo credentials not found in native keychain; exit 1",
            r#"echo '{"Username":"","Secret":""}'"#,
        ] {
            assert!(answer(lines).await.unwrap().is_none(), "{lines}");
        }
    }

    #[tokio::test]
    async fn what_a_failing_helper_says_is_not_repeated() {
        for (lines, reason) in [
            (
                "echo hunter2; echo hunter2 >&2; exit 1",
                "ended with an error",
            ),
            (
                "echo '{\"Secret\":\"hunter2\"}'; exit 3",
                "ended with an error",
            ),
            ("echo hunter2", "something else than a credential"),
            (
                "echo '{\"Secret\":[\"hunter2\"]}'",
                "something else than a credential",
            ),
            ("kill -9 $$", "ended with an error"),
            ("yes hunter2", "more than any credential"),
        ] {
            let failed = answer(lines).await.unwrap_err();
            assert_eq!(
                (failed.reason(), failed.class()),
                ("CredentialHelperFailed", Class::Auth)
            );
            let text = format!("{failed} {failed:?}");
            assert!(text.contains(reason), "{lines}: {text}");
            assert!(text.contains("docker-credential-test"), "{text}");
            assert!(text.contains("r.example:5000"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_ended() {
        let (folder, path) = script("echo $$ > \"$0.pid\"; exec sleep 60");
        let started = Instant::now();
        let failed = answer_of(&path, Duration::from_secs(1)).await.unwrap_err();
        assert!(failed.to_string().contains("in time"), "{failed}");
        assert!(started.elapsed() < Duration::from_secs(10));
        let pid = fs::read_to_string(folder.path().join("helper.pid")).unwrap();
        let process = PathBuf::from("/proc").join(pid.trim()).join("cmdline");
        for _ in 0..100 {
            // One that ended and was not waited for yet has no command line left.
            if fs::read(&process).unwrap_or_default().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it still runs");
    }

    #[tokio::test]
    async fn a_helper_that_is_not_installed_is_named() {
        let helper = CredentialHelper::new("nobody-has-this", "r.example");
        let failed = helper.credential().await.unwrap_err();
        assert_eq!(
            (failed.reason(), failed.class()),
            ("CredentialHelperMissing", Class::Config)
        );
        let text = failed.to_string();
        assert!(text.contains("docker-credential-nobody-has-this"), "{text}");
    }

    #[tokio::test]
    async fn a_name_that_leads_elsewhere_is_refused() {
        for name in ["", "/../../bin/sh", "a b", "a;b", "a\n", "ü"] {
            let helper = CredentialHelper::new(name, "r.example");
            let failed = helper.credential().await.unwrap_err();
            assert!(failed.to_string().contains("its name"), "{failed}");
        }
    }
}
