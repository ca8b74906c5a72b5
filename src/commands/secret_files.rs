//! Secrets in files.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Text in the help of each command that takes a secret.
const SECRET_FILES_HELP: &str = "A secret can also be in a file. Name the file in the variable with _FILE: \
                                 DATABASE_URL_FILE=/run/secrets/database_url";

/// Reads the secrets of `command` and its subcommands from files, as containers provide them: if
/// `DATABASE_URL_FILE` is set, the content of that file counts as `DATABASE_URL`. Secrets are the settings
/// whose values the help hides. Line breaks at the end of a file don't belong to the secret.
///
/// Files are safer than variables, which child processes inherit and container tools show. So the secret
/// doesn't become a variable here either. A flag takes precedence over a file.
///
/// Errors are sentences: both variables are set, the file can't be read or isn't UTF-8, or it's empty.
pub fn with_secret_files(
    command: clap::Command,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<clap::Command, String> {
    // Several commands take the same secret, and its file may be a pipe: each file is read once.
    let mut secrets = BTreeMap::new();
    read_secret_files(&command, &variable, &mut secrets)?;
    Ok(with_secrets(command, &secrets))
}

fn read_secret_files(
    command: &clap::Command,
    variable: &impl Fn(&str) -> Option<OsString>,
    secrets: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for name in command.get_arguments().filter_map(secret_variable) {
        let name_of_file = format!("{name}_FILE");
        let Some(file) = variable(&name_of_file).filter(|file| !file.is_empty()) else { continue };
        if secrets.contains_key(&name) {
            continue;
        }
        if variable(&name).is_some() {
            return Err(format!("{name} and {name_of_file} are both set. Unset one of them."));
        }
        let file = PathBuf::from(file);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            format!("Can't read {}, which {name_of_file} names: {error}.", file.display())
        })?;
        let secret = text.trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(format!("{}, which {name_of_file} names, is empty.", file.display()));
        }
        secrets.insert(name, secret.to_owned());
    }
    command.get_subcommands().try_for_each(|command| read_secret_files(command, variable, secrets))
}

fn with_secrets(command: clap::Command, secrets: &BTreeMap<String, String>) -> clap::Command {
    let takes_any = command.get_arguments().any(|arg| secret_variable(arg).is_some());
    let command = if takes_any { also_help(command, SECRET_FILES_HELP) } else { command };
    command
        .mut_args(|arg| match secret_variable(&arg).and_then(|name| secrets.get(&name)) {
            Some(secret) => arg.required(false).default_value(secret.clone()).hide_default_value(true),
            None => arg,
        })
        .mut_subcommands(|command| with_secrets(command, secrets))
}

/// Appends to the end of the help.
pub(super) fn also_help(command: clap::Command, help: &str) -> clap::Command {
    let help = match command.get_after_help() {
        Some(before) => format!("{before}\n\n{help}"),
        None => help.to_owned(),
    };
    command.after_help(help)
}

/// The variable of a secret setting.
fn secret_variable(arg: &clap::Arg) -> Option<String> {
    let name = arg.get_env().filter(|_| arg.is_hide_env_values_set())?;
    name.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};
    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::Config;

    /// Reads the settings of `oncepay serve` with these variables and flags.
    fn read(variables: &[(&str, &str)], flags: &[&str]) -> Result<Config, String> {
        let command =
            clap::Command::new("oncepay").subcommand(Config::augment_args(clap::Command::new("serve")));
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        let arguments = [&["oncepay", "serve"], flags].concat();
        let matches = with_secret_files(command, variable)?
            .try_get_matches_from(arguments)
            .map_err(|error| error.to_string())?;
        Config::from_arg_matches(matches.subcommand().expect("serve was asked for").1)
            .map_err(|error| error.to_string())
    }

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a folder for temporary files");
        std::fs::write(&file, content).expect("it was just made");
        file
    }

    fn path(file: &tempfile::NamedTempFile) -> &str {
        file.path().to_str().expect("temporary names are ASCII")
    }

    #[test]
    fn secrets_are_read_from_files() {
        let (url, key) = (file(b"postgres://h/d?a=b,c\n"), file(b" two words, kept as they are \r\n\n"));
        let files = [("DATABASE_URL_FILE", path(&url)), ("ONCEPAY_MASTER_KEY_FILE", path(&key))];
        let config = read(&files, &[]).expect("it has all it needs");
        assert_eq!(config.database_url.expose_secret(), "postgres://h/d?a=b,c");
        assert_eq!(config.master_key.expose_secret(), " two words, kept as they are ");
        let config = read(&files, &["--master-key", "flag"]).expect("a flag goes before a file");
        assert_eq!(config.master_key.expose_secret(), "flag");
    }

    #[test]
    fn a_file_that_can_not_be_what_was_meant_is_refused() {
        let good = file(b"postgres://h/d");
        let (good, empty, binary) = (path(&good), file(b"\n"), file(b"\xff"));
        for (variables, complaint) in [
            (
                &[("DATABASE_URL_FILE", "/nowhere/at/all")][..],
                "Can't read /nowhere/at/all, which DATABASE_URL_FILE",
            ),
            (&[("DATABASE_URL_FILE", path(&binary))], "UTF-8"),
            (&[("DATABASE_URL_FILE", path(&empty))], "which DATABASE_URL_FILE names, is empty"),
            (&[("DATABASE_URL_FILE", good), ("DATABASE_URL", "")], "are both set"),
            (&[("DATABASE_URL_FILE", good)], "--master-key"),
            // Not a secret, so there's nothing to hide in a file.
            (&[("DATABASE_URL_FILE", good), ("ONCEPAY_LISTEN_FILE", good)], "--master-key"),
        ] {
            let error = read(variables, &[]).expect_err(complaint);
            assert!(error.contains(complaint), "{variables:?}: {error}");
        }
    }

    #[test]
    fn secrets_from_files_do_not_show_in_the_help() {
        let secret = file(b"hidden");
        let help =
            read(&[("DATABASE_URL_FILE", path(&secret))], &["--help"]).expect_err("help isn't a config");
        assert!(!help.contains("hidden") && help.contains(SECRET_FILES_HELP), "{help}");
    }
}
