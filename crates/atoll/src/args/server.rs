//! Arguments of what serves, and of what looks at this machine.

use std::{net::SocketAddr, path::PathBuf};

use atoll_net::bus::HubUrl;
use clap::{Args, Subcommand, ValueEnum};

use super::ConfigArgs;

/// Run a master and one host in one process, for one person on one machine
///
/// The first start makes the data directory, lets the host join by itself, and prints how to make the first account. Data is kept.
/// Ctrl-C or SIGTERM stops the process and leaves the projects' containers running; the next start finds them again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll up
  atoll up --data-dir /srv/atoll --storage btrfs
  atoll up --listen 192.0.2.7:7420        for others on the network, too")]
pub struct UpArgs {
    /// Where everything is kept, in `master` and `host` below it; without it /var/lib/atoll for root, else $XDG_DATA_HOME/atoll
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Address of the master's HTTP; the host takes the same address and the port of `host.listen`
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// How volumes are kept; `auto` takes btrfs where the data directory is on it
    #[arg(long, value_enum)]
    pub storage: Option<StorageArg>,

    #[command(flatten)]
    pub config: ConfigArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StorageArg {
    Btrfs,
    Dir,
    Auto,
}

impl StorageArg {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Dir => "dir",
            Self::Auto => "auto",
        }
    }
}

/// Run one role of a cluster
#[derive(Debug, Subcommand)]
pub enum Serve {
    /// Run the master: accounts, placement, operations, the API
    #[command(after_help = "\
Examples:
  atoll serve master
  atoll serve master --config /etc/atoll/master.toml
  ATOLL_MASTER_LISTEN=0.0.0.0:7420 atoll serve master --set log.format=json")]
    Master(ServeArgs),
    /// Run a host that has joined: its projects, files and terminals
    #[command(after_help = "\
Examples:
  atoll host join --config host.toml --token-file token    once, before the first start
  atoll serve host --config host.toml")]
    Host(ServeArgs),
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Look at this machine and say what works for projects and what does not
///
/// Needs no server. Each finding has a stable code and says what to do; exits with 1 if one is an error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll doctor
  atoll doctor --config /etc/atoll/host.toml --json")]
pub struct DoctorArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Ask a master whether it serves
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  atoll health --master http://127.0.0.1:7420")]
pub struct HealthArgs {}

/// Parts of Atoll by themselves, for people who write clients and measure
#[derive(Debug, Subcommand)]
pub enum Dev {
    /// Run the bus alone: no tokens, on this machine's loopback only
    ///
    /// Whoever can reach the address may publish and subscribe to everything, so other addresses than loopback are refused. Says where it
    /// listens on standard error (with --json as one object on standard output), and runs until Ctrl-C or SIGTERM.
    #[command(after_help = "\
Examples:
  atoll dev bus
  atoll dev bus --listen 127.0.0.1:4333 --websocket 127.0.0.1:4334
  atoll dev bus --tls-certificate cert.pem --tls-key key.pem
  atoll dev bus --cluster nats://127.0.0.1:7422              joins a NATS cluster, with all subjects
  atoll dev bus --data-dir /tmp/streams       logs and key-value stores too, below `dev.`
  nats --server nats://127.0.0.1:4222 sub 'orders.>'        any NATS client will do")]
    Bus(DevBusArgs),
}

#[derive(Debug, Args)]
pub struct DevBusArgs {
    /// Address for NATS over TCP; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4222")]
    pub listen: SocketAddr,

    /// Address for NATS over WebSocket, at any path
    #[arg(long, value_name = "ADDR")]
    pub websocket: Option<SocketAddr>,

    /// Encrypt --listen and --websocket with this certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,

    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,

    /// A leaf node listener of a NATS cluster to join, such as nats://127.0.0.1:7422; may be repeated
    #[arg(long, value_name = "URL")]
    pub cluster: Vec<HubUrl>,

    /// File with what the cluster asks for: user:password, a token, an nkey seed, or .creds
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub cluster_credentials: Option<PathBuf>,

    /// Certificates (PEM) that the cluster's must lead to; without it those that the system trusts
    #[arg(long, value_name = "FILE", requires = "cluster")]
    pub cluster_ca: Option<PathBuf>,

    /// Keep logs and key-value stores in this directory, and serve them at `dev.log.…` and `dev.kv.…`
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll completion bash > ~/.local/share/bash-completion/completions/atoll
  atoll completion zsh > ~/.zfunc/_atoll
  atoll completion fish > ~/.config/fish/completions/atoll.fish")]
pub struct CompletionArgs {
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}
