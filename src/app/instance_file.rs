//! The file `instance` in the data folder: which instance this is, whatever becomes of its journal. It is written once the
//! first START record is on disk, so a folder that has it and no journal has lost one.

use crate::domain::InstanceId;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub struct InstanceFile {
    folder: PathBuf,
    /// As it was when this process started.
    pub kept: Option<InstanceId>,
}

const NAME: &str = "instance";

impl InstanceFile {
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(NAME);
        let kept = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            read => {
                let text = read.with_context(|| format!("cannot read `{}`", file.display()))?;
                let id = InstanceId::parse(text.trim());
                Some(id.with_context(|| format!("`{}` does not hold the id of an instance: 32 hex digits", file.display()))?)
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            kept,
        })
    }

    /// Makes sure that the file names this instance.
    pub fn keep(&self, id: InstanceId) -> std::io::Result<()> {
        if self.kept == Some(id) {
            return Ok(());
        }
        let temporary = self.folder.join("instance.tmp");
        let mut file = OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{id}")?;
        file.sync_all()?;
        fs::rename(&temporary, self.folder.join(NAME))?;
        File::open(&self.folder)?.sync_all()
    }
}
