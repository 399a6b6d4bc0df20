//! The base image: pulled if a registry answers, else built from Debian packages and kept.

use std::time::{Duration, Instant};

use crate::sh::{self, Context, Done, fail};

pub const DEFAULT: &str = "docker.io/library/debian:12";
/// What is built when nothing can be pulled.
const BUILT: &str = "localhost/atoll-base:latest";
const PULL_PATIENCE: Duration = Duration::from_mins(2);

/// The name of an image that is on this machine afterwards.
pub fn obtain(wanted: &str) -> Done<String> {
    if exists(wanted) {
        return Ok(wanted.to_owned());
    }
    if exists(BUILT) {
        eprintln!("using {BUILT}, built earlier (remove it with `podman rmi {BUILT}` to have {wanted} tried again)");
        return Ok(BUILT.to_owned());
    }
    eprintln!("pulling {wanted}");
    match pull(wanted) {
        Ok(()) => return Ok(wanted.to_owned()),
        Err(error) => eprintln!("{wanted} can't be pulled ({error}); building {BUILT} from Debian packages instead"),
    }
    build()?;
    Ok(BUILT.to_owned())
}

fn exists(image: &str) -> bool {
    sh::works("podman", &["image", "exists", image])
}

fn pull(image: &str) -> Done {
    let log = tempfile::NamedTempFile::new()?;
    let mut pull = sh::command("podman", &["pull", "--quiet", image]);
    let mut child = pull.stdout(std::process::Stdio::null()).stderr(log.reopen()?).spawn().context("podman pull")?;
    #[expect(clippy::disallowed_methods, reason = "no tokio here")]
    let end = Instant::now() + PULL_PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(log.path())?;
            return if status.success() { Ok(()) } else { fail(said.trim().lines().last().unwrap_or("podman gave no reason").to_owned()) };
        }
        #[expect(clippy::disallowed_methods, reason = "no tokio here")]
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            return fail(format!("no answer within {} s", PULL_PATIENCE.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// mmdebstrap makes the tree as a tar, podman imports it. About half a minute.
fn build() -> Done {
    let release = std::fs::read_to_string("/etc/os-release")?;
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("bookworm").trim_matches('"').to_owned();
    let dir = tempfile::tempdir()?;
    let tar = dir.path().join("base.tar");
    let tar = tar.to_str().ok_or_else(|| sh::Fail("the temporary directory's path isn't UTF-8".into()))?;
    sh::run("mmdebstrap", &["--quiet", "--variant=minbase", "--include=procps,less", &suite, tar])?;
    sh::read("podman", &["import", "--quiet", "--change", "ENV=LANG=C.UTF-8", tar, BUILT])?;
    Ok(())
}
