//! `bus top`.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    bus::BusReport,
    subject::{BUS_STATS, host_stats},
};
use atoll_net::bus::Message;
use rustix::termios::tcgetwinsize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{super::Context, connect};
use crate::{
    args::BusTopArgs,
    client::{self, Bus},
    errors::{self, Result},
    output::{bus as tables, print, say},
};

const SHORTEST: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(5);

pub async fn run(context: &Context, args: BusTopArgs) -> Result<()> {
    if args.interval.0 < SHORTEST {
        return Err(Error::invalid("The interval is too short.").mend("200ms is the least."));
    }
    let looker = Looker::new(context, &args).await?;
    let failed = |error: std::io::Error| errors::io("A signal", &error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let first = tokio::select! {
        look = looker.look() => look?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    };
    if context.output.json && args.once {
        return context.output.show(&first, |_| String::new());
    }
    let mut ticks = interval_at(Instant::now() + args.interval.0, args.interval.0);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = first.clone();
    show(context, None, &before, &args)?;
    loop {
        let next = async {
            ticks.tick().await;
            looker.look().await
        };
        let now = tokio::select! {
            look = next => look,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        let now = match now {
            // it may be back at the next look; the connection is made anew meanwhile
            Err(error) if error.retry && !args.once => {
                say(&error.to_string());
                continue;
            }
            now => now?,
        };
        show(context, Some(&before), &now, &args)?;
        before = now;
        if args.once {
            return Ok(());
        }
    }
    context.output.note(&tables::sum(&first, &before));
    Ok(())
}

/// Tables need two looks for their rates; with --once nothing is shown before them.
fn show(context: &Context, before: Option<&BusReport>, now: &BusReport, args: &BusTopArgs) -> Result<()> {
    if context.output.json {
        return context.output.show(now, |_| String::new());
    }
    if args.once && before.is_none() {
        return Ok(());
    }
    let text = tables::top(before, now, usize::from(args.rows));
    if !args.once && std::io::stdout().is_terminal() {
        let mut out = std::io::stdout().lock();
        // a window without a size is a terminal's that doesn't know it
        let text = match tcgetwinsize(&out) {
            Ok(size) if size.ws_row > 0 && size.ws_col > 0 => cut(&text, size.ws_row.into(), size.ws_col.into()),
            _ => text,
        };
        // from the upper left corner, and nothing left of the last one
        let written = write!(out, "\x1b[H\x1b[2J{text}").and_then(|()| out.flush());
        return written.map_err(|error| errors::io("Standard output", &error));
    }
    print(&format!("{text}\n"))
}

/// What fits into a window: a line that is broken would push the first ones out.
fn cut(text: &str, rows: usize, columns: usize) -> String {
    let lines = text.lines().take(rows).map(|line| line.chars().take(columns).collect::<String>().trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Asks for reports.
struct Looker {
    bus: Bus,
    subject: String,
    /// The host's name, if it is asked by way of the master.
    host: Option<String>,
}

impl Looker {
    async fn new(context: &Context, args: &BusTopArgs) -> Result<Self> {
        if let Some(host) = &args.host {
            let master = context.master()?;
            let host = master.host(host).await?;
            return Ok(Self { bus: client::open_master_bus(&master).await?, subject: host_stats(host.id), host: Some(host.name) });
        }
        let bus = match connect::server(context, &args.server).await? {
            Some(bus) => bus,
            None => client::open_master_bus(&context.master()?).await?,
        };
        Ok(Self { bus, subject: BUS_STATS.into(), host: None })
    }

    async fn look(&self) -> Result<BusReport> {
        let answer = self.bus.conn.request(Message::new(self.subject.as_str(), ""), PATIENCE).await.map_err(|error| self.explain(error))?;
        serde_json::from_slice(&answer.payload).map_err(|error| {
            Error::new(ErrorCode::Unsupported, format!("What the bus says of itself can't be read: {error}."))
                .mend("Is it of another version of Atoll?")
        })
    }

    fn explain(&self, error: Error) -> Error {
        match (error.code, &self.host) {
            (ErrorCode::NoResponders, Some(host)) => {
                Error::new(ErrorCode::HostUnavailable, format!("{host} isn't connected to the master."))
                    .mend(format!("See atoll host info {host}."))
            }
            (ErrorCode::NoResponders, None) => Error::new(ErrorCode::Unsupported, "This isn't an Atoll bus: it doesn't say what it does.")
                .mend("For nats-server, look at its monitoring port (/connz, /varz)."),
            (ErrorCode::Forbidden, _) => error.mend("Only admins may see what a bus does."),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_into_the_window_is_cut() {
        assert_eq!(cut("abcdef\nä\n\nlast\n", 3, 4), "abcd\nä\n");
        assert_eq!(cut("a   b\n", 10, 4), "a");
    }
}
