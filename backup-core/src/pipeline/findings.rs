//! What sources find out while they are read, and the manifest or the details are to say.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::Notify;

use super::Warnings;
use crate::format::{ClusterEntry, Condition};
use crate::repository::running::RunningCluster;

/// What is known of a backup's data only when it was read. Clones share one collection.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    warnings: Warnings,
    found: Arc<Mutex<Found>>,
    start_known: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Found {
    condition: Condition,
    start: Option<RunningCluster>,
    cluster: Option<ClusterEntry>,
    details: serde_json::Map<String, Value>,
}

impl Findings {
    /// Warnings: counted in the manifest, kept in the details.
    pub fn warnings(&self) -> &Warnings {
        &self.warnings
    }

    /// The source itself reported damage: the backup is kept, marked [`Condition::Damaged`], and never chosen as the latest.
    pub fn damaged(&self) {
        self.lock().condition = Condition::Damaged;
    }

    /// From where on the backup will need the log of its cluster: told to others while it runs.
    pub(crate) fn set_start(&self, start: RunningCluster) {
        self.lock().start = Some(start);
        self.start_known.notify_one();
    }

    /// Of which cluster the backup is.
    pub fn set_cluster(&self, cluster: ClusterEntry) {
        self.lock().cluster = Some(cluster);
    }

    /// Adds to what the details say of the source, or replaces it.
    pub fn set_detail(&self, key: &str, value: Value) {
        self.lock().details.insert(key.to_owned(), value);
    }

    pub(super) fn condition(&self) -> Condition {
        self.lock().condition
    }

    /// Waits until [`start`](Self::start) is known, once. Cancel safe.
    pub(super) async fn start_known(&self) {
        self.start_known.notified().await;
    }

    pub(super) fn start(&self) -> Option<RunningCluster> {
        self.lock().start
    }

    pub(super) fn cluster(&self) -> Option<ClusterEntry> {
        self.lock().cluster.clone()
    }

    /// What was known before, and what was found out.
    pub(super) fn details(&self, known: &Value) -> Value {
        let found = self.lock().details.clone();
        match known {
            known if found.is_empty() => known.clone(),
            Value::Object(known) => Value::Object(known.clone().into_iter().chain(found).collect()),
            _ => Value::Object(found),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
