//! What the demo and the tests need on the machine, and getting it.

use crate::sh::{self, Done, fail};

/// A program, the Debian package that has it, and what it is for.
struct Tool {
    programs: &'static [&'static str],
    package: &'static str,
}

/// Any one of `programs` will do.
const TOOLS: &[Tool] = &[
    Tool { programs: &["podman"], package: "podman" },
    // crun, podman's default, refuses machines with hybrid cgroups; runc runs on all
    Tool { programs: &["runc"], package: "runc" },
    Tool { programs: &["netavark"], package: "netavark" },
    Tool { programs: &["aardvark-dns"], package: "aardvark-dns" },
    Tool { programs: &["iptables"], package: "iptables" },
    Tool { programs: &["slirp4netns", "pasta"], package: "slirp4netns" },
    Tool { programs: &["newuidmap"], package: "uidmap" },
    Tool { programs: &["mkfs.btrfs"], package: "btrfs-progs" },
    Tool { programs: &["mmdebstrap"], package: "mmdebstrap" },
    // for images tried without a shell or libc
    Tool { programs: &["busybox"], package: "busybox-static" },
];

/// Installs what is missing where it may, else says the exact line and stops.
pub fn prepare() -> Done {
    let missing = missing();
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
    let still = self::missing();
    if still.is_empty() { Ok(()) } else { fail(format!("still missing after {line}: {}", still.join(", "))) }
}

fn missing() -> Vec<&'static str> {
    TOOLS.iter().filter(|tool| !tool.programs.iter().any(|program| sh::find(program).is_some())).map(|tool| tool.package).collect()
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
