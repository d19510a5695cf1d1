//! The policies of `deploy/iam`, at a store that enforces them: each role can do its work, and nothing else.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use backup_tests::decoder::interpreter;
use backup_tests::host::{Host, Run};
use object_store::aws::AmazonS3Builder;
use object_store::multipart::MultipartStore;

use crate::BACKUP;

/// moto, with a user for each role. It enforces actions and resources, and no conditions: `s3:prefix` is not tried here.
struct Store {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    address: String,
    keys: serde_json::Value,
}

impl Store {
    fn start() -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut process = Command::new(interpreter())
            .arg(tests.join("iam/store.py"))
            .arg(tests.join("../deploy/iam"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("no python3; run: scripts/install-deps test");
        let (input, output) = (process.stdin.take(), process.stdout.take().unwrap());
        let mut store = Self {
            process,
            input,
            output: BufReader::new(output),
            address: String::new(),
            keys: serde_json::Value::Null,
        };
        store.address = store.line();
        store.keys = serde_json::from_str(&store.line()).expect("keys");
        store
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("moto speaks");
        assert!(!line.is_empty(), "moto does not start; run: scripts/install-deps test");
        line.trim().to_owned()
    }

    fn enforce(&mut self) {
        self.input.as_mut().unwrap().write_all(b"now\n").unwrap();
        assert_eq!(self.line(), "enforced");
    }

    /// Begins an upload with the keys of a role, and does not complete it.
    fn begin_upload(&self, role: &str, object: &str) {
        let [id, secret] = [0, 1].map(|i| self.keys[role][i].as_str().expect("keys").to_owned());
        // No TLS is spoken here, but no client is built without it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = AmazonS3Builder::new()
            .with_bucket_name("backups")
            .with_endpoint(&self.address)
            .with_allow_http(true)
            .with_access_key_id(id)
            .with_secret_access_key(secret)
            .build()
            .expect("a client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let object = format!("db1/{object}").into();
        runtime.block_on(client.create_multipart(&object)).expect("it may");
    }

    /// The program with the keys of a role.
    fn by(&self, host: &Host, role: &str, arguments: &[&str]) -> Run {
        let key = |i: usize| self.keys[role][i].as_str().unwrap_or("root").to_owned();
        host.backup(arguments)
            .env("BACKUP_REPO", "s3://backups/db1")
            .env("AWS_ENDPOINT_URL", &self.address)
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", key(0))
            .env("AWS_SECRET_ACCESS_KEY", key(1))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn each_role_can_do_its_work_and_is_denied_the_rest() {
    let mut store = Store::start();
    let host = Host::new(BACKUP);
    store.by(&host, "root", &["init"]).run().succeeded();
    store.enforce();
    let by = |role: &str, arguments: &[&str]| store.by(&host, role, arguments).stdin("some data").run();

    // Without a warning, so with its mark removed and its record written.
    let saved = by("writer", &["save", "app"]);
    assert!(!saved.stderr.contains("warning"), "{saved}");
    let id = saved.id();
    by("writer", &["list"]).succeeded();
    by("writer", &["verify", &id]).succeeded();

    let restored = by("reader", &["restore", "app", "--to-stdout"]).succeeded();
    assert_eq!(restored.stdout(), b"some data");
    assert!(!restored.stderr.contains("warning"), "{restored}");
    by("reader", &["verify", &id, "--deep"]).succeeded();
    by("reader", &["save", "app"]).failed(2).saying("403");

    by("auditor", &["verify", "--all"]).succeeded();
    let runs = by("auditor", &["list", "--runs"]).succeeded();
    assert!(runs.text().contains("restore") && runs.text().contains("verify --deep"), "{runs}");
    by("auditor", &["save", "app"]).failed(2).saying("403");
    // Here it has the identity, which an auditor has not.
    by("auditor", &["restore", "app", "--to-stdout"]).succeeded().saying("this run is not recorded");

    by("pruner", &["list"]).succeeded();
    // What a killed run left; to moto it is old.
    let upload = "20260101T000000Z-abcdefghijklmnop/data.00000.vol";
    store.begin_upload("writer", &format!("app/backups/{upload}"));
    by("auditor", &["prune", "--dry-run"]).succeeded().saying("unfinished uploads are left alone");
    let pruned = by("pruner", &["prune"]).succeeded().saying("1 unfinished uploads aborted");
    assert!(!pruned.stderr.contains("warning"), "{pruned}");
    by("pruner", &["prune"]).succeeded();
    by("pruner", &["pin", &id, "--reason", "x"]).failed(2).saying("403");
    // Who may create may replace, and a pin that is over would take the place of one that holds.
    by("writer", &["pin", &id, "--reason", "x"]).failed(2).saying("403");
    let pinned = by("pinner", &["pin", &id, "--reason", "kept"]).succeeded();
    assert!(!pinned.stderr.contains("warning"), "{pinned}");
    for role in ["writer", "pruner", "reader"] {
        by(role, &["unpin", &id]).failed(2).saying("403");
    }
    by("pinner", &["unpin", &id]).succeeded().saying("1 removed");
    by("pinner", &["save", "app"]).failed(2).saying("403");
    by("writer", &["prune"]).succeeded();
    by("auditor", &["prune"]).failed(2).saying("403");
    by("auditor", &["prune", "--dry-run", "--explain"]).succeeded().saying("1 backups kept");
    by("pruner", &["save", "app"]).failed(2).saying("403");
    let listed = by("auditor", &["list", "--json"]).json();
    assert_eq!(listed["backups"].as_array().unwrap().len(), 1, "nothing was left that looks like a backup: {listed}");
}
