//! Old names of settings.
//!
//! A deployment goes on working when a setting is renamed: the old variable counts as long as the new one
//! isn't set, and so does the file that its `…_FILE` variant names. Old flags are aliases, where the flags
//! are declared.

use std::ffi::OsString;

use super::secret_files::also_help;

/// New and old names of variables.
const RENAMED: &[(&str, &str)] = &[
    ("ONCEPAY_PROCESSOR_URL", "ONCEPAY_ACQUIRER_URL"),
    ("ONCEPAY_PROCESSOR_API_KEY", "ONCEPAY_ACQUIRER_API_KEY"),
    ("ONCEPAY_PROCESSOR_CONNECT_TIMEOUT_MS", "ONCEPAY_ACQUIRER_CONNECT_TIMEOUT_MS"),
    ("ONCEPAY_PROCESSOR_REQUEST_TIMEOUT_MS", "ONCEPAY_ACQUIRER_REQUEST_TIMEOUT_MS"),
    ("ONCEPAY_PROCESSOR_PROBE_INTERVAL_MS", "ONCEPAY_ACQUIRER_PROBE_INTERVAL_MS"),
    ("ONCEPAY_PROCESSOR_EVENT_INTERVAL_MS", "ONCEPAY_ACQUIRER_EVENT_INTERVAL_MS"),
    ("ONCEPAY_PROCESSOR_EVENT_OVERDUE_AFTER_S", "ONCEPAY_ACQUIRER_EVENT_OVERDUE_AFTER_S"),
    ("ONCEPAY_PROCESSOR_EVENT_RETENTION_DAYS", "ONCEPAY_ACQUIRER_EVENT_RETENTION_DAYS"),
    ("ONCEPAY_READY_WITHOUT_PROCESSOR", "ONCEPAY_READY_WITHOUT_ACQUIRER"),
    ("ONCEPAY_SANDBOX_CALL_LOG", "ONCEPAY_SANDBOX_JOURNAL"),
    ("ONCEPAY_SIMULATOR_DATABASE_URL", "ONCEPAY_ACQUIRER_DATABASE_URL"),
    ("ONCEPAY_SIMULATOR_API_KEY", "ONCEPAY_ACQUIRER_API_KEY"),
    ("ONCEPAY_SIMULATOR_LISTEN", "ONCEPAY_ACQUIRER_LISTEN"),
    ("ONCEPAY_SIMULATOR_CONTROL_URL", "ONCEPAY_ACQUIRER_CONTROL_URL"),
];

/// Note for the help of each command that has such a setting.
pub const HELP: &str = "Settings that were named ONCEPAY_ACQUIRER_… and --acquirer-… before, and ONCEPAY_READY_WITHOUT_ACQUIRER and \
                        ONCEPAY_SANDBOX_JOURNAL, are still read under those names";

/// Returns the old name of the variable `name`, if it had another one.
pub fn old_name(name: &str) -> Option<&'static str> {
    RENAMED.iter().find(|(new, _)| *new == name).map(|(_, old)| *old)
}

/// Makes `command` and its subcommands read each setting from its old variable if the new one isn't set.
pub fn with_old_names(command: clap::Command, variable: &impl Fn(&str) -> Option<OsString>) -> clap::Command {
    let is_set = |name: &str| variable(name).is_some() || variable(&format!("{name}_FILE")).is_some();
    let old_of = |arg: &clap::Arg| arg.get_env().and_then(|name| old_name(name.to_str()?));
    let has_any = command.get_arguments().any(|arg| old_of(arg).is_some());
    let command = if has_any { also_help(command, HELP) } else { command };
    command
        .mut_args(|arg| {
            let is_new_set = arg.get_env().and_then(|name| name.to_str()).is_some_and(is_set);
            match old_of(&arg) {
                Some(old) if !is_new_set && is_set(old) => arg.env(old),
                _ => arg,
            }
        })
        .mut_subcommands(|command| with_old_names(command, variable))
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;
    use crate::config::Config;

    /// Returns the variables from which `oncepay serve` reads its settings if `set` are set.
    fn variables(set: &[&str]) -> Vec<String> {
        let variable = |name: &str| set.contains(&name).then(|| OsString::from("x"));
        let command = with_old_names(Config::augment_args(clap::Command::new("serve")), &variable);
        let names = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned));
        names.collect()
    }

    #[test]
    fn an_old_variable_counts_where_the_new_one_is_not_set() {
        for (set, expected) in [
            (&[][..], "ONCEPAY_PROCESSOR_URL"),
            (&["ONCEPAY_ACQUIRER_URL"], "ONCEPAY_ACQUIRER_URL"),
            (&["ONCEPAY_ACQUIRER_URL_FILE"], "ONCEPAY_ACQUIRER_URL"),
            (&["ONCEPAY_ACQUIRER_URL", "ONCEPAY_PROCESSOR_URL"], "ONCEPAY_PROCESSOR_URL"),
        ] {
            assert!(variables(set).iter().any(|name| name == expected), "{expected} with {set:?}");
        }
    }

    #[test]
    fn every_new_name_is_a_setting_and_every_old_flag_an_alias() {
        let all = variables(&[]);
        for (new, _) in RENAMED.iter().filter(|(new, _)| !new.starts_with("ONCEPAY_SIMULATOR_")) {
            assert!(all.iter().any(|name| name == new), "{new}");
        }
        let flags = [
            "--database-url=postgres://h/d",
            "--master-key=mmmmmmmmmmmmmmmmmmmmmmmmmmmmmmmm",
            "--acquirer-url=http://h:1",
            "--acquirer-api-key=k",
            "--acquirer-probe-interval-ms=77",
            "--acquirer-event-interval-ms=88",
            "--ready-without-acquirer",
        ];
        let command = Config::augment_args(clap::Command::new("serve").no_binary_name(true));
        let matches = command.try_get_matches_from(flags).expect("old flags are taken");
        let config = Config::from_arg_matches(&matches).expect("they are all it takes");
        assert_eq!(config.processor.probe_interval_ms, 77);
        assert_eq!(config.processor_events.processor_event_interval_ms, 88);
        assert!(config.ready_without_processor && config.processor.url.is_some());
    }
}
