//! The two JSON documents of the protocol: INFO, which the server says of itself, and CONNECT, which the client says.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// What a server says of itself, at the beginning and when it changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Info {
    pub server_id: String,
    #[serde(default)]
    pub server_name: String,
    /// The level of NATS whose client-side features may be expected; clients compare it.
    #[serde(default)]
    pub version: String,
    /// 1: INFO may come again, and `echo` is understood.
    #[serde(default)]
    pub proto: i8,
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub port: u16,
    #[serde(default)]
    pub headers: bool,
    #[serde(default)]
    pub auth_required: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls_required: bool,
    /// Bytes.
    #[serde(default)]
    pub max_payload: usize,
    #[serde(default)]
    pub client_id: u64,
    /// To be signed by an nkey; made anew for every connection.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    /// Lame duck mode: this server goes away soon.
    #[serde(default, rename = "ldm", skip_serializing_if = "std::ops::Not::not")]
    pub lame_duck: bool,
}

/// What a client says of itself.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Connect {
    /// +OK for every operation.
    pub verbose: bool,
    /// Stricter checks; this bus always makes them.
    pub pedantic: bool,
    /// Whether it gets what it publishes itself, if it subscribes to it.
    pub echo: bool,
    pub headers: bool,
    /// Whether it wants to be told (status 503) that nobody subscribes to what it requests.
    pub no_responders: bool,
    pub lang: String,
    pub version: String,
    /// 1: it takes INFO at any time.
    pub protocol: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(flatten)]
    pub proof: Proof,
}

/// What a CONNECT shows for whoever it says it is.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Proof {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_token: Option<String>,
    /// Taken for a token by this bus, so that clients which know no `auth_token` can present one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sig: Option<String>,
}

/// A CONNECT line as it comes. Unknown members are ignored: clients differ, and new versions add some.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    verbose: Option<bool>,
    pedantic: Option<bool>,
    echo: Option<bool>,
    headers: Option<bool>,
    no_responders: Option<bool>,
    lang: Option<String>,
    version: Option<String>,
    protocol: Option<i64>,
    name: Option<String>,
    auth_token: Option<String>,
    jwt: Option<String>,
    nkey: Option<String>,
    sig: Option<String>,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            verbose: true, // as nats-server: a client that says nothing gets +OK
            pedantic: true,
            echo: true,
            headers: false,
            no_responders: false,
            lang: String::new(),
            version: String::new(),
            protocol: 0,
            name: None,
            proof: Proof::default(),
        }
    }
}

impl Info {
    pub(crate) fn line(&self) -> Bytes {
        json_line(b"INFO ", self)
    }
}

impl Connect {
    /// Takes over what a CONNECT line says. As in nats-server a member that is absent or null leaves what was said before, and of two with one
    /// name the last counts.
    pub(crate) fn update(&mut self, json: &[u8]) -> Result<(), serde_json::Error> {
        let members: Option<serde_json::Map<_, _>> = serde_json::from_slice(json)?;
        let said: Said = serde_json::from_value(members.unwrap_or_default().into())?;
        fn set<T>(member: &mut T, said: Option<T>) {
            if let Some(said) = said {
                *member = said;
            }
        }
        set(&mut self.verbose, said.verbose);
        set(&mut self.pedantic, said.pedantic);
        set(&mut self.echo, said.echo);
        set(&mut self.headers, said.headers);
        set(&mut self.no_responders, said.no_responders);
        set(&mut self.lang, said.lang);
        set(&mut self.version, said.version);
        set(&mut self.protocol, said.protocol);
        self.name = said.name.or(self.name.take());
        let proof = &mut self.proof;
        proof.auth_token = said.auth_token.or(proof.auth_token.take());
        proof.jwt = said.jwt.or(proof.jwt.take());
        proof.nkey = said.nkey.or(proof.nkey.take());
        proof.sig = said.sig.or(proof.sig.take());
        Ok(())
    }

    pub(crate) fn line(&self) -> Bytes {
        json_line(b"CONNECT ", self)
    }
}

/// A line with one JSON document.
pub(crate) fn json_line(name: &[u8], value: &impl Serialize) -> Bytes {
    let mut out = BytesMut::with_capacity(512).writer();
    out.get_mut().put_slice(name);
    // strings, numbers and booleans in a struct: there is nothing here that JSON couldn't hold
    if let Err(error) = serde_json::to_writer(&mut out, value) {
        tracing::error!(%error, "a protocol line could not be written as JSON");
    }
    let mut out = out.into_inner();
    out.put_slice(b"\r\n");
    out.freeze()
}
