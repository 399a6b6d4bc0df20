//! Arguments for work in a project: programs, terminals, files.

use clap::{Args, Subcommand};

use crate::values::{Pair, Span};

/// Run a program in a project
///
/// Standard output and error are streamed and kept apart, and the exit code is the program's (128 + n if signal n ended it; 125 if
/// atoll itself failed; 124 if the time was up). Standard input is passed on if it isn't a terminal, or with -i. Ctrl-C ends the program.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll exec thesis -- make -j4
  atoll exec thesis --timeout 30s --cwd src -- ./test.sh
  tar c notes | atoll exec thesis -- tar x")]
pub struct ExecArgs {
    /// The project's name or id
    pub project: String,

    /// End the program after this time
    #[arg(long, value_name = "DURATION")]
    pub timeout: Option<Span>,

    /// A variable of the program; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub env: Vec<Pair>,

    /// Directory to run it in, from the home directory on, or absolute
    #[arg(long, value_name = "DIR", default_value = "")]
    pub cwd: String,

    /// Pass standard input on, even from a terminal
    #[arg(long, short = 'i')]
    pub interactive: bool,

    /// Program and arguments
    #[arg(last = true, required = true)]
    pub argv: Vec<String>,
}

/// Open a terminal in a project, or come back to one
///
/// The terminal stays when you leave, lose the connection, or the host program is restarted; the same command comes back to it with what it
/// showed meanwhile. Several may view one terminal. Ctrl-] then d leaves; Ctrl-] twice sends one Ctrl-].
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll shell thesis
  atoll shell thesis --terminal build -- make watch")]
pub struct ShellArgs {
    /// The project's name or id
    pub project: String,

    /// The terminal's name; one terminal a name
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub terminal: String,

    /// Directory for a new terminal, from the home directory on, or absolute
    #[arg(long, value_name = "DIR", default_value = "")]
    pub cwd: String,

    /// Program for a new terminal instead of the login shell
    #[arg(last = true)]
    pub argv: Vec<String>,
}

/// Terminals of a project
#[derive(Debug, Subcommand)]
pub enum Terminal {
    /// List the terminals
    #[command(after_help = "\
Example:
  atoll terminal list thesis")]
    List(super::ProjectArgs),
    /// End a terminal's program and forget the terminal
    #[command(after_help = "\
Example:
  atoll terminal close thesis build")]
    Close(TerminalCloseArgs),
}

#[derive(Debug, Args)]
pub struct TerminalCloseArgs {
    /// The project's name or id
    pub project: String,

    /// The terminal's name or id
    pub terminal: String,
}

/// Copy files and folders to or from a project
///
/// One side is PROJECT:PATH, from the project's home directory on. As with cp, what is copied goes into the destination if that is a
/// directory, else it takes its name; `src/.` copies what is in src. Folders go as one stream with modes, times and symlinks; large files
/// go on where they broke off when the same command is given again. The project may be stopped. A local file whose name has a colon is
/// written with `./` before it; `-` is standard input or output.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll cp notes.txt thesis:               a file into the home directory
  atoll cp data/ figures/ thesis:work      two folders into work
  atoll cp thesis:work/out.csv .
  atoll cp thesis:work ./work-backup       a folder
  atoll cp thesis:log.txt - | tail")]
pub struct CpArgs {
    /// Folders are always copied whole; accepted as cp has it
    #[arg(long, short = 'r')]
    pub recursive: bool,

    /// No progress
    #[arg(long, short)]
    pub quiet: bool,

    /// What to copy, and last where to
    #[arg(required = true, num_args = 2.., value_name = "PATH")]
    pub paths: Vec<String>,
}

/// Files of a project, without starting it
#[derive(Debug, Subcommand)]
pub enum Files {
    /// List a directory
    #[command(after_help = "\
Examples:
  atoll files list thesis
  atoll files list thesis work/figures")]
    List(FilesListArgs),
    /// Make a directory, and those above it
    #[command(after_help = "\
Example:
  atoll files mkdir thesis work/figures")]
    Mkdir(FilesPathArgs),
    /// Remove files, or directories with --recursive
    #[command(after_help = "\
Examples:
  atoll files rm thesis notes.txt
  atoll files rm thesis old --recursive")]
    Rm(FilesRmArgs),
    /// Move or rename within the project
    #[command(after_help = "\
Example:
  atoll files mv thesis draft.txt final.txt")]
    Mv(FilesMvArgs),
}

#[derive(Debug, Args)]
pub struct FilesListArgs {
    /// The project's name or id
    pub project: String,

    /// From the home directory on
    #[arg(default_value = "")]
    pub path: String,
}

#[derive(Debug, Args)]
pub struct FilesPathArgs {
    /// The project's name or id
    pub project: String,

    /// From the home directory on
    pub path: String,
}

#[derive(Debug, Args)]
pub struct FilesRmArgs {
    /// The project's name or id
    pub project: String,

    /// From the home directory on
    #[arg(required = true)]
    pub paths: Vec<String>,

    /// Directories, too, with all that is in them
    #[arg(long, short)]
    pub recursive: bool,
}

#[derive(Debug, Args)]
pub struct FilesMvArgs {
    /// The project's name or id
    pub project: String,

    /// From the home directory on
    pub from: String,

    /// The new path itself, from the home directory on
    pub to: String,

    /// Replace a file that is there
    #[arg(long)]
    pub replace: bool,
}
