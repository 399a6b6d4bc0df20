//! Secrets and questions: from a file, from standard input, or from the terminal without echo. Never from arguments.

use std::{
    fs::File,
    io::{BufRead, Read, Write},
};

use atoll_contract::{Error, ErrorCode};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::errors::{self, Result};

/// A longer secret isn't one.
const MAX_SECRET: u64 = 16 << 10;

/// A secret from the file that was named (`-`: one line of standard input), else asked for on the terminal.
///
/// # Errors
/// `invalid_argument` if it is empty, or there is neither a file nor a terminal; `flag` is named then.
pub fn secret(file: Option<&str>, what: &str, flag: &str) -> Result<String> {
    let secret = match file {
        Some("-") => one_line(&mut std::io::stdin().lock())?,
        Some(path) => {
            let mut text = String::new();
            let file = File::open(path).map_err(|error| errors::io(path, &error))?;
            file.take(MAX_SECRET).read_to_string(&mut text).map_err(|error| errors::io(path, &error))?;
            text
        }
        None => ask_hidden(what, flag)?,
    };
    let secret = secret.trim_end_matches(['\n', '\r']).to_owned();
    if secret.is_empty() { Err(Error::invalid(format!("The {what} is empty."))) } else { Ok(secret) }
}

/// A new password: asked for twice on a terminal.
pub fn new_password(file: Option<&str>) -> Result<String> {
    let password = secret(file, "password", "--password-file")?;
    if file.is_none() && secret(None, "password again", "--password-file")? != password {
        return Err(Error::invalid("The two passwords differ."));
    }
    Ok(password)
}

/// Asks for a yes on the terminal.
///
/// # Errors
/// `invalid_argument` without a terminal; `cancelled` if the answer isn't yes.
pub fn confirm(question: &str) -> Result<()> {
    let mut tty = terminal()
        .map_err(|_| Error::invalid(format!("{question} There is no terminal to ask at.")).mend("Give --yes if you are sure."))?;
    let failed = |error: std::io::Error| errors::io("The terminal", &error);
    write!(tty, "{question} [y/N] ").and_then(|()| tty.flush()).map_err(failed)?;
    let answer = one_line(&mut std::io::BufReader::new(tty))?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Error::new(ErrorCode::Cancelled, "Nothing was done."))
    }
}

fn one_line(input: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    input.take(MAX_SECRET).read_line(&mut line).map_err(|error| errors::io("Standard input", &error))?;
    Ok(line)
}

fn terminal() -> std::io::Result<File> {
    File::options().read(true).write(true).open("/dev/tty")
}

/// Reads a line without showing it.
fn ask_hidden(what: &str, flag: &str) -> Result<String> {
    let mut tty = terminal().map_err(|_| {
        Error::invalid(format!("The {what} is needed, and there is no terminal to ask at."))
            .mend(format!("Give {flag} FILE, or - for standard input."))
    })?;
    let failed = |error: std::io::Error| errors::io("The terminal", &error);
    write!(tty, "{what}: ").and_then(|()| tty.flush()).map_err(failed)?;
    let quiet = Quiet::new(&tty).map_err(failed)?;
    let line = read_keys(&mut &tty);
    drop(quiet);
    let _ = writeln!(tty);
    line
}

/// Keys up to Enter, with Backspace and Ctrl-U; Ctrl-C and Ctrl-D on an empty line give up.
fn read_keys(tty: &mut impl Read) -> Result<String> {
    let mut line = Vec::new();
    let mut key = [0u8];
    loop {
        let count = tty.read(&mut key).map_err(|error| errors::io("The terminal", &error))?;
        match (count, key[0]) {
            (0, _) | (_, b'\r' | b'\n') => break,
            (_, 3) => return Err(Error::new(ErrorCode::Cancelled, "Nothing was done.")),
            (_, 4) if line.is_empty() => return Err(Error::new(ErrorCode::Cancelled, "Nothing was done.")),
            (_, 8 | 127) => {
                // one character, not one byte
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            (_, 21) => line.clear(),
            (_, byte) if line.len() < MAX_SECRET as usize => line.push(byte),
            _ => {}
        }
    }
    String::from_utf8(line).map_err(|_| Error::invalid("What was typed isn't UTF-8."))
}

/// The terminal without echo, as long as this lives. Signals are off, too: a Ctrl-C that killed the program would leave the echo off.
struct Quiet<'a> {
    tty: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(tty: &'a File) -> std::io::Result<Self> {
        let before = tcgetattr(tty)?;
        let mut modes = before.clone();
        modes.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(tty, OptionalActions::Flush, &modes)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.tty, OptionalActions::Flush, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_edit_the_line() {
        let read = |keys: &[u8]| read_keys(&mut &*keys);
        assert_eq!(read(b"abc\n").unwrap(), "abc");
        assert_eq!(read("aäb\u{7f}\u{7f}c\r".as_bytes()).unwrap(), "ac");
        assert_eq!(read(b"no\x15yes").unwrap(), "yes");
        assert_eq!(read(b"abc\x03").unwrap_err().code, ErrorCode::Cancelled);
        assert_eq!(read(b"\x04").unwrap_err().code, ErrorCode::Cancelled);
    }

    #[test]
    fn a_file_gives_its_content_without_the_last_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "s e c\r\n").unwrap();
        assert_eq!(secret(path.to_str(), "token", "--token-file").unwrap(), "s e c");
        std::fs::write(&path, "\n").unwrap();
        assert!(secret(path.to_str(), "token", "--token-file").unwrap_err().message.contains("empty"));
        assert_eq!(secret(Some("/nonexistent"), "token", "--token-file").unwrap_err().code, ErrorCode::NotFound);
    }
}
