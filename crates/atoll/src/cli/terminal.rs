//! `terminal`: list and close.

use atoll_contract::{Error, ErrorCode};
use atoll_net::remote::Terminal;

use super::Context;
use crate::{args, client, errors::Result, output::tables};

pub async fn run(context: &Context, command: args::Terminal) -> Result<()> {
    let master = context.master()?;
    let (args::Terminal::List(args::ProjectArgs { project }) | args::Terminal::Close(args::TerminalCloseArgs { project, .. })) = &command;
    let project = master.project_id(project).await?;
    let (bus, terminals) = client::ask_agent(&master, project, &context.clock, async |conn| Terminal::list(conn, project).await).await?;
    match command {
        args::Terminal::List(_) => context.output.show(&terminals, |list| tables::terminals(list, context.clock.now())),
        args::Terminal::Close(args) => {
            let found = terminals.iter().find(|terminal| terminal.name == args.terminal || terminal.id.to_string() == args.terminal);
            let Some(found) = found else {
                return Err(Error::new(ErrorCode::NotFound, format!("There is no terminal {:?} in this project.", args.terminal))
                    .mend(format!("See atoll terminal list {}.", args.project)));
            };
            let closed = Terminal::of(&bus.conn, project, found.id).close().await?;
            context.output.show(&closed, |closed| format!("Closed the terminal {}.", closed.name))
        }
    }
}
