//! Receiving into a repository that may be away.

use std::time::Duration;

use backup_tests::s3::{BUCKET, Fault, Rule, S3};
use rustix::process::Signal;

use super::{asked, durable, position, receive, received_from, same, world, write};

#[tokio::test]
async fn an_optional_repository_that_is_away_does_not_hold_up_the_log() {
    let (server, mut host) = world(15);
    let store = S3::start();
    store.serve(&mut host);
    host.unset("BACKUP_REPO");
    let config = format!(
        "optional_lag_seconds = 1\n[repositories.here]\nurl = \"{}\"\n\
         [repositories.far]\nurl = \"s3://{BUCKET}/some/prefix\"\nrequired = false\n",
        host.repository().display()
    );
    let path = host.write("backup.toml", config);
    host.set("BACKUP_CONFIG", path);
    host.backup(["init"]).run().succeeded();
    let running = receive(&host, &server, &["--slot", "backup", "--create-slot"]);
    received_from(&server).await;
    // It takes what is written, and the tails of segments cannot be removed there.
    store.inject(Rule::new(Fault::Delay(Duration::from_secs(3600)), "GET", "list-type"));
    store.take_requests();
    write(&server).await;
    asked(&store, |request| request.target.contains("list-type")).await;
    durable(&server, &position(&server).await).await;
    store.stop();
    for _ in 0..3 {
        write(&server).await;
        durable(&server, &position(&server).await).await;
    }
    let lsn = position(&server).await;
    running.signal(Signal::TERM);
    running.wait().succeeded().saying("is not in far, which is optional");
    host.set("BACKUP_REPO", "here");
    same(&host, &server, &lsn).await;
}
