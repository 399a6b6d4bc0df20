//! Which bus a command means, and who it is there.

use async_nats::ConnectOptions;
use atoll_contract::Error;

use super::super::{Context, prompt};
use crate::{
    args::{BusArgs, BusServerArgs},
    client::{self, Bus},
    errors::{self, Result},
};

/// The bus that was named, else the master's.
pub async fn open(context: &Context, args: &BusArgs) -> Result<Bus> {
    if let Some(project) = &args.project {
        let master = context.master()?;
        let project = master.project_id(project).await?;
        return client::open_bus(&master, project, &context.clock).await;
    }
    match server(context, &args.server).await? {
        Some(bus) => Ok(bus),
        None => client::open_master_bus(&context.master()?).await,
    }
}

/// The server that was named, if one was.
pub async fn server(context: &Context, args: &BusServerArgs) -> Result<Option<Bus>> {
    let Some(url) = &args.server else { return Ok(None) };
    check(url)?;
    let mut options = ConnectOptions::new();
    if let Some(file) = &args.token_file {
        options = options.token(prompt::secret(Some(file), "token", "--token-file")?);
    }
    if let Some(user) = &args.user {
        let password = prompt::secret(args.password_file.as_deref(), "password", "--password-file")?;
        options = options.user_and_password(user.clone(), password);
    }
    if let Some(file) = &args.creds {
        options = options.credentials_file(file).await.map_err(|error| errors::io(file.display(), &error))?;
    }
    Ok(Some(client::open_server(url, options, context.ca_file.as_deref()).await?))
}

/// Refuses secrets in the URL, which every process of the machine can read.
pub fn check(url: &str) -> Result<reqwest::Url> {
    let bad =
        || Error::invalid(format!("{:?} isn't a bus's URL.", shown(url))).mend("Write it as nats://NAME:PORT, or with tls, ws or wss.");
    let parsed = reqwest::Url::parse(url).map_err(|_| bad())?;
    if !matches!(parsed.scheme(), "nats" | "tls" | "ws" | "wss") || parsed.host_str().is_none_or(str::is_empty) {
        return Err(bad());
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(Error::invalid("The URL has a secret in it, which others on this machine can see.")
            .mend("Give --token-file, or --user with --password-file."));
    }
    Ok(parsed)
}

/// Without what could be a secret.
fn shown(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_server_and_no_secret() {
        for url in ["nats://a:4222", "nats://[::1]:1", "tls://a", "ws://a:1/bus", "wss://a.example/bus"] {
            check(url).unwrap();
        }
        for url in ["", "a", "a:4222", "http://a", "nats://", "nats://u:secret@a", "nats://secret@a", "u:secret@a"] {
            let error = check(url).unwrap_err();
            assert!(!format!("{error:?}").contains("secret@"), "{url}: {error:?}");
        }
    }
}
