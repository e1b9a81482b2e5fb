//! podman, as a producer and a reader of archives: a store of its own per test, never the machine's.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Result;
use super::images::Image;
use super::process::run;
use super::skopeo::{self, End};

/// podman with a store below a folder. It needs root: a store without it wants a range of user ids.
#[derive(Debug)]
pub struct Podman {
    folder: PathBuf,
}

impl Podman {
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Brings an image into the store.
    pub fn add(&self, image: &Image, name: &str) -> Result<()> {
        let source = format!("oci:{}", image.layout().display());
        let folder = self.folder.display();
        let store = format!("containers-storage:[vfs@{folder}/root+{folder}/run]{name}");
        skopeo::copy_with(End::Local(&source), End::Local(&store), &[])
    }

    /// Writes images into an archive: options of `podman save` and names, in any order.
    pub fn save(&self, arguments: &[&str], file: &Path) -> Result<()> {
        let mut command = self.command();
        command.args(["save", "--quiet"]);
        let (options, names): (Vec<&str>, Vec<&str>) = arguments
            .iter()
            .partition(|argument| argument.starts_with('-'));
        command.args(options).arg("--output").arg(file).args(names);
        run(&mut command).map(drop)
    }

    /// Loads an archive and tells which images the store has then: `NAME sha256:ID`, sorted.
    pub fn load(&self, file: &Path) -> Result<Vec<String>> {
        run(self
            .command()
            .args(["load", "--quiet", "--input"])
            .arg(file))?;
        let format = "{{.Repository}}:{{.Tag}} sha256:{{.Id}}";
        let listed = run(self
            .command()
            .args(["images", "--no-trunc", "--format", format]))?;
        let listed = String::from_utf8_lossy(&listed);
        let mut images: Vec<String> = listed.lines().map(str::to_owned).collect();
        images.sort();
        Ok(images)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.folder.join("root"));
        command.arg("--runroot").arg(self.folder.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    }
}
