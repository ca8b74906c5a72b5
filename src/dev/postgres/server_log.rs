//! Logs of Postgres' programs.

use std::fs;
use std::io;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;

use nix::fcntl::OFlag;

use super::os_user::OsUser;

const LOG_LIMIT: u64 = 1 << 20;

/// Opens the server's log. Also returns its present length.
pub(super) fn open_log(path: &Path, account: Option<&OsUser>) -> io::Result<(fs::File, usize)> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_LIMIT) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let mut options = fs::OpenOptions::new();
    // The folder isn't root's: a link in it could make root open and give away any file.
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    let log = options.append(true).create(true).mode(0o600).open(path)?;
    if let Some(account) = account {
        fchown(&log, Some(account.uid), Some(account.gid))?;
    }
    let length = usize::try_from(log.metadata()?.len()).unwrap_or(usize::MAX);
    Ok((log, length))
}

/// The end of a log, without its content from before.
pub(super) fn last_lines(path: &Path, before: usize) -> String {
    let log = fs::read(path).unwrap_or_default();
    let log = String::from_utf8_lossy(log.get(before..).unwrap_or_default());
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
