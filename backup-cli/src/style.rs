//! The few colours of messages.

use clap::builder::styling::{AnsiColor, Style};

/// The word `error:`.
pub(crate) const ERROR: Style = AnsiColor::Red.on_default().bold();
/// The word `warning:`.
pub(crate) const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// The word `hint:`.
pub(crate) const HINT: Style = AnsiColor::Green.on_default().bold();
/// What must not be overlooked.
pub(crate) const BOLD: Style = Style::new().bold();
