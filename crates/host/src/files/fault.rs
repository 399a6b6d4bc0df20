//! What can go wrong with files, as the code branches on it, and how it is said to a user.

use std::io;

use atoll_contract::{Error, ErrorCode};
use rustix::io::Errno;

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The request breaks a rule; the text says which.
    #[error("{0}")]
    Invalid(String),
    #[error("doesn't exist")]
    NotFound,
    #[error("exists already")]
    Exists,
    /// A condition of the request (`If-Match`, `If-None-Match`) doesn't hold.
    #[error("has changed")]
    Changed,
    #[error("isn't a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("isn't empty")]
    NotEmpty,
    /// A socket, pipe or device: never opened.
    #[error("is neither a file nor a directory")]
    Special,
    /// A symlink leads out of the directory beneath which everything stays, or to another mount.
    #[error("leads out of home")]
    Escapes,
    #[error("has too many symlinks")]
    Loop,
    #[error("may not be touched")]
    Denied,
    /// Both ends of a rename aren't in one volume.
    #[error("is in another volume")]
    OtherVolume,
    #[error("the disk is full")]
    Full,
    #[error("the disk limit is reached")]
    Quota,
    /// A bound of this server.
    #[error("{0}")]
    Limit(String),
    /// More bytes than were announced or are allowed.
    #[error("{0}")]
    TooLarge(String),
    /// The kernel or the file system can't do what is needed.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The volume itself isn't there.
    #[error("the volume is missing")]
    NoVolume,
    #[error("cancelled")]
    Cancelled,
    /// At one thing among several, whose path it names.
    #[error("{0}: {1}")]
    At(String, Box<Fault>),
    #[error("{0}")]
    Io(Errno),
    /// What came from the client, or what went to it, broke off.
    #[error("{0}")]
    Stream(io::Error),
}

impl Fault {
    /// The error for a user, about the thing that `what` names.
    pub fn about(self, what: &impl std::fmt::Display) -> Error {
        let name = format!("\"{what}\"");
        match self {
            Self::At(path, fault) => fault.about(&path),
            Self::Invalid(why) => Error::invalid(why),
            Self::NotFound => Error::new(ErrorCode::NotFound, format!("{name} doesn't exist.")),
            Self::Exists => Error::new(ErrorCode::AlreadyExists, format!("{name} exists already.")),
            Self::Changed => Error::new(ErrorCode::Conflict, format!("{name} isn't what the request's condition expects."))
                .mend("Look at it again first."),
            Self::NotDirectory => Error::invalid(format!("{name}, or a part of that path, isn't a directory.")),
            Self::IsDirectory => Error::new(ErrorCode::Conflict, format!("{name} is a directory.")),
            Self::NotEmpty => Error::new(ErrorCode::Conflict, format!("The directory {name} isn't empty."))
                .mend("Give recursive=true to remove it with all that is in it."),
            Self::Special => Error::invalid(format!("{name} is a socket, pipe or device, which is never opened.")),
            Self::Escapes => Error::new(ErrorCode::Forbidden, format!("{name} leads out of the project's files."))
                .mend("Symlinks are followed as long as they are relative and stay inside."),
            Self::Loop => Error::invalid(format!("{name} goes through too many symlinks.")),
            Self::Denied => Error::new(ErrorCode::Forbidden, format!("The file system doesn't allow this for {name}.")),
            Self::OtherVolume => Error::new(ErrorCode::Unsupported, format!("{name} is in another volume than its new place."))
                .mend("Copy it, then remove the old one."),
            Self::Full => Error::new(ErrorCode::DiskFull, "The host's disk is full."),
            Self::Quota => {
                Error::new(ErrorCode::QuotaExceeded, "The project's disk limit is reached.").mend("Remove files, or raise the limit.")
            }
            Self::Limit(why) => Error::new(ErrorCode::LimitExceeded, why),
            Self::TooLarge(why) => Error::new(ErrorCode::TooLarge, why),
            Self::Unsupported(why) => Error::new(ErrorCode::Unsupported, why),
            Self::NoVolume => Error::new(ErrorCode::StorageFailed, "The project's volume can't be opened on this host."),
            Self::Cancelled => Error::new(ErrorCode::Cancelled, "It was cancelled."),
            Self::Io(errno) => Error::new(ErrorCode::StorageFailed, format!("The storage failed at {name}: {errno}.")),
            Self::Stream(error) => match error.kind() {
                io::ErrorKind::TimedOut => Error::new(ErrorCode::TimedOut, "The request's body stopped coming."),
                _ => Error::invalid(format!("The request's body can't be read: {error}.")),
            },
        }
    }
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::NotFound,
            Errno::EXIST => Self::Exists,
            Errno::NOTDIR => Self::NotDirectory,
            Errno::ISDIR => Self::IsDirectory,
            Errno::NOTEMPTY => Self::NotEmpty,
            Errno::XDEV => Self::Escapes,
            Errno::LOOP => Self::Loop,
            Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::BUSY | Errno::TXTBSY => Self::Denied,
            Errno::NOSPC => Self::Full,
            Errno::DQUOT => Self::Quota,
            Errno::FBIG => Self::TooLarge("The file is larger than the file system allows.".into()),
            Errno::NAMETOOLONG => Self::Invalid("A name or path is too long for the file system.".into()),
            Errno::MLINK => Self::Limit("The file system allows no more links or entries there.".into()),
            Errno::NXIO => Self::Special,
            Errno::NOSYS => Self::Unsupported("This kernel has no openat2; Linux 5.6 or newer is needed to serve files."),
            other => Self::Io(other),
        }
    }
}

/// For file I/O through std: those always carry an error number. An error without one came from a stream.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(errno) => errno.into(),
            None => Self::Stream(error),
        }
    }
}
