//! What differs on purpose.

use std::fmt::Write as _;

use crate::transcript::Transcript;

/// One difference, shown by at least one of the fixed scripts.
pub(crate) struct Difference {
    pub(crate) name: &'static str,
    pub(crate) there: &'static str,
    pub(crate) here: &'static str,
    pub(crate) why: &'static str,
}

pub(crate) const SILENT: &str = "malformed arguments or JSON";
pub(crate) const WILDCARD: &str = "publishing to a subject with wildcards";
pub(crate) const EMPTY: &str = "publishing to a subject with empty tokens (`a..b`, `.a`, `a.`)";
pub(crate) const REPLY: &str = "a reply subject with wildcards or empty tokens";
pub(crate) const ELSEWHERE: &str = "a reply subject that the asker may neither subscribe nor publish to";
pub(crate) const WIDER: &str = "subscribing to more than the permissions cover (`one.>` where `one.*` is allowed)";
pub(crate) const INVALID: &str = "subscribing to what is no subject (`a..b`, `a.>.b`) where permissions are set";
pub(crate) const TEXT: &str = "subjects and queue names with control characters or bytes that aren't UTF-8";
pub(crate) const TOKENS: &str = "subjects of more than 64 tokens";
pub(crate) const HEADERS: &str = "malformed header blocks, and HPUB with none";
pub(crate) const LATER: &str = "a later CONNECT with other credentials";
pub(crate) const LINE: &str = "a control line of 4,096 bytes and a few more";
pub(crate) const OTHERS: &str = "INFO and HMSG from a client";
pub(crate) const BEHIND: &str = "bytes right behind the name PING, or behind CONNECT without a blank";
pub(crate) const RETURN: &str = "more carriage returns at the end of a PUB's line";
pub(crate) const FEED: &str = "a line feed right behind `PUB `";
pub(crate) const COUNTED: &str = "the message that nobody responds, and the number of UNSUB";
pub(crate) const CASE: &str = "members of CONNECT in another case (`VERBOSE`)";

pub(crate) const LIST: &[Difference] = &[
    Difference {
        name: SILENT,
        there: "closes without a word",
        here: "says `-ERR 'Unknown Protocol Operation'` or `-ERR 'message headers not supported'` before it closes",
        why: "whoever writes a client sees what is wrong",
    },
    Difference {
        name: WILDCARD,
        there: "delivers it (with `pedantic` after an `-ERR`)",
        here: "`-ERR 'Invalid Publish Subject'`, delivered to nobody",
        why: "a subject of a message is never a pattern: permissions and bridges compare them",
    },
    Difference {
        name: EMPTY,
        there: "delivers to nobody; says so with `pedantic` only",
        here: "says `-ERR 'Invalid Publish Subject'` always",
        why: "the mistake is seen",
    },
    Difference { name: REPLY, there: "passes it on", here: "`-ERR 'Invalid Reply Subject'`", why: "nobody could answer there" },
    Difference {
        name: ELSEWHERE,
        there: "passes it on",
        here: "`-ERR 'Permissions Violation for Publish with Reply of …'`",
        why: "whoever answers with wider rights would speak where the asker may not",
    },
    Difference {
        name: WIDER,
        there: "takes some such subscriptions and filters",
        here: "`-ERR 'Permissions Violation for Subscription to …'`",
        why: "a subscription that is taken gets all that it names",
    },
    Difference {
        name: INVALID,
        there: "`-ERR 'Permissions Violation for Subscription to …'`",
        here: "`-ERR 'Invalid Subject'`, as where there are none",
        why: "it says what is wrong",
    },
    Difference { name: TEXT, there: "passes them on", here: "`-ERR`", why: "they are shown to people, and are text for programs inside" },
    Difference { name: TOKENS, there: "takes them", here: "`-ERR`", why: "memory and time of a look-up are bounded" },
    Difference {
        name: HEADERS,
        there: "passes them on",
        here: "`-ERR 'Invalid Message Headers'`",
        why: "clients that read such a block give up their connection",
    },
    Difference {
        name: LATER,
        there: "checks them, and closes if they are wrong",
        here: "takes its options; who it is was said by the first",
        why: "rights are added by `_ATOLL.grant.add`",
    },
    Difference {
        name: LINE,
        there: "takes it: it counts the arguments alone",
        here: "`-ERR 'maximum control line exceeded'`: it counts the line",
        why: "one bound for all lines",
    },
    Difference {
        name: OTHERS,
        there: "ignores them",
        here: "`-ERR 'Unknown Protocol Operation'`, closed",
        why: "they aren't a client's to send",
    },
    Difference {
        name: BEHIND,
        there: "ignores them; takes the JSON",
        here: "`-ERR 'Unknown Protocol Operation'`, closed",
        why: "it isn't the operation's name",
    },
    Difference { name: RETURN, there: "closes", here: "takes them for blanks", why: "nats-server itself does in SUB and UNSUB" },
    Difference {
        name: FEED,
        there: "takes it for a part of the subject",
        here: "`-ERR 'Unknown Protocol Operation'`, closed",
        why: "it ends the line",
    },
    Difference {
        name: COUNTED,
        there: "doesn't count it",
        here: "counts it as any other",
        why: "a client that wants one answer has got it, and may not think of UNSUB any more",
    },
    Difference { name: CASE, there: "takes them", here: "ignores them as unknown", why: "JSON's names have a case; no client does it" },
];

/// Whether all that differs is that this bus says why it closes where nats-server doesn't: [`SILENT`], wherever it occurs.
pub(crate) fn only_last_words(theirs: &Transcript, ours: &Transcript) -> bool {
    theirs.shared == ours.shared
        && theirs.connections.iter().zip(&ours.connections).all(|(theirs, ours)| {
            theirs == ours || ours.split_last().is_some_and(|(last, before)| before == theirs && CLOSING.contains(&&**last))
        })
}

/// Whether one of the stricter rules was met, so that what follows may differ.
pub(crate) fn refuses(theirs: &Transcript, ours: &Transcript) -> bool {
    // INVALID, where it isn't seen here because the subscription's id is taken
    let no_subject = |event: &str| {
        let subject = event.strip_prefix("-ERR 'Permissions Violation for Subscription to \"").and_then(|rest| rest.split('"').next());
        subject.is_some_and(|subject| subject.split('.').any(str::is_empty))
    };
    // with `pedantic` it is said there, too, and then goes on
    ours.connections
        .iter()
        .chain(&theirs.connections)
        .flatten()
        .any(|event| STRICTER.contains(&&**event) || event.starts_with(ELSEWHERE_SAID))
        || theirs.connections.iter().flatten().any(|event| no_subject(event))
}

const STRICTER: &[&str] =
    &["-ERR 'Invalid Publish Subject'", "-ERR 'Invalid Reply Subject'", "-ERR 'Invalid Subject'", "-ERR 'Invalid Message Headers'"];
const ELSEWHERE_SAID: &str = "-ERR 'Permissions Violation for Publish with Reply of";

const CLOSING: &[&str] = &["-ERR 'Unknown Protocol Operation'", "-ERR 'message headers not supported'"];

/// The table of the reference page.
pub(crate) fn table() -> String {
    let mut text = String::from("| what | nats-server | this bus | why |\n|---|---|---|---|\n");
    for Difference { name, there, here, why } in LIST {
        let _ = writeln!(text, "| {name} | {there} | {here} | {why} |");
    }
    text
}
