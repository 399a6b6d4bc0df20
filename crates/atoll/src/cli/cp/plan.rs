//! From `cp`'s arguments to what is copied from where to where. Pure; what is there already is asked for later.

use std::path::{Path, PathBuf};

use atoll_contract::Error;

use crate::errors::Result;

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Standard input or output.
    Stream,
    Local(PathBuf),
    /// A project's name or id, and a path from its home directory on.
    Remote {
        project: String,
        path: RemotePath,
    },
}

/// A path in a project: names with `/` between, no `.` and `..`, without a slash at either end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePath {
    pub path: String,
    /// It was written so that it can only be a directory: empty, or with a slash or `/.` at its end.
    pub directory: bool,
    /// It ended in `/.`: what is in it is meant, not itself.
    pub contents: bool,
}

impl RemotePath {
    /// # Errors
    /// `invalid_argument` for `..` and absolute paths outside of the home directory.
    pub fn parse(text: &str) -> Result<Self> {
        let home = atoll_contract::agent::HOME_PATH;
        // an absolute path is written by those who think of the container; only what is in home is served
        let inside = match text.strip_prefix(home) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
            _ if text.starts_with('/') => {
                return Err(Error::invalid(format!("{text} isn't in the project's home directory."))
                    .mend(format!("Paths go from {home} on; use atoll exec for other places.")));
            }
            _ => text,
        };
        let inside = inside.strip_prefix("~/").unwrap_or(if inside == "~" { "" } else { inside });
        let contents = inside == "." || inside.ends_with("/.");
        let directory = contents || inside.is_empty() || inside.ends_with('/');
        let mut names = Vec::new();
        for name in inside.split('/') {
            match name {
                "" | "." => {}
                ".." => return Err(Error::invalid(format!("{text:?} has \"..\" in it.")).mend("Write the path without it.")),
                name => names.push(name),
            }
        }
        Ok(Self { path: names.join("/"), directory, contents })
    }

    /// The last name; none for the home directory and for what stands for its contents.
    pub fn name(&self) -> Option<&str> {
        if self.contents { None } else { self.path.rsplit('/').next().filter(|name| !name.is_empty()) }
    }

    /// The path of something in this directory.
    pub fn join(&self, name: &str) -> String {
        join(&self.path, name)
    }
}

pub fn join(directory: &str, name: &str) -> String {
    match (directory, name) {
        (directory, "") => directory.into(),
        ("", name) => name.into(),
        (directory, name) => format!("{directory}/{name}"),
    }
}

/// What is to be copied, all in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    Upload { sources: Vec<Source>, project: String, to: RemotePath },
    Download { project: String, sources: Vec<RemotePath>, to: Target },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Stream,
    Local {
        path: PathBuf,
        /// It ended in `/.`: what is in it is meant.
        contents: bool,
    },
}

impl Source {
    /// The name under which it goes into a directory.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Local { path, contents: false } => Some(path.file_name()?.to_string_lossy().into_owned()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Stream,
    Local {
        path: PathBuf,
        /// It ended in a slash.
        directory: bool,
    },
}

/// Which argument is what. `PROJECT:PATH` is remote if the part before the first colon could be a project's name or id.
///
/// # Errors
/// `invalid_argument`.
pub fn place(text: &str) -> Result<Place> {
    if text == "-" {
        return Ok(Place::Stream);
    }
    match text.split_once(':') {
        Some((project, path)) if !project.contains('/') => {
            atoll_contract::project::check_name(project)
                .map_err(|error| error.mend(format!("Write ./{text} if this is a file on this machine.")))?;
            Ok(Place::Remote { project: project.into(), path: RemotePath::parse(path)? })
        }
        _ if text.is_empty() => Err(Error::invalid("A path is empty.")),
        _ => Ok(Place::Local(text.into())),
    }
}

/// # Errors
/// `invalid_argument` if not exactly one side is remote, or the parts don't go together.
pub fn plan(paths: &[String]) -> Result<Plan> {
    let (last, first) = paths.split_last().filter(|(_, first)| !first.is_empty()).ok_or_else(|| {
        Error::invalid("What to copy, or where to, is missing.").mend("Write atoll cp SOURCE… DESTINATION, with PROJECT:PATH on one side.")
    })?;
    let sources: Vec<Place> = first.iter().map(|text| place(text)).collect::<Result<_>>()?;
    match place(last)? {
        Place::Remote { project, path } => upload(first, sources, project, path),
        to => download(last, sources, to),
    }
}

fn upload(texts: &[String], places: Vec<Place>, project: String, to: RemotePath) -> Result<Plan> {
    let mut sources = Vec::new();
    for (text, place) in texts.iter().zip(places) {
        sources.push(match place {
            Place::Stream => Source::Stream,
            Place::Local(path) => Source::Local { contents: text == "." || text.ends_with("/."), path: named(path) },
            Place::Remote { .. } => {
                return Err(Error::invalid("Both sides are in projects.").mend("Copy to this machine first, then to the other project."));
            }
        });
    }
    if sources.contains(&Source::Stream) {
        if sources.len() > 1 {
            return Err(Error::invalid("Standard input is copied alone."));
        }
        if to.directory {
            return Err(Error::invalid("Standard input needs a file's name in the project.").mend("Write PROJECT:DIRECTORY/NAME."));
        }
    }
    Ok(Plan::Upload { sources, project, to })
}

fn download(text: &str, places: Vec<Place>, to: Place) -> Result<Plan> {
    let mut project = None;
    let mut sources = Vec::new();
    for place in places {
        let Place::Remote { project: its, path } = place else {
            return Err(Error::invalid("Neither side is in a project.").mend("Write one side as PROJECT:PATH."));
        };
        if project.as_ref().is_some_and(|other| *other != its) {
            return Err(Error::invalid("The sources are in different projects.").mend("Copy from one project at a time."));
        }
        project = Some(its);
        sources.push(path);
    }
    let to = match to {
        Place::Local(path) => Target::Local { directory: text.ends_with('/') || text == "." || text.ends_with("/."), path },
        _ => Target::Stream,
    };
    if to == Target::Stream && sources.len() > 1 {
        return Err(Error::invalid("One source at a time goes to standard output."));
    }
    Ok(Plan::Download { project: project.unwrap_or_default(), sources, to })
}

/// `..` and `.` have no name of their own; the directory that they mean has.
fn named(path: PathBuf) -> PathBuf {
    if path.file_name().is_some() || path == Path::new("/") { path } else { path.canonicalize().unwrap_or(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan> {
        super::plan(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    fn remote(path: &str) -> RemotePath {
        RemotePath::parse(path).unwrap()
    }

    #[test]
    fn a_colon_makes_it_remote() {
        for (text, project, path) in [("p:", "p", ""), ("p:a/b", "p", "a/b"), ("a-b.c_d:x", "a-b.c_d", "x"), ("p:a:b", "p", "a:b")] {
            assert_eq!(place(text).unwrap(), Place::Remote { project: project.into(), path: remote(path) }, "{text}");
        }
        for text in ["a", "./p:a", "/p:a", "a/b:c", "../x", "a b"] {
            assert_eq!(place(text).unwrap(), Place::Local(text.into()), "{text}");
        }
        assert_eq!(place("-").unwrap(), Place::Stream);
        for text in ["", ":x", "-x:y", "ä:b"] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn remote_paths_stay_in_home() {
        for (text, path, directory, contents) in [
            ("", "", true, false),
            (".", "", true, true),
            ("a", "a", false, false),
            ("a/", "a", true, false),
            ("a/.", "a", true, true),
            ("./a//b", "a/b", false, false),
            ("~/a", "a", false, false),
            ("~", "", true, false),
            ("/home/user", "", true, false),
            ("/home/user/a", "a", false, false),
        ] {
            assert_eq!(remote(text), RemotePath { path: path.into(), directory, contents }, "{text}");
        }
        for text in ["/", "/etc/passwd", "/home/username", "..", "a/../b", "../a", "/home/user/.."] {
            assert!(RemotePath::parse(text).is_err(), "{text}");
        }
        assert_eq!(remote("a/b").name(), Some("b"));
        assert_eq!((remote("").name(), remote("a/.").name()), (None, None));
    }

    #[test]
    fn one_side_is_in_a_project() {
        let local = |path: &str| Source::Local { path: path.into(), contents: false };
        assert_eq!(plan("a b p:c").unwrap(), Plan::Upload { sources: vec![local("a"), local("b")], project: "p".into(), to: remote("c") });
        assert_eq!(
            plan("a/. p:c").unwrap(),
            Plan::Upload { sources: vec![Source::Local { path: "a/.".into(), contents: true }], project: "p".into(), to: remote("c") }
        );
        assert_eq!(plan("- p:c").unwrap(), Plan::Upload { sources: vec![Source::Stream], project: "p".into(), to: remote("c") });
        assert_eq!(
            plan("p:a p:b d/").unwrap(),
            Plan::Download {
                project: "p".into(),
                sources: vec![remote("a"), remote("b")],
                to: Target::Local { path: "d/".into(), directory: true }
            }
        );
        assert_eq!(plan("p:a -").unwrap(), Plan::Download { project: "p".into(), sources: vec![remote("a")], to: Target::Stream });
        for line in ["a b", "p:a q:b", "p:a b q:c", "p:a q:b c", "p:a b c", "- b", "- a p:c", "- p:", "- p:c/", "p:a p:b -", "a"] {
            let error = plan(line).unwrap_err();
            assert!(error.code == atoll_contract::ErrorCode::InvalidArgument, "{line}");
        }
    }
}
