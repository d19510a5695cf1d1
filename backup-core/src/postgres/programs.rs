//! PostgreSQL's own client programs: found, given a connection, and asked small questions.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tokio::io::AsyncWriteExt;

use super::ConnInfo;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::process::{cannot_start, describe_exit, program_name, program_path};

/// What monitoring shows as the name of our connections.
const APPLICATION_NAME: &str = "backup";

/// Said before anything else. The owner of a database chooses its `search_path`, and with it whose functions and operators a name
/// that is not qualified means: they would run with the rights of whoever makes the backup. `SET` itself looks nothing up.
/// Temporary objects come last, as they would come first if they were not named.
const TRUSTED_NAMES: &str = "SET search_path = pg_catalog, pg_temp;\n";

/// Where the programs are and what they connect to.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) conninfo: ConnInfo,
    pub(super) bin_dir: Option<PathBuf>,
    pub(super) stage: Stage,
}

impl Programs {
    /// `program`, without arguments.
    pub(super) fn bare(&self, program: &str) -> Command {
        match &self.bin_dir {
            Some(dir) => Command::new(dir.join(program)),
            None => Command::new(program),
        }
    }

    /// `program` with arguments and environment that make it connect to `conninfo` and never ask for a password.
    pub(super) fn connected(&self, program: &str, conninfo: &ConnInfo) -> Result<Command> {
        if let Some(secret) = conninfo.other_secrets().next() {
            return Err(Error::config(format!(
                "{secret} cannot be handed to {program} without showing it to other users"
            ))
            .with_hint("put it into a service file (PGSERVICEFILE), and name the service: service=NAME"));
        }
        let mut command = self.bare(program);
        command.arg("--no-password").arg(format!("--dbname={}", conninfo.without_password()));
        if let Some(password) = conninfo.password() {
            command.env("PGPASSWORD", password);
        }
        if conninfo.get("application_name").is_none() && env::var_os("PGAPPNAME").is_none() {
            command.env("PGAPPNAME", APPLICATION_NAME);
        }
        Ok(command)
    }

    /// Runs an SQL script of ours in one transaction, or statement by statement; returns what it prints. Names in it mean what the
    /// server ships, whatever the database's own settings say.
    pub(super) async fn psql(&self, conninfo: &ConnInfo, mode: Mode, script: &str) -> Result<String> {
        let mut command = self.connected("psql", conninfo)?;
        command.args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]);
        if mode == Mode::Transaction {
            command.arg("--single-transaction");
        }
        self.output(command, &format!("{TRUSTED_NAMES}{script}")).await
    }

    /// The version that `program --version` tells, such as `15.18`.
    pub(super) async fn version(&self, program: &str) -> Result<String> {
        let mut command = self.bare(program);
        command.arg("--version");
        let text = self.output(command, "").await?;
        Ok(text.split_once(") ").map_or(text.as_str(), |(_, version)| version).trim().to_owned())
    }

    /// Runs a command to its end. What it says on stderr becomes the cause of the error.
    async fn output(&self, mut command: Command, input: &str) -> Result<String> {
        let (program, path) = (program_name(&command), program_path(&command));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().map_err(|e| cannot_start(&path, self.stage, e))?;
        let failed = |e: std::io::Error| self.error(format!("cannot run {program}")).with_source(e);
        if let Some(mut stdin) = child.stdin.take() {
            // It may have failed before it read: its exit status says more than the broken pipe.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned());
        }
        let error = self.error(describe_exit(&program, output.status));
        Err(match String::from_utf8_lossy(&output.stderr).trim() {
            "" => error,
            said => error.with_source(said),
        })
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        let kind = if self.stage == Stage::Sink { ErrorKind::Sink } else { ErrorKind::Source };
        Error::new(kind, self.stage, message)
    }
}

/// How a script is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// All or nothing.
    Transaction,
    /// Statements that refuse to be in a transaction.
    Statements,
}

/// An SQL string literal, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// What `PGOPTIONS` or the connection string already asks of the server.
pub(super) fn server_options(conninfo: &ConnInfo) -> String {
    conninfo.get("options").map(str::to_owned).or_else(|| env::var("PGOPTIONS").ok()).unwrap_or_default()
}
