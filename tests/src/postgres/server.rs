//! A server of a test's own: of any major version, with its settings, files and fate.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backup_core::postgres::ConnInfo;
use backup_core::postgres::wire::{ConnectOptions, Connection, Environment, Mode, Row};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{SERVER_USER, pg_cluster, try_pg_cluster};
use crate::port::Port;

/// The majors that tests can have: 15 comes from the distribution, the others below `target/postgres`.
pub const MAJORS: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// A server that is about to be made.
#[derive(Debug)]
pub struct NewServer {
    programs: PathBuf,
    settings: String,
    initdb: Vec<String>,
    files: TempDir,
    from: Option<String>,
}

/// A running server, reached by a Unix socket and, on the loopback interface, by TCP. It ends with this process, however that ends.
#[derive(Debug)]
pub struct Server {
    programs: PathBuf,
    directory: PathBuf,
    port: Port,
}

impl NewServer {
    /// A server of that major version.
    ///
    /// # Panics
    /// When it is not installed; the message names the script that does it.
    pub fn of_major(major: u32) -> Self {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/postgres/{major}/bin"));
        let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
        let found = [own, debian].into_iter().find(|programs| programs.join("initdb").exists());
        let programs = found.unwrap_or_else(|| panic!("no PostgreSQL {major}: run scripts/install-deps test"));
        Self {
            programs: executable(std::fs::canonicalize(programs).expect("it exists"), major),
            settings: String::new(),
            initdb: Vec::new(),
            files: tempfile::tempdir().expect("a temporary directory"),
            from: None,
        }
    }

    /// With a line of `postgresql.conf`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        self
    }

    /// With an option of `initdb`, such as `--wal-segsize=1`; without spaces in it.
    #[must_use]
    pub fn initdb(mut self, option: &str) -> Self {
        self.initdb.push(option.to_owned());
        self
    }

    /// With a file in the data directory, for the server's eyes only: `pg_hba.conf`, `server.key`, …
    ///
    /// # Panics
    /// When the disk is full.
    #[must_use]
    pub fn file(self, name: &str, contents: &str) -> Self {
        std::fs::write(self.files.path().join(name), contents).expect("a file can be written");
        self
    }

    /// As a standby of another server. `pg_basebackup` makes it, which the distribution has for its own major version and older ones.
    #[must_use]
    pub fn standby_of(mut self, primary: &Server) -> Self {
        let directory = primary.directory.display();
        self.from = Some(format!("host={directory} port={} user=postgres", primary.port()));
        self
    }

    /// Makes and starts it.
    ///
    /// # Panics
    /// When it does not start; the message has its log.
    pub fn start(self) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = PathBuf::from(format!("/tmp/backup-test-pg.{process}.{number}"));
        let port = Port::take();
        let settings = format!("listen_addresses = '127.0.0.1'\nport = {}\n{}", port.number(), self.settings);
        let new = self.file("postgresql.conf", &settings);
        let mut environment = vec![
            ("PG_CLUSTER_FILES", new.files.path().display().to_string()),
            ("PG_CLUSTER_INITDB", new.initdb.join(" ")),
        ];
        environment.extend(new.from.map(|from| ("PG_CLUSTER_FROM", from)));
        let server = Server { programs: new.programs, directory, port };
        server.control_with(&["start", "--while", &process.to_string()], &environment);
        server
    }
}

impl Server {
    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// Where tablespaces can be made, each in a directory that the server has to make first. They go with the server.
    pub fn tablespaces(&self) -> PathBuf {
        self.directory.join("tablespaces")
    }

    /// Where its programs are.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// A directory that only the server's user and root can use, for a tablespace. It goes with the server.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make_tablespace_directory(&self, name: &str) -> PathBuf {
        let location = self.tablespaces().join(name);
        std::fs::create_dir_all(&location).expect("a new directory");
        let owner = std::fs::metadata(self.data()).expect("a data directory");
        for made in [&self.tablespaces(), &location] {
            std::os::unix::fs::chown(made, Some(owner.uid()), Some(owner.gid())).expect("only root runs it as another");
        }
        location
    }

    /// The directory of its socket.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its port, in the socket's name too.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// How the library connects to it: as `postgres` by the socket, unless the parameters say otherwise.
    ///
    /// # Panics
    /// When libpq would refuse them.
    pub fn options(&self, parameters: &str) -> ConnectOptions {
        let environment = Environment::empty().with("PGUSER", "postgres").with("PGPORT", &self.port().to_string());
        let conninfo = ConnInfo::parse(parameters).expect("a connection string");
        let environment = environment.with("PGHOST", &self.directory.display().to_string());
        ConnectOptions::resolve(&conninfo, &environment).expect("options for a connection")
    }

    /// Runs SQL; returns its rows.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn sql(&self, sql: &str) -> Vec<Row> {
        let mut connection =
            Connection::connect(&self.options("dbname=postgres"), Mode::Sql).await.expect("a connection");
        connection.query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"))
    }

    /// Runs SQL that selects one value; returns that. Null is empty.
    ///
    /// # Panics
    /// When the server refuses it, or it selects nothing.
    pub async fn value(&self, sql: &str) -> String {
        self.sql(sql).await[0][0].clone().unwrap_or_default()
    }

    /// A connection string for clients, by the socket.
    pub fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres", self.directory.display(), self.port())
    }

    /// Runs a program of the distribution's PostgreSQL as a client of this server; returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn client(&self, name: &str, arguments: &[&str]) -> String {
        let program = Path::new("/usr/lib/postgresql/15/bin").join(name);
        let mut command = Command::new(&program);
        command.env("PGHOST", &self.directory).env("PGPORT", self.port().to_string()).env("PGUSER", "postgres");
        let output = command.args(arguments).output().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name} {arguments:?}: {said}\n{complained}");
        said.into_owned()
    }

    /// Stops it in order.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&self) {
        self.control_with(&["stop"], &[]);
    }

    /// Starts it again.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(&self) {
        self.control_with(&["start"], &[]);
    }

    /// Starts it again, though it may not start, and waits until it has stopped by itself. It may have let clients read before.
    ///
    /// # Panics
    /// When it goes on running for a minute and a half; the message has its log.
    pub fn start_and_fail(&self) {
        let _ = try_pg_cluster(&["start", &self.directory.to_string_lossy()], &self.environment());
        let started = Instant::now();
        while self.data().join("postmaster.pid").exists() {
            assert!(started.elapsed() < Duration::from_secs(90), "it does not stop: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills all its processes at once, as a power failure would. There is no server afterwards, and nothing was flushed.
    ///
    /// # Panics
    /// When it does not run, or when this user may not kill it.
    pub fn kill(&self) {
        let pid = std::fs::read_to_string(self.data().join("postmaster.pid")).expect("it runs");
        let main: i32 = pid.lines().next().and_then(|line| line.parse().ok()).expect("a process id");
        let children = children(main);
        for process in std::iter::once(main).chain(children.iter().copied()) {
            let gone = kill_process(Pid::from_raw(process).expect("no process is 0"), Signal::KILL);
            assert!(process != main || gone.is_ok(), "{gone:?}");
        }
        let started = Instant::now();
        while std::iter::once(main).chain(children.iter().copied()).any(is_alive) {
            assert!(started.elapsed() < Duration::from_secs(30), "it does not die");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Where nobody reaps the dead, as in many containers, a new server would take this one for alive.
        std::fs::remove_file(self.data().join("postmaster.pid")).expect("it left that file");
        for entry in std::fs::read_dir(&self.directory).expect("its directory").flatten() {
            if entry.file_name().to_string_lossy().starts_with(".s.PGSQL.") {
                std::fs::remove_file(entry.path()).expect("its socket and the lock of it");
            }
        }
    }

    fn control_with(&self, arguments: &[&str], environment: &[(&str, String)]) {
        let directory = self.directory.to_string_lossy();
        let arguments: Vec<&str> = arguments.iter().copied().chain([&*directory]).collect();
        let environment: Vec<_> = environment.iter().cloned().chain(self.environment()).collect();
        pg_cluster(&arguments, &environment);
    }

    fn environment(&self) -> [(&'static str, String); 1] {
        [("PG_BINDIR", self.programs.display().to_string())]
    }
}

/// Programs that the user who runs servers can execute: those that are there, or, if they lie below a directory that only we may enter, a
/// copy of them that all tests share.
fn executable(programs: PathBuf, major: u32) -> PathBuf {
    let runs = |programs: &Path| {
        let mut command = Command::new("runuser");
        command.args(["-u", SERVER_USER, "--"]).arg(programs.join("initdb")).arg("--version").current_dir("/");
        command.output().is_ok_and(|output| output.status.success())
    };
    if !rustix::process::geteuid().is_root() || runs(&programs) {
        return programs;
    }
    let installed = programs.join("postgres").metadata().expect("a server").mtime();
    let copy = PathBuf::from(format!("/tmp/backup-test-postgres.{major}.{installed}"));
    if !copy.exists() {
        let new = copy.with_extension(format!("{installed}.{}", std::process::id()));
        let copied = Command::new("cp").arg("-a").arg(programs.parent().expect("a directory")).arg(&new).status();
        assert!(copied.is_ok_and(|status| status.success()), "cannot copy {}", programs.display());
        // Another test may have been faster.
        if std::fs::rename(&new, &copy).is_err() {
            std::fs::remove_dir_all(&new).expect("ours");
        }
    }
    copy.join("bin")
}

/// The processes that a process has started and that have not ended. Linux only.
fn children(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").expect("a /proc").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|&id| status(id).is_some_and(|(_, of)| of == parent)).collect()
}

/// Whether a process runs. One that has ended and was not waited for does not.
fn is_alive(process: i32) -> bool {
    status(process).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// State and parent of a process. The name before them may have anything in it, parentheses too.
fn status(process: i32) -> Option<(String, i32)> {
    let line = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let mut fields = line.rsplit_once(") ")?.1.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
