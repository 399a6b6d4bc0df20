//! The user's commands. Each gets a [`Context`], speaks to a master or host, and shows the result.

mod account;
mod bus;
mod completion;
mod cp;
mod doctor;
mod exec;
mod files;
mod host;
mod key;
mod operation;
mod project;
mod prompt;
mod shell;
mod terminal;

use std::path::PathBuf;

use atoll_contract::{Error, ErrorCode};
use atoll_net::clock::SharedClock;

use crate::{
    args::{Cli, Command},
    client::{self, Credentials, DEFAULT_MASTER, Master},
    errors::Result,
    output::Output,
};

pub use self::completion::completion;

/// What every command is handed.
pub struct Context {
    pub output: Output,
    pub clock: SharedClock,
    /// `--master` or ATOLL_MASTER.
    master: Option<String>,
    /// `--ca-file` or ATOLL_CA_FILE, as an absolute path.
    pub ca_file: Option<PathBuf>,
}

impl Context {
    pub fn new(cli: &Cli, clock: SharedClock) -> Self {
        let master = cli.master.clone().filter(|url| !url.is_empty());
        // one that can't be made absolute is wrong as it is, which is said when it is read
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let ca_file = cli.ca_file.clone().filter(|path| !path.as_os_str().is_empty()).map(absolute);
        Self { output: Output { json: cli.json }, clock, master, ca_file }
    }

    /// The master that was named, else the one that was logged in to last, else the default.
    pub fn master_url(&self) -> Result<String> {
        match &self.master {
            Some(url) => client::base_url(url),
            None => Ok(Credentials::load(&Credentials::path()?)?.current.unwrap_or_else(|| DEFAULT_MASTER.into())),
        }
    }

    /// The CA file that was named, else that of the last login at this master.
    pub fn ca_file_for(&self, url: &str) -> Option<PathBuf> {
        let remembered = || Credentials::load(&Credentials::path().ok()?).ok()?.masters.remove(url)?.ca_file;
        self.ca_file.clone().or_else(remembered)
    }

    /// The master, without a credential: for logging in.
    pub fn anonymous(&self) -> Result<Master> {
        let url = self.master_url()?;
        Master::new(&url, None, self.ca_file_for(&url).as_deref())
    }

    /// The master, as whoever runs the command: ATOLL_TOKEN, else the session in the credentials file.
    ///
    /// # Errors
    /// `unauthenticated` if there is neither, or the session has ended.
    pub fn master(&self) -> Result<Master> {
        if let Some(token) = token_from_environment() {
            // a key alone must do where there is no home directory
            let url = match &self.master {
                Some(url) => client::base_url(url)?,
                None => self.master_url().unwrap_or_else(|_| DEFAULT_MASTER.into()),
            };
            return Master::new(&url, Some(token), self.ca_file_for(&url).as_deref());
        }
        let url = self.master_url()?;
        let mut credentials = Credentials::load(&Credentials::path()?)?;
        let login = |message: String| {
            Error::new(ErrorCode::Unauthenticated, message).mend("Run atoll login --name NAME, or set ATOLL_TOKEN to an API key.")
        };
        match credentials.masters.remove(&url) {
            None => Err(login(format!("You aren't logged in at {url}."))),
            Some(session) if session.expires_at <= self.clock.now() => Err(login(format!("Your session at {url} has ended."))),
            Some(session) => {
                Master::new(&url, Some(session.token), self.ca_file.as_ref().or(session.ca_file.as_ref()).map(PathBuf::as_path))
            }
        }
    }
}

fn token_from_environment() -> Option<String> {
    std::env::var("ATOLL_TOKEN").ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// Runs a command that isn't a role. The number is the process's exit code.
pub async fn run(context: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Setup(args) => account::setup(context, args).await,
        Command::Login(args) => account::login(context, args).await,
        Command::Logout(_) => account::logout(context).await,
        Command::Whoami(_) => account::whoami(context).await,
        Command::Account(args) => account::run(context, args).await,
        Command::Key(args) => key::run(context, args).await,
        Command::Project(args) => project::run(context, args).await,
        Command::Exec(args) => return exec::run(context, args).await,
        Command::Shell(args) => return shell::run(context, args).await,
        Command::Terminal(args) => terminal::run(context, args).await,
        Command::Cp(args) => cp::run(context, args).await,
        Command::Files(args) => files::run(context, args).await,
        Command::Host(args) => host::run(context, args).await,
        Command::Operation(args) => operation::run(context, args).await,
        Command::Bus(args) => bus::run(context, args).await,
        Command::Doctor(args) => return doctor::run(context, args).await,
        Command::Health(_) => health(context).await,
        Command::Completion(args) => completion(args.shell),
        Command::Up(_) | Command::Serve(_) | Command::Dev(_) | Command::Agent => Err(Error::internal("A role was run as a command.")),
    }
    .map(|()| 0)
}

async fn health(context: &Context) -> Result<()> {
    let master = context.anonymous()?;
    let health = master.health().await?;
    context.output.show(&health, |health| {
        let setup = if health.setup_needed == Some(true) { "\nThe first account is still to be made: atoll setup --name NAME" } else { "" };
        format!("{} serves (version {}) at {}.{setup}", health.role, health.version, master.url())
    })
}
