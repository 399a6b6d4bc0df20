//! `cargo xtask tidy`: the lints, and what no lint checks.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::sh::{self, Done, fail};

/// Which workspace crates a crate may use. Dependencies point one way; docs/ARCHITECTURE.md says why.
const CRATES: &[(&str, &[&str])] = &[
    ("contract", &[]),
    ("net", &["contract"]),
    ("agent", &["contract", "net"]),
    ("master", &["contract", "net"]),
    ("host", &["contract", "net"]),
    ("atoll", &["contract", "net", "agent", "master", "host"]),
    ("cluster", &["contract", "net", "agent", "master", "host"]),
];

/// A text that may stand only in files below these places (and in tests).
struct Confined {
    text: &'static str,
    places: &'static [&'static str],
    why: &'static str,
}

const CONFINED: &[Confined] = &[
    Confined {
        text: "rusqlite",
        places: &[
            "crates/master/src/store",
            "crates/host/src/projects/records",
            "crates/net/src/streams",
            "crates/net/examples/bench_streams",
        ],
        why: "SQL lives in one module",
    },
    Confined {
        text: "Command::new",
        places: &["crates/host/src/exec.rs", "crates/agent/src/spawn.rs", "xtask/src/sh.rs", "crates/cluster"],
        why: "one door to the outside: exec modules spawn processes",
    },
    Confined { text: "SystemTime::now", places: &["crates/net/src/clock.rs", "crates/cluster"], why: "time is passed in" },
    // the lint denies unsafe code everywhere else
    Confined { text: "(unsafe_code", places: &["crates/host/src/storage/ioctl.rs"], why: "only the module that makes ioctls is unsafe" },
    Confined { text: "EncodingKey", places: &["crates/master/"], why: "only the master signs" },
];

/// Which modules a module may not use.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("crates/contract/src", &["tokio::", "std::fs", "std::net", "std::process"]),
    ("crates/master/src/placement", &["crate::store", "crate::api", "tokio::"]),
    ("crates/master/src/store", &["crate::api", "crate::operations::executor"]),
    ("crates/host/src/storage", &["crate::gate", "crate::projects", "crate::uplink", "crate::files"]),
    ("crates/host/src/runtime", &["crate::gate", "crate::projects", "crate::uplink", "crate::files", "crate::storage"]),
    ("crates/host/src/files", &["crate::projects", "crate::uplink"]),
];

/// Cargo's own checks, with what to say when one fails.
const LINTS: &[(&str, &[&str])] = &[
    ("`cargo fmt --all` has something to do", &["fmt", "--all", "--check"]),
    ("clippy finds something", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"]),
];

const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

pub fn run() -> Done {
    let files = tracked()?;
    let mut errors = Vec::new();
    let mut warnings = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|end| end == "rs")) {
        let text = fs::read_to_string(sh::root().join(path))?;
        imports(path, &text, &mut errors);
        sizes(path, &text, &mut warnings);
    }
    crate_dependencies(&mut errors)?;
    doc_links(&files, &mut errors)?;
    ignored_files(&mut errors)?;
    golden_files(&files, &mut errors);
    for (what, args) in LINTS {
        if !sh::works(crate::machine::cargo(), &[args[0], "--version"]) {
            eprintln!("skipped: tidy: `cargo {}` isn't installed (rustup component add rustfmt clippy)", args[0]);
            continue;
        }
        let mut cargo = sh::command(crate::machine::cargo(), args);
        let output = sh::output(cargo.current_dir(sh::root()))?;
        if !output.status.success() {
            errors.push(format!("{what}:\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)));
        }
    }
    warnings.iter().for_each(|line| println!("warning: {line}"));
    errors.iter().for_each(|line| println!("error: {line}"));
    if errors.is_empty() { Ok(()) } else { fail(format!("tidy found {} errors", errors.len())) }
}

fn tracked() -> Done<BTreeSet<PathBuf>> {
    let root = sh::root();
    let root = root.to_str().unwrap_or(".");
    let listed = sh::read("git", &["-C", root, "ls-files", "--cached", "--others", "--exclude-standard"])?;
    Ok(listed.lines().map(PathBuf::from).filter(|path| sh::root().join(path).is_file()).collect())
}

/// What is built or fetched isn't in git: nobody would see that it is out of date.
fn ignored_files(errors: &mut Vec<String>) -> Done {
    let root = sh::root();
    let root = root.to_str().unwrap_or(".");
    let listed = sh::read("git", &["-C", root, "ls-files", "--cached", "--ignored", "--exclude-standard"])?;
    errors.extend(listed.lines().map(|path| format!("{path} is in git although a .gitignore names it: `git rm --cached` it")));
    Ok(())
}

/// The code of a file without its tests: by convention those stand last.
fn without_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod ").map_or(text, |(code, _)| code)
}

fn imports(path: &Path, text: &str, errors: &mut Vec<String>) {
    let name = path.to_string_lossy();
    let of_tests = name.contains("/tests/") || name.contains("/tests.rs") || name.contains("testing") || name.ends_with("tidy.rs");
    if of_tests {
        return;
    }
    let code = without_tests(text);
    let lines = || code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    for rule in CONFINED.iter().filter(|rule| !rule.places.iter().any(|place| name.starts_with(place))) {
        for (number, _) in lines().filter(|(_, line)| line.contains(rule.text)) {
            errors.push(format!("{name}:{}: `{}` stands here; {}", number + 1, rule.text.trim(), rule.why));
        }
    }
    for (_, forbidden) in FORBIDDEN.iter().filter(|(place, _)| name.starts_with(place)) {
        for (number, line) in lines() {
            for text in forbidden.iter().filter(|text| line.contains(**text)) {
                errors.push(format!("{name}:{}: this module may not use `{text}`", number + 1));
            }
        }
    }
}

fn sizes(path: &Path, text: &str, warnings: &mut Vec<String>) {
    let code = without_tests(text);
    let lines = code.lines().count();
    if lines > FILE_LINES {
        warnings.push(format!("{} has {lines} lines of code; does it still say one thing?", path.display()));
    }
    // rustfmt puts a function's closing brace in the column of its first word
    let mut open: Option<(usize, usize, String)> = None;
    for (number, line) in code.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ");
        let words = words.trim_start_matches("const ").trim_start_matches("async ");
        let declared = || line.ends_with(';') || line.ends_with('}'); // without a body, or with all of it
        if let (None, Some(rest)) = (&open, words.strip_prefix("fn ").filter(|_| !declared())) {
            let name = rest.split(['(', '<']).next().unwrap_or_default().to_owned();
            open = Some((number, indent, name));
        } else if let Some((start, column, name)) = &open
            && indent == *column
            && line.trim_start().starts_with('}')
        {
            let long = number - start;
            if long > FUNCTION_LINES {
                warnings.push(format!("{}:{}: the function {name} has {long} lines", path.display(), start + 1));
            }
            open = None;
        }
    }
}

fn crate_dependencies(errors: &mut Vec<String>) -> Done {
    for (name, allowed) in CRATES {
        let path = sh::root().join("crates").join(name).join("Cargo.toml");
        let text = fs::read_to_string(&path)?;
        let normal = text.split("[dev-dependencies]").next().unwrap_or_default();
        for line in normal.lines() {
            let Some(used) = line.strip_prefix("atoll-").and_then(|rest| rest.split(['.', ' ', '=']).next()) else { continue };
            if !allowed.contains(&used) {
                errors.push(format!("crates/{name} depends on crates/{used}; it may use {allowed:?}"));
            }
        }
    }
    Ok(())
}

/// Every relative link in the docs leads somewhere.
fn doc_links(files: &BTreeSet<PathBuf>, errors: &mut Vec<String>) -> Done {
    for path in files.iter().filter(|path| path.extension().is_some_and(|end| end == "md")) {
        let text = fs::read_to_string(sh::root().join(path))?;
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") || target.contains(' ') {
                continue;
            }
            let full = sh::root().join(path.parent().unwrap_or(Path::new(""))).join(target);
            if !full.exists() {
                errors.push(format!("{}: the link to {target} leads nowhere", path.display()));
            }
        }
    }
    Ok(())
}

/// No golden file waits for its review.
fn golden_files(files: &BTreeSet<PathBuf>, errors: &mut Vec<String>) {
    for path in files.iter().filter(|path| path.to_string_lossy().ends_with(".snap.new")) {
        errors.push(format!("{} waits for a review: `cargo insta review`, or delete it", path.display()));
    }
}
