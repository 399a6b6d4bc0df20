//! What several modules' tests use, and the reference of the command line.

use std::{fmt::Write, fs, path::Path};

use clap::CommandFactory;

/// Compares a text with a file of the repository, or writes the file if `UPDATE` is set.
pub fn same_as_file(path: &str, text: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        return;
    }
    let there = fs::read_to_string(&file).unwrap_or_default();
    assert!(there == text, "{path} isn't as the program has it; run the tests with UPDATE=1 and look at the difference");
}

const HEAD: &str = "\
# Command line

`atoll` is one program: it serves, and it is what users type. `--json` and `--master URL` go with every command. Secrets are never
arguments: they come from files, standard input, a prompt, or ATOLL_TOKEN.

- Results go to standard output, as tables or (with `--json`) as the contract's JSON on one line; progress, notes and errors to standard error.
- Projects and hosts are named by name or id.
- Commands that begin an operation wait for it and show its progress; `--no-wait` prints its id instead. The first Ctrl-C while waiting says how to
  go on, a second asks for it to be cancelled, a third leaves. With `--json` the ended operation is printed, with `--no-wait` what was accepted.
- An error is `error[code]: sentence`, then `mend: what to do`; with `--json` one object `{code, message, mend, retry, details}`. Codes are stable.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed; also `doctor` with an error among its findings |
| 2 | wrong usage or config |
| 3 | not found |
| 4 | not logged in, or not allowed |
| 5 | conflict, or something is in progress |
| 6 | unavailable, timed out, or a server whose certificate isn't trusted |
| 124 | `exec --timeout`: the time was up |
| 125 | `exec`, `shell`: a failure of their own; all other codes are the program's |

This page is made from the program's definition of its arguments (`crates/atoll/src/args/`); a test compares the two.
";

fn render(command: &clap::Command, path: &str, text: &mut String) {
    // by itself, without what the parents hand down, so that the global flags are shown once
    let help = command.clone().disable_help_subcommand(true).bin_name(path).term_width(110).render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(text, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        render(sub, &format!("{path} {}", sub.get_name()), text);
    }
}

#[test]
fn the_reference_is_as_the_arguments() {
    let mut text = HEAD.to_owned();
    render(&crate::args::Cli::command(), "atoll", &mut text);
    same_as_file("docs/reference/cli.md", &text);
}
