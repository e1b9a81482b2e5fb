//! The one error of the test bed. Nobody handles it: it ends a test, so all it has to do is read well there.

use std::fmt;

/// A sentence on what was tried, followed by its causes and by the log of the program concerned.
#[derive(Clone)]
pub struct Failure(String);

/// What every function of the test bed returns. Tests may return it too, and use `?`.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// `unwrap()` and a test's `Err` print the debug form: it keeps the line breaks of a log.
impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl std::error::Error for Failure {}

/// Adds what was being done to an error that does not know.
pub trait Context<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

impl<T, E: std::error::Error> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| {
            let causes = std::iter::successors(error.source(), |cause| cause.source());
            Failure(causes.fold(format!("{doing}: {error}"), |message, cause| {
                format!("{message}: {cause}")
            }))
        })
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Failure(doing.to_string()))
    }
}
