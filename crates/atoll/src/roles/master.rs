//! `atoll serve master`.

use std::sync::Arc;

use atoll_master::{MasterConfig, RunningMaster};
use atoll_net::clock::{SharedClock, SystemClock};

use super::{Stop, announce, serve};
use crate::{
    args::ServeArgs,
    config::{self, Machine, Master},
    errors::Result,
};

/// Where the master keeps the one-time setup token until it is used, in its data directory.
const SETUP_TOKEN: &str = "setup-token";

/// Load, build, run, drain.
pub fn run(args: ServeArgs) -> Result<u8> {
    let config = config::load(&args.config, &[], &Machine::examine())?;
    serve(&config.log, async |mut stop: Stop| {
        let clock: SharedClock = Arc::new(SystemClock);
        let master = stop.or(start(&config.master, clock)).await?;
        announce(&format!("The master serves at {}.", master.url()));
        announce_setup(&config.master, &master);
        let signal = stop.told().await;
        tracing::info!(signal, "draining");
        stop.drain(master.shutdown()).await;
        Ok(())
    })
}

pub async fn start(config: &Master, clock: SharedClock) -> Result<RunningMaster> {
    atoll_master::start(master_config(config), clock).await
}

/// How to make the first account, if there is none yet. The token itself stays in its file, out of logs and terminals' scrollbacks.
pub fn announce_setup(config: &Master, master: &RunningMaster) {
    if master.setup_token().is_some() {
        let file = config.data_dir.join(SETUP_TOKEN);
        announce(&format!("Make the first account: atoll setup --master {} --name NAME --token-file {}", master.url(), file.display()));
    }
}

fn master_config(config: &Master) -> MasterConfig {
    MasterConfig {
        listen: config.listen,
        public_url: config.public_url.clone(),
        data_dir: config.data_dir.clone(),
        tls_certificate: config.tls.certificate.clone(),
        tls_key: config.tls.key.clone(),
        bus_listen: config.bus_listen,
        bus_tls_certificate: config.bus_tls.certificate.clone(),
        bus_tls_key: config.bus_tls.key.clone(),
        cluster_urls: config.cluster.urls.iter().map(ToString::to_string).collect(),
        cluster_credentials_file: config.cluster.credentials_file.clone(),
        cluster_ca_file: config.cluster.ca_file.clone(),
        max_connections: config.max_connections as usize,
        history_days: config.history_days,
    }
}
