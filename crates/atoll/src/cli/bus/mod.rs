//! `bus`: look at a bus, use it, measure it.

mod bench;

use super::Context;
use crate::{args::Bus, errors::Result};

pub async fn run(context: &Context, command: Bus) -> Result<()> {
    match command {
        Bus::Bench(args) => bench::run(context, args).await,
    }
}
