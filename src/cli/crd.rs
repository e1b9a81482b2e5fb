//! `crd`: the definition of the ImageMirror resource.

use clap::{Args, builder::FalseyValueParser};
use serde_json::json;

use crate::api;

use super::{Result, render::Screen};

/// Print the CustomResourceDefinition of ImageMirror
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  docker-image-pusher crd | kubectl apply --server-side -f -
  docker-image-pusher crd --markdown > reference.md")]
pub(super) struct Crd {
    /// Print the reference of its fields for people instead
    #[arg(long, env = "IMAGE_PUSHER_MARKDOWN", value_parser = FalseyValueParser::new())]
    markdown: bool,
}

impl Crd {
    pub(super) fn run(self, screen: &Screen) -> Result<()> {
        if self.markdown {
            let page = api::crd_markdown();
            return screen.content(page.trim_end(), &json!({ "markdown": page }));
        }
        let yaml = api::crd_yaml();
        screen.content(yaml.trim_end(), &json!({ "yaml": yaml }))
    }
}
