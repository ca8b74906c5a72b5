//! Undoes the steps of a failed start.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::{PostgresError, unusable};

/// The steps of a start so far, which are undone in reverse order unless the start succeeds.
#[derive(Default)]
pub(super) struct Cleanup(pub(super) Vec<Step>);

pub(super) enum Step {
    Folder(PathBuf),
    /// A folder with its content, or a link without its target.
    Tree(PathBuf),
    Mode(PathBuf, fs::Permissions),
}

impl Cleanup {
    /// Creates a folder. Its content is closed to others, but its user, who may not be us, has to reach it.
    pub(super) fn folder(&mut self, path: &Path) -> Result<(), PostgresError> {
        fs::create_dir(path).map_err(unusable(path))?;
        self.0.push(Step::Folder(path.into()));
        set_mode(path, 0o711)
    }

    /// Creates a folder and those above it, as far as they are missing.
    pub(super) fn folders(&mut self, path: &Path) -> Result<(), PostgresError> {
        let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
        for folder in missing.into_iter().rev() {
            match self.folder(folder) {
                // Another process created it meanwhile.
                Err(_) if folder.is_dir() => {}
                made => made?,
            }
        }
        Ok(())
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for step in self.0.drain(..).rev() {
            // Best effort: the error that led here is worth more than one of these.
            let _ = match step {
                Step::Folder(path) => fs::remove_dir(path),
                Step::Tree(path) => fs::remove_dir_all(path),
                Step::Mode(path, mode) => fs::set_permissions(path, mode),
            };
        }
    }
}

pub(super) fn set_mode(path: &Path, mode: u32) -> Result<(), PostgresError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(unusable(path))
}
