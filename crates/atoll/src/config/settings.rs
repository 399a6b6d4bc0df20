//! From file, environment and flags to one checked text for each key, with its origin for errors.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use atoll_contract::{Error, ErrorCode, error::Result};
use atoll_net::bus::HubUrl;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::keys::{KEYS, Key, Kind, SECTIONS};
use crate::values::{Pair, Size, Span};

/// All that a config is made of, read but not yet looked at; nothing below touches the system.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Path (for errors) and text.
    pub file: Option<(PathBuf, String)>,
    /// The whole environment; other programs' variables are passed over.
    pub environment: Vec<(String, String)>,
    /// From `--set` and from flags of their own.
    pub flags: Vec<(String, String)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Environment(String),
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Environment(name) => write!(f, "the variable {name}"),
            Self::Flag => f.write_str("the command line"),
        }
    }
}

#[derive(Debug, Clone)]
struct Setting {
    text: String,
    labels: BTreeMap<String, String>,
    origin: Origin,
}

/// The value of every key. Each has been checked against its kind.
#[derive(Debug, Clone)]
pub struct Settings(BTreeMap<&'static str, Setting>);

impl Settings {
    /// Flags over environment over file over defaults.
    ///
    /// # Errors
    /// `invalid_config`, naming the key and where it was written.
    pub fn resolve(sources: &Sources) -> Result<Self> {
        let mut settings = Self(BTreeMap::new());
        for key in KEYS {
            let setting = Setting { text: key.default.into(), labels: BTreeMap::new(), origin: Origin::Default };
            settings.0.insert(key.name, setting);
        }
        if let Some((path, text)) = &sources.file {
            settings.read_file(path, text)?;
        }
        settings.read_environment(&sources.environment)?;
        for (name, text) in &sources.flags {
            let key = Key::find(name).ok_or_else(|| unknown(name, &Origin::Flag))?;
            settings.put(key, text, Origin::Flag)?;
        }
        Ok(settings)
    }

    fn read_file(&mut self, path: &Path, text: &str) -> Result<()> {
        let table = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(text, span.start));
            let why = error.message().trim_end_matches('.').replace('\n', "; ");
            invalid(format!("{}, line {line}: this isn't TOML: {why}.", path.display()))
        })?;
        let mut file = File { path, text, settings: self };
        file.section("", table.get_ref())
    }

    fn read_environment(&mut self, environment: &[(String, String)]) -> Result<()> {
        for (name, text) in environment {
            let ours = ["ATOLL_LOG_", "ATOLL_MASTER_", "ATOLL_HOST_"].iter().any(|prefix| name.starts_with(prefix));
            if ours {
                let origin = Origin::Environment(name.clone());
                let key = KEYS.iter().find(|key| key.variable() == *name).ok_or_else(|| unknown(name, &origin))?;
                self.put(key, text, origin)?;
            }
        }
        Ok(())
    }

    /// Takes a value written as text: environment and flags, and strings and numbers of the file.
    fn put(&mut self, key: &Key, text: &str, origin: Origin) -> Result<()> {
        let mut labels = BTreeMap::new();
        if key.kind == Kind::Labels {
            for part in text.split(',').filter(|part| !part.is_empty()) {
                let pair: Pair = part.parse().map_err(|_| wrong(key, text, &origin))?;
                labels.insert(pair.key, pair.value);
            }
        } else if !text.is_empty() {
            check(key, text).map_err(|why| wrong(key, text, &origin).mend(why))?;
        }
        self.0.insert(key.name, Setting { text: text.into(), labels, origin });
        Ok(())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", |setting| &setting.text)
    }

    /// An error about a key whose value is good in itself, such as one that doesn't go with another.
    pub fn refuse(&self, name: &str, why: impl fmt::Display) -> Error {
        match self.0.get(name) {
            Some(setting) => invalid(format!("{name} ({}): {why}", setting.origin)),
            None => invalid(format!("{name}: {why}")),
        }
    }

    /// The text; none if it is empty.
    pub fn text(&self, name: &str) -> Option<String> {
        Some(self.get(name).to_owned()).filter(|text| !text.is_empty())
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    pub fn hubs(&self, name: &str) -> Result<Vec<HubUrl>> {
        hubs(self.get(name)).map_err(|error| self.refuse(name, error.message))
    }

    pub fn labels(&self, name: &str) -> BTreeMap<String, String> {
        self.0.get(name).map(|setting| setting.labels.clone()).unwrap_or_default()
    }

    pub fn maybe_address(&self, name: &str) -> Result<Option<SocketAddr>> {
        self.text(name).map(|text| text.parse().map_err(|_| self.refuse(name, "not an address."))).transpose()
    }

    pub fn address(&self, name: &str) -> Result<SocketAddr> {
        self.maybe_address(name)?.ok_or_else(|| self.refuse(name, "must not be empty."))
    }

    pub fn size(&self, name: &str) -> Result<u64> {
        self.get(name).parse::<Size>().map(|size| size.0).map_err(|why| self.refuse(name, why))
    }

    pub fn duration(&self, name: &str) -> Result<Duration> {
        self.get(name).parse::<Span>().map(|span| span.0).map_err(|why| self.refuse(name, why))
    }

    pub fn count(&self, name: &str) -> Result<u32> {
        self.get(name).parse().map_err(|_| self.refuse(name, "must be a whole number."))
    }
}

/// A file that is being read.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
    settings: &'a mut Settings,
}

impl File<'_> {
    fn section(&mut self, prefix: &str, table: &DeTable<'_>) -> Result<()> {
        for (name, value) in table {
            let full = if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let origin = self.origin(name.span().start);
            if let Some(key) = Key::find(&full) {
                self.value(key, value, origin)?;
            } else if SECTIONS.iter().any(|(section, _)| *section == full) {
                let table = value.get_ref().as_table();
                let table = table.ok_or_else(|| invalid(format!("{full} ({origin}) is a section; write it as [{full}].")))?;
                self.section(&full, table)?;
            } else {
                return Err(unknown(&full, &origin));
            }
        }
        Ok(())
    }

    fn value(&mut self, key: &Key, value: &Spanned<DeValue<'_>>, origin: Origin) -> Result<()> {
        let written = || self.text.get(value.span()).unwrap_or_default().to_owned();
        match (key.kind, value.get_ref()) {
            (Kind::Labels, DeValue::Table(table)) => {
                let mut labels = BTreeMap::new();
                for (name, value) in table {
                    let origin = self.origin(name.span().start);
                    let text = value.get_ref().as_str().ok_or_else(|| wrong(key, &written(), &origin))?;
                    labels.insert(name.get_ref().to_string(), text.to_owned());
                }
                self.settings.0.insert(key.name, Setting { text: String::new(), labels, origin });
                Ok(())
            }
            (Kind::Count { .. } | Kind::Size, DeValue::Integer(number)) if number.radix() == 10 => {
                let digits = number.as_str().replace('_', "");
                self.settings.put(key, &digits, origin)
            }
            (Kind::Hubs, DeValue::Array(urls)) => {
                let urls = urls.iter().map(|url| url.get_ref().as_str()).collect::<Option<Vec<_>>>();
                let urls = urls.ok_or_else(|| wrong(key, &written(), &origin))?;
                self.settings.put(key, &urls.join(","), origin)
            }
            (Kind::Labels | Kind::Count { .. }, _) => Err(wrong(key, &written(), &origin)),
            (_, DeValue::String(text)) => self.settings.put(key, text, origin),
            _ => Err(wrong(key, &written(), &origin)),
        }
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.into(), line: line_at(self.text, offset) }
    }
}

/// Whether a text is a value of the key's kind; if not, why.
fn check(key: &Key, text: &str) -> Result<(), String> {
    let expected = || format!("Write {}.", key.kind.expected());
    match key.kind {
        Kind::Text | Kind::Path | Kind::Labels => Ok(()),
        Kind::Name => atoll_contract::project::check_name(text).map_err(|error| error.mend),
        Kind::LogFilter => tracing_subscriber::EnvFilter::builder().parse(text).map(drop).map_err(|_| expected()),
        Kind::Choice(values) => values.contains(&text).then_some(()).ok_or_else(expected),
        Kind::Address => text.parse::<SocketAddr>().map(drop).map_err(|_| expected()),
        Kind::Url => crate::client::base_url(text).map(drop).map_err(|_| expected()),
        Kind::Hubs => hubs(text).map(drop).map_err(|error| error.message),
        Kind::Size => text.parse::<Size>().map(drop).map_err(|_| expected()),
        Kind::Duration => match text.parse::<Span>() {
            Ok(span) if !span.0.is_zero() => Ok(()),
            _ => Err(expected()),
        },
        Kind::Count { least, most } => match text.parse::<u64>() {
            Ok(count) if (least..=most).contains(&count) => Ok(()),
            _ => Err(expected()),
        },
    }
}

fn hubs(text: &str) -> Result<Vec<HubUrl>> {
    text.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::parse).collect()
}

fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::InvalidConfig, message).mend("See docs/reference/config.md.")
}

fn wrong(key: &Key, written: &str, origin: &Origin) -> Error {
    let written = written.trim_matches('"');
    invalid(format!("{} ({origin}) is {written:?}; it must be {}.", key.name, key.kind.expected()))
        .mend(format!("Write {}.", key.kind.expected()))
}

fn unknown(name: &str, origin: &Origin) -> Error {
    let section = name.rsplit_once('.').map_or("", |(section, _)| section);
    let siblings: Vec<&str> =
        KEYS.iter().map(|key| key.name).filter(|key| key.rsplit_once('.').is_some_and(|(its, _)| its == section)).collect();
    let mend = if siblings.is_empty() { "See docs/reference/config.md.".into() } else { format!("Known here: {}.", siblings.join(", ")) };
    invalid(format!("{name} ({origin}) isn't a key of the config.")).mend(mend)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Sources {
        Sources { file: Some(("a.toml".into(), text.into())), ..Sources::default() }
    }

    #[test]
    fn what_is_wrong_is_refused_by_name_and_line() {
        for (text, parts) in [
            ("[master]\nlisten = 7420", &["master.listen", "a.toml, line 2", "an address"][..]),
            ("[master]\nlisten = \"here\"", &["master.listen", "line 2", "\"here\""]),
            ("[master]\n\nlistn = \"127.0.0.1:1\"", &["master.listn", "line 3", "isn't a key"]),
            ("[mister]\nlisten = 1", &["mister", "line 1", "isn't a key"]),
            ("master = 1", &["master", "line 1", "section"]),
            ("[host]\ndisk_reserve = \"2Q\"", &["host.disk_reserve", "line 2", "a size"]),
            ("[host]\ndisk_reserve = true", &["host.disk_reserve", "a size"]),
            ("[host]\nmax_running = \"many\"", &["host.max_running", "a whole number"]),
            ("[host]\nmax_running = 0", &["host.max_running", "from 1"]),
            ("[host]\nname = \"a b\"", &["host.name", "letters"]),
            ("[master]\ncluster_urls = \"http://x\"", &["master.cluster_urls", "line 2", "a list of URLs"]),
            ("[master]\ncluster_urls = [\"tls://x\", 1]", &["master.cluster_urls", "a list of URLs"]),
            ("[host]\nlabels = \"x\"", &["host.labels", "a table"]),
            ("[host.labels]\ndisk = 1", &["host.labels", "line 2"]),
            ("[host.storage]\nkind = \"zfs\"", &["host.storage.kind", "\"btrfs\""]),
            ("[host.storage]\nsize = \"zfs\"", &["host.storage.size", "line 2"]),
            ("[host.runtime]\npull_timeout = \"0s\"", &["host.runtime.pull_timeout", "a duration"]),
            ("[master]\npublic_url = \"ftp://x\"", &["master.public_url", "a URL"]),
            ("[master]\npublic_url = \"http://x/path\"", &["master.public_url", "without a path"]),
            ("[log]\nlevel = \"lo=ud=x\"", &["log.level", "a log filter"]),
            ("[log]\n\nlevel = ", &["line 3", "isn't TOML"]),
            ("[log]\nlevel = \"info\"\nlevel = \"warn\"", &["line 3", "isn't TOML"]),
        ] {
            let error = Settings::resolve(&file(text)).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidConfig, "{text}");
            for part in parts {
                assert!(error.message.contains(part), "{text}: {:?} lacks {part:?}", error.message);
            }
        }
    }

    #[test]
    fn an_unknown_key_shows_its_siblings() {
        let error = Settings::resolve(&file("[host.storage]\npth = \"x\"")).unwrap_err();
        assert_eq!(error.mend, "Known here: host.storage.kind, host.storage.path.");
    }

    #[test]
    fn flags_over_environment_over_file_over_defaults() {
        let mut sources = Sources::default();
        let listen = |sources: &Sources| Settings::resolve(sources).unwrap().get("master.listen").to_owned();
        assert_eq!(listen(&sources), "127.0.0.1:7420");
        sources.file = Some(("a.toml".into(), "[master]\nlisten = \"127.0.0.1:1\"".into()));
        assert_eq!(listen(&sources), "127.0.0.1:1");
        sources.environment = vec![("ATOLL_MASTER_LISTEN".into(), "127.0.0.1:2".into()), ("ATOLL_MASTER".into(), "x".into())];
        assert_eq!(listen(&sources), "127.0.0.1:2");
        sources.flags = vec![("master.listen".into(), "127.0.0.1:3".into())];
        assert_eq!(listen(&sources), "127.0.0.1:3");
    }

    #[test]
    fn environment_and_flags_are_checked_as_the_file_is() {
        let environment = |name: &str, text: &str| {
            Settings::resolve(&Sources { environment: vec![(name.into(), text.into())], ..Sources::default() }).map(drop)
        };
        environment("ATOLL_HOST_LABELS", "a=b,c=d").unwrap();
        environment("ATOLL_HOST_STORAGE_KIND", "dir").unwrap();
        environment("ATOLL_TOKEN", "x").unwrap();
        for (name, text) in [("ATOLL_HOST_LABELS", "a"), ("ATOLL_HOST_LISTN", "x"), ("ATOLL_HOST_LISTEN", "x"), ("ATOLL_LOG_FORMAT", "xml")]
        {
            let error = environment(name, text).unwrap_err();
            assert!(error.message.contains(name), "{}", error.message);
        }
        let flags = Sources { flags: vec![("host.nonsense".into(), "1".into())], ..Sources::default() };
        assert!(Settings::resolve(&flags).unwrap_err().message.contains("the command line"));
    }

    #[test]
    fn labels_come_as_a_table_or_as_text() {
        let settings = Settings::resolve(&file("[host.labels]\ndisk = \"ssd\"\n")).unwrap();
        assert_eq!(settings.labels("host.labels"), BTreeMap::from([("disk".into(), "ssd".into())]));
        let settings = Settings::resolve(&file("[host]\nlabels = { disk = \"ssd\" }")).unwrap();
        assert_eq!(settings.labels("host.labels").len(), 1);
    }

    #[test]
    fn numbers_are_numbers_and_sizes_may_be() {
        let settings = Settings::resolve(&file("[host]\nmax_running = 1_000\ndisk_reserve = 4096")).unwrap();
        assert_eq!(settings.count("host.max_running").unwrap(), 1000);
        assert_eq!(settings.size("host.disk_reserve").unwrap(), 4096);
    }

    #[test]
    fn defaults_are_values_of_their_kind() {
        for key in KEYS.iter().filter(|key| !key.default.is_empty() && key.kind != Kind::Labels) {
            check(key, key.default).unwrap_or_else(|why| panic!("{}: {why}", key.name));
        }
        for key in KEYS {
            let (section, _) = key.name.rsplit_once('.').unwrap();
            assert!(SECTIONS.iter().any(|(name, _)| *name == section), "{}", key.name);
        }
    }
}
