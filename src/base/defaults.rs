//! Default settings. The command line declares each default once, and code that makes settings takes it from
//! there.

use std::ffi::OsString;

use clap::{Args, Command};

/// Makes a `T` as the command line does without flags, whatever the environment holds.
///
/// # Panics
///
/// If a setting of `T` has no default and isn't optional: use [`defaults_with`] for those.
pub fn defaults<T: Args>() -> T {
    defaults_with([] as [OsString; 0])
}

/// Makes a `T` with a few flags, for settings that have no default.
///
/// # Panics
///
/// If the command line would refuse these flags alone.
pub fn defaults_with<T: Args>(flags: impl IntoIterator<Item: Into<OsString> + Clone>) -> T {
    T::augment_args(Command::new("defaults").no_binary_name(true))
        // Variables of a developer's shell or a container are for the program, not for its defaults.
        .mut_args(|arg| arg.env(None::<&str>))
        .try_get_matches_from(flags)
        .and_then(|matches| T::from_arg_matches(&matches))
        .unwrap_or_else(|error| panic!("settings without a default are missing: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Args)]
    struct Settings {
        #[arg(long, env = "PATH", default_value = "by default")]
        path: String,
        #[arg(long)]
        needed: Option<u8>,
    }

    #[test]
    fn a_variable_of_the_environment_is_no_default() {
        assert!(std::env::var_os("PATH").is_some(), "the test needs a variable that is set");
        let Settings { path, needed } = defaults();
        assert_eq!((path.as_str(), needed), ("by default", None));
        assert_eq!(defaults_with::<Settings>(["--needed=3"]).needed, Some(3));
    }
}
