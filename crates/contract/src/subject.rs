//! The bus's subjects and who may use them.
//!
//! On a host's bus everything about a project begins with `project.<id>.`. On the master's bus everything about a host begins
//! with `host.<id>.`, and what an account may watch with `account.<id>.`. Replies go to inboxes below a prefix that only their owner knows.

use serde::{Deserialize, Serialize};

use crate::{AccountId, HostId, OperationId, ProjectId, Role};

/// What a connection may publish and subscribe to, as subjects with `*` and `>`. A subscription is allowed if a pattern
/// here covers all that it could match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Permissions {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
    /// Whether it may publish to the reply subjects of messages that were delivered to it, as NATS's `allow_responses`: for whoever answers
    /// requests and needs no right to any inbox otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub responses: bool,
    /// What it publishes under another name than it says; looked at before `publish`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mappings: Vec<Mapping>,
}

impl Permissions {
    /// Whether `publish` covers a subject without wildcards, for who decides in another's name. (A bus has its own, faster way.)
    pub fn may_publish(&self, subject: &str) -> bool {
        self.publish.iter().any(|pattern| covers(pattern, subject))
    }
}

/// Whether a pattern covers a subject without wildcards.
fn covers(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
    }
}

/// A publication to a subject that `pattern` covers enters the bus as `<prefix>.<subject>` (NATS's import of a service with a mapped subject). The
/// prefix names who publishes, so that the receiver knows it from the subject, which the publisher can't forge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    pub pattern: String,
    pub prefix: String,
}

/// Where a client presents one more connect token on a socket that is connected already, or renews one. The payload is the token;
/// the reply is [`GrantReply`].
pub const GRANT_ADD: &str = "_ATOLL.grant.add";

/// Where any client may ask the bus itself for an answer: a round trip, after which the bus knows all that this client sent before. Without a
/// payload the answer is empty; if the payload is a subject, it is [`Reply`](crate::agent::Reply) of `()`: whether the connection may subscribe to it.
pub const BUS_PING: &str = "_ATOLL.ping";

/// Where the bus says what it does, as [`BusReport`](crate::bus::BusReport), to whoever may publish to this subject.
pub const BUS_STATS: &str = "_ATOLL.stats";

/// Where the masters hear all calls; see [`crate::call`].
pub const CALLS: &str = "call.*.project.>";
/// The queue group of the masters there: one of them takes each call.
pub const CALLS_QUEUE: &str = "calls";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrantReply {
    Ok { project: ProjectId, expires_at: crate::Timestamp },
    Error(crate::Error),
}

/// The prefix of a token holder's reply inbox: `_INBOX.<jti>`. Stock clients take it as "custom inbox prefix".
pub fn inbox_prefix(jti: &str) -> String {
    format!("_INBOX.{jti}")
}

/// Whether a caller's stream id is one: 16 to 64 of `a-z A-Z 0-9`.
pub fn is_stream_id(text: &str) -> bool {
    (16..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

pub fn project(project: ProjectId, rest: &str) -> String {
    format!("project.{project}.{rest}")
}

/// The subject of a stream's data, `part` being `in`, `out`, `err`, `event` or `exit`.
pub fn stream(project: ProjectId, stream: &str, part: &str) -> String {
    format!("project.{project}.stream.{stream}.{part}")
}

/// Where the master sends a host its commands.
pub fn host_command(host: HostId) -> String {
    format!("host.{host}.command")
}

/// Where the master hands a host the calls to its projects. A message without headers and payload is answered at once with an empty one: so the
/// master asks whether the host is still there.
pub fn host_call(host: HostId) -> String {
    format!("host.{host}.call")
}

/// Where a host says what its own bus does, as [`BusReport`](crate::bus::BusReport), to admins who ask by way of the master.
pub fn host_stats(host: HostId) -> String {
    format!("host.{host}.stats")
}

/// Where a host sends its reports.
pub fn host_report(host: HostId) -> String {
    format!("host.{host}.report")
}

/// Where an operation's changes are published on the master's bus (an `OperationView` as JSON).
pub fn operation(account: AccountId, operation: OperationId) -> String {
    format!("account.{account}.operation.{operation}")
}

/// Where a project's changes are published on the master's bus, for its owner (a `ProjectView` as JSON).
pub fn account_project(account: AccountId, project: ProjectId) -> String {
    format!("account.{account}.project.{project}")
}

/// Requests to logs and key-value stores that change nothing. Each verb by name: whoever could publish to `log.>` could forge a change.
pub const READ_VERBS: [&str; 10] = [
    "log.list",
    "log.*.read",
    "log.*.tail",
    "log.*.info",
    "kv.list",
    "kv.*.read",
    "kv.*.info",
    "kv.*.keys",
    "kv.*.get.>",
    "kv.*.history.>",
];
/// Requests to them that change something. A kv's `delete` with a key deletes that, without one the whole store.
pub const WRITE_VERBS: [&str; 9] = [
    "log.*.append",
    "log.*.configure",
    "log.*.delete",
    "log.*.reset",
    "kv.*.put.>",
    "kv.*.delete.>",
    "kv.*.configure",
    "kv.*.delete",
    "kv.*.reset",
];
/// Where changes of them are published.
pub const CHANGES: [&str; 2] = ["log.*.changes", "kv.*.changes.>"];

fn of_project(id: ProjectId, lists: &[&[&str]]) -> Vec<String> {
    lists.concat().into_iter().map(|rest| project(id, rest)).collect()
}

/// What a user's connect token allows on a host's bus.
pub fn project_permissions(id: ProjectId, role: Role, jti: &str) -> Permissions {
    let (publish, mut subscribe) = if role.may_write() {
        let publish = of_project(id, &[&["exec.>", "terminal.>", "stream.>", "agent.info"], &READ_VERBS, &WRITE_VERBS]);
        (publish, of_project(id, &[&["stream.>", "state"], &CHANGES]))
    } else {
        (of_project(id, &[&["agent.info"], &READ_VERBS]), of_project(id, &[&["state"], &CHANGES]))
    };
    subscribe.push(format!("{}.>", inbox_prefix(jti)));
    Permissions { publish, subscribe, ..Permissions::default() }
}

/// What the agent of a project may do on its host's bus. Its reply inbox has the project's id in the place of a token's.
pub fn agent_permissions(id: ProjectId) -> Permissions {
    let mut subscribe = of_project(id, &[&["exec.>", "terminal.>", "stream.>", "agent.info"], &CHANGES]);
    subscribe.push(format!("{}.>", inbox_prefix(&id.to_string())));
    Permissions {
        publish: of_project(id, &[&["stream.>", "agent.hello"], &READ_VERBS, &WRITE_VERBS]),
        subscribe,
        responses: true,
        ..Permissions::default()
    }
}

/// What a host may do on the master's bus.
pub fn host_permissions(id: HostId) -> Permissions {
    Permissions {
        publish: vec![host_report(id)],
        subscribe: vec![host_command(id), host_call(id), host_stats(id), format!("_INBOX.{id}.>")],
        responses: true,
        ..Permissions::default()
    }
}

/// What a logged-in account may do on the master's bus.
pub fn account_permissions(id: AccountId, jti: &str) -> Permissions {
    Permissions {
        subscribe: vec![format!("account.{id}.>"), format!("{}.>", inbox_prefix(jti))],
        mappings: vec![Mapping { pattern: "project.*.>".into(), prefix: format!("call.{id}") }],
        ..Permissions::default()
    }
}

/// What an admin may do there: also ask what this bus does, and those of the hosts.
pub fn admin_permissions(id: AccountId, jti: &str) -> Permissions {
    let account = account_permissions(id, jti);
    Permissions { publish: [account.publish, vec![BUS_STATS.into(), "host.*.stats".into()]].concat(), ..account }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn check(name: &str, table: &[(String, Permissions)]) {
        let mut text = String::new();
        for (who, permissions) in table {
            writeln!(text, "{who}").unwrap();
            permissions.publish.iter().for_each(|subject| writeln!(text, "  publish   {subject}").unwrap());
            permissions.subscribe.iter().for_each(|subject| writeln!(text, "  subscribe {subject}").unwrap());
            permissions
                .mappings
                .iter()
                .for_each(|Mapping { pattern, prefix }| writeln!(text, "  map       {pattern} below {prefix}").unwrap());
            if permissions.responses {
                writeln!(text, "  answers").unwrap();
            }
        }
        insta::with_settings!({ snapshot_path => "../tests/golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, text);
        });
    }

    #[test]
    fn roles_are_as_in_the_golden_table() {
        let id = "0198c0de-0000-7000-8000-000000000003".parse().unwrap();
        check("roles", &Role::ALL.map(|role| (format!("{role:?}"), project_permissions(id, role, "JTI"))));
    }

    #[test]
    fn others_are_as_in_the_golden_table() {
        let text = "0198c0de-0000-7000-8000-000000000003";
        let table = [
            ("Agent".into(), agent_permissions(text.parse().unwrap())),
            ("Host".into(), host_permissions(text.parse().unwrap())),
            ("Account".into(), account_permissions(text.parse().unwrap(), "JTI")),
            ("Admin".into(), admin_permissions(text.parse().unwrap(), "JTI")),
        ];
        check("members", &table);
    }

    #[test]
    fn patterns_cover_subjects() {
        for (pattern, subject, covered) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.b", "a", false),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.>", "b.c", false),
            (">", "a", true),
            ("a*", "ab", false),
        ] {
            assert_eq!(covers(pattern, subject), covered, "{pattern} {subject}");
        }
    }
}
