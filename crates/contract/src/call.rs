//! Calls by way of the master: a request to `project.<id>.<rest>` on the master's bus, answered by whichever host has the project.
//!
//! The master's bus makes of it `call.<account>.project.<id>.<rest>` (see [`Mapping`](crate::subject::Mapping)), so the account is the bus's word
//! and not the sender's. The master asks the host at [`host_call`](crate::subject::host_call), with the headers that are named here, and the host
//! asks its own bus.

use std::time::Duration;

use crate::{AccountId, Error, ErrorCode, Generation, ProjectId, Role, subject};

/// Milliseconds that a call may take. The caller's, and again what is left of them on the way from master to host.
pub const TIMEOUT: &str = "Atoll-Timeout";
/// The project's id, from master to host.
pub const PROJECT: &str = "Atoll-Project";
/// The generation that the master holds to be in force.
pub const GENERATION: &str = "Atoll-Generation";
/// Who asks; absent if it is the master itself.
pub const ACCOUNT: &str = "Atoll-Account";
/// What who asks is in the project.
pub const ROLE: &str = "Atoll-Role";
/// The subject that is asked on the host's bus, without `project.<id>.`: it can't name another project than [`PROJECT`] does.
pub const SUBJECT: &str = "Atoll-Subject";
/// From host to master: the status line of the project's answer, `<code>[ <text>]`. The published client, which hosts use, sends none of one's own.
pub const STATUS: &str = "Atoll-Status";
/// From host to master: the answer is the host's own error of this code, with [`Error`] as payload, and nothing that the project said.
pub const ERROR: &str = "Atoll-Error";

/// What a call may take if its caller doesn't say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a call may take at most. Longer work is an operation, or goes to the host directly.
pub const MAX_TIMEOUT: Duration = Duration::from_mins(2);

/// Whether a header is one of those between caller, master and host, which are taken out of what they carry.
pub fn is_own_header(name: &str) -> bool {
    [TIMEOUT, PROJECT, GENERATION, ACCOUNT, ROLE, SUBJECT, STATUS, ERROR].iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// How long a call may take, from its [`TIMEOUT`] header.
///
/// # Errors
/// `invalid_argument` for what isn't a number of milliseconds from 1 to [`MAX_TIMEOUT`].
pub fn timeout(header: Option<&str>) -> Result<Duration, Error> {
    let Some(text) = header else { return Ok(DEFAULT_TIMEOUT) };
    let timeout = text.parse().ok().map(Duration::from_millis).filter(|timeout| !timeout.is_zero() && *timeout <= MAX_TIMEOUT);
    timeout.ok_or_else(|| Error::invalid(format!("{TIMEOUT} must be 1 to {} milliseconds.", MAX_TIMEOUT.as_millis())))
}

/// The subject of a call as it arrives at the master.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallSubject<'a> {
    pub account: AccountId,
    pub project: ProjectId,
    /// What follows `project.<id>.`.
    pub rest: &'a str,
}

impl<'a> CallSubject<'a> {
    /// None for what isn't one, such as a project's name where the id should be.
    pub fn parse(subject: &'a str) -> Option<Self> {
        let (account, rest) = subject.strip_prefix("call.")?.split_once('.')?;
        let (project, rest) = rest.strip_prefix("project.")?.split_once('.')?;
        Some(Self { account: account.parse().ok()?, project: project.parse().ok()?, rest }).filter(|_| !rest.is_empty())
    }
}

/// What the master asks of a host, as headers; payload and the caller's other headers go with it as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCall {
    pub project: ProjectId,
    pub generation: Generation,
    pub account: Option<AccountId>,
    pub role: Role,
    pub rest: String,
    /// The host answers within this time, in whole milliseconds.
    pub timeout: Duration,
}

impl HostCall {
    pub fn headers(&self) -> Vec<(String, String)> {
        let mut headers = vec![
            (PROJECT, self.project.to_string()),
            (GENERATION, self.generation.to_string()),
            (ROLE, self.role.as_str().to_owned()),
            (SUBJECT, self.rest.clone()),
            (TIMEOUT, self.timeout.as_millis().to_string()),
        ];
        headers.extend(self.account.map(|account| (ACCOUNT, account.to_string())));
        headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// Reads it back; `get` gives a header's value.
    ///
    /// # Errors
    /// `invalid_argument`, naming the header.
    pub fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, Error> {
        let bad = |name: &str| {
            Error::invalid(format!("The header {name} is missing or malformed."))
                .mend("Check that host and master are of the same version.")
        };
        let text = |name: &str| get(name).ok_or_else(|| bad(name));
        let rest = text(SUBJECT)?;
        if rest.is_empty() {
            return Err(bad(SUBJECT));
        }
        Ok(Self {
            project: text(PROJECT)?.parse().map_err(|_| bad(PROJECT))?,
            generation: Generation(text(GENERATION)?.parse().map_err(|_| bad(GENERATION))?),
            account: get(ACCOUNT).map(str::parse).transpose().map_err(|_| bad(ACCOUNT))?,
            role: Role::from_word(text(ROLE)?).ok_or_else(|| bad(ROLE))?,
            rest: rest.to_owned(),
            timeout: text(TIMEOUT).and_then(|value| timeout(Some(value)))?,
        })
    }
}

/// The subject of a call on the bus of the project's host, if the role may ask that and it goes by way of the master. Master and host look at it each
/// by itself.
///
/// # Errors
/// As [`check_rest`]; `forbidden`, by the same table as on the host's bus.
pub fn host_subject(project: ProjectId, role: Role, rest: &str) -> Result<String, Error> {
    check_rest(rest)?;
    let subject = subject::project(project, rest);
    if subject::project_permissions(project, role, "").may_publish(&subject) {
        return Ok(subject);
    }
    let words = format!("{rest:?} isn't something that the role {:?} may ask of a project.", role.as_str());
    Err(Error::new(ErrorCode::Forbidden, words).mend("docs/reference/bus.md has what a project may be asked."))
}

/// Refuses what doesn't go by way of the master although the role may do it on the host's bus.
///
/// # Errors
/// `unsupported` for a byte stream, whose bytes would all go through the master.
fn check_rest(rest: &str) -> Result<(), Error> {
    if rest == "stream" || rest.starts_with("stream.") {
        return Err(Error::new(ErrorCode::Unsupported, "Byte streams don't go by way of the master.")
            .mend("Connect to the project's host: POST /v1/projects/{id}/connect says where and with which token."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0198c0de-0000-7000-8000-00000000000a";
    const OTHER: &str = "0198c0de-0000-7000-8000-00000000000b";

    #[test]
    fn a_call_s_subject_names_account_project_and_rest() {
        let subject = format!("call.{ID}.project.{OTHER}.exec.start");
        let call = CallSubject::parse(&subject).unwrap();
        assert_eq!((call.account.to_string(), call.project.to_string(), call.rest), (ID.into(), OTHER.into(), "exec.start"));
        for bad in [
            format!("call.{ID}.project.{OTHER}"),
            format!("call.{ID}.project.{OTHER}."),
            format!("call.{ID}.project.thesis.agent.info"),
            format!("call.eve.project.{OTHER}.agent.info"),
            format!("call.{ID}.host.{OTHER}.agent.info"),
            format!("project.{OTHER}.agent.info"),
        ] {
            assert_eq!(CallSubject::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_host_s_call_is_read_back_as_it_was_written() {
        let mut call = HostCall {
            project: ID.parse().unwrap(),
            generation: Generation(7),
            account: Some(OTHER.parse().unwrap()),
            role: Role::Collaborator,
            rest: "exec.start".into(),
            timeout: Duration::from_millis(1500),
        };
        let read = |headers: &[(String, String)]| {
            HostCall::read(|name| headers.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str()))
        };
        assert_eq!(read(&call.headers()), Ok(call.clone()));
        for missing in [PROJECT, GENERATION, ROLE, SUBJECT, TIMEOUT] {
            let headers: Vec<_> = call.headers().into_iter().filter(|(name, _)| name != missing).collect();
            assert!(missing == TIMEOUT || read(&headers).unwrap_err().message.contains(missing), "{missing}");
            assert_eq!(read(&headers).unwrap_err().code, ErrorCode::InvalidArgument, "{missing}");
            let headers: Vec<_> = call
                .headers()
                .into_iter()
                .map(|(name, value)| (name.clone(), if name == missing { String::new() } else { value }))
                .collect();
            assert_eq!(read(&headers).unwrap_err().code, ErrorCode::InvalidArgument, "{missing} is empty");
        }
        call.account = None;
        assert_eq!(read(&call.headers()), Ok(call.clone()));
        assert!(call.headers().iter().all(|(name, _)| is_own_header(&name.to_lowercase())) && !is_own_header("Nats-Msg-Id"));
    }

    #[test]
    fn time_outs_are_bounded() {
        assert_eq!(timeout(None), Ok(DEFAULT_TIMEOUT));
        assert_eq!(timeout(Some("1")), Ok(Duration::from_millis(1)));
        assert_eq!(timeout(Some("120000")), Ok(MAX_TIMEOUT));
        for bad in ["", "0", "-1", "1.5", "120001", "99999999999999999999", "1s"] {
            assert_eq!(timeout(Some(bad)).unwrap_err().code, ErrorCode::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn a_role_asks_what_its_table_allows_and_nothing_else() {
        let ask = |role, rest| host_subject(ID.parse().unwrap(), role, rest).map_err(|error| error.code);
        assert_eq!(ask(Role::Viewer, "agent.info"), Ok(format!("project.{ID}.agent.info")));
        assert_eq!(ask(Role::Viewer, "exec.start"), Err(ErrorCode::Forbidden));
        assert_eq!(ask(Role::Collaborator, "exec.start"), Ok(format!("project.{ID}.exec.start")));
        assert_eq!(ask(Role::Owner, "log.notes.changes"), Err(ErrorCode::Forbidden));
        assert_eq!(ask(Role::Owner, "stream.x.in"), Err(ErrorCode::Unsupported));
    }

    #[test]
    fn byte_streams_are_refused() {
        for (rest, good) in [("stream.x.out", false), ("stream", false), ("streams.x", true), ("exec.start", true)] {
            assert_eq!(check_rest(rest).is_ok(), good, "{rest}");
        }
    }
}
