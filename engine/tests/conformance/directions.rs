//! Who may use whom: the map of the engine's modules, held against what the sources name.
//!
//! The unit is a module, or a part of one that others may use without the rest: the messages between nodes are plain data,
//! though they stand in `server`. A unit may use those above it in the table which it names, and nothing else, so there are no
//! circles; a direction that nobody takes is taken out of the table. Tests inside the sources keep to it like all else.
//!
//! Not checked: what comes by a re-export of an allowed unit, by a macro, or as a type that nobody names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module and what it may use.
struct Unit {
    path: &'static str,
    may_use: &'static [&'static str],
}

const fn unit(path: &'static str, may_use: &'static [&'static str]) -> Unit {
    Unit { path, may_use }
}

/// From the bottom to the top.
const UNITS: &[Unit] = &[
    // The vocabulary.
    unit("types", &[]),
    unit("error", &["types"]),
    unit("event", &["types"]),
    unit("options", &["error"]),
    unit("metrics", &["types", "event"]),
    // The seams.
    unit("clock", &["types"]),
    unit("disk", &[]),
    unit("net", &[]),
    // Runs the golden scripts of unit tests.
    unit("testscripts", &[]),
    // What keeps bytes.
    unit("log", &["types", "error", "event", "options", "disk"]),
    unit("storage", &["types", "error", "event", "options", "disk", "testscripts"]),
    // What is said between nodes: data, each part beside the module that answers it.
    unit("meta::catalog", &["types"]),
    unit("meta::request", &["types", "meta::catalog"]),
    unit("region::request", &["types"]),
    unit("server::message", &["types", "metrics", "meta::catalog", "meta::request", "region::request"]),
    // The way between nodes. It stands in `server`, and below all that uses it: raft, meta and the frontend send by it.
    unit("server::rpc", &["types", "error", "event", "options", "net", "server::message"]),
    unit("server::router", &["types", "error", "server::message", "server::rpc"]),
    // A group drives a machine, and knows nothing of regions.
    unit("raft", &["types", "error", "event", "options", "disk", "log", "server::message", "server::router"]),
    // What a statement means. It gives what meta is asked for.
    unit("sql", &["types", "error", "meta::catalog", "testscripts"]),
    // What a view does with changes: no node, no disk, no log.
    unit("view", &["types", "error", "sql", "meta::catalog", "testscripts"]),
    // A region is such a machine.
    unit(
        "region",
        &["types", "error", "event", "options", "disk", "storage", "raft", "meta::catalog", "view", "testscripts"],
    ),
    // The catalog's machine, and its procedures. It reaches its group and the nodes by traits of its own.
    unit("meta", &["types", "error", "event", "options", "clock", "region::request", "server::message", "testscripts"]),
    // Sends to regions and meta what they understand; it does not know what is behind the messages.
    unit(
        "frontend",
        &[
            "types",
            "error",
            "event",
            "options",
            "clock",
            "metrics",
            "meta::catalog",
            "meta::request",
            "region::request",
            "server::message",
            "server::router",
            "sql",
        ],
    ),
    // The node puts all of it together, a frontend for the clients that speak SQL to it included.
    unit(
        "server",
        &[
            "types",
            "error",
            "event",
            "options",
            "clock",
            "disk",
            "net",
            "log",
            "metrics",
            "meta::catalog",
            "meta::request",
            "region::request",
            "raft",
            "view",
            "region",
            "meta",
            "frontend",
        ],
    ),
];

/// Libraries that only some units may name, and why.
const LIBRARIES: &[(&str, &[&str], &str)] = &[
    ("openraft", &["raft"], "its API is an alpha's: one module knows it"),
    ("openraft_rt", &["raft"], "its API is an alpha's: one module knows it"),
    ("rand", &["raft"], "only elections draw"),
    ("datafusion", &["sql", "view", "frontend"], "regions answer scans, whoever plans them"),
    ("parquet", &["storage", "frontend"], "how our files look is nobody else's business; clients send theirs"),
    (
        "tokio",
        &["disk", "net", "log", "server", "server::rpc", "server::router", "raft", "region", "meta", "frontend"],
        "the others are pure, or wait for nothing but the disk",
    ),
];

/// What `lib.rs` gives a shorter name.
const ALIASES: &[(&str, &str)] = &[("Error", "error"), ("Result", "error")];

/// A file of the engine.
struct Source {
    file: PathBuf,
    /// The module that it is.
    module: Vec<String>,
    text: String,
}

/// A path that a source names, made absolute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    line: usize,
    path: Vec<String>,
    /// Whether it begins at the crate; otherwise its first name is (perhaps) a library.
    is_inner: bool,
}

#[test]
fn modules_use_only_what_the_map_allows() {
    let mut wrong = Vec::new();
    let mut taken = BTreeSet::new();
    for source in sources() {
        let own = unit_of(&source.module).unwrap_or_else(|| panic!("{} is not on the map", source.file.display()));
        for named in uses(&source.text, &source.module) {
            let at = format!("{}:{}", source.file.display(), named.line);
            let path = named.path.join("::");
            if !named.is_inner {
                let library = LIBRARIES.iter().find(|(library, ..)| *library == named.path[0]);
                if let Some((library, units, why)) = library.filter(|(_, units, _)| !units.contains(&own.path)) {
                    wrong.push(format!("{at}: {} names {library}, only {units:?} may: {why}", own.path));
                }
                continue;
            }
            let Some(used) = unit_of(&named.path) else {
                wrong.push(format!("{at}: {path} is not on the map"));
                continue;
            };
            // A module may always use its parts.
            let is_own = used.path == own.path || used.path.starts_with(&format!("{}::", own.path));
            if own.may_use.contains(&used.path) {
                taken.insert((own.path, used.path));
            } else if !is_own {
                wrong.push(format!("{at}: {} uses {path}, it may use {:?}", own.path, own.may_use));
            }
        }
    }
    for unit in UNITS {
        for used in unit.may_use {
            if !taken.contains(&(unit.path, *used)) {
                wrong.push(format!("{} does not use {used}: take it off the map", unit.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\nThe map is in {}", wrong.join("\n"), file!());
}

#[test]
fn the_map_has_no_circles() {
    for (at, unit) in UNITS.iter().enumerate() {
        for used in unit.may_use {
            let below = UNITS[..at].iter().any(|unit| unit.path == *used);
            assert!(below, "{} may use {used}, which does not stand above it in the table", unit.path);
        }
    }
}

#[test]
fn every_way_of_naming_a_module_is_seen() {
    let text = r##"
        //! [`crate::region`] in a comment
        use crate::disk::{self, Disk, os::{File as F}};
        use super::sibling::Thing;
        pub(crate) fn f<'a>(x: &'a str) -> crate::Result<()> { /* crate::raft /* nested */ */ tokio::spawn(g()) }
        mod tests { use super::*; use super::super::log; const C: char = '"'; }
        const S: &str = "crate::server \" "; const R: &str = r#"crate::meta"#;
        use openraft as o;
        x.tokio();
    "##;
    let named: Vec<String> = uses(text, &["storage".into(), "sst".into()])
        .into_iter()
        .map(|named| format!("{} {}{}", named.line, if named.is_inner { "crate::" } else { "" }, named.path.join("::")))
        .collect();
    let expected = [
        "3 crate::disk",
        "3 crate::disk::Disk",
        "3 crate::disk::os::File",
        "4 crate::storage::sibling::Thing",
        "5 crate::Result",
        "5 tokio::spawn",
        "6 crate::storage::sst",
        "6 crate::storage::log",
        "8 openraft",
    ];
    assert_eq!(named, expected);
}

/// The sources of the library. (The server binary uses it from outside.)
#[expect(clippy::disallowed_methods, reason = "reads the sources, is no part of the engine")]
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![PathBuf::new()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") || path == Path::new("lib.rs") {
                continue;
            }
            let mut module: Vec<String> =
                path.with_extension("").iter().map(|name| name.to_str().unwrap().to_string()).collect();
            module.pop_if(|last| last == "mod");
            if module[0] == "bin" {
                continue;
            }
            let text = String::from_utf8(fs::read(root.join(&path)).unwrap()).unwrap();
            sources.push(Source { file: Path::new("engine/src").join(&path), module, text });
        }
    }
    assert!(sources.len() > 50, "the sources are elsewhere");
    sources.sort_by(|a, b| a.file.cmp(&b.file));
    sources
}

/// The unit that the path is in: the one with the longest name.
fn unit_of(path: &[String]) -> Option<&'static Unit> {
    let first = path.first()?;
    let first = ALIASES.iter().find(|(alias, _)| alias == first).map_or(first.as_str(), |(_, unit)| unit);
    let path: Vec<&str> = std::iter::once(first).chain(path[1..].iter().map(String::as_str)).collect();
    let is_in = |unit: &&Unit| {
        let names: Vec<&str> = unit.path.split("::").collect();
        path.starts_with(&names)
    };
    UNITS.iter().filter(is_in).max_by_key(|unit| unit.path.len())
}

/// The paths that `text`, the source of `module`, names: those that begin at the crate, and the first names of all others.
fn uses(text: &str, module: &[String]) -> Vec<Use> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    // Modules written inside the file, and how deep in braces they are.
    let mut inner: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = (tokens[at].0, tokens[at].1.as_str());
        let before = at.checked_sub(1).map_or("", |before| tokens[before].1.as_str());
        let next = |ahead: usize| tokens.get(at + ahead).map_or("", |(_, token)| token.as_str());
        match token {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inner.pop_if(|(_, opened)| *opened == depth);
            }
            "mod" if next(2) == "{" => inner.push((next(1).to_string(), depth)),
            "crate" | "super" | "self" if next(1) == "::" && before != "::" => {
                let mut base: Vec<String> = match token {
                    "crate" => Vec::new(),
                    _ => module.iter().cloned().chain(inner.iter().map(|(name, _)| name.clone())).collect(),
                };
                if token == "super" {
                    base.pop();
                }
                let mut rest = at + 2;
                while tokens.get(rest).is_some_and(|(_, token)| token == "super") {
                    base.pop();
                    rest += 2;
                }
                let in_use = before == "use";
                let mut paths = Vec::new();
                at = tree(&tokens, rest, base, in_use, &mut paths);
                found.extend(paths.into_iter().map(|path| Use { line, path, is_inner: true }));
                continue;
            }
            name if is_name(name) && before != "::" && before != "." && (next(1) == "::" || before == "use") => {
                let mut path = vec![name.to_string()];
                if next(1) == "::" && is_name(next(2)) {
                    path.push(next(2).to_string());
                }
                found.push(Use { line, path, is_inner: false });
            }
            _ => {}
        }
        at += 1;
    }
    let libraries: BTreeMap<_, _> = LIBRARIES.iter().map(|(library, units, _)| (*library, units)).collect();
    found.retain(|named| named.is_inner || libraries.contains_key(named.path[0].as_str()));
    // Of a path that only goes up nothing is said.
    found.retain(|named| !named.path.is_empty());
    found
}

/// Reads the rest of a path, in a `use` with groups, from the token `at` on. Answers where it ends.
fn tree(
    tokens: &[(usize, String)],
    mut at: usize,
    base: Vec<String>,
    in_use: bool,
    out: &mut Vec<Vec<String>>,
) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| token.as_str());
    if in_use && token(at) == "{" {
        at += 1;
        while token(at) != "}" && at < tokens.len() {
            at = tree(tokens, at, base.clone(), in_use, out);
            if token(at) == "as" {
                at += 2;
            }
            if token(at) == "," {
                at += 1;
            }
        }
        return at + 1;
    }
    let mut path = base;
    match token(at) {
        // The module itself, or all that is in it.
        "self" | "*" => {}
        name if is_name(name) => path.push(name.to_string()),
        _ => {
            out.push(path);
            return at;
        }
    }
    at += 1;
    if token(at) == "::" && (is_name(token(at + 1)) || (in_use && ["{", "*"].contains(&token(at + 1)))) {
        return tree(tokens, at + 1, path, in_use, out);
    }
    out.push(path);
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::` and single characters with their lines; no comments, no texts, no lifetimes.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut at = 0;
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c));
    while at < chars.len() {
        let from = at;
        let c = chars[at];
        if starts(at, "//") {
            while at < chars.len() && chars[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut open = 0;
            loop {
                match () {
                    () if starts(at, "/*") => (open, at) = (open + 1, at + 2),
                    () if starts(at, "*/") => (open, at) = (open - 1, at + 2),
                    () => at += 1,
                }
                if open == 0 || at >= chars.len() {
                    break;
                }
            }
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == 'r' && (starts(at, "r\"") || starts(at, "r#\"") || starts(at, "r##\"")) {
            let marks = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            let end = format!("\"{}", "#".repeat(marks));
            at += marks + 2;
            while at < chars.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if c == '\'' {
            // A character, or a lifetime.
            if chars.get(at + 1) == Some(&'\\') {
                at += 3;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            } else {
                at += if chars.get(at + 2) == Some(&'\'') { 3 } else { 1 };
            }
        } else if c.is_alphanumeric() || c == '_' {
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '_') {
                at += 1;
            }
            tokens.push((line, chars[from..at].iter().collect()));
        } else if starts(at, "::") {
            tokens.push((line, "::".to_string()));
            at += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push((line, c.to_string()));
            }
            at += 1;
        }
        line += chars[from..at.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    tokens
}
