//! `oncepay dev` as a user runs it.
//!
//! Needs Postgres' server binaries, like the command itself; where there are none and none can be fetched (the other tests
//! then run in a container), each says so and does nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oncepay::dev::postgres::Origin;

use crate::support::database::fast_folder;
use crate::support::*;

fn has_binaries() -> bool {
    let found = database::binaries();
    if let Err(error) = &found {
        eprintln!("skipped: {error}");
    }
    found.is_ok()
}

fn command(folder: &Path, port: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
    command
        .args(["dev", "--port", &port.to_string(), "--data-dir"])
        .arg(folder)
        .env_remove("DATABASE_URL")
        .env_remove("ONCEPAY_POSTGRES")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(origin) = database::supply().origin {
        command.arg(match origin {
            Origin::System => "--postgres=system",
            Origin::Fetch => "--postgres=fetch",
        });
    }
    command
}

/// A running `oncepay dev`.
struct Dev {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// What it said, up to the curl line.
    welcome: String,
    /// The client of its seeded merchant.
    client: Client,
}

impl Dev {
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    fn start_with(folder: &Path, flags: &[&str]) -> Self {
        let mut child = command(folder, 0).args(flags).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut welcome = String::new();
        while !welcome.contains("\ncurl ") {
            if stdout.read_line(&mut welcome).unwrap() == 0 {
                let mut error = String::new();
                child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("it ended: {welcome}{error}");
            }
        }
        let env = env_of(folder);
        let client = Client::new(&env["ONCEPAY_URL"]).with_key(&env["ONCEPAY_API_KEY"]);
        Self { child, stdout, welcome, client }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Sends a signal that it can handle, and waits for its end.
    fn stop(mut self, signal: Signal) {
        self.signal(signal);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert!(self.child.wait().unwrap().success(), "{rest}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn env_of(folder: &Path) -> std::collections::HashMap<String, String> {
    let text = fs::read_to_string(folder.join("dev.env")).unwrap();
    text.lines()
        .map(|line| line.split_once('=').unwrap())
        .map(|(n, v)| (n.to_owned(), v.to_owned()))
        .collect()
}

/// Pid of the folder's Postgres, if it has one.
fn postgres_pid(folder: &Path) -> Option<Pid> {
    let text = fs::read_to_string(folder.join("postgres/postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok().map(Pid::from_raw)
}

fn is_alive(pid: Pid) -> bool {
    kill(pid, None).is_ok()
}

/// A folder that vanishes with this value. Its own mode lets Postgres' user in when we're root.
fn temporary_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(fast_folder()).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// Runs the command, which must fail. Returns what it complained about.
fn failure(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: ") && error.lines().count() <= 3, "{error}");
    error
}

#[test]
fn it_serves_stops_cleanly_and_finds_its_data_again() {
    if !has_binaries() {
        return;
    }
    let parent = temporary_folder();
    let folder = parent.path().join("data");

    let dev = Dev::start(&folder);
    let env = env_of(&folder);
    for name in ["ONCEPAY_URL", "ONCEPAY_API_KEY", "ONCEPAY_OPERATOR_KEY", "DATABASE_URL"] {
        assert!(!env[name].is_empty(), "{name}");
    }
    assert_eq!(fs::metadata(folder.join("dev.env")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(dev.welcome.contains(&format!("{}/docs", env["ONCEPAY_URL"])), "{}", dev.welcome);
    let curl = dev.welcome.split_once("curl ").unwrap().1;
    for time in 1..=2 {
        // The very line that is printed, as a shell takes it.
        let output = Command::new("sh").arg("-c").arg(format!("curl {curl}")).output().unwrap();
        if output.status.code() == Some(127) {
            eprintln!("skipped: there is no curl");
            break;
        }
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("HTTP/1.1 201"), "{text}");
        assert_eq!(text.contains("idempotent-replayed: true"), time == 2, "{text}");
    }
    let mut superuserless = oncepay::storage::db::connect(&env["DATABASE_URL"].clone().into()).unwrap();
    assert!(
        diesel::RunQueryDsl::execute(diesel::sql_query("DELETE FROM postings"), &mut superuserless).is_err()
    );
    let path = format!("/v1/charges/{}", dev.client.charge("k", &visa()).expect(201).field("id"));
    let postgres = postgres_pid(&folder).unwrap();
    dev.stop(Signal::SIGINT);
    assert!(!is_alive(postgres), "Postgres outlives it");

    let dev = Dev::start(&folder);
    assert_eq!(env_of(&folder)["ONCEPAY_API_KEY"], env["ONCEPAY_API_KEY"]);
    assert_eq!(env_of(&folder)["ONCEPAY_OPERATOR_KEY"], env["ONCEPAY_OPERATOR_KEY"]);
    dev.client.get(&path).expect(200);
    assert!(dev.client.charge("k", &visa()).expect(201).is_replay());
    let postgres = postgres_pid(&folder).unwrap();
    dev.stop(Signal::SIGTERM);
    assert!(!is_alive(postgres), "Postgres outlives it");
}

#[test]
fn it_recovers_when_everything_was_killed() {
    if !has_binaries() {
        return;
    }
    let parent = temporary_folder();
    let folder = parent.path().join("data");
    let mut keys: Vec<String> = Vec::new();
    for round in 0..3 {
        let mut dev = Dev::start(&folder);
        for key in &keys {
            assert!(dev.client.charge(key, &visa()).expect(201).is_replay(), "round {round}");
        }
        let key = format!("round-{round}");
        dev.client.charge(&key, &visa()).expect(201);
        keys.push(key);
        dev.signal(Signal::SIGKILL);
        if round == 1 {
            kill(postgres_pid(&folder).unwrap(), Signal::SIGKILL).unwrap();
        }
        dev.child.wait().unwrap();
    }
    Dev::start(&folder).stop(Signal::SIGTERM);
}

#[test]
fn a_taken_port_is_told_and_leaves_nothing_behind() {
    let parent = temporary_folder();
    let folder = parent.path().join("data");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = failure(command(&folder, port));
    assert!(error.contains(&port.to_string()) && error.contains("--port"), "{error}");
    assert!(!folder.exists());
}

#[test]
fn an_unusable_folder_is_told() {
    let parent = temporary_folder();
    let file = parent.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    for folder in [file.as_path(), &file.join("below"), Path::new("/proc/oncepay")] {
        let error = failure(command(folder, 0));
        assert!(error.contains("--data-dir"), "{error}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "not a folder");
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
}

#[test]
fn data_of_another_version_and_a_second_start_are_told() {
    if !has_binaries() {
        return;
    }
    let parent = temporary_folder();
    let folder = parent.path().join("data");
    let dev = Dev::start(&folder);
    let error = failure(command(&folder, 0));
    assert!(error.contains("--data-dir"), "{error}");
    dev.client.charge("k", &visa()).expect(201);
    dev.stop(Signal::SIGINT);

    let version_file = folder.join("postgres/PG_VERSION");
    let version = fs::read_to_string(&version_file).unwrap();
    fs::write(&version_file, "9\n").unwrap();
    let error = failure(command(&folder, 0));
    assert!(error.contains("Postgres 9") && error.contains("--data-dir"), "{error}");
    fs::write(&version_file, version).unwrap();
    let dev = Dev::start(&folder);
    assert!(dev.client.charge("k", &visa()).expect(201).is_replay());
    dev.stop(Signal::SIGINT);
}

#[test]
fn a_database_of_the_users_own_can_be_given() {
    let database = TestDatabase::new();
    let parent = temporary_folder();
    let mut command = command(&parent.path().join("data"), 0);
    let mut child = command.env("DATABASE_URL", database::exposed(&database.superuser_url)).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let env_file = parent.path().join("data/dev.env");
    while !env_file.exists() {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "it doesn't start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let env = env_of(&parent.path().join("data"));
    let client = Client::new(&env["ONCEPAY_URL"]).with_key(&env["ONCEPAY_API_KEY"]);
    let response = loop {
        match client.request("POST", "/v1/charges").idempotency_key("k").json(&visa()).try_send() {
            Ok(response) => break response,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    response.expect(201);
    assert_eq!(database.rows("charges"), 1);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn with_an_acquirer_beside_it_it_can_be_played_with_and_reconciled() {
    if !has_binaries() {
        return;
    }
    let parent = temporary_folder();
    let folder = parent.path().join("data");
    let dev = Dev::start_with(&folder, &["--processor", "http"]);
    let env = env_of(&folder);
    let set_faults = |rules: &str| {
        let request = ureq::put(format!("{}/faults", env["ONCEPAY_SIMULATOR_CONTROL_URL"]));
        request.header("Content-Type", "application/json").send(format!("{{\"rules\":[{rules}]}}")).unwrap();
    };
    set_faults("{\"fault\":\"error_before\"}");
    dev.client.charge("k", &visa()).expect_problem(503, "processor_unavailable");
    set_faults("");
    dev.client.charge("k", &visa()).expect(201);

    // The settings in dev.env are all that it takes.
    let reconcile = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
        let output = command.arg("reconcile").envs(&env).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    eventually("both sides agree", || {
        let (agrees, text) = reconcile();
        assert!(agrees, "{text}");
        text.lines().any(|line| line.split_whitespace().skip(2).eq(["1", "12.50", "1", "12.50"]))
    });
    dev.stop(Signal::SIGTERM);

    // It knows its operations after a restart.
    let dev = Dev::start_with(&folder, &["--processor", "http"]);
    let charge = dev.client.charge("k", &visa()).expect(201).field("id");
    let refund = serde_json::json!({"charge_id": charge, "amount": "2.00"});
    dev.client.send("POST", "/v1/refunds", "r", &refund).expect(201);
    dev.stop(Signal::SIGTERM);
}
