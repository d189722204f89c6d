//! `tombolo completion`: completions for a shell, made from the command line's own definition.

use clap_complete::Shell;

use crate::exit::Exit;
use crate::output::print;

const EXAMPLES: &str = "\
Examples:
  source <(tombolo completion bash)
  tombolo completion zsh > ~/.zfunc/_tombolo
  tombolo completion fish > ~/.config/fish/completions/tombolo.fish";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

pub(super) fn run(args: &Args, mut command: clap::Command) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tombolo", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Ok)
}
