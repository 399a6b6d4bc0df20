//! Projects: what one should be (its spec and the master's intent) and what a host observes of it. The two never share
//! a field.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{AccountId, Error, HostId, OperationId, ProjectId, Timestamp, error::Result};

/// Fences ownership of a project. Only the master increments it, at every assignment to a host; a host refuses a
/// command, token or ticket of any other generation. The first assignment has generation 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    pub const FIRST: Self = Self(1);

    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a container may use at most. All are enforced by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory, swap included.
    pub memory_bytes: u64,
    /// Thousandths of one processor: 1500 is one and a half.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub pids: u32,
    /// Bytes of `home` and `state` together. Enforced where the storage can; see the host's capabilities.
    pub disk_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory_bytes: 2 << 30, cpu_millis: 1000, pids: 4096, disk_bytes: 10 << 30 }
    }
}

impl Limits {
    /// The least with which a container starts, and the most that makes sense; a request outside is refused.
    pub const MIN: Self = Self { memory_bytes: 16 << 20, cpu_millis: 10, pids: 16, disk_bytes: 1 << 20 };
    pub const MAX: Self = Self { memory_bytes: 64 << 40, cpu_millis: 4_096_000, pids: 4_194_304, disk_bytes: 1 << 50 };

    pub fn check(&self) -> Result<()> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::invalid(format!("The limit {name} is {value}; it must be from {least} to {most}.")))
            }
        };
        within("memory_bytes", self.memory_bytes, Self::MIN.memory_bytes, Self::MAX.memory_bytes)?;
        within("cpu_millis", self.cpu_millis.into(), Self::MIN.cpu_millis.into(), Self::MAX.cpu_millis.into())?;
        within("pids", self.pids.into(), Self::MIN.pids.into(), Self::MAX.pids.into())?;
        within("disk_bytes", self.disk_bytes, Self::MIN.disk_bytes, Self::MAX.disk_bytes)
    }
}

/// What a host needs to know to run a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectSpec {
    /// The name its owner gave it; 1 to 63 characters, see [`check_name`].
    pub name: String,
    /// An OCI image reference, such as `docker.io/library/debian:12` or `localhost/atoll-base:latest`.
    pub image: String,
    #[serde(default)]
    pub limits: Limits,
    /// Environment of every process in the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

impl ProjectSpec {
    pub const MAX_IMAGE_LEN: usize = 512;
    pub const MAX_ENV: usize = 64;
    pub const MAX_ENV_BYTES: usize = 16 << 10;

    pub fn check(&self) -> Result<()> {
        check_name(&self.name)?;
        self.limits.check()?;
        // podman would read a leading dash as an option; the rest of the reference is podman's to judge
        let plain = |c: char| c.is_ascii_graphic();
        if self.image.is_empty() || self.image.len() > Self::MAX_IMAGE_LEN || self.image.starts_with('-') || !self.image.chars().all(plain)
        {
            return Err(Error::invalid("The image isn't an image reference.").mend("Use a form such as docker.io/library/debian:12."));
        }
        let bytes: usize = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.env.len() > Self::MAX_ENV || bytes > Self::MAX_ENV_BYTES {
            return Err(Error::invalid(format!(
                "The environment has more than {} variables or {} bytes.",
                Self::MAX_ENV,
                Self::MAX_ENV_BYTES
            )));
        }
        for (name, value) in &self.env {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(word) || value.contains('\0') {
                return Err(Error::invalid(format!("{name:?} isn't a variable that an environment can hold.")));
            }
        }
        Ok(())
    }
}

/// A project's or host's name: 1 to 63 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit, so that it is good in a
/// path, a subject, a shell and (lower-cased) a host name.
pub fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=63).contains(&name.len()) && name.chars().all(good) && name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(())
    } else {
        Err(Error::invalid(format!("{name:?} isn't a name."))
            .mend("Use 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit."))
    }
}

/// The master's intent for a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    Running,
    Stopped,
    Deleted,
}

/// What the host that has a project last said of it. `Unknown` is a value of its own: a silent host's projects are
/// unknown, never stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObservedState {
    Unknown,
    /// The host has neither volumes nor a container of it.
    Absent,
    Stopped,
    Starting,
    /// The container runs and its agent is connected.
    Running,
    Stopping,
    /// It should run and doesn't; the report says why.
    Failed,
}

/// One project in a host's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ObservedProject {
    #[schema(value_type = String)]
    pub project: ProjectId,
    pub generation: Generation,
    pub state: ObservedState,
    /// Why it is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Bytes that `home` and `state` use; absent where the storage can't tell cheaply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
}

/// A project as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectView {
    #[schema(value_type = String)]
    pub id: ProjectId,
    #[schema(value_type = String)]
    pub owner: AccountId,
    pub spec: ProjectSpec,
    pub intent: Intent,
    pub observed: ObservedState,
    /// Why it is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// The host it is assigned to; absent until it is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host: Option<HostId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// The operation that holds the project now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub operation: Option<OperationId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    #[schema(value_type = String)]
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ProjectSpec {
        ProjectSpec { name: "thesis".into(), image: "localhost/atoll-base:latest".into(), limits: Limits::default(), env: BTreeMap::new() }
    }

    #[test]
    fn a_plain_spec_passes() {
        spec().check().unwrap();
    }

    #[test]
    fn what_podman_could_misread_is_refused() {
        for image in ["", "-v/:/host", "a b", "a\nb", "ä", &"x".repeat(513)] {
            assert!(ProjectSpec { image: image.into(), ..spec() }.check().is_err(), "{image:?}");
        }
        for name in ["", "-x", ".x", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for (key, value) in [("", "x"), ("1A", "x"), ("A-B", "x"), ("A=B", "x"), ("A", "x\0y")] {
            let env = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            assert!(ProjectSpec { env, ..spec() }.check().is_err(), "{key:?}");
        }
    }

    #[test]
    fn limits_have_bounds() {
        assert!(Limits { pids: 0, ..Limits::default() }.check().is_err());
        assert!(Limits { disk_bytes: u64::MAX, ..Limits::default() }.check().is_err());
        Limits::MIN.check().unwrap();
        Limits::MAX.check().unwrap();
    }
}
