//! Reading what podman says: its JSON in the forms of its versions, and its error messages as codes.

use std::collections::BTreeMap;

use atoll_contract::{Error, ErrorCode, Generation, HostId, ProjectId};
use serde::Deserialize;
use serde_json::Value;

use super::{Container, ContainerState};
use crate::exec::{End, ExecError, ExecOutcome};

pub(super) const LABEL_HOST: &str = "atoll.host";
pub(super) const LABEL_PROJECT: &str = "atoll.project";
pub(super) const LABEL_GENERATION: &str = "atoll.generation";

/// One entry of `podman ps --format json`. podman 1 to 5 differ in spelling, and in whether a state is a word or a number.
#[derive(Debug, Deserialize)]
struct Row {
    #[serde(alias = "ID", alias = "Id")]
    id: String,
    #[serde(alias = "Labels", default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(alias = "State", default)]
    state: Value,
    #[serde(alias = "Status", default)]
    status: Value,
    #[serde(alias = "ExitCode", default)]
    exit_code: Option<i32>,
}

/// The containers of `host` in the output of `podman ps -a --format json`. What carries no readable labels of ours is left out.
pub(super) fn containers(json: &str, host: HostId) -> Result<Vec<Container>, serde_json::Error> {
    let json = json.trim();
    if json.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Option<Vec<Row>> = serde_json::from_str(json)?; // an empty list may be `null`
    Ok(rows.into_iter().flatten().filter_map(|row| container(row, host)).collect())
}

fn container(row: Row, host: HostId) -> Option<Container> {
    let labels = row.labels?;
    if labels.get(LABEL_HOST)? != &host.to_string() {
        return None;
    }
    let project: ProjectId = labels.get(LABEL_PROJECT)?.parse().ok()?;
    let generation = Generation(labels.get(LABEL_GENERATION)?.parse().ok()?);
    let word = match (&row.state, &row.status) {
        (Value::String(state), _) => state.to_ascii_lowercase(),
        // libpod's numbers: 1 configured, 2 created, 3 running, 4 stopped, 5 paused, 6 exited, 7 removing
        (Value::Number(state), _) => match state.as_i64() {
            Some(3 | 5) => "running",
            Some(4 | 6) => "exited",
            _ => "created",
        }
        .into(),
        (_, Value::String(status)) if status.starts_with("Up") => "running".into(),
        _ => "unknown".into(),
    };
    let state = match word.as_str() {
        // a paused container isn't gone: whoever paused it will want it back
        "running" | "paused" | "stopping" => ContainerState::Running,
        "exited" | "stopped" => ContainerState::Exited(row.exit_code),
        _ => ContainerState::Exited(None),
    };
    Some(Container { id: row.id, project, generation, state })
}

/// What a failed podman call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// A container of this name is there already.
    NameTaken,
    ImageMissing,
    DiskFull,
    /// Something has a mount or a lock for a moment; the same call works soon after.
    Busy,
    Other,
}

pub(super) fn trouble(stderr: &str) -> Trouble {
    let text = stderr.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["is already in use", "name already in use", "that name is already in use"]) {
        Trouble::NameTaken
    } else if says(&["no space left on device", "disk quota exceeded"]) {
        Trouble::DiskFull
    } else if says(&[
        "image not known",
        "no such image",
        "manifest unknown",
        "repository name not known",
        "initializing source",
        "unable to find image",
        "short-name",
        "pull access denied",
        "requested access to the resource is denied",
        "unauthorized",
        "no such host",
        "connection refused",
        "invalid reference format",
        "no image found",
        "choosing an image from manifest list",
        "image operating system mismatch",
        "i/o timeout",
        "tls handshake",
        "toomanyrequests",
        "name unknown",
    ]) {
        Trouble::ImageMissing
    } else if says(&["device or resource busy", "database is locked", "resource temporarily unavailable"]) {
        Trouble::Busy
    } else {
        Trouble::Other
    }
}

/// The last line of what podman said that isn't a log line of its retries, without its `Error: `; at most 600 characters.
pub(super) fn reason(stderr: &str) -> String {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().rfind(|line| line.starts_with("Error")).or_else(|| lines().rfind(|line| !line.starts_with("time="))).unwrap_or("");
    line.trim_start_matches("Error: ").chars().take(600).collect()
}

/// A call that could not be made, or did not end by itself, as an error; the outcome otherwise.
pub(super) fn ended(verb: &str, outcome: Result<ExecOutcome, ExecError>) -> Result<ExecOutcome, Error> {
    let outcome = outcome.map_err(|error| {
        Error::new(ErrorCode::RuntimeFailed, format!("podman can't be run: {error}."))
            .mend("Install podman (sudo apt-get install -y podman), or set its path in the configuration.")
    })?;
    match outcome.end {
        End::Cancelled => Err(Error::new(ErrorCode::Cancelled, format!("podman {verb} was cancelled."))),
        End::TimedOut => Err(Error::new(ErrorCode::RuntimeFailed, format!("podman {verb} did not answer in time and was ended."))
            .mend("See whether `podman ps` answers on this host; another podman may hold its locks.")),
        _ => Ok(outcome),
    }
}

/// A call that ended with a failure, as an error.
pub(super) fn failed(verb: &str, image: Option<&str>, outcome: &ExecOutcome) -> Error {
    let stderr = outcome.stderr.text();
    let reason = reason(&stderr);
    match (trouble(&stderr), image) {
        (Trouble::DiskFull, _) => {
            Error::new(ErrorCode::DiskFull, format!("The disk with podman's images and containers is full: {reason}"))
                .mend("Free space there, for instance with `podman image prune`.")
        }
        (Trouble::ImageMissing, Some(image)) => image_unavailable(image, &reason),
        _ => Error::new(ErrorCode::RuntimeFailed, format!("podman {verb} failed: {reason}")).mend("Run `atoll doctor` on this host."),
    }
}

pub(super) fn image_unavailable(image: &str, reason: &str) -> Error {
    let lower = reason.to_ascii_lowercase();
    let mend = if lower.contains("short-name") {
        "Give the image with its registry, such as docker.io/library/debian:12."
    } else if lower.contains("unauthorized") || lower.contains("denied") {
        "Check the image's name, or log in to its registry on this host with `podman login`."
    } else if lower.contains("no such host") || lower.contains("refused") || lower.contains("timeout") {
        "Check that this host reaches the registry, or load the image here with `podman load`."
    } else if lower.contains("invalid reference") {
        "Use a form such as docker.io/library/debian:12."
    } else {
        "Check the image's name and tag, or load it on this host with `podman load`."
    };
    Error::new(ErrorCode::ImageUnavailable, format!("The image {image} can't be obtained: {reason}")).mend(mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "0198c0de-0000-7000-8000-00000000aaaa";
    const PROJECT: &str = "0198c0de-0000-7000-8000-000000000001";

    fn parse(json: &str) -> Vec<Container> {
        containers(json, HOST.parse().unwrap()).unwrap()
    }

    fn labels() -> String {
        format!(r#"{{"atoll.host":"{HOST}","atoll.project":"{PROJECT}","atoll.generation":"7"}}"#)
    }

    #[test]
    fn the_forms_of_podmans_versions() {
        let (running, exited) = (ContainerState::Running, ContainerState::Exited);
        for (row, state) in [
            (format!(r#"{{"Id":"a","Names":["n"],"Labels":{},"State":"running","ExitCode":0,"Pid":1}}"#, labels()), running),
            (format!(r#"{{"Id":"a","Labels":{},"State":"exited","ExitCode":137}}"#, labels()), exited(Some(137))),
            (format!(r#"{{"Id":"a","Labels":{},"State":"created","ExitCode":0}}"#, labels()), exited(None)),
            (format!(r#"{{"Id":"a","Labels":{},"State":"Paused"}}"#, labels()), running),
            (format!(r#"{{"ID":"a","Names":"n","Labels":{},"Status":"Up 3 minutes ago"}}"#, labels()), running),
            (format!(r#"{{"id":"a","labels":{},"state":3}}"#, labels()), running),
            (format!(r#"{{"Id":"a","Labels":{},"State":6,"ExitCode":1}}"#, labels()), exited(Some(1))),
            (format!(r#"{{"Id":"a","Labels":{},"State":"frozen-in-time"}}"#, labels()), exited(None)),
        ] {
            let all = parse(&format!("[{row}]"));
            assert_eq!(all.len(), 1, "{row}");
            assert_eq!((all[0].generation, all[0].state), (Generation(7), state), "{row}");
        }
    }

    #[test]
    fn nothing_and_strangers() {
        for json in ["", "null", "[]", "\n", r#"[{"Id":"a","Labels":null,"State":"running"}]"#] {
            assert!(parse(json).is_empty(), "{json}");
        }
        let other = labels().replace("aaaa", "bbbb");
        let broken = labels().replace('7', "x");
        let json = format!(r#"[{{"Id":"a","Labels":{other},"State":"running"}},{{"Id":"b","Labels":{broken},"State":"running"}}]"#);
        assert!(parse(&json).is_empty());
        assert!(containers("{", HOST.parse().unwrap()).is_err());
    }

    #[test]
    fn messages_as_they_were_seen() {
        for (message, expected) in [
            (
                "Error: creating container storage: the container name \"x\" is already in use by b12. You have to remove that container to be able to reuse that name: that name is already in use",
                Trouble::NameTaken,
            ),
            ("Error: localhost/nonesuch:1: image not known", Trouble::ImageMissing),
            (
                "Error: short-name \"nonesuch\" did not resolve to an alias and no unqualified-search registries are defined",
                Trouble::ImageMissing,
            ),
            (
                "Error: initializing source docker://nonesuch:1: pinging container registry registry-1.docker.io: Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
                Trouble::ImageMissing,
            ),
            (
                "Error: copying system image from manifest list: writing blob: storing blob to file: write /var/tmp/1: no space left on device",
                Trouble::DiskFull,
            ),
            (
                "Error: removing container 07 root filesystem: 1 error occurred: * unlinkat userdata/shm: device or resource busy",
                Trouble::Busy,
            ),
            (
                "Error: runc: runc create failed: error setting rlimit type 6: operation not permitted: OCI permission denied",
                Trouble::Other,
            ),
            ("", Trouble::Other),
        ] {
            assert_eq!(trouble(message), expected, "{message}");
        }
    }

    #[test]
    fn the_reason_is_the_line_that_says_it() {
        let stderr = "Trying to pull x...\ntime=\"…\" level=warning msg=\"Failed, retrying\"\nError: no such thing\n";
        assert_eq!(reason(stderr), "no such thing");
        assert_eq!(reason("one\ntwo\n"), "two");
        assert_eq!(reason(""), "");
    }
}
