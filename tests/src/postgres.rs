//! Throwaway PostgreSQL: one that the tests of a process share, and servers of their own ([`server`]).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use backup_core::postgres::ConnInfo;
use backup_core::postgres::wire::{ConnectOptions, Environment};

use crate::host::Host;

pub mod server;

pub use server::{MAJORS, NewServer, Server};

/// A running cluster, reached by a Unix socket. It ends with this process, however that ends.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
}

impl Cluster {
    /// The cluster of this process, started at the first call.
    ///
    /// # Panics
    /// When there is no PostgreSQL; the message names the script that installs it.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        Self::start_in(Self::directory_of("shared"), &[])
    }

    /// A cluster for one test, with segments of 1 MiB and more lines in its configuration; `name` tells it from others of this process.
    pub fn of_small_segments(name: &str, settings: &str) -> Self {
        Self::start_in(
            Self::directory_of(name),
            &[("PG_CLUSTER_CONF", settings.to_owned()), ("PG_CLUSTER_INITDB", "--wal-segsize=1".to_owned())],
        )
    }

    /// Where a cluster of that name is or will be.
    pub fn directory_of(name: &str) -> PathBuf {
        // Short, and not below a directory that only we may enter: a socket's name has 107 bytes, and the server may run as another user.
        PathBuf::from(format!("/tmp/backup-test-pg.{}.{name}", std::process::id()))
    }

    fn start_in(directory: PathBuf, environment: &[(&str, String)]) -> Self {
        let programs = PathBuf::from(pg_cluster(&["bindir"], &[]).trim_end());
        let pid = std::process::id().to_string();
        pg_cluster(&["start", "--while", &pid, &directory.to_string_lossy()], environment);
        Self { programs, directory }
    }

    /// The directory of the cluster: in it are `data`, `log`, the socket, and in `own` what a test puts there for the server's user.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One of the server's programs, run as the user that the server runs as.
    pub fn as_server(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command =
            Command::new(if rustix::process::geteuid().is_root() { "runuser".as_ref() } else { program.as_os_str() });
        if rustix::process::geteuid().is_root() {
            command.args(["-u", SERVER_USER, "--"]).arg(program);
        }
        command.current_dir(&self.directory).envs(self.environment()).env("PGTZ", "UTC");
        command
    }

    /// Gives a file to the user that the server runs as.
    pub fn give(&self, path: &Path) {
        if rustix::process::geteuid().is_root() {
            let given = Command::new("chown").arg("-R").arg(SERVER_USER).arg(path).status().expect("chown");
            assert!(given.success(), "{}", path.display());
        }
    }

    /// Runs `pg_ctl` for the data directory `data`, which need not be this cluster's own; returns whether it succeeded.
    ///
    /// A copy of the cluster has the same socket: stop this one first.
    pub fn control(&self, data: &Path, arguments: &[&str]) -> bool {
        let mut command = self.as_server("pg_ctl");
        command.args(arguments).arg("-D").arg(data).arg("-l").arg(self.directory.join("log")).args(["-w", "-s"]);
        // A server holds on to the pipes that it was given.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().expect("pg_ctl starts").success()
    }

    /// Makes `host` a client: this server's programs come first in its `PATH`, and libpq's environment leads to the server.
    pub fn serve(&self, host: &mut Host) {
        let path = std::env::var("PATH").unwrap_or_default();
        host.set("PATH", format!("{}:{path}", self.programs.display()));
        for (name, value) in self.environment() {
            host.set(name, value);
        }
    }

    fn environment(&self) -> [(&'static str, String); 3] {
        let directory = self.directory.display().to_string();
        [("PGHOST", directory), ("PGPORT", "5432".to_owned()), ("PGUSER", "postgres".to_owned())]
    }

    /// How the library connects to it, with more parameters.
    ///
    /// # Panics
    /// When libpq would refuse them.
    pub fn options(&self, parameters: &str) -> ConnectOptions {
        let environment =
            self.environment().iter().fold(Environment::empty(), |all, (name, value)| all.with(name, value));
        let conninfo = ConnInfo::parse(parameters).expect("a connection string");
        ConnectOptions::resolve(&conninfo, &environment).expect("options for a connection")
    }

    /// One of the server's programs, connected.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.envs(self.environment()).env("PGTZ", "UTC");
        command
    }

    /// Runs SQL; returns what it selects, a line for each row, columns separated by `|`.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut command = self.program("psql");
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d", database]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql starts");
        child.stdin.take().expect("it was piped").write_all(sql.as_bytes()).expect("psql reads its input");
        let output = child.wait_with_output().expect("psql ends");
        assert!(output.status.success(), "psql -d {database}: {}", output.status);
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    /// Where the server's programs are.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The user and the group that run the server.
    pub fn owner(&self) -> (u32, u32) {
        use std::os::unix::fs::MetadataExt;
        let data = std::fs::metadata(self.directory.join("data")).expect("a data directory");
        (data.uid(), data.gid())
    }

    /// Makes an empty database.
    pub fn create(&self, database: &str) {
        self.sql("postgres", &format!("CREATE DATABASE \"{database}\""));
    }

    /// The names of all databases but those that come with the server.
    pub fn databases(&self) -> Vec<String> {
        let names = self.sql(
            "postgres",
            "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1",
        );
        names.lines().map(str::to_owned).collect()
    }

    /// The database as SQL, with `arguments` to `pg_dump`; without the random token that newer releases put around it.
    pub fn dump(&self, database: &str, arguments: &[&str]) -> String {
        let output = self
            .program("pg_dump")
            .arg("--encoding=UTF8")
            .args(arguments)
            .arg("-d")
            .arg(database)
            .output()
            .expect("pg_dump starts");
        assert!(output.status.success(), "pg_dump {database}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let token = |line: &&str| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ");
        text.lines().filter(|line| !token(line)).flat_map(|line| [line, "\n"]).collect()
    }
}

/// Who runs servers when tests run as root.
pub(crate) const SERVER_USER: &str = "postgres";

/// Runs `scripts/pg-cluster`; returns its standard output.
fn pg_cluster(arguments: &[&str], environment: &[(&str, String)]) -> String {
    // It says itself what is missing and which script installs it.
    try_pg_cluster(arguments, environment).unwrap_or_else(|said| panic!("{said}"))
}

/// The same; when it fails, what it says about it.
fn try_pg_cluster(arguments: &[&str], environment: &[(&str, String)]) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/pg-cluster");
    let variables = environment.iter().map(|(name, value)| (name, value));
    let output = Command::new(&script).args(arguments).envs(variables).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("cannot run {}: {e}", script.display()));
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8(output.stdout).expect("text"))
}
