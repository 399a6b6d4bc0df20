//! `cargo xtask demo`: the main job, end to end, through the command line that a person uses.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use serde_json::Value;

use crate::{
    cli::Cli,
    image, machine,
    sh::{self, Context, Done, fail},
    terminal,
    testbed::{Testbed, until, utf8},
};

pub fn run(check: bool, wanted_image: &str, data_dir: Option<PathBuf>) -> Done {
    let (interrupted, interrupts) = mpsc::channel();
    ctrlc::set_handler(move || {
        let _ = interrupted.send(());
    })
    .context("handling Ctrl-C")?;
    let mut story = Story { number: 0, interrupts };
    story.step("what the machine needs is there", machine::prepare)?;
    let binary = story.step("atoll is built", || machine::build(false))?;
    let image = story.step("a base image is there", || image::obtain(wanted_image))?;
    let dir = data_dir.unwrap_or_else(|| sh::root().join(".data").join(if check { "demo-check" } else { "demo" }));
    let mut bed = Testbed::new(&dir, &binary)?;
    let told = tell(&mut story, &mut bed, &image);
    if let Err(error) = told {
        for name in ["master", "host-a", "host-b"] {
            eprintln!("  the end of {name}'s log:\n{}", crate::testbed::tail(&bed.log(name)));
        }
        bed.tear_down()?;
        return Err(error);
    }
    if !check {
        go_on(&bed);
        let _ = story.interrupts.recv();
        eprintln!("\nending");
    }
    story.step("everything is cleared up", || bed.tear_down())?;
    println!("{} steps, all right", story.number);
    Ok(())
}

/// Numbers the steps, says how long each took, and stops between two of them when Ctrl-C was pressed.
struct Story {
    number: usize,
    interrupts: mpsc::Receiver<()>,
}

impl Story {
    fn step<T>(&mut self, what: &str, act: impl FnOnce() -> Done<T>) -> Done<T> {
        if self.interrupts.try_recv().is_ok() {
            return fail("interrupted");
        }
        #[expect(clippy::disallowed_methods, reason = "no tokio here")]
        let start = std::time::Instant::now();
        let value = act().context(format!("step `{what}` failed"))?;
        self.number += 1;
        println!("  {:>2}  {what}  ({:.2} s)", self.number, start.elapsed().as_secs_f64());
        Ok(value)
    }
}

fn tell(story: &mut Story, bed: &mut Testbed, image: &str) -> Done {
    story.step("a master runs", || bed.start_master())?;
    story.step("the first account is made and the command line logged in", || bed.first_account("admin"))?;
    for name in ["a", "b"] {
        let volumes = story.step(&format!("host {name} has a file system for volumes"), || bed.volumes(name))?;
        story.step(&format!("host {name} joins and runs"), || bed.start_host(name, &volumes))?;
    }
    let cli = bed.cli();
    story.step("both hosts report", || both_online(&cli))?;
    story.step("project `thesis` is created on host a, with limits, and started", || create(&cli, image))?;
    story.step("a command runs in it", || command(&cli))?;
    story.step("its limits are seen from inside", || limits(&cli))?;
    if quotas(&cli)? {
        story.step("its disk limit holds", || disk_limit(&cli))?;
    }
    story.step("a folder goes up and comes back the same", || round_trip(&cli, &bed.dir))?;
    story.step("a terminal's program goes on while nobody looks", || terminal::persists(&cli))?;
    story.step("it stops; its files are still served", || stopped_files(&cli))?;
    story.step("it starts again with its files", || started_again(&cli))?;
    story.step("project `data` is placed on the other host", || second(&cli, image))
}

fn both_online(cli: &Cli) -> Done {
    until(Duration::from_secs(30), || {
        let hosts = cli.json(&["host", "list"])?;
        let online = list(&hosts, "hosts").iter().filter(|host| host["state"] == "online").count();
        Ok((online == 2).then_some(()))
    })
}

const LIMITS: [&str; 8] = ["--memory", "256M", "--cpu", "0.5", "--pids", "200", "--disk", "200M"];

fn create(cli: &Cli, image: &str) -> Done {
    let mut args = vec!["project", "create", "thesis", "--image", image, "--host", "a", "--start"];
    args.extend(LIMITS);
    cli.run(&args)?;
    expect(&cli.json(&["project", "info", "thesis"])?, &[("observed", "running"), ("host_name", "a")])
}

fn command(cli: &Cli) -> Done {
    let said = cli.run(&["exec", "thesis", "--", "sh", "-c", "echo $((6 * 7)) in $(hostname)"])?;
    same("the command's output", said.trim(), "42 in thesis")?;
    let ended = cli.output(&["exec", "thesis", "--", "sh", "-c", "echo wrong >&2; exit 7"])?;
    same("its exit code", &format!("{:?}", ended.status.code()), "Some(7)")?;
    same("its stderr", String::from_utf8_lossy(&ended.stderr).trim(), "wrong")
}

/// The limits as the container's control group shows them, in version 2 or 1.
fn limits(cli: &Cli) -> Done {
    let script = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes; cat pids.max 2>/dev/null || cat pids/pids.max; \
                  cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us) $(cat cpu/cpu.cfs_period_us)";
    let said = cli.run(&["exec", "thesis", "--", "sh", "-c", script])?;
    same("memory, pids and cpu", &said.split_whitespace().collect::<Vec<_>>().join(" "), "268435456 200 50000 100000")
}

fn quotas(cli: &Cli) -> Done<bool> {
    let hosts = cli.json(&["host", "list"])?;
    Ok(list(&hosts, "hosts").iter().all(|host| host["facts"]["capabilities"]["quotas"] == true))
}

fn disk_limit(cli: &Cli) -> Done {
    let filled = cli.output(&["exec", "thesis", "--", "sh", "-c", "dd if=/dev/zero of=big bs=1M count=300 conv=fsync"])?;
    let said = String::from_utf8_lossy(&filled.stderr).to_lowercase();
    if filled.status.success() || !said.contains("quota") {
        return fail(format!("300 MB went into 200 MB: {said}"));
    }
    cli.run(&["exec", "thesis", "--", "rm", "big"]).map(drop)
}

/// A folder with what tends to get lost: an empty folder, a link, an executable, a name with a space, a larger file.
fn round_trip(cli: &Cli, dir: &Path) -> Done {
    let (up, back) = (dir.join("paper"), dir.join("back"));
    fs::create_dir_all(up.join("figures/empty"))?;
    fs::write(up.join("main text.tex"), "\\documentclass{article}\n")?;
    fs::write(up.join("figures/build.sh"), "#!/bin/sh\n")?;
    fs::set_permissions(up.join("figures/build.sh"), fs::Permissions::from_mode(0o755))?;
    fs::write(up.join("figures/data.bin"), (0..3_000_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())?;
    std::os::unix::fs::symlink("figures/build.sh", up.join("build"))?;
    cli.run(&["cp", utf8(&up)?, "thesis:paper"])?;
    cli.run(&["cp", "thesis:paper", utf8(&back)?])?;
    let (sent, came) = (tree(&up)?, tree(&back)?);
    if sent != came {
        return fail(format!("what came back differs: sent {:?}, came {:?}", sent.keys(), came.keys()));
    }
    let listed = cli.run(&["exec", "thesis", "--", "sh", "-c", "cd paper && sh build && cat 'main text.tex'"])?;
    same("the text inside", listed.trim(), "\\documentclass{article}")
}

/// Path → mode and content of everything below a folder.
fn tree(root: &Path) -> Done<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            let content = if meta.is_symlink() {
                fs::read_link(&path)?.into_os_string().into_encoded_bytes()
            } else if meta.is_dir() {
                folders.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path)?
            };
            let mode = if meta.is_symlink() { 0 } else { meta.permissions().mode() & 0o777 };
            found.insert(path.strip_prefix(root).unwrap_or(&path).to_path_buf(), (mode, content));
        }
    }
    Ok(found)
}

fn stopped_files(cli: &Cli) -> Done {
    cli.run(&["project", "stop", "thesis"])?;
    expect(&cli.json(&["project", "info", "thesis"])?, &[("observed", "stopped")])?;
    let text = cli.run(&["cp", "thesis:paper/main text.tex", "-"])?;
    same("the file", text.trim(), "\\documentclass{article}")
}

fn started_again(cli: &Cli) -> Done {
    cli.run(&["project", "start", "thesis"])?;
    let said = cli.run(&["exec", "thesis", "--", "cat", "paper/main text.tex"])?;
    same("the file", said.trim(), "\\documentclass{article}")
}

fn second(cli: &Cli, image: &str) -> Done {
    cli.run(&["project", "create", "data", "--image", image, "--memory", "256M", "--disk", "500M", "--start"])?;
    // equal machines, and a has less left: placement has one right answer
    expect(&cli.json(&["project", "info", "data"])?, &[("observed", "running"), ("host_name", "b")])?;
    let projects = cli.json(&["project", "list"])?;
    same("the number of projects", &list(&projects, "projects").len().to_string(), "2")
}

fn go_on(bed: &Testbed) {
    let cli = bed.cli();
    println!("\nIt stays up until Ctrl-C, which removes it all. In another terminal:\n");
    println!("  export ATOLL_MASTER={} ATOLL_CREDENTIALS={}", cli.master, cli.credentials.display());
    println!("  alias atoll={}", bed.binary.display());
    for line in [
        "project list",
        "host list",
        "shell thesis",
        "exec thesis -- ls -l paper",
        "cp thesis:paper /tmp/paper",
        "operation list",
        "--help",
    ] {
        println!("  atoll {line}");
    }
    println!("\nLogs: {}/*.log", bed.dir.display());
}

/// The array in a list reply, whether it is the reply itself or a field of it.
pub fn list<'a>(reply: &'a Value, field: &str) -> &'a [Value] {
    reply.as_array().or_else(|| reply[field].as_array()).map_or(&[], Vec::as_slice)
}

pub fn same(what: &str, is: &str, should: &str) -> Done {
    if is == should { Ok(()) } else { fail(format!("{what} is {is:?}; it should be {should:?}")) }
}

pub fn expect(reply: &Value, fields: &[(&str, &str)]) -> Done {
    for (field, should) in fields {
        if reply[field] != *should {
            return fail(format!("{field} is {}; it should be {should}: {reply}", reply[field]));
        }
    }
    Ok(())
}
