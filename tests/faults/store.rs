//! A store on S3 that fails now and then, for good, or in silence.

use std::time::Duration;

use backup_tests::data::Data;
use backup_tests::host::Host;
use backup_tests::s3::{Fault, Rule, S3};

use crate::BACKUP;

fn data() -> Data {
    Data::random(30_000_000, "store")
}

fn with_repository() -> (S3, Host) {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    (server, host)
}

fn comes_back(host: &Host) {
    let restored = host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    assert!(*restored.digest() == data().digest(), "{restored}");
    host.backup(["verify", "app"]).run().succeeded();
}

/// The backup, and nothing beside it.
fn nothing_more(server: &S3) {
    let objects = server.objects();
    assert_eq!(objects.len(), 4, "{objects:?}");
    assert_eq!(server.unfinished(), [] as [&str; 0]);
}

fn nothing_at_all(server: &S3) {
    assert_eq!(server.objects(), ["some/prefix/repository.json"]);
    assert_eq!(server.unfinished(), [] as [&str; 0]);
}

#[test]
fn requests_that_fail_for_a_while_are_sent_again() {
    for fault in [Fault::Status(503), Fault::Status(500), Fault::Status(429), Fault::Reset] {
        let (server, host) = with_repository();
        server.inject(Rule::new(fault, "PUT", "partNumber=2").times(2));
        server.inject(Rule::new(fault, "POST", "uploads").times(1));
        server.inject(Rule::new(fault, "POST", "uploadId=").times(1));
        server.inject(Rule::new(fault, "PUT", "running.json").times(1));
        server.inject(Rule::new(fault, "PUT", "details.00000.vol").times(1));
        server.inject(Rule::new(fault, "PUT", "manifest.json").times(1));
        server.inject(Rule::new(fault, "GET", "list-type=2").times(1));
        host.save("app", data());
        nothing_more(&server);
        server.heal();
        server.inject(Rule::new(fault, "GET", "manifest.json").times(1));
        server.inject(Rule::new(fault, "GET", "data.00000.vol").after(2).times(2));
        comes_back(&host);
        server.heal();
    }
}

#[test]
fn lost_answers_make_no_second_backup_and_no_failure() {
    let (server, host) = with_repository();
    server.inject(Rule::new(Fault::LoseAnswer, "PUT", "partNumber=2").times(1));
    server.inject(Rule::new(Fault::LoseAnswer, "POST", "uploadId=").times(1));
    server.inject(Rule::new(Fault::LoseAnswer, "PUT", "running.json").times(1));
    server.inject(Rule::new(Fault::LoseAnswer, "PUT", "details.00000.vol").times(1));
    server.inject(Rule::new(Fault::LoseAnswer, "PUT", "manifest.json").times(1));
    server.inject(Rule::new(Fault::LoseAnswer, "DELETE", "running.json").times(1));
    let id = host.save("app", data());
    server.heal();
    assert_eq!(host.listed(), [id]);
    nothing_more(&server);
    comes_back(&host);
}

#[test]
fn a_repository_is_made_once_though_the_answer_is_lost() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    server.inject(Rule::new(Fault::LoseAnswer, "PUT", "repository.json").times(1));
    let init = host.backup(["init", "--json"]).run().json();
    server.heal();
    assert_eq!((&init["created"], &init["conditional_put"]), (&true.into(), &true.into()));
}

#[test]
fn answers_that_end_early_or_come_slowly_are_no_wrong_data() {
    let (server, host) = with_repository();
    host.save("app", data());
    for fault in [Fault::Truncate, Fault::Slow(Duration::from_secs(2))] {
        server.inject(Rule::new(fault, "GET", "data.00000.vol").times(4));
        server.inject(Rule::new(fault, "GET", "manifest.json").times(1));
        comes_back(&host);
        server.heal();
    }
}

#[test]
fn answers_with_a_wrong_byte_are_found() {
    let (server, host) = with_repository();
    host.save("app", data());
    server.inject(Rule::new(Fault::Corrupt, "GET", "manifest.json").times(1));
    host.backup(["restore", "app", "--to-stdout"]).run().failed(13).saying("manifest.json");
    server.heal();
    let mut found = 0;
    for skip in 0..6 {
        server.inject(Rule::new(Fault::Corrupt, "GET", "data.00000.vol").after(skip).times(1));
        let outcome = host.backup(["restore", "app", "--to-stdout"]).run();
        match outcome.code() {
            // Of the ends of a volume more is read than is used.
            Some(0) => assert!(*outcome.digest() == data().digest(), "{outcome}"),
            _ => {
                let outcome = outcome.failed(13).saying("data.00000.vol").saying("offset");
                assert!(outcome.digest().len() < 30_000_000, "{outcome}");
                found += 1;
            }
        }
        server.heal();
    }
    assert!(found >= 3, "{found}");
    comes_back(&host);
}

#[test]
fn a_store_that_keeps_failing_is_given_up_within_a_minute_and_nothing_is_left() {
    let (server, host) = with_repository();
    server.inject(Rule::new(Fault::Status(503), "PUT", "partNumber=2"));
    let outcome = host.backup(["save", "app"]).stdin(data()).within(Duration::from_secs(75)).run();
    outcome.failed(11).saying("data.00000.vol").saying("503");
    server.heal();
    nothing_at_all(&server);
}

#[test]
fn a_refused_manifest_makes_no_backup_and_nothing_is_left() {
    let (server, host) = with_repository();
    server.inject(Rule::new(Fault::Status(403), "PUT", "manifest.json"));
    host.backup(["save", "app"]).stdin(data()).run().failed(2).saying("manifest.json").hinting("AWS_");
    server.heal();
    nothing_at_all(&server);
    assert_eq!(host.listed(), [] as [&str; 0]);
}

#[test]
fn a_clean_up_that_fails_is_told_and_is_not_the_cause() {
    let (server, host) = with_repository();
    server.inject(Rule::new(Fault::Status(403), "PUT", "partNumber=2"));
    server.inject(Rule::new(Fault::Status(403), "DELETE", "uploadId="));
    let outcome = host.backup(["save", "app"]).stdin(data()).run().failed(2);
    outcome.saying("error: cannot write").saying("and then, while cleaning up: ");
    server.heal();
    assert_eq!(host.listed(), [] as [&str; 0]);
}

#[test]
fn a_store_that_ignores_conditions_is_found_out_and_usable() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    server.inject(Rule::new(Fault::IgnoreCondition, "PUT", ""));
    let outcome = host.backup(["init"]).run();
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    outcome.saying("If-None-Match");
    host.save("app", data());
    comes_back(&host);
    nothing_more(&server);
    server.heal();
}
