//! The command line. Every command has a help text with examples; docs/reference/cli.md is made from them.

mod account;
mod bus;
mod cluster;
mod project;
mod server;
mod work;

use clap::{Parser, Subcommand};

pub use self::{account::*, bus::*, cluster::*, project::*, server::*, work::*};
use crate::values::Pair;

const AFTER: &str = "\
Examples:
  atoll up                                   everything on this machine, for one person
  atoll setup --name ada --token-file FILE   the first account, with the token that `up` printed
  atoll project create thesis --image docker.io/library/debian:12 --start
  atoll exec thesis -- uname -a
  atoll shell thesis
  atoll cp -- notes/ thesis:notes

Exit codes:
  0 done, 1 failed, 2 wrong usage or config, 3 not found, 4 not logged in or not allowed,
  5 conflict or in progress, 6 unavailable, timed out or untrusted. `exec` and `shell` pass the
  program's code on; 125 is a failure of their own.

Environment:
  ATOLL_MASTER       the master's URL
  ATOLL_TOKEN        an API key or session, instead of the credentials file
  ATOLL_CREDENTIALS  path of the credentials file
  ATOLL_CA_FILE      certificates to trust besides the system's
  ATOLL_LOG_LEVEL    logs of a command, on standard error; off unless set";

/// Computing projects on one machine or many
#[derive(Debug, Parser)]
#[command(name = "atoll", version, after_help = AFTER, max_term_width = 120, disable_help_subcommand = true)]
pub struct Cli {
    /// Print the contract's JSON instead of tables; errors, too, as JSON on standard error
    #[arg(long, global = true)]
    pub json: bool,

    /// The master's URL; without it the one that was logged in to last, else http://127.0.0.1:7420
    #[arg(long, global = true, value_name = "URL", env = "ATOLL_MASTER", hide_env_values = true)]
    pub master: Option<String>,

    /// File with certificates (PEM) to trust for https://, tls:// and wss:// besides the system's; a login remembers it for its master. What serves
    /// has keys of the config for it
    #[arg(long, global = true, value_name = "FILE", env = "ATOLL_CA_FILE", hide_env_values = true)]
    pub ca_file: Option<std::path::PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Up(UpArgs),
    #[command(subcommand)]
    Serve(Serve),
    /// Run inside a project's container: its init, terminals and programs
    #[command(hide = true)]
    Agent,
    Setup(SetupArgs),
    Login(LoginArgs),
    Logout(LogoutArgs),
    Whoami(WhoamiArgs),
    #[command(subcommand)]
    Account(Account),
    #[command(subcommand)]
    Key(Key),
    #[command(subcommand)]
    Project(Project),
    Exec(ExecArgs),
    Shell(ShellArgs),
    #[command(subcommand)]
    Terminal(Terminal),
    Cp(CpArgs),
    #[command(subcommand)]
    Files(Files),
    #[command(subcommand)]
    Host(Host),
    #[command(subcommand)]
    Operation(Operation),
    #[command(subcommand)]
    Bus(Bus),
    Doctor(DoctorArgs),
    Health(HealthArgs),
    #[command(subcommand)]
    Dev(Dev),
    Completion(CompletionArgs),
}

/// Where the configuration comes from; the same for every command that reads one.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConfigArgs {
    /// The config file; without it /etc/atoll/atoll.toml for root, $XDG_CONFIG_HOME/atoll/atoll.toml for others, if it is there
    #[arg(long, value_name = "FILE", env = "ATOLL_CONFIG", hide_env_values = true)]
    pub config: Option<std::path::PathBuf>,

    /// Set one key of the config, over file and environment; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<Pair>,
}

/// Parses the process's arguments; on wrong usage or `--help` prints and exits as clap does (2, or 0).
pub fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|error| {
        let json = std::env::args_os().take_while(|arg| arg != "--").any(|arg| arg == "--json");
        if json && error.use_stderr() {
            let text = error.render().to_string();
            let message = text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
            let error = atoll_contract::Error::invalid(message).mend("See atoll --help.");
            eprintln!("{}", crate::errors::render(&error, true));
            std::process::exit(2);
        }
        error.exit()
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_right_parses() {
        for line in [
            "atoll up",
            "atoll up --data-dir /srv/atoll --listen 127.0.0.1:0 --storage dir",
            "atoll serve master --config a.toml --set master.listen=127.0.0.1:0",
            "atoll serve host",
            "atoll agent",
            "atoll setup --master http://m:1 --name ada --token-file t --password-file -",
            "atoll --json login --name ada",
            "atoll logout",
            "atoll whoami --json",
            "atoll account create bob --admin --password-file p",
            "atoll account list",
            "atoll key create ci --days 30",
            "atoll key list",
            "atoll key delete 0198c0de-0000-7000-8000-000000000001 --yes",
            "atoll project create p --image i --memory 512M --cpu 0.5 --pids 200 --disk 1G --host h --region r --label a=b --label c=d --env K=V --start --no-wait",
            "atoll project list",
            "atoll project info p",
            "atoll project start p --no-wait",
            "atoll project stop p",
            "atoll project restart p",
            "atoll project delete p --yes",
            "atoll project place --memory 1G",
            "atoll exec p --timeout 30s --env A=b --cwd /tmp -i -- ls -l --json",
            "atoll shell p --terminal t -- bash -l",
            "atoll terminal list p",
            "atoll terminal close p t",
            "atoll cp a b p:c",
            "atoll cp -r p:c -",
            "atoll files list p",
            "atoll files list p a/b",
            "atoll files mkdir p a",
            "atoll files rm p a b --recursive",
            "atoll files mv p a b",
            "atoll host list",
            "atoll host info h",
            "atoll host join-token --name n --minutes 5",
            "atoll host join --config f --token-file -",
            "atoll host drain h",
            "atoll host undrain h",
            "atoll operation list --all",
            "atoll operation info 0198c0de-0000-7000-8000-000000000001",
            "atoll operation wait 0198c0de-0000-7000-8000-000000000001 --timeout 5m",
            "atoll operation cancel 0198c0de-0000-7000-8000-000000000001",
            "atoll bus top",
            "atoll bus top --host a --interval 2s --rows 5 --once --json",
            "atoll bus top --server nats://127.0.0.1:1 --token-file t",
            "atoll bus sub orders.> --queue q --count 3 --raw",
            "atoll bus sub --project p project.*.state --json",
            "atoll bus sub --server tls://h --creds c --ca-file ca a",
            "atoll bus pub a",
            "atoll bus pub a payload -H A:b --header C:d --reply r --count 3",
            "atoll bus pub --server ws://h:1 --user u --password-file - a --file f",
            "atoll bus req a {} --timeout 1s --replies 3 --raw",
            "atoll bus bench",
            "atoll bus bench --server nats://127.0.0.1:1 --token-file t --publishers 8 --size 4K --duration 500ms --batch 1M --json",
            "atoll bus bench --subscribers 8 --groups 4 --user u --password-file p",
            "atoll bus bench --wildcards --churn --warm-up 0s --window 4M",
            "atoll bus bench --request --in-flight 16",
            "atoll bus bench --server wss://h/bus --ca-file ca",
            "atoll login --master https://m --ca-file ca --name ada",
            "atoll --ca-file ca project list",
            "atoll doctor --config f --json",
            "atoll health",
            "atoll dev bus",
            "atoll dev bus --listen 127.0.0.1:0 --websocket [::1]:0",
            "atoll dev bus --tls-certificate c --tls-key k --cluster nats://a --cluster tls://b:1 --cluster-ca f",
            "atoll completion bash",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for line in [
            "atoll",
            "atoll dev bus --tls-key k",
            "atoll dev bus --cluster http://a",
            "atoll nonsense",
            "atoll serve",
            "atoll up --storage zfs",
            "atoll up --listen here",
            "atoll setup --name ada --token secret",
            "atoll login --password secret",
            "atoll project create p",
            "atoll project create p --image i --memory 1.5Q",
            "atoll project create p --image i --cpu lots",
            "atoll project create p --image i --env NOVALUE",
            "atoll exec p",
            "atoll exec p ls",
            "atoll exec p --timeout 30 -- ls",
            "atoll cp a",
            "atoll operation info thesis",
            "atoll completion tcl",
            "atoll bus",
            "atoll bus sub",
            "atoll bus sub a --token-file t",
            "atoll bus sub a --server nats://h --project p",
            "atoll bus sub a --server nats://h --user u",
            "atoll bus sub a --server nats://h --token secret",
            "atoll bus sub a --server nats://h --creds c --token-file t",
            "atoll bus pub a b --file f",
            "atoll bus pub a -H nonsense",
            "atoll bus req a --replies 0",
            "atoll bus top --host a --server nats://h",
            "atoll bus top --project p",
            "atoll bus bench --publishers 0",
            "atoll bus bench --user u",
            "atoll bus bench --user u --password-file p --token-file t",
            "atoll bus bench --churn",
            "atoll bus bench --in-flight 4",
            "atoll bus bench --request --subscribers 2",
            "atoll bus bench --groups 2 --wildcards",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn global_flags_go_before_and_after_but_not_into_the_program() {
        assert!(parse("atoll --json project list").unwrap().json);
        assert!(parse("atoll project list --json").unwrap().json);
        let cli = parse("atoll exec p -- ls --json").unwrap();
        assert!(!cli.json);
        let Command::Exec(exec) = cli.command else { panic!("not exec") };
        assert_eq!(exec.argv, ["ls", "--json"]);
    }

    #[test]
    fn every_visible_command_has_a_purpose_and_leaves_have_examples() {
        fn walk(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                assert!(sub.get_about().is_some(), "{path} has no purpose");
                if sub.has_subcommands() {
                    walk(sub, &path);
                } else {
                    let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(after.contains("Example"), "{path} has no examples");
                }
            }
        }
        walk(&Cli::command(), "atoll");
    }
}
