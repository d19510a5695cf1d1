//! What stores are asked for beside keeping bytes, and how their providers' credentials are found.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use backup_tests::azurite::{Azurite, CONTAINER};
use backup_tests::data::Data;
use backup_tests::gcs::{Gcs, TOKEN};
use backup_tests::host::{Host, Run};
use backup_tests::moto::Moto;
use backup_tests::s3::{self, BUCKET, Fault, Recorded, Rule, S3};
use backup_tests::s3rver::S3rver;
use backup_tests::seaweedfs::SeaweedFs;

use crate::BACKUP;

const KEY_ID: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn header<'r>(request: &'r Recorded, name: &str) -> Option<&'r str> {
    request.headers.get(name).and_then(|value| value.to_str().ok())
}

#[test]
fn s3_encrypts_with_the_key_of_kms_that_was_named_and_keeps_volumes_in_their_class() {
    let moto = Moto::with_bucket();
    let mut host = Host::new(BACKUP);
    moto.serve(&mut host);
    let options = format!(
        "sse = \"aws:kms\"\nsse_kms_key_id = \"{KEY_ID}\"\nsse_bucket_key = true\nstorage_class = \"STANDARD_IA\"\n"
    );
    host.set("BACKUP_CONFIG", host.write("etc/backup.toml", format!("[repository.s3]\n{options}")));
    host.backup(["init"]).run().succeeded();
    // Several parts, and one request.
    let (large, small) = (host.save("large", Data::random(20_000_000, "sse")), host.save("small", "a few bytes"));
    let head = |name: &str| {
        let answer = s3::ask(moto.address(), "HEAD", &format!("/{BUCKET}/some/prefix/{name}")).unwrap();
        let answer = answer.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "{name}: {answer}");
        answer
    };
    for (name, class) in [
        ("repository.json".to_owned(), None),
        (format!("large/backups/{large}/manifest.json"), None),
        (format!("large/backups/{large}/data.00000.vol"), Some("standard_ia")),
        (format!("small/backups/{small}/data.00000.vol"), Some("standard_ia")),
    ] {
        let answer = head(&name);
        let bucket_key = ("encryption-bucket-key-enabled", "true");
        // moto does not keep this of uploads in parts.
        let bucket_key = (!name.starts_with("large/") || name.ends_with("json")).then_some(bucket_key);
        let expected = [Some(("encryption", "aws:kms")), Some(("encryption-aws-kms-key-id", KEY_ID)), bucket_key];
        for (header, value) in expected.into_iter().flatten() {
            let line = format!("x-amz-server-side-{header}: {value}\r\n").to_ascii_lowercase();
            assert!(answer.contains(&line), "{name} lacks {line}: {answer}");
        }
        let kept = answer.lines().find_map(|line| line.strip_prefix("x-amz-storage-class: "));
        assert_eq!(kept, class, "{name}");
    }
    let restored = host.backup(["restore", "large", "--to-stdout"]).run().succeeded();
    assert!(*restored.digest() == Data::random(20_000_000, "sse").digest());

    let recording = S3::start();
    recording.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    // It knows no other class than the usual one.
    let unknown = host.backup(["save", "large"]).stdin("x").run().failed(2);
    unknown.saying("InvalidStorageClass").hinting("storage_class");
    let large = host.backup(["save", "large", "--storage-class", "STANDARD"]).stdin(Data::random(20_000_000, "sse"));
    large.run().id();
    let begun =
        recording.take_requests().into_iter().find(|request| request.target.contains("uploads")).expect("parts");
    assert_eq!(header(&begun, "x-amz-server-side-encryption-bucket-key-enabled"), Some("true"));
    assert_eq!(header(&begun, "x-amz-server-side-encryption-aws-kms-key-id"), Some(KEY_ID));
    moto.serve(&mut host);

    // Flags overrule the file; nothing of the key is left when another encryption is named.
    host.backup(["save", "app", "--sse", "AES256"]).run().failed(2).saying("AES256");
    host.unset("BACKUP_CONFIG");
    let id = host.backup(["save", "app", "--sse", "AES256", "--storage-class", "GLACIER_IR"]).stdin("x").run().id();
    let answer = head(&format!("app/backups/{id}/data.00000.vol"));
    assert!(answer.contains("encryption: aes256\r\n") && answer.contains("class: glacier_ir\r\n"), "{answer}");
}

#[test]
fn options_that_would_not_do_are_refused_before_anything_is_sent() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    for (flags, why) in [
        (&["--storage-class", "GLACIER"][..], "thawed"),
        (&["--storage-class", "DEEP_ARCHIVE"], "thawed"),
        (&["--sse", "sse-c"], "AES256, aws:kms or aws:kms:dsse"),
        (&["--sse", "AES256", "--sse-kms-key-id", "x"], "keys of the store's own"),
        (&["--sse-kms-key-id", "x"], "and not the encryption"),
    ] {
        host.backup(["init"]).args(flags).run().failed(2).saying(why);
    }
    let file = host.write("backup.toml", "[repository.s3]\nchecksum = \"md5\"\n");
    host.backup(["config", "check", "--config"]).args([&file]).run().failed(2).saying("backup.toml:2").saying("sha256");
    assert_eq!(server.take_requests().len(), 0);
}

#[test]
fn every_put_brings_the_checksum_that_was_asked_for_and_each_request_says_who_pays() {
    for (checksum, name) in [("sha256", "x-amz-checksum-sha256"), ("crc64nvme", "x-amz-checksum-crc64nvme")] {
        let server = S3::start();
        let mut host = Host::new(BACKUP);
        server.serve(&mut host);
        let options = format!("[repository.s3]\nchecksum = \"{checksum}\"\nrequest_payer = true\n");
        host.set("BACKUP_CONFIG", host.write("backup.toml", options));
        host.backup(["init"]).run().succeeded();
        // Compared by the server, of parts too.
        host.save("app", Data::random(20_000_000, "checksum"));
        host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
        let requests = server.take_requests();
        let puts: Vec<_> = requests.iter().filter(|request| request.method == "PUT").collect();
        assert!(puts.iter().filter(|request| request.is_part()).count() == 3 && puts.len() > 5);
        assert!(puts.iter().all(|request| header(request, name).is_some()), "{puts:?}");
        assert!(requests.iter().all(|request| header(request, "x-amz-request-payer") == Some("requester")));
    }
}

#[test]
fn a_bucket_that_demands_checksums_is_told_with_a_hint_that_helps() {
    let server = S3::start();
    server.demand_checksums();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    let with = |checksum: &str| {
        let path = host.write("backup.toml", format!("[repository.s3]\nchecksum = \"{checksum}\"\n"));
        move |run: Run| run.env("BACKUP_CONFIG", &path)
    };
    // As it is with an endpoint of one's own that speaks TLS.
    let refused = with("none")(host.backup(["init"])).run().failed(2);
    refused.saying("demands a checksum").hinting("checksum = \"crc64nvme\"");
    for (checksum, target) in [("crc64nvme", "one"), ("sha256", "two")] {
        let with = with(checksum);
        with(host.backup(["init"])).run().succeeded();
        with(host.backup(["save", target])).stdin(Data::random(20_000_000, checksum)).run().id();
    }
    host.backup(["verify", "--all"]).run().succeeded();
}

#[test]
fn a_bucket_with_a_default_retention_takes_all_and_gives_nothing_away() {
    let server = SeaweedFs::start();
    server.make_locked_bucket("locked");
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.set("BACKUP_REPO", "s3://locked/prefix");
    host.backup(["init"]).run().succeeded();
    let data = Data::random(20_000_000, "locked");
    let id = host.save("app", data.clone());
    host.backup(["save", "app", "--", "sh", "-c", "head -c 20000000 /dev/zero; exit 3"]).run().failed(1);
    assert_eq!(host.listed(), [id.as_str()]);
    host.backup(["verify", "--all", "--deep"]).run().succeeded();

    // Whoever has stolen the writer's key can hide it, and not take it away.
    let volume = format!("prefix/app/backups/{id}/data.00000.vol");
    let versions =
        s3::ask(server.address(), "GET", &format!("/locked?prefix={}&versions=", volume.replace('/', "%2F")));
    let versions = versions.unwrap();
    let (_, rest) = versions.split_once("<VersionId>").expect("a version");
    let (version, _) = rest.split_once('<').unwrap();
    let target = format!("/locked/{volume}?versionId={version}");
    let denied = s3::ask(server.address(), "DELETE", &target).unwrap();
    assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");
    let restored = host.backup(["restore", "app", "--to-stdout"]).run().succeeded();
    assert!(*restored.digest() == data.digest());
}

#[test]
fn a_store_that_lies_about_conditions_is_found_out_by_init() {
    let server = S3rver::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    let made = host.backup(["init"]).run();
    assert_eq!(made.code(), Some(3), "{made}");
    made.saying("ignores If-None-Match");
    // What is written is there; but its listings hide folders that lie beside an object, so nobody finds it. That such stores serve is
    // tested with one that lists well.
    host.save("app", Data::random(20_000_000, "lies"));
}

#[test]
fn azure_tells_what_is_wrong_and_its_secrets_are_not_told() {
    let server = Azurite::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    let wrong = server.connection_string().replace("AccountKey=Eby8", "AccountKey=AAAA");
    let denied = host.backup(["list"]).env("AZURE_STORAGE_CONNECTION_STRING", &wrong).run().failed(2);
    assert!(!denied.stderr.contains("AAAA"), "{denied}");
    denied.saying("403").hinting("AZURE_STORAGE_CONNECTION_STRING");
    let missing = host.backup(["init", "--repo", "az://no-such-container/prefix"]).run().failed(2);
    missing.saying("does not exist").hinting("create");
    host.unset("AZURE_STORAGE_CONNECTION_STRING");
    host.backup(["list"]).run().failed(2).saying("no storage account").hinting("AZURE_STORAGE_ACCOUNT");

    // The same in the variables of Azure's command line.
    let key = backup_tests::azurite::KEY;
    let list = host.backup(["list", "--azure-account", backup_tests::azurite::ACCOUNT]);
    list.env("AZURE_STORAGE_KEY", key).env("AZURE_STORAGE_ENDPOINT", server.endpoint()).run().succeeded();
}

#[test]
fn volumes_are_kept_in_the_tier_of_azure_and_the_class_of_google_that_was_named() {
    let gcs = Gcs::start();
    let mut host = Host::new(BACKUP);
    gcs.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    gcs.beneath.take_requests();
    host.backup(["save", "app", "--storage-class", "NEARLINE"]).stdin(Data::random(20_000_000, "class")).run().id();
    let made = |request: &&Recorded| {
        let begins = request.method == "PUT" && !request.is_part();
        begins || request.method == "POST" && request.target.contains("uploads")
    };
    let requests = gcs.beneath.take_requests();
    let (volumes, others): (Vec<_>, Vec<_>) = requests.iter().filter(made).partition(|r| r.target.contains("%2Evol"));
    assert!(volumes.len() >= 2 && !others.is_empty());
    assert!(volumes.iter().all(|r| header(r, "x-goog-storage-class") == Some("NEARLINE")), "{volumes:?}");
    assert!(others.iter().all(|r| header(r, "x-goog-storage-class").is_none()), "{others:?}");

    let azurite = Azurite::start();
    azurite.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    // It knows its tiers, and that this is none of them.
    let refused = host.backup(["save", "app", "--storage-class", "Lukewarm"]).stdin("x").run().failed(11);
    refused.saying(CONTAINER);
    host.backup(["save", "app", "--storage-class", "Cool"]).stdin(Data::random(20_000_000, "tier")).run().id();
    host.backup(["save", "app", "--storage-class", "Archive"]).stdin("x").run().failed(2).saying("thawed");
}

#[test]
fn answers_of_google_that_are_lost_are_looked_up_and_nothing_is_stored_twice() {
    let server = Gcs::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.backup(["init"]).run().succeeded();
    // The last volume of an upload in parts, and the moment from which the backup exists.
    for (name, method, target) in [("complete", "POST", "uploadId="), ("commit", "PUT", "manifest%2Ejson")] {
        server.beneath.inject(Rule::new(Fault::LoseAnswer, method, target).times(1));
        let data = Data::random(20_000_000, name);
        host.save(name, data.clone());
        server.beneath.heal();
        assert!(*host.backup(["restore", name, "--to-stdout"]).run().succeeded().digest() == data.digest());
    }
    host.backup(["verify", "--all", "--deep"]).run().succeeded();
    assert_eq!((host.listed().len(), server.beneath.unfinished()), (2, Vec::new()));
}

/// A service of metadata, that gives the same answer to everybody, and remembers who asked for what.
struct Metadata {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Metadata {
    fn answering(body: impl Into<String>) -> Self {
        let body = body.into();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let all = Arc::clone(&asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let mut head = String::new();
                let mut reader = BufReader::new(&client);
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|len| len > 0) {}
                all.lock().unwrap().push(head);
                let len = body.len();
                let head = format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n");
                let _ = write!(&client, "{head}Connection: close\r\n\r\n{body}");
            }
        });
        Self { address, asked }
    }

    fn take_asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[test]
fn a_machine_s_own_identity_is_asked_for_and_never_by_way_of_a_proxy() {
    let gcs = Gcs::start();
    let mut host = Host::new(BACKUP);
    gcs.serve(&mut host);
    host.unset("CLOUDSDK_AUTH_ACCESS_TOKEN");
    let google =
        Metadata::answering(r#"{"access_token": "ya29.an-access-token", "expires_in": 3600, "token_type": "Bearer"}"#);
    assert_eq!(TOKEN, "ya29.an-access-token");
    host.set("GCE_METADATA_HOST", google.address.to_string());
    // The store is the proxy of what is spoken to it; the service is not.
    host.set("http_proxy", gcs.endpoint());
    host.backup(["init"]).run().succeeded();
    let asked = google.take_asked();
    assert!(asked.len() == 1 && asked[0].contains("/service-accounts/default/token"), "{asked:?}");
    assert!(asked[0].to_ascii_lowercase().contains("metadata-flavor: google"), "{asked:?}");
    host.save("app", "by the machine's own account");

    let azurite = Azurite::start();
    azurite.serve(&mut host);
    host.unset("AZURE_STORAGE_CONNECTION_STRING");
    host.set("AZURE_STORAGE_ACCOUNT", backup_tests::azurite::ACCOUNT);
    host.set("AZURE_STORAGE_ENDPOINT", azurite.endpoint());
    host.unset("http_proxy");
    let token = r#"{"access_token": "hush", "expires_on": "4070908800", "expires_in": "3600", "resource": "x", "token_type": "Bearer"}"#;
    let azure = Metadata::answering(token);
    host.set("IDENTITY_ENDPOINT", format!("http://{}/msi/token", azure.address));
    host.set("IDENTITY_HEADER", "a-secret-of-this-machine");
    // The emulator believes no tokens without TLS, but one is asked for and shown to it.
    let denied = host.backup(["init"]).run().failed(2).hinting("AZURE_");
    assert!(!denied.stderr.contains("hush") && !denied.stderr.contains("a-secret"), "{denied}");
    let asked = azure.take_asked();
    assert!(!asked.is_empty() && asked[0].contains("/msi/token?"), "{asked:?}");
    assert!(asked[0].contains("x-identity-header: a-secret-of-this-machine"), "{asked:?}");
}

#[test]
fn a_container_s_credentials_are_asked_for_and_never_by_way_of_a_proxy() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.unset("AWS_ACCESS_KEY_ID");
    host.unset("AWS_SECRET_ACCESS_KEY");
    let (key, secret) = (s3::ACCESS_KEY, s3::SECRET_KEY);
    let agent = Metadata::answering(format!(
        r#"{{"AccessKeyId": "{key}", "SecretAccessKey": "{secret}", "Token": "of-the-role", "Expiration": "2099-01-01T00:00:00Z"}}"#
    ));
    host.set("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{}/v1/credentials", agent.address));
    host.set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", host.write("token", "of-this-pod"));
    // No name server knows this domain; the server is its proxy, and would be the agent's.
    host.set("http_proxy", server.endpoint());
    host.set("AWS_ENDPOINT_URL", format!("http://{}", s3::DOMAIN));
    for command in [&["init"][..], &["list", "--proxy", &server.endpoint()]] {
        host.backup(command).run().succeeded();
        let asked = agent.take_asked();
        assert!(asked.len() == 1 && asked[0].starts_with("GET /v1/credentials "), "{asked:?}");
        assert!(asked[0].to_ascii_lowercase().contains("authorization: of-this-pod"), "{asked:?}");
        let seen = server.take_requests();
        assert!(!seen.is_empty() && seen.iter().all(|request| request.headers["host"] == s3::DOMAIN), "{seen:?}");
        assert!(seen.iter().all(|request| header(request, "x-amz-security-token") == Some("of-the-role")), "{seen:?}");
    }
    host.save("app", "by the role of a container");
}
