//! The program and S3, over HTTP, by a server that checks signatures.

use std::time::Duration;

use backup_tests::data::Data;
use backup_tests::host::Host;
use backup_tests::port::Port;
use backup_tests::s3::{BUCKET, DOMAIN, Recorded, S3, SECRET_KEY};
use backup_tests::sts::{self, TokenService};

use crate::BACKUP;

const PART_BYTES: u64 = 8 << 20;
/// What the program may have resident at once with a repository on S3.
const PEAK_BYTES_MAX: u64 = 96 << 20;

fn client(server: &S3) -> Host {
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host
}

#[test]
fn a_stream_goes_up_in_parts_of_8_mib_and_comes_back_in_parallel_ranges() {
    let server = S3::start();
    let host = client(&server);
    host.backup(["init"]).run().succeeded();
    server.take_requests();
    let data = Data::random(45_000_000, "s3");
    let saved = host.backup(["save", "app"]).stdin(data.clone()).run().succeeded();
    let id = saved.text().trim_end().to_owned();

    let requests = server.take_requests();
    let mut parts: Vec<u64> = requests.iter().filter(|r| r.is_part()).map(|r| r.len).collect();
    parts.sort_unstable();
    let last = parts.remove(0);
    assert_eq!(parts, [PART_BYTES; 5]);
    assert!(last < PART_BYTES && last + 5 * PART_BYTES > 45_000_000);
    let hash = |r: &Recorded| r.headers.get("x-amz-content-sha256").and_then(|h| h.to_str().ok().map(str::to_owned));
    assert!(
        requests.iter().filter(|r| r.is_part()).all(|r| hash(r).as_deref() == Some("UNSIGNED-PAYLOAD")),
        "hashing each part would cost more than encrypting it"
    );
    assert!(requests.iter().filter(|r| r.is_part()).all(|r| r.headers.contains_key("x-amz-checksum-crc64nvme")));
    let expected = ["data.00000.vol", "details.00000.vol", "manifest.json"];
    let expected = expected.map(|name| format!("some/prefix/app/backups/{id}/{name}"));
    let objects = server.objects();
    assert_eq!(objects[..3], expected);
    assert_eq!(objects[3..], ["some/prefix/repository.json"]);
    assert_eq!(server.unfinished(), [] as [&str; 0]);

    assert_eq!(host.listed(), [id]);
    host.backup(["verify", "app"]).run().succeeded();
    server.take_requests();
    let restored = host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    assert!(*restored.digest() == data.digest(), "{restored}");
    assert!(server.take_requests().iter().filter(|r| r.is_ranged()).count() > 5);
    assert!(server.reading_max() >= 2, "requests wait for each other");
    for run in [saved, restored] {
        assert!((1..=PEAK_BYTES_MAX).contains(&run.peak_bytes), "{} MiB resident: {run}", run.peak_bytes >> 20);
    }
}

#[test]
fn a_wrong_secret_is_told_with_a_hint_and_leaves_nothing() {
    let server = S3::start();
    let mut host = client(&server);
    host.set("AWS_SECRET_ACCESS_KEY", "wrong");
    host.backup(["init"]).run().failed(2).saying("SignatureDoesNotMatch").hinting("AWS_SECRET_ACCESS_KEY");
    assert_eq!(server.objects(), [] as [&str; 0]);

    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    host.set("AWS_SECRET_ACCESS_KEY", "wrong");
    let data = Data::random(30_000_000, "wrong");
    for command in [&["save", "app"][..], &["list"], &["verify"], &["restore", "app", "--to-stdout"]] {
        let outcome = host.backup(command).stdin(data.clone()).run().failed(2);
        let outcome = outcome.hinting("AWS_SECRET_ACCESS_KEY");
        assert!(!outcome.stderr.contains("wrong"), "{outcome}");
    }
    assert_eq!(server.objects(), ["some/prefix/repository.json"]);
    assert_eq!(server.unfinished(), [] as [&str; 0]);
}

#[test]
fn missing_credentials_are_told_with_a_hint_at_once() {
    let server = S3::start();
    let mut host = client(&server);
    host.unset("AWS_ACCESS_KEY_ID");
    host.unset("AWS_SECRET_ACCESS_KEY");
    let outcome = host.backup(["init"]).within(Duration::from_secs(20)).run();
    outcome.failed(2).saying("no AWS credentials").hinting("AWS_ACCESS_KEY_ID");
    assert_eq!(server.take_requests().len(), 0);
}

#[test]
fn a_missing_bucket_is_told_with_a_hint_and_not_made() {
    let server = S3::start();
    let mut host = client(&server);
    host.set("BACKUP_REPO", "s3://no-such-bucket/prefix");
    for command in [&["init"][..], &["save", "app"], &["list"]] {
        host.backup(command).run().failed(2).saying("the bucket does not exist").hinting("create the bucket");
    }
    assert_eq!(server.objects(), [] as [&str; 0]);
}

#[test]
fn a_dead_endpoint_is_reported_within_a_minute() {
    let server = S3::start();
    let mut host = client(&server);
    let nobody = Port::take();
    host.set("AWS_ENDPOINT_URL", format!("http://{}", nobody.address()));
    let outcome = host.backup(["list"]).within(Duration::from_secs(60)).run().failed(11);
    outcome.saying("could not connect").hinting("endpoint");
}

#[test]
fn session_tokens_are_sent_and_no_secret_ever_is() {
    let server = S3::start();
    let mut host = client(&server);
    host.set("AWS_SESSION_TOKEN", "a-session-token");
    host.backup(["init"]).run().succeeded();
    host.save("app", Data::random(20_000_000, "token"));
    host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    let requests = server.take_requests();
    assert!(requests.len() > 10);
    for request in requests {
        let token = request.headers.get("x-amz-security-token").expect("a token");
        assert_eq!(token, "a-session-token", "{request:?}");
        let secret = |value: &[u8]| value.windows(SECRET_KEY.len()).any(|window| window == SECRET_KEY.as_bytes());
        assert!(!request.headers.values().any(|value| secret(value.as_bytes())), "{request:?}");
    }
}

#[test]
fn the_bucket_can_stand_in_the_host_name() {
    let server = S3::start();
    let mut host = client(&server);
    // No name server knows this domain; the server is its proxy.
    host.set("http_proxy", server.endpoint());
    host.set("AWS_ENDPOINT_URL", format!("http://{DOMAIN}"));
    let flag = "--s3-path-style=false";
    host.backup(["init", flag]).run().succeeded();
    let data = Data::random(20_000_000, "virtual");
    host.backup(["save", "app", flag]).stdin(data.clone()).run().id();
    let restored = host.backup(["restore", "app", "--to-stdout", flag]).run().succeeded();
    assert!(*restored.digest() == data.digest());
    for request in server.take_requests() {
        assert_eq!(request.headers["host"], format!("{BUCKET}.{DOMAIN}"));
        assert!(!request.target.starts_with(&format!("/{BUCKET}")), "{request:?}");
    }
}

#[test]
fn credentials_can_come_from_a_profile() {
    let server = S3::start();
    let mut host = client(&server);
    host.unset("AWS_ACCESS_KEY_ID");
    host.unset("AWS_SECRET_ACCESS_KEY");
    let keys = format!("aws_access_key_id = {}\naws_secret_access_key = {SECRET_KEY}", backup_tests::s3::ACCESS_KEY);
    host.write("home/.aws/credentials", format!("[default]\naws_access_key_id = x\n[dr]\n{keys}\n"));
    host.set("AWS_PROFILE", "dr");
    host.backup(["init"]).run().succeeded();
    host.save("app", "by profile");
    assert_eq!(host.backup(["restore", "app", "--to-stdout"]).run().succeeded().stdout(), b"by profile");
}

#[test]
fn web_identity_gets_session_credentials_and_uses_them() {
    let (server, tokens) = (S3::start(), TokenService::start());
    let mut host = client(&server);
    tokens.serve(&mut host, sts::WEB_IDENTITY_TOKEN);
    host.backup(["init"]).run().succeeded();
    let data = Data::random(20_000_000, "web identity");
    tokens.take_asked();
    server.take_requests();
    host.save("app", data.clone());
    assert_eq!(tokens.take_asked(), 1, "once for the whole run");
    let requests = server.take_requests();
    assert!(requests.len() > 5);
    for request in requests {
        assert_eq!(request.headers["x-amz-security-token"], sts::SESSION_TOKEN, "{request:?}");
        let authorization = request.headers["authorization"].to_str().unwrap();
        assert!(authorization.contains(sts::SESSION_ACCESS_KEY), "{request:?}");
    }
    let restored = host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    assert!(*restored.digest() == data.digest());
}

#[test]
fn a_web_identity_that_is_refused_is_told_and_its_token_is_not() {
    let (server, tokens) = (S3::start(), TokenService::start());
    let mut host = client(&server);
    tokens.serve(&mut host, "a-hushed-token");
    let outcome = host.backup(["init"]).run().failed(2);
    assert!(tokens.take_asked() > 0 && !outcome.stderr.contains("hushed"), "{outcome}");
    host.set("AWS_WEB_IDENTITY_TOKEN_FILE", "/no/such/token");
    host.backup(["init"]).run().failed(2).saying("/no/such/token").hinting("AWS_WEB_IDENTITY_TOKEN_FILE");
    assert_eq!(server.objects(), [] as [&str; 0]);
}

#[test]
fn of_two_providers_with_a_bucket_of_one_name_each_has_its_own_budget() {
    let servers = [S3::start(), S3::start()];
    let mut host = client(&servers[0]);
    host.unset("BACKUP_REPO");
    let table = |name: &str, server: &S3, capacity: &str| {
        let url = format!("[repositories.{name}]\nurl = \"s3://{BUCKET}/same\"\ncapacity = \"{capacity}\"\n");
        format!("{url}[repositories.{name}.s3]\nendpoint = \"{}\"\n", server.endpoint())
    };
    let text = table("small", &servers[0], "1KiB") + &table("large", &servers[1], "1TiB");
    host.set("BACKUP_CONFIG", host.write("backup.toml", text));
    host.backup(["init"]).run().succeeded();
    host.save("app", Data::random(5_000, "more than a kibibyte"));
    let told = host.backup(["list", "--usage"]).run();
    assert_eq!(told.code(), Some(3), "{told}");
    assert!(told.stderr.contains(" of 1.0 KiB") && told.stderr.contains(" of 1.0 TiB"), "{told}");
    assert_eq!(told.stderr.matches("warning: ").count(), 1, "{told}");
}
