//! A private Postgres server, run from the binaries that are on the machine.
//!
//! It is for `oncepay dev`, whose data have to last, and for the test suite, which wants a fresh
//! server that is gone without a trace afterwards.
//!
//! Promised:
//!
//! * A server is private: TCP on 127.0.0.1 only, a free port at each start, no Unix socket, and a
//!   random superuser password that is kept (mode 0600) beside the data.
//! * It doesn't outlive this process, even if that is killed with SIGKILL: a shell holds the other
//!   end of a pipe and stops the server when the pipe closes. It is in a process group of its own,
//!   so Ctrl-C in the terminal reaches this process and not the server.
//! * A cluster folder is complete or absent, and a failed first start leaves nothing behind.
//!   A throw-away server's folder is removed at the end, whichever way the end comes.
//! * One process uses a cluster at a time; servers and files that an earlier, killed process left
//!   are cleared away.
//! * Root may use it. Postgres refuses to run as root, so it runs as `postgres` or `nobody` then
//!   (or as whoever owns the existing data), and where that user can't reach the folder, the
//!   cluster is put into `/var/lib/oncepay` and the folder becomes a link to it.
//!
//! Not promised: upgrades of data from one major version to another; survival of a throw-away
//! server's data in a crash (`fsync` is off); the cleaning up of a throw-away server if not just
//! this process, but also the shells that watch it, are killed with SIGKILL; the removal of the
//! data in `/var/lib/oncepay` when someone deletes the link to it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    io::{self, PipeWriter, Read, Seek, SeekFrom, Write},
    iter,
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink},
        process::CommandExt,
    },
    path::{self, Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use diesel::{Connection, PgConnection, RunQueryDsl, dsl::sql, sql_types::Text};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use rand::distr::{Alphanumeric, SampleString};
use thiserror::Error;

/// The oldest major version of Postgres that will do.
pub const OLDEST_MAJOR: u32 = 14;

const SUPERUSER: &str = "postgres";
const PASSWORD_FILE: &str = "oncepay.password";
const LOG_FILE: &str = "oncepay-postgres.log";
const LOG_LIMIT: u64 = 1 << 20;
/// Where clusters go whose own folder is out of reach of the user that root runs Postgres as.
const ROOT_CLUSTERS: &str = "/var/lib/oncepay";

/// Crash recovery and a big checkpoint take their time.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the remains of an earlier server may take to go away.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a command until it ends by itself or standard input closes, which says that we are gone or
/// want it to stop. Notes for readers of shell:
///
/// * Standard input has to be copied to 3, as that of background commands is `/dev/null`.
/// * SIGINT is repeated because background commands ignore it until they install a handler.
/// * `read`, being built in, dies with its subshell; `cat` would stay.
const SUPERVISE: &str = r#"
exec 3<&0
"$@" 3<&- </dev/null >&2 &
server=$!
(read -r line <&3; while kill -INT "$server"; do sleep 1 >/dev/null; done) 2>/dev/null &
watcher=$!
exec 3<&- </dev/null
wait "$server"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"#;

/// Waits until standard input closes, then removes the trees before `--` and the folders after it
/// as far as they are empty.
const CLEAN_UP: &str = r#"
cat >/dev/null
while [ "$1" != -- ]; do
    rm -rf "$1" || { sleep 1; rm -rf "$1"; }
    shift
done
shift
rmdir "$@" 2>/dev/null
"#;

/// Where packages put the `bin` folders of versions: a folder, and how the names in it begin.
const PACKAGED: [(&str, &str); 7] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/usr/lib", "postgresql"),
    ("/opt/homebrew/opt", "postgresql"),
    ("/usr/local/opt", "postgresql"),
    ("/Library/PostgreSQL", ""),
    ("/Applications/Postgres.app/Contents/Versions", ""),
];

/// What the log says when a start failed for a reason that goes away by itself: another program
/// took the port, or processes of a killed server are still about.
const TRANSIENT: [&str; 2] = ["could not create any TCP/IP sockets", "pre-existing shared memory block"];

/// Why there is no server; says what to do about it.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages tell what each of them means")]
pub enum PostgresError {
    #[error(
        "No Postgres server binaries found in PATH, /usr/lib/postgresql/*/bin and other usual \
         folders. Install them (Debian/Ubuntu: apt-get install postgresql; Fedora: dnf install \
         postgresql-server; macOS: brew install postgresql@17), put their folder in PATH, or set \
         DATABASE_URL to a database that you run."
    )]
    NotFound,
    #[error(
        "The Postgres server binaries in {} are of version {major}, but {OLDEST_MAJOR} or newer is \
         needed. Install a newer one, or set DATABASE_URL to a database that you run.",
        dir.display()
    )]
    TooOld { dir: PathBuf, major: u32 },
    #[error(
        "{} holds data of Postgres {data}, but only the server binaries of {installed} are \
         installed: install postgresql-{data}, or choose another --data-dir, or delete the folder \
         to start afresh.",
        folder.display()
    )]
    VersionMismatch { folder: PathBuf, data: u32, installed: String },
    #[error(
        "{} can't be used for the database: {cause}. Put that right, or choose another --data-dir.",
        path.display()
    )]
    Unusable { path: PathBuf, cause: String },
    #[error(
        "{} is in use by another oncepay process. Stop that one, or choose another --data-dir.",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error(
        "Postgres doesn't run as root, and no other user can take over: {cause}. Run this as an \
         ordinary user, or set DATABASE_URL to a database that you run."
    )]
    NoUser { cause: String },
    #[error(
        "The Postgres cluster could not be made. Put right what initdb says, or set DATABASE_URL \
         to a database that you run.\n{output}"
    )]
    InitFailed { output: String },
    #[error(
        "Postgres did not start: {reason}. Put right what its log says, or set DATABASE_URL to a \
         database that you run.\n{log}"
    )]
    StartFailed { reason: String, log: String },
    #[error(
        "The Postgres server of {} did not stop. Its process id is in postmaster.pid there.",
        path.display()
    )]
    StopFailed { path: PathBuf },
}

/// Says which path an input/output error was about.
fn unusable(path: &Path) -> impl FnOnce(io::Error) -> PostgresError {
    |cause| unusable_as(path, cause.to_string())
}

fn unusable_as(path: &Path, cause: impl Into<String>) -> PostgresError {
    PostgresError::Unusable { path: path.into(), cause: cause.into() }
}

/// A folder that holds `postgres` and `initdb`.
#[derive(Debug)]
pub struct Binaries {
    dir: PathBuf,
    major: u32,
}

impl Binaries {
    /// The folder, which usually holds the client programs too.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The first that will do of PATH, the packagers' usual folders (the newest first) and
    /// `pg_config --bindir`.
    pub fn find() -> Result<Self, PostgresError> {
        Self::search(candidates(), Account::choose(None)?.as_ref(), None)
    }

    /// The first that will do for new data, or for the given folder with data of a major version.
    fn search(
        candidates: impl Iterator<Item = PathBuf>,
        account: Option<&Account>,
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
        let mut majors: Vec<u32> = others.iter().map(|other| other.major).collect();
        majors.sort_unstable();
        majors.dedup();
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

fn candidates() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = env::split_paths(&path).collect();
    let pg_config = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        Some(String::from_utf8(output.stdout).ok()?.trim().into())
    };
    on_path
        .into_iter()
        .chain(PACKAGED.iter().flat_map(|at| newest_first(at.0, at.1)))
        .chain(["/usr/local/pgsql/bin".into()])
        .chain(iter::once_with(pg_config).flatten())
        // Children run in the root folder.
        .filter(|dir| dir.is_absolute())
}

/// The `bin` folders of the versions beside each other in `base`, such as `postgresql@17`.
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

/// The major version of the binaries in a folder, if they are there and the account can run them.
fn version_in(dir: &Path, account: Option<&Account>) -> Option<u32> {
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

/// Who runs Postgres when we are root.
#[derive(Debug)]
struct Account {
    uid: u32,
    gid: u32,
    name: String,
}

impl Account {
    /// `None` where we are an ordinary user and run Postgres ourselves. Otherwise the owner of
    /// existing data, who is the only one that Postgres lets run on them, or a user for new ones.
    fn choose(existing: Option<&Path>) -> Result<Option<Self>, PostgresError> {
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
        // Finds out whether we can become that user, which isn't a matter of course in a container.
        account.reaches(Path::new("/"))?;
        Ok(Some(account))
    }

    /// Whether the user gets as far as into the folder. Asking the kernel, as that user, is the
    /// only answer that has every mode, list and mount in it.
    fn reaches(&self, folder: &Path) -> Result<bool, PostgresError> {
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

/// A command that knows nothing of the caller's terminal, folder and Postgres settings, and speaks
/// English, as its messages are looked at.
fn command(program: impl AsRef<OsStr>, account: Option<&Account>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"PG") {
            command.env_remove(name);
        }
    }
    // The time zone of the server's log and of new databases.
    command.env("LC_ALL", "C").env("LC_MESSAGES", "C").env("TZ", "UTC");
    command.current_dir("/").stdin(Stdio::null()).process_group(0);
    if let Some(account) = account {
        // Gives up root's other groups as well.
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// What a start has made so far, which is unmade in reverse order unless the start succeeds.
#[derive(Default)]
struct Made(Vec<Step>);

enum Step {
    Folder(PathBuf),
    Tree(PathBuf),
    Link(PathBuf),
    Mode(PathBuf, fs::Permissions),
}

impl Made {
    /// Makes a folder. What gets into it is closed to others, but its user, who may not be us, has
    /// to get there.
    fn folder(&mut self, path: &Path) -> Result<(), PostgresError> {
        fs::create_dir(path).map_err(unusable(path))?;
        self.0.push(Step::Folder(path.into()));
        set_mode(path, 0o711)
    }

    /// Makes the missing ones of a folder and those above it.
    fn folders(&mut self, path: &Path) -> Result<(), PostgresError> {
        let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
        for folder in missing.into_iter().rev() {
            match self.folder(folder) {
                // By another process, meanwhile.
                Err(_) if folder.is_dir() => {}
                made => made?,
            }
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for step in self.0.drain(..).rev() {
            // A best effort; the error that led here is worth more than one of these.
            let _ = match step {
                Step::Folder(path) => fs::remove_dir(path),
                Step::Tree(path) => fs::remove_dir_all(path),
                Step::Link(path) => fs::remove_file(path),
                Step::Mode(path, mode) => fs::set_permissions(path, mode),
            };
        }
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), PostgresError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(unusable(path))
}

/// A shell that removes a throw-away cluster when we and the server are gone. It is not the one
/// that supervises the server, because that runs as the server's user, who can't remove the folder.
struct Janitor {
    shell: Child,
    /// Open here and, as standard output, in the supervising shell.
    pipe: Option<PipeWriter>,
}

impl Janitor {
    fn hire(made: &Made) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let mut trees: Vec<&Path> = Vec::new();
        let mut folders: Vec<&Path> = Vec::new();
        for step in made.0.iter().rev() {
            match step {
                Step::Tree(path) | Step::Link(path) => trees.push(path),
                Step::Folder(path) => folders.push(path),
                Step::Mode(..) => {}
            }
        }
        let shell = command("/bin/sh", None)
            .args(["-c", CLEAN_UP, "oncepay-janitor"])
            .args(trees)
            .arg("--")
            .args(folders)
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { shell, pipe: Some(writer) })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.pipe.take());
        ended_within(&mut self.shell, KILL_TIMEOUT);
    }
}

/// A program that runs under [`SUPERVISE`], and is stopped when this is dropped.
struct Supervised {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Supervised {
    fn spawn(
        program: &Path,
        args: &[OsString],
        account: Option<&Account>,
        janitor: Option<&Janitor>,
        output: fs::File,
    ) -> io::Result<Self> {
        let pipe = janitor.and_then(|janitor| janitor.pipe.as_ref());
        let stdout = match pipe {
            Some(pipe) => Stdio::from(pipe.try_clone()?),
            None => Stdio::null(),
        };
        let mut shell = command("/bin/sh", account)
            .args(["-c", SUPERVISE, "oncepay-postgres"])
            .arg(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(output)
            .spawn()?;
        let pipe = shell.stdin.take();
        Ok(Self { shell, pipe })
    }

    fn stop(&mut self, timeout: Duration) -> bool {
        drop(self.pipe.take());
        ended_within(&mut self.shell, timeout)
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop(KILL_TIMEOUT);
    }
}

fn ended_within(child: &mut Child, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while let Ok(None) = child.try_wait() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// How to run a server.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The folder of the data. It is made at the first start, along with the folders above it.
    pub cluster_dir: &'a Path,
    /// Whether the data are kept, and safe from crashes. A server that isn't durable needs a folder
    /// that doesn't exist yet, and removes it at the end.
    pub durable: bool,
    /// Three of which Postgres reserves for the superuser.
    pub max_connections: u32,
}

/// A running server, which is stopped when this is dropped.
pub struct Server {
    // In this order: the server ends, then its folder.
    process: Option<Supervised>,
    cluster: Cluster,
    port: u16,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("data", &self.cluster.data)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts a server on the folder's data, which are made if there are none, and waits until it
    /// can be used.
    pub fn start(settings: &Settings<'_>) -> Result<Self, PostgresError> {
        let named = path::absolute(settings.cluster_dir).map_err(unusable(settings.cluster_dir))?;
        let data = follow(&named)?;
        let major = major_in(&data)?;
        if !settings.durable && named.symlink_metadata().is_ok() {
            let cause = "a throw-away server removes its folder at the end, and this one exists";
            return Err(unusable_as(&named, cause));
        }
        let account = Account::choose(major.map(|_| data.as_path()))?;
        let account = account.as_ref();
        let holds = major.map(|major| (named.as_path(), major));
        let binaries = Binaries::search(candidates(), account, holds)?;

        let mut made = Made::default();
        let cluster = match major {
            Some(_) => Cluster::reopen(&named, data, account),
            None => Cluster::create(&named, data, settings, &binaries, account, &mut made),
        }?;
        let (process, port) = cluster.launch(settings, &binaries, account)?;
        made.0.clear();
        Ok(Self { process: Some(process), cluster, port })
    }

    /// The address of a database for libpq, with the superuser's rights.
    pub fn superuser_url(&self, database: &str) -> String {
        url(self.port, &self.cluster.password, database)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections and stops the server, and waits for that. Dropping it does the same,
    /// but can't say if it didn't work.
    pub fn stop(mut self) -> Result<(), PostgresError> {
        self.shut_down()
    }

    fn shut_down(&mut self) -> Result<(), PostgresError> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let data = &self.cluster.data;
        if let Ok(Some(status)) = process.shell.try_wait() {
            log::warn!("Postgres, or the shell that watched it, had ended already ({status})");
        }
        let mut stopped = process.stop(STOP_TIMEOUT);
        if !stopped && let Some(PidFile { pid, .. }) = PidFile::read(data) {
            // The shell still waits for it, so the pid can't be another's.
            log::warn!("Postgres takes too long to stop; it will recover at its next start");
            let _ = kill(pid, Signal::SIGQUIT);
            stopped = process.stop(KILL_TIMEOUT);
        }
        // In case that somebody has killed the shell.
        stopped &= settle(data, &self.cluster.password);
        let path = data.clone();
        stopped.then_some(()).ok_or(PostgresError::StopFailed { path })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            log::warn!("{error}");
        }
    }
}

/// The data of a server, claimed by this process.
struct Cluster {
    data: PathBuf,
    password: String,
    janitor: Option<Janitor>,
    _lock: fs::File,
}

impl Cluster {
    /// Makes a cluster, in a folder beside its own which gets its name when it is complete.
    fn create(
        named: &Path,
        data: PathBuf,
        settings: &Settings<'_>,
        binaries: &Binaries,
        account: Option<&Account>,
        made: &mut Made,
    ) -> Result<Self, PostgresError> {
        let data = place(named, data, account, made)?;
        if !settings.durable {
            if data == named {
                // Fails if it exists, so the janitor removes nothing that isn't ours.
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
        let janitor = (!settings.durable).then(|| Janitor::hire(made));
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
        let initdb = binaries.dir.join("initdb");
        let status = Supervised::spawn(&initdb, &args, account, janitor.as_ref(), output)
            .and_then(|mut initdb| initdb.shell.wait())
            .map_err(unusable(&initdb))?;
        if !status.success() {
            let output = last_lines(&output_file, 0);
            return Err(PostgresError::InitFailed { output });
        }

        let kept = fresh.join(PASSWORD_FILE);
        fs::rename(&password_file, &kept).map_err(unusable(&kept))?;
        // The lock goes with the folder when that is renamed.
        let lock = lock(&fresh)?;
        match fs::rename(&fresh, &data) {
            Ok(()) => made.0.push(Step::Tree(data.clone())),
            // Another process, which is at the same, was faster.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                return Err(PostgresError::InUse { path: data });
            }
            Err(error) => return Err(unusable(&data)(error)),
        }
        Ok(Self { data, password, janitor, _lock: lock })
    }

    /// Claims the cluster of an earlier start, and clears away what that left.
    fn reopen(named: &Path, data: PathBuf, account: Option<&Account>) -> Result<Self, PostgresError> {
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

    /// Runs Postgres, and tries again while the remains of an earlier server are in the way.
    fn launch(
        &self,
        settings: &Settings<'_>,
        binaries: &Binaries,
        account: Option<&Account>,
    ) -> Result<(Supervised, u16), PostgresError> {
        let postgres = binaries.dir.join("postgres");
        let log_file = self.data.join(LOG_FILE);
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            // Should someone take the port before Postgres does, another try gets another port.
            let port = free_port().map_err(unusable(Path::new("127.0.0.1")))?;
            let mut args: Vec<OsString> = vec!["-D".into(), self.data.clone().into()];
            let mut set = |name: &str, value: &str| {
                args.extend(["-c".into(), format!("{name}={value}").into()]);
            };
            set("port", &port.to_string());
            set("listen_addresses", "127.0.0.1");
            set("unix_socket_directories", "");
            set("max_connections", &settings.max_connections.to_string());
            set("lc_messages", "C");
            set("log_destination", "stderr");
            set("logging_collector", "off");
            if !settings.durable {
                for name in ["fsync", "synchronous_commit", "full_page_writes"] {
                    set(name, "off");
                }
            }

            let (log, before) = open_log(&log_file, account).map_err(unusable(&log_file))?;
            let janitor = self.janitor.as_ref();
            let mut process =
                Supervised::spawn(&postgres, &args, account, janitor, log).map_err(unusable(&postgres))?;
            let Err(reason) = self.ready(&mut process, port) else {
                return Ok((process, port));
            };
            drop(process);
            let log = last_lines(&log_file, before);
            let transient = TRANSIENT.iter().any(|sign| log.contains(sign));
            if !transient || Instant::now() > deadline {
                return Err(PostgresError::StartFailed { reason, log });
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until our server, and not any other, answers on the port.
    fn ready(&self, process: &mut Supervised, port: u16) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(Some(status)) = process.shell.try_wait() {
                return Err(format!("it ended ({status})"));
            }
            // Cheaper than a connection, which would also make the server complain in its log.
            if PidFile::read(&self.data).is_some_and(|file| file.ready && file.port == port) {
                match is_ours(&self.data, port, &self.password) {
                    Ok(true) => return Ok(()),
                    Err(error) if error.contains("authentication failed") => {
                        return Err(error.trim().into());
                    }
                    Ok(false) | Err(_) => {}
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
        Err(format!("it wasn't ready within {READY_TIMEOUT:?}"))
    }
}

fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// Where the named folder's data are, or are to be.
fn follow(named: &Path) -> Result<PathBuf, PostgresError> {
    let Ok(target) = fs::read_link(named) else {
        return Ok(named.into());
    };
    match fs::canonicalize(named) {
        // Killed before the data got there, or they were deleted to start afresh. Any other link
        // may as well lead to a disk that isn't there at the moment.
        Err(_) if target.starts_with(ROOT_CLUSTERS) => Ok(target),
        followed => followed.map_err(unusable(named)),
    }
}

/// The major version of the data in a folder; `None` where it is empty or doesn't exist.
fn major_in(data: &Path) -> Result<Option<u32>, PostgresError> {
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

/// Finds a place for new data that their user can reach, and makes the folders that lead there.
fn place(
    named: &Path,
    mut data: PathBuf,
    account: Option<&Account>,
    made: &mut Made,
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
    let empty = |folder| fs::read_dir(folder).is_ok_and(|entries| entries.count() == 0);
    let ours = existed.uid() == geteuid().as_raw();
    if !linked && existing == parent && ours && empty(parent) {
        // Nothing can be seen by making it passable, which may be all that was missing.
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
        // Before the data, so that there are never data that nothing leads to.
        symlink(&data, named).map_err(unusable(named))?;
        made.0.push(Step::Link(named.into()));
    }
    // With the folder that the data will replace, lest another's janitor remove the one above it as
    // empty; which may be what happens just now.
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

/// Where the folders are in which a cluster gets made, and how their names begin.
fn workshop_of(data: &Path) -> (&Path, OsString) {
    let mut prefix = data.file_name().unwrap_or_default().to_owned();
    prefix.push(".init-");
    (data.parent().unwrap_or(data), prefix)
}

/// Removes what is left of first starts that were killed.
fn sweep(data: &Path) {
    let (parent, prefix) = workshop_of(data);
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = entry.metadata().is_ok_and(|entry| entry.is_dir() && entry.uid() == geteuid().as_raw());
        let name = entry.file_name();
        let named_so = name.as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        // One that is locked is at work.
        if !ours || !named_so || lock(&path).is_err() {
            continue;
        }
        // Not at once, because its initdb may still be about to end.
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
    // Not at once, because a child of this process has a copy of the file until it runs its program.
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

/// Opens the server's log, and says how long it is already.
fn open_log(path: &Path, account: Option<&Account>) -> io::Result<(fs::File, u64)> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_LIMIT) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    let mut options = fs::OpenOptions::new();
    // The folder isn't root's: a link in it could have root open and give away any file.
    options.custom_flags(OFlag::O_NOFOLLOW.bits());
    let log = options.append(true).create(true).mode(0o600).open(path)?;
    if let Some(account) = account {
        fchown(&log, Some(account.uid), Some(account.gid))?;
    }
    let length = log.metadata()?.len();
    Ok((log, length))
}

/// The end of a log, without what was in it before.
fn last_lines(path: &Path, before: u64) -> String {
    let mut log = Vec::new();
    if let Ok(mut file) = fs::File::open(path)
        && file.seek(SeekFrom::Start(before)).is_ok()
    {
        let _ = file.read_to_end(&mut log);
    }
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

fn url(port: u16, password: &str, database: &str) -> String {
    format!("postgres://{SUPERUSER}:{password}@127.0.0.1:{port}/{database}")
}

/// Whether it's the server of the data that answers on a port.
fn is_ours(data: &Path, port: u16, password: &str) -> Result<bool, String> {
    // What is given here can't be changed by PGHOSTADDR and the like; nor is the password shown
    // to a stranger who asks for it.
    let options = "hostaddr=127.0.0.1&sslmode=disable&gssencmode=disable&connect_timeout=3\
                   &require_auth=scram-sha-256";
    let url = format!("{}?{options}", url(port, password, "postgres"));
    let mut connection = PgConnection::establish(&url).map_err(|error| error.to_string())?;
    let served = diesel::select(sql::<Text>("current_setting('data_directory')"))
        .get_result::<String>(&mut connection)
        .map_err(|error| error.to_string())?;
    let id = |path: &Path| fs::metadata(path).map(|data| (data.dev(), data.ino())).ok();
    Ok(id(data).is_some_and(|ours| id(Path::new(&served)) == Some(ours)))
}

/// What Postgres writes into `postmaster.pid`.
#[derive(Debug, PartialEq)]
struct PidFile {
    pid: Pid,
    port: u16,
    /// Started by us, as far as can be seen from the address it listens on.
    local: bool,
    ready: bool,
}

impl PidFile {
    fn path(data: &Path) -> PathBuf {
        data.join("postmaster.pid")
    }

    fn read(data: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(Self::path(data)).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let pid: i32 = lines.first()?.parse().ok()?;
        // `kill` takes a negative one for a group of processes.
        (pid > 1).then_some(Self {
            pid: Pid::from_raw(pid),
            port: lines.get(3)?.parse().ok()?,
            local: lines.get(5) == Some(&"127.0.0.1"),
            ready: lines.get(7) == Some(&"ready"),
        })
    }
}

/// Stops a server that is still there, or waits for it to stop; says whether none is left.
///
/// The pid in `postmaster.pid` may be that of any process by now, so it only counts together with
/// an answer on the port. A file whose pid is in use, but not by a server, is removed, because
/// Postgres wouldn't start over it; should it be mistaken, then the shared memory of a running
/// server still keeps another one from starting.
fn settle(data: &Path, password: &str) -> bool {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    let mut signalled = false;
    let mut absences = 0;
    while let Some(file) = PidFile::read(data) {
        if kill(file.pid, None) == Err(Errno::ESRCH) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        match is_ours(data, file.port, password) {
            Ok(true) if !signalled => {
                log::info!("Stopping a Postgres server that was left behind");
                signalled = kill(file.pid, Signal::SIGINT).is_ok();
            }
            Ok(true) => {}
            Ok(false) => absences += 1,
            Err(error) if error.contains("Connection refused") => absences += 1,
            // Starting up or shutting down, for one.
            Err(_) => {}
        }
        // Not at once: a server that is about to end closes its port first.
        if absences > 20 {
            if !file.local {
                // Started by hand, so it may be a server without a port; Postgres knows.
                return false;
            }
            log::info!("Removing the postmaster.pid of a server that is gone");
            let _ = fs::remove_file(PidFile::path(data));
        }
        thread::sleep(Duration::from_millis(100));
    }
    true
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn pid_files() {
        let text = "4711\n/data\n1700000000\n54321\n\n127.0.0.1\n  3 4\nready   \n";
        let file = PidFile::parse(text).unwrap();
        assert_eq!((file.pid.as_raw(), file.port), (4711, 54321));
        assert!(file.local && file.ready);
        let starting = PidFile::parse("4711\n/data\n1700000000\n54321\n").unwrap();
        assert!(!starting.local && !starting.ready);
        assert_eq!(PidFile::parse("-4711\n/data\n1700000000\n54321\n"), None);
        assert_eq!(PidFile::parse(""), None);
    }
}
