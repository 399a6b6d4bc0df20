//! The `atoll` command line, used as a person uses it.

use std::{path::PathBuf, process::Output};

use crate::sh::{self, Done, fail};

#[derive(Clone)]
pub struct Cli {
    pub binary: PathBuf,
    pub master: String,
    pub credentials: PathBuf,
}

impl Cli {
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = sh::command(&self.binary, args);
        command.env("ATOLL_MASTER", &self.master).env("ATOLL_CREDENTIALS", &self.credentials);
        command
    }

    pub fn output(&self, args: &[&str]) -> Done<Output> {
        sh::output(&mut self.command(args))
    }

    /// Stdout of a call that has to succeed.
    pub fn run(&self, args: &[&str]) -> Done<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            return fail(format!(
                "atoll {} ended with {}:\n{}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn json(&self, args: &[&str]) -> Done<serde_json::Value> {
        let args: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        Ok(serde_json::from_str(&self.run(&args)?)?)
    }
}
