//! The command line: one file per subcommand, the options they share, and how progress and results are shown.
//!
//! Nothing here copies an image: a command turns its options into a request for [`crate::transfer`], [`crate::cache`] or
//! [`crate::controller`], shows what happens and picks the exit code. Progress and messages go to standard error, results to
//! standard output.

mod access;
mod certificates;
mod clean;
mod completions;
mod controller;
mod crd;
mod error;
mod extract;
mod hint;
mod list;
mod logins;
mod options;
mod pull;
mod push;
mod render;
mod save;
mod sync;
mod verify;

use std::process::ExitCode;

use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind, parser::ValueSource,
};

use crate::error::handlers;

pub use error::{Error, Result, Usage};
pub use options::{GlobalOptions, LogFormat, Verbosity};

/// Moves container images between registries, verified byte for byte.
#[derive(Debug, Parser)]
#[command(
    name = "docker-image-pusher",
    version,
    about = "Moves container images between registries, verified byte for byte",
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some images failed, 130 interrupted.\n\
                  Every option can also be given as a variable; its name stands beside the option."
)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
    /// Whether a password stands in the arguments, where every user of the machine can read it.
    #[arg(skip)]
    password_was_typed: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pull(pull::Pull),
    Extract(extract::Extract),
    Save(save::Save),
    Push(push::Push),
    Sync(sync::Sync),
    List(list::List),
    Clean(clean::Clean),
    Verify(verify::Verify),
    Controller(controller::Controller),
    Crd(crd::Crd),
    Completions(completions::Completions),
}

impl Cli {
    /// Reads the arguments and variables of this process.
    ///
    /// # Errors
    /// Clap's own, which knows how to print itself; help and version come this way too.
    pub fn from_process() -> Result<Self, clap::Error> {
        let matches = Self::command().try_get_matches()?;
        let mut cli = Self::from_arg_matches(&matches)?;
        cli.password_was_typed = matches.subcommand().is_some_and(|(_, options)| {
            options.try_contains_id("password").is_ok()
                && options.value_source("password") == Some(ValueSource::CommandLine)
        });
        match cli.contradiction() {
            Some(text) => Err(Self::command().error(ErrorKind::ArgumentConflict, text)),
            None => Ok(cli),
        }
    }

    /// Two options that exclude each other. Asked by value: a variable that says "false" contradicts nothing, which clap's
    /// own check, by presence, would not see.
    fn contradiction(&self) -> Option<&'static str> {
        let reads_password = match &self.command {
            Command::Push(push) if push.contradicts_itself() => {
                return Some("--skip-existing and --force-upload exclude each other");
            }
            Command::Push(push) if push.reads_input_twice() => {
                return Some("--password-stdin and --source - both read standard input");
            }
            Command::Save(save) if save.writes_output_twice(self.global.is_json()) => {
                return Some("--output json and --file - both write standard output");
            }
            Command::Save(save) if save.leaves_out_of_docker() => {
                return Some(
                    "--since needs --format oci: the layout of docker cannot leave layers out",
                );
            }
            Command::Save(save) if save.splits_output() => {
                return Some("--split-size makes several files, --file - writes one stream");
            }
            Command::Push(push) => push.reads_password(),
            Command::Pull(pull) => pull.reads_password(),
            _ => false,
        };
        if self.password_was_typed && reads_password {
            return Some("--password and --password-stdin exclude each other");
        }
        self.global
            .contradicts_itself()
            .then_some("--quiet and --verbose exclude each other")
    }

    /// Options that concern logs and output.
    pub const fn global(&self) -> &GlobalOptions {
        &self.global
    }

    /// Whether the command is the operator, whose logs are its only output.
    pub const fn is_operator(&self) -> bool {
        matches!(self.command, Command::Controller(_))
    }

    /// Runs the command and tells how it ended. Errors are shown here, once.
    pub async fn run(self) -> ExitCode {
        let screen = render::Screen::new(&self.global);
        if self.password_was_typed {
            screen.output().warning(
                "a password given with -p can be read by every user of this machine while the command runs: \
                 use --password-stdin or the variable IMAGE_PUSHER_PASSWORD",
            );
        }
        let outcome = match self.command {
            Command::Pull(command) => match command.client(&screen) {
                Ok(client) => until_interrupted(Box::pin(command.run(client, &screen))).await,
                Err(error) => Err(error),
            },
            Command::Push(command) => match command.client(&screen) {
                Ok(client) => until_interrupted(Box::pin(command.run(client, &screen))).await,
                Err(error) => Err(error),
            },
            Command::Sync(command) => match command.prepare(&screen) {
                Ok(prepared) => Box::pin(prepared.run(&screen)).await,
                Err(error) => Err(error),
            },
            Command::Extract(command) => until_interrupted(Box::pin(command.run(&screen))).await,
            Command::Save(command) => until_interrupted(Box::pin(command.run(&screen))).await,
            Command::List(command) => until_interrupted(Box::pin(command.run(&screen))).await,
            Command::Clean(command) => until_interrupted(Box::pin(command.run(&screen))).await,
            Command::Verify(command) => until_interrupted(Box::pin(command.run(&screen))).await,
            Command::Controller(command) => Box::pin(command.run()).await,
            Command::Crd(command) => command.run(&screen),
            Command::Completions(command) => command.run(&mut Self::command(), &screen),
        };
        match outcome {
            Ok(()) => ExitCode::from(handlers::EXIT_DONE),
            Err(error) => {
                screen.error(&error);
                ExitCode::from(error.exit_code())
            }
        }
    }
}

/// Runs a command until it ends or the user interrupts it. Dropping the command's future is the cancellation: partial
/// downloads are removed on the way out.
async fn until_interrupted(command: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        outcome = command => outcome,
        signal = interrupted() => Err(signal),
    }
}

/// Waits for SIGINT or SIGTERM.
async fn interrupted() -> Error {
    use tokio::signal::unix::{SignalKind, signal};
    let (interrupt, terminate) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    );
    match (interrupt, terminate) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            Error::Interrupted
        }
        // Without handlers the signals end the process as they always did.
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_option_has_a_variable_of_its_own_name() {
        let command = Cli::command();
        let mut checked = 0;
        for (name, arguments) in std::iter::once(("", command.get_arguments().collect::<Vec<_>>()))
            .chain(
                command
                    .get_subcommands()
                    .map(|sub| (sub.get_name(), sub.get_arguments().collect())),
            )
        {
            for argument in arguments
                .into_iter()
                .filter(|argument| !argument.is_positional())
            {
                let long = argument.get_long().expect("every option has a long name");
                if matches!(long, "help" | "version") {
                    continue;
                }
                let expected = format!("IMAGE_PUSHER_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(
                    argument.get_env().and_then(|env| env.to_str()),
                    Some(expected.as_str()),
                    "{name} --{long}"
                );
                checked += 1;
            }
        }
        assert!(checked > 20, "{checked}");
    }

    #[test]
    fn every_subcommand_shows_examples() {
        for sub in Cli::command().get_subcommands() {
            let help = sub
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains(&format!("docker-image-pusher {}", sub.get_name())),
                "{}",
                sub.get_name()
            );
        }
    }
}
