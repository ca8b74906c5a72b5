//! `oncepay completions`: scripts that complete commands and options in shells.

use std::io::Write;

use clap_complete::Shell;

use super::exit::Stop;

/// Options of the `completions` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Shell for which the script is
    shell: Shell,
}

/// Runs `oncepay completions` for `program`.
pub fn run(options: &Options, program: &mut clap::Command, out: &mut impl Write) -> Result<(), Stop> {
    let mut script = Vec::new();
    let name = program.get_name().to_owned();
    clap_complete::generate(options.shell, program, name, &mut script);
    // A reader that has closed it isn't an error.
    let _ = out.write_all(&script);
    Ok(())
}
