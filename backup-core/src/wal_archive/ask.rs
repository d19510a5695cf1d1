//! Asking several repositories for the same: the next one when one says no, fails, or takes its time.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::error::{Error, Result};
use crate::repository::{Member, Repositories, Repository};

/// The next repository is asked, too, when one has not answered for so long.
const STAGGER: Duration = Duration::from_secs(1);

/// What several repositories answered.
pub(super) enum Asked<'a, T> {
    /// This one has it.
    Found(&'a Member, T),
    /// All that were asked say no, but for those that failed.
    Nowhere(Vec<(&'a Member, Error)>),
}

/// Asks `question` of the repositories of which `whom` says so, in the order in which they are read, until one has an answer. Those that could not be
/// opened before come last. Cancel safe.
pub(super) async fn ask<'a, T: Send, F>(
    repositories: &'a Repositories,
    whom: impl Fn(&Member) -> bool + Send,
    question: impl Fn(&'a Repository) -> F + Send + Sync,
) -> Asked<'a, T>
where
    F: Future<Output = Result<Option<T>>> + Send,
{
    let mut waiting: Vec<&Member> = repositories.to_read().filter(|member| whom(member)).collect();
    waiting.sort_by_key(|member| member.is_away());
    waiting.reverse();
    let question = &question;
    let mut asked = FuturesUnordered::new();
    let mut failures: Vec<(&Member, Error)> = Vec::new();
    let mut next = true;
    loop {
        if (next || asked.is_empty())
            && let Some(member) = waiting.pop()
        {
            asked.push(async move {
                let answer = async { question(member.open().await?).await };
                (member, answer.await)
            });
        }
        let answer = match waiting.is_empty() {
            true => Ok(asked.next().await),
            false => tokio::time::timeout(STAGGER, asked.next()).await,
        };
        match answer {
            Ok(Some((member, Ok(Some(found))))) => {
                for (failed, error) in &failures {
                    warn(failed, error);
                }
                return Asked::Found(member, found);
            }
            Ok(Some((member, answer))) => {
                next = true;
                failures.extend(answer.err().map(|error| (member, error)));
            }
            Ok(None) => return Asked::Nowhere(failures),
            Err(_) => next = true,
        }
    }
}

/// Says that another repository stands in for one that failed.
pub(super) fn warn(member: &Member, error: &Error) {
    tracing::warn!(error = %error.in_one_line(), "{member} cannot be read; another repository is");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::ErrorKind;
    use crate::repository::Location;
    use crate::tests::faulty::{Fault, Faulty, Of};

    async fn three() -> Repositories {
        let (a, b, c) = (Repository::in_memory(), Repository::in_memory(), Repository::in_memory());
        let (a, b, c) = futures::try_join!(a, b, c).unwrap();
        Repositories::from(a).and(b).and_optional(c)
    }

    fn place(all: &Repositories, repository: &Repository) -> usize {
        all.open().position(|open| open.id() == repository.id()).unwrap()
    }

    #[tokio::test]
    async fn the_first_that_has_it_answers_whatever_others_say() {
        let all = three().await;
        let question = |repository: &Repository| {
            let place = place(&all, repository);
            async move {
                match place {
                    0 => Err(Error::config("refused")),
                    1 => Ok(None),
                    _ => Ok(Some(place)),
                }
            }
        };
        let Asked::Found(_, found) = ask(&all, |_| true, question).await else { panic!("it is in the third") };
        assert_eq!(found, 2);
    }

    #[tokio::test]
    async fn one_that_hangs_is_not_waited_for_when_another_has_it() {
        let all = three().await;
        let question = |repository: &Repository| {
            let place = place(&all, repository);
            async move {
                if place == 0 {
                    std::future::pending::<()>().await;
                }
                Ok(Some(place))
            }
        };
        let Asked::Found(_, found) = ask(&all, |_| true, question).await else { panic!("it is in the second") };
        assert_eq!(found, 1);
    }

    #[tokio::test]
    async fn one_that_cannot_be_opened_is_waited_for_once_and_asked_all_the_same_when_no_other_has_it() {
        let (store, first) = Faulty::repository().await;
        let (id, second) = (first.id().to_owned(), Repository::in_memory().await.unwrap());
        let all =
            Repositories::default().at("first", Location::store(Arc::new(store.clone()), "first:", 1 << 20), true);
        let all = all.and(second);
        store.inject(Fault::Hangs, Of::All, "");
        let anybody = |repository: &Repository| {
            let asked = repository.id().to_owned();
            async move { Ok(Some(asked)) }
        };
        for again in [false, true] {
            let begun = Instant::now();
            let Asked::Found(_, answered) = ask(&all, |_| true, anybody).await else { panic!("the second answers") };
            assert!(answered != id && (begun.elapsed() >= STAGGER) != again, "{again}: {:?}", begun.elapsed());
        }
        store.mend();
        let only_first = |repository: &Repository| {
            let has_it = (repository.id() == id).then_some(());
            async move { Ok(has_it) }
        };
        assert!(matches!(ask(&all, |_| true, only_first).await, Asked::Found(..)));
    }

    #[tokio::test]
    async fn nowhere_means_that_every_one_was_asked_and_tells_which_failed() {
        let all = three().await;
        let question = |repository: &Repository| {
            let place = place(&all, repository);
            async move { if place == 1 { Err(Error::config("refused")) } else { Ok(None::<()>) } }
        };
        let Asked::Nowhere(failures) = ask(&all, |_| true, question).await else { panic!("nobody has it") };
        assert_eq!(failures.iter().map(|(_, error)| error.kind()).collect::<Vec<_>>(), [ErrorKind::Config]);
    }
}
