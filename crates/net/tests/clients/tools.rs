//! Programs of other languages: finding them, fetching what they need once, running them.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{process::Command, sync::Mutex};

/// A whole program's run, its start on a busy machine included.
const RUN: Duration = Duration::from_mins(4);
/// Fetching packages.
const FETCH: Duration = Duration::from_mins(5);

pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

#[expect(clippy::disallowed_methods, reason = "a test's own programs")]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a program to its end and gives its output.
///
/// # Errors
/// Its whole output, if it fails or takes too long.
pub(crate) async fn run(command: &mut Command) -> Result<String, String> {
    within(command, RUN).await
}

async fn within(command: &mut Command, time: Duration) -> Result<String, String> {
    let shown = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(time, command.output()).await.map_err(|_| format!("{shown} takes longer than {time:?}"))?;
    let output = output.map_err(|error| format!("{shown}: {error}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.into_owned()) } else { Err(format!("{shown} ended with {}\n{out}{err}", output.status)) }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// A folder below the target directory for what these files need, and whether it is ready: it is kept until they change.
fn kept(name: &str, files: &[PathBuf]) -> (PathBuf, bool) {
    let mut hash = DefaultHasher::new();
    files.iter().for_each(|file| std::fs::read(file).unwrap().hash(&mut hash));
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{:016x}", hash.finish()));
    let ready = dir.join(READY).is_file();
    if !ready {
        // a fetch that was broken off
        let _ = std::fs::remove_dir_all(&dir); // it mostly isn't there
        std::fs::create_dir_all(&dir).unwrap();
    }
    (dir, ready)
}

const READY: &str = "ready";

/// One fetch at a time, and none a second time after one that failed.
static FETCHED: Mutex<BTreeMap<&str, Result<PathBuf, String>>> = Mutex::const_new(BTreeMap::new());

async fn once(name: &'static str, fetch: impl AsyncFnOnce() -> Result<PathBuf, String>) -> Result<PathBuf, String> {
    let mut fetched = FETCHED.lock().await;
    if let Some(done) = fetched.get(name) {
        return done.clone();
    }
    let done = fetch().await;
    fetched.insert(name, done.clone());
    done
}

/// The folder with the JavaScript programs and their packages.
///
/// # Errors
/// Why this machine can't.
pub(crate) async fn node() -> Result<PathBuf, String> {
    once("node", async || {
        let (Some(node), Some(npm)) = (find("node"), find("npm")) else { return Err("no node or no npm on this machine".into()) };
        let version = run(command(&node).arg("--version")).await?;
        let major: u32 = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default();
        if major < 18 {
            return Err(format!("node is {}, and these clients need 18", version.trim()));
        }
        let (dir, ready) = kept("node", &[source("node/package.json"), source("node/package-lock.json")]);
        for entry in std::fs::read_dir(source("node")).unwrap() {
            let file = entry.unwrap().path();
            if file.is_file() {
                std::fs::copy(&file, dir.join(file.file_name().unwrap())).unwrap();
            }
        }
        if !ready {
            let mut fetch = command(&npm);
            fetch.current_dir(&dir).args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error"]);
            within(&mut fetch, FETCH).await.map_err(|error| format!("npm can't fetch the clients: {error}"))?;
            std::fs::write(dir.join(READY), "").unwrap();
        }
        Ok(dir)
    })
    .await
}

/// A Python with nats-py.
///
/// # Errors
/// Why this machine can't.
pub(crate) async fn python() -> Result<PathBuf, String> {
    once("python", async || {
        let Some(python) = find("python3") else { return Err("no python3 on this machine".into()) };
        let requirements = source("python/requirements.txt");
        let (dir, ready) = kept("python", std::slice::from_ref(&requirements));
        let inside = dir.join("bin/python");
        if !ready || run(command(&inside).arg("--version")).await.is_err() {
            let venv = within(command(&python).args(["-m", "venv", "--clear"]).arg(&dir), FETCH).await;
            venv.map_err(|error| format!("python3 can't make a venv: {error}"))?;
            let mut fetch = command(&inside);
            fetch
                .args(["-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "--requirement"])
                .arg(&requirements);
            within(&mut fetch, FETCH).await.map_err(|error| format!("pip can't fetch nats-py: {error}"))?;
            std::fs::write(dir.join(READY), "").unwrap();
        }
        Ok(inside)
    })
    .await
}

/// Where Go builds and keeps what it has compiled.
pub(crate) fn go_folder() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Runs a program that says `ok <check>` for each check, and notes them.
pub(crate) async fn check(command: &mut Command, row: &mut crate::matrix::Row) {
    let said = run(command).await;
    let text = said.as_ref().unwrap_or_else(|failed| failed);
    text.lines().filter_map(|line| line.strip_prefix("ok ")).for_each(|check| row.passed(check));
    assert!(said.is_ok() && !text.lines().any(|line| line.starts_with("failed ")), "{text}");
}
