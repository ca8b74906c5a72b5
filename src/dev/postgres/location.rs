//! The location of the data: the named folder, or the target of a link there.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use rand::distr::{Alphanumeric, SampleString};

use super::cleanup::{Cleanup, Step, set_mode};
use super::error::{PostgresError, unusable, unusable_as};
use super::os_user::OsUser;

/// Folder for clusters whose own folder is out of reach for the user as whom root runs Postgres.
const ROOT_CLUSTERS: &str = "/var/lib/oncepay";

/// Location of the named folder's data.
pub(super) fn follow(named: &Path) -> Result<PathBuf, PostgresError> {
    let Ok(target) = fs::read_link(named) else {
        return Ok(named.into());
    };
    match fs::canonicalize(named) {
        // The start was killed before the data got there, or they were deleted to start afresh. Any other
        // link may lead to a disk that isn't there at the moment.
        Err(_) if target.starts_with(ROOT_CLUSTERS) => Ok(target),
        followed => followed.map_err(unusable(named)),
    }
}

/// The major version of the data in a folder. `None` if it is empty or doesn't exist.
pub(super) fn major_in(data: &Path) -> Result<Option<u32>, PostgresError> {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match fs::read_to_string(data.join("PG_VERSION")) {
        Ok(version) => match version.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(unusable_as(data, "its PG_VERSION isn't a version")),
        },
        Err(error) if missing(&error) => match fs::read_dir(data).map(Iterator::count) {
            Ok(0) => Ok(None),
            Ok(_) => Err(unusable_as(data, "the files in it aren't Postgres's")),
            Err(error) if missing(&error) => Ok(None),
            Err(error) => Err(unusable(data)(error)),
        },
        Err(error) => Err(unusable(data)(error)),
    }
}

/// Finds a place for new data that their user can reach, and creates the folders on the way.
pub(super) fn choose(
    named: &Path,
    mut data: PathBuf,
    account: Option<&OsUser>,
    made: &mut Cleanup,
) -> Result<PathBuf, PostgresError> {
    let parent = named.parent().unwrap_or(named);
    // Folders that don't exist yet will be passable.
    let existing = parent.ancestors().find(|folder| folder.exists());
    let existing = existing.unwrap_or(parent);
    let existed = fs::metadata(existing).map_err(unusable(existing))?;
    made.folders(parent)?;
    let Some(account) = account else {
        return Ok(data);
    };
    let linked = data != named;
    if !linked && account.reaches(parent)? {
        return Ok(data);
    }
    let empty = || fs::read_dir(parent).is_ok_and(|entries| entries.count() == 0);
    let ours = existed.uid() == geteuid().as_raw();
    if !linked && existing == parent && ours && empty() {
        // Passable only: others can't list it. That may be all that was missing.
        made.0.push(Step::Mode(parent.into(), existed.permissions()));
        set_mode(parent, 0o711)?;
        if account.reaches(parent)? {
            return Ok(data);
        }
        set_mode(parent, existed.mode())?;
    }

    let root_clusters = Path::new(ROOT_CLUSTERS);
    if !linked {
        data = root_clusters.join(Alphanumeric.sample_string(&mut rand::rng(), 12));
        // The link comes before the data, so that there are never data without a link to them.
        symlink(&data, named).map_err(unusable(named))?;
        made.0.push(Step::Tree(named.into()));
    }
    // Together with the folder that the data will replace. Otherwise another start's janitor might remove the
    // folder above it as empty, perhaps just now.
    made.folders(&data).or_else(|_| made.folders(&data))?;
    let name = &account.name;
    if !account.reaches(root_clusters)? {
        let cause = format!("Postgres has to run as user {name}, who can't enter it");
        return Err(unusable_as(root_clusters, cause));
    }
    log::info!(
        "Postgres has to run as user {name}, who can't reach {}: its data go to {}",
        named.display(),
        data.display()
    );
    Ok(data)
}
