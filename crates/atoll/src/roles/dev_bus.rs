//! `atoll dev bus`: the bus alone, for stock clients and benchmarks.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use atoll_contract::{Error, ErrorCode, subject::Permissions};
use atoll_net::{
    bus::{Authenticator, BridgeOptions, BusLimits, Credentials, Grant, Router, listen},
    clock::SystemClock,
    streams::{Roots, StreamLimits, StreamService},
    tls::{Protocol, ServerTls},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Stop, announce, serve};
use crate::{args::DevBusArgs, config::Log, errors::Result};

/// Lets everyone do everything; that is why this bus listens on loopback alone.
struct Open;

impl Authenticator for Open {
    fn required(&self) -> bool {
        false
    }

    fn connect(&self, _: &Credentials) -> Result<Vec<Grant>> {
        let all = || vec![">".to_owned()];
        let permissions = Permissions { publish: all(), subscribe: all(), ..Permissions::default() };
        Ok(vec![Grant { key: "dev".into(), permissions, account: None, expires_at: None }])
    }
}

/// The prefix of the subjects of streams.
const PREFIX: &str = "dev";

/// All streams are in one directory.
struct OneRoot(Arc<Path>);

impl Roots for OneRoot {
    fn root(&self, _: &str) -> Result<Arc<Path>> {
        Ok(self.0.clone())
    }
}

/// How long what waits for clients may take to be written at the end.
const DRAIN: Duration = Duration::from_secs(2);

pub fn run(args: DevBusArgs, json: bool) -> Result<u8> {
    [Some(args.listen), args.websocket].into_iter().flatten().try_for_each(only_loopback)?;
    let log = Log { level: std::env::var("ATOLL_LOG_LEVEL").unwrap_or_else(|_| "warn".into()), json };
    serve(&log, async |mut stop: Stop| {
        let (router, auth) = (Router::new(BusLimits::default(), Arc::new(SystemClock)), Arc::new(Open));
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some(dir) = &args.data_dir {
            serve_streams(dir, &router, &tasks, &cancel).await?;
        }
        let (listener, addr) = bind(args.listen).await?;
        let tls = args.tls_certificate.as_deref().zip(args.tls_key.as_deref());
        let load = |protocol| {
            let load = |(certificate, key)| ServerTls::load(certificate, key, protocol, Arc::new(SystemClock)).map(Arc::new);
            tls.map(load).transpose()
        };
        let [scheme, web_scheme] = if tls.is_some() { ["tls", "wss"] } else { ["nats", "ws"] };
        tasks.spawn(router.serve_listener(listener, load(Protocol::Nats)?, auth.clone(), cancel.clone()));
        if let Some(options) = cluster(&args).await? {
            tasks.spawn(router.join(options, cancel.clone())?);
        }
        let websocket = match args.websocket {
            Some(address) => {
                let (listener, addr) = bind(address).await?;
                tasks.spawn(router.serve_websocket_tcp(listener, load(Protocol::Http)?, auth, cancel.clone()));
                Some(addr)
            }
            None => None,
        };
        if json {
            println!("{}", serde_json::json!({ "listen": addr, "websocket": websocket }));
        } else {
            announce(&format!("The bus serves at {scheme}://{addr}."));
            if let Some(addr) = websocket {
                announce(&format!("The bus serves at {web_scheme}://{addr}."));
            }
        }
        stop.told().await;
        let end = async {
            router.drain(DRAIN).await;
            cancel.cancel();
            tasks.close();
            tasks.wait().await;
        };
        stop.drain(end).await;
        Ok(())
    })
}

/// How to join the cluster that is named, if one is.
async fn cluster(args: &DevBusArgs) -> Result<Option<BridgeOptions>> {
    if args.cluster.is_empty() {
        return Ok(None);
    }
    let options = BridgeOptions {
        urls: args.cluster.clone(),
        subjects: vec![">".into()],
        credentials_file: args.cluster_credentials.clone(),
        ca_file: args.cluster_ca.clone(),
        ..BridgeOptions::default()
    };
    options.check().await?;
    Ok(Some(options))
}

/// Serves streams on the bus, before anyone can ask for them.
async fn serve_streams(dir: &Path, router: &Arc<Router>, tasks: &TaskTracker, cancel: &CancellationToken) -> Result<()> {
    let unusable = |error: std::io::Error| {
        Error::new(ErrorCode::InvalidConfig, format!("{} can't be used: {error}.", dir.display())).mend("Choose another directory.")
    };
    std::fs::create_dir_all(dir).map_err(unusable)?;
    let lock = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(dir.join("lock")).map_err(unusable)?;
    if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::new(ErrorCode::InvalidConfig, format!("Another bus uses {}.", dir.display()))
            .mend("Stop it, or choose another directory."));
    }
    let service = StreamService::new(router.connect("streams", None), Arc::new(SystemClock), StreamLimits::default());
    let serving = service.listen(PREFIX, Arc::new(OneRoot(dir.join("streams").into()))).await?;
    let cancel = cancel.clone();
    tasks.spawn(async move {
        serving.run(cancel).await;
        drop(lock); // all files are closed
    });
    Ok(())
}

fn only_loopback(address: SocketAddr) -> Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(Error::invalid(format!("{address} isn't a loopback address, and this bus asks nobody who they are."))
        .mend("Listen on 127.0.0.1 or ::1; a bus for others is a master's or a host's, see `bus_listen` in the config."))
}

async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorCode::InvalidConfig, format!("{address} can't be listened on: {error}.")).mend("Choose another port.")
    };
    let listener = listen(address).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_than_loopback_are_refused() {
        for (address, good) in
            [("127.0.0.1:0", true), ("127.8.0.1:4222", true), ("[::1]:0", true), ("0.0.0.0:4222", false), ("[::]:1", false)]
        {
            assert_eq!(only_loopback(address.parse().unwrap()).is_ok(), good, "{address}");
        }
    }
}
