//! `backup generate`: manual pages and completions, made from the same definitions as `--help`.

use std::path::Path;

use backup_core::{Error, ErrorKind, Result, Stage};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::{Artifact, Cli, GenerateArgs};
use crate::exit::Exit;
use crate::output::Output;

pub(crate) fn run(args: &GenerateArgs, output: &Output) -> Result<Exit> {
    let shell = match (args.what, &args.dir) {
        (Artifact::Man, Some(dir)) => return all_pages(dir),
        (_, Some(_)) => return Err(Error::config("--dir is only for manual pages")),
        (Artifact::Man, None) => {
            let mut page = Vec::new();
            Man::new(Cli::command()).render(&mut page).map_err(|e| failed("could not make the manual page", e))?;
            output.data(&String::from_utf8_lossy(&page))?;
            return Ok(Exit::Done);
        }
        (Artifact::Bash, None) => Shell::Bash,
        (Artifact::Zsh, None) => Shell::Zsh,
        (Artifact::Fish, None) => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "backup", &mut script);
    output.data(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

fn all_pages(dir: &Path) -> Result<Exit> {
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .map_err(|e| failed(&format!("could not write manual pages to {}", dir.display()), e))?;
    Ok(Exit::Done)
}

fn failed(message: &str, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Sink, Stage::Sink, message).with_source(error)
}
