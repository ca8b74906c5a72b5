//! The shape of `src/`: its imports, and other claims of the map in `src/lib.rs` that the sources can
//! confirm.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders and files of `src/`, from the ground up. Each may import those on earlier lines, and none on
/// its own line.
const FLOORS: &[&[&str]] = &[
    &["base"],
    &["error"],
    &["storage"],
    &["web"],
    &["processor"],
    &["events"],
    &["idempotency"],
    &["host"],
    &["ledger"],
    &["payments"],
    &["tenants"],
    &["webhooks"],
    &["inbound"],
    &["audit", "idempotency_api"],
    &["config"],
    &["console"],
    &["server"],
    &["simulator"],
    &["dev"],
    &["commands"],
];

/// All that the engine may import. With these, the engine can be moved into a crate of its own.
const ENGINE_IMPORTS: &[&str] = &[
    "base::faults",
    "base::ids",
    "base::json",
    "base::metrics",
    "base::paths",
    "base::preconditions",
    "base::quantities",
    "base::scope",
    "base::spans",
    "base::time",
    "base::trace",
    "error::failure",
    "storage::admission",
    "storage::db",
    "storage::batch",
    "storage::clock",
    "storage::deadline",
    "storage::party",
    "storage::shape",
    "storage::sql",
];

/// All that the simulator may import, so that no bug can make both sides of a payment wrong in the same way.
const SIMULATOR_IMPORTS: &[&str] = &["base", "error", "storage", "web::listener"];

/// The files in which transactions begin, except those of tests and of `dev`.
const TRANSACTIONS: &[&str] = &[
    // Requests.
    "idempotency/engine/external.rs",
    "idempotency/engine/outcome.rs",
    // Workers, an event or a batch at a time.
    "inbound/reconcile.rs",
    "inbound/worker.rs",
    "webhooks/delivery.rs",
    // Reads on one snapshot, or with another plan.
    "audit/mod.rs",
    "idempotency_api/key_list.rs",
    "inbound/api.rs",
    // Operators at a shell.
    "commands/keys.rs",
    "commands/policies.rs",
    "commands/reconcile.rs",
    // Changes of the schema.
    "storage/distribution/migrations.rs",
    "storage/distribution/mod.rs",
];

struct Source {
    /// Path below `src/`.
    path: String,
    /// Path as a module, such as `["payments", "charges", "create"]`.
    module: Vec<String>,
    /// Code without comments and tests.
    code: String,
}

/// The Rust files under a folder, in the order of their paths.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    fn visit(folder: &Path, paths: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, paths);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    visit(folder, &mut paths);
    paths.sort();
    paths
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    rust_files(&root)
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(&root).unwrap().with_extension("");
            let mut module: Vec<_> = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            let path = format!("{}.rs", module.join("/"));
            if module.last().is_some_and(|last| last == "mod") {
                module.pop();
            }
            Source { path, module, code: code_of(&text) }
        })
        .collect()
}

/// Returns a source without its comments and its unit tests.
fn code_of(text: &str) -> String {
    let tests = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    let lines = text[..tests].lines().map(|line| match line.find("//") {
        // A URL in a string isn't a comment.
        Some(at) if !line[..at].ends_with(':') => &line[..at],
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Collects the paths that a `use` tree names, such as `a::{b, c::d}`.
fn expand(prefix: &[String], tree: &str, found: &mut Vec<Vec<String>>) {
    let (mut depth, mut start) = (0, 0);
    let with_end = format!("{tree},");
    for (at, letter) in with_end.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let piece = with_end[start..at].trim();
                start = at + 1;
                let steps = |text: &str| -> Vec<String> {
                    text.split("::")
                        .map(str::trim)
                        .filter(|step| !step.is_empty())
                        .map(str::to_owned)
                        .collect()
                };
                match piece.split_once('{') {
                    Some((head, rest)) => {
                        let prefix = [prefix, &steps(head)].concat();
                        expand(&prefix, rest.rsplit_once('}').map_or("", |(inner, _)| inner), found);
                    }
                    None if !piece.is_empty() => {
                        let path = piece.split(" as ").next().unwrap_or_default();
                        found.push([prefix, &steps(path)].concat());
                    }
                    None => {}
                }
            }
            _ => {}
        }
    }
}

/// Returns the names of this crate that a source uses, as absolute paths.
fn names(source: &Source) -> BTreeSet<Vec<String>> {
    let mut found = Vec::new();
    for statement in source.code.split("use ").skip(1) {
        if let Some((tree, _)) = statement.split_once(';') {
            expand(&[], tree, &mut found);
        }
    }
    for rest in source.code.split("crate::").skip(1) {
        let path: String =
            rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':')).collect();
        let path = format!("crate::{path}");
        found.push(path.split("::").filter(|step| !step.is_empty()).map(str::to_owned).collect());
    }
    let is_face = source.path.ends_with("mod.rs");
    found
        .into_iter()
        .filter_map(|path| {
            let supers = path.iter().take_while(|step| *step == "super").count();
            let base: &[String] = match path.first()?.as_str() {
                "crate" => return Some(path[1..].to_vec()),
                "self" => return Some([&source.module[..], &path[1..]].concat()),
                "super" => &source.module[..source.module.len() - supers],
                // The path starts with a module that is declared in this file.
                _ if is_face => return Some([&source.module[..], &path[..]].concat()),
                _ => return None,
            };
            Some([base, &path[supers..]].concat())
        })
        .collect()
}

/// Returns, for each of `sources`, the files that it imports.
fn arrows(sources: &[Source]) -> Vec<BTreeSet<usize>> {
    let by_module: BTreeMap<&[String], usize> =
        sources.iter().enumerate().map(|(number, source)| (&source.module[..], number)).collect();
    sources
        .iter()
        .map(|source| {
            let targets = names(source).into_iter().filter_map(|name| {
                (1..=name.len()).rev().find_map(|length| by_module.get(&name[..length]).copied())
            });
            targets.filter(|target| sources[*target].module != source.module).collect()
        })
        .collect()
}

fn floor_of(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

/// Lists the imports from a folder to one that isn't below it.
fn upward(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (source, targets) in sources.iter().zip(arrows(sources)) {
        let Some(from) =
            source.module.first().filter(|_| source.path != "main.rs" && source.path != "lib.rs")
        else {
            continue;
        };
        let Some(floor) = floor_of(from) else {
            found.push(format!("{} stands on no floor: add {from} to FLOORS and to src/lib.rs", source.path));
            continue;
        };
        for target in targets {
            let to = &sources[target].module[0];
            if to != from && floor_of(to).is_none_or(|other| other >= floor) {
                found.push(format!("{} imports {}, which isn't below it", source.path, sources[target].path));
            }
        }
    }
    found
}

/// Finds files that import each other in a circle, and returns the way round. Imports between a folder's
/// `mod.rs` and the folder's own files make no circle.
fn circle(sources: &[Source]) -> Option<String> {
    let arrows = arrows(sources);
    let is_own_face = |from: usize, to: usize| {
        let (a, b) = (&sources[from].module, &sources[to].module);
        a.starts_with(b) || b.starts_with(a)
    };
    fn walk(
        at: usize,
        arrows: &[BTreeSet<usize>],
        is_own_face: &dyn Fn(usize, usize) -> bool,
        done: &mut BTreeSet<usize>,
        way: &mut Vec<usize>,
    ) -> bool {
        if let Some(first) = way.iter().position(|seen| *seen == at) {
            way.drain(..first);
            return true;
        }
        if done.contains(&at) {
            return false;
        }
        way.push(at);
        for &next in arrows[at].iter().filter(|next| !is_own_face(at, **next)) {
            if walk(next, arrows, is_own_face, done, way) {
                return true;
            }
        }
        way.pop();
        done.insert(at);
        false
    }
    let (mut done, mut way) = (BTreeSet::new(), Vec::new());
    let found = (0..sources.len()).any(|start| walk(start, &arrows, &is_own_face, &mut done, &mut way));
    let files: Vec<_> = way.iter().map(|number| sources[*number].path.as_str()).collect();
    found.then(|| files.join(" → "))
}

/// Lists the imports from elsewhere by files under `folder`, except those in `allowed`.
fn beyond(sources: &[Source], folder: &str, allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.module.first().is_some_and(|name| name == folder)) {
        for name in names(source).into_iter().filter(|name| name.first().is_some_and(|name| name != folder)) {
            let name = name.join("::");
            let is_allowed = allowed.iter().any(|allowed| {
                name == *allowed || name.strip_prefix(allowed).is_some_and(|rest| rest.starts_with("::"))
            });
            // Names of other crates look the same, unless they are folders of ours.
            if !is_allowed && floor_of(name.split("::").next().unwrap_or_default()).is_some() {
                found.push(format!("{} imports {name}", source.path));
            }
        }
    }
    found
}

fn source(path: &str, code: &str) -> Source {
    let module = path.trim_end_matches(".rs").split('/').filter(|part| *part != "mod");
    Source { path: path.to_owned(), module: module.map(str::to_owned).collect(), code: code_of(code) }
}

#[test]
fn imports_go_one_way() {
    let sources = sources();
    assert_eq!(upward(&sources), Vec::<String>::new());
    assert_eq!(circle(&sources), None);
}

#[test]
fn an_import_that_goes_up_or_round_is_noticed() {
    let up =
        [source("base/ids.rs", "use crate::error::Error;"), source("error/mod.rs", "use crate::base::ids;")];
    assert_eq!(upward(&up), ["base/ids.rs imports error/mod.rs, which isn't below it"]);
    let sideways =
        [source("web/auth.rs", "fn f() { crate::processor::call() }"), source("processor/mod.rs", "")];
    assert_eq!(upward(&sideways), ["web/auth.rs imports processor/mod.rs, which isn't below it"]);
    assert_eq!(upward(&[source("cellar/mod.rs", "")]).len(), 1, "a folder that the list doesn't have");
    let round = [
        source("base/a.rs", "use super::b::{self, B};"),
        source("base/b.rs", "use crate::base::{c, time::now};"),
        source("base/c.rs", "use super::a;"),
    ];
    assert_eq!(circle(&round).as_deref(), Some("base/a.rs → base/b.rs → base/c.rs"));
    assert_eq!(circle(&round[..2]), None);
}

#[test]
fn the_engine_can_be_lifted_out() {
    assert_eq!(beyond(&sources(), "idempotency", ENGINE_IMPORTS), Vec::<String>::new());
    let planted = [source("idempotency/engine/mod.rs", "use crate::{base::ids, web::auth};")];
    assert_eq!(
        beyond(&planted, "idempotency", ENGINE_IMPORTS),
        ["idempotency/engine/mod.rs imports web::auth"]
    );
}

#[test]
fn the_simulator_shares_nothing_that_could_be_wrong_on_both_sides() {
    assert_eq!(beyond(&sources(), "simulator", SIMULATOR_IMPORTS), Vec::<String>::new());
}

/// Lists the files under `prefix` whose code contains `text`.
fn files_with<'a>(sources: &'a [Source], prefix: &str, text: &str) -> Vec<&'a str> {
    let found = sources.iter().filter(|source| source.path.starts_with(prefix) && source.code.contains(text));
    found.map(|source| source.path.as_str()).collect()
}

#[test]
fn http_stays_at_the_edge_of_engine_and_errors() {
    let sources = sources();
    assert_eq!(files_with(&sources, "idempotency/", "actix"), ["idempotency/extract.rs"]);
    assert_eq!(files_with(&sources, "error/", "actix"), ["error/problem.rs"]);
}

#[test]
fn the_ledger_knows_nothing_of_what_is_posted_to_it() {
    let sources = sources();
    for table in ["charges", "refunds", "payouts", "disputes"] {
        assert_eq!(files_with(&sources, "ledger/", &format!("FROM {table}")), Vec::<&str>::new());
    }
}

#[test]
fn transactions_begin_where_the_map_says() {
    let sources = sources();
    let mut found: Vec<_> = [".transaction(", ".transaction::<", ".build_transaction("]
        .into_iter()
        .flat_map(|text| files_with(&sources, "", text))
        .filter(|path| !path.starts_with("dev/") && !path.starts_with("simulator/"))
        .collect();
    found.sort_unstable();
    found.dedup();
    let mut known = TRANSACTIONS.to_vec();
    known.sort_unstable();
    assert_eq!(found, known);
}

#[test]
fn the_map_lists_the_floors() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let rows = map.lines().filter_map(|line| line.strip_prefix("//! | [`")?.split_once("| "));
    let listed: Vec<Vec<&str>> = rows
        .map(|(names, _)| {
            names.split(['`', '[', ']', ',', ' ']).filter(|name| !name.is_empty() && *name != "|").collect()
        })
        .collect();
    assert_eq!(listed, FLOORS.iter().map(|floor| floor.to_vec()).collect::<Vec<_>>());
}

#[test]
fn the_tests_that_the_threat_model_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code: Vec<(String, String)> = ["src", "tests"]
        .iter()
        .flat_map(|folder| rust_files(&root.join(folder)))
        .map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap()))
        .collect();
    let text = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains("::"));
    let named: Vec<&str> =
        rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|name| name.contains("::")).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        // The last part is a function, or empty for all of a module's tests.
        let (modules, function) = name.rsplit_once("::").unwrap();
        let module =
            modules.split("::").find(|module| !matches!(*module, "api" | "tests" | "properties")).unwrap();
        let is_there = |(path, code): &(String, String)| {
            (path.contains(&format!("/{module}.rs")) || path.contains(&format!("/{module}/")))
                && (function.is_empty() || code.contains(&format!("fn {function}(")))
        };
        assert!(code.iter().any(is_there), "SECURITY.md names {name}");
    }
}
