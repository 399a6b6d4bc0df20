//! Typed ids. Each is a UUIDv7 in its hyphenated lower-case text form, so that ids sort by the time of their making
//! and are valid bus subject tokens as they are.

use std::{fmt, hash::Hash, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// What an id names. The name is used in messages and in the API's schema.
pub trait Kind: Copy + Ord + Hash + fmt::Debug + Send + Sync + 'static {
    const NAME: &'static str;
}

/// An id of one kind of thing. Ids of different kinds can't be mixed up at compile time.
///
/// There is no way to make a new one here: accounts, projects, hosts and operations are minted by the master alone
/// (`atoll_master::mint`), terminals by the agent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id<K: Kind>(Uuid, PhantomData<K>);

impl<K: Kind> Id<K> {
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    pub const fn uuid(&self) -> &Uuid {
        &self.0
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", K::NAME, self.0.hyphenated())
    }
}

/// Text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind} id: expected a UUID such as 0198c0de-0000-7000-8000-000000000000")]
pub struct ParseIdError {
    kind: &'static str,
}

impl<K: Kind> FromStr for Id<K> {
    type Err = ParseIdError;

    /// Accepts the hyphenated lower-case form only, so that one id has one spelling (they are compared as text in
    /// subjects, file names and database rows).
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let bad = ParseIdError { kind: K::NAME };
        let uuid = Uuid::try_parse(text).map_err(|_| bad.clone())?;
        let id = Self::from_uuid(uuid);
        if id.to_string() == text { Ok(id) } else { Err(bad) }
    }
}

impl<K: Kind> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: Kind> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account;
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiKey;
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Project;
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host;
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation;
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Terminal;
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Volume;

impl Kind for Account {
    const NAME: &'static str = "account";
}
impl Kind for ApiKey {
    const NAME: &'static str = "api key";
}
impl Kind for Project {
    const NAME: &'static str = "project";
}
impl Kind for Host {
    const NAME: &'static str = "host";
}
impl Kind for Operation {
    const NAME: &'static str = "operation";
}
impl Kind for Terminal {
    const NAME: &'static str = "terminal";
}
impl Kind for Volume {
    const NAME: &'static str = "volume";
}

pub type AccountId = Id<Account>;
pub type ApiKeyId = Id<ApiKey>;
pub type ProjectId = Id<Project>;
pub type HostId = Id<Host>;
pub type OperationId = Id<Operation>;
pub type TerminalId = Id<Terminal>;
pub type VolumeId = Id<Volume>;

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "0198c0de-0000-7000-8000-00000000000a";

    #[test]
    fn round_trip() {
        let id: ProjectId = TEXT.parse().unwrap();
        assert_eq!(id.to_string(), TEXT);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{TEXT}\""));
        assert_eq!(serde_json::from_str::<ProjectId>(&format!("\"{TEXT}\"")).unwrap(), id);
    }

    #[test]
    fn one_id_has_one_spelling() {
        for other in
            ["", "x", "0198C0DE-0000-7000-8000-00000000000A", "0198c0de00007000800000000000000a", "{0198c0de-0000-7000-8000-00000000000a}"]
        {
            assert!(other.parse::<ProjectId>().is_err(), "{other:?} must not parse");
        }
    }
}
