//! Arguments about accounts and credentials. None takes a secret: those come from files, standard input or a prompt.

use clap::{Args, Subcommand};

use atoll_contract::ApiKeyId;

/// Make the first account, an admin, and log in
///
/// Needs the one-time setup token that the master printed at its first start. Asks for token and password on a terminal if no file is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll setup --name ada
  atoll setup --master http://127.0.0.1:7420 --name ada --token-file setup-token --password-file password")]
pub struct SetupArgs {
    /// The account's name
    #[arg(long)]
    pub name: String,

    /// File with the setup token; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,

    /// File with the password; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<String>,
}

/// Log in and keep the session in the credentials file
///
/// The file is $XDG_CONFIG_HOME/atoll/credentials.json (ATOLL_CREDENTIALS names another), readable by its owner only; it holds one
/// session for each master.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  atoll login --name ada
  atoll login --master https://atoll.example.org --name ada --password-file -
  atoll login --master https://127.0.0.1:7420 --ca-file ca.pem --name ada")]
pub struct LoginArgs {
    /// The account's name
    #[arg(long)]
    pub name: String,

    /// File with the password; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<String>,
}

/// End the session at the master and forget it here
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  atoll logout")]
pub struct LogoutArgs {}

/// Show the account that commands act as
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  atoll whoami")]
pub struct WhoamiArgs {}

/// Accounts of the cluster (for admins)
#[derive(Debug, Subcommand)]
pub enum Account {
    /// Make an account
    #[command(after_help = "\
Examples:
  atoll account create bob
  atoll account create bob --admin --password-file password")]
    Create(AccountCreateArgs),
    /// List all accounts
    #[command(after_help = "\
Example:
  atoll account list")]
    List,
}

#[derive(Debug, Args)]
pub struct AccountCreateArgs {
    /// The account's name
    pub name: String,

    /// May manage hosts and accounts
    #[arg(long)]
    pub admin: bool,

    /// File with the password; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<String>,
}

/// API keys: credentials for programs, given in ATOLL_TOKEN
#[derive(Debug, Subcommand)]
pub enum Key {
    /// Make a key; its text is shown this one time
    #[command(after_help = "\
Examples:
  atoll key create ci --days 90
  atoll --json key create ci | jq -r .token > key")]
    Create(KeyCreateArgs),
    /// List the keys of this account
    #[command(after_help = "\
Example:
  atoll key list")]
    List,
    /// Delete a key; what uses it is refused from then on
    #[command(after_help = "\
Example:
  atoll key delete 0198c0de-0000-7000-8000-000000000001 --yes")]
    Delete(KeyDeleteArgs),
}

#[derive(Debug, Args)]
pub struct KeyCreateArgs {
    /// What it is for
    pub name: String,

    /// Days until it expires; without it never
    #[arg(long)]
    pub days: Option<u32>,
}

#[derive(Debug, Args)]
pub struct KeyDeleteArgs {
    /// The key's id, as `key list` shows it
    pub id: ApiKeyId,

    /// Don't ask
    #[arg(long, short)]
    pub yes: bool,
}
