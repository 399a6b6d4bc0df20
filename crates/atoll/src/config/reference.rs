//! docs/reference/config.md is made from the table of keys; this test compares, and writes it when `UPDATE` is set.

use std::fmt::Write;

use super::keys::{KEYS, Kind, SECTIONS};

const HEAD: &str = "\
# Configuration

One TOML file for all roles; a role reads its own sections. `--config FILE` names it (or ATOLL_CONFIG); without that it is
`/etc/atoll/atoll.toml` for root and `$XDG_CONFIG_HOME/atoll/atoll.toml` for others, if it is there. No key is required.

- The environment goes over the file: each key has a variable, `ATOLL_` and the key in upper case with `_` for `.`. Flags go over both;
  `--set KEY=VALUE` sets any key.
- A key that isn't listed here is refused, with its line; so is an `ATOLL_LOG_…`, `ATOLL_MASTER_…` or `ATOLL_HOST_…` variable that isn't one of these.
- All values are checked before anything is opened or bound.
- Sizes are bytes or binary units as strings: `\"512M\"` is 512 · 2^20 bytes (K, M, G, T, P). Durations are strings with units: `\"250ms\"`,
  `\"30s\"`, `\"10m\"`, `\"1h30m\"`, `\"2d\"`.
- An empty string is the same as leaving a key out.
- The file holds no secrets: keys and tokens are kept in the data directories, readable by their owner only.

This page is made from the program's own table of keys (`crates/atoll/src/config/keys.rs`); a test compares the two.
";

const EXAMPLE: &str = "\
## Example

A host of a cluster, as root, with volumes on a btrfs file system:

```toml
[host]
name = \"a\"
master_url = \"https://atoll.example.org\"
listen = \"0.0.0.0:7430\"
public_url = \"https://a.example.org:7430\"
tls_certificate = \"/etc/atoll/cert.pem\"
tls_key = \"/etc/atoll/key.pem\"
region = \"eu-west\"
labels = { disk = \"ssd\" }
disk_reserve = \"20G\"

[host.storage]
kind = \"btrfs\"
path = \"/srv/atoll/volumes\"
```
";

fn render() -> String {
    let mut text = HEAD.to_owned();
    for (section, about) in SECTIONS {
        let _ = write!(text, "\n## [{section}]\n\n{about}\n\n| key | value | default | |\n|---|---|---|---|\n");
        for key in KEYS.iter().filter(|key| key.name.rsplit_once('.').is_some_and(|(its, _)| its == *section)) {
            let name = &key.name[section.len() + 1..];
            let default = match (key.default, key.default_note) {
                ("", "") => "none".to_owned(),
                ("", note) => note.to_owned(),
                (value, _) if matches!(key.kind, Kind::Count { .. }) => format!("`{value}`"),
                (value, _) => format!("`\"{value}\"`"),
            };
            let _ = writeln!(text, "| `{name}` | {} | {default} | {} `{}` |", key.kind.expected(), key.about, key.variable());
        }
    }
    text + "\n" + EXAMPLE
}

#[test]
fn the_reference_is_as_the_table_of_keys() {
    crate::tests::same_as_file("docs/reference/config.md", &render());
}

#[test]
fn the_example_is_a_config() {
    let (_, toml) = EXAMPLE.split_once("```toml\n").unwrap();
    let (toml, _) = toml.split_once("```").unwrap();
    let machine = super::Machine { data_root: "/data".into(), host_name: "box".into() };
    super::build(&super::Sources { file: Some(("example".into(), toml.into())), ..Default::default() }, &machine).unwrap();
}
