//! Running programs: the only module here that does.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// What went wrong, for a person to read.
#[derive(Debug)]
pub struct Fail(pub String);

pub type Done<T = ()> = Result<T, Fail>;

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Fail {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<serde_json::Error> for Fail {
    fn from(error: serde_json::Error) -> Self {
        Self(format!("not the JSON that was expected: {error}"))
    }
}

pub fn fail<T>(message: impl Into<String>) -> Done<T> {
    Err(Fail(message.into()))
}

/// Adds what was being done to an error.
pub trait Context<T> {
    fn context(self, what: impl fmt::Display) -> Done<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Done<T> {
        self.map_err(|error| Fail(format!("{what}: {error}")))
    }
}

/// A program with its arguments, not yet run.
#[expect(clippy::disallowed_methods, reason = "the one place that makes commands")]
pub fn command(program: impl AsRef<OsStr>, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a program with its output shown; fails if it does.
pub fn run(program: impl AsRef<OsStr>, args: &[&str]) -> Done {
    let mut command = command(program, args);
    let status = command.status().context(shown(&command))?;
    if status.success() { Ok(()) } else { fail(format!("{} ended with {status}", shown(&command))) }
}

/// Runs a program and gives its output, whatever its exit status.
pub fn output(command: &mut Command) -> Done<Output> {
    command.output().context(shown(command))
}

/// Runs a program and gives its stdout, trimmed; fails with its stderr if it does.
pub fn read(program: impl AsRef<OsStr>, args: &[&str]) -> Done<String> {
    let mut command = command(program, args);
    let output = output(&mut command)?;
    if !output.status.success() {
        return fail(format!("{} ended with {}: {}", shown(&command), output.status, String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether a program can be run and ends well, with its output thrown away.
pub fn works(program: impl AsRef<OsStr>, args: &[&str]) -> bool {
    command(program, args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Where a program is, looked up as a shell would, and in the places for administrators that a user's PATH may lack.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/podman", "/usr/libexec/podman"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|file| file.is_file())
}

pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
