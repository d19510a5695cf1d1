//! A site: servers, and the program beside them, run by one user, with a repository and a key that both can reach.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::host::{Host, Run};
use crate::postgres::{NewServer, SERVER_USER, Server};

/// The target that everything belongs to.
pub const TARGET: &str = "app";

/// A host on which the program runs as the user who runs the servers: what one writes the other can read.
#[derive(Debug)]
pub struct Site {
    host: Host,
}

impl Site {
    /// A site with a repository in a directory, and a key.
    pub fn new(program: &str) -> Self {
        let site = Self::with(program, |_| ());
        site.host.backup(["init"]).run().succeeded();
        site
    }

    /// A site with what `prepare` sets, and nothing made yet.
    ///
    /// # Panics
    /// When files cannot be made.
    pub fn with(program: &str, prepare: impl FnOnce(&mut Host)) -> Self {
        // A program of the host's own, since the other may lie where the servers' user may not go.
        let mut host = Host::new("backup");
        let (own, script) = (host.path("program"), host.path("backup"));
        std::fs::copy(program, &own).expect("a copy of the program");
        let whom = if rustix::process::geteuid().is_root() {
            format!("setpriv --reuid={SERVER_USER} --regid={SERVER_USER} --init-groups ")
        } else {
            String::new()
        };
        // PostgreSQL runs it, too, and is that user already.
        let text =
            format!("#!/bin/sh\n[ $(id -u) = 0 ] || exec '{0}' \"$@\"\nexec {whom}'{0}' \"$@\"\n", own.display());
        std::fs::write(&script, text).expect("a script");
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("ours");
        host.set_program(script);
        host.set("BACKUP_TARGET", TARGET);
        prepare(&mut host);
        let site = Self { host };
        site.give(&site.host.path(""));
        site
    }

    /// The host. What it runs belongs to the servers' user, what a test writes there does not; see [`give`](Self::give).
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The host, to change its environment.
    pub fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }

    /// A path of the host's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.host.path(name)
    }

    /// Gives a file, or a directory with all that is in it, to the servers' user.
    ///
    /// # Panics
    /// When that fails.
    pub fn give(&self, path: &Path) {
        if rustix::process::geteuid().is_root() {
            let given = Command::new("chown").arg("-R").arg(format!("{SERVER_USER}:")).arg(path).status();
            assert!(given.expect("chown").success(), "{}", path.display());
        }
    }

    /// How a server calls the program: a command line to which arguments can be added.
    pub fn command(&self) -> String {
        let variables = self
            .host
            .environment()
            .filter(|(name, _)| ["BACKUP_", "AWS_"].iter().any(|prefix| name.starts_with(prefix)) || *name == "HOME");
        let variables: Vec<String> = variables.map(|(name, value)| format!("{name}={value}")).collect();
        let identity = self.host.identity_file();
        format!(
            "env {} BACKUP_IDENTITY_FILE={} {}",
            variables.join(" "),
            identity.display(),
            self.host.program().display()
        )
    }

    /// A server that archives here.
    pub fn archiving(&self, server: NewServer) -> NewServer {
        server.setting("archive_mode", "on").setting("archive_command", &format!("{} wal push %p", self.command()))
    }

    /// Backs `server` up; returns the backup's id.
    pub fn back_up(&self, server: &Server) -> String {
        self.saving(server).run().id()
    }

    /// A backup of `server`, about to be taken.
    pub fn saving(&self, server: &Server) -> Run {
        self.host.backup(["save", TARGET, "--base-backup", &server.conninfo()])
    }

    /// A restore in the place of a server's data directory, about to run. The server is stopped, and all of its data is gone.
    ///
    /// # Panics
    /// When it does not stop, or cannot be removed.
    pub fn restoring(&self, server: &Server) -> Run {
        server.stop();
        std::fs::remove_dir_all(server.data()).expect("its data directory");
        let tablespaces = std::fs::read_dir(server.tablespaces()).into_iter().flatten().flatten();
        for held in tablespaces.flat_map(|tablespace| std::fs::read_dir(tablespace.path()).expect("a directory")) {
            std::fs::remove_dir_all(held.expect("it can be listed").path()).expect("what a tablespace holds");
        }
        self.host.backup(["restore", TARGET, "--archive-mode", "off", "--to"]).args([server.data()])
    }
}

/// Ends the present segment of a server, and waits until all that waits is archived. Which file was archived last tells nothing: after a
/// promotion it may be the old timeline's.
///
/// # Panics
/// When it is not, in two minutes.
pub async fn archived(server: &Server) {
    // A segment without a record is not ended.
    server.sql("SELECT pg_logical_emit_message(false, 'archived', '')").await;
    server.sql("SELECT pg_switch_wal()").await;
    let question = "SELECT count(*) = 0 FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    until("all is archived", server, question).await;
}

/// Waits until the server has recovered, and takes writes.
///
/// # Panics
/// When it does not, in two minutes; the message has its log.
pub async fn opened(server: &Server) {
    until("it opens", server, "SELECT NOT pg_is_in_recovery()").await;
}

/// Waits until a question is answered with yes.
///
/// # Panics
/// When it is not, in two minutes; the message has the server's log.
pub async fn until(what: &str, server: &Server, question: &str) {
    let begun = Instant::now();
    while server.value(question).await != "t" {
        assert!(begun.elapsed() < Duration::from_secs(120), "never: {what}\n{}", server.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
