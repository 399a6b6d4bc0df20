//! Logs on standard error, and the panic hook that logs.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

use crate::config::Log;

/// For a role, as the config says.
pub fn for_role(log: &Log) {
    init(EnvFilter::new(&log.level), log.json);
}

/// For the agent: its log is the container's, and the host shows the end of it when a start fails.
pub fn for_agent() {
    init(EnvFilter::new(std::env::var("ATOLL_LOG_LEVEL").unwrap_or_else(|_| "info".into())), false);
}

/// For a command: off, unless ATOLL_LOG_LEVEL asks for it.
pub fn for_command(json: bool) {
    let level = std::env::var("ATOLL_LOG_LEVEL").unwrap_or_else(|_| "off".into());
    init(EnvFilter::new(level), json);
}

fn init(filter: EnvFilter, json: bool) {
    let layer = fmt::layer().with_writer(std::io::stderr);
    let set = if json {
        registry().with(filter).with(layer.json().flatten_event(true)).try_init()
    } else {
        use std::io::IsTerminal;
        registry().with(filter).with(layer.with_ansi(std::io::stderr().is_terminal())).try_init()
    };
    // set once a process; a second time is a test's
    if set.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let text = panic.payload_as_str().unwrap_or("no message");
            let thread = std::thread::current();
            tracing::error!(place, thread = thread.name().unwrap_or(""), "panicked: {text}");
            // logs may be off or filtered; a panic is never to be overlooked
            eprintln!(
                "error[internal]: panicked at {place}: {text}\n  mend: This is a defect of Atoll; please report it with the lines above."
            );
        }));
    }
}
