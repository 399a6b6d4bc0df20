//! Every key of the config in one table: the loader, the environment's names and docs/reference/config.md all come from it.

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A project-like name; see [`atoll_contract::project::check_name`].
    Name,
    /// Filter directives of the log, such as `info` or `info,atoll_host=debug`.
    LogFilter,
    Choice(&'static [&'static str]),
    /// `IP:PORT`; port 0 lets the system choose one.
    Address,
    /// `http(s)://name[:port]` without a path.
    Url,
    /// Nodes of a NATS cluster; in the environment and in flags with commas between them.
    Hubs,
    Path,
    Size,
    Duration,
    Count {
        least: u64,
        most: u64,
    },
    /// A table of strings; in the environment and in flags `a=b,c=d`.
    Labels,
}

impl Kind {
    /// For the reference and for errors: "expected …".
    pub fn expected(self) -> String {
        match self {
            Self::Text => "a string".into(),
            Self::Name => "a name: 1 to 63 letters, digits, '.', '_' or '-'".into(),
            Self::LogFilter => "a log filter, such as \"info\" or \"info,atoll_host=debug\"".into(),
            Self::Choice(values) => format!("one of {}", values.iter().map(|v| format!("\"{v}\"")).collect::<Vec<_>>().join(", ")),
            Self::Address => "an address, such as \"127.0.0.1:7420\"".into(),
            Self::Url => "a URL without a path, such as \"https://atoll.example.org\"".into(),
            Self::Hubs => "a list of URLs, such as [\"tls://n1.example.org:7422\"]".into(),
            Self::Path => "a path, as a string".into(),
            Self::Size => "a size, such as \"512M\" or \"10G\"".into(),
            Self::Duration => "a duration, such as \"30s\" or \"10m\"".into(),
            Self::Count { least, most } => format!("a whole number from {least} to {most}"),
            Self::Labels => "a table of strings, such as { disk = \"ssd\" }".into(),
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// With its sections: `host.storage.kind`.
    pub name: &'static str,
    pub kind: Kind,
    /// As it would be written in the file, without quotes; empty where there is none or where it is found out at the start.
    pub default: &'static str,
    /// How the reference describes a default that is found out; empty if `default` says it.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reference, which a test writes"))]
    pub default_note: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reference, which a test writes"))]
    pub about: &'static str,
}

impl Key {
    /// The variable that overrides it: `ATOLL_HOST_STORAGE_KIND`.
    pub fn variable(&self) -> String {
        format!("ATOLL_{}", self.name.replace('.', "_").to_ascii_uppercase())
    }

    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, default_note: "", about }
}

const fn found(name: &'static str, kind: Kind, default_note: &'static str, about: &'static str) -> Key {
    Key { name, kind, default: "", default_note, about }
}

pub const SECTIONS: &[(&str, &str)] = &[
    ("log", "What a serving process writes to standard error."),
    ("master", "For `atoll serve master` and `atoll up`."),
    ("host", "For `atoll serve host`, `atoll host join`, `atoll doctor` and `atoll up`."),
    ("host.storage", "Where and how volumes are kept."),
    ("host.runtime", "How containers are run."),
];

pub const KEYS: &[Key] = &[
    key(
        "log.level",
        Kind::LogFilter,
        "info",
        "What is logged: `error`, `warn`, `info`, `debug` or `trace`, also by module: `info,atoll_host::uplink=debug`.",
    ),
    key("log.format", Kind::Choice(&["text", "json"]), "text", "`json` writes one object a line, for programs that collect logs."),
    key(
        "master.listen",
        Kind::Address,
        "127.0.0.1:7420",
        "Address of the API and of the bus (`/bus`). Port 0 takes a free one, which is logged.",
    ),
    found(
        "master.tls_certificate",
        Kind::Path,
        "none",
        "Certificate (PEM, with those up to its authority) for `listen`, which then speaks HTTPS alone, and the bus `wss://`. A changed file is taken within seconds. See [TLS](../runbooks/tls.md).",
    ),
    found("master.tls_key", Kind::Path, "none", "Its private key (PEM)."),
    found(
        "master.public_url",
        Kind::Url,
        "`http://`, or with `tls_certificate` `https://`, and the address that is listened on",
        "Where users and hosts reach the master, as it appears in links. With `tls_certificate` it must be `https://`, with a name or address that is in the certificate; without, it may be where a proxy in front does TLS.",
    ),
    found(
        "master.data_dir",
        Kind::Path,
        "`/var/lib/atoll/master` for root, else `$XDG_DATA_HOME/atoll/master`",
        "The master's database and keys. One process at a time.",
    ),
    found(
        "master.bus_listen",
        Kind::Address,
        "none",
        "A further address for NATS clients over TCP; plain unless `bus_tls_certificate` or `tls_certificate` is set.",
    ),
    found(
        "master.bus_tls_certificate",
        Kind::Path,
        "that of `tls_certificate`",
        "Certificate (PEM, with those up to its authority) for `bus_listen`. A changed file is taken within seconds.",
    ),
    found("master.bus_tls_key", Kind::Path, "that of `tls_certificate`", "Its private key (PEM)."),
    found(
        "master.cluster_urls",
        Kind::Hubs,
        "none",
        "Leaf node listeners of a NATS cluster that the master's bus joins: `nats://NAME:PORT`, or `tls://NAME:PORT` to insist on TLS. See [the bus](bus.md#joining-a-nats-cluster).",
    ),
    found(
        "master.cluster_credentials_file",
        Kind::Path,
        "none",
        "`user:password`, a token or an nkey seed in one line, or a NATS `.creds` file. Read at every connect.",
    ),
    found("master.cluster_ca_file", Kind::Path, "what the system trusts", "Certificates (PEM) that the cluster's must lead to."),
    key(
        "master.max_connections",
        Kind::Count { least: 16, most: 1_000_000 },
        "4096",
        "HTTP connections at once; more wait to be accepted.",
    ),
    key("master.history_days", Kind::Count { least: 1, most: 3650 }, "30", "For how many days operations that have ended can be listed."),
    found("host.name", Kind::Name, "the machine's host name", "The name with which the host joins. A change after that has no effect."),
    found(
        "host.master_url",
        Kind::Url,
        "to join `http://127.0.0.1:7420`, later what was joined",
        "The master that this host belongs to. Set another when the master's address has changed, as from `http://` to `https://`.",
    ),
    found(
        "host.master_ca_file",
        Kind::Path,
        "none",
        "Certificates (PEM) that the master's may lead to, besides those that the system trusts. Read at the start.",
    ),
    key("host.listen", Kind::Address, "127.0.0.1:7430", "Address of the host's HTTP (files) and of its bus (`/bus`)."),
    found(
        "host.tls_certificate",
        Kind::Path,
        "none",
        "Certificate (PEM, with those up to its authority) for `listen`, which then speaks HTTPS alone, and the bus `wss://`. A changed file is taken within seconds. See [TLS](../runbooks/tls.md).",
    ),
    found("host.tls_key", Kind::Path, "none", "Its private key (PEM)."),
    found(
        "host.public_url",
        Kind::Url,
        "`http://`, or with `tls_certificate` `https://`, and the address that is listened on",
        "Where users reach the host. Must be set if `host.listen` is an unspecified address such as `0.0.0.0`. With `tls_certificate` it must be `https://`, with a name or address that is in the certificate; without, it may be where a proxy in front does TLS.",
    ),
    found(
        "host.data_dir",
        Kind::Path,
        "`/var/lib/atoll/host` for root, else `$XDG_DATA_HOME/atoll/host`",
        "The host's key, database and sockets, and the volumes unless `host.storage.path` says otherwise.",
    ),
    key("host.region", Kind::Text, "", "The place's name for placement, such as `eu-west`."),
    key("host.labels", Kind::Labels, "", "Labels for placement."),
    key("host.max_running", Kind::Count { least: 1, most: 100_000 }, "200", "Projects that run at once at most."),
    key("host.disk_reserve", Kind::Size, "2G", "Free space that is never promised to projects."),
    found(
        "host.bus_listen",
        Kind::Address,
        "none",
        "A further address for NATS clients over TCP; plain unless `bus_tls_certificate` or `tls_certificate` is set.",
    ),
    found(
        "host.bus_tls_certificate",
        Kind::Path,
        "that of `tls_certificate`",
        "Certificate (PEM, with those up to its authority) for `bus_listen`. A changed file is taken within seconds.",
    ),
    found("host.bus_tls_key", Kind::Path, "that of `tls_certificate`", "Its private key (PEM)."),
    key(
        "host.storage.kind",
        Kind::Choice(&["auto", "btrfs", "dir"]),
        "auto",
        "`btrfs`: subvolumes, with the disk limit enforced. `dir`: plain directories on any file system. `auto`: btrfs if the path is on it.",
    ),
    found("host.storage.path", Kind::Path, "`volumes` in `host.data_dir`", "Directory that holds the volumes."),
    key("host.runtime.podman", Kind::Text, "podman", "The podman program: a name that is looked up in PATH, or a path."),
    found(
        "host.runtime.oci_runtime",
        Kind::Text,
        "the first that works here, found out at the start",
        "The OCI runtime that podman uses, such as `crun` or `runc`.",
    ),
    found(
        "host.runtime.network",
        Kind::Text,
        "what works here, found out at the start",
        "The containers' network, as for `podman run --network`. The host's own network is refused.",
    ),
    key(
        "host.runtime.userns_base",
        Kind::Count { least: 65_536, most: 4_294_836_223 },
        "1879048192",
        "As root: the host's user id that containers see as 0; 65536 ids from there on. The same on all hosts of a cluster, and changed only while there are no projects.",
    ),
    key("host.runtime.pull_timeout", Kind::Duration, "30m", "Time for pulling one image at most."),
    key(
        "host.runtime.max_parallel_starts",
        Kind::Count { least: 1, most: 64 },
        "4",
        "Containers that are started at once at most; others wait their turn.",
    ),
];
