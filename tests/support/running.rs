//! A command that goes on, and what it says meanwhile.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver as Lines, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// A command that goes on. Dropping it kills it.
pub struct Running {
    child: Child,
    printed: Lines<String>,
    complained: Lines<String>,
}

impl Running {
    pub fn start(command: Command) -> Self {
        let (mut running, stdout) = Self::start_unread(command);
        running.printed = lines(stdout);
        running
    }

    /// The same, where the test reads standard output itself, or doesn't.
    pub fn start_unread(mut command: Command) -> (Self, ChildStdout) {
        // A shell's background jobs ignore Ctrl-C, and so would what we start. Set here and not in the child: a `pre_exec` makes it a
        // fork, which holds all our sockets until it's done.
        // SAFETY: no handler is involved.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let complained = lines(child.stderr.take().unwrap());
        (Self { child, printed: mpsc::channel().1, complained }, stdout)
    }

    /// The next line on standard output.
    #[track_caller]
    pub fn line(&self) -> String {
        self.printed.recv_timeout(Duration::from_secs(20)).expect("a line")
    }

    /// The next line on standard error.
    #[track_caller]
    pub fn complaint(&self) -> String {
        self.complained.recv_timeout(Duration::from_secs(20)).expect("a line")
    }

    /// Waits for the end. Returns the lines of standard output that are left, then those of standard error.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        let rest = |lines: &Lines<String>| {
            let mut rest = Vec::new();
            loop {
                match lines.recv_timeout(Duration::from_secs(20)) {
                    Ok(line) => rest.push(line),
                    Err(RecvTimeoutError::Disconnected) => return rest,
                    Err(RecvTimeoutError::Timeout) => panic!("the command goes on, after {rest:?}"),
                }
            }
        };
        let (printed, complained) = (rest(&self.printed), rest(&self.complained));
        (self.child.wait().unwrap(), printed, complained)
    }

    /// Presses Ctrl-C, and waits for the end.
    #[track_caller]
    pub fn interrupt(self) -> (ExitStatus, Vec<String>, Vec<String>) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: it's our child and hasn't been waited for.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
        self.end()
    }
}

fn lines(from: impl Read + Send + 'static) -> Lines<String> {
    let (says, lines) = mpsc::channel();
    let from = BufReader::new(from);
    thread::spawn(move || from.lines().map_while(Result::ok).try_for_each(|line| says.send(line)));
    lines
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
