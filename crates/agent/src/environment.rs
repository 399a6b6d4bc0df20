//! What a program begins with: its file, arguments, variables and directory, from a request and what the container has.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use atoll_contract::{Error, ErrorCode};
use rustix::fs::Access;

/// Where programs are looked for if the image doesn't say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SHELLS: [&str; 4] = ["bash", "zsh", "ash", "sh"];

/// A program that is ready to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    /// What the program is told to be its name.
    pub(crate) name: OsString,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) cwd: PathBuf,
}

/// What all programs of the container share.
#[derive(Debug)]
pub(crate) struct Environment {
    base: BTreeMap<OsString, OsString>,
    home: PathBuf,
}

impl Environment {
    pub(crate) fn new(env: Vec<(OsString, OsString)>, home: &str) -> Self {
        let mut base: BTreeMap<_, _> = env.into_iter().collect();
        base.remove(OsStr::new("PWD"));
        base.remove(OsStr::new("OLDPWD"));
        // the runtime takes HOME from the image's /etc/passwd, which doesn't know of the volume
        base.insert("HOME".into(), home.into());
        let user = if rustix::process::geteuid().is_root() { "root" } else { "user" };
        for (name, value) in [("PATH", DEFAULT_PATH), ("USER", user), ("LOGNAME", user)] {
            base.entry(name.into()).or_insert_with(|| value.into());
        }
        Self { base, home: home.into() }
    }

    /// A program for exec.
    ///
    /// # Errors
    /// `invalid_argument`, and `not_found` if there is no such program or directory.
    pub(crate) fn program(&self, argv: &[String], env: &BTreeMap<String, String>, cwd: &str) -> Result<Launch, Error> {
        let [name, args @ ..] = argv else {
            return Err(Error::invalid("A command has at least the program's name."));
        };
        check_text(argv, env, cwd)?;
        let mut variables = self.variables(env);
        let cwd = self.directory(cwd)?;
        if !variables.contains_key(OsStr::new("SHELL"))
            && let Ok(shell) = default_shell(&variables, &cwd)
        {
            variables.insert("SHELL".into(), shell.into());
        }
        let program = find(name, path_of(&variables), &cwd)?;
        Ok(Launch { program, name: name.into(), args: args.to_vec(), env: variables, cwd })
    }

    /// A program for a terminal; the login shell if `argv` is empty.
    ///
    /// # Errors
    /// As [`program`](Self::program); `not_found` if there is no shell.
    pub(crate) fn terminal(&self, argv: &[String], env: &BTreeMap<String, String>, cwd: &str) -> Result<Launch, Error> {
        let mut launch = if argv.is_empty() { self.login_shell(env, cwd)? } else { self.program(argv, env, cwd)? };
        // the runtimes' own default is poorer than what every viewer can show
        let plain = launch.env.get(OsStr::new("TERM")).is_none_or(|term| term == "xterm" || term.is_empty());
        if plain && !env.contains_key("TERM") {
            launch.env.insert("TERM".into(), "xterm-256color".into());
        }
        Ok(launch)
    }

    fn login_shell(&self, env: &BTreeMap<String, String>, cwd: &str) -> Result<Launch, Error> {
        check_text(&[], env, cwd)?;
        let mut variables = self.variables(env);
        let cwd = self.directory(cwd)?;
        let program = default_shell(&variables, &cwd)?;
        variables.insert("SHELL".into(), program.clone().into());
        // a leading dash is how a shell is told that it is the login shell (login(1))
        let mut name = OsString::from("-");
        name.push(program.file_name().unwrap_or(program.as_os_str()));
        Ok(Launch { program, name, args: vec![], env: variables, cwd })
    }

    fn variables(&self, env: &BTreeMap<String, String>) -> BTreeMap<OsString, OsString> {
        let mut variables = self.base.clone();
        variables.extend(env.iter().map(|(name, value)| (name.into(), value.into())));
        variables
    }

    fn directory(&self, cwd: &str) -> Result<PathBuf, Error> {
        let path = self.home.join(cwd);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_dir() => Ok(path),
            Ok(_) => Err(Error::invalid(format!("{} isn't a directory.", path.display()))),
            Err(error) => Err(Error::new(ErrorCode::NotFound, format!("The directory {} can't be entered: {error}.", path.display()))
                .mend("Give a directory that exists in the project, relative to home or absolute.")),
        }
    }
}

fn check_text(argv: &[String], env: &BTreeMap<String, String>, cwd: &str) -> Result<(), Error> {
    if argv.iter().any(|word| word.contains('\0')) || cwd.contains('\0') {
        return Err(Error::invalid("A command and its directory can't contain NUL."));
    }
    if argv.first().is_some_and(String::is_empty) {
        return Err(Error::invalid("The program's name is empty."));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::invalid(format!("{name:?} isn't a variable that an environment can hold.")));
        }
    }
    Ok(())
}

fn path_of(variables: &BTreeMap<OsString, OsString>) -> &OsStr {
    variables.get(OsStr::new("PATH")).map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str)
}

fn default_shell(variables: &BTreeMap<OsString, OsString>, cwd: &Path) -> Result<PathBuf, Error> {
    if let Some(shell) = variables.get(OsStr::new("SHELL"))
        && Path::new(shell).is_absolute()
        && is_program(Path::new(shell))
    {
        return Ok(shell.into());
    }
    SHELLS.iter().find_map(|shell| find(shell, path_of(variables), cwd).ok()).ok_or_else(|| {
        Error::new(ErrorCode::NotFound, "This project's image has no shell: neither $SHELL nor bash, zsh, ash or sh is there.")
            .mend("Name a program of the image instead (argv).")
    })
}

/// Finds a program as execvp(3) does.
fn find(name: &str, path: &OsStr, cwd: &Path) -> Result<PathBuf, Error> {
    let not_executable =
        |path: &Path| Error::invalid(format!("{} isn't an executable file.", path.display())).mend("Set its x permission (chmod +x).");
    if name.contains('/') {
        let file = cwd.join(name);
        return match std::fs::metadata(&file) {
            Err(error) => Err(Error::new(ErrorCode::NotFound, format!("There is no program {}: {error}.", file.display()))),
            Ok(_) if is_program(&file) => Ok(file),
            Ok(_) => Err(not_executable(&file)),
        };
    }
    let mut unfit = None;
    for directory in path.as_bytes().split(|byte| *byte == b':') {
        let file = cwd.join(OsStr::from_bytes(directory)).join(name);
        if is_program(&file) {
            return Ok(file);
        }
        if file.is_file() {
            unfit.get_or_insert(file);
        }
    }
    Err(match unfit {
        Some(file) => not_executable(&file),
        None => Error::new(ErrorCode::NotFound, format!("There is no program {name:?} in PATH ({}).", path.display())),
    })
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(path: &Path, mode: u32) {
        std::fs::write(path, "#!/bin/true\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::create_dir(dir.path().join("bin/dir")).unwrap();
        file(&dir.path().join("bin/good"), 0o755);
        file(&dir.path().join("bin/plain"), 0o644);
        let path = format!("/nonexistent:{home}/bin");
        let environment = Environment::new(vec![("PATH".into(), path.into()), ("PWD".into(), "/x".into())], home);
        let none = BTreeMap::new();
        let launch = |argv: &[&str], cwd: &str| {
            let argv: Vec<String> = argv.iter().map(|&word| word.to_owned()).collect();
            environment.program(&argv, &none, cwd)
        };
        let good = launch(&["good", "1"], "").unwrap();
        assert_eq!((good.program, good.cwd), (dir.path().join("bin/good"), dir.path().to_owned()));
        assert_eq!(good.env[OsStr::new("HOME")], home);
        assert!(!good.env.contains_key(OsStr::new("PWD")));
        assert_eq!(launch(&["./good"], "bin").unwrap().program, dir.path().join("bin/./good"));
        for (argv, cwd, code) in [
            (&["none"][..], "", ErrorCode::NotFound),
            (&["./none"], "", ErrorCode::NotFound),
            (&["plain"], "", ErrorCode::InvalidArgument),
            (&["bin/plain"], "", ErrorCode::InvalidArgument),
            (&["bin/dir"], "", ErrorCode::InvalidArgument),
            (&["dir"], "", ErrorCode::NotFound),
            (&["good"], "nowhere", ErrorCode::NotFound),
            (&["good"], "bin/good", ErrorCode::InvalidArgument),
            (&["good"], "/", ErrorCode::Internal), // fine
            (&[], "", ErrorCode::InvalidArgument),
            (&[""], "", ErrorCode::InvalidArgument),
            (&["a\0b"], "", ErrorCode::InvalidArgument),
        ] {
            let code_now = launch(argv, cwd).map_or_else(|error| error.code, |_| ErrorCode::Internal);
            assert_eq!(code_now, code, "{argv:?} in {cwd:?}");
        }
    }

    #[test]
    fn the_login_shell_is_the_first_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        let none = BTreeMap::new();
        let environment = Environment::new(vec![("PATH".into(), home.into()), ("TERM".into(), "xterm".into())], home);
        let error = environment.terminal(&[], &none, "").unwrap_err();
        assert!(error.code == ErrorCode::NotFound && error.mend.contains("argv"), "{error:?}");
        file(&dir.path().join("sh"), 0o755);
        file(&dir.path().join("zsh"), 0o755);
        let launch = environment.terminal(&[], &none, "").unwrap();
        assert_eq!((launch.program, launch.name), (dir.path().join("zsh"), "-zsh".into()));
        assert_eq!(launch.env[OsStr::new("TERM")], "xterm-256color");
        assert_eq!(launch.env[OsStr::new("SHELL")], dir.path().join("zsh").as_os_str());
        let own = BTreeMap::from([
            ("SHELL".to_owned(), dir.path().join("sh").to_str().unwrap().to_owned()),
            ("TERM".to_owned(), "vt100".to_owned()),
        ]);
        let launch = environment.terminal(&[], &own, "").unwrap();
        assert_eq!((launch.name, launch.env[OsStr::new("TERM")].clone()), ("-sh".into(), "vt100".into()));
    }

    #[test]
    fn variables_that_no_environment_can_hold_are_refused() {
        let environment = Environment::new(vec![], "/");
        for (name, value) in [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "\0")] {
            let env = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(environment.program(&["x".to_owned()], &env, "").unwrap_err().code, ErrorCode::InvalidArgument);
        }
    }
}
