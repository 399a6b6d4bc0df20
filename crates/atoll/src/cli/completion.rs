//! `completion`: made by clap from the definition of the command line.

use clap::CommandFactory;

use crate::{args::Cli, errors::Result, output};

pub fn completion(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "atoll", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
