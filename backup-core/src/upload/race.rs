//! The repositories that a run writes into at once, and which of them are still in it.
//!
//! An optional repository drops out when it fails, or when it holds the oldest part for longer than the lag, all required ones have that part
//! and somebody waits for memory. Then nobody waits for it any more.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::{Error, Result, Stage};
use crate::repository::{Member, Repositories, Repository, no_required, too_late};

/// How often it is looked for somebody who keeps the others waiting, within the lag.
const LOOKS: u32 = 10;

/// All repositories of a run.
pub(crate) struct Race {
    members: Vec<(Member, Option<Arc<Racer>>)>,
    lag: Duration,
    waiting: Waiting,
    serial: AtomicU64,
    /// Cancelled when a required repository fails; without, that is left to whoever asks each.
    stop: Option<CancellationToken>,
    failure: Mutex<Option<Error>>,
    /// Uploads, those of repositories that have dropped out too.
    pub(crate) legs: TaskTracker,
    dropped: Option<DropCallback>,
}

/// Is told the name of a repository that drops out, and why.
pub(crate) type DropCallback = Box<dyn Fn(&str, &Error) + Send + Sync>;

/// One repository of a run.
pub(crate) struct Racer {
    name: Arc<str>,
    pub(crate) repository: Repository,
    required: bool,
    /// Parts that it has not acknowledged.
    held: Mutex<BTreeSet<u64>>,
    /// Cancelled when it drops out.
    pub(crate) gone: CancellationToken,
    why: Mutex<Option<Arc<Error>>>,
    /// Whether something else has the name of the run there: it is not ours to remove.
    pub(crate) taken: AtomicBool,
    /// Whether the run may be visible there.
    pub(crate) committing: AtomicBool,
    pub(crate) committed: AtomicBool,
}

/// Who waits for memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Waiting(Arc<AtomicUsize>);

/// Somebody who waits, until this is dropped.
#[derive(Debug)]
pub(crate) struct Waits(Arc<AtomicUsize>);

/// A part that a repository has not acknowledged; it has when this is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    racer: Arc<Racer>,
    serial: u64,
}

impl Race {
    /// A race among `repositories`, which are open. When a required one fails, `stop` is cancelled. `waiting` tells who waits for memory.
    ///
    /// # Errors
    /// `Config` when none is required, or two are one; that of a required one that could not be opened.
    pub(crate) fn new(
        repositories: &Repositories,
        lag: Duration,
        waiting: Waiting,
        stop: Option<CancellationToken>,
    ) -> Result<Self> {
        let members = repositories.members();
        if !members.iter().any(Member::is_required) {
            return Err(no_required());
        }
        repositories.check_distinct()?;
        let racer = |member: &Member| match member.repository() {
            Some(repository) => Ok((member.clone(), Some(Arc::new(Racer::new(member, repository))))),
            None if !member.is_required() => Ok((member.clone(), None)),
            None => Err(member.failure().unwrap_or_else(|| Error::config(format!("{member} is not open")))),
        };
        Ok(Self {
            members: members.iter().map(racer).collect::<Result<_>>()?,
            lag,
            waiting,
            serial: AtomicU64::new(0),
            stop,
            failure: Mutex::default(),
            legs: TaskTracker::new(),
            dropped: None,
        })
    }

    /// Tells `callback` when a repository drops out.
    pub(crate) fn telling(mut self, callback: DropCallback) -> Self {
        self.dropped = Some(callback);
        self
    }

    /// How long an optional repository may keep the others waiting.
    pub(crate) fn lag(&self) -> Duration {
        self.lag
    }

    /// All members, with those that could not be opened.
    pub(crate) fn members(&self) -> &[(Member, Option<Arc<Racer>>)] {
        &self.members
    }

    /// All that began.
    pub(crate) fn racers(&self) -> impl Iterator<Item = &Arc<Racer>> {
        self.members.iter().filter_map(|(_, racer)| racer.as_ref())
    }

    /// Those that have not dropped out.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Arc<Racer>> {
        self.racers().filter(|racer| !racer.is_out())
    }

    /// The number of one more part.
    pub(super) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    /// One more who waits, until it is dropped.
    pub(crate) fn wait(&self) -> Waits {
        self.waiting.enter()
    }

    /// Takes note that a repository failed: an optional one drops out. A required one ends the run.
    pub(crate) fn failed(&self, racer: &Racer, error: Error) {
        if let (true, Some(stop)) = (racer.required, &self.stop) {
            lock(&racer.why).get_or_insert_with(|| Arc::new(error.repeated()));
            lock(&self.failure).get_or_insert(error);
            stop.cancel();
        } else {
            self.drop_out(racer, error);
        }
    }

    /// Why a required repository ended the run, once.
    pub(crate) fn take_failure(&self) -> Option<Error> {
        lock(&self.failure).take()
    }

    fn drop_out(&self, racer: &Racer, error: Error) {
        let error = Arc::new(error);
        {
            let mut why = lock(&racer.why);
            if racer.is_out() {
                return;
            }
            *why = Some(Arc::clone(&error));
            racer.gone.cancel();
        }
        // Whoever is told may ask what became of it.
        if let Some(dropped) = &self.dropped {
            dropped(&racer.name, &error);
        }
    }

    /// Does `step` in every repository that is still in the race: as long as it takes in the required ones, and no longer than the lag
    /// after that in the optional ones. One that fails drops out.
    ///
    /// Not cancel safe: what was begun may or may not be done.
    ///
    /// # Errors
    /// The first of a required one, when all required ones have ended.
    pub(crate) async fn everywhere<F>(&self, step: impl Fn(Arc<Racer>) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let racers: Vec<&Arc<Racer>> = self.running().collect();
        let mut tasks = JoinSet::new();
        for (i, racer) in racers.iter().enumerate() {
            let step = step(Arc::clone(racer));
            tasks.spawn(async move { (i, step.await) });
        }
        let mut open: BTreeSet<usize> = (0..racers.len()).collect();
        let (mut first, mut deadline) = (None, None);
        while !open.is_empty() {
            if !open.iter().any(|i| racers[*i].required) {
                deadline.get_or_insert_with(|| Instant::now() + self.lag);
            }
            let next = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, tasks.join_next()).await,
                None => Ok(tasks.join_next().await),
            };
            match next {
                Ok(Some(Ok((i, done)))) => {
                    open.remove(&i);
                    match done {
                        Ok(()) => {}
                        Err(error) if racers[i].required => {
                            lock(&racers[i].why).get_or_insert_with(|| Arc::new(error.repeated()));
                            first.get_or_insert(error);
                        }
                        Err(error) => self.drop_out(racers[i], error),
                    }
                }
                Ok(Some(Err(panic))) => {
                    return Err(Error::internal(Stage::Upload, "a task for a repository panicked").with_source(panic));
                }
                Ok(None) => break,
                Err(_) => {
                    open.iter().for_each(|i| self.drop_out(racers[*i], too_late(&racers[*i].name, self.lag)));
                    break;
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Looks again and again whether an optional repository keeps the others waiting, and has it drop out then. Never ends.
    pub(crate) async fn watch(&self) {
        let look = (self.lag / LOOKS).clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut looks = tokio::time::interval(look);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let optional: Vec<&Arc<Racer>> = self.racers().filter(|racer| !racer.required).collect();
        let mut held: Vec<(Option<u64>, Duration)> = vec![(None, Duration::ZERO); optional.len()];
        let mut last = Instant::now();
        loop {
            looks.tick().await;
            // A machine that stood still is nobody's fault.
            let passed = last.elapsed().min(look * 2);
            last = Instant::now();
            for (racer, (oldest, time)) in optional.iter().zip(&mut held) {
                let now = self.keeps_waiting(racer);
                if now.is_none() || now != *oldest {
                    (*oldest, *time) = (now, Duration::ZERO);
                } else {
                    *time += passed;
                    if *time >= self.lag {
                        self.drop_out(racer, too_late(&racer.name, self.lag));
                    }
                }
            }
        }
    }

    /// The oldest part that an optional repository holds, if all required ones have that, and somebody waits.
    fn keeps_waiting(&self, racer: &Racer) -> Option<u64> {
        let oldest = racer.oldest().filter(|_| !racer.is_out() && self.waiting.is_any())?;
        let mut required = self.racers().filter(|other| other.required);
        required.all(|other| other.oldest().is_none_or(|other| other > oldest)).then_some(oldest)
    }
}

impl Racer {
    fn new(member: &Member, repository: &Repository) -> Self {
        Self {
            name: member.name().into(),
            repository: repository.clone(),
            required: member.is_required(),
            held: Mutex::default(),
            gone: CancellationToken::new(),
            why: Mutex::default(),
            taken: AtomicBool::new(false),
            committing: AtomicBool::new(false),
            committed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_required(&self) -> bool {
        self.required
    }

    pub(crate) fn is_out(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Why it dropped out.
    pub(crate) fn why(&self) -> Option<Arc<Error>> {
        lock(&self.why).clone()
    }

    /// Why it dropped out, as the error itself.
    pub(crate) fn take_why(&self) -> Option<Error> {
        let why = lock(&self.why).take()?;
        Some(Arc::try_unwrap(why).unwrap_or_else(|why| why.repeated()))
    }

    pub(super) fn hold(self: &Arc<Self>, serial: u64) -> Ticket {
        lock(&self.held).insert(serial);
        Ticket { racer: Arc::clone(self), serial }
    }

    fn oldest(&self) -> Option<u64> {
        lock(&self.held).first().copied()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.racer.held).remove(&self.serial);
    }
}

impl Waiting {
    /// One more who waits, until it is dropped.
    pub(crate) fn enter(&self) -> Waits {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waits(Arc::clone(&self.0))
    }

    fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Race").field("members", &self.members).field("lag", &self.lag).finish_non_exhaustive()
    }
}

impl fmt::Debug for Racer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Racer").field("name", &self.name).field("out", &self.is_out()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn race(optional: usize, lag: Duration) -> Race {
        let mut repositories = Repositories::from(Repository::in_memory().await.unwrap());
        for _ in 0..optional {
            repositories = repositories.and_optional(Repository::in_memory().await.unwrap());
        }
        Race::new(&repositories, lag, Waiting::default(), None).unwrap()
    }

    const LAG: Duration = Duration::from_millis(300);

    async fn watched(race: &Race, time: Duration) {
        let _ = tokio::time::timeout(time, race.watch()).await;
    }

    #[tokio::test]
    async fn who_holds_the_oldest_part_while_others_wait_drops_out_after_the_lag_and_not_before() {
        let race = race(1, LAG).await;
        let racers: Vec<_> = race.racers().cloned().collect();
        let _held = racers[1].hold(7);
        let _waits = race.wait();
        let begun = Instant::now();
        tokio::select! {
            () = race.watch() => {}
            () = racers[1].gone.cancelled() => {}
        }
        assert!(begun.elapsed() >= LAG);
        assert!(racers[1].is_out() && !racers[0].is_out());
        assert!(racers[1].why().unwrap().to_string().contains("kept the others waiting for 1 s"));
    }

    #[tokio::test]
    async fn nobody_drops_out_while_nobody_waits_or_a_required_one_holds_the_same_part_or_an_older() {
        let race = race(1, LAG).await;
        let racers: Vec<_> = race.racers().cloned().collect();
        let _held = racers[1].hold(7);
        watched(&race, LAG * 3).await;
        let _waits = race.wait();
        for serial in [7, 3] {
            let _required = racers[0].hold(serial);
            watched(&race, LAG * 3).await;
        }
        assert!(!racers[1].is_out());
    }

    #[tokio::test]
    async fn who_is_told_of_one_that_dropped_out_may_ask_why() {
        let (race, told) = (race(1, LAG).await, Arc::new(Mutex::new(None)));
        let (racer, note) = (Arc::clone(race.racers().last().unwrap()), Arc::clone(&told));
        let race = race.telling(Box::new(move |_, _| {
            let why = racer.why.try_lock().map(|why| why.is_some()).unwrap_or(false);
            *lock(&note) = Some(why && racer.is_out());
        }));
        race.failed(race.racers().last().unwrap(), Error::config("refused"));
        assert_eq!(*lock(&told), Some(true));
    }

    #[tokio::test]
    async fn who_is_slow_and_goes_on_stays() {
        let race = race(1, LAG).await;
        let racers: Vec<_> = race.racers().cloned().collect();
        let _waits = race.wait();
        let slowly = async {
            // Well below the lag, and together well above it.
            for serial in 0..20 {
                let _held = racers[1].hold(serial);
                tokio::time::sleep(LAG / 10).await;
            }
        };
        tokio::select! {
            () = race.watch() => {}
            () = slowly => {}
        }
        assert!(!racers[1].is_out());
    }

    #[tokio::test]
    async fn a_step_waits_for_required_repositories_and_for_optional_ones_as_long_as_the_lag() {
        let race = race(2, LAG).await;
        let begun = Instant::now();
        let names: Vec<_> = race.racers().map(|racer| racer.repository.id().to_owned()).collect();
        let step = |racer: Arc<Racer>| {
            let place = names.iter().position(|id| id == racer.repository.id()).unwrap();
            async move {
                match place {
                    0 => tokio::time::sleep(LAG * 2).await,
                    1 => {}
                    _ => std::future::pending().await,
                }
                Ok(())
            }
        };
        race.everywhere(step).await.unwrap();
        assert!(begun.elapsed() >= LAG * 3);
        assert_eq!(race.racers().map(|racer| racer.is_out()).collect::<Vec<_>>(), [false, false, true]);
    }

    #[tokio::test]
    async fn a_step_that_fails_in_a_required_repository_fails_and_an_optional_one_drops_out() {
        let race = race(1, LAG).await;
        let failing = |required: bool| {
            move |racer: Arc<Racer>| async move {
                if racer.is_required() == required { Err(Error::config("refused")) } else { Ok(()) }
            }
        };
        race.everywhere(failing(false)).await.unwrap();
        assert_eq!(race.running().count(), 1);
        assert_eq!(race.everywhere(failing(true)).await.unwrap_err().to_string(), "refused");
    }
}
