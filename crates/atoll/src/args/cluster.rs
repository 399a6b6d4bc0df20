//! Arguments about hosts and operations.

use atoll_contract::OperationId;
use clap::{Args, Subcommand};

use super::ConfigArgs;
use crate::values::Span;

/// Hosts: the machines that run projects
#[derive(Debug, Subcommand)]
pub enum Host {
    /// List the hosts
    #[command(after_help = "\
Example:
  atoll host list")]
    List,
    /// Show one host, with what it found out about its machine
    #[command(after_help = "\
Example:
  atoll host info a")]
    Info(HostArgs),
    /// Make a one-time token with which a machine may join (for admins)
    #[command(after_help = "\
Examples:
  atoll host join-token
  atoll host join-token --name a --minutes 10 > token")]
    JoinToken(JoinTokenArgs),
    /// Make this machine a host: makes its key, and trades a join token for membership
    #[command(after_help = "\
Examples:
  atoll host join --config /etc/atoll/host.toml --token-file token
  atoll host join-token | ssh machine atoll host join --token-file - --set host.master_url=https://atoll.example.org")]
    Join(JoinArgs),
    /// Give a host no new projects (for admins)
    #[command(after_help = "\
Example:
  atoll host drain a")]
    Drain(HostArgs),
    /// Let a host take new projects again (for admins)
    #[command(after_help = "\
Example:
  atoll host undrain a")]
    Undrain(HostArgs),
}

#[derive(Debug, Args)]
pub struct HostArgs {
    /// The host's name or id
    pub host: String,
}

#[derive(Debug, Args)]
pub struct JoinTokenArgs {
    /// The name that the host must have; without it any
    #[arg(long)]
    pub name: Option<String>,

    /// Minutes that it is good for, 1 to 10080 [default: 60]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10080))]
    pub minutes: Option<u32>,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    #[command(flatten)]
    pub config: ConfigArgs,

    /// File with the join token; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,
}

/// Operations: long work that the master finishes or undoes
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// List operations, the newest first
    #[command(after_help = "\
Examples:
  atoll operation list
  atoll operation list --all")]
    List(OperationListArgs),
    /// Show one operation with its steps
    #[command(after_help = "\
Example:
  atoll operation info 0198c0de-0000-7000-8000-000000000001")]
    Info(OperationArgs),
    /// Wait until an operation has ended; fails if it failed
    #[command(after_help = "\
Example:
  atoll operation wait 0198c0de-0000-7000-8000-000000000001 --timeout 5m")]
    Wait(OperationWaitArgs),
    /// Ask for an operation to be undone; refused after its point of no return
    #[command(after_help = "\
Example:
  atoll operation cancel 0198c0de-0000-7000-8000-000000000001")]
    Cancel(OperationArgs),
}

#[derive(Debug, Args)]
pub struct OperationListArgs {
    /// Also those that have ended
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct OperationArgs {
    pub id: OperationId,
}

#[derive(Debug, Args)]
pub struct OperationWaitArgs {
    pub id: OperationId,

    /// Stop waiting after this time; the operation goes on
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Span>,
}
