//! The one binary: a master, a host, both, the agent in a project's container, or the user's command line.
//!
//! Arguments are parsed, the config is loaded and checked as a whole, then the role is built, run, and drained; see [`roles`].

#![allow(unreachable_pub, reason = "in a program nothing is reachable from outside; `pub` says what a module offers to the others")]

mod args;
mod cli;
mod client;
mod config;
mod errors;
mod output;
mod roles;
#[cfg(test)]
mod tests;
mod values;

use std::{process::ExitCode, sync::Arc};

use args::Command;
use atoll_net::clock::SystemClock;

fn main() -> ExitCode {
    let arguments = args::parse();
    let json = arguments.json;
    let outcome = match arguments.command {
        Command::Agent => roles::agent::run(),
        Command::Serve(args::Serve::Master(args)) => roles::master::run(args),
        Command::Serve(args::Serve::Host(args)) => roles::host::run(args),
        Command::Up(args) => roles::up::run(args),
        Command::Dev(args::Dev::Bus(args)) => roles::dev_bus::run(args, json),
        Command::Completion(args) => cli::completion(args.shell).map(|()| 0),
        _ => command(arguments),
    };
    outcome.map_or_else(
        |error| {
            output::say(&errors::render(&error, json));
            ExitCode::from(errors::exit_code(error.code))
        },
        ExitCode::from,
    )
}

/// A command of the user's: one thread is enough, and what it still reads at its end (a terminal) isn't waited for.
fn command(arguments: args::Cli) -> errors::Result<u8> {
    roles::logging::for_command(arguments.json);
    let context = cli::Context::new(&arguments, Arc::new(SystemClock));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| errors::io("The runtime", &error))?;
    let outcome = runtime.block_on(cli::run(&context, arguments.command));
    runtime.shutdown_background();
    outcome
}
