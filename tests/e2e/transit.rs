//! What the program demands of those whom it sends data or keys to: TLS 1.3, and a certificate that it has reason to trust.

use std::net::SocketAddr;
use std::time::Duration;

use backup_tests::azurite::{ACCOUNT, Azurite};
use backup_tests::certificates::{Authority, PKCS_ECDSA_P256_SHA256};
use backup_tests::data::Data;
use backup_tests::gcs::Gcs;
use backup_tests::host::{Host, Outcome};
use backup_tests::kms::Kms;
use backup_tests::proxy::Proxy;
use backup_tests::s3::{BUCKET, S3};
use backup_tests::tls::{ONLY_1_2, ONLY_1_3, TlsDoor};
use backup_tests::wal::{self, DataDirectory};

use crate::BACKUP;

/// What cannot get better is not tried again: retries go on for half a minute.
const AT_ONCE: Duration = Duration::from_secs(20);
const ALLOW_1_2: [&str; 2] = ["--ssl-min-protocol-version", "TLSv1.2"];

fn authority() -> Authority {
    Authority::new(&PKCS_ECDSA_P256_SHA256)
}

/// A door on this machine with a certificate of `authority`.
fn door(server: SocketAddr, authority: &Authority, versions: &[&'static rustls::SupportedProtocolVersion]) -> TlsDoor {
    TlsDoor::to(server, &authority.issue("store", &["127.0.0.1"]), versions)
}

/// A client of `server` by way of `door`, who trusts nobody but the system.
fn client(server: &S3, door: &TlsDoor) -> Host {
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.set("AWS_ENDPOINT_URL", door.endpoint());
    host
}

#[track_caller]
fn refused_for_its_version(outcome: Outcome) {
    outcome.failed(2).saying("speaks no TLS that is taken here").hinting("--ssl-min-protocol-version TLSv1.2");
}

#[test]
fn a_store_with_nothing_better_than_tls_1_2_is_refused_with_a_hint_and_taken_when_asked_for() {
    let (server, authority) = (S3::start(), authority());
    let door = door(server.address(), &authority, ONLY_1_2);
    let mut host = client(&server, &door);
    let ca_file = host.write("ca.pem", &authority.certificate);
    host.set("BACKUP_CA_FILE", &ca_file);
    refused_for_its_version(host.backup(["init"]).within(AT_ONCE).run());
    assert_eq!(server.take_requests().len(), 0, "it was spoken to");

    host.backup(["init"]).args(ALLOW_1_2).run().succeeded();
    let data = Data::random(20_000_000, "transit");
    host.backup(["save", "app"]).args(ALLOW_1_2).stdin(data.clone()).run().id();
    refused_for_its_version(host.backup(["list"]).within(AT_ONCE).run());
    let restore = host.backup(["restore", "app", "--to-stdout"]);
    let restored = restore.env("BACKUP_SSL_MIN_PROTOCOL_VERSION", "TLSv1.2").run().succeeded();
    assert!(*restored.digest() == data.digest());
    let file = host.write("backup.toml", "[http]\nssl_min_protocol_version = \"TLSv1.2\"\n");
    host.backup(["list", "--config"]).args([&file]).run().succeeded();

    // No reason for PostgreSQL to believe that its log ends here.
    let directory = DataDirectory::create(host.path("data"));
    let fetch = host.backup(["wal", "fetch", "--target", "app", &wal::name(1)]).args([host.path("to")]);
    assert_eq!(fetch.in_directory(directory.path()).run().code(), Some(200));

    host.backup(["list", "--ssl-min-protocol-version", "TLSv1.1"]).run().failed(2).saying("TLSv1.2 or TLSv1.3");
}

#[test]
fn other_stores_and_key_services_are_held_to_the_same() {
    let authority = authority();
    let (azurite, gcs, kms) = (Azurite::start(), Gcs::start(), Kms::start());
    let mut host = Host::new(BACKUP);
    host.set("BACKUP_CA_FILE", host.write("ca.pem", &authority.certificate));
    kms.serve(&mut host);
    let key = kms.key("eu-central-1");
    host.set("BACKUP_RECIPIENTS", &key);
    for (name, versions, refused) in [("old", ONLY_1_2, true), ("new", ONLY_1_3, false)] {
        let at_azure = door(SocketAddr::from(([127, 0, 0, 1], azurite.port())), &authority, versions);
        azurite.serve(&mut host);
        host.set("BACKUP_REPO", format!("az://backups/{name}"));
        let endpoint = format!("{}/{ACCOUNT}", at_azure.endpoint());
        let init = host.backup(["init", "--azure-endpoint", &endpoint]).within(AT_ONCE).run();
        if refused {
            refused_for_its_version(init)
        } else {
            drop(init.succeeded())
        }

        let at_google = door(gcs.beneath.address(), &authority, versions);
        gcs.serve(&mut host);
        host.set("BACKUP_REPO", format!("gs://{BUCKET}/{name}"));
        let init = host.backup(["init", "--gcs-endpoint", &at_google.endpoint()]).within(AT_ONCE).run();
        if refused {
            refused_for_its_version(init)
        } else {
            drop(init.succeeded())
        }

        let at_kms = door(kms.address(), &authority, versions);
        host.set("BACKUP_REPO", host.repository());
        host.backup(["init"]).run().succeeded();
        let save = host.backup(["save", "app"]).env("AWS_ENDPOINT_URL_KMS", at_kms.endpoint());
        let saved = save.stdin("some data").within(AT_ONCE).run();
        if refused { refused_for_its_version(saved) } else { drop(saved.id()) }
    }
    let at_kms = door(kms.address(), &authority, ONLY_1_2);
    let save = host.backup(["save", "app"]).args(ALLOW_1_2).env("AWS_ENDPOINT_URL_KMS", at_kms.endpoint());
    save.stdin("some data").run().id();
}

#[test]
fn an_authority_that_the_system_does_not_know_has_to_be_named() {
    let (server, authority) = (S3::start(), authority());
    let door = door(server.address(), &authority, ONLY_1_3);
    let host = client(&server, &door);
    let unknown = host.backup(["init"]).within(AT_ONCE).run().failed(2);
    unknown.saying("certificate is not trusted").hinting("ca_file");
    let other = host.write("other.pem", &self::authority().certificate);
    host.backup(["init", "--ca-file"]).args([&other]).within(AT_ONCE).run().failed(2).saying("is not trusted");
    assert_eq!(server.take_requests().len(), 0);

    let ca_file = host.write("etc/ca.pem", &authority.certificate);
    host.backup(["init", "--ca-file"]).args([&ca_file]).run().succeeded();
    // Of the file's own directory, as all paths in it.
    let config = host.write("etc/backup.toml", "[http]\nca_file = \"ca.pem\"\n");
    host.backup(["list", "--config"]).args([&config]).run().succeeded();
    for variable in ["BACKUP_CA_FILE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        host.backup(["list"]).env(variable, &ca_file).run().succeeded();
    }

    let absent = host.backup(["config", "check", "--ca-file", "/no/such.pem"]).run().failed(2);
    absent.saying("/no/such.pem");
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let (server, authority) = (S3::start(), authority());
    let door = TlsDoor::to(server.address(), &authority.issue("store", &["s3.test"]), ONLY_1_3);
    let mut host = client(&server, &door);
    host.set("BACKUP_CA_FILE", host.write("ca.pem", &authority.certificate));
    host.backup(["init"]).within(AT_ONCE).run().failed(2).saying("certificate is not trusted").saying("s3.test");
    assert_eq!(server.take_requests().len(), 0);
}

#[test]
fn what_does_not_speak_tls_is_told_at_once() {
    let server = S3::start();
    let mut host = Host::new(BACKUP);
    server.serve(&mut host);
    host.set("AWS_ENDPOINT_URL", server.endpoint().replace("http:", "https:"));
    host.backup(["init"]).within(AT_ONCE).run().failed(2).saying("does not speak TLS").hinting("scheme");
}

#[test]
fn stores_are_reached_by_the_proxy_that_is_named_and_by_that_of_the_environment() {
    let (server, authority) = (S3::start(), authority());
    let door = TlsDoor::to(server.address(), &authority.issue("store", &["s3.test", "127.0.0.1", "0.0.0.0"]), ONLY_1_3);
    let proxy = Proxy::to(door.address());
    let mut host = client(&server, &door);
    host.set("BACKUP_CA_FILE", host.write("ca.pem", &authority.certificate));
    // No name server knows it.
    host.set("AWS_ENDPOINT_URL", "https://s3.test");
    host.backup(["init", "--proxy", &proxy.url()]).run().succeeded();
    assert!(proxy.take_asked().iter().all(|host| host == "s3.test:443"));
    host.backup(["save", "app"]).env("HTTPS_PROXY", proxy.url()).stdin("through a tunnel").run().id();
    let config = host.write("backup.toml", format!("[http]\nproxy = \"{}\"\n", proxy.url()));
    let restored = host.backup(["restore", "app", "--to-stdout", "--config"]).args([&config]).run().succeeded();
    assert_eq!(restored.stdout(), b"through a tunnel");
    assert!(proxy.take_asked().len() >= 2);

    host.set("AWS_ENDPOINT_URL", door.endpoint());
    host.backup(["list", "--proxy", &proxy.url()]).run().succeeded();
    assert_eq!(proxy.take_asked(), [] as [&str; 0], "nobody but this host reaches it");
    // This host too, by an address that others may have.
    host.set("AWS_ENDPOINT_URL", door.endpoint().replace("127.0.0.1", "0.0.0.0"));
    host.backup(["list", "--proxy", &proxy.url()]).run().succeeded();
    assert!(!proxy.take_asked().is_empty());
    host.backup(["list", "--proxy", &proxy.url()]).env("NO_PROXY", "0.0.0.0").run().succeeded();
    assert_eq!(proxy.take_asked(), [] as [&str; 0], "it was not to be asked");

    let refused = host.backup(["list", "--proxy", "http://me:hush@proxy"]).run().failed(2);
    assert!(!refused.stderr.contains("hush"), "{refused}");
}
