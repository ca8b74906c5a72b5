//! The user who runs Postgres, which isn't root, and commands that run as that user.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{User, geteuid};

use super::error::{PostgresError, unusable};

/// The user who runs Postgres when we are root.
#[derive(Debug)]
pub(super) struct OsUser {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) name: String,
}

impl OsUser {
    /// `None` if we are an ordinary user and run Postgres ourselves. Otherwise the owner of existing data,
    /// the only user that Postgres lets run on them, or a user for new data.
    pub(super) fn choose(existing: Option<&Path>) -> Result<Option<Self>, PostgresError> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let account = match existing {
            Some(data) => {
                let owner = fs::metadata(data).map_err(unusable(data))?;
                let (uid, gid) = (owner.uid(), owner.gid());
                let name = format!("with id {uid}");
                Self { uid, gid, name }
            }
            None => ["postgres", "nobody"]
                .iter()
                .find_map(|name| User::from_name(name).ok().flatten())
                .map(|user| Self { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name })
                .ok_or_else(|| PostgresError::NoUser {
                    cause: "there is neither a user \"postgres\" nor \"nobody\"".into(),
                })?,
        };
        // Checks that we can become that user, which isn't certain in a container.
        account.reaches(Path::new("/"))?;
        Ok(Some(account))
    }

    /// Whether the user can reach the folder. Only the kernel's answer, as that user, takes every mode, list
    /// and mount into account.
    pub(super) fn reaches(&self, folder: &Path) -> Result<bool, PostgresError> {
        command("/bin/sh", Some(self))
            .args(["-c", r#"test -x "$1""#, "sh"])
            .arg(folder)
            .status()
            .map(|status| status.success())
            .map_err(|error| PostgresError::NoUser {
                cause: format!("can't become user {}: {error}", self.name),
            })
    }
}

/// Makes a command that ignores the caller's terminal, folder and Postgres settings, and speaks English,
/// since its messages are parsed.
pub(super) fn command(program: impl AsRef<OsStr>, account: Option<&OsUser>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    // Time zone of the server's log and of new databases.
    command.env("LC_ALL", "C").env("LC_MESSAGES", "C").env("TZ", "UTC");
    command.current_dir("/").stdin(Stdio::null()).process_group(0);
    if let Some(account) = account {
        // Gives up root's other groups as well.
        command.uid(account.uid).gid(account.gid);
    }
    command
}
