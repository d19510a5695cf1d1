//! What is pinned at the source is pinned at the destination.

use object_store::ObjectStoreExt;

use super::*;

impl World {
    async fn pin(&self, path: &BackupPath, reason: &str) {
        let who = Who { user: "dba".into(), host: "db1".into(), pid: 7, program: "backup 0.1.0".into() };
        self.from.pin(path, reason, None, who, &SystemClock).await.unwrap();
    }

    async fn pins_there(&self, path: &BackupPath) -> Vec<String> {
        self.to.pins_of(path).await.unwrap().into_iter().map(|pin| pin.reason).collect()
    }
}

#[tokio::test]
async fn pins_come_along_with_backups_and_after_them() {
    let world = World::new().await;
    let (first, second) = (world.save().await, world.save().await);
    world.pin(&first, "audit").await;
    let copied = world.copy(Selection::Everything).await.unwrap();
    assert_eq!((copied.pins.copied, copied.left_alone, copied.problem_count), (1, 0, 0), "{copied:?}");
    assert_eq!(world.pins_there(&first).await, ["audit"]);
    // What cannot be read holds, and so it must come along; what is no pin does not.
    world.pin(&first, "court").await;
    world.pin(&second, "release").await;
    world.from.store().put(&second.new_pin(), "junk".into()).await.unwrap();
    world.from.store().put(&second.pins().join("note"), "x".into()).await.unwrap();
    let copied = world.copy(Selection::Targets(vec![world.target()])).await.unwrap();
    assert_eq!((copied.pins.copied, copied.pins.same, copied.backups.same), (3, 1, 2), "{copied:?}");
    assert_eq!((copied.left_alone, world.to.pins_of(&first).await.unwrap().len()), (1, 2));
    assert_eq!(world.to.pins_of(&second).await.unwrap(), world.from.pins_of(&second).await.unwrap());
    // Nothing is removed there, as of anything else.
    world.from.unpin(&first).await.unwrap();
    world.copy(Selection::Everything).await.unwrap();
    assert_eq!(world.pins_there(&first).await.len(), 2);
}

#[tokio::test]
async fn a_backup_that_is_chosen_brings_its_own_pins() {
    let world = World::new().await;
    let (chosen, other) = (world.save().await, world.save().await);
    world.pin(&chosen, "audit").await;
    world.pin(&other, "court").await;
    let copied = world.copy(Selection::Backups(vec![chosen.clone()])).await.unwrap();
    assert_eq!((copied.pins.copied, copied.backups.copied), (1, 1), "{copied:?}");
    assert_eq!(world.pins_there(&chosen).await, ["audit"]);
    assert_eq!(world.pins_there(&other).await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_backup_is_never_there_before_its_pins() {
    let world = World::new().await;
    let path = world.save().await;
    world.pin(&path, "audit").await;
    world.to_store.inject(Fault::Full, Of::Writes, "manifest.json");
    world.copy(Selection::Everything).await.unwrap_err();
    assert_eq!(world.pins_there(&path).await, ["audit"]);
    world.to_store.mend();
    world.to_store.inject(Fault::Full, Of::Writes, "app/pins");
    world.from.unpin(&path).await.unwrap();
    world.pin(&path, "again").await;
    world.copy(Selection::Everything).await.unwrap_err();
    assert!(world.to.manifest(&path).await.unwrap().is_none());
}
