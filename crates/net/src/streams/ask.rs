//! What is asked of a stream, and answered.

use std::sync::Arc;

use atoll_contract::{
    Error,
    streams::{Keys, StreamConfig, StreamInfo, StreamKind, StreamName},
};

use super::{
    db::{PackedPage, ReadQuery},
    write::{Outcome, Write},
};

/// Which stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StreamId {
    /// Whose it is: the subjects' prefix, such as `project.<id>`.
    pub owner: Arc<str>,
    pub kind: StreamKind,
    pub name: StreamName,
}

impl StreamId {
    /// As people are told of it.
    pub(super) fn what(&self) -> String {
        match self.kind {
            StreamKind::Log => format!("log {:?}", self.name.as_str()),
            StreamKind::Kv => format!("key-value store {:?}", self.name.as_str()),
        }
    }
}

/// What is asked of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Write(Write),
    Read(ReadQuery),
    Get {
        key: String,
        revision: Option<u64>,
    },
    Keys {
        pattern: Option<String>,
        after: String,
        max_count: u32,
    },
    Info,
    Configure(StreamConfig),
    /// Deletes the whole stream.
    Remove,
    /// Begins anew after it was put aside as damaged.
    Reset,
}

impl Ask {
    /// Of data that waits until it is done.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Write(write) => write.data.len() + write.headers.len(),
            _ => 0,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Written(Outcome),
    Page(PackedPage),
    Keys(Keys),
    Info(StreamInfo),
    Done,
}

/// Is told what became of a request, once, on a thread that mustn't be blocked.
pub type Done = Box<dyn FnOnce(Result<Answer, Error>) + Send>;
