//! Arguments about projects and where they go.

use clap::{Args, Subcommand};

use crate::values::{Cpus, Pair, Size};

/// Projects: containers with a home directory
#[derive(Debug, Subcommand)]
pub enum Project {
    /// Create a project on a host that can take it
    #[command(after_help = "\
Examples:
  atoll project create thesis --image docker.io/library/debian:12 --start
  atoll project create small --image localhost/atoll-base --memory 512M --cpu 0.5 --pids 200 --disk 1G
  atoll project create here --image localhost/atoll-base --host a --env LANG=C.UTF-8")]
    Create(CreateArgs),
    /// List the projects that this account may see
    #[command(after_help = "\
Examples:
  atoll project list
  atoll --json project list | jq -r '.projects[].spec.name'")]
    List,
    /// Show one project
    #[command(after_help = "\
Example:
  atoll project info thesis")]
    Info(ProjectArgs),
    /// Start a project's container
    #[command(after_help = "\
Example:
  atoll project start thesis")]
    Start(ProjectWaitArgs),
    /// Stop a project's container; its home stays
    #[command(after_help = "\
Example:
  atoll project stop thesis")]
    Stop(ProjectWaitArgs),
    /// Stop a project's container and start it anew
    #[command(after_help = "\
Example:
  atoll project restart thesis --no-wait")]
    Restart(ProjectWaitArgs),
    /// Delete a project with all of its data
    #[command(after_help = "\
Examples:
  atoll project delete thesis
  atoll project delete thesis --yes")]
    Delete(DeleteArgs),
    /// Show where a project would go and why, without creating it
    #[command(after_help = "\
Example:
  atoll project place --memory 8G --disk 100G --region eu-west")]
    Place(PlaceArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// 1 to 63 letters, digits, '.', '_' or '-'
    pub name: String,

    /// An OCI image, such as docker.io/library/debian:12
    #[arg(long)]
    pub image: String,

    #[command(flatten)]
    pub place: PlaceArgs,

    /// A variable of every process in the container; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub env: Vec<Pair>,

    /// Start it when it is there
    #[arg(long)]
    pub start: bool,

    /// Don't wait until it is done
    #[arg(long)]
    pub no_wait: bool,
}

/// What decides about a place: limits and requirements.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// Memory at most, swap included [default: 2G]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,

    /// Processors at most, such as 0.5 [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub cpu: Option<Cpus>,

    /// Processes and threads at most [default: 4096]
    #[arg(long, value_name = "NUMBER")]
    pub pids: Option<u32>,

    /// Disk at most [default: 10G]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<Size>,

    /// Only this host (name or id)
    #[arg(long)]
    pub host: Option<String>,

    /// Only hosts of this region
    #[arg(long)]
    pub region: Option<String>,

    /// Only hosts with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<Pair>,

    /// Only hosts whose storage has snapshots
    #[arg(long)]
    pub snapshots: bool,

    /// Only hosts whose storage enforces the disk limit
    #[arg(long)]
    pub quotas: bool,
}

#[derive(Debug, Args)]
pub struct ProjectArgs {
    /// The project's name or id
    pub project: String,
}

#[derive(Debug, Args)]
pub struct ProjectWaitArgs {
    /// The project's name or id
    pub project: String,

    /// Don't wait until it is done
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// The project's name or id
    pub project: String,

    /// Don't ask
    #[arg(long, short)]
    pub yes: bool,

    /// Don't wait until it is done
    #[arg(long)]
    pub no_wait: bool,
}
