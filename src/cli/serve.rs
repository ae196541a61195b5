//! `rafthold serve`: one node, until a signal or its own end.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::node::{self, Outcome};
use crate::telemetry;

use super::print;

/// Options of `serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The node's configuration file; without it, a one-node registry on 127.0.0.1:5000 with data in ./rafthold-data.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Let everybody in from other machines although no login is set up.
    #[arg(long)]
    insecure: bool,
    /// Stop when standard input is closed: how the nodes of `dev` notice that it is gone.
    #[arg(long, hide = true)]
    stop_with_parent: bool,
}

/// Runs the command.
pub(super) fn run(options: &Options) -> ExitCode {
    let insecure = options.insecure.then(|| ("RAFTHOLD_API__INSECURE".into(), "true".into()));
    let environment = std::env::vars_os().chain(insecure);
    let loaded = crate::config::Config::load(options.config.as_deref(), environment)
        .and_then(|config| config.check_log().map(|()| config));
    let config = match loaded {
        Ok(config) => config,
        Err(error) => return print::failure(&error, super::EXIT_CONFIGURATION),
    };
    if let Err(error) = telemetry::init(config.log.format, &config.log.filter) {
        return print::failure(&error, super::EXIT_CONFIGURATION);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_name("rafthold").enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return print::failure(&error, 1),
    };
    let outcome = runtime.block_on(node::run(config, options.stop_with_parent));
    // blocking calls that hang on a dead disk must not keep the process
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Outcome::Stopped => ExitCode::SUCCESS,
        Outcome::Ended => ExitCode::FAILURE,
        Outcome::Unusable(error) => {
            let code = if error.is_configuration() { super::EXIT_CONFIGURATION } else { 1 };
            print::failure(&error, code)
        }
    }
}
