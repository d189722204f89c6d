//! `tombolo man`: manual pages, made from the command line's own definition.

use std::path::PathBuf;

use anyhow::Context;

use crate::exit::Exit;
use crate::output::{note, print};

const EXAMPLES: &str = "\
Examples:
  tombolo man | man -l -
  tombolo man --dir /usr/share/man/man1";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Write a page for every command into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, command: clap::Command) -> anyhow::Result<Exit> {
    match &args.dir {
        Some(dir) => {
            let write = || {
                std::fs::create_dir_all(dir)?;
                clap_mangen::generate_to(command, dir)
            };
            write().with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
            note(&format!("manual pages written to {}", dir.display()));
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).context("cannot make the manual page")?;
            print(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(Exit::Ok)
}
