//! `oncepay settings`: the reference of all settings, made from the options that the commands declare.
//! `ops/SETTINGS.md` is what it prints; a test compares them.

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Arg, Command};
use serde::Serialize;

use super::exit::Stop;
use super::old_names::old_name;
use super::shared::{ListForm, write_item, write_line};

/// The command that runs the service. Its settings come first.
const SERVICE: &str = "serve";

/// Options of the `settings` command.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    form: ListForm,
}

/// A setting as JSON.
#[derive(Serialize)]
struct Setting {
    variable: String,
    flag: Option<String>,
    commands: Vec<String>,
    is_required: bool,
    is_secret: bool,
    default: Option<String>,
    meaning: String,
}

/// Prints the settings of `program`: their reference, as Markdown, or a setting a line.
pub fn run(options: &Options, program: &Command, out: &mut impl Write) -> Result<(), Stop> {
    if !options.form.json {
        write_line(out, reference(program).trim_end());
        return Ok(());
    }
    let mut all = BTreeMap::<(String, String), Setting>::new();
    for (path, command) in commands(program, "") {
        for (variable, arg) in settings(command) {
            let setting = all.entry((variable.clone(), help(arg))).or_insert_with(|| Setting {
                flag: arg.get_long().map(|long| format!("--{long}")),
                commands: Vec::new(),
                is_required: arg.is_required_set(),
                is_secret: arg.is_hide_env_values_set(),
                default: default_value(arg),
                meaning: help(arg),
                variable,
            });
            setting.commands.push(path.clone());
        }
    }
    Ok(all.values().try_for_each(|setting| write_item(out, setting))?)
}

fn reference(program: &Command) -> String {
    let name = program.get_name();
    let mut text = format!(
        "# Settings\n\n\
         Made by `{name} settings`, from the options that the commands declare.\n\n\
         Each setting is a variable of the environment or a flag; a flag takes precedence. A *secret* can also be in a file: \
         name the file in the variable with `_FILE` (`DATABASE_URL_FILE=/run/secrets/database_url`). A changed setting takes \
         effect with the next start; idempotency policies are in the database and change while the service runs. A value that \
         isn't allowed, or doesn't fit to the others, keeps the command from starting, and it says why.\n\n\
         `RUST_LOG` sets the level of the log, for all commands: `error`, `warn` (default), `info` or `debug`.\n\n\
         ## The service\n\nSettings of `{name} {SERVICE}`. All instances of a service should have the same, except for where \
         they listen.\n\n"
    );
    let rows = program.find_subcommand(SERVICE).into_iter().flat_map(settings);
    text += "| variable | flag | default | meaning |\n|---|---|---|---|\n";
    let mut known = Vec::new();
    for (variable, arg) in rows {
        text +=
            &format!("| `{variable}` | {} | {} | {} |\n", flag(arg), default(arg), meaning(&variable, arg));
        known.push((variable, help(arg)));
    }
    // The same option of several commands is one row, and what the service has isn't told again.
    let all = commands(program, "");
    let mut others = BTreeMap::<(String, String), (&Arg, Vec<String>)>::new();
    for (path, command) in all.iter().filter(|(path, _)| path != SERVICE) {
        for (variable, arg) in settings(command) {
            let id = (variable, help(arg));
            if !known.contains(&id) {
                others.entry(id).or_insert((arg, Vec::new())).1.push(path.clone());
            }
        }
    }
    text += "\n## Other commands\n\nWhat they take besides settings of the service, such as `DATABASE_URL`. Options without a \
             variable are in each command's `--help`.\n\n\
             | variable | commands | default | meaning |\n|---|---|---|---|\n";
    for ((variable, _), (arg, paths)) in others {
        let paths: Vec<_> = paths.iter().map(|path| format!("`{path}`")).collect();
        text += &format!(
            "| `{variable}` | {} | {} | {} |\n",
            paths.join(", "),
            default(arg),
            meaning(&variable, arg)
        );
    }
    text
}

/// The command's subcommands at any depth, with their paths, such as `keys list`.
fn commands<'a>(command: &'a Command, path: &str) -> Vec<(String, &'a Command)> {
    let mut found = Vec::new();
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        let path = format!("{path} {}", below.get_name()).trim_start().to_owned();
        found.push((path.clone(), below));
        found.extend(commands(below, &path));
    }
    found
}

/// The options of a command that have a variable, in the order of their declaration.
fn settings(command: &Command) -> impl Iterator<Item = (String, &Arg)> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(|arg| Some((arg.get_env()?.to_str()?.to_owned(), arg)))
}

fn flag(arg: &Arg) -> String {
    arg.get_long().map(|long| format!("`--{long}`")).unwrap_or_default()
}

fn default(arg: &Arg) -> String {
    if arg.is_required_set() {
        return "required".to_owned();
    }
    default_value(arg).map_or_else(|| "–".to_owned(), |value| format!("`{value}`"))
}

fn default_value(arg: &Arg) -> Option<String> {
    if !arg.get_action().takes_values() {
        return Some("false".to_owned());
    }
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// What the option means, in one cell of a table.
fn meaning(variable: &str, arg: &Arg) -> String {
    let mut text = help(arg);
    if arg.get_action().takes_values() {
        for value in arg.get_possible_values() {
            let meaning = value.get_help().map(|help| format!(": {help}")).unwrap_or_default();
            text += &format!(" `{}`{meaning}.", value.get_name());
        }
    }
    if arg.is_hide_env_values_set() {
        text += " *Secret.*";
    }
    if let Some(old) = old_name(variable) {
        text += &format!(" Also read as `{old}`.");
    }
    text.replace('|', "\\|")
}

fn help(arg: &Arg) -> String {
    let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let sentence = help.split_whitespace().collect::<Vec<_>>().join(" ");
    if sentence.is_empty() || sentence.ends_with('.') { sentence } else { format!("{sentence}.") }
}
