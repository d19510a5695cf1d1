//! Deleting objects, and remembering what would not go.

use std::sync::{Mutex, MutexGuard, PoisonError};

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt};

use super::report::{Problem, Removed};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::Repository;

/// Problems that are told one by one.
const PROBLEMS_MAX: usize = 100;

/// Deletes, unless it is told only to count.
#[derive(Debug)]
pub(super) struct Remover<'a> {
    repository: &'a Repository,
    dry_run: bool,
    totals: Mutex<Totals>,
}

#[derive(Debug, Default)]
struct Totals {
    removed: Removed,
    problems: Vec<Problem>,
    problem_count: u64,
}

impl<'a> Remover<'a> {
    pub(super) fn new(repository: &'a Repository, dry_run: bool) -> Self {
        Self { repository, dry_run, totals: Mutex::default() }
    }

    /// Deletes an object of so many bytes; returns whether it is gone. One that the store refuses to delete is a problem and no error.
    pub(super) async fn remove(&self, object: &Path, bytes: u64) -> Result<bool> {
        if !self.dry_run {
            match self.repository.store().delete(object).await {
                Ok(()) => {}
                // Somebody else prunes, too.
                Err(StoreError::NotFound { .. }) => return Ok(true),
                Err(e) => {
                    let error = self.repository.error(e, "remove", object);
                    if !matches!(error.kind(), ErrorKind::Config | ErrorKind::Storage) {
                        return Err(error);
                    }
                    self.problem(object.to_string(), &error);
                    return Ok(false);
                }
            }
        }
        self.count(Removed { objects: 1, bytes });
        Ok(true)
    }

    /// Counts what is gone, or would be.
    pub(super) fn count(&self, size: Removed) {
        self.lock().removed += size;
    }

    /// Notes what could not be done.
    pub(super) fn problem(&self, object: String, error: &Error) {
        self.add_problem(Problem { object, problem: error.in_one_line() });
    }

    pub(super) fn add_problem(&self, problem: Problem) {
        let mut totals = self.lock();
        totals.problem_count += 1;
        if totals.problems.len() < PROBLEMS_MAX {
            totals.problems.push(problem);
        }
    }

    pub(super) fn into_totals(self) -> (Removed, Vec<Problem>, u64) {
        let totals = self.totals.into_inner().unwrap_or_else(PoisonError::into_inner);
        (totals.removed, totals.problems, totals.problem_count)
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        // Nothing in here panics half way.
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
