//! [`Conn`] over the published client.

use std::{sync::Arc, time::Duration};

use atoll_contract::{Error, ErrorCode, agent::Reply, subject::BUS_PING};
use futures_util::StreamExt;
use tokio::sync::{broadcast, mpsc};

use super::{
    BoxFuture, Conn, Headers, Message, Subscription,
    local::{invalid_subject, no_responders, timed_out},
    subject,
    wire::check_headers,
};
use crate::tls;

/// The published client as a [`Conn`]. It connects again by itself, with its subscriptions; what was published meanwhile by others is missed.
///
/// Its own bounds are those of its options (`subscription_capacity`, `client_capacity`): a reader that falls further behind misses messages.
#[derive(Clone, Debug)]
pub struct StockConn {
    client: async_nats::Client,
    /// What the server refused, if this connection was made by [`connect`].
    refusals: Option<broadcast::Sender<Arc<str>>>,
}

/// How long a publication waits for the client to take it (while it is connecting again) and a subscription for its confirmation.
const PATIENCE: Duration = Duration::from_secs(10);
/// How the server begins when it refuses a request's reply subject.
const INBOX_REFUSED: &str = "Permissions Violation for Publish with Reply of ";
/// Messages between the client's own buffer and the reader.
const FORWARDED: usize = 64;

impl StockConn {
    /// Of a client that someone else has connected: a request that the server refuses isn't told apart from one that gets no answer.
    pub fn new(client: async_nats::Client) -> Self {
        Self { client, refusals: None }
    }

    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// What the server refuses from now on, in its own words. None if this connection wasn't made by [`connect`].
    pub fn refusals(&self) -> Option<broadcast::Receiver<Arc<str>>> {
        self.refusals.as_ref().map(broadcast::Sender::subscribe)
    }

    async fn publish_now(&self, message: Message) -> Result<(), Error> {
        literal(&message.subject)?;
        message.reply.as_deref().map_or(Ok(()), literal)?;
        let headers = to_stock(&message.headers)?;
        let (subject, payload) = (message.subject.to_string(), message.payload);
        let sent = async {
            match (message.reply.map(|reply| reply.to_string()), headers) {
                (None, None) => self.client.publish(subject, payload).await,
                (None, Some(headers)) => self.client.publish_with_headers(subject, headers, payload).await,
                (Some(reply), None) => self.client.publish_with_reply(subject, reply, payload).await,
                (Some(reply), Some(headers)) => self.client.publish_with_reply_and_headers(subject, reply, headers, payload).await,
            }
        };
        use async_nats::client::PublishErrorKind as Kind;
        match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(match error.kind() {
                Kind::MaxPayloadExceeded => {
                    Error::new(ErrorCode::TooLarge, "The message is larger than the bus takes.").mend("Send it as a stream.")
                }
                Kind::InvalidSubject => invalid_subject(&message.subject),
                Kind::Send => unavailable(),
            }),
            Err(_) => Err(unavailable()),
        }
    }

    async fn subscribe_now(&self, subject: &str, queue: Option<&str>) -> Result<Subscription, Error> {
        if !subject::is_pattern(subject, usize::from(u8::MAX)) || queue.is_some_and(|queue| !subject::is_queue(queue)) {
            return Err(invalid_subject(subject));
        }
        let subscribed = async {
            match queue {
                Some(queue) => self.client.queue_subscribe(subject.to_owned(), queue.to_owned()).await,
                None => self.client.subscribe(subject.to_owned()).await,
            }
        };
        use async_nats::client::SubscribeErrorKind as Kind;
        let subscriber = match tokio::time::timeout(PATIENCE, subscribed).await {
            Ok(Ok(subscriber)) => subscriber,
            Ok(Err(error)) => {
                return Err(match error.kind() {
                    Kind::Other => unavailable(),
                    _ => invalid_subject(subject),
                });
            }
            Err(_) => return Err(unavailable()),
        };
        self.confirm(subject).await?;
        let (sender, messages) = mpsc::channel(FORWARDED);
        tokio::spawn(forward(subscriber, sender));
        Ok(Subscription::new(messages, None))
    }

    /// A round trip: the server has seen the subscription before it. Ours also says whether that was allowed; another one, that nobody answers
    /// there, which is an answer as well.
    async fn confirm(&self, subject: &str) -> Result<(), Error> {
        let request = async_nats::Request::new().payload(subject.to_owned().into()).timeout(Some(PATIENCE));
        use async_nats::client::RequestErrorKind as Kind;
        match self.client.send_request(BUS_PING, request).await {
            Ok(answer) => match serde_json::from_slice::<Reply<()>>(&answer.payload) {
                Ok(Reply::Error(error)) => Err(error),
                _ => Ok(()),
            },
            Err(error) if error.kind() == Kind::NoResponders => Ok(()),
            Err(error) if error.kind() == Kind::TimedOut => {
                Err(Error::new(ErrorCode::TimedOut, format!("The bus didn't confirm the subscription to {subject:?} in time.")))
            }
            Err(_) => Err(unavailable()),
        }
    }

    async fn request_now(&self, message: Message, timeout: Duration) -> Result<Message, Error> {
        literal(&message.subject)?;
        let refused = self.refused(&message.subject);
        let subject = message.subject.to_string();
        let mut request = async_nats::Request::new().payload(message.payload).timeout(None);
        if let Some(headers) = to_stock(&message.headers)? {
            request = request.headers(headers);
        }
        use async_nats::client::RequestErrorKind as Kind;
        tokio::select! {
            answer = tokio::time::timeout(timeout, self.client.send_request(subject, request)) => match answer {
                Ok(Ok(answer)) => Ok(from_stock(answer)),
                Ok(Err(error)) => Err(match error.kind() {
                    Kind::NoResponders => no_responders(&message.subject),
                    Kind::TimedOut => timed_out(&message.subject),
                    Kind::InvalidSubject => invalid_subject(&message.subject),
                    Kind::MaxPayloadExceeded => Error::new(ErrorCode::TooLarge, "The message is larger than the bus takes.").mend("Send it as a stream."),
                    Kind::Other => unavailable(),
                }),
                Err(_) => Err(timed_out(&message.subject)),
            },
            error = refused => Err(error),
        }
    }

    /// Returns when the server refuses a request to this subject, as seen from now on. A refused inbox is told without the request's subject, and
    /// is true of all requests of this client: it connected again with a token that has another inbox.
    fn refused(&self, subject: &str) -> impl Future<Output = Error> + Send + 'static {
        let mut refusals = self.refusals();
        let words = format!("Permissions Violation for Publish to {subject:?}");
        let subject = subject.to_owned();
        async move {
            while let Some(receiver) = &mut refusals {
                match receiver.recv().await {
                    Ok(said) if *said == *words => {
                        return Error::new(ErrorCode::Forbidden, format!("This connection may not publish to {subject:?}."));
                    }
                    Ok(said) if said.starts_with(INBOX_REFUSED) => {
                        return Error::new(ErrorCode::Unavailable, "This connection can't receive answers any more.")
                            .mend("Open another connection.");
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                }
            }
            std::future::pending().await
        }
    }
}

/// Connects with the published client such that a request which the server refuses fails at once. Takes the options' event callback for it.
///
/// # Errors
/// `unauthenticated`, `untrusted`, `timed_out`, `unavailable`.
pub async fn connect(url: &str, options: async_nats::ConnectOptions) -> Result<StockConn, Error> {
    let (sender, _) = broadcast::channel(64);
    let refusals = sender.clone();
    let options = options.event_callback(move |event| {
        let sender = sender.clone();
        async move {
            match event {
                async_nats::Event::ServerError(async_nats::ServerError::Other(words)) => {
                    tracing::debug!(words, "the bus reports an error");
                    let _ = sender.send(words.into()); // nobody may be waiting
                }
                event => tracing::debug!(%event, "the connection to the bus"),
            }
        }
    });
    use async_nats::ConnectErrorKind as Kind;
    match options.connect(url).await {
        Ok(client) => Ok(StockConn { client, refusals: Some(refusals) }),
        Err(error) => Err(tls::handshake_error(&format!("The bus at {url}"), &error).unwrap_or_else(|| match error.kind() {
            Kind::AuthorizationViolation | Kind::Authentication => {
                Error::new(ErrorCode::Unauthenticated, "The bus refused the credentials.")
            }
            Kind::TimedOut => Error::new(ErrorCode::TimedOut, "The bus didn't answer in time."),
            _ => Error::new(ErrorCode::Unavailable, format!("The bus at {url} can't be reached: {error}.")),
        })),
    }
}

impl Conn for StockConn {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.publish_now(message))
    }

    fn subscribe<'a>(&'a self, subject: &'a str, queue: Option<&'a str>) -> BoxFuture<'a, Result<Subscription, Error>> {
        Box::pin(self.subscribe_now(subject, queue))
    }

    fn request(&self, message: Message, timeout: Duration) -> BoxFuture<'_, Result<Message, Error>> {
        Box::pin(self.request_now(message, timeout))
    }
}

/// Carries messages to the reader until it or the client is gone.
async fn forward(mut subscriber: async_nats::Subscriber, sender: mpsc::Sender<Message>) {
    loop {
        tokio::select! {
            message = subscriber.next() => {
                let Some(message) = message else { break };
                if sender.send(from_stock(message)).await.is_err() {
                    break;
                }
            }
            () = sender.closed() => break,
        }
    }
    let _ = subscriber.unsubscribe().await; // the client may have ended
}

/// A message that the published client has received.
pub fn from_stock(message: async_nats::Message) -> Message {
    let status = message.status.map(|status| status.as_u16());
    let description = message.description.filter(|_| status.is_some()).unwrap_or_default();
    let mut headers = Headers { status, description, fields: Vec::new() };
    for (name, values) in message.headers.iter().flat_map(async_nats::HeaderMap::iter) {
        headers.fields.extend(values.iter().map(|value| (name.to_string(), value.to_string())));
    }
    Message {
        subject: message.subject.as_str().into(),
        reply: message.reply.map(|reply| reply.as_str().into()),
        headers,
        payload: message.payload,
    }
}

/// The published client sends no status lines of one's own.
fn to_stock(headers: &Headers) -> Result<Option<async_nats::HeaderMap>, Error> {
    if headers.is_empty() {
        return Ok(None);
    }
    if headers.status.is_some() {
        return Err(Error::invalid("The published client can't send a status."));
    }
    check_headers(headers)?;
    let mut map = async_nats::HeaderMap::new();
    headers.fields.iter().for_each(|(name, value)| map.append(name.as_str(), value.as_str()));
    Ok(Some(map))
}

fn literal(text: &str) -> Result<(), Error> {
    if subject::is_literal(text, usize::from(u8::MAX)) { Ok(()) } else { Err(invalid_subject(text)) }
}

fn unavailable() -> Error {
    Error::new(ErrorCode::Unavailable, "The connection to the bus is down.")
}
