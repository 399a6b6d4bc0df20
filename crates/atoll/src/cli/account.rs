//! `setup`, `login`, `logout`, `whoami`, `account`.

use std::path::PathBuf;

use atoll_contract::{
    Error, ErrorCode,
    api::{AccountRequest, LoginReply, LoginRequest, SetupRequest},
};

use super::{Context, prompt};
use crate::{
    args::{Account, LoginArgs, SetupArgs},
    client::{Credentials, Master, Session},
    errors::Result,
    output::tables,
};

pub async fn setup(context: &Context, args: SetupArgs) -> Result<()> {
    let master = context.anonymous()?;
    let token = prompt::secret(args.token_file.as_deref(), "setup token", "--token-file")?;
    let password = prompt::new_password(args.password_file.as_deref())?;
    let reply = master.setup(&SetupRequest { token, name: args.name, password }).await?;
    keep(&master, &reply)?;
    shown(context, &reply, &format!("Made the account {}, an admin, and logged in at {}.", reply.name, master.url()))
}

pub async fn login(context: &Context, args: LoginArgs) -> Result<()> {
    let master = context.anonymous()?;
    let password = prompt::secret(args.password_file.as_deref(), "password", "--password-file")?;
    let reply = master.login(&LoginRequest { name: args.name, password }).await?;
    keep(&master, &reply)?;
    shown(context, &reply, &format!("Logged in at {} as {}.", master.url(), reply.name))
}

/// The session is kept in the file and isn't printed, not even as JSON: output ends up in logs.
fn shown(context: &Context, reply: &LoginReply, text: &str) -> Result<()> {
    let without = serde_json::json!({ "account": reply.account, "name": reply.name, "expires_at": reply.expires_at });
    context.output.show(&without, |_| text.to_owned())
}

fn keep(master: &Master, reply: &LoginReply) -> Result<()> {
    let url = master.url();
    let path = Credentials::path()?;
    let mut credentials = Credentials::load(&path)?;
    credentials.current = Some(url.to_owned());
    credentials.masters.insert(url.to_owned(), Session::new(reply, master.ca_file().map(Into::into)));
    credentials.save(&path)
}

pub async fn logout(context: &Context) -> Result<()> {
    let url = context.master_url()?;
    let path = Credentials::path()?;
    let mut credentials = Credentials::load(&path)?;
    let Some(session) = credentials.masters.remove(&url) else {
        context.output.note(&format!("You weren't logged in at {url}."));
        return Ok(());
    };
    if credentials.current.as_deref() == Some(&url) {
        credentials.current = credentials.masters.keys().next().cloned();
    }
    let ca_file = context.ca_file.as_ref().or(session.ca_file.as_ref());
    let ended = match Master::new(&url, Some(session.token), ca_file.map(PathBuf::as_path)) {
        Ok(master) => master.logout().await,
        Err(error) => Err(error),
    };
    // forgotten here in any case; a session that the master doesn't know any more is what was wanted
    credentials.save(&path)?;
    match ended {
        Err(error) if !matches!(error.code, ErrorCode::Unauthenticated | ErrorCode::NotFound) => {
            let told = format!("The session is forgotten here, but not ended at the master: {}", error.message);
            Err(Error { message: told, ..error })
        }
        _ => {
            context.output.note(&format!("Logged out at {url}."));
            Ok(())
        }
    }
}

pub async fn whoami(context: &Context) -> Result<()> {
    let master = context.master()?;
    let me = master.me().await?;
    context.output.show(&me, |me| format!("{}{} at {}", me.name, if me.admin { " (admin)" } else { "" }, master.url()))
}

pub async fn run(context: &Context, command: Account) -> Result<()> {
    let master = context.master()?;
    match command {
        Account::Create(args) => {
            let password = prompt::new_password(args.password_file.as_deref())?;
            let account = master.create_account(&AccountRequest { name: args.name, password, admin: args.admin }).await?;
            context.output.show(&account, |account| format!("Made the account {} ({}).", account.name, account.id))
        }
        Account::List => {
            let list = master.accounts().await?;
            context.output.show(&list, |list| tables::accounts(&list.accounts, context.clock.now()))
        }
    }
}
