//! Finds the server binaries on the machine.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::PostgresError;
use super::os_user::{OsUser, command};

/// The oldest supported major version of Postgres.
pub const OLDEST_MAJOR: u32 = 14;

/// Folders in which packages put the `bin` folders of versions, and the prefix of their names there.
const PACKAGED: [(&str, &str); 8] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/usr/lib", "postgresql"),
    ("/opt/homebrew/opt", "postgresql"),
    ("/usr/local/opt", "postgresql"),
    ("/Library/PostgreSQL", ""),
    ("/Applications/Postgres.app/Contents/Versions", ""),
    ("/usr/local", "pgsql"),
];

/// A folder with `postgres` and `initdb`.
#[derive(Debug)]
pub struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// The folder, which usually has the client programs too.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Finds the first suitable folder among PATH, the packagers' usual folders (the newest first) and
    /// `pg_config --bindir`.
    pub fn find() -> Result<Self, PostgresError> {
        Self::search(candidates(), OsUser::choose(None)?.as_ref(), None)
    }

    /// Finds the first folder that is suitable for new data, or for the given folder with data of a major
    /// version.
    pub(super) fn search(
        candidates: impl Iterator<Item = PathBuf>,
        account: Option<&OsUser>,
        data: Option<(&Path, u32)>,
    ) -> Result<Self, PostgresError> {
        let mut others: Vec<Self> = Vec::new();
        for dir in candidates {
            let Some(major) = version_in(&dir, account) else {
                continue;
            };
            if data.map_or(major >= OLDEST_MAJOR, |(_, wanted)| major == wanted) {
                return Ok(Self { dir, major });
            }
            others.push(Self { dir, major });
        }
        let majors: BTreeSet<u32> = others.iter().map(|other| other.major).collect();
        let installed: Vec<String> = majors.iter().map(u32::to_string).collect();
        Err(match (others.into_iter().next(), data) {
            (None, _) => PostgresError::NotFound,
            (Some(Self { dir, major }), None) => PostgresError::TooOld { dir, major },
            (Some(_), Some((folder, data))) => PostgresError::VersionMismatch {
                folder: folder.into(),
                data,
                installed: installed.join(", "),
            },
        })
    }
}

pub(super) fn candidates() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path).collect();
    let pg_config = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().into())
    };
    on_path
        .into_iter()
        .chain(PACKAGED.iter().flat_map(|at| newest_first(at.0, at.1)))
        .chain(iter::once_with(pg_config).flatten())
        // Children run in the root folder.
        .filter(|dir| dir.is_absolute())
}

/// The `bin` folders of the versions in `base`, such as `postgresql@17`.
fn newest_first(base: &str, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('@');
            Some((version.parse().unwrap_or(0), entry.path().join("bin")))
        })
        .collect();
    found.sort_by(|one, other| other.cmp(one));
    found.into_iter().map(|(_, bin)| bin).collect()
}

/// The major version of the binaries in a folder, if they exist and the user can run them.
fn version_in(dir: &Path, account: Option<&OsUser>) -> Option<u32> {
    let postgres = dir.join("postgres");
    if !postgres.is_file() || !dir.join("initdb").is_file() {
        return None;
    }
    let output = command(&postgres, account).arg("--version").output().ok()?;
    major_of(str::from_utf8(&output.stdout).ok()?)
}

/// The 15 of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_of(version: &str) -> Option<u32> {
    let number =
        version.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let end = number.find(|digit: char| !digit.is_ascii_digit());
    number[..end.unwrap_or(number.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::cleanup::set_mode;
    use super::*;

    #[test]
    fn major_versions() {
        let debian = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(major_of(debian), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("postgres (PostgreSQL) 9.6.24"), Some(9));
        assert_eq!(major_of("command not found"), None);
    }

    #[test]
    fn newer_versions_come_first() {
        let base = tempfile::tempdir().unwrap();
        for name in ["postgresql@9", "postgresql", "postgresql@17", "mysql@18"] {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        let found = newest_first(base.path().to_str().unwrap(), "postgresql");
        let expected = ["postgresql@17/bin", "postgresql@9/bin", "postgresql/bin"];
        assert_eq!(found, expected.map(|path| base.path().join(path)));
    }

    #[test]
    fn binaries_are_chosen_by_version() {
        let base = tempfile::tempdir().unwrap();
        let fake = |major: u32| {
            let dir = base.path().join(major.to_string());
            fs::create_dir(&dir).unwrap();
            for name in ["postgres", "initdb"] {
                let script = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {major}.1'\n");
                fs::write(dir.join(name), script).unwrap();
                set_mode(&dir.join(name), 0o755).unwrap();
            }
            dir
        };
        let dirs = [base.path().to_owned(), fake(13), fake(15), fake(16)];
        let data = Path::new("/data/postgres");
        let search = |dirs: &[PathBuf], wanted: Option<u32>| {
            let wanted = wanted.map(|major| (data, major));
            Binaries::search(dirs.iter().cloned(), None, wanted)
        };
        assert_eq!(search(&dirs, None).unwrap().major, 15);
        assert_eq!(search(&dirs, Some(16)).unwrap().major, 16);
        let error = search(&dirs, Some(14)).unwrap_err().to_string();
        assert!(error.starts_with("/data/postgres holds data of Postgres 14, but"));
        assert!(error.contains("binaries of 13, 15, 16 are"), "{error}");
        let error = search(&dirs[..2], None).unwrap_err();
        assert!(matches!(error, PostgresError::TooOld { major: 13, .. }));
        let error = search(&dirs[..1], None).unwrap_err();
        assert!(matches!(error, PostgresError::NotFound));
    }
}
