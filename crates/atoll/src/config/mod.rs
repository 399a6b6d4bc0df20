//! The one typed config, checked as a whole before any port is bound.

mod keys;
#[cfg(test)]
mod reference;
mod settings;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use atoll_net::bus::HubUrl;

use self::settings::Settings;
pub use self::settings::Sources;
use crate::{
    args::ConfigArgs,
    errors::{self, Result},
};

#[derive(Debug, Clone)]
pub struct Config {
    pub log: Log,
    pub master: Master,
    pub host: Host,
}

#[derive(Debug, Clone)]
pub struct Log {
    /// Filter directives.
    pub level: String,
    pub json: bool,
}

#[derive(Debug, Clone)]
pub struct Master {
    pub listen: SocketAddr,
    pub public_url: Option<String>,
    pub data_dir: PathBuf,
    pub tls: Tls,
    pub bus_listen: Option<SocketAddr>,
    pub bus_tls: Tls,
    pub cluster: Cluster,
    pub max_connections: u32,
    pub history_days: u32,
}

/// A listener's files: both or none.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

impl Tls {
    /// The beginning of the URLs of what is served with it.
    pub fn http_scheme(&self) -> &'static str {
        if self.certificate.is_some() { "https" } else { "http" }
    }
}

/// The NATS cluster that the master's bus joins, if there are URLs.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    pub urls: Vec<HubUrl>,
    pub credentials_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Host {
    pub name: String,
    /// None unless it was set: the master that was joined.
    pub master_url: Option<String>,
    pub master_ca_file: Option<PathBuf>,
    pub listen: SocketAddr,
    pub public_url: Option<String>,
    pub data_dir: PathBuf,
    pub region: String,
    pub labels: BTreeMap<String, String>,
    pub max_running: u32,
    pub disk_reserve: u64,
    pub tls: Tls,
    pub bus_listen: Option<SocketAddr>,
    pub bus_tls: Tls,
    pub storage: Storage,
    pub runtime: Runtime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageChoice {
    Auto,
    Btrfs,
    Dir,
}

#[derive(Debug, Clone)]
pub struct Storage {
    pub kind: StorageChoice,
    pub path: PathBuf,
}

#[derive(Debug, Clone)]
#[expect(clippy::struct_field_names, reason = "an OCI runtime is what podman calls the program beneath it")]
pub struct Runtime {
    pub podman: String,
    pub oci_runtime: Option<String>,
    pub network: Option<String>,
    pub userns_base: u32,
    pub pull_timeout: Duration,
    pub max_parallel_starts: u32,
}

/// What the machine says when the config doesn't.
#[derive(Debug, Clone)]
pub struct Machine {
    /// `master` and `host` are below it.
    pub data_root: PathBuf,
    pub host_name: String,
}

impl Machine {
    pub fn examine() -> Self {
        Self { data_root: data_root(), host_name: host_name() }
    }
}

/// Reads the sources that `args` name and makes the config of them. `flags` are those that commands have for single keys; they win.
pub fn load(args: &ConfigArgs, flags: &[(&str, String)], machine: &Machine) -> Result<Config> {
    let file = match &args.config {
        Some(path) => Some((path.clone(), read(path)?)),
        None => match default_file().filter(|path| path.is_file()) {
            Some(path) => {
                let text = read(&path)?;
                Some((path, text))
            }
            None => None,
        },
    };
    let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let set = args.set.iter().map(|pair| (pair.key.clone(), pair.value.clone()));
    let flags = set.chain(flags.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    build(&Sources { file, environment: environment.collect(), flags: flags.collect() }, machine)
}

/// The config of these sources. Reads nothing else.
///
/// # Errors
/// `invalid_config`, naming the key and where it was written.
pub fn build(sources: &Sources, machine: &Machine) -> Result<Config> {
    let settings = Settings::resolve(sources)?;
    let host = host(&settings, machine)?;
    let tls = tls(&settings, ["master.tls_certificate", "master.tls_key"])?;
    let master = Master {
        listen: settings.address("master.listen")?,
        public_url: public_url(&settings, "master.public_url", &tls)?,
        data_dir: settings.path("master.data_dir").unwrap_or_else(|| machine.data_root.join("master")),
        bus_listen: settings.maybe_address("master.bus_listen")?,
        bus_tls: bus_tls(&settings, ["master.bus_listen", "master.bus_tls_certificate", "master.bus_tls_key"], &tls)?,
        tls,
        cluster: cluster(&settings)?,
        max_connections: settings.count("master.max_connections")?,
        history_days: settings.count("master.history_days")?,
    };
    if master.data_dir == host.data_dir {
        return Err(settings.refuse("host.data_dir", "the master's data directory is the same; each needs its own."));
    }
    let level = settings.text("log.level").unwrap_or_else(|| "info".into());
    Ok(Config { log: Log { level, json: settings.text("log.format").as_deref() == Some("json") }, master, host })
}

fn tls(settings: &Settings, [certificate, key]: [&str; 2]) -> Result<Tls> {
    let tls = Tls { certificate: settings.path(certificate), key: settings.path(key) };
    match (&tls.certificate, &tls.key) {
        (Some(_), None) => Err(settings.refuse(key, format!("must be set, since {certificate} is."))),
        (None, Some(_)) => Err(settings.refuse(certificate, format!("must be set, since {key} is."))),
        (None, None) | (Some(_), Some(_)) => Ok(tls),
    }
}

/// Of the bus over TCP: its own, else that of HTTP, so that one certificate is enough and no port is left plain by oversight.
fn bus_tls(settings: &Settings, [listen, certificate, key]: [&str; 3], http: &Tls) -> Result<Tls> {
    let own = tls(settings, [certificate, key])?;
    match (&own.certificate, settings.text(listen)) {
        (Some(_), None) => Err(settings.refuse(certificate, format!("does nothing without {listen}, the address that it is for."))),
        (Some(_), Some(_)) => Ok(own),
        (None, _) => Ok(http.clone()),
    }
}

/// An address that begins with `https://` is right without a certificate, too, where a proxy in front does TLS; one with `http://` would send users
/// and their credentials to a port that doesn't speak it.
fn public_url(settings: &Settings, name: &str, tls: &Tls) -> Result<Option<String>> {
    let url = settings.text(name);
    let plain = url.as_deref().and_then(|url| url.get(..7)).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    if plain && tls.certificate.is_some() {
        let section = name.split('.').next().unwrap_or_default();
        return Err(settings
            .refuse(name, format!("begins with http://, but {section}.tls_certificate is set."))
            .mend("Write https:// in it."));
    }
    Ok(url)
}

fn cluster(settings: &Settings) -> Result<Cluster> {
    let cluster = Cluster {
        urls: settings.hubs("master.cluster_urls")?,
        credentials_file: settings.path("master.cluster_credentials_file"),
        ca_file: settings.path("master.cluster_ca_file"),
    };
    if cluster.urls.is_empty() && (cluster.credentials_file.is_some() || cluster.ca_file.is_some()) {
        return Err(settings.refuse("master.cluster_urls", "must be set for the cluster's other keys to mean anything."));
    }
    Ok(cluster)
}

fn host(settings: &Settings, machine: &Machine) -> Result<Host> {
    let listen = settings.address("host.listen")?;
    let tls = tls(settings, ["host.tls_certificate", "host.tls_key"])?;
    let public_url = public_url(settings, "host.public_url", &tls)?;
    if public_url.is_none() && listen.ip().is_unspecified() {
        let why = "must be set, since host.listen is an address that users can't go to.";
        let mend = format!("Set it to {}://NAME:PORT as users reach this machine.", tls.http_scheme());
        return Err(settings.refuse("host.public_url", why).mend(mend));
    }
    let network = settings.text("host.runtime.network");
    if network.as_deref().is_some_and(|network| network == "host" || network.starts_with("container:") || network.starts_with("ns:")) {
        return Err(settings.refuse("host.runtime.network", "a project never gets another's network."));
    }
    let data_dir = settings.path("host.data_dir").unwrap_or_else(|| machine.data_root.join("host"));
    let name = settings.text("host.name").unwrap_or_else(|| machine.host_name.clone());
    if atoll_contract::project::check_name(&name).is_err() {
        return Err(settings.refuse("host.name", format!("must be set, since the machine's name {name:?} isn't a host's name.")));
    }
    Ok(Host {
        name,
        master_url: settings.text("host.master_url"),
        master_ca_file: settings.path("host.master_ca_file"),
        listen,
        public_url,
        region: settings.text("host.region").unwrap_or_default(),
        labels: settings.labels("host.labels"),
        max_running: settings.count("host.max_running")?,
        disk_reserve: settings.size("host.disk_reserve")?,
        bus_listen: settings.maybe_address("host.bus_listen")?,
        bus_tls: bus_tls(settings, ["host.bus_listen", "host.bus_tls_certificate", "host.bus_tls_key"], &tls)?,
        tls,
        storage: Storage {
            kind: match settings.text("host.storage.kind").as_deref() {
                Some("btrfs") => StorageChoice::Btrfs,
                Some("dir") => StorageChoice::Dir,
                _ => StorageChoice::Auto,
            },
            path: settings.path("host.storage.path").unwrap_or_else(|| data_dir.join("volumes")),
        },
        runtime: Runtime {
            podman: settings.text("host.runtime.podman").unwrap_or_else(|| "podman".into()),
            oci_runtime: settings.text("host.runtime.oci_runtime"),
            network,
            userns_base: settings.count("host.runtime.userns_base")?,
            pull_timeout: settings.duration("host.runtime.pull_timeout")?,
            max_parallel_starts: settings.count("host.runtime.max_parallel_starts")?,
        },
        data_dir,
    })
}

/// A config file larger than this isn't one.
const MAX_FILE: u64 = 1 << 20;

fn read(path: &std::path::Path) -> Result<String> {
    use std::io::Read;
    let bad = |error: std::io::Error| {
        let told = errors::io(path.display(), &error);
        atoll_contract::Error::new(atoll_contract::ErrorCode::InvalidConfig, format!("The config can't be read: {}", told.message))
    };
    let mut text = String::new();
    std::fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)).map_err(bad)?;
    Ok(text)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory of the XDG base directory specification: the variable if it is an absolute path, else a place in the home directory.
pub fn xdg(variable: &str, in_home: &str) -> Option<PathBuf> {
    let set = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(in_home)))
}

fn default_file() -> Option<PathBuf> {
    if is_root() { Some("/etc/atoll/atoll.toml".into()) } else { Some(xdg("XDG_CONFIG_HOME", ".config")?.join("atoll/atoll.toml")) }
}

fn data_root() -> PathBuf {
    if is_root() {
        return "/var/lib/atoll".into();
    }
    // without a home directory, the working directory is the only place that is surely the user's
    xdg("XDG_DATA_HOME", ".local/share").unwrap_or_else(|| ".".into()).join("atoll")
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(text: &str) -> Result<Config> {
        let machine = Machine { data_root: "/data".into(), host_name: "box".into() };
        super::build(&Sources { file: Some(("a.toml".into(), text.into())), ..Sources::default() }, &machine)
    }

    #[test]
    fn an_empty_file_is_a_config() {
        let config = build("").unwrap();
        assert_eq!(config.master.listen, "127.0.0.1:7420".parse().unwrap());
        assert_eq!(config.master.data_dir, PathBuf::from("/data/master"));
        assert_eq!(config.host.storage.path, PathBuf::from("/data/host/volumes"));
        assert_eq!((config.host.name.as_str(), config.host.disk_reserve), ("box", 2 << 30));
        assert_eq!((config.log.level.as_str(), config.log.json), ("info", false));
    }

    #[test]
    fn the_roles_own_defaults_are_the_documented_ones() {
        let (config, host) = (build("").unwrap(), atoll_host::HostConfig::default());
        assert_eq!(config.master.listen, atoll_master::MasterConfig::default().listen);
        assert_eq!((config.host.listen, config.host.master_url), (host.listen, None));
        assert_eq!(crate::client::DEFAULT_MASTER, host.master_url);
        assert_eq!((config.host.max_running, config.host.disk_reserve), (host.max_running, host.disk_reserve_bytes));
    }

    #[test]
    fn what_is_set_is_taken() {
        let config = build(
            "[log]\nformat = \"json\"\n[master]\nbus_listen = \"127.0.0.1:4222\"\n\
             [host]\nname = \"a\"\nlisten = \"0.0.0.0:7430\"\npublic_url = \"http://a:7430\"\n\
             [host.storage]\nkind = \"dir\"\npath = \"/v\"\n[host.runtime]\noci_runtime = \"runc\"\n",
        )
        .unwrap();
        assert!(config.log.json);
        assert_eq!(config.host.storage.kind, StorageChoice::Dir);
        assert_eq!(config.host.storage.path, PathBuf::from("/v"));
        assert_eq!(config.host.runtime.oci_runtime.as_deref(), Some("runc"));
        assert!(config.master.bus_listen.is_some());
    }

    #[test]
    fn one_certificate_is_for_both_listeners_unless_the_bus_has_its_own() {
        let tls = "[host]\ntls_certificate = \"/c\"\ntls_key = \"/k\"\npublic_url = \"https://a\"\nbus_listen = \"127.0.0.1:4222\"\n";
        let files = |tls: &Tls| [tls.certificate.clone(), tls.key.clone()].map(|file| file.map(|file| file.display().to_string()));
        let of = |a: &str, b: &str| [Some(a.to_owned()), Some(b.to_owned())];
        let host = build(tls).unwrap().host;
        assert_eq!((files(&host.tls), files(&host.bus_tls)), (of("/c", "/k"), of("/c", "/k")));
        let host = build(&format!("{tls}bus_tls_certificate = \"/bc\"\nbus_tls_key = \"/bk\"\n")).unwrap().host;
        assert_eq!((files(&host.tls), files(&host.bus_tls)), (of("/c", "/k"), of("/bc", "/bk")));
        // a proxy does it
        let host = build("[host]\npublic_url = \"https://a\"").unwrap().host;
        assert_eq!((host.tls.http_scheme(), host.public_url.as_deref()), ("http", Some("https://a")));
    }

    #[test]
    fn the_example_of_a_cluster_in_the_docs_is_a_config() {
        let docs = include_str!("../../../../docs/reference/bus.md");
        let example = docs.split("<!-- master, tested -->\n```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let cluster = build(example).unwrap().master.cluster;
        let shown: Vec<_> = cluster.urls.iter().map(ToString::to_string).collect();
        assert_eq!(shown[0], "tls://n1.example.org:7422");
        assert!(shown.len() == 3 && cluster.credentials_file.is_some() && cluster.ca_file.is_some());
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, key) in [
            ("[host]\nlisten = \"0.0.0.0:7430\"", "host.public_url"),
            ("[host]\nbus_tls_key = \"/k\"", "host.bus_tls_certificate"),
            ("[master]\nbus_listen = \"127.0.0.1:1\"\nbus_tls_certificate = \"/c\"", "master.bus_tls_key"),
            ("[host]\nbus_tls_certificate = \"/c\"\nbus_tls_key = \"/k\"", "host.bus_listen"),
            ("[master]\ncluster_ca_file = \"/c\"", "master.cluster_urls"),
            ("[host]\ndata_dir = \"/data/master\"", "host.data_dir"),
            ("[host.runtime]\nnetwork = \"host\"", "host.runtime.network"),
            ("[host]\ntls_certificate = \"/c\"", "host.tls_key"),
            ("[master]\ntls_key = \"/k\"", "master.tls_certificate"),
            ("[master]\ntls_certificate = \"/c\"\ntls_key = \"/k\"\npublic_url = \"HTTP://a\"", "master.public_url"),
            ("[host]\ntls_certificate = \"/c\"\ntls_key = \"/k\"\npublic_url = \"http://a\"", "host.public_url"),
            ("[host]\nlisten = \"\"", "host.listen"),
            ("[host]\nmax_running = 99999999999", "host.max_running"),
        ] {
            let error = build(text).unwrap_err();
            assert!(error.message.contains(key), "{text}: {}", error.message);
        }
    }
}
