//! The way to a hub: name, socket, INFO, TLS.

use std::{net::IpAddr, path::Path, sync::Arc};

use bytes::BytesMut;
use hickory_resolver::{Resolver, TokioResolver};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    net::TcpStream,
};

use super::{options::HubUrl, wire::HubInfo};
use crate::tls::{self, Trust};

/// A stream to a hub, encrypted or not.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A hub that has introduced itself.
pub(super) struct Reached {
    pub io: Box<dyn Io>,
    pub info: HubInfo,
    pub encrypted: bool,
    /// What came after INFO.
    pub rest: BytesMut,
}

/// INFO is the longest line that a hub sends.
pub(super) const MAX_LINE: usize = 64 << 10;

/// Connects and reads INFO. The error is a sentence's end for people: "the cluster isn't joined: …".
pub(super) async fn reach(url: &HubUrl, ca_file: Option<&Path>) -> Result<Reached, String> {
    let mut socket = dial(url).await?;
    let _ = socket.set_nodelay(true); // without it things work, later
    let (info, rest) = introduction(&mut socket).await?;
    if info.leafnode_urls.is_none() {
        return Err("that isn't a listener for leaf nodes".into());
    }
    if !info.tls_required {
        if url.tls {
            return Err("the hub doesn't do TLS, and the URL asks for it".into());
        }
        return Ok(Reached { io: Box::new(socket), info, encrypted: false, rest });
    }
    if !rest.is_empty() {
        return Err("the hub goes on in the clear after asking for TLS".into());
    }
    let ca_file = ca_file.map(Path::to_owned);
    let config = tokio::task::spawn_blocking(move || tls::client_config(ca_file.as_deref().map_or(Trust::System(None), Trust::Only)));
    let config = config.await.map_err(|error| error.to_string())?.map_err(|error| error.message)?;
    let name = ServerName::try_from(url.host.clone()).map_err(|_| format!("{:?} isn't a name that a certificate could have", url.host))?;
    let encrypted = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket);
    let io = encrypted.await.map_err(|error| format!("TLS with the hub failed: {error}"))?;
    Ok(Reached { io: Box::new(io), info, encrypted: true, rest: BytesMut::new() })
}

async fn dial(url: &HubUrl) -> Result<TcpStream, String> {
    let mut last = format!("{} has no address", url.host);
    for address in addresses(&url.host).await? {
        match TcpStream::connect((address, url.port)).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Not glibc's resolver: the program is linked statically.
async fn addresses(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let resolver: TokioResolver = Resolver::builder_tokio()
        .and_then(hickory_resolver::ResolverBuilder::build)
        .map_err(|error| format!("no names can be looked up: {error}"))?;
    let found = resolver.lookup_ip(host).await.map_err(|error| format!("the name can't be looked up: {error}"))?;
    Ok(found.iter().collect())
}

async fn introduction(socket: &mut TcpStream) -> Result<(HubInfo, BytesMut), String> {
    let mut buffer = BytesMut::with_capacity(4096);
    let end = loop {
        if let Some(end) = memchr::memchr(b'\n', &buffer) {
            break end;
        }
        if buffer.len() > MAX_LINE {
            return Err("the hub doesn't speak NATS".into());
        }
        if socket.read_buf(&mut buffer).await.map_err(|error| error.to_string())? == 0 {
            return Err("the hub closed the connection".into());
        }
    };
    let line = buffer.split_to(end + 1);
    let json = line.strip_prefix(b"INFO").ok_or("the hub doesn't speak NATS")?;
    let info = serde_json::from_slice(json).map_err(|_| "the hub's INFO can't be read")?;
    Ok((info, buffer))
}
