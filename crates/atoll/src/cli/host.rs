//! `host`: list, info, join-token, join, drain, undrain.

use atoll_contract::api::{HostPatch, JoinTokenRequest};

use super::{Context, prompt};
use crate::{
    args::{Host, JoinArgs},
    config::{self, Machine},
    errors::Result,
    output::{say, tables},
    roles,
};

pub async fn run(context: &Context, command: Host) -> Result<()> {
    match command {
        Host::List => {
            let list = context.master()?.hosts().await?;
            context.output.show(&list, |list| tables::hosts(&list.hosts, context.clock.now()))
        }
        Host::Info(args) => {
            let host = context.master()?.host(&args.host).await?;
            context.output.show(&host, |host| tables::host(host, context.clock.now()))
        }
        Host::JoinToken(args) => {
            let master = context.master()?;
            let reply = master.join_token(&JoinTokenRequest { name: args.name, minutes: args.minutes }).await?;
            if !context.output.json {
                let url = master.url();
                say(&format!(
                    "Good once, until {}. On the machine: atoll host join --token-file FILE --set host.master_url={url}",
                    reply.expires_at
                ));
            }
            context.output.show(&reply, |reply| reply.token.clone())
        }
        Host::Join(args) => join(context, args).await,
        Host::Drain(args) => drain(context, &args.host, true).await,
        Host::Undrain(args) => drain(context, &args.host, false).await,
    }
}

async fn drain(context: &Context, host: &str, draining: bool) -> Result<()> {
    let master = context.master()?;
    let host = master.host(host).await?;
    let host = master.patch_host(&host, &HostPatch { draining: Some(draining) }).await?;
    context.output.show(&host, |host| {
        let gets = if draining { "gets no new projects; those that it has stay" } else { "may get new projects" };
        format!("{} {gets}.", host.name)
    })
}

async fn join(context: &Context, args: JoinArgs) -> Result<()> {
    let config = config::load(&args.config, &[], &Machine::examine())?;
    let token = prompt::secret(args.token_file.as_deref(), "join token", "--token-file")?;
    let identity = roles::host::join(&config.host, &token, &context.clock).await?;
    let joined = serde_json::json!({ "host": identity.host, "name": identity.name, "master_url": identity.master_url });
    context.output.show(&joined, |_| {
        let start = args.config.config.as_ref().map(|path| format!(" --config {}", path.display())).unwrap_or_default();
        format!("Joined {} as {} ({}).\nStart it with: atoll serve host{start}", identity.master_url, identity.name, identity.host)
    })
}
