//! A logical dump back into a server: the sink of `restore --into`.
//!
//! What must hold is that nothing of a dump counts before its end was verified, and that nothing stays when it was not:
//!
//! - A database that is *missing* is loaded under a temporary name, as fast as the server can, and gets its own name at the very
//!   end; until then it can be dropped.
//! - An *existing* one is loaded in a single transaction. `pg_restore` commits after the last byte that it needs, not at the end of
//!   its input, so the last byte of the stream is held back until [`finish`](Sink::finish).

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::ConnInfo;
use super::archive::{Database, Head, quote, read_head, rename_database};
use super::loading::{Loading, hint_for};
use super::programs::{Mode, Programs, literal, server_options};
use super::sql::{Script, client_encoding, connects_elsewhere, no_sql};
use crate::encrypt::random;
use crate::error::{Error, Result, Stage};
use crate::process::LineCallback;
use crate::restore::Sink;

/// As much of the stream is looked at, at most, to learn what it is.
const HEAD_BYTES_MAX: usize = 16 << 20;

/// Arguments of `pg_restore` with which it still reads an archive to its end, so that a transaction cannot end before the stream.
const READS_ALL: [&str; 12] = [
    "--clean",
    "--disable-triggers",
    "--enable-row-security",
    "--if-exists",
    "--no-comments",
    "--no-publications",
    "--no-security-labels",
    "--no-subscriptions",
    "--no-table-access-method",
    "--no-tablespaces",
    "--role",
    "--verbose",
];

/// Where to load a dump, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The database; it is created if it does not exist.
    pub conninfo: ConnInfo,
    /// Where `pg_restore` and `psql` are; found in `PATH` by default.
    pub bin_dir: Option<PathBuf>,
    /// Everything will belong to the user who loads, and no role of the source is needed.
    pub no_owner: bool,
    /// No `GRANT` and `REVOKE` of the dump is repeated.
    pub no_privileges: bool,
    /// More arguments for `pg_restore`. With an existing database only those that let it read the whole archive.
    pub extra_args: Vec<OsString>,
}

impl LoadOptions {
    /// Loads into the database of `conninfo`, with the owners and privileges of the dump.
    pub fn new(conninfo: ConnInfo) -> Self {
        Self { conninfo, bin_dir: None, no_owner: false, no_privileges: false, extra_args: Vec::new() }
    }
}

/// Loads a `pg_dump` archive in custom format with `pg_restore`, and any other stream as SQL with `psql`.
///
/// Dropping it without [`abort`](Sink::abort) kills the program; a database that it was creating stays behind, under its temporary
/// name.
pub struct LoadSink {
    options: LoadOptions,
    programs: Programs,
    stderr: Option<LineCallback>,
    /// The name of the database to create; `None` when it exists.
    missing: Option<String>,
    /// A `CREATE DATABASE` that has begun. Killing its `psql` would not stop the server, so it is never dropped before its end
    /// unless the sink is.
    creating: Option<BoxFuture<'static, Result<String>>>,
    created: Option<NewDatabase>,
    state: State,
}

enum State {
    /// Not enough has come to tell what it is.
    Head(Vec<u8>),
    Loading(Loading),
    Closed,
}

struct NewDatabase {
    temporary: String,
    /// What remains to be done once it is loaded.
    last_steps: String,
}

impl LoadSink {
    /// Looks whether the database exists, and changes nothing yet. The stderr of the programs goes to `stderr`, or to our own.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// `Sink` when the server refuses, `Config` when `psql` is missing or the options do not fit.
    pub async fn open(options: LoadOptions, stderr: Option<LineCallback>) -> Result<Self> {
        let programs =
            Programs { conninfo: options.conninfo.clone(), bin_dir: options.bin_dir.clone(), stage: Stage::Sink };
        let missing = missing_database(&programs).await?;
        if missing.is_none()
            && let Some(arg) = options.extra_args.iter().find(|arg| !reads_all(&arg.to_string_lossy()))
        {
            return Err(Error::config(format!("pg_restore's argument {} cannot be used here", arg.display()))
                .with_hint(
                    "with it, the transaction could end before the backup is verified; load into a new database",
                ));
        }
        let state = State::Head(Vec::new());
        Ok(Self { options, programs, stderr, missing, creating: None, created: None, state })
    }

    async fn take(&mut self, data: Bytes) -> Result<()> {
        if let State::Head(head) = &mut self.state {
            head.extend_from_slice(&data);
            let known = !matches!(read_head(head), Head::Incomplete) || head.len() > HEAD_BYTES_MAX;
            return if known { self.start().await } else { Ok(()) };
        }
        self.feed(&data).await
    }

    /// Starts the program that fits the head, and feeds the head to it.
    async fn start(&mut self) -> Result<()> {
        let State::Head(head) = std::mem::replace(&mut self.state, State::Closed) else {
            return Err(Error::internal(Stage::Sink, "the load was started twice"));
        };
        if head.is_empty() {
            return Err(self.programs.error("the stream is empty, so it is no dump of a database"));
        }
        let kind = read_head(&head);
        let is_archive = head.starts_with(super::archive::MAGIC);
        if let Some((what, hint)) = no_sql(&head).filter(|_| !is_archive) {
            let message = format!("the stream cannot be loaded into a database: it is {what}");
            return Err(Error::config(message).at(Stage::Sink).with_hint(hint));
        }
        if !is_archive && connects_elsewhere(&head) {
            return Err(self
                .programs
                .error("the SQL chooses its database by itself, so it cannot be loaded into this one")
                .with_hint("restore it with --to-stdout, into psql"));
        }
        let target = match self.missing.clone() {
            Some(name) => self.create(&name, &kind, &head).await?,
            None => self.options.conninfo.clone(),
        };
        let single = self.missing.is_none();
        let (program, script) = if is_archive {
            let (prologue, epilogue) = Default::default();
            ("pg_restore", Script { args: self.pg_restore_args(single), prologue, epilogue, token: None })
        } else {
            ("psql", Script::new(single))
        };
        let mut command = self.programs.connected(program, &target)?;
        command.args(script.args);
        let loading = Loading::spawn(command, self.stderr.take(), script.epilogue, script.token)?;
        self.state = State::Loading(loading);
        self.feed(script.prologue.as_bytes()).await?;
        self.feed(&head).await
    }

    /// Creates the database under a temporary name; returns how to connect to it.
    async fn create(&mut self, name: &str, kind: &Head, head: &[u8]) -> Result<ConnInfo> {
        let temporary = temporary_name(name)?;
        let bare = Database::default();
        let source = if let Head::Custom(database) = kind { database } else { &bare };
        let renamed = |sql: &String| rename_database(sql, &source.name, &temporary);
        let create = source.create.as_ref().map(renamed).unwrap_or_else(|| {
            let encoding = client_encoding(head).map(|e| format!(" ENCODING {}", literal(e))).unwrap_or_default();
            format!("CREATE DATABASE {} TEMPLATE template0{encoding};", quote(&temporary))
        });
        let properties: String = source.properties.iter().map(renamed).collect();
        let mut last_steps = String::from("SET synchronous_commit = on;\n");
        if let Some(owner) = source.owner.as_ref().filter(|_| !self.options.no_owner) {
            last_steps += &format!("ALTER DATABASE {} OWNER TO {};\n", quote(&temporary), quote(owner));
        }
        if !self.options.no_privileges {
            last_steps.extend(source.privileges.iter().map(renamed));
        }
        last_steps += &format!("ALTER DATABASE {} RENAME TO {};\n", quote(&temporary), quote(name));
        self.created = Some(NewDatabase { temporary: temporary.clone(), last_steps });

        let server = maintenance(&self.options.conninfo);
        let (programs, on) = (self.programs.clone(), server.clone());
        self.creating = Some(async move { programs.psql(&on, Mode::Statements, &create).await }.boxed());
        self.created_in_the_end().await.map_err(with_hint)?;
        if !properties.is_empty() {
            self.programs.psql(&server, Mode::Transaction, &properties).await.map_err(with_hint)?;
        }
        let mut target = self.options.conninfo.with_dbname(&temporary);
        // The last steps are one transaction that waits for the disk, and so for all before it. A database whose own settings
        // make it read-only is to be loaded all the same.
        let ours = "-c synchronous_commit=off -c default_transaction_read_only=off";
        target.set("options", format!("{} {ours}", server_options(&target)).trim());
        Ok(target)
    }

    /// Waits for the end of a `CREATE DATABASE`, if one has begun. Cancel safe: it goes on with the next call.
    async fn created_in_the_end(&mut self) -> Result<()> {
        let Some(creating) = &mut self.creating else { return Ok(()) };
        let outcome = creating.await;
        self.creating = None;
        outcome.map(drop)
    }

    fn pg_restore_args(&self, single_transaction: bool) -> Vec<OsString> {
        let mut args = vec!["--exit-on-error".into()];
        args.extend(single_transaction.then(|| "--single-transaction".into()));
        args.extend(self.options.no_owner.then(|| "--no-owner".into()));
        args.extend(self.options.no_privileges.then(|| "--no-privileges".into()));
        args.extend(self.options.extra_args.iter().cloned());
        args
    }

    async fn feed(&mut self, data: &[u8]) -> Result<()> {
        match &mut self.state {
            State::Loading(loading) => loading.feed(data).await,
            State::Head(_) | State::Closed => Err(Error::internal(Stage::Sink, "the load is not running")),
        }
    }

    async fn complete(&mut self) -> Result<()> {
        if let State::Head(_) = self.state {
            self.start().await?;
        }
        if let State::Loading(loading) = &mut self.state {
            loading.finish().await?;
        }
        if let Some(created) = &self.created {
            let server = maintenance(&self.options.conninfo);
            self.programs.psql(&server, Mode::Transaction, &created.last_steps).await.map_err(with_hint)?;
        }
        self.created = None;
        self.state = State::Closed;
        Ok(())
    }

    async fn undo(&mut self) -> Result<()> {
        // Killed before its input is closed: the end of the input would make it commit.
        if let State::Loading(loading) = std::mem::replace(&mut self.state, State::Closed) {
            loading.kill().await;
        }
        // Dropped too early, the database would appear after it was found missing. If it could not be made, there is none to drop.
        let _ = self.created_in_the_end().await;
        let Some(NewDatabase { temporary, .. }) = &self.created else { return Ok(()) };
        // A template cannot be dropped, and the server may not have noticed yet that its client is gone.
        let name = quote(temporary);
        let script = format!(
            "UPDATE pg_catalog.pg_database SET datistemplate = false WHERE datname OPERATOR(pg_catalog.=) {} \
             AND datistemplate;\n\
             DROP DATABASE IF EXISTS {name} WITH (FORCE);",
            literal(temporary)
        );
        self.programs
            .psql(&maintenance(&self.options.conninfo), Mode::Statements, &script)
            .await
            .map_err(|e| e.with_hint(format!("the unfinished database {name} may have been left behind: drop it")))?;
        self.created = None;
        Ok(())
    }
}

impl Sink for LoadSink {
    fn write(&mut self, data: Bytes) -> BoxFuture<'_, Result<()>> {
        self.take(data).boxed()
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<()>> {
        async {
            let Err(error) = self.complete().await else { return Ok(()) };
            Err(match self.undo().await {
                Ok(()) => error,
                Err(cleanup) => error.with_cleanup(cleanup),
            })
        }
        .boxed()
    }

    fn abort(&mut self) -> BoxFuture<'_, Result<()>> {
        self.undo().boxed()
    }
}

impl fmt::Debug for LoadSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadSink").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The name of the database, if the server is there and the database is not.
async fn missing_database(programs: &Programs) -> Result<Option<String>> {
    let Err(error) = programs.psql(&programs.conninfo, Mode::Statements, "SELECT 1;").await else { return Ok(None) };
    let Some(name) = programs.conninfo.dbname() else {
        return Err(error.with_hint("name the database to load into: dbname=…"));
    };
    let server = maintenance(&programs.conninfo);
    let question = format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) {};",
        literal(name)
    );
    // Only the server's word makes a database missing; whatever else is wrong, the first error says it best.
    match programs.psql(&server, Mode::Statements, &question).await.as_deref() {
        Ok("0") => Ok(Some(name.to_owned())),
        _ => Err(error),
    }
}

/// The same server, but a database that is there and is not the one to be created.
fn maintenance(conninfo: &ConnInfo) -> ConnInfo {
    conninfo.with_dbname(if conninfo.dbname() == Some("postgres") { "template1" } else { "postgres" })
}

fn temporary_name(name: &str) -> Result<String> {
    // 63 bytes is the longest name that PostgreSQL does not cut.
    if name.len() > 63 {
        return Err(Error::config("the name of the database has more than 63 bytes"));
    }
    let unique = u32::from_le_bytes(random::bytes());
    Ok(format!("{}_restoring_{unique:08x}", &name[..name.floor_char_boundary(44)]))
}

fn reads_all(arg: &str) -> bool {
    READS_ALL.iter().any(|known| arg.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

fn with_hint(error: Error) -> Error {
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    match hint_for(&cause) {
        Some(hint) => error.with_hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::{fs, io::Write};

    use super::*;

    /// Notes each script it is given in `log` once it has run it; knows no database `app`, and takes its time to make one.
    const PSQL: &str = r#"#!/bin/sh
script=$(cat)
here=$(dirname "$0")
case $script in
*"CREATE DATABASE"*) echo "CREATE DATABASE begins" >>"$here/log"; sleep 0.3 ;;
*"count(*)"*) echo 0 ;;
esac
echo "$script" >>"$here/log"
case $script in *"SELECT 1;"*) exit 2 ;; esac
"#;

    /// A program of the name `psql`. Another process writes it: as long as any has it open for writing, it cannot be run.
    fn fake_psql(dir: &Path) {
        let mut command = Command::new("install");
        command.args(["-m", "755", "/dev/stdin"]).arg(dir.join("psql")).stdin(Stdio::piped());
        let mut install = command.spawn().unwrap();
        install.stdin.take().unwrap().write_all(PSQL.as_bytes()).unwrap();
        assert!(install.wait().unwrap().success());
    }

    #[tokio::test]
    async fn a_database_is_dropped_only_after_its_creation_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = || fs::read_to_string(dir.path().join("log")).unwrap();
        fake_psql(dir.path());
        let mut options = LoadOptions::new(ConnInfo::parse("dbname=app").unwrap());
        options.bin_dir = Some(dir.path().to_owned());
        let mut sink = LoadSink::open(options, None).await.unwrap();
        let mut write = sink.write(Bytes::from_static(b"SELECT 2;\n"));
        while !log().contains("begins") {
            assert!(futures::poll!(&mut write).is_pending());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        drop(write);
        sink.abort().await.unwrap();

        let scripts = log();
        let at = |text: &str| scripts.find(text).unwrap_or_else(|| panic!("no {text} in {scripts}"));
        assert!(at("CREATE DATABASE \"app_restoring_") < at("DROP DATABASE IF EXISTS \"app_restoring_"), "{scripts}");
        let (scripts_run, paths_set) = (4, scripts.matches("SET search_path = pg_catalog, pg_temp;\n").count());
        assert_eq!(paths_set, scripts_run, "{scripts}");
    }

    #[test]
    fn arguments_that_end_the_reading_early_are_known() {
        for arg in ["--clean", "--role=ann", "--verbose"] {
            assert!(reads_all(arg), "{arg}");
        }
        for arg in ["-s", "--schema-only", "--table=t", "-l", "--clean-all", "--rolex"] {
            assert!(!reads_all(arg), "{arg}");
        }
    }

    #[test]
    fn temporary_names_are_not_cut() {
        let long = "ä".repeat(31);
        assert!(temporary_name(&long).unwrap().len() <= 63);
        assert!(temporary_name("app").unwrap().starts_with("app_restoring_"));
        temporary_name(&"x".repeat(64)).unwrap_err();
    }
}
