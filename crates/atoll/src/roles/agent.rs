//! `atoll agent`: process 1 of a project's container.

use atoll_agent::AgentOptions;

use super::logging;
use crate::errors::{self, Result};

/// One thread: an agent that has nothing to do should cost next to nothing.
pub fn run() -> Result<u8> {
    logging::for_agent();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| errors::io("The runtime", &error))?;
    let code = runtime.block_on(atoll_agent::run(AgentOptions::container(env!("CARGO_PKG_VERSION"))));
    Ok((code & 0xff) as u8)
}
