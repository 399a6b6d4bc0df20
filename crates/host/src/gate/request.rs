//! What a URL asks for. Paths and queries are taken as bytes: names needn't be UTF-8, and nothing is decoded twice.

use atoll_contract::{Error, ProjectId};
use http::{StatusCode, Uri};

use super::reply::Refusal;
use crate::files::{RelPath, percent_decode};

/// Parameters of one request at most.
const MAX_PARAMETERS: usize = 16;

/// The project that a URL is about, and what follows `files` or `uploads` in it, still encoded.
///
/// # Errors
/// `not_found` for an id that isn't one.
pub(super) fn project(uri: &Uri) -> Result<(ProjectId, &str), Refusal> {
    let none = || Refusal::from(Error::not_found("project"));
    let rest = uri.path().strip_prefix("/v1/projects/").ok_or_else(none)?;
    let (id, rest) = rest.split_once('/').ok_or_else(none)?;
    // the router has seen to it that the next part is the area
    let below = rest.split_once('/').map_or("", |(_, below)| below);
    Ok((id.parse().map_err(|_| none())?, below))
}

pub(super) fn path(encoded: &str) -> Result<RelPath, Refusal> {
    RelPath::from_url(encoded).map_err(|fault| Refusal::about(fault, &encoded))
}

/// Parameters of a query, decoded as HTML forms encode them (`+` is a space).
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Parses a query in which only these names may be, each once: a misspelt `recursive` must not mean something else.
    pub(super) fn parse(uri: &Uri, known: &[&str]) -> Result<Self, Refusal> {
        let mut parameters: Vec<(String, Vec<u8>)> = Vec::new();
        for part in uri.query().unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let spaced: Vec<u8> = value.bytes().map(|byte| if byte == b'+' { b' ' } else { byte }).collect();
            let value = percent_decode(&spaced).map_err(|fault| Refusal::about(fault, &part))?;
            if !known.contains(&name) {
                return Err(Refusal::invalid(format!("There is no parameter {name:?} here; known are: {}.", known.join(", "))));
            }
            if parameters.len() >= MAX_PARAMETERS || parameters.iter().any(|(other, _)| other == name) {
                return Err(Refusal::invalid(format!("The parameter {name} is there twice.")));
            }
            parameters.push((name.into(), value));
        }
        Ok(Self(parameters))
    }

    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_slice())
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let text = |value| std::str::from_utf8(value).map_err(|_| Refusal::invalid(format!("The parameter {name} isn't text.")));
        self.bytes(name).map(text).transpose()
    }

    /// Whether a flag is set: `name`, `name=true` or `name=1`.
    pub(super) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        match self.text(name)? {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(_) => Err(Refusal::invalid(format!("The parameter {name} is true or false."))),
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let number = |text: &str| text.parse().map_err(|_| Refusal::invalid(format!("The parameter {name} is a number.")));
        self.text(name)?.map(number).transpose()
    }

    /// Permission bits in octal.
    pub(super) fn mode(&self) -> Result<Option<u32>, Refusal> {
        self.text("mode")?.map(mode).transpose()
    }
}

/// Permission bits from octal text such as `644` or `0755`.
pub(super) fn mode(text: &str) -> Result<u32, Refusal> {
    let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o777 && text.bytes().all(|byte| byte.is_ascii_digit()));
    bits.ok_or_else(|| Refusal::invalid("A mode is up to three octal digits, such as 644."))
}

/// 415: the body isn't of the kind that is wanted.
pub(super) fn wrong_type(wanted: &str) -> Refusal {
    Refusal::invalid(format!("The body must be of the type {wanted}.")).status(StatusCode::UNSUPPORTED_MEDIA_TYPE)
}
