//! Holds the form rules of the sources: the import table, the places where certain things may stand, the length of files.
//!
//! `ARCHITECTURE.md` says why each rule is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What each module of `src/` may import: low to high, never upward.
const TABLE: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("env", &[]),
    ("telemetry", &[]),
    ("disk", &[]),
    ("topology", &["oci"]),
    ("db", &["oci", "disk"]),
    ("blob", &["oci", "topology", "env", "disk", "db"]),
    ("rpc", &["oci", "topology", "env", "disk"]),
    ("meta", &["oci", "topology", "disk", "rpc"]),
    ("auth", &["oci", "env"]),
    ("gossip", &["oci", "topology", "env", "rpc"]),
    ("transfer", &["oci", "topology", "env", "rpc", "blob"]),
    ("replica", &["oci", "topology", "env", "blob", "gossip", "transfer"]),
    ("registry", &["oci", "topology", "env", "blob", "meta", "auth", "replica"]),
    ("upkeep", &["oci", "topology", "env", "db", "blob", "meta", "gossip", "replica"]),
    ("api", &["oci", "topology", "env", "auth", "registry"]),
    ("ops", &["oci", "env", "topology", "rpc", "blob", "meta", "auth", "gossip", "upkeep", "telemetry"]),
    (
        "config",
        &[
            "auth",
            "blob",
            "gossip",
            "meta",
            "ops",
            "oci",
            "registry",
            "replica",
            "rpc",
            "telemetry",
            "topology",
            "upkeep",
        ],
    ),
    (
        "node",
        &[
            "oci",
            "env",
            "telemetry",
            "disk",
            "topology",
            "db",
            "blob",
            "rpc",
            "meta",
            "auth",
            "gossip",
            "transfer",
            "replica",
            "registry",
            "upkeep",
            "api",
            "ops",
            "config",
        ],
    ),
    ("cli", &["config", "env", "telemetry", "ops", "node", "disk"]),
    ("main", &["config", "env", "telemetry", "ops", "node", "cli"]),
    ("lib", &[]),
];

/// Inside `meta`, the state machine's files may see nothing that could differ between nodes.
const PURE_META: &[&str] = &[
    "command",
    "state",
    "tables",
    "apply",
    "query",
    "state_hash",
    "snapshot_codec",
    "check",
    "rows",
    "sorted_map",
    "plan",
    "reach",
    "recount",
];

/// Files longer than 500 lines; the list may only shrink.
const LONG_FILES: &[&str] = &[];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn name_of(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_string_lossy().into_owned()
}

/// The lines of a file that are code: no comments, and nothing from the first inline `mod tests` on.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().enumerate().map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn is_test_file(path: &Path) -> bool {
    let stem = path.file_stem().unwrap().to_string_lossy();
    stem == "tests" || stem.ends_with("_tests") || path.components().any(|part| part.as_os_str() == "tests")
}

fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The names that follow `crate::` in a line, with `use crate::{a, b}` taken apart.
fn imports(line: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        let list = rest.strip_prefix('{').unwrap_or(rest);
        let many = rest.starts_with('{');
        for part in list.split(',') {
            let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !name.is_empty() && name != "self" {
                names.push(name);
            }
            if !many {
                break;
            }
        }
    }
    names
}

fn offences(check: impl Fn(&Path, &str) -> Vec<String>) -> Vec<String> {
    rust_files(&root().join("src")).iter().flat_map(|path| check(path, &fs::read_to_string(path).unwrap())).collect()
}

fn lines_with(needle: &str, allowed: impl Fn(&str) -> bool) -> Vec<String> {
    offences(|path, text| {
        let name = name_of(path);
        if allowed(&name) || is_test_file(path) {
            return Vec::new();
        }
        code_lines(text)
            .filter(|(_, line)| line.contains(needle))
            .map(|(number, line)| format!("{name}:{number}: {}", line.trim()))
            .collect()
    })
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let table: BTreeMap<&str, BTreeSet<&str>> =
        TABLE.iter().map(|(module, allowed)| (*module, allowed.iter().copied().collect())).collect();
    let offences = offences(|path, text| {
        let module = module_of(path);
        let Some(allowed) = table.get(module.as_str()) else {
            return vec![format!("{module} has no row in the table")];
        };
        if is_test_file(path) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (number, line) in code_lines(text) {
            for import in imports(line) {
                let inside = import == module;
                let known = table.contains_key(import.as_str());
                if known && !inside && !allowed.contains(import.as_str()) {
                    found.push(format!("{}:{number}: {module} may not import {import}", name_of(path)));
                }
            }
        }
        found
    });
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_import_table_has_no_edge_upward_and_no_cycle() {
    let order: Vec<&str> = TABLE.iter().map(|(module, _)| *module).collect();
    for (at, (module, allowed)) in TABLE.iter().enumerate() {
        for import in *allowed {
            let below = order.iter().position(|name| name == import).unwrap();
            assert!(below < at || (*module == "cli"), "{module} imports {import}, which stands above it");
        }
    }
}

#[test]
fn the_state_machine_sees_only_pure_modules() {
    let offences = offences(|path, text| {
        let name = name_of(path);
        let pure = name
            .strip_prefix("src/meta/")
            .is_some_and(|rest| PURE_META.contains(&rest.split(['/', '.']).next().unwrap_or_default()));
        if !pure || is_test_file(path) {
            return Vec::new();
        }
        let banned = ["tokio::", "std::fs", "std::time", "rand::", "openraft", "HashMap<", "HashSet<"];
        code_lines(text)
            .filter(|(_, line)| {
                imports(line).iter().any(|import| !matches!(import.as_str(), "oci" | "topology" | "meta"))
                    || banned.iter().any(|banned| line.contains(banned) && !line.contains("rpds"))
            })
            .map(|(number, line)| format!("{name}:{number}: {}", line.trim()))
            .collect()
    });
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn only_one_module_names_each_engine() {
    let raft = lines_with("openraft::", |name| name.starts_with("src/meta/"));
    let sled = lines_with("sled::", |name| name.starts_with("src/db/"));
    assert!(raft.is_empty() && sled.is_empty(), "{}\n{}", raft.join("\n"), sled.join("\n"));
}

#[test]
fn tasks_are_spawned_in_one_place() {
    let offences = lines_with("tokio::spawn", |name| name == "src/node/tasks.rs");
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn generated_messages_stay_at_the_wire() {
    let offences = lines_with("proto::", |name| {
        ["/wire.rs", "/service.rs", "/client.rs"].iter().any(|end| name.ends_with(end)) || name.starts_with("src/rpc/")
    });
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn imports_are_spelled_one_way() {
    let glob = lines_with("::*;", |_| false);
    let climbing = lines_with("super::super::", |_| false);
    let offences = [glob, climbing].concat();
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn nothing_is_left_unfinished() {
    let words = ["todo!(", "unimplemented!(", "FIXME", "#[ignore"];
    let offences: Vec<String> = words.iter().flat_map(|word| lines_with(word, |_| false)).collect();
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn files_fit_on_a_few_screens() {
    let offences = offences(|path, text| {
        let name = name_of(path);
        let lines = text.lines().count();
        if lines > 500 && !is_test_file(path) && !LONG_FILES.contains(&name.as_str()) {
            vec![format!("{name} has {lines} lines")]
        } else {
            Vec::new()
        }
    });
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_repository_names_no_machine() {
    let places = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", ".ci/run"];
    for place in places {
        let text = fs::read_to_string(root().join(place)).unwrap();
        for word in ["/home/", "/root/", "/work/", "../shared"] {
            assert!(!text.contains(word), "{place} names {word}");
        }
    }
}
