//! The command line: `dev`, `serve`, `cluster status`, `cluster policy`, `config check`, `config show`.
//!
//! Owns nothing. Output for people and scripts goes to standard output, logs to standard error. Exit codes: 0 done or
//! stopped, 1 failed (a critical task ended), 64 bad configuration or usage. Start reading at [`run`].

mod blob;
mod cluster;
mod dev;
mod fsck;
mod gc;
mod policy;
mod print;
mod repair;
mod serve;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;

/// Bad configuration or usage.
const EXIT_CONFIGURATION: u8 = 64;

/// An OCI registry with no single point of failure.
#[derive(Debug, Parser)]
#[command(name = "rafthold", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a registry of several nodes on this machine, to try things out.
    Dev(dev::Options),
    /// Run one node.
    Serve(serve::Options),
    /// Look at a cluster, and change who is in it.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Follow how copies are brought back to where they should be.
    #[command(subcommand)]
    Repair(RepairCommand),
    /// Look at what collection would take, or have it done now.
    #[command(subcommand)]
    Gc(gc::GcCommand),
    /// Look after single blobs.
    #[command(subcommand)]
    Blob(blob::BlobCommand),
    /// Check the data directory of a node that does not run.
    Fsck(fsck::Options),
    /// Look at a configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show nodes, leader, applied log index and state hash per node, and the state of copies.
    Status(cluster::Status),
    /// Make, list and take back tokens by which nodes join.
    #[command(subcommand)]
    Token(cluster::Tokens),
    /// Show how many copies of each blob there should be, or agree on another number.
    Policy(policy::Options),
    #[command(flatten)]
    Prepare(cluster::Prepare),
    #[command(flatten)]
    Members(cluster::Members),
}

#[derive(Debug, Subcommand)]
enum RepairCommand {
    /// Show what is missing, how fast it is fetched and how long it takes.
    Status(repair::Options),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Check a configuration file together with the environment.
    Check(ConfigOptions),
    /// Print every setting as it would be in force.
    Show(ConfigOptions),
}

#[derive(Debug, clap::Args)]
struct ConfigOptions {
    /// The node's configuration file; without it, the defaults.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_CONFIGURATION } else { 0 };
            // nobody left to tell when even this cannot be printed
            error.print().ok();
            return ExitCode::from(code);
        }
    };
    match cli.command {
        Command::Dev(options) => dev::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Cluster(ClusterCommand::Status(options)) => cluster::run_status(&options),
        Command::Cluster(ClusterCommand::Token(command)) => command.run(),
        Command::Cluster(ClusterCommand::Prepare(command)) => command.run(),
        Command::Cluster(ClusterCommand::Members(command)) => command.run(),
        Command::Repair(RepairCommand::Status(options)) => repair::run(&options),
        Command::Gc(command) => gc::run(&command),
        Command::Blob(command) => blob::run(&command),
        Command::Fsck(options) => fsck::run(&options),
        Command::Cluster(ClusterCommand::Policy(options)) => policy::run(&options),
        Command::Config(ConfigCommand::Check(options)) => match load(options.config.as_deref()) {
            Ok(_) => print::line("configuration is valid"),
            Err(code) => code,
        },
        Command::Config(ConfigCommand::Show(options)) => match load(options.config.as_deref()) {
            Ok(config) => print::text(&config.show()),
            Err(code) => code,
        },
    }
}

/// Reads the configuration, or says what is wrong with it.
fn load(path: Option<&Path>) -> Result<Config, ExitCode> {
    Config::load(path, std::env::vars_os())
        .and_then(|config| config.check_log().map(|()| config))
        .map_err(|error| print::failure(&error, EXIT_CONFIGURATION))
}

/// The runtime of a short command.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
