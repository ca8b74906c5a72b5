//! Settings as they are when nobody sets any. A default stands once, where the command line declares it, and whoever
//! makes settings in code takes it from there.

use std::ffi::OsString;

use clap::{Args, Command};

/// `T` as the command line gives it without flags, whatever the environment holds.
///
/// # Panics
///
/// If a setting of `T` has no default and isn't optional: [`defaults_with`] takes those.
pub fn defaults<T: Args>() -> T {
    defaults_with([] as [OsString; 0])
}

/// The same with a few flags, for settings that have no default.
///
/// # Panics
///
/// If the command line wouldn't take these flags alone.
pub fn defaults_with<T: Args>(flags: impl IntoIterator<Item: Into<OsString> + Clone>) -> T {
    T::augment_args(Command::new("defaults").no_binary_name(true))
        // What a developer's shell or a container sets is for the program, not for its defaults.
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
