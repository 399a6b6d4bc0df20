//! What a failed command says and with which code it exits.

use std::fmt::Write;

use atoll_contract::{Error, ErrorCode};

pub use atoll_contract::error::Result;

/// A command's exit code when it fails itself in `exec` or `shell`, where all others are the program's own (as `env` and `nice` do it).
pub const EXEC_FAILED: u8 = 125;

/// The exit code for an error. Documented in docs/reference/cli.md; scripts rely on it.
pub const fn exit_code(code: ErrorCode) -> u8 {
    use ErrorCode as E;
    match code {
        E::InvalidArgument | E::InvalidConfig => 2,
        E::NotFound => 3,
        E::Unauthenticated | E::Forbidden => 4,
        E::AlreadyExists | E::Conflict | E::OperationInProgress | E::NotRunning | E::StaleAssignment => 5,
        E::HostUnavailable | E::NoResponders | E::TimedOut | E::Untrusted | E::Unavailable => 6,
        E::NoRoom
        | E::ImageUnavailable
        | E::StartFailed
        | E::RuntimeFailed
        | E::StorageFailed
        | E::WrongVolume
        | E::QuotaExceeded
        | E::DiskFull
        | E::LimitExceeded
        | E::TooLarge
        | E::Cancelled
        | E::Unsupported
        | E::Internal => 1,
    }
}

/// The error as standard error shows it: for people, or (with `--json`) the contract's JSON on one line.
pub fn render(error: &Error, json: bool) -> String {
    if json {
        return serde_json::to_string(error).unwrap_or_else(|_| format!("{{\"code\":\"{}\"}}", error.code.as_str()));
    }
    let mut text = format!("error[{}]: {}", error.code.as_str(), plain(&error.message));
    if !error.mend.is_empty() {
        let _ = write!(text, "\n  mend: {}", plain(&error.mend));
    }
    if let Some(details) = &error.details {
        details_for_people(details, &mut text);
    }
    text
}

/// Text from a server without what could move the cursor or recolour a terminal.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The facts that people act on: each host's refusals, an operation's id, the end of a log.
fn details_for_people(details: &serde_json::Value, text: &mut String) {
    let Some(fields) = details.as_object() else { return };
    for (name, value) in fields {
        match value {
            serde_json::Value::String(line) => {
                let _ = write!(text, "\n  {name}: {}", plain(line).replace('\n', "\n    "));
            }
            serde_json::Value::Number(number) => {
                let _ = write!(text, "\n  {name}: {number}");
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    let _ = write!(text, "\n  {name}: {}", refusal(item));
                }
            }
            _ => {}
        }
    }
}

/// One entry of `refusals`: a candidate with its reasons, else whatever it is as JSON.
fn refusal(item: &serde_json::Value) -> String {
    match serde_json::from_value::<atoll_contract::placement::Candidate>(item.clone()) {
        Ok(candidate) => format!("{}: {}", plain(&candidate.name), crate::output::tables::refusals(&candidate.refusals)),
        Err(_) => plain(&item.to_string()),
    }
}

/// An error of the operating system about a named thing.
pub fn io(what: impl std::fmt::Display, error: &std::io::Error) -> Error {
    use std::io::ErrorKind as K;
    let (code, mend) = match error.kind() {
        K::NotFound => (ErrorCode::NotFound, ""),
        K::PermissionDenied => (ErrorCode::Forbidden, "Check who owns it and its permissions."),
        K::AlreadyExists => (ErrorCode::AlreadyExists, ""),
        K::NotADirectory | K::IsADirectory | K::InvalidInput | K::InvalidFilename => (ErrorCode::InvalidArgument, ""),
        K::StorageFull => (ErrorCode::DiskFull, "Make room on this machine's disk."),
        K::AddrInUse => (ErrorCode::Unavailable, "Another program listens there; stop it or choose another address."),
        K::TimedOut => (ErrorCode::TimedOut, ""),
        _ => (ErrorCode::Internal, ""),
    };
    // the kind alone, since the whole text has "(os error 2)" behind it
    let why = error.to_string();
    let why = why.split(" (os error").next().unwrap_or(&why).to_owned();
    Error::new(code, format!("{what}: {why}.")).mend(mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_code_sentence_and_mend() {
        let error = Error::new(ErrorCode::NoRoom, "No host can take it.").mend("Add a host.");
        assert_eq!(render(&error, false), "error[no_room]: No host can take it.\n  mend: Add a host.");
        assert_eq!(render(&error, true), r#"{"code":"no_room","message":"No host can take it.","mend":"Add a host.","retry":false}"#);
        assert_eq!(render(&Error::internal("x"), false), "error[internal]: x");
    }

    #[test]
    fn refusals_are_shown_by_host() {
        let error = Error::new(ErrorCode::NoRoom, "No host can take it.").details(serde_json::json!({"refusals": [
            {"host": "0198c0de-0000-7000-8000-000000000002", "name": "a", "refusals": [{"reason": "draining"}, {"reason": "full", "max_running": 4}]}
        ]}));
        assert_eq!(render(&error, false), "error[no_room]: No host can take it.\n  refusals: a: draining; runs 4 projects, its most");
    }

    #[test]
    fn a_server_cannot_drive_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a\u{fffd}[2Jb\nc");
    }

    #[test]
    fn exit_codes_are_as_documented() {
        for (code, exit) in [
            (ErrorCode::Internal, 1),
            (ErrorCode::InvalidArgument, 2),
            (ErrorCode::NotFound, 3),
            (ErrorCode::Forbidden, 4),
            (ErrorCode::OperationInProgress, 5),
            (ErrorCode::Unavailable, 6),
            (ErrorCode::Untrusted, 6),
        ] {
            assert_eq!(exit_code(code), exit);
        }
    }
}
