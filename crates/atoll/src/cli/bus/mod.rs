//! `bus`: look at a bus, use it, measure it.

mod bench;
mod connect;
mod messages;
mod publish;
mod request;
mod subscribe;
mod top;

use super::Context;
use crate::{args::Bus, errors::Result};

pub async fn run(context: &Context, command: Bus) -> Result<()> {
    match command {
        Bus::Top(args) => top::run(context, args).await,
        Bus::Sub(args) => subscribe::run(context, args).await,
        Bus::Pub(args) => publish::run(context, args).await,
        Bus::Req(args) => request::run(context, args).await,
        Bus::Bench(args) => bench::run(context, args).await,
    }
}
