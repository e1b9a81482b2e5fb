//! `completions`: scripts that let shells complete the command line.

use clap::Args;
use clap_complete::Shell;

use super::{Result, render::Screen};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher completions bash > /etc/bash_completion.d/docker-image-pusher
  docker-image-pusher completions zsh > \"${fpath[1]}/_docker-image-pusher\"")]
pub(super) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, command: &mut clap::Command, screen: &Screen) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, command, "docker-image-pusher", &mut script);
        let script = String::from_utf8_lossy(&script);
        screen.content(script.trim_end(), &serde_json::json!({ "script": script }))
    }
}
