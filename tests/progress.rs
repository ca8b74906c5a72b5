//! Long work shows how far it has come on a terminal, and nowhere else, and leaves nothing there.

use std::process::{Command, Output, Stdio};

use crate::support::acquirer::Acquirer;
use crate::support::database::exposed;
use crate::support::running::Running;
use crate::support::*;

/// What wipes a line away.
const WIPE: &str = "\r\u{1b}[2K";

struct Scene {
    printed: tempfile::NamedTempFile,
    acquirer: Acquirer,
    database: TestDatabase,
}

impl Scene {
    fn new() -> Self {
        let database = TestDatabase::new();
        let acquirer = Acquirer::start(&database);
        Self { printed: tempfile::NamedTempFile::new().unwrap(), acquirer, database }
    }

    fn with_settings(&self, mut command: Command) -> Command {
        command
            .env("DATABASE_URL", exposed(&self.database.app_url))
            .env("ONCEPAY_OWNER_DATABASE_URL", exposed(&self.database.owner_url))
            .env("TERM", "xterm")
            .envs(self.acquirer.environment())
            .stdin(Stdio::null());
        command
    }

    fn plain(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oncepay"));
        command.args(arguments);
        self.with_settings(command).output().unwrap()
    }

    /// A command whose standard error is a terminal, which is what this one prints; its standard output goes to a file.
    fn on_terminal(&self, arguments: &[&str]) -> Command {
        let words = [&[env!("CARGO_BIN_EXE_oncepay")], arguments].concat().join(" ");
        let shell = format!("exec {words} > {}", self.printed.path().display());
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &shell, "/dev/null"]);
        self.with_settings(command)
    }

    /// What the last command on a terminal has printed.
    fn printed(&self) -> String {
        std::fs::read_to_string(self.printed.path()).unwrap()
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// What is left on the terminal after the last thing that was wiped away.
fn left(shown: &str) -> &str {
    shown.rsplit_once(WIPE).map_or(shown, |(_, left)| left)
}

#[test]
fn progress_is_drawn_on_a_terminal_and_wiped_away_and_nowhere_else() {
    let scene = Scene::new();
    for (arguments, drawn) in [
        (&["audit"][..], &["operations of the processor", "] 0/", "unbalanced_entries"][..]),
        (&["reconcile", "--void-orphans-after-s", "never"], &["operations of the processor", "comparing"]),
        (&["migrate"], &["\u{1b}["]),
    ] {
        let plain = scene.plain(arguments);
        assert!(plain.status.success() && plain.stderr.is_empty(), "{arguments:?} {plain:?}");
        let shown = scene.on_terminal(arguments).output().unwrap();
        let status = shown.status;
        let shown = text(shown.stdout);
        assert!(status.success(), "{arguments:?} {shown}");
        assert_eq!(scene.printed(), text(plain.stdout), "{arguments:?}");
        for part in drawn {
            assert!(shown.contains(part), "{arguments:?} {part}: {shown:?}");
        }
        assert!(shown.is_ascii(), "also on a terminal that can show nothing else: {shown:?}");
        assert_eq!(left(&shown), "", "{arguments:?} {shown:?}");
    }
    for arguments in [&["audit", "--json"][..], &["reconcile", "--json", "--void-orphans-after-s", "never"]] {
        let shown = scene.on_terminal(arguments).output().unwrap();
        assert_eq!((text(shown.stdout).as_str(), shown.status.code()), ("", Some(0)), "{arguments:?}");
        assert_eq!(scene.printed(), text(scene.plain(arguments).stdout), "{arguments:?}");
    }
}

/// A migration is run again, which fails; before, it waits for somebody, of which the log tells.
#[test]
fn lines_of_the_log_and_errors_stay_on_the_terminal_whole() {
    let scene = Scene::new();
    let mut owner = scene.database.as_superuser();
    execute(&mut owner, "DELETE FROM __diesel_schema_migrations WHERE version = '20261128000039'");
    let mut holder = scene.database.as_owner();
    execute(&mut holder, "BEGIN");
    execute(&mut holder, "LOCK TABLE charges IN ACCESS SHARE MODE");
    let shown = Running::start(scene.on_terminal(&["migrate"]));
    let warning = shown.line();
    let (drawn, warning) = warning.rsplit_once(WIPE).expect(&warning);
    assert!(drawn.contains("] 0/1 "), "{drawn:?}");
    assert!(
        warning.starts_with('[') && warning.contains("waits for other transactions: pid "),
        "{warning:?}"
    );
    execute(&mut holder, "ROLLBACK");
    let (status, lines, _) = shown.end();
    assert_eq!(status.code(), Some(3), "{lines:?}");
    let error = lines.iter().find(|line| left(line).starts_with("error: ")).expect("an error");
    assert!(left(error).starts_with("error: A migration failed and was rolled back: "), "{lines:?}");
}
