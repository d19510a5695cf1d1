//! Base backups as `pg_basebackup` makes them, and clusters that were restored from them.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use backup_core::format::{ClusterEntry, Kind, Manifest};
use backup_core::keys::Recipient;
use backup_core::keys::age::AgeIdentity;
use backup_core::pipeline::{Backup, Findings};
use backup_core::postgres::wal::{SegmentSize, SystemIdentifier, Timeline};
use backup_core::repository::Repository;
use backup_core::source::BytesSource;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host::Host;
use crate::postgres::{Cluster, Server};

/// A base backup in memory, in the streams that one is stored in. Tests change it before they store it.
#[derive(Debug, Clone)]
pub struct BaseBackup {
    /// Streams by their names, but `backup_manifest`.
    pub streams: Vec<(String, Vec<u8>)>,
    /// PostgreSQL's manifest.
    pub backup_manifest: Vec<u8>,
    /// What the manifest is to say of the cluster.
    pub cluster: ClusterEntry,
    /// OID and location of each tablespace.
    pub tablespaces: Vec<(u32, String)>,
    /// How the tar streams are compressed, by the name for the details.
    pub compression: Option<&'static str>,
}

impl BaseBackup {
    /// Takes one of a running cluster, with its log.
    ///
    /// # Panics
    /// When that fails.
    pub fn take(cluster: &Cluster) -> Self {
        Self::take_with(cluster, &[])
    }

    /// The same, with more arguments to `pg_basebackup`.
    pub fn take_with(cluster: &Cluster, arguments: &[&str]) -> Self {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let to = temp.path().join("backup");
        let mut command = cluster.program("pg_basebackup");
        command.args(["-Ft", "-Xstream", "-cfast", "--no-sync", "-D"]).arg(&to).args(arguments);
        let output = command.output().expect("pg_basebackup starts");
        assert!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        let stopped = cluster.sql(
            "postgres",
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')",
        );

        let select = "SELECT oid || '=' || pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''";
        let tablespaces = cluster.sql("postgres", select);
        let tablespaces: Vec<(u32, String)> = tablespaces
            .lines()
            .map(|line| line.split_once('=').map(|(oid, path)| (oid.parse().expect("an OID"), path.to_owned())))
            .map(|tablespace| tablespace.expect("a pair"))
            .collect();
        let mut backup_manifest = fs::read(to.join("backup_manifest")).expect("a manifest");
        let mut base = fs::read(to.join("base.tar")).expect("the data directory");
        if !tablespaces.is_empty() {
            // pg_basebackup asks for a map in the place of links.
            base = with_links(&base, &tablespaces);
            backup_manifest =
                edit_manifest(&backup_manifest, |lines| lines.retain(|l| !l.contains("\"tablespace_map\"")));
        }
        let mut streams = vec![("base".to_owned(), base)];
        for (oid, _) in &tablespaces {
            streams.push((format!("tablespace-{oid}"), fs::read(to.join(format!("{oid}.tar"))).expect("a tablespace")));
        }
        if let Ok(log) = fs::read(to.join("pg_wal.tar")) {
            streams.push(("pg_wal".to_owned(), log));
        }
        let has_log = streams.iter().any(|(name, _)| name == "pg_wal");
        let cluster = entry(cluster, &backup_manifest, &stopped, has_log);
        Self { streams, backup_manifest, cluster, tablespaces, compression: None }
    }

    /// A stream.
    pub fn stream(&mut self, name: &str) -> &mut Vec<u8> {
        let stream = self.streams.iter_mut().find(|(other, _)| other == name);
        stream.map(|(_, bytes)| bytes).unwrap_or_else(|| panic!("no stream {name}"))
    }

    /// Stores it as `target` in the host's repository; returns the id.
    pub fn store(&self, host: &Host, target: &str) -> String {
        self.store_with_identity(&host.repository(), &host.identity_file(), target)
    }

    /// The same in the repository of a directory, with the key of an identity file.
    pub fn store_with_identity(&self, repository: &Path, identity: &Path, target: &str) -> String {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(self.store_in(repository, identity, target)).expect("it can be stored").id
    }

    async fn store_in(&self, repository: &Path, identity: &Path, target: &str) -> backup_core::Result<Manifest> {
        let repository = Repository::open(&repository.to_string_lossy().parse()?).await?;
        let identity = AgeIdentity::load(identity)?;
        let findings = Findings::default();
        findings.set_cluster(self.cluster.clone());
        let recipients = identity.recipients().into_iter().map(|r| Arc::new(r) as Arc<dyn Recipient>);
        let mut backup = Backup::new(repository, target.parse()?)
            .kind(Kind::BaseBackup)
            .recipients(recipients)
            .findings(findings)
            .details(self.details());
        for (name, bytes) in &self.streams {
            backup = backup.stream(name.parse()?, BytesSource::new(bytes.clone()));
        }
        backup = backup.stream("backup_manifest".parse()?, BytesSource::new(self.backup_manifest.clone()));
        backup.start()?.wait().await
    }

    fn details(&self) -> Value {
        let tablespaces: Vec<Value> =
            self.tablespaces.iter().map(|(oid, location)| json!({"oid": oid, "location": location})).collect();
        json!({"server_version": "test", "tablespaces": tablespaces, "compression": self.compression})
    }
}

fn entry(cluster: &Cluster, manifest: &[u8], stopped: &str, wal_included: bool) -> ClusterEntry {
    let manifest: Value = serde_json::from_slice(manifest).expect("JSON");
    let ranges = manifest["WAL-Ranges"].as_array().expect("ranges").clone();
    let lsn = |value: &Value| value.as_str().expect("a text").parse().expect("an LSN");
    let last = ranges.last().expect("a range");
    let timeline = last["Timeline"].as_u64().and_then(|n| Timeline::new(u32::try_from(n).ok()?));
    let system: SystemIdentifier =
        cluster.sql("postgres", "SELECT system_identifier FROM pg_control_system()").parse().expect("an identifier");
    let number = |sql: &str| cluster.sql("postgres", sql).parse::<u32>().expect("a number");
    ClusterEntry {
        system_identifier: system,
        server_version_num: number("SELECT current_setting('server_version_num')"),
        wal_segment_bytes: SegmentSize::new(number("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'"))
            .expect("a segment size"),
        timeline: timeline.expect("a timeline"),
        start_lsn: lsn(&ranges[0]["Start-LSN"]),
        stop_lsn: lsn(&last["End-LSN"]),
        stopped: stopped.parse().expect("a time"),
        wal_included,
    }
}

/// The manifest with its lines of files changed, and its checksum made anew.
///
/// # Panics
/// When it is not one.
pub fn edit_manifest(manifest: &[u8], edit: impl FnOnce(&mut Vec<String>)) -> Vec<u8> {
    let text = std::str::from_utf8(manifest).expect("text");
    let (head, rest) = text.split_once("\"Files\": [\n").expect("files");
    let (files, tail) = rest.split_once("\n],\n").expect("an end of files");
    let (tail, _) = tail.split_once("\"Manifest-Checksum\"").expect("a checksum");
    let mut lines: Vec<String> = files.lines().map(|line| line.trim_end_matches(',').to_owned()).collect();
    edit(&mut lines);
    with_checksum(&format!("{head}\"Files\": [\n{}\n],\n{tail}", lines.join(",\n")))
}

/// A manifest with these lines of files, for a backup that needs the log from 0/2000028 to 0/2000100 on the first timeline.
pub fn sealed_manifest(lines: &[String]) -> Vec<u8> {
    let range = "{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }";
    let files = lines.join(",\n");
    with_checksum(&format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n{range}\n],\n"
    ))
}

fn with_checksum(text: &str) -> Vec<u8> {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{text}\"Manifest-Checksum\": \"{hex}\"}}\n").into_bytes()
}

/// A tar stream with its entries changed: each is kept as the bytes that `edit` makes of it, or left out.
pub fn edit_tar(tar: &[u8], mut edit: impl FnMut(&mut tar::Header, &str, Vec<u8>) -> Option<Vec<u8>>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().expect("a tar stream") {
        let mut entry = entry.expect("an entry");
        let (mut header, path) = (entry.header().clone(), entry.path().expect("a path").to_string_lossy().into_owned());
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents).expect("contents");
        if let Some(contents) = edit(&mut header, &path, contents) {
            if header.entry_type().is_file() {
                header.set_size(contents.len() as u64);
            }
            header.set_cksum();
            builder.append(&header, &contents[..]).expect("in memory");
        }
    }
    builder.into_inner().expect("in memory")
}

/// A tar stream with one more entry at its beginning. The path is taken as it is, however hostile.
pub fn prepend(tar: &[u8], path: &str, kind: tar::EntryType, link: &str, contents: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_mode(0o600);
    header.set_uid(65534);
    header.set_gid(65534);
    header.set_mtime(0);
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(contents);
    out.resize(out.len().next_multiple_of(512), 0);
    out.extend_from_slice(tar);
    out
}

fn with_links(base: &[u8], tablespaces: &[(u32, String)]) -> Vec<u8> {
    let base = edit_tar(base, |_, path, contents| (path != "tablespace_map").then_some(contents));
    tablespaces.iter().fold(base, |tar, (oid, location)| {
        prepend(&tar, &format!("pg_tblspc/{oid}"), tar::EntryType::Symlink, location, b"")
    })
}

/// A directory that the user who runs servers can reach, removed with all that is in it.
#[derive(Debug)]
pub struct PublicDir(TempDir);

impl PublicDir {
    /// A new one, with a name short enough for sockets.
    ///
    /// # Panics
    /// When it cannot be made.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("backup-pg.").tempdir_in("/tmp").expect("a temporary directory");
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        Self(temp)
    }

    /// A new directory in it, for the user who runs the server.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn for_server(&self, cluster: &Cluster, name: &str) -> PathBuf {
        let (uid, gid) = cluster.owner();
        fs::create_dir(self.path(name)).expect("a new directory");
        std::os::unix::fs::chown(self.path(name), Some(uid), Some(gid)).expect("only root runs it as another");
        self.path(name)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// A restored cluster, that can be started. It is stopped when this is dropped.
#[derive(Debug)]
pub struct Restored {
    programs: PathBuf,
    data: PathBuf,
    socket: TempDir,
}

impl Restored {
    /// The cluster in `data`, run by the programs of `cluster`.
    ///
    /// # Panics
    /// When no directory can be made for its socket.
    pub fn new(cluster: &Cluster, data: &Path) -> Self {
        Self::with(cluster.programs(), data)
    }

    /// The cluster in `data`, run by the programs of `server`. Those of other majors than the distribution's are few.
    pub fn of_server(server: &Server, data: &Path) -> Self {
        Self::with(server.programs(), data)
    }

    fn with(programs: &Path, data: &Path) -> Self {
        let socket = tempfile::Builder::new().prefix("backup-pg.").tempdir_in("/tmp").expect("a temporary directory");
        fs::set_permissions(socket.path(), fs::Permissions::from_mode(0o777)).expect("ours");
        Self { programs: programs.to_owned(), data: data.to_owned(), socket }
    }

    /// The directory of its socket, when it runs.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// One of the server's programs, run by the user who may: PostgreSQL refuses to run as root.
    pub fn server_program(&self, name: &str) -> Command {
        let program = self.programs.join(name);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/tmp").env("PGHOST", self.socket.path()).env("PGUSER", "postgres").env("PGTZ", "UTC");
        command
    }

    /// Starts the server; returns what `pg_ctl` says. Set `options` for it, as in `-c name=value`.
    pub fn start(&self, options: &str) -> Output {
        let options = format!("-k {} -p 5432 -c listen_addresses= {options}", self.socket.path().display());
        let mut command = self.server_program("pg_ctl");
        command
            .args(["start", "-w", "-t", "120", "-s", "-D"])
            .arg(&self.data)
            .arg("-l")
            .arg(self.socket.path().join("log"));
        command.arg("-o").arg(options).output().expect("pg_ctl starts")
    }

    /// Starts the server, and demands that it is up.
    ///
    /// # Panics
    /// When it is not, with its log.
    #[track_caller]
    pub fn started(self) -> Self {
        let output = self.start("");
        assert!(output.status.success(), "the restored cluster does not start: {}", self.log());
        self
    }

    /// What the server logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.socket.path().join("log")).unwrap_or_default()
    }

    /// Runs SQL; returns what it selects.
    ///
    /// # Panics
    /// When the server refuses it.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let psql = Some(self.programs.join("psql")).filter(|psql| psql.exists()).unwrap_or_else(|| "psql".into());
        let mut command = Command::new(psql);
        command.env("PGHOST", self.socket.path()).env("PGUSER", "postgres").env("PGTZ", "UTC");
        let output =
            command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]).output().expect("psql starts");
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// What `pg_verifybackup` says of the directory; empty when all is well.
    pub fn verify(&self) -> String {
        let output = self.server_program("pg_verifybackup").arg("-q").arg(&self.data).output().expect("it starts");
        String::from_utf8_lossy(&output.stderr).into_owned() + if output.status.success() { "" } else { "failed" }
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        if self.data.join("postmaster.pid").exists() {
            let mut command = self.server_program("pg_ctl");
            let _ = command.args(["stop", "-m", "immediate", "-w", "-s", "-D"]).arg(&self.data).output();
        }
    }
}

/// Compresses bytes with an ordinary program.
///
/// # Panics
/// When it fails.
pub fn compressed(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    let (mut stdin, bytes) = (child.stdin.take().expect("piped"), bytes.to_vec());
    let feeding = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().expect("it ends");
    feeding.join().expect("no panic").expect("it reads all");
    assert!(output.status.success());
    output.stdout
}
