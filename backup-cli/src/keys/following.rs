//! Whom a process encrypts to that runs for longer than its configuration stays as it is.

use std::sync::{Arc, Mutex, PoisonError};

use backup_core::clock::Clock;
use backup_core::keys::Recipient;
use backup_core::{Error, Result, Stage};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::Recipients;
use crate::output::Output;
use crate::{App, Sources, report};

/// The recipients of the configuration as it is whenever they are asked for: a rotation reaches whoever runs for months without a restart.
///
/// The passphrase, if there is one, is that of the beginning: the command that prints it may ask a person.
#[derive(Clone)]
pub(crate) struct Following(Arc<Inner>);

struct Inner {
    sources: Arc<Sources>,
    clock: Arc<dyn Clock>,
    output: Output,
    last: Mutex<Recipients>,
}

impl Following {
    /// Begins with what is configured.
    pub(crate) async fn load(app: &App) -> Result<Self> {
        Ok(Self(Arc::new(Inner {
            sources: Arc::clone(&app.sources),
            clock: Arc::clone(&app.clock),
            output: app.output.clone(),
            last: Mutex::new(Recipients::load(&app.config).await?),
        })))
    }

    /// Those of now. A configuration that cannot be read is a warning, and the one before stands: a slip in the file must not stop the archive.
    ///
    /// # Errors
    /// As of [`Recipients::at`]. Cancel safe.
    pub(crate) fn current(&self) -> BoxFuture<'static, Result<Vec<Arc<dyn Recipient>>>> {
        let inner = Arc::clone(&self.0);
        async move {
            let read = tokio::task::spawn_blocking(move || inner.read()).await;
            read.map_err(|e| Error::internal(Stage::Keys, "the configuration was not read to its end").with_source(e))?
        }
        .boxed()
    }
}

impl Inner {
    /// Blocks.
    fn read(&self) -> Result<Vec<Arc<dyn Recipient>>> {
        // It is replaced as a whole.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match self.sources.config().and_then(|config| Recipients::of(&config, last.passphrase.clone())) {
            Ok(recipients) => *last = recipients,
            Err(e) => self.output.warning(format!(
                "the configuration cannot be read any more, so the keys that it named before are used: {}",
                report::in_one_line(&e)
            )),
        }
        last.at(self.clock.now())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backup_core::clock::SystemClock;
    use backup_core::keys::age::AgeIdentity;
    use clap::Parser;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::args::Cli;
    use crate::config::Environment;

    fn app(file: &Path) -> App {
        let arguments = ["backup", "wal", "receive", "--target", "app", "--config", file.to_str().unwrap()];
        let sources = Arc::new(Sources { cli: Cli::parse_from(arguments), environment: Environment::default() });
        App {
            config: sources.config().unwrap(),
            output: Output::new(&sources.cli.globals),
            sources,
            cancel: CancellationToken::new(),
            clock: Arc::new(SystemClock),
            lacking: Arc::default(),
        }
    }

    async fn names(following: &Following) -> Result<Vec<String>> {
        Ok(following.current().await?.iter().map(|recipient| recipient.describe().1).collect())
    }

    #[tokio::test]
    async fn a_key_that_comes_or_goes_is_seen_without_a_restart_and_a_slip_in_the_file_stops_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("backup.toml");
        let [old, new] = [(); 2].map(|()| AgeIdentity::generate().recipients()[0].to_string());
        let table = |name: &str, recipient: &str, rest: &str| {
            let created = SystemClock.now();
            format!("[keys.{name}]\nrecipient = \"{recipient}\"\ncreated = \"{created}\"\n{rest}")
        };
        let write = |text: String| std::fs::write(&file, text).unwrap();
        write(table("a", &old, ""));
        let following = Following::load(&app(&file)).await.unwrap();
        assert_eq!(names(&following).await.unwrap(), [old.as_str()]);
        write(table("a", &old, "") + &table("b", &new, "replaces = \"a\"\n"));
        assert_eq!(names(&following).await.unwrap(), [old.as_str(), new.as_str()]);
        write("recipients = [".to_owned());
        assert_eq!(names(&following).await.unwrap(), [old.as_str(), new.as_str()]);
        write(table("b", &new, ""));
        assert_eq!(names(&following).await.unwrap(), [new.as_str()]);
        // Nobody to encrypt to is no slip.
        write(table("b", &new, "activates = 2999-01-01\nexpires = 2999-02-01\n"));
        assert!(names(&following).await.unwrap_err().to_string().contains("no configured key is active"));
    }
}
