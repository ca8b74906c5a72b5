//! Creates a cluster, or claims an existing one.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use rand::distr::{Alphanumeric, SampleString};

use super::Settings;
use super::binaries::Binaries;
use super::cleanup::{Cleanup, Step, set_mode};
use super::error::{PostgresError, unusable, unusable_as};
use super::location;
use super::os_user::OsUser;
use super::running::{SUPERUSER, settle};
use super::server_log::last_lines;
use super::supervisor::Supervisor;

const PASSWORD_FILE: &str = "oncepay.password";

/// The data of a server, claimed by this process.
pub(super) struct Cluster {
    pub(super) data: PathBuf,
    pub(super) password: String,
    pub(super) janitor: Option<Supervisor>,
    _lock: fs::File,
}

impl Cluster {
    /// Creates a cluster, in a folder beside its own, which gets its name when it is complete.
    pub(super) fn create(
        named: &Path,
        data: PathBuf,
        settings: &Settings<'_>,
        binaries: &Binaries,
        account: Option<&OsUser>,
        made: &mut Cleanup,
    ) -> Result<Self, PostgresError> {
        let data = location::choose(named, data, account, made)?;
        if !settings.durable {
            if data == named {
                // Fails if the folder exists, so the janitor removes nothing that isn't ours.
                made.folder(&data)?;
            }
            made.0.push(Step::Tree(data.clone()));
        }
        sweep(&data);
        let (parent, prefix) = workshop_of(&data);
        let workshop =
            tempfile::Builder::new().prefix(&prefix).tempdir_in(parent).map_err(unusable(parent))?;
        let workshop = workshop.path();
        let _workshop_lock = lock(workshop)?;
        made.0.push(Step::Tree(workshop.into()));
        let janitor = (!settings.durable).then(|| Supervisor::janitor(made));
        let janitor = janitor.transpose().map_err(unusable(parent))?;
        set_mode(workshop, 0o711)?;

        let fresh = workshop.join("data");
        fs::create_dir(&fresh).map_err(unusable(&fresh))?;
        set_mode(&fresh, 0o700)?;
        let password = Alphanumeric.sample_string(&mut rand::rng(), 32);
        let password_file = workshop.join(PASSWORD_FILE);
        write_private(&password_file, &password).map_err(unusable(&password_file))?;
        if let Some(account) = account {
            for path in [&fresh, &password_file] {
                chown(path, Some(account.uid), Some(account.gid)).map_err(unusable(path))?;
            }
        }

        let output_file = workshop.join("initdb.log");
        let output = fs::File::create(&output_file).map_err(unusable(&output_file))?;
        let mut args: Vec<OsString> = vec!["-D".into(), fresh.clone().into()];
        args.extend(["--pwfile".into(), password_file.clone().into()]);
        args.extend(["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256"].map(Into::into));
        args.extend([format!("--username={SUPERUSER}").into(), "--no-instructions".into()]);
        if !settings.durable {
            args.push("--no-sync".into());
        }
        let initdb = binaries.dir().join("initdb");
        let status = Supervisor::supervise(&initdb, &args, account, janitor.as_ref(), output)
            .and_then(|mut initdb| initdb.child.wait())
            .map_err(unusable(&initdb))?;
        if !status.success() {
            let output = last_lines(&output_file, 0);
            return Err(PostgresError::InitFailed { output });
        }

        let kept = fresh.join(PASSWORD_FILE);
        fs::rename(&password_file, &kept).map_err(unusable(&kept))?;
        // The lock goes with the folder when that is renamed.
        let lock = lock(&fresh)?;
        fs::rename(&fresh, &data).map_err(|error| match error.kind() {
            // Another process with the same task was faster.
            io::ErrorKind::DirectoryNotEmpty => PostgresError::InUse { path: data.clone() },
            _ => unusable(&data)(error),
        })?;
        made.0.push(Step::Tree(data.clone()));
        Ok(Self { data, password, janitor, _lock: lock })
    }

    /// Claims the cluster of an earlier start, and clears its remains away.
    pub(super) fn reopen(
        named: &Path,
        data: PathBuf,
        account: Option<&OsUser>,
    ) -> Result<Self, PostgresError> {
        if let Some(account) = account
            && !account.reaches(&data)?
        {
            let name = &account.name;
            let cause = format!("the user {name} owns it, but can't enter a folder above it");
            return Err(unusable_as(&data, cause));
        }
        let lock = lock(&data).map_err(|error| match error {
            PostgresError::InUse { .. } => PostgresError::InUse { path: named.into() },
            error => error,
        })?;
        sweep(&data);
        let password_file = data.join(PASSWORD_FILE);
        let password = fs::read_to_string(&password_file).map_err(unusable(&password_file))?;
        settle(&data, &password);
        Ok(Self { data, password, janitor: None, _lock: lock })
    }
}

/// The folder in which clusters are created, and the prefix of their names there.
fn workshop_of(data: &Path) -> (&Path, OsString) {
    let mut prefix = data.file_name().unwrap_or_default().to_owned();
    prefix.push(".init-");
    (data.parent().unwrap_or(data), prefix)
}

/// Removes the remains of first starts that were killed.
fn sweep(data: &Path) {
    let (parent, prefix) = workshop_of(data);
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.metadata().is_ok_and(|entry| entry.is_dir() && entry.uid() == geteuid().as_raw());
        let name = entry.file_name();
        let named_so = name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        // A locked folder is in use.
        if !ours || !named_so || lock(&path).is_err() {
            continue;
        }
        // Repeats, because its initdb may still be about to end.
        for _ in 0..50 {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    thread::sleep(Duration::from_millis(100));
                }
                _ => break,
            }
        }
    }
}

/// Claims a folder for as long as the file is open, which ends with this process at the latest.
fn lock(folder: &Path) -> Result<fs::File, PostgresError> {
    let file = fs::File::open(folder).map_err(unusable(folder))?;
    let deadline = Instant::now() + Duration::from_secs(1);
    // Repeats, because a child of this process has a copy of the file until it runs its program.
    while let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        if Instant::now() > deadline {
            return Err(PostgresError::InUse { path: folder.into() });
        }
        thread::sleep(Duration::from_millis(20));
    }
    // File systems that can't lock are used without a lock.
    Ok(file)
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
