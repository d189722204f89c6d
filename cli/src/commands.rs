//! The operator's commands. Each is a file of this folder with its arguments and one `run`.

mod apply;
mod completion;
mod delete;
mod describe;
mod diff;
mod get;
mod host;
mod login;
mod man;
mod status;
mod token;

use std::future::Future;

use anyhow::Context;
use clap::{CommandFactory, Subcommand};

use crate::client::Client;
use crate::config::{Connection, ConnectionArgs};
use crate::exit::Exit;
use crate::output::Output;

pub(crate) use get::Item;

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Create or change objects from files, all or nothing
    Apply(apply::Args),
    /// Show what apply would change
    Diff(diff::Args),
    /// List objects, workloads, hosts or tokens
    Get(get::Args),
    /// Show one object with what belongs to it
    Describe(describe::Args),
    /// Delete objects
    Delete(delete::Args),
    /// Make, list and revoke the tokens by which hosts join
    #[command(subcommand)]
    Token(token::Command),
    /// List hosts, and decide about them
    #[command(subcommand)]
    Host(host::Command),
    /// Remember a control plane and the token for it
    Login(login::Args),
    /// Print completions for a shell
    Completion(completion::Args),
    /// Print the manual pages
    Man(man::Args),
}

pub(crate) fn run(command: OperatorCommand, output: Output) -> anyhow::Result<Exit> {
    match command {
        OperatorCommand::Apply(args) => block_on(apply::run(args, output)),
        OperatorCommand::Diff(args) => block_on(diff::run(args, output)),
        OperatorCommand::Get(args) => block_on(get::run(args, output)),
        OperatorCommand::Describe(args) => block_on(describe::run(args, output)),
        OperatorCommand::Delete(args) => block_on(delete::run(args, output)),
        OperatorCommand::Token(command) => block_on(token::run(command, output)),
        OperatorCommand::Host(command) => block_on(host::run(command, output)),
        OperatorCommand::Login(args) => block_on(login::run(args)),
        OperatorCommand::Completion(args) => completion::run(&args, crate::Cli::command()),
        OperatorCommand::Man(args) => man::run(&args, crate::Cli::command()),
    }
}

/// `tombolo status` where a control plane is named.
pub(crate) fn status(connection: ConnectionArgs, output: Output) -> anyhow::Result<Exit> {
    block_on(status::run(connection, output))
}

/// One thread is enough for one caller.
fn block_on(command: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")?.block_on(command)
}

/// A client for the control plane that the flags, the environment or the context name.
fn connect(args: &ConnectionArgs) -> anyhow::Result<(Client, Connection)> {
    let connection = args.resolve()?;
    Ok((Client::new(&connection)?, connection))
}
