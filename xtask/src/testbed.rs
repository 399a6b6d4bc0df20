//! A cluster on this machine: btrfs file systems on loop-mounted files, a master and hosts as processes of the one binary, on
//! loopback. Everything it made goes away when it is dropped; what a killed run left behind is removed first.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};

use crate::{
    cli::Cli,
    sh::{self, Context, Done, fail},
};

const VOLUME_BYTES: u64 = 4 << 30;
/// How long a server may take to answer its first request.
const UP_PATIENCE: Duration = Duration::from_secs(30);

pub struct Testbed {
    pub dir: PathBuf,
    pub binary: PathBuf,
    pub master: SocketAddr,
    servers: Vec<Server>,
    mounts: Vec<PathBuf>,
    /// Host ids, to find this cluster's containers by their label.
    host_ids: Vec<String>,
}

struct Server {
    name: String,
    config: PathBuf,
    listen: SocketAddr,
    child: Child,
}

impl Testbed {
    /// A fresh, empty cluster directory with nothing running in it.
    pub fn new(dir: &Path, binary: &Path) -> Done<Self> {
        clear_leftovers(dir)?;
        fs::create_dir_all(dir).context(format!("making {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let binary = binary.to_path_buf();
        Ok(Self { dir, binary, master: free_address()?, servers: Vec::new(), mounts: Vec::new(), host_ids: Vec::new() })
    }

    pub fn cli(&self) -> Cli {
        Cli { binary: self.binary.clone(), master: format!("http://{}", self.master), credentials: self.dir.join("credentials.json") }
    }

    /// A master, without an account yet.
    pub fn start_master(&mut self) -> Done {
        let config = self.dir.join("master.toml");
        fs::write(&config, format!("[master]\nlisten = \"{}\"\ndata_dir = {:?}\n", self.master, self.dir.join("master")))?;
        self.serve("master", &config, self.master)
    }

    /// Makes the first account and logs the command line in.
    pub fn first_account(&self, name: &str) -> Done {
        let password = self.dir.join("password");
        write_secret(&password, "a demo of Atoll on loopback")?;
        let token = self.dir.join("master/setup-token");
        self.cli().run(&["setup", "--name", name, "--token-file", utf8(&token)?, "--password-file", utf8(&password)?])?;
        Ok(())
    }

    /// A btrfs file system of its own for a host, where this machine allows it.
    pub fn volumes(&mut self, name: &str) -> Done<PathBuf> {
        let mount = self.dir.join(format!("volumes-{name}"));
        fs::create_dir_all(&mount)?;
        if sh::is_root() {
            let image = self.dir.join(format!("{name}.btrfs"));
            File::create(&image)?.set_len(VOLUME_BYTES)?;
            sh::read("mkfs.btrfs", &["--quiet", utf8(&image)?])?;
            // detached by the kernel at the unmount
            sh::read("mount", &["-t", "btrfs", "-o", "loop", utf8(&image)?, utf8(&mount)?])?;
            self.mounts.push(mount.clone());
        } else {
            eprintln!("not root, so host {name} gets a plain directory: no quotas");
        }
        Ok(mount)
    }

    /// Joins a host to the master and starts it.
    pub fn start_host(&mut self, name: &str, volumes: &Path) -> Done {
        let listen = free_address()?;
        let config = self.dir.join(format!("host-{name}.toml"));
        let (master, data) = (self.master, self.dir.join(format!("host-{name}")));
        let server = format!("name = \"{name}\"\nmaster_url = \"http://{master}\"\nlisten = \"{listen}\"\ndata_dir = {data:?}");
        fs::write(&config, format!("[host]\n{server}\n\n[host.storage]\npath = {volumes:?}\n"))?;
        let cli = self.cli();
        let token = cli.json(&["host", "join-token", "--name", name])?;
        let file = self.dir.join(format!("join-token-{name}"));
        write_secret(&file, token["token"].as_str().unwrap_or_default())?;
        let joined = cli.json(&["host", "join", "--config", utf8(&config)?, "--token-file", utf8(&file)?])?;
        let id = joined["host"].as_str().ok_or_else(|| sh::Fail(format!("`host join` named no host: {joined}")))?;
        self.host_ids.push(id.to_owned());
        self.remember()?;
        fs::remove_file(file)?;
        self.serve(&format!("host-{name}"), &config, listen)
    }

    /// Starts a server with its log in a file, and waits until it answers.
    fn serve(&mut self, name: &str, config: &Path, listen: SocketAddr) -> Done {
        let child = self.spawn(name, config)?;
        self.servers.push(Server { name: name.to_owned(), config: config.to_path_buf(), listen, child });
        self.remember()?;
        self.wait_up(name)
    }

    fn spawn(&self, name: &str, config: &Path) -> Done<Child> {
        let role = if name == "master" { "master" } else { "host" };
        let log = || File::options().create(true).append(true).open(self.log(name));
        let mut command = sh::command(&self.binary, &["serve", role, "--config", utf8(config)?]);
        // its own process group: Ctrl-C in the terminal is this program's to handle
        command.process_group(0).stdout(log()?).stderr(log()?).spawn().context(sh::shown(&command))
    }

    fn wait_up(&mut self, name: &str) -> Done {
        let log = self.log(name);
        let server = self.server(name)?;
        let up = until(UP_PATIENCE, || match server.child.try_wait()? {
            Some(status) => fail(format!("{name} ended with {status}")),
            None => Ok(healthy(server.listen).then_some(())),
        });
        up.map_err(|error| sh::Fail(format!("{name} didn't come up: {error}\n{}", tail(&log))))
    }

    fn server(&mut self, name: &str) -> Done<&mut Server> {
        self.servers.iter_mut().find(|server| server.name == name).ok_or_else(|| sh::Fail(format!("no server {name}")))
    }

    /// SIGKILL, as a power cut would end it.
    pub fn kill(&mut self, name: &str) -> Done {
        let server = self.server(name)?;
        server.child.kill()?;
        server.child.wait()?;
        Ok(())
    }

    /// Starts a server again that was killed, on the same address and data.
    pub fn restart(&mut self, name: &str) -> Done {
        let config = self.server(name)?.config.clone();
        let child = self.spawn(name, &config)?;
        self.server(name)?.child = child;
        self.remember()?;
        self.wait_up(name)
    }

    /// After a case that failed half-way.
    pub fn restart_if_dead(&mut self, name: &str) -> Done {
        if self.server(name)?.child.try_wait()?.is_some() { self.restart(name) } else { Ok(()) }
    }

    pub fn pid(&mut self, name: &str) -> Done<u32> {
        Ok(self.server(name)?.child.id())
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// What a later run needs in order to clear up after this one, should it be killed.
    fn remember(&self) -> Done {
        let pids: Vec<u32> = self.servers.iter().map(|server| server.child.id()).collect();
        let left = serde_json::json!({ "pids": pids, "hosts": self.host_ids, "binary": self.binary });
        fs::write(self.dir.join("testbed.json"), left.to_string())?;
        Ok(())
    }

    /// Ends the servers, removes the containers, unmounts and deletes everything. Says what it couldn't.
    pub fn tear_down(&mut self) -> Done {
        let mut ended = Ok(());
        for server in &mut self.servers {
            ended = ended.and(end(&mut server.child).context(&server.name));
        }
        self.servers.clear();
        remove_containers(&self.host_ids)?;
        self.host_ids.clear();
        for mount in self.mounts.drain(..) {
            unmount(&mount)?;
        }
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir).context(format!("removing {}", self.dir.display()))?;
        }
        ended
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            eprintln!("xtask: not all could be cleared up: {error}");
        }
    }
}

/// SIGTERM, and SIGKILL if that isn't enough, which is an error.
pub fn end(child: &mut Child) -> Done {
    let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) else { return Ok(()) };
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    let gone = until(Duration::from_secs(30), || Ok(child.try_wait()?.map(|_| ())));
    if gone.is_err() {
        child.kill()?;
        child.wait()?;
        return fail("a server didn't end within 30 s of SIGTERM");
    }
    Ok(())
}

fn remove_containers(hosts: &[String]) -> Done {
    for host in hosts {
        let label = format!("label=atoll.host={host}");
        let ids = sh::read("podman", &["ps", "--all", "--quiet", "--filter", &label])?;
        for id in ids.lines() {
            // a mount namespace that was copied meanwhile keeps the container's mounts busy for a moment
            let mut said = String::new();
            let removed = until(Duration::from_secs(15), || match sh::read("podman", &["rm", "--force", "--ignore", "--time", "0", id]) {
                Ok(_) => Ok(Some(())),
                Err(error) => {
                    said = error.0;
                    Ok(None)
                }
            });
            removed.map_err(|error| sh::Fail(format!("{said} ({error})")))?;
        }
    }
    Ok(())
}

/// What a killed run left in this directory: processes, containers, mounts, files.
fn clear_leftovers(dir: &Path) -> Done {
    if !dir.exists() {
        return Ok(());
    }
    let dir = dir.canonicalize()?;
    let left: serde_json::Value =
        fs::read_to_string(dir.join("testbed.json")).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    for pid in left["pids"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_i64) {
        // the number may belong to somebody else by now; ours has this directory in its arguments
        let ours =
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*dir.to_string_lossy()));
        if let (true, Some(pid)) = (ours, i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let hosts: Vec<String> = left["hosts"].as_array().into_iter().flatten().filter_map(|host| host.as_str().map(Into::into)).collect();
    remove_containers(&hosts)?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|mount| Path::new(mount).starts_with(&dir));
    for mount in ours.collect::<Vec<_>>().into_iter().rev() {
        unmount(Path::new(mount))?;
    }
    fs::remove_dir_all(&dir).context(format!("removing {}", dir.display()))
}

fn unmount(mount: &Path) -> Done {
    let path = utf8(mount)?;
    // a container's last process may hold it for a moment after podman says that it is gone
    until(Duration::from_secs(10), || Ok(sh::works("umount", &[path]).then_some(()))).context(format!("unmounting {path}"))
}

/// Calls a check every 20 ms until it gives something.
pub fn until<T>(patience: Duration, mut check: impl FnMut() -> Done<Option<T>>) -> Done<T> {
    #[expect(clippy::disallowed_methods, reason = "no tokio here")]
    let start = std::time::Instant::now();
    loop {
        if let Some(value) = check()? {
            return Ok(value);
        }
        if start.elapsed() > patience {
            return fail(format!("not within {} s", patience.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn healthy(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET /v1/health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0u8; 12];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}

pub fn free_address() -> Done<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

pub fn write_secret(path: &Path, text: &str) -> Done {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

pub fn utf8(path: &Path) -> Done<&str> {
    path.to_str().ok_or_else(|| sh::Fail(format!("{} isn't UTF-8", path.display())))
}

pub fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("    {}", lines[lines.len().saturating_sub(15)..].join("\n    "))
}
