//! A service that backs itself up: it keeps orders in memory, answers while a backup runs, and comes back after it lost everything.
//!
//! ```text
//! cargo run -p backup-examples --example embed
//! ```
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::num::NonZero;
use std::sync::{Arc, Mutex};

use backup_core::clock::SystemClock;
use backup_core::keys::age::{AgeIdentity, AgeRecipient};
use backup_core::keys::{Identity, Recipient};
use backup_core::pipeline::{Backup, ComputePool, Counters};
use backup_core::repository::verify::{self, KeylessOptions};
use backup_core::repository::{Listed, Location, Repository};
use backup_core::restore::{MemorySink, OpenBackup};
use backup_core::source::BytesSource;
use backup_core::{ErrorKind, Result};
use futures::TryStreamExt;

/// The longest dump that is restored into memory.
const DUMP_MAX: usize = 64 << 20;

/// What a service keeps to make backups: where to, for whom, and threads that all of its backups share.
///
/// It holds no secret: whoever takes this host over can read none of the backups that were made.
struct Backups {
    repository: Repository,
    recipient: Arc<dyn Recipient>,
    pool: ComputePool,
}

impl Backups {
    async fn open(location: &Location, recipient: AgeRecipient) -> Result<Self> {
        // Makes the repository, or opens the one that is there.
        let (repository, _) = Repository::init(location, &SystemClock).await?;
        let pool = ComputePool::new(NonZero::new(2).expect("not zero"))?;
        Ok(Self { repository, recipient: Arc::new(recipient), pool })
    }

    /// Returns the new backup's id. When this returns `Ok`, every byte is durable and the backup can be found.
    async fn make(&self, orders: String) -> Result<String> {
        let manifest = Backup::new(self.repository.clone(), "shop".parse()?)
            .recipient(Arc::clone(&self.recipient))
            .compute_pool(self.pool.clone())
            // What the reader must know and nobody else should: it is encrypted like the data.
            .details(serde_json::json!({ "schema": 7, "rows": orders.lines().count() }))
            .stream("orders".parse()?, BytesSource::new(orders))
            .start()?
            .wait()
            .await?;
        Ok(manifest.id)
    }
}

/// Somebody who holds the identity brings a dump back; `name` is an id, the beginning of one, or `shop` for the latest.
async fn restore(repository: &Repository, name: &str, identity: Arc<dyn Identity>) -> Result<String> {
    let found = repository.resolve(name).await?;
    let backup = OpenBackup::open(repository, &found.path, &[identity]).await?;
    let sink = MemorySink::new(DUMP_MAX);
    backup.restore("orders")?.into(sink.clone()).wait().await?;
    assert_eq!(backup.details().await?["source"]["schema"], 7);
    let dump = sink.take().expect("a restore that returns Ok has finished its sink");
    Ok(String::from_utf8(dump).expect("it was text"))
}

#[derive(Default)]
struct Shop(Mutex<Vec<String>>);

impl Shop {
    fn order(&self, what: &str) {
        self.0.lock().expect("no holder panics").push(what.to_owned());
    }

    fn dump(&self) -> String {
        self.0.lock().expect("no holder panics").iter().map(|order| format!("{order}\n")).collect()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    // A directory here. "s3://bucket/prefix".parse() works as well, and Location::store takes any `ObjectStore`.
    let directory = tempfile::tempdir().expect("a temporary directory");
    let location = Location::directory(directory.path().join("repository"))?;
    // The identity is kept away from the service, in a safe: `AgeIdentity::load` reads a file that `age-keygen` wrote.
    let identity = Arc::new(AgeIdentity::generate());
    let backups = Backups::open(&location, identity.recipients().remove(0)).await?;

    let shop = Arc::new(Shop::default());
    (0..100_000).for_each(|n| shop.order(&format!("{n}\tteapot")));
    let before = shop.dump();
    let customer = tokio::spawn({
        let shop = Arc::clone(&shop);
        async move { shop.order("100000\tcup") }
    });
    let first = backups.make(before.clone()).await?;
    customer.await.expect("the customer came through");
    let second = backups.make(shop.dump()).await?;

    // What is there? Manifests can be read, and bytes be checked, without any key.
    let listed: Vec<Listed> = backups.repository.list(None).try_collect().await?;
    let options = KeylessOptions::new(&backups.repository);
    for listed in &listed {
        let Listed::Backup(found) = listed else { panic!("both are complete") };
        let checked = verify::keyless(&backups.repository, &found.path, &options, &Counters::default()).await?;
        assert!(checked.findings.is_empty(), "{checked:?}");
        let (plain, stored) = (found.manifest.plain_bytes(), found.manifest.stored_bytes());
        println!("{}: {plain} bytes, stored in {stored}, {} objects checked", found.path, checked.objects);
    }
    assert_eq!(listed.len(), 2);

    // The shop is lost; the second backup, which is the latest, and the first are not.
    drop(shop);
    let restored = restore(&backups.repository, "shop", Arc::<AgeIdentity>::clone(&identity)).await?;
    assert!(restored.ends_with("100000\tcup\n"));
    assert_eq!(restored, restore(&backups.repository, &second, Arc::<AgeIdentity>::clone(&identity)).await?);
    assert_eq!(restore(&backups.repository, &first, identity).await?, before);

    // Errors say what the caller can do: this one that another key is needed.
    let stranger = Arc::new(AgeIdentity::generate());
    let error = restore(&backups.repository, "shop", stranger).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Key);
    println!("with another key: {error}");
    Ok(())
}
