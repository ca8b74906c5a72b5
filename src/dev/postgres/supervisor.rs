//! The shells that let nothing of a server outlive this process.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::cleanup::{Cleanup, Step};
use super::os_user::{OsUser, command};

pub(super) const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs a command until it ends by itself or standard input closes, which means that our process is gone or
/// wants it to stop. Notes for readers of shell:
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

/// Waits until standard input closes, then removes the trees before `--`, and the folders after it if they
/// are empty.
const CLEAN_UP: &str = r#"
cat >/dev/null
while [ "$1" != -- ]; do
    rm -rf "$1" || { sleep 1; rm -rf "$1"; }
    shift
done
shift
rmdir "$@" 2>/dev/null
"#;

/// A shell that acts when its standard input closes: when this is dropped or our process ends.
pub(super) struct Supervisor {
    pub(super) child: Child,
    /// Not left in the child, because waiting for the child would close it.
    pipe: Option<ChildStdin>,
}

impl Supervisor {
    /// Runs a program under [`SUPERVISE`], and stops it.
    pub(super) fn supervise(
        program: &Path,
        args: &[OsString],
        account: Option<&OsUser>,
        janitor: Option<&Self>,
        output: fs::File,
    ) -> io::Result<Self> {
        // Its standard output is also our end of the janitor's pipe.
        let stdout = match janitor.and_then(|janitor| janitor.pipe.as_ref()) {
            Some(pipe) => pipe.as_fd().try_clone_to_owned()?.into(),
            None => Stdio::null(),
        };
        let mut shell = command("/bin/sh", account);
        shell.args(["-c", SUPERVISE, "oncepay-postgres"]).arg(program).args(args);
        Self::spawn(shell.stdout(stdout).stderr(output))
    }

    /// Removes a throw-away cluster when we and the server are gone. The shell that supervises the server
    /// can't do this: it runs as the server's user, who can't remove the folder.
    pub(super) fn janitor(made: &Cleanup) -> io::Result<Self> {
        let (mut trees, mut folders) = (Vec::new(), Vec::new());
        for step in made.0.iter().rev() {
            match step {
                Step::Tree(path) => trees.push(path),
                Step::Folder(path) => folders.push(path),
                Step::Mode(..) => {}
            }
        }
        let mut shell = command("/bin/sh", None);
        shell.args(["-c", CLEAN_UP, "oncepay-janitor"]).args(trees).arg("--").args(folders);
        Self::spawn(shell.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).spawn()?;
        let pipe = child.stdin.take();
        Ok(Self { child, pipe })
    }

    /// Stops the program. Returns whether it has ended.
    pub(super) fn stop(&mut self, timeout: Duration) -> bool {
        drop(self.pipe.take());
        let deadline = Instant::now() + timeout;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop(KILL_TIMEOUT);
    }
}
