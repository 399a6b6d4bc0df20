//! What the demo and the tests need on the machine, and getting it.

use crate::sh::{self, Done, fail};

/// What must be there, and the Debian package that has it.
struct Tool {
    there: There,
    package: &'static str,
}

/// How one sees that a tool is there.
enum There {
    /// Any one of these programs will do.
    Program(&'static [&'static str]),
    /// This command ends well.
    Works(&'static str, &'static [&'static str]),
    /// This path exists.
    Path(&'static str),
}

use There::{Path, Program, Works};

const TOOLS: &[Tool] = &[
    Tool { there: Program(&["podman"]), package: "podman" },
    // crun, podman's default, refuses machines with hybrid cgroups; runc runs on all
    Tool { there: Program(&["runc"]), package: "runc" },
    Tool { there: Program(&["netavark"]), package: "netavark" },
    Tool { there: Program(&["aardvark-dns"]), package: "aardvark-dns" },
    Tool { there: Program(&["iptables"]), package: "iptables" },
    Tool { there: Program(&["slirp4netns", "pasta"]), package: "slirp4netns" },
    Tool { there: Program(&["newuidmap"]), package: "uidmap" },
    Tool { there: Program(&["mkfs.btrfs"]), package: "btrfs-progs" },
    Tool { there: Program(&["mmdebstrap"]), package: "mmdebstrap" },
    // for images tried without a shell or libc
    Tool { there: Program(&["busybox"]), package: "busybox-static" },
];

/// What the tests need besides: the server that the bus is compared with, and the published clients' languages.
const TEST_TOOLS: &[Tool] = &[
    Tool { there: Program(&[NATS_SERVER]), package: NATS_SERVER },
    Tool { there: Works("node", &["--eval", "process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)"]), package: "nodejs" },
    Tool { there: Program(&["npm"]), package: "npm" },
    Tool { there: Works("python3", &["-c", "import ensurepip, venv"]), package: "python3-venv" },
    Tool { there: Program(&["chromium"]), package: "chromium" },
    Tool { there: Program(&["go"]), package: "golang-go" },
    Tool { there: Path("/usr/share/gocode/src/github.com/nats-io/nats.go"), package: "golang-github-nats-io-go-nats-dev" },
];

const NATS_SERVER: &str = "nats-server";

impl Tool {
    fn is_there(&self) -> bool {
        match self.there {
            Program(programs) => programs.iter().any(|program| sh::find(program).is_some()),
            Works(program, args) => sh::works(program, args),
            Path(path) => std::path::Path::new(path).exists(),
        }
    }
}

/// Installs what is missing where it may, else says the exact line and stops.
pub fn prepare() -> Done {
    install(&[TOOLS])
}

/// As [`prepare`], with what only tests need.
pub fn prepare_for_tests() -> Done {
    install(&[TOOLS, TEST_TOOLS])
}

fn install(tools: &[&[Tool]]) -> Done {
    let missing = missing(tools);
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if sh::find("apt-get").is_none() {
        return fail(format!(
            "these are missing and there is no apt-get here: {}. Install them with this machine's package manager.",
            missing.join(", ")
        ));
    }
    if !sh::is_root() {
        return fail(format!("some programs are missing. Run this, then try again:\n\n  sudo {line}"));
    }
    eprintln!("installing {}", missing.join(" "));
    sh::run("apt-get", &["update", "-qq"])?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(&missing);
    let mut install = sh::command("apt-get", &args);
    install.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null());
    let output = sh::output(&mut install)?;
    if !output.status.success() {
        return fail(format!("{line} failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    // the package starts a server of its own on the default port, open to all; tests start theirs themselves
    if missing.contains(&NATS_SERVER) && sh::find("systemctl").is_some() {
        // where systemd doesn't run this fails, and nothing was started
        let _ = sh::output(&mut sh::command("systemctl", &["disable", "--now", NATS_SERVER]));
    }
    let still = self::missing(tools);
    if still.is_empty() { Ok(()) } else { fail(format!("still missing after {line}: {}", still.join(", "))) }
}

fn missing(tools: &[&[Tool]]) -> Vec<&'static str> {
    tools.iter().copied().flatten().filter(|tool| !tool.is_there()).map(|tool| tool.package).collect()
}

/// Builds the binary and says where it is.
pub fn build(release: bool) -> Done<std::path::PathBuf> {
    let mut args = vec!["build", "--quiet", "--package", "atoll", "--message-format", "json-render-diagnostics"];
    if release {
        args.push("--release");
    }
    let mut cargo = sh::command(cargo(), &args);
    cargo.current_dir(sh::root()).stderr(std::process::Stdio::inherit());
    let output = sh::output(&mut cargo)?;
    if !output.status.success() {
        return fail("the build failed; its messages are above");
    }
    // cargo names the file itself, so no guess about target directories is needed
    let stdout = String::from_utf8_lossy(&output.stdout);
    let messages = stdout.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let atoll = messages
        .filter(|message| message["target"]["name"] == "atoll")
        .filter_map(|message| message["executable"].as_str().map(Into::into))
        .next_back();
    atoll.ok_or_else(|| sh::Fail("cargo named no executable `atoll`".into()))
}

pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
