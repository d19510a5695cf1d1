//! What killed runs left of uploads, in stores that keep it.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use backup_tests::gcs::Gcs;
use backup_tests::host::Host;
use backup_tests::moto::Moto;
use backup_tests::s3::{BUCKET, Fault, Rule, S3, ask, ask_with};
use backup_tests::seaweedfs::SeaweedFs;
use serde_json::{Value, json};

use crate::BACKUP;

const DEAD: &str = "20260101T000000Z-abcdefghijklmnop";
const ALIVE: &str = "20260101T000000Z-bcdefghijklmnopq";

/// Begins uploads and completes none: three of a dead run, one of a run that is alive, and one of somebody else.
fn leave_uploads(server: SocketAddr) {
    for (run, stream) in [(DEAD, "base"), (DEAD, "data"), (DEAD, "files"), (ALIVE, "data"), ("photos", "data")] {
        let target = format!("/{BUCKET}/some/prefix/app/backups/{run}/{stream}.00000.vol?uploads=");
        let answer = ask(server, "POST", &target).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("<UploadId>"), "{answer}");
    }
    let mark = format!("/{BUCKET}/some/prefix/app/backups/{ALIVE}/running.json");
    let answer = ask_with(server, "PUT", &mark, &[], "{}").expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

fn aborted(host: &Host, arguments: &[&str]) -> Value {
    let pruned = host.backup(["prune", "--json"]).args(arguments).run().json();
    assert_eq!(pruned["problems"], json!([]), "{pruned}");
    assert_eq!(pruned["uploads"]["refused"], Value::Null, "{pruned}");
    pruned["uploads"]["aborted"].clone()
}

/// A client of a store, with a repository there.
fn initialised(serve: impl FnOnce(&mut Host)) -> Host {
    let mut host = Host::new(BACKUP);
    serve(&mut host);
    host.backup(["init"]).run().succeeded();
    host
}

fn is_left(server: &S3, name: &str) -> bool {
    server.uploads().iter().any(|key| key.contains(name))
}

#[test]
fn uploads_that_are_old_are_aborted_and_those_of_a_live_run_and_of_others_stay() {
    let server = S3::start();
    let host = initialised(|host| server.serve(host));
    leave_uploads(server.address());
    assert_eq!(aborted(&host, &[]), json!(0), "all are young");
    server.age_uploads(SystemTime::now() - Duration::from_secs(25 * 3600));
    assert_eq!(aborted(&host, &["--dry-run"]), json!(3));
    assert_eq!(server.uploads().len(), 5);
    host.backup(["prune", "--dry-run"]).run().succeeded().saying("3 unfinished uploads would be aborted");
    // A host that may not, and a store that cannot.
    for status in [403, 501] {
        server.inject(Rule::new(Fault::Status(status), "GET", "?uploads"));
        let refused = host.backup(["prune"]).run().succeeded().saying("unfinished uploads are left alone: cannot list");
        assert_eq!(refused.stderr.matches("unfinished uploads").count(), 2, "{refused}");
        server.heal();
    }
    server.inject(Rule::new(Fault::Status(403), "DELETE", "uploadId="));
    host.backup(["prune"]).run().succeeded().saying("unfinished uploads are left alone: cannot abort");
    server.heal();
    assert_eq!(server.uploads().len(), 5);
    assert_eq!(aborted(&host, &[]), json!(3));
    assert!(!is_left(&server, DEAD) && is_left(&server, ALIVE) && is_left(&server, "photos"));
    assert_eq!(aborted(&host, &[]), json!(0));
}

#[test]
fn google_has_the_same_uploads_and_they_are_aborted_too() {
    let server = Gcs::start();
    let host = initialised(|host| server.serve(host));
    for run in [DEAD, ALIVE] {
        server.begin_upload(&format!("some/prefix/app/backups/{run}/data.00000.vol"));
    }
    assert_eq!(aborted(&host, &[]), json!(0), "all are young");
    server.beneath.age_uploads(SystemTime::now() - Duration::from_secs(25 * 3600));
    assert_eq!((aborted(&host, &[]), server.beneath.uploads().len()), (json!(2), 0));
}

#[test]
fn seaweedfs_lists_uploads_as_aws_does() {
    let server = SeaweedFs::start();
    let host = initialised(|host| server.serve(host));
    leave_uploads(server.address());
    assert_eq!(aborted(&host, &[]), json!(0), "all are young");
    // Its clock cannot be set, but ours can, as long as nothing is removed: to it the run is as dead as the other.
    let then = backup_core::jiff::Timestamp::now() + backup_core::jiff::SignedDuration::from_hours(25);
    let later = host.backup(["prune", "--dry-run", "--json"]).env("BACKUP_UNDER_TEST_NOW", then.to_string());
    let told = later.run().json();
    assert_eq!(told["uploads"], json!({ "aborted": 4, "refused": null }), "{told}");
}

/// To moto all uploads began in 2010.
#[test]
fn moto_aborts_what_is_old_and_keeps_what_a_live_run_sends() {
    let server = Moto::with_bucket();
    let host = initialised(|host| server.serve(host));
    leave_uploads(server.address());
    assert_eq!(aborted(&host, &["--dry-run"]), json!(3));
    assert_eq!(aborted(&host, &[]), json!(3));
    assert_eq!(aborted(&host, &[]), json!(0));
    let left = ask(server.address(), "GET", &format!("/{BUCKET}?uploads")).expect("it answers");
    assert!(left.contains(ALIVE) && left.contains("photos") && !left.contains(DEAD), "{left}");
}
