//! What happens when parts are killed or asked for nonsense: real processes, real podman, through the command line.
//! Part of `cargo xtask test`.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    cli::Cli,
    demo::{expect, list, same},
    sh::{self, Context, Done, fail},
    terminal::Shell,
    testbed::{Testbed, free_address, until, utf8},
};

const PATIENCE: Duration = Duration::from_mins(1);

/// Runs every case on one cluster; a case that fails doesn't keep the others from being tried.
pub fn run(binary: &std::path::Path, image: &str) -> Done {
    let dir = sh::root().join(".data/faults");
    let mut bed = Testbed::new(&dir, binary)?;
    bed.start_master()?;
    bed.first_account("admin")?;
    let volumes = bed.volumes("a")?;
    bed.start_host("a", &volumes)?;
    online(&bed.cli())?;
    type Case = fn(&mut Testbed, &str) -> Done;
    let cases: [(&str, Case); 12] = [
        ("a killed host program finds its container, terminal and scrollback again", killed_host),
        ("a master killed during create leaves exactly one project and container", killed_master_create),
        ("a master killed during start leaves exactly one container", killed_master_start),
        ("a master that is away doesn't stop work in a running project", absent_master),
        ("an unknown image is a clear error and leaves nothing", unknown_image),
        ("a project that fits nowhere is refused with reasons", no_room),
        ("a port in use is a clear error", port_in_use),
        ("a wrong config is a clear error before any port is bound", wrong_config),
        ("a dead podman is said by doctor and by the host, which gets no projects", dead_podman),
        ("a killed host is waited for by what was asked of it", absent_host),
        ("`atoll up` serves one person, stops, and comes back with everything", up),
        ("a full disk is a clear error and loses nothing", full_disk),
    ];
    let mut failed = 0;
    for (what, case) in cases {
        match case(&mut bed, image) {
            Ok(()) => println!("test faults: {what} ... ok"),
            Err(error) => {
                failed += 1;
                println!("test faults: {what} ... FAILED\n  {error}");
                for name in ["master", "host-a"] {
                    println!("  the end of {name}'s log:\n{}", crate::testbed::tail(&bed.log(name)));
                    bed.restart_if_dead(name)?;
                }
            }
        }
    }
    bed.tear_down()?;
    if failed == 0 { Ok(()) } else { fail(format!("{failed} of {} fault cases failed", cases.len())) }
}

fn online(cli: &Cli) -> Done {
    until(PATIENCE, || {
        let hosts = cli.json(&["host", "list"])?;
        Ok(list(&hosts, "hosts").iter().all(|host| host["state"] == "online").then_some(()))
    })
    .context("waiting for the host to report")
}

const SMALL: [&str; 6] = ["--memory", "128M", "--cpu", "0.5", "--disk", "100M"];

fn create(cli: &Cli, name: &str, image: &str, more: &[&str]) -> Done<String> {
    let mut args = vec!["project", "create", name, "--image", image];
    args.extend(SMALL);
    args.extend(more);
    cli.run(&args)
}

/// Ids of the containers that run or ran for a project.
fn containers(project: &str) -> Done<Vec<String>> {
    let label = format!("label=atoll.project={project}");
    let ids = sh::read("podman", &["ps", "--all", "--quiet", "--no-trunc", "--filter", &label])?;
    Ok(ids.lines().map(str::to_owned).collect())
}

fn id_of(cli: &Cli, name: &str) -> Done<String> {
    let info = cli.json(&["project", "info", name])?;
    info["id"].as_str().map(str::to_owned).ok_or_else(|| sh::Fail(format!("no id in {info}")))
}

fn observed(cli: &Cli, name: &str, state: &str) -> Done {
    let mut last = Value::Null;
    let seen = until(PATIENCE, || {
        last = cli.json(&["project", "info", name])?;
        Ok((last["observed"] == state).then_some(()))
    });
    seen.context(format!("waiting for {name} to be {state}, last {last}"))
}

fn killed_host(bed: &mut Testbed, image: &str) -> Done {
    let cli = bed.cli();
    create(&cli, "kept", image, &["--start"])?;
    let id = id_of(&cli, "kept")?;
    let before = containers(&id)?;
    let mut shell = Shell::open(&cli, "kept", "main")?;
    shell.say("i=0; while :; do i=$((i+1)); echo tick-$i; sleep 0.1; done\n")?;
    shell.sees("tick-5")?;
    bed.kill("host-a")?;
    shell.leave();
    bed.restart("host-a")?;
    observed(&cli, "kept", "running")?;
    same("the container", &format!("{:?}", containers(&id)?), &format!("{before:?}"))?;
    let again = Shell::open(&cli, "kept", "main")?;
    again.sees("tick-1\r\n").context("the scrollback from before")?;
    let count = || again.text().matches("tick-").count();
    let first = count();
    until(PATIENCE, || Ok((count() > first + 5).then_some(()))).context("the program going on")?;
    again.detach()?;
    cli.run(&["project", "delete", "kept", "--yes"]).map(drop)
}

/// Waits until nothing of the project is under way any more.
fn settled(cli: &Cli) -> Done {
    until(PATIENCE, || {
        let operations = cli.json(&["operation", "list"])?;
        let open = list(&operations, "operations").iter().any(|one| one["status"] == "running" || one["status"] == "undoing");
        Ok((!open).then_some(()))
    })
    .context("waiting for operations to end")
}

/// Spread over what a create takes on this kind of machine, so that every step is hit.
const DELAYS_MILLIS: [u64; 8] = [0, 10, 30, 60, 120, 250, 400, 700];

fn killed_master_create(bed: &mut Testbed, image: &str) -> Done {
    let cli = bed.cli();
    for delay in DELAYS_MILLIS {
        let name = format!("cut-{delay}");
        let mut args = vec!["project", "create", &name, "--image", image, "--start"];
        args.extend(SMALL);
        // killed while the command waits, however far it got
        let mut waiting = cli.command(&args).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(delay));
        bed.kill("master")?;
        bed.restart("master")?;
        online(&cli)?;
        let _ = waiting.kill();
        let _ = waiting.wait();
        settled(&cli)?;
        let projects = cli.json(&["project", "list"])?;
        let ours: Vec<&Value> = list(&projects, "projects").iter().filter(|project| project["spec"]["name"] == name.as_str()).collect();
        match ours.as_slice() {
            // the request hadn't been accepted when the master died: nothing may be left
            [] => {}
            [one] => {
                observed(&cli, &name, "running")?;
                let id = one["id"].as_str().unwrap_or_default();
                same("the number of containers", &containers(id)?.len().to_string(), "1")?;
                cli.run(&["exec", &name, "--", "true"])?;
                cli.run(&["project", "delete", &name, "--yes"])?;
                same("the number of containers after delete", &containers(id)?.len().to_string(), "0")?;
            }
            more => return fail(format!("{} projects named {name}", more.len())),
        }
    }
    Ok(())
}

fn killed_master_start(bed: &mut Testbed, image: &str) -> Done {
    let cli = bed.cli();
    create(&cli, "restarted", image, &[])?;
    let id = id_of(&cli, "restarted")?;
    for delay in DELAYS_MILLIS {
        cli.run(&["project", "start", "restarted", "--no-wait"])?;
        std::thread::sleep(Duration::from_millis(delay));
        bed.kill("master")?;
        bed.restart("master")?;
        online(&cli)?;
        settled(&cli)?;
        observed(&cli, "restarted", "running")?;
        same("the number of containers", &containers(&id)?.len().to_string(), "1")?;
        cli.run(&["project", "stop", "restarted"])?;
    }
    cli.run(&["project", "delete", "restarted", "--yes"]).map(drop)
}

fn absent_master(bed: &mut Testbed, image: &str) -> Done {
    let cli = bed.cli();
    create(&cli, "island", image, &["--start"])?;
    let mut shell = Shell::open(&cli, "island", "main")?;
    shell.say("echo before-$((1+1))\n")?;
    shell.sees("before-2")?;
    bed.kill("master")?;
    shell.say("echo after-$((1+1))\n")?;
    shell.sees("after-2").context("with the master away")?;
    bed.restart("master")?;
    online(&cli)?;
    shell.detach()?;
    observed(&cli, "island", "running")?;
    cli.run(&["project", "delete", "island", "--yes"]).map(drop)
}

/// The error that a call gives as JSON; fails if the call succeeds.
fn error_of(cli: &Cli, args: &[&str]) -> Done<Value> {
    let args: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
    let output = cli.output(&args)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return fail(format!("atoll {} succeeded", args.join(" ")));
    }
    // progress lines may stand before it
    let error =
        said.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok()).or_else(|| serde_json::from_str(said.trim()).ok());
    error.ok_or_else(|| sh::Fail(format!("no JSON error in {said:?}")))
}

fn unknown_image(bed: &mut Testbed, _: &str) -> Done {
    let cli = bed.cli();
    let mut args = vec!["project", "create", "nothing", "--image", "localhost/no-such-image:1", "--start"];
    args.extend(SMALL);
    let error = error_of(&cli, &args)?;
    expect(&error, &[("code", "image_unavailable")])?;
    settled(&cli)?;
    expect(&error_of(&cli, &["project", "info", "nothing"])?, &[("code", "not_found")])
}

fn no_room(bed: &mut Testbed, image: &str) -> Done {
    let cli = bed.cli();
    let error = error_of(&cli, &["project", "create", "huge", "--image", image, "--memory", "32T"])?;
    expect(&error, &[("code", "no_room")])?;
    if !error.to_string().contains("too_little_memory") {
        return fail(format!("no reason is given: {error}"));
    }
    expect(&error_of(&cli, &["project", "info", "huge"])?, &[("code", "not_found")])
}

fn port_in_use(bed: &mut Testbed, _: &str) -> Done {
    let config = bed.dir.join("second.toml");
    fs::write(&config, format!("[master]\nlisten = \"{}\"\ndata_dir = {:?}\n", bed.master, bed.dir.join("second")))?;
    let output = bed.cli().output(&["serve", "master", "--config", utf8(&config)?])?;
    let said = String::from_utf8_lossy(&output.stderr);
    let clear = !output.status.success() && said.contains(&bed.master.to_string()) && said.contains("in use");
    if clear { Ok(()) } else { fail(format!("{}: {said}", output.status)) }
}

fn wrong_config(bed: &mut Testbed, _: &str) -> Done {
    let cases = [
        ("[master]\nlisten = 5\n", "listen"),
        ("[master]\nlissten = \"127.0.0.1:1\"\n", "lissten"),
        ("[master]\nlisten = \"127.0.0.1:99999\"\n", "listen"),
        ("[master\n", "line 1"),
    ];
    for (text, named) in cases {
        let config = bed.dir.join("wrong.toml");
        fs::write(&config, text)?;
        let output = bed.cli().output(&["serve", "master", "--config", utf8(&config)?])?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || !said.contains(named) || !said.contains("wrong.toml") || said.contains("panicked") {
            return fail(format!("for {text:?}: {}: {said}", output.status));
        }
    }
    Ok(())
}

/// A project whose quota is larger than what its file system has left fills the file system.
fn full_disk(bed: &mut Testbed, image: &str) -> Done {
    if !sh::is_root() {
        eprintln!("skipped: faults::full_disk: needs root for a file system of its own");
        return Ok(());
    }
    let cli = bed.cli();
    let mut args = vec!["project", "create", "full", "--image", image, "--disk", "1G", "--start"];
    args.extend(&SMALL[..4]);
    cli.run(&args)?;
    cli.run(&["exec", "full", "--", "sh", "-c", "echo kept > kept"])?;
    let ballast = bed.dir.join("volumes-a/ballast");
    let filled = sh::output(&mut sh::command("dd", &["if=/dev/zero", &format!("of={}", utf8(&ballast)?), "bs=4M", "count=2000"]))?;
    let big = bed.dir.join("big.bin");
    fs::write(&big, vec![1u8; 40 << 20])?;
    let refused = error_of(&cli, &["cp", utf8(&big)?, "full:big"]);
    let kept = cli.run(&["exec", "full", "--", "cat", "kept"]);
    fs::remove_file(&ballast)?;
    if filled.status.success() {
        return fail("the file system didn't fill");
    }
    expect(&refused?, &[("code", "disk_full")])?;
    same("the file written before", kept?.trim(), "kept")?;
    same("what is left of the upload", cli.run(&["exec", "full", "--", "sh", "-c", "ls"])?.trim(), "kept")?;
    cli.run(&["project", "delete", "full", "--yes"]).map(drop)
}

fn dead_podman(bed: &mut Testbed, image: &str) -> Done {
    let cli = bed.cli();
    let config = bed.dir.join("lame.toml");
    let (master, data) = (bed.master, bed.dir.join("lame"));
    let text = format!(
        "[host]\nname = \"lame\"\nmaster_url = \"http://{master}\"\nlisten = \"127.0.0.1:0\"\npublic_url = \"http://127.0.0.1:9\"\ndata_dir = {data:?}\n"
    );
    fs::write(&config, format!("{text}[host.runtime]\npodman = \"/nonexistent/podman\"\n"))?;
    let doctor = cli.output(&["--json", "doctor", "--config", utf8(&config)?])?;
    let said = String::from_utf8_lossy(&doctor.stdout);
    if doctor.status.code() != Some(1) || !said.contains("runtime.") {
        return fail(format!("doctor ended with {} and said {said}", doctor.status));
    }
    let token = cli.json(&["host", "join-token", "--name", "lame"])?;
    let file = bed.dir.join("lame-token");
    crate::testbed::write_secret(&file, token["token"].as_str().unwrap_or_default())?;
    cli.run(&["host", "join", "--config", utf8(&config)?, "--token-file", utf8(&file)?])?;
    let mut lame = cli.command(&["serve", "host", "--config", utf8(&config)?]).stderr(std::process::Stdio::null()).spawn()?;
    let unhealthy = until(PATIENCE, || Ok((cli.json(&["host", "info", "lame"])?["state"] == "unhealthy").then_some(())));
    let refused = error_of(&cli, &["project", "create", "nowhere", "--image", image, "--host", "lame"]);
    lame.kill()?;
    lame.wait()?;
    unhealthy.context("waiting for the host to be unhealthy")?;
    let refused = refused?;
    expect(&refused, &[("code", "no_room")])?;
    if refused.to_string().contains("unhealthy") { Ok(()) } else { fail(format!("the reason isn't given: {refused}")) }
}

fn absent_host(bed: &mut Testbed, image: &str) -> Done {
    let cli = bed.cli();
    create(&cli, "patient", image, &[])?;
    bed.kill("host-a")?;
    let accepted = cli.json(&["project", "start", "patient", "--no-wait"])?;
    let operation = accepted["operation"].as_str().unwrap_or_default().to_owned();
    // it has been tried in vain at least once before the host is back
    until(PATIENCE, || Ok((cli.json(&["operation", "info", &operation])?["attempts"].as_u64() > Some(0)).then_some(())))
        .context("waiting for an attempt")?;
    bed.restart("host-a")?;
    settled(&cli)?;
    expect(&cli.json(&["operation", "info", &operation])?, &[("status", "done")])?;
    observed(&cli, "patient", "running")?;
    cli.run(&["project", "delete", "patient", "--yes"]).map(drop)
}

/// A person's own machine: one process, a plain directory.
fn up(bed: &mut Testbed, image: &str) -> Done {
    let data = bed.dir.join("up");
    let listen = free_address()?;
    let cli = Cli { master: format!("http://{listen}"), credentials: bed.dir.join("up-credentials.json"), ..bed.cli() };
    let serve = || {
        let log = fs::File::options().create(true).append(true).open(bed.dir.join("up.log"))?;
        let args = ["up", "--data-dir", utf8(&data)?, "--listen", &listen.to_string(), "--storage", "dir"];
        Ok::<_, sh::Fail>(cli.command(&args).stdout(log.try_clone()?).stderr(log).spawn()?)
    };
    let mut server = serve()?;
    let lived = one_persons_day(bed, &cli, &data, image);
    let ended = crate::testbed::end(&mut server);
    lived.map_err(|error| sh::Fail(format!("{error}\n{}", crate::testbed::tail(&bed.dir.join("up.log")))))?;
    ended?;
    let mut server = serve()?;
    let back = until(PATIENCE, || Ok(cli.output(&["exec", "own", "--", "cat", "kept"])?.stdout.starts_with(b"kept").then_some(())));
    let removed = cli.run(&["project", "delete", "own", "--yes"]);
    crate::testbed::end(&mut server)?;
    back.context("the project after a restart")?;
    removed.map(drop)
}

fn one_persons_day(bed: &Testbed, cli: &Cli, data: &std::path::Path, image: &str) -> Done {
    let password = bed.dir.join("password");
    let token = data.join("master/setup-token");
    until(PATIENCE, || Ok(token.exists().then_some(()))).context("waiting for the setup token")?;
    cli.run(&["setup", "--name", "me", "--token-file", utf8(&token)?, "--password-file", utf8(&password)?])?;
    online(cli)?;
    create(cli, "own", image, &["--start"])?;
    cli.run(&["exec", "own", "--", "sh", "-c", "echo kept > kept"]).map(drop)
}
