//! `key`: API keys of the account.

use atoll_contract::api::ApiKeyRequest;

use super::{Context, prompt};
use crate::{
    args::Key,
    errors::Result,
    output::{say, tables},
};

pub async fn run(context: &Context, command: Key) -> Result<()> {
    let master = context.master()?;
    match command {
        Key::Create(args) => {
            let reply = master.create_key(&ApiKeyRequest { name: args.name, days: args.days }).await?;
            if !context.output.json {
                say(&format!(
                    "Made the key {} ({}). Its text is shown this one time; keep it in a file and give it as ATOLL_TOKEN.",
                    reply.key.name, reply.key.id
                ));
            }
            context.output.show(&reply, |reply| reply.token.clone())
        }
        Key::List => {
            let list = master.keys().await?;
            context.output.show(&list, |list| tables::keys(&list.keys, context.clock.now()))
        }
        Key::Delete(args) => {
            if !args.yes {
                prompt::confirm(&format!("Delete the key {}?", args.id))?;
            }
            master.delete_key(args.id).await?;
            context.output.note("Deleted the key.");
            Ok(())
        }
    }
}
