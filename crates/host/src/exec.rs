//! The only place in the host that starts programs.
//!
//! A program is an argument vector, never a line for a shell. Each has a time limit, a bound on what is kept of its output, and its own
//! process group, which is ended as a whole when the time is over, the caller cancels, or the future is dropped.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Child,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Bytes of each of stdout and stderr that are kept unless the call says otherwise.
pub const MAX_OUTPUT: usize = 1 << 20;
/// How long a program has between SIGTERM and SIGKILL. podman finishes its critical sections on SIGTERM, and needs a moment for it.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long output is still read when the program has ended and a child of its own (conmon) holds the pipe open.
const LINGER: Duration = Duration::from_millis(500);

/// What a program inherits, where the host program has it: enough to find programs, configuration and registries, and no secret.
/// `NOTIFY_SOCKET` in particular isn't among them: podman would report for the host program.
const INHERITED: [&str; 19] = [
    "PATH",
    "HOME",
    "USER",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "CONTAINERS_CONF",
    "CONTAINERS_STORAGE_CONF",
    "CONTAINERS_REGISTRIES_CONF",
    "REGISTRY_AUTH_FILE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

type LineFn = Box<dyn FnMut(&str) + Send>;

/// A program to run, with its bounds.
pub struct Call {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    timeout: Duration,
    max_output: usize,
    cancel: CancellationToken,
    on_line: Option<LineFn>,
}

impl Call {
    /// A call without arguments, with a time limit of 30 s. A program without a slash is looked up in `PATH`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: Duration::from_secs(30),
            max_output: MAX_OUTPUT,
            cancel: CancellationToken::new(),
            on_line: None,
        }
    }

    pub fn args<I: IntoIterator<Item = A>, A: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A variable beside the inherited ones.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Bytes of each of stdout and stderr that are kept; the rest is read and counted.
    pub fn max_output(mut self, bytes: usize) -> Self {
        self.max_output = bytes;
        self
    }

    pub fn cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Is called with each line of stderr as it comes (lines beyond 4 KiB are cut there).
    pub fn on_line(mut self, on_line: impl FnMut(&str) + Send + 'static) -> Self {
        self.on_line = Some(Box::new(on_line));
        self
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    /// Killed by this signal, and not by us.
    Signalled(i32),
    TimedOut,
    Cancelled,
}

/// The beginning of what a program wrote.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captured {
    pub bytes: Vec<u8>,
    /// Bytes that were read and not kept.
    pub dropped: u64,
}

impl Captured {
    /// As text; says at its end how much was not kept.
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        if self.dropped == 0 { text.into_owned() } else { format!("{text}\n[{} more bytes were not kept]", self.dropped) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    pub end: End,
    pub stdout: Captured,
    pub stderr: Captured,
}

impl ExecOutcome {
    pub fn success(&self) -> bool {
        self.end == End::Exited(0)
    }
}

/// A program that could not be started at all.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    #[error("the program {} isn't there", .0.display())]
    NotFound(PathBuf),
    #[error("the program {} can't be started: {source}", .program.display())]
    Spawn { program: PathBuf, source: io::Error },
}

/// Runs a program to its end, or to the end of its time.
pub async fn run(call: Call) -> Result<ExecOutcome, ExecError> {
    let deadline = Instant::now() + call.timeout;
    if call.cancel.is_cancelled() {
        return Ok(ExecOutcome { end: End::Cancelled, stdout: Captured::default(), stderr: Captured::default() });
    }
    let mut child = spawn(&call)?;
    // the leader's pid is the group's id, see spawn()
    let mut group = Group(child.id().and_then(|pid| Pid::from_raw(pid as i32)));
    let (mut stdout, mut stderr) = (Captured::default(), Captured::default());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut reading = Box::pin(async {
        tokio::join!(capture(out, &mut stdout, call.max_output, None), capture(err, &mut stderr, call.max_output, call.on_line));
    });
    let mut read = false;
    let end = loop {
        tokio::select! {
            status = child.wait() => break status.map_or(End::Signalled(0), how),
            () = &mut reading, if !read => read = true,
            () = sleep_until(deadline) => {
                terminate(&mut child, &group).await;
                break End::TimedOut;
            }
            () = call.cancel.cancelled() => {
                terminate(&mut child, &group).await;
                break End::Cancelled;
            }
        }
    };
    group.0 = None; // it is reaped; its number may be another's from here on
    if !read {
        let _ = timeout(LINGER, &mut reading).await;
    }
    drop(reading);
    Ok(ExecOutcome { end, stdout, stderr })
}

/// Whether a program of this name is in `PATH` (or the path is one): by looking, not by running it.
pub fn find(program: &Path) -> Option<PathBuf> {
    let runnable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return runnable(program).then(|| program.to_owned());
    }
    // what needs root often lives where a user's PATH doesn't look
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(program)).find(|path| runnable(path))
}

fn spawn(call: &Call) -> Result<Child, ExecError> {
    #[expect(clippy::disallowed_methods, reason = "this is the exec module")]
    let mut command = tokio::process::Command::new(&call.program);
    command.args(&call.args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    // messages are matched, so they have to be in one language
    command.env("LC_ALL", "C.UTF-8").envs(call.env.iter().map(|(name, value)| (name, value)));
    command.spawn().map_err(|source| {
        if source.kind() == io::ErrorKind::NotFound {
            ExecError::NotFound(call.program.clone())
        } else {
            ExecError::Spawn { program: call.program.clone(), source }
        }
    })
}

fn how(status: std::process::ExitStatus) -> End {
    status.code().map_or_else(|| End::Signalled(status.signal().unwrap_or(0)), End::Exited)
}

/// SIGTERM, a grace, SIGKILL. Returns when the leader is reaped. Output isn't read meanwhile: a program that blocks on a full pipe
/// ends by the second signal.
async fn terminate(child: &mut Child, group: &Group) {
    group.signal(Signal::TERM);
    tokio::select! {
        _ = child.wait() => {}
        () = sleep(TERM_GRACE) => {
            group.signal(Signal::KILL);
            let _ = child.wait().await;
        }
    }
    group.signal(Signal::KILL); // members that outlived their leader; the group's number stays taken while there are any
}

/// The process group of a running child. Dropped before it is reaped, it kills all of it.
struct Group(Option<Pid>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, signal); // fails only if nobody is left
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

async fn capture(pipe: Option<impl AsyncRead + Unpin>, captured: &mut Captured, max: usize, mut on_line: Option<LineFn>) {
    const MAX_LINE: usize = 4096;
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 16 << 10];
    let mut line = Vec::new();
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        let keep = count.min(max - captured.bytes.len());
        captured.bytes.extend_from_slice(&buffer[..keep]);
        captured.dropped += (count - keep) as u64;
        if let Some(on_line) = &mut on_line {
            for &byte in &buffer[..count] {
                if byte == b'\n' || byte == b'\r' {
                    on_line(String::from_utf8_lossy(&line).trim());
                    line.clear();
                } else if line.len() < MAX_LINE {
                    line.push(byte);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Call {
        Call::new("/bin/sh").args(["-c", script])
    }

    fn alive(pid: &str) -> bool {
        // a zombie that its new parent hasn't reaped yet counts as ended
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "))
    }

    async fn ends(pid: &str) {
        timeout(Duration::from_secs(10), async {
            while alive(pid) {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .expect("the process ends");
    }

    #[tokio::test]
    async fn both_outputs_and_the_code() {
        let outcome = run(sh("echo out; echo err >&2; cat; exit 3")).await.unwrap();
        assert_eq!(outcome.end, End::Exited(3));
        assert_eq!((outcome.stdout.text().as_str(), outcome.stderr.text().as_str()), ("out\n", "err\n"));
        assert_eq!(run(sh("kill -9 $$")).await.unwrap().end, End::Signalled(9));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there() {
        assert!(matches!(run(Call::new("atoll-no-such-program")).await, Err(ExecError::NotFound(_))));
        assert!(matches!(run(Call::new("/etc/passwd")).await, Err(ExecError::Spawn { .. })));
    }

    #[tokio::test]
    async fn output_beyond_the_bound_is_counted_and_does_not_block() {
        let outcome = run(sh("head -c 3000000 /dev/zero").max_output(1000)).await.unwrap();
        assert!(outcome.success());
        assert_eq!((outcome.stdout.bytes.len(), outcome.stdout.dropped), (1000, 2_999_000));
        assert!(outcome.stdout.text().ends_with("[2999000 more bytes were not kept]"));
    }

    #[tokio::test]
    async fn the_time_limit_ends_the_whole_group() {
        let outcome = run(sh("sleep 1000 & echo $!; trap '' TERM; sleep 1000").timeout(Duration::from_millis(200))).await.unwrap();
        assert_eq!(outcome.end, End::TimedOut);
        ends(&outcome.stdout.text()).await;
    }

    #[tokio::test]
    async fn cancel_ends_it_and_one_that_came_before_starts_nothing() {
        let cancel = CancellationToken::new();
        let (lines, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let call = sh("echo $$ >&2; sleep 1000").cancel(cancel.clone()).on_line(move |line| lines.send(line.to_owned()).unwrap());
        let running = tokio::spawn(run(call));
        let pid = seen.recv().await.unwrap();
        cancel.cancel();
        assert_eq!(running.await.unwrap().unwrap().end, End::Cancelled);
        ends(&pid).await;
        assert_eq!(run(Call::new("atoll-no-such-program").cancel(cancel)).await.unwrap().end, End::Cancelled);
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_group() {
        let (lines, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let running = tokio::spawn(run(sh("sleep 1000 & echo $! >&2; wait").on_line(move |line| lines.send(line.to_owned()).unwrap())));
        let pid = seen.recv().await.unwrap();
        running.abort();
        ends(&pid).await;
    }

    #[tokio::test]
    async fn a_grandchild_that_holds_the_pipe_does_not_hold_the_caller() {
        let outcome = timeout(Duration::from_secs(20), run(sh("setsid sleep 30 & echo $!"))).await.unwrap().unwrap();
        assert!(outcome.success());
        let pid = outcome.stdout.text().trim().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn the_environment_is_small() {
        let outcome = run(Call::new("/usr/bin/env").env("EXTRA", "1")).await.unwrap();
        let text = outcome.stdout.text();
        assert!(text.lines().any(|line| line == "EXTRA=1") && text.lines().any(|line| line == "LC_ALL=C.UTF-8"));
        assert!(!text.contains("CARGO"));
    }
}
