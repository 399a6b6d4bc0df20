//! The same with the real podman and btrfs.
#![expect(clippy::unwrap_used, reason = "tests, and what prepares them")]

use atoll_cluster::{Cluster, api, real::Machine};
use atoll_contract::{
    Error, ErrorCode,
    api::CreateProject,
    placement::Requirements,
    project::{Limits, ObservedState, ProjectSpec},
};
use reqwest::Method;

fn request(name: &str, image: &str) -> CreateProject {
    let limits = Limits { memory_bytes: 128 << 20, cpu_millis: 500, pids: 64, disk_bytes: 64 << 20 };
    let spec = ProjectSpec { image: image.into(), limits, ..api::spec(name) };
    CreateProject { spec, requirements: Requirements::default(), start: true, idempotency_key: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hostname_network_and_quota_are_seen_from_inside() -> Result<(), Error> {
    let Some(machine) = Machine::find("real::limits").await else { return Ok(()) };
    let mut cluster = Cluster::new().await?;
    machine.add_host(&mut cluster, "r0").await?;
    let made = cluster.api.create_with(&request("inside", &machine.image)).await?;
    cluster.api.done(made.operation).await?;
    let remote = cluster.api.connect(made.project).await?;
    let sh =
        async |script: &str| remote.exec(&["sh", "-c", script]).await.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());

    assert_eq!(sh("hostname").await?, "inside");
    assert_eq!(sh("pwd; echo $HOME").await?, "/home/user\n/home/user");
    let memory = "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(sh(memory).await?, (128 << 20).to_string());
    // beyond the limit on processes, forks fail; the agent itself goes on
    let forks = sh("i=0; while [ $i -lt 100 ]; do sleep 30 & i=$((i+1)); done 2>&1 | grep -ci 'fork' ; true").await;
    assert!(forks.is_ok(), "{forks:?}");
    assert_eq!(sh("echo alive").await?, "alive");
    // its root isn't the machine's
    assert_ne!(sh("cut -d' ' -f1 /proc/self/uid_map | head -1; awk '{print $2}' /proc/self/uid_map").await?, "0\n0");
    let filled = remote.exec(&["dd", "if=/dev/zero", "of=big", "bs=1M", "count=100", "conv=fsync"]).await?;
    assert!(filled.exit.code != 0 && String::from_utf8_lossy(&filled.stderr).to_lowercase().contains("quota"), "{filled:?}");
    // the gate says the same in its own words
    let put = remote.files(Method::PUT, "more").body(vec![0; 8 << 20]).send().await.unwrap();
    assert_eq!(put.status().as_u16(), 507);
    assert_eq!(put.json::<Error>().await.unwrap().code, ErrorCode::QuotaExceeded);
    cluster.api.delete(made.project).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_made_outside_belong_to_the_projects_root_and_the_other_way_round() -> Result<(), Error> {
    let Some(machine) = Machine::find("real::files").await else { return Ok(()) };
    let mut cluster = Cluster::new().await?;
    machine.add_host(&mut cluster, "r0").await?;
    let made = cluster.api.create_with(&request("files", &machine.image)).await?;
    cluster.api.done(made.operation).await?;
    let remote = cluster.api.connect(made.project).await?;
    assert!(remote.files(Method::PUT, "from-outside").body("a").send().await.unwrap().status().is_success());
    let said = remote.exec(&["sh", "-c", "stat -c %u:%g from-outside; echo b >> from-outside; echo inside > from-inside"]).await?;
    assert_eq!((said.stdout.as_slice(), said.exit.code), (&b"0:0\n"[..], 0));
    cluster.api.act(made.project, "stop").await?;
    for (path, text) in [("from-outside", "ab\n"), ("from-inside", "inside\n")] {
        assert_eq!(remote.files(Method::GET, path).send().await.unwrap().text().await.unwrap(), text);
    }
    cluster.api.delete(made.project).await?;
    cluster.end().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_neither_shell_nor_libc_runs() -> Result<(), Error> {
    let Some(machine) = Machine::find("real::bare_image").await else { return Ok(()) };
    let image = bare_image().await;
    let mut cluster = Cluster::new().await?;
    machine.add_host(&mut cluster, "r0").await?;
    let made = cluster.api.create_with(&request("bare", &image)).await?;
    cluster.api.done(made.operation).await?;
    let remote = cluster.api.connect(made.project).await?;
    // the only program there is Atoll's own
    let said = remote.exec(&["/.atoll/atoll", "--version"]).await?;
    assert!(said.stdout.starts_with(b"atoll "), "{said:?}");
    assert_eq!(remote.exec(&["sh"]).await.unwrap_err().code, ErrorCode::NotFound);
    cluster.api.delete(made.project).await?;
    cluster.end().await;
    run("podman", &["rmi", "--force", &image]).await;
    Ok(())
}

/// An image of one empty file.
async fn bare_image() -> String {
    let dir = tempfile::tempdir().unwrap();
    let (tar, image) = (dir.path().join("bare.tar"), format!("localhost/atoll-bare-{}:latest", std::process::id()));
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let tar = tar.to_str().unwrap();
    run("tar", &["-cf", tar, "-C", dir.path().to_str().unwrap(), "empty"]).await;
    run("podman", &["import", "--quiet", tar, &image]).await;
    image
}

#[expect(clippy::disallowed_methods, reason = "a test's own preparation")]
async fn run(program: &str, args: &[&str]) {
    let output = tokio::process::Command::new(program).args(args).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hosts_on_one_machine_dont_touch_each_others_containers() -> Result<(), Error> {
    let Some(machine) = Machine::find("real::two_hosts").await else { return Ok(()) };
    let mut cluster = Cluster::new().await?;
    for name in ["r0", "r1"] {
        machine.add_host(&mut cluster, name).await?;
    }
    let pinned = |name: &str, host: &str| CreateProject {
        requirements: Requirements { host: Some(host.into()), ..Requirements::default() },
        ..request(name, &machine.image)
    };
    let mut made = Vec::new();
    for (name, host) in [("a", "r0"), ("b", "r1")] {
        let accepted = cluster.api.create_with(&pinned(name, host)).await?;
        cluster.api.done(accepted.operation).await?;
        made.push(accepted.project);
    }
    // a restart is when a host removes what isn't its own
    cluster.stop_host(0).await;
    cluster.start_host(0).await?;
    for project in &made {
        cluster.api.observed(*project, ObservedState::Running).await?;
        let here = async |api: &api::Api| api.connect(*project).await?.exec(&["echo", "here"]).await.map(Some);
        assert_eq!(cluster.api.wait("the agent to be back", here).await?.stdout, b"here\n");
    }
    for project in made {
        cluster.api.delete(project).await?;
    }
    cluster.end().await;
    Ok(())
}
