//! What this host's own bus does, told to admins who ask by way of the master. The master's bus lets nobody else ask.

use std::sync::Arc;

use atoll_net::bus::Router;

use super::{Work, hear};

/// Serves as long as it is polled. One answer at a time: each looks at every connection of the bus.
pub(super) async fn serve(client: async_nats::Client, subject: String, bus: Arc<Router>) {
    let answering = client.clone();
    let take = move |message: async_nats::Message| {
        let Some(reply_to) = message.reply else { return Work::Nothing };
        let (client, bus) = (answering.clone(), bus.clone());
        Work::AtOnce(Box::pin(async move { super::answer(&client, reply_to, &bus.report()).await }))
    };
    hear(client, subject, take).await;
}
