//! The program: see [`oncepay::commands`].
#![expect(clippy::print_stderr, reason = "what a command writes is its result")]

use std::process::ExitCode;

fn main() -> ExitCode {
    match oncepay::commands::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            eprintln!("error: {stop}");
            stop.code()
        }
    }
}
