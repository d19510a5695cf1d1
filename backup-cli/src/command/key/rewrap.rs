//! `backup key rewrap`.

use std::sync::Arc;

use backup_core::Result;
use backup_core::keys::{Identity, Recipient};
use backup_core::repository::Repository;
use backup_core::repository::census::{Looked, Problem};
use backup_core::repository::layout::TargetName;
use backup_core::repository::rewrap::{RewrapOptions, named, rewrap};
use serde::Serialize;

use crate::App;
use crate::args::RewrapArgs;
use crate::audit::Run;
use crate::exit::Exit;
use crate::keys::{self, Recipients};
use crate::progress;

use super::{concurrency, count, or_cancelled, problems, shown, tell_problems, tell_unfinished, with_each_of};

#[derive(Debug, Serialize)]
struct Document<'a> {
    repository: &'a str,
    dry_run: bool,
    recipients: Vec<backup_core::format::RecipientName>,
    /// Data keys that were wrapped again, or would be.
    data_keys: u64,
    /// Of those, the ones of which a new wrap was opened.
    proved: u64,
    unchanged: u64,
    problem_count: u64,
    problems: &'a [Problem],
}

pub(super) async fn run(app: &App, args: &RewrapArgs) -> Result<Exit> {
    let load = async {
        let recipients = Recipients::load(&app.config).await?.at(app.clock.now())?;
        Ok((recipients, keys::named_identities(&app.config).await?))
    };
    let (recipients, (identities, at_hand)) = or_cancelled(app, load).await?;
    let for_whom: Vec<_> = recipients.iter().map(|recipient| named(&**recipient)).collect();
    with_each_of(app, &args.targets, |repository, _, targets| {
        let work = in_one(app, args, repository.clone(), targets, recipients.clone(), identities.clone());
        let (for_whom, at_hand) = (for_whom.clone(), at_hand.clone());
        async move {
            if args.dry_run {
                return or_cancelled(app, work).await;
            }
            let mut run = Run::new(app, "key rewrap");
            run.at(&repository);
            run.record.recipients = for_whom;
            run.begin_with(app, at_hand).await;
            run.through(app, work).await
        }
    })
    .await
}

async fn in_one(
    app: &App,
    args: &RewrapArgs,
    repository: Repository,
    targets: Vec<TargetName>,
    recipients: Vec<Arc<dyn Recipient>>,
    identities: Vec<Arc<dyn Identity>>,
) -> Result<Exit> {
    let names: Vec<_> = recipients.iter().map(|recipient| named(&**recipient)).collect();
    let mut options = RewrapOptions::new(recipients, identities);
    options.dry_run = args.dry_run;
    options.concurrency = concurrency(&app.config);
    options.clock = Arc::clone(&app.clock);
    let looked = Looked::default();
    let work = rewrap(&repository, &targets, &options, &looked);
    let done = progress::during(&app.output, None, || shown(&looked), work).await?;
    tell_problems(&app.output, &done.census);
    tell_unfinished(&app.output, &done.census);
    let wrapped = if args.dry_run { "to be wrapped" } else { "wrapped" };
    let whom = names.iter().map(|name| name.recipient.as_str()).collect::<Vec<_>>().join(", ");
    let (keys, unchanged) = (count(done.data_keys, "data key"), done.unchanged);
    app.output.note(format!("{wrapped} again: {keys}, for {whom}; {unchanged} had been before"));
    if !args.dry_run && done.data_keys > 0 {
        let rest = done.data_keys - done.proved;
        app.output
            .note(format!("new wraps opened for a proof: {}; read back and found authentic: {rest}", done.proved));
        app.output
            .note("whoever has an old identity can still open what was wrapped for it: rewrapping is not revoking");
    }
    if args.json {
        app.output.json(&Document {
            repository: repository.name(),
            dry_run: args.dry_run,
            recipients: names,
            data_keys: done.data_keys,
            proved: done.proved,
            unchanged: done.unchanged,
            problem_count: done.census.problem_count,
            problems: done.problems(),
        })?;
    }
    problems(&done.census, "opened").map_or(Ok(Exit::Done), Err)
}
