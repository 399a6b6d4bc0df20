//! The bridge: joins an embedded router to a NATS cluster, as a leaf node of it.
//!
//! A leaf node tells its interest and learns the cluster's, so that only what is wanted goes over, a request that nobody can answer is told at
//! once on either side, and a queue group with members on both sides gets each message once. The states are in
//! docs/design/2026-11-25-bus.md.
//!
//! | part | has |
//! |---|---|
//! | [`link`] | what the router touches: local interest, the cluster's interest, the queue to the hub |
//! | [`interest`] | local interest, counted and told |
//! | [`crossing`] | which subjects cross |
//! | [`session`] | one connection, from CONNECT to its end |
//! | [`connect`], [`credentials`] | the way there |
//! | [`wire`] | the protocol |

mod connect;
mod credentials;
mod crossing;
mod interest;
pub(crate) mod link;
mod options;
mod session;
mod wire;

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use atoll_contract::{
    Error, ErrorCode,
    bus::{BusBridge, BusTraffic},
};
use tokio_util::sync::CancellationToken;

pub use self::options::{BridgeOptions, HubUrl};
use self::{
    crossing::Crossing,
    link::{Bridge, Counts},
    session::Ended,
};
use super::{Router, subject::is_pattern};

impl Router {
    /// Joins this router to a NATS cluster. The future keeps a connection to it until `cancel`; local traffic needs none of it. A router has one
    /// bridge in its life.
    ///
    /// # Errors
    /// `invalid_config` without URLs or for what isn't a pattern, `conflict` if the router has a bridge.
    pub fn join(
        self: &Arc<Self>,
        options: BridgeOptions,
        cancel: CancellationToken,
    ) -> Result<impl Future<Output = ()> + Send + use<>, Error> {
        let bad = |text: String| Err(Error::new(ErrorCode::InvalidConfig, text));
        if options.urls.is_empty() {
            return bad("The cluster has no URL.".into());
        }
        if let Some(pattern) = options.subjects.iter().find(|pattern| !is_pattern(pattern, self.limits().subject_tokens)) {
            return bad(format!("{pattern:?} isn't a pattern of subjects that could cross to a cluster."));
        }
        let bridge = Arc::new(Bridge::new(Crossing::new(options.subjects.iter().map(String::as_str))));
        if !self.set_bridge(&bridge) {
            return Err(Error::new(ErrorCode::Conflict, "This bus is joined to a cluster already."));
        }
        Ok(Keeper { router: self.clone(), bridge, options }.run(cancel))
    }

    /// The bridge, if there is one.
    pub fn bridge_view(&self) -> Option<BusBridge> {
        let bridge = self.bridge()?;
        let link = bridge.link();
        // what the present connection has counted is added to the sums when it ends
        let written = link.as_ref().map(|link| link.out.written()).unwrap_or_default();
        let refused = link.as_ref().map_or(0, |link| link.refused());
        let get = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let (pending_bytes, pending_messages) = link.as_ref().map_or((0, 0), |link| link.out.pending());
        Some(BusBridge {
            open: link.is_some(),
            connects: get(&bridge.counts.connects),
            interests: bridge.interest.len() as u64,
            pending_bytes: pending_bytes as u64,
            pending_messages: pending_messages as u64,
            traffic: BusTraffic {
                in_messages: get(&bridge.counts.in_messages),
                in_bytes: get(&bridge.counts.in_bytes),
                out_messages: get(&bridge.counts.out_messages) + written.messages,
                out_bytes: get(&bridge.counts.out_bytes) + written.bytes,
            },
            refused: get(&bridge.counts.refused) + refused,
            slow: get(&bridge.counts.slow),
        })
    }
}

impl Bridge {
    /// Adds up what a connection that has ended counted.
    fn collect(&self, link: &link::Link) {
        let written = link.out.written();
        Counts::add(&self.counts.out_messages, written.messages);
        Counts::add(&self.counts.out_bytes, written.bytes);
        Counts::add(&self.counts.refused, link.refused());
    }
}

/// Keeps one connection.
struct Keeper {
    router: Arc<Router>,
    bridge: Arc<Bridge>,
    options: BridgeOptions,
}

impl Keeper {
    async fn run(self, cancel: CancellationToken) {
        let mut pause = self.options.first_pause;
        // not all routers of a cluster go to its first node
        let (mut at, mut failed) = (self.random(self.options.urls.len()), 0);
        let mut last_words = String::new();
        let mut number = 0;
        while !cancel.is_cancelled() {
            let url = &self.options.urls[at % self.options.urls.len()];
            number += 1;
            let ended = session::run(&self.router, &self.bridge, &self.options, url, number, &cancel).await;
            if cancel.is_cancelled() {
                return;
            }
            at += 1;
            let mut wait = self.jitter(self.options.first_pause / 2);
            match ended {
                Ended::Lost(why) => {
                    tracing::warn!(%url, why, "the connection to the cluster has ended");
                    (failed, pause) = (0, self.options.first_pause);
                    last_words.clear();
                }
                Ended::Failed(why) => {
                    failed += 1;
                    if why == last_words {
                        tracing::debug!(%url, why, "the cluster isn't joined");
                    } else {
                        tracing::warn!(%url, why, "the cluster isn't joined");
                        last_words = why;
                    }
                    if failed % self.options.urls.len() == 0 {
                        wait = pause / 2 + self.jitter(pause / 2);
                        pause = (pause * 2).min(self.options.longest_pause);
                    }
                }
                Ended::Refused(why) => {
                    tracing::error!(%url, why, "the cluster refuses this bus");
                    wait = self.options.longest_pause / 2 + self.jitter(self.options.longest_pause / 2);
                }
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Up to `most`, so that many routers don't all come at once.
    fn jitter(&self, most: Duration) -> Duration {
        Duration::from_micros(self.random(usize::try_from(most.as_micros()).unwrap_or(usize::MAX)) as u64)
    }

    fn random(&self, below: usize) -> usize {
        let mut bytes = [0u8; 8];
        self.router.clock.random(&mut bytes);
        usize::from_le_bytes(bytes) % below.max(1)
    }
}
