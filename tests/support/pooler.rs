//! PgBouncer, between the service and Postgres.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use oncepay::dev::database;
use secrecy::SecretString;
use tempfile::TempDir;

use super::database::{PASSWORD, exposed};
use super::{eventually, free_port};

/// A pooler that ends with this value or with this process.
pub struct Pooler {
    pub port: u16,
    /// Host and port of the server behind it.
    server: (String, u16),
    folder: TempDir,
    pid: libc::pid_t,
    /// A shell that ends the pooler when its standard input is closed: values in statics are never dropped.
    shell: Child,
}

/// The program. `None` if it isn't installed.
pub fn pgbouncer() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.map(|folder| folder.join("pgbouncer")).find(|program| program.is_file())
}

impl Pooler {
    /// Starts one before the server of `url`. `mode` is PgBouncer's `pool_mode`.
    pub fn start(url: &str, mode: &str) -> Result<Self, String> {
        let program =
            pgbouncer().ok_or("PgBouncer isn't installed (Debian/Ubuntu: apt-get install pgbouncer)")?;
        let url = url::Url::parse(url).unwrap();
        let server = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432));
        let mut folder = tempfile::Builder::new();
        let folder =
            folder.prefix("oncepay-pooler-").permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let port = free_port();
        write_settings(&folder, port, &server, mode);
        let roles = [database::OWNER, database::APP].map(|role| format!("\"{role}\" \"{PASSWORD}\"\n"));
        fs::write(folder.path().join("users.txt"), roles.concat()).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$@\" & echo $!; cat >/dev/null; kill $!", "pooler"]).arg(program);
        if nix::unistd::geteuid().is_root() {
            // It refuses to run as root.
            shell.args(["-u", "nobody"]);
        }
        let log = File::create(folder.path().join("log")).unwrap();
        let settings = folder.path().join("pgbouncer.ini");
        let mut shell =
            shell.arg(settings).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let pooler = Self { port, server, folder, pid: pid.trim().parse().unwrap(), shell };
        eventually("the pooler", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        Ok(pooler)
    }

    /// Has it handle sessions in another way from now on.
    pub fn set_mode(&self, mode: &str) {
        write_settings(&self.folder, self.port, &self.server, mode);
        // SAFETY: it's the process that our shell runs.
        assert_eq!(unsafe { libc::kill(self.pid, libc::SIGHUP) }, 0);
    }

    /// A connection string that leads through it.
    pub fn before(&self, url: &SecretString) -> SecretString {
        let mut url = url::Url::parse(exposed(url)).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        String::from(url).into()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn write_settings(folder: &TempDir, port: u16, (host, server_port): &(String, u16), mode: &str) {
    let users = folder.path().join("users.txt");
    let users = users.display();
    // MD5 costs both sides little. A server that was away is asked again at once.
    let settings = format!(
        "[databases]\n\
         * = host={host} port={server_port}\n\
         [pgbouncer]\n\
         pool_mode = {mode}\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = md5\n\
         auth_file = {users}\n\
         max_client_conn = 1000\n\
         default_pool_size = 200\n\
         server_login_retry = 0.1\n"
    );
    let file = folder.path().join("pgbouncer.ini");
    fs::write(file, settings).unwrap();
}
