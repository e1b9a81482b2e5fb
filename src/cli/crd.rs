//! `crd`: the definition of the ImageMirror resource.

use clap::Args;

use super::{Result, render::Screen};

/// Print the CustomResourceDefinition of ImageMirror
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher crd | kubectl apply --server-side -f -")]
pub(super) struct Crd {}

impl Crd {
    #[expect(clippy::unused_self, reason = "every command runs the same way")]
    pub(super) fn run(self, screen: &Screen) -> Result<()> {
        let yaml = crate::api::crd_yaml();
        screen.content(yaml.trim_end(), &serde_json::json!({ "yaml": yaml }))
    }
}
