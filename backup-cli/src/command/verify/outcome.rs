//! What became of one backup, or of the log of one target.

use backup_core::repository::layout::{BackupPath, TargetName};
use backup_core::repository::verify::{Continuity, Finding, Verification, WalVerification};
use backup_core::{Error, ErrorKind, Result};
use serde::Serialize;

use crate::App;
use crate::output::bytes;
use crate::report::{self, plain};

/// What became of one backup.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    target: String,
    id: String,
    ok: bool,
    outcome: Word,
    /// Why it could not be verified.
    error: Option<String>,
    #[serde(flatten)]
    verification: Verification,
    /// Of a base backup: what there is of the log behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    continuity: Option<Continuity>,
    #[serde(skip)]
    error_kind: Option<ErrorKind>,
}

/// What became of the log of one target.
#[derive(Debug, Serialize)]
pub(super) struct WalOutcome {
    target: TargetName,
    ok: bool,
    outcome: Word,
    error: Option<String>,
    files: u64,
    bytes: u64,
    findings: Vec<Finding>,
    unverified: u64,
    unverified_examples: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled: Option<u64>,
    #[serde(skip)]
    error_kind: Option<ErrorKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Word {
    Ok,
    Damaged,
    /// Neither: this key or this release cannot tell.
    Unverified,
}

impl Word {
    fn of(findings: &[Finding]) -> Self {
        if findings.is_empty() { Self::Ok } else { Self::Damaged }
    }
}

impl Outcome {
    pub(super) fn new(path: &BackupPath, verification: Verification) -> Self {
        let outcome = Word::of(&verification.findings);
        Self {
            target: path.target.to_string(),
            id: path.id.to_string(),
            ok: outcome == Word::Ok,
            outcome,
            error: None,
            verification,
            continuity: None,
            error_kind: None,
        }
    }

    pub(super) fn unverified(path: &BackupPath, error: &Error) -> Self {
        Self {
            ok: false,
            outcome: Word::Unverified,
            error: Some(report::in_one_line(error)),
            error_kind: Some(error.kind()),
            ..Self::new(path, Verification::default())
        }
    }

    /// The same, of a base backup that this much of the log follows.
    pub(super) fn with_continuity(mut self, continuity: Continuity) -> Self {
        self.continuity = Some(continuity);
        self
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.outcome == Word::Damaged
    }

    pub(super) fn error_kind(&self) -> Option<ErrorKind> {
        self.error_kind
    }

    /// Whether log is missing behind it: it can be restored, and not every moment after it.
    pub(super) fn has_gaps(&self) -> bool {
        let missing = |c: &Continuity| !c.gaps.is_empty() || !c.lacking_histories.is_empty();
        self.continuity.as_ref().is_some_and(missing)
    }

    /// A line for the backup and one for each finding.
    pub(super) fn tell(&self, app: &App) -> Result<()> {
        let Self { target, id, verification: Verification { objects, bytes: read, findings, sample }, .. } = self;
        let of_them = match sample {
            Some(sample) => format!("{objects} objects, {} of them read at random, {}", sample.len(), bytes(*read)),
            None => format!("{objects} objects, {} checked", bytes(*read)),
        };
        let mut text = match self.outcome {
            Word::Ok => format!("ok          {id}  {target}  ({of_them})\n"),
            Word::Damaged => format!("DAMAGED     {id}  {target}  ({of_them})\n"),
            Word::Unverified => format!("unverified  {id}  {target}\n"),
        };
        text.push_str(&lines(findings, self.error.as_deref()));
        for object in sample.iter().flatten() {
            text.push_str(&format!("            read: {}\n", plain(object)));
        }
        if let Some(Continuity { reach, gaps, lacking_histories, .. }) = &self.continuity {
            if let Some(reach) = reach {
                text.push_str(&format!("            log: without a gap up to {reach}\n"));
            }
            for gap in gaps {
                let segments =
                    if gap.first == gap.last { gap.first.clone() } else { format!("{} to {}", gap.first, gap.last) };
                text.push_str(&format!("            log: {segments} missing\n"));
            }
            for timeline in lacking_histories {
                text.push_str(&format!("            log: {}.history missing\n", timeline.hex()));
            }
        }
        app.output.data(&text)
    }
}

impl WalOutcome {
    pub(super) fn new(verification: WalVerification) -> Self {
        let WalVerification { target, files, bytes, findings, unverified, unverified_examples, sampled, .. } =
            verification;
        let outcome = match Word::of(&findings) {
            Word::Ok if unverified > 0 => Word::Unverified,
            outcome => outcome,
        };
        Self {
            target,
            ok: outcome == Word::Ok,
            outcome,
            error: unverified_examples.first().map(|first| first.problem.clone()),
            files,
            bytes,
            findings,
            unverified,
            unverified_examples,
            sampled,
            error_kind: (unverified > 0).then_some(ErrorKind::Key),
        }
    }

    pub(super) fn unverified(target: &TargetName, error: &Error) -> Self {
        Self {
            target: target.clone(),
            ok: false,
            outcome: Word::Unverified,
            error: Some(report::in_one_line(error)),
            files: 0,
            bytes: 0,
            findings: Vec::new(),
            unverified: 0,
            unverified_examples: Vec::new(),
            sampled: None,
            error_kind: Some(error.kind()),
        }
    }

    /// How many of its files are damaged.
    pub(super) fn damaged(&self) -> usize {
        self.findings.len()
    }

    /// How many of its files no key at hand opens.
    pub(super) fn unverified_files(&self) -> u64 {
        self.unverified
    }

    pub(super) fn error_kind(&self) -> Option<ErrorKind> {
        self.error_kind
    }

    /// A line for all of it and one for each finding.
    pub(super) fn tell(&self, app: &App) -> Result<()> {
        let Self { target, files, bytes: read, sampled, unverified, .. } = self;
        let sampled = sampled.map(|n| format!(", {n} of them read at random")).unwrap_or_default();
        let unverified = match unverified {
            0 => String::new(),
            n => format!(", {n} of them not verified"),
        };
        let of_them = format!("WAL of {target}  ({files} files{sampled}{unverified}, {} checked)", bytes(*read));
        let mut text = match self.outcome {
            Word::Ok => format!("ok          {of_them}\n"),
            Word::Damaged => format!("DAMAGED     {of_them}\n"),
            Word::Unverified if *files == 0 => format!("unverified  WAL of {target}\n"),
            Word::Unverified => format!("unverified  {of_them}\n"),
        };
        text.push_str(&lines(&self.findings, self.error.as_deref()));
        app.output.data(&text)
    }
}

fn lines(findings: &[Finding], error: Option<&str>) -> String {
    let mut text = String::new();
    for finding in findings {
        text.push_str(&format!("            {}: {}\n", plain(&finding.object), plain(&finding.problem)));
    }
    if let Some(error) = error {
        text.push_str(&format!("            could not be verified: {}\n", plain(error)));
    }
    text
}
