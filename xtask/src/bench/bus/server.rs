//! The servers that are measured.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use tempfile::NamedTempFile;

use crate::{
    sh::{self, Context, Done, Fail, fail},
    testbed::{self, until},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `dev bus`, which has no settings that matter here: as shipped is its best.
    Atoll,
    /// As shipped.
    Nats,
    /// With [`BEST_ENVIRONMENT`] and [`BEST_CONFIG`].
    NatsBest,
}

/// Most of what can be tuned is its garbage collector. Tried, by its processor time for a message: GOGC=400 (four fifths of the default's for small
/// messages, half for 4 KiB), 800 (a little less), off (less for small messages and requests, more for the rest, and memory without bound); GOMAXPROCS=1 (less for floods, more for requests, and
/// only one processor), 4 (more).
pub const BEST_ENVIRONMENT: &[(&str, &str)] = &[("GOGC", "800")];
/// What its documentation names for floods; within the noise here.
pub const BEST_CONFIG: &str = "write_deadline: \"60s\"\nmax_pending: 268435456\n";

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Atoll => "atoll",
            Self::Nats => "nats-server",
            Self::NatsBest => "nats-server at its best",
        }
    }
}

/// A server that is killed when it is dropped: it has nothing to lose.
pub struct Server {
    pub kind: Kind,
    pub address: SocketAddr,
    child: Child,
    #[allow(dead_code, reason = "held for its drop")]
    config: Option<NamedTempFile>,
}

impl Server {
    pub fn start(kind: Kind, atoll: &Path, nats: &Path) -> Done<Self> {
        if kind == Kind::Atoll {
            let mut command = sh::command(atoll, &["dev", "bus", "--listen", "127.0.0.1:0", "--json"]);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context(sh::shown(&command))?;
            let stdout = child.stdout.take();
            // from here on it ends with `server`
            let mut server = Self { kind, address: SocketAddr::from(([127, 0, 0, 1], 0)), child, config: None };
            let mut line = String::new();
            BufReader::new(stdout.ok_or_else(|| Fail("no standard output".into()))?).read_line(&mut line)?;
            let said: serde_json::Value = serde_json::from_str(&line)?;
            server.address = said["listen"].as_str().unwrap_or_default().parse().context("the address of `atoll dev bus`")?;
            return Ok(server);
        }
        let address = testbed::free_address()?;
        let port = address.port().to_string();
        let mut command = sh::command(nats, &["-a", "127.0.0.1", "-p", &port]);
        let mut config = None;
        if kind == Kind::NatsBest {
            let file = NamedTempFile::new()?;
            fs::write(file.path(), BEST_CONFIG)?;
            command.arg("-c").arg(file.path()).envs(BEST_ENVIRONMENT.iter().copied());
            config = Some(file);
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context(sh::shown(&command))?;
        let mut server = Self { kind, address, child, config };
        until(Duration::from_secs(10), || match server.child.try_wait()? {
            Some(status) => fail(format!("{} ended with {status}", kind.name())),
            None => Ok(TcpStream::connect(address).ok().map(drop)),
        })?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Seconds of processor that it has taken, by itself and for it in the kernel.
    pub fn cpu(&self) -> Done<f64> {
        ticks(&format!("/proc/{}/stat", self.child.id()), [13, 14])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// Seconds of processor that this program's children took that have ended and were waited for.
pub fn children_cpu() -> Done<f64> {
    ticks("/proc/self/stat", [15, 16])
}

/// Ticks a second in /proc: Linux's interface to programs has the same for every architecture but alpha and ia64 (`USER_HZ`).
const USER_HZ: f64 = 100.0;

/// The sum of two fields of /proc/PID/stat, counted from 0 (proc(5) counts from 1), in seconds.
fn ticks(path: &str, fields: [usize; 2]) -> Done<f64> {
    let text = fs::read_to_string(path).context(path)?;
    // the second field is a name in brackets and may have anything in it
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let words: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| words.get(number - 2).and_then(|word| word.parse::<u64>().ok());
    match fields.map(field) {
        [Some(user), Some(system)] => Ok((user + system) as f64 / USER_HZ),
        _ => fail(format!("{path} isn't as proc(5) has it")),
    }
}
