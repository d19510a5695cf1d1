//! Running the program as somebody would: on a machine of its own, judged by its exit code, its words and its memory.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::data::{Data, Digest};

/// A run that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(240);
/// How often the peak of a running program's memory is read. What it allocates in its last moments may be missed.
const SAMPLE: Duration = Duration::from_millis(4);
/// As much of standard output is kept; the digest covers all of it.
const KEPT_BYTES: usize = 32 << 20;

/// A machine: a home directory, and nothing of the environment in which the tests run.
#[derive(Debug)]
pub struct Host {
    program: PathBuf,
    home: TempDir,
    variables: Vec<(OsString, OsString)>,
}

impl Host {
    /// A machine that has `program` and nothing else. Its repository is named and not yet made.
    pub fn new(program: &str) -> Self {
        let home = tempfile::Builder::new().prefix("backup-test.").tempdir().expect("a temporary directory");
        let mut host = Self { program: program.into(), home, variables: Vec::new() };
        host.set("HOME", host.path("home"));
        host.set("XDG_CONFIG_HOME", host.path("home/.config"));
        host.set("TMPDIR", host.home.path().to_owned());
        host.set("PATH", std::env::var_os("PATH").unwrap_or_default());
        host.set("BACKUP_REPO", host.repository());
        std::fs::create_dir_all(host.path("home")).expect("a home directory");
        host
    }

    /// A machine after `backup init`, with a key of its own and an empty repository in a directory.
    pub fn initialised(program: &str) -> Self {
        let host = Self::new(program);
        host.backup(["init"]).run().succeeded();
        host
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Has another program from here on.
    pub fn set_program(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// A path of this machine's own.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.home.path().join(name)
    }

    /// The directory of the repository.
    pub fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    /// The identity that `backup init` makes.
    pub fn identity_file(&self) -> PathBuf {
        self.path("home/.config/backup/identity.txt")
    }

    /// Sets a variable of the environment for all that is run from here on.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        let name = name.into();
        self.unset(&name);
        self.variables.push((name, value.into()));
    }

    /// Removes a variable again.
    pub fn unset(&mut self, name: impl AsRef<OsStr>) {
        self.variables.retain(|(known, _)| known != name.as_ref());
    }

    /// The variables of the environment that are text.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables.iter().filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
    }

    /// Writes a file, its directories too; returns its path.
    pub fn write(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&path)).expect("directories can be made");
        std::fs::write(&path, contents).expect("a file can be written");
        path
    }

    /// `backup` with these arguments, about to run.
    pub fn backup<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        let mut run = self.command(&self.program);
        run.command.args(arguments);
        run
    }

    /// `backup`, about to run as a user to whom the permissions of files apply: root passes over them otherwise. See [`forbid`](Self::forbid).
    pub fn without_override<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        if !rustix::process::geteuid().is_root() {
            return self.backup(arguments);
        }
        let mut run = self.command("setpriv");
        run.command.arg("--bounding-set=-dac_override,-dac_read_search").arg(&self.program).args(arguments);
        run
    }

    /// Makes a file or directory one that [`without_override`](Self::without_override) may not read.
    pub fn forbid(&self, path: &Path) {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("it is ours");
    }

    /// A shell script in this machine's environment, in which `"$BACKUP"` is the program.
    pub fn shell(&self, script: &str) -> Run {
        let mut run = self.command("sh");
        run.command.arg("-c").arg(script).env("BACKUP", &self.program);
        run
    }

    /// Any other program in this machine's environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Run {
        let mut command = Command::new(program);
        command.env_clear().envs(self.variables.iter().map(|(k, v)| (k, v))).current_dir(self.home.path());
        // Coverage is collected from the programs that tests start, too.
        command.envs(std::env::var_os("LLVM_PROFILE_FILE").map(|v| ("LLVM_PROFILE_FILE", v)));
        Run { command, input: Input::Nothing, unread: false, deadline: DEADLINE }
    }

    /// Saves `data` as `target` and returns the backup's id.
    pub fn save(&self, target: &str, data: impl Into<Input>) -> String {
        self.backup(["save", target]).stdin(data).run().id()
    }

    /// All objects of the repository, by their paths below it, with their contents.
    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let files = files_below(&self.repository());
        files.into_iter().map(|f| (f.clone(), std::fs::read(self.repository().join(f)).expect("readable"))).collect()
    }

    /// The names of all files of the repository but `repository.json` and the records of runs: nothing, where nothing was stored or all was removed.
    pub fn stored(&self) -> Vec<String> {
        files_below(&self.repository())
            .into_iter()
            .filter(|name| name != "repository.json" && !name.starts_with("runs/"))
            .collect()
    }

    /// The records of runs that `backup list --runs` shows.
    pub fn runs(&self) -> Vec<serde_json::Value> {
        let listing = self.backup(["list", "--runs", "--json"]).run().json();
        listing["runs"].as_array().expect("a list of runs").clone()
    }

    /// The ids that `backup list` shows; fails when it shows one that is broken.
    pub fn listed(&self) -> Vec<String> {
        let listing = self.backup(["list", "--json"]).run().json();
        assert_eq!(listing["unreadable"], serde_json::json!([]), "a broken backup is listed");
        let ids = listing["backups"].as_array().expect("a list of backups").iter();
        ids.map(|backup| backup["id"].as_str().expect("an id").to_owned()).collect()
    }
}

/// All objects of a repository in a directory but what is each repository's own: its document, and records of runs.
pub fn shared_objects(repository: &Path) -> Vec<(String, Vec<u8>)> {
    let own = |name: &String| name == "repository.json" || name.starts_with("runs/");
    let names = files_below(repository).into_iter().filter(|name| !own(name));
    names.map(|name| (name.clone(), std::fs::read(repository.join(name)).expect("readable"))).collect()
}

/// Demands that repositories hold the same objects, byte for byte, and at least one.
#[track_caller]
pub fn assert_same_objects(repositories: &[PathBuf]) {
    let mut all = repositories.iter().map(|repository| (repository, shared_objects(repository)));
    let (_, first) = all.next().expect("a repository");
    assert!(!first.is_empty(), "nothing is stored");
    for (repository, objects) in all {
        let names = |objects: &[(String, Vec<u8>)]| objects.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&first), names(&objects), "{}", repository.display());
        let differing = first.iter().zip(&objects).find(|(a, b)| a.1 != b.1).map(|(a, _)| &a.0);
        assert_eq!(differing, None, "{}", repository.display());
    }
}

/// The files below a directory, hidden and temporary ones too, by their paths from there, in order.
pub fn files_below(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for path in entries.filter_map(|entry| entry.ok().map(|e| e.path())) {
            match path.is_dir() && !path.is_symlink() {
                true => directories.push(path),
                false => files.push(path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned()),
            }
        }
    }
    files.sort();
    files
}

/// What a program reads from its standard input.
#[derive(Debug)]
pub enum Input {
    /// Its end.
    Nothing,
    /// Some bytes.
    Bytes(Vec<u8>),
    /// A stream that is made as it is read.
    Data(Data),
    /// A stream that does not end while the program runs.
    Endless(Data),
}

impl From<&str> for Input {
    fn from(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Data> for Input {
    fn from(data: Data) -> Self {
        Self::Data(data)
    }
}

/// A program that is about to run.
#[derive(Debug)]
pub struct Run {
    command: Command,
    input: Input,
    unread: bool,
    deadline: Duration,
}

impl Run {
    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// What it reads from standard input; nothing unless set.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Input>) -> Self {
        self.input = input.into();
        self
    }

    /// The directory in which it runs.
    #[must_use]
    pub fn in_directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Nobody reads its standard output before its end.
    #[must_use]
    pub fn unread(mut self) -> Self {
        self.unread = true;
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.start().wait()
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let stdin = if matches!(self.input, Input::Nothing) { Stdio::null() } else { Stdio::piped() };
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let line = format!("{:?}", self.command);
        let mut child = self.command.spawn().unwrap_or_else(|e| panic!("cannot start {line}: {e}"));
        let stdout = if self.unread { None } else { child.stdout.take() };
        let stderr = child.stderr.take();
        if let Some(stdin) = child.stdin.take() {
            let input = self.input;
            thread::spawn(move || feed(input, stdin));
        }
        Running {
            line,
            child,
            started: Instant::now(),
            deadline: self.deadline,
            stdout: Some(thread::spawn(move || Captured::read(stdout))),
            stderr: Some(thread::spawn(move || Captured::read(stderr))),
        }
    }
}

/// A program that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    started: Instant,
    deadline: Duration,
    stdout: Option<JoinHandle<Captured>>,
    stderr: Option<JoinHandle<Captured>>,
}

impl Running {
    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a child that was not waited for can be signalled");
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Outcome {
        let mut peak_bytes = 0;
        let status = loop {
            peak_bytes = peak_bytes.max(peak_memory(self.child.id()));
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(self.started.elapsed() < self.deadline, "{} does not end", self.line);
            thread::sleep(SAMPLE);
        };
        let elapsed = self.started.elapsed();
        let captured = |reader: Option<JoinHandle<Captured>>| {
            reader.and_then(|thread| thread.join().ok()).expect("output can be read")
        };
        let outcome = Outcome {
            line: std::mem::take(&mut self.line),
            status,
            stdout: captured(self.stdout.take()),
            stderr: String::from_utf8_lossy(&captured(self.stderr.take()).head).into_owned(),
            peak_bytes,
            elapsed,
        };
        for word in ["panicked", "internal error", "RUST_BACKTRACE"] {
            assert!(!outcome.stderr.contains(word), "a bug shows: {outcome}");
        }
        outcome
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it was waited for, as it should have been.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn feed(input: Input, mut stdin: impl Write) {
    // The program may end before its input, and then says why.
    let _ = match input {
        Input::Nothing => Ok(()),
        Input::Bytes(bytes) => stdin.write_all(&bytes),
        Input::Data(data) => copy(data, &mut stdin),
        Input::Endless(data) => copy(data, &mut stdin).map(|()| {
            // Ends with the process of this test, as the program that reads it does.
            loop {
                thread::park();
            }
        }),
    };
}

fn copy(mut data: Data, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        match data.read(&mut buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

/// The most memory that a process has had resident at once, in bytes; 0 when it has ended.
fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().map_or(0, |kib: u64| kib * 1024)
}

/// What was read from a pipe.
#[derive(Debug)]
struct Captured {
    head: Vec<u8>,
    digest: Digest,
}

impl Captured {
    fn read(pipe: Option<impl Read>) -> Self {
        let mut captured = Self { head: Vec::new(), digest: Digest::default() };
        let Some(mut pipe) = pipe else { return captured };
        let mut buffer = vec![0; 1 << 20];
        while let Ok(n @ 1..) = pipe.read(&mut buffer) {
            captured.digest.update(&buffer[..n]);
            let room = KEPT_BYTES.saturating_sub(captured.head.len());
            captured.head.extend_from_slice(&buffer[..n.min(room)]);
        }
        captured
    }
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    line: String,
    status: ExitStatus,
    stdout: Captured,
    /// All of its standard error.
    pub stderr: String,
    /// The most memory it had resident at once, in bytes.
    pub peak_bytes: u64,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Outcome {
    /// The exit code; `None` when a signal killed it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that killed it.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Its standard output.
    pub fn stdout(&self) -> &[u8] {
        assert_eq!(self.stdout.head.len() as u64, self.stdout.digest.len(), "too long to be kept");
        &self.stdout.head
    }

    /// Its standard output as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.stdout()).expect("text on standard output")
    }

    /// Digest and length of its standard output, however long.
    pub fn digest(&self) -> &Digest {
        &self.stdout.digest
    }

    /// Demands success.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code(), Some(0), "{self}");
        self
    }

    /// Demands this exit code, and an error on standard error.
    #[track_caller]
    pub fn failed(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self}");
        assert!(self.stderr.contains("error: "), "no error is told: {self}");
        self
    }

    /// Demands that standard error holds this.
    #[track_caller]
    pub fn saying(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "'{words}' is missing: {self}");
        self
    }

    /// Demands that a hint was given, with these words.
    #[track_caller]
    pub fn hinting(self, words: &str) -> Self {
        let hinted = self.stderr.lines().any(|line| line.contains("hint: ") && line.contains(words));
        assert!(hinted, "no hint with '{words}': {self}");
        self
    }

    /// Demands success and an id, and nothing else, on standard output; returns it.
    #[track_caller]
    pub fn id(self) -> String {
        let this = self.succeeded();
        let id = this.text().strip_suffix('\n').unwrap_or_default();
        let parsed = id.parse::<backup_core::repository::layout::BackupId>();
        assert!(parsed.is_ok(), "not an id and a line end: {this}");
        id.to_owned()
    }

    /// Demands success and a JSON document on standard output.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let this = self.succeeded();
        serde_json::from_str(this.text()).unwrap_or_else(|e| panic!("no JSON ({e}): {this}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = &self.stdout.head[..self.stdout.head.len().min(1000)];
        writeln!(f, "{} in {:?}: {}", self.status, self.elapsed, self.line)?;
        writeln!(f, "standard output, {} bytes: {}", self.stdout.digest.len(), head.escape_ascii())?;
        write!(f, "standard error: {}", self.stderr)
    }
}
