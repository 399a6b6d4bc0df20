//! What is said of a podman that works in part or not at all.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use atoll_contract::{ErrorCode, host::Severity};
use atoll_host::{
    doctor,
    runtime::{
        Runtime,
        podman::{PodmanConfig, PodmanRuntime},
    },
    storage::StorageConfig,
    testing::skipped,
};
use atoll_net::clock::SystemClock;

use crate::support::{Host, project};

#[tokio::test]
async fn a_podman_that_is_dead_or_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let host = "0198c0de-0000-7000-8000-0000000000fe".parse().unwrap();
    let open = async |podman: PathBuf| {
        let mut config = PodmanConfig::new(host, std::env::current_exe().unwrap());
        config.podman = podman;
        config.call_timeout = Duration::from_millis(300);
        PodmanRuntime::open(config, Arc::new(SystemClock)).await
    };
    let broken = open(script("broken", "echo 'Error: everything is broken' >&2; exit 125")).await;
    assert_eq!(broken.findings()[0].code, "runtime.podman_failed");
    let error = broken.list().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::RuntimeFailed);
    assert!(error.message.contains("everything is broken"), "{error:?}");
    // works at the start, hangs afterwards
    let info = r#"echo '{"host":{"ociRuntime":{"name":"runc"}},"version":{"Version":"4.3.1"}}'"#;
    let text = format!("case \"$*\" in *info*) {info};; *--rootfs*) ;; *) sleep 1000;; esac");
    let hanging = open(script("hanging", &text)).await;
    assert!(hanging.findings().iter().any(|finding| finding.code == "runtime.ok"), "{:?}", hanging.findings());
    let error = tokio::time::timeout(Duration::from_secs(10), hanging.list()).await.unwrap().unwrap_err();
    assert_eq!((error.code, error.message.contains("in time")), (ErrorCode::RuntimeFailed, true), "{error:?}");
    let error = tokio::time::timeout(Duration::from_secs(10), hanging.ensure_removed(project(1))).await;
    assert_eq!(error.unwrap().unwrap_err().code, ErrorCode::RuntimeFailed);
}

/// The search for what works, with a podman whose OCI runtimes and networks refuse.
#[tokio::test]
async fn the_probe_takes_what_works_and_says_what_does_not() {
    if !rustix::process::geteuid().is_root() {
        skipped("the_probe_takes_what_works_and_says_what_does_not", "user namespaces are mapped by root only");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let info = r#"echo '{"host":{"security":{"rootless":false},"ociRuntime":{"name":"crun"},"cgroupControllers":["memory","cpu","pids"]},"version":{"Version":"4.3.1"},"store":{"graphDriverName":"vfs"}}'"#;
    let open = async |name: &str, cases: &str| {
        let path = dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\ncase \"$*\" in *\" info \"*) {info};;\n*\" rm \"*) ;;\n{cases}\nesac\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let host = "0198c0de-0000-7000-8000-0000000000fd".parse().unwrap();
        let config = PodmanConfig { podman: path, ..PodmanConfig::new(host, std::env::current_exe().unwrap()) };
        PodmanRuntime::open(config, Arc::new(SystemClock)).await.findings().into_iter().map(|finding| finding.code).collect::<Vec<_>>()
    };
    let crun =
        "echo 'Error: OCI runtime error: crun: cgroups in hybrid mode not supported, drop all controllers from cgroupv2' >&2; exit 126";
    let codes = open("crun", &format!("*\"--runtime runc\"*) ;;\n*) {crun};;")).await;
    assert!(codes.contains(&"runtime.crun_refuses_cgroups".into()) && codes.contains(&"runtime.ok".into()), "{codes:?}");
    assert!(codes.contains(&"runtime.slow_mapping".into()), "{codes:?}");
    let codes = open("network", "*--network=none*) ;;\n*) echo 'Error: netavark: iptables: not found' >&2; exit 126;;").await;
    assert!(codes.contains(&"runtime.network_none".into()) && codes.contains(&"runtime.ok".into()), "{codes:?}");
    let codes = open("limits", "*--memory=*) echo 'Error: no cgroup' >&2; exit 126;;").await;
    assert!(codes.contains(&"runtime.limits_refused".into()) && codes.contains(&"runtime.ok".into()), "{codes:?}");
    let codes = open("userns", "*--uidmap=*) echo 'Error: clone: no space left on device' >&2; exit 126;;").await;
    assert_eq!(codes, ["runtime.user_namespace"]);
    let codes = open("nothing", "*) echo 'Error: no' >&2; exit 126;;").await;
    assert_eq!(codes, ["runtime.no_oci_runtime"]);
}

#[tokio::test]
async fn the_doctor_looks_at_everything_and_leaves_nothing() {
    let Some(host) = Host::new("the_doctor_looks_at_everything_and_leaves_nothing").await else { return };
    let path = host.dir.path().join("not-there-yet");
    let storage = StorageConfig { path: path.clone(), ..StorageConfig::default() };
    let findings = doctor::examine(host.config.clone(), storage, Arc::new(SystemClock)).await;
    let has = |group: &str| findings.iter().any(|finding| finding.code.starts_with(group));
    assert!(has("kernel.") && has("runtime.ok") && has("storage."), "{findings:#?}");
    assert!(!path.exists());
    for finding in &findings {
        assert!(finding.severity == Severity::Ok || !finding.mend.is_empty(), "{finding:?}");
        println!("{finding:?}");
    }
    assert!(!fs::read_dir(std::env::temp_dir()).unwrap().flatten().any(|entry| {
        // those of tests that run at the same time don't count
        entry.file_name().to_string_lossy().starts_with("atoll-probe-")
            && entry.metadata().is_ok_and(|meta| meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > Duration::from_mins(2))))
    }));
}
