//! The project's own tasks: `cargo xtask demo | test | fuzz | bench | tidy`.

mod bench;
mod cli;
mod demo;
mod faults;
mod fuzz;
mod image;
mod machine;
mod sh;
mod terminal;
mod test;
mod testbed;
mod tidy;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Tasks of the Atoll workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring up a master and two hosts on this machine and do the main job on them.
    Demo {
        /// Do it all, tear everything down, and exit 0 only if every step gave the right result.
        #[arg(long)]
        check: bool,
        /// The base image to pull; one is built from Debian packages if no registry answers.
        #[arg(long, default_value = image::DEFAULT)]
        image: String,
        /// Where the demo keeps its data (default: `.data/demo` in the workspace).
        #[arg(long)]
        data_dir: Option<PathBuf>,
    },
    /// Run every test; what can't run on this machine is listed with its reason at the end.
    Test {
        /// Passed on to `cargo test`, such as `-p atoll-net`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Feed the bus what nobody would think of, with the address sanitizer, and stop at what it finds.
    Fuzz {
        /// Of each target; all run at once.
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// Only these, such as `bus_tcp`.
        targets: Vec<String>,
    },
    /// Only the fault cases of `test`: kill real processes, ask for nonsense, fill disks.
    Faults,
    /// Measure something beside its anchor, in one run.
    Bench {
        #[arg(value_enum)]
        name: bench::Name,
        #[command(flatten)]
        options: bench::Options,
    },
    /// Check the lints, the form, imports between modules, sizes, links in the docs, golden files.
    Tidy,
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Demo { check, image, data_dir } => demo::run(check, &image, data_dir),
        Task::Test { args } => test::run(&args),
        Task::Fuzz { minutes, targets } => fuzz::run(minutes, &targets),
        Task::Faults => test::faults(),
        Task::Bench { name, options } => bench::run(name, &options),
        Task::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error}");
            ExitCode::FAILURE
        }
    }
}
