//! `rafthold cluster token …`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::print;
use crate::ops::client::Error;

use super::Target;

const PATH: &str = "/api/v1/cluster/tokens";

/// Tokens by which nodes join.
#[derive(Debug, clap::Subcommand)]
pub(in crate::cli) enum Command {
    /// Make a token by which one node may join; it is shown this once.
    Create(Create),
    /// List the tokens, without what would let anybody use them.
    List(List),
    /// Take a token back.
    Revoke(Revoke),
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Create {
    /// How long it is good for, as `30m`, `1h` or `2d`.
    #[arg(long, default_value = "1h", value_parser = ttl)]
    ttl: Duration,
    /// A learner never votes, unless an operator says so later.
    #[arg(long, default_value = "voter")]
    role: Role,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    Voter,
    Learner,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Revoke {
    /// Its id, as `token list` shows it.
    id: String,
    #[command(flatten)]
    target: Target,
}

fn ttl(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text).ok_or_else(|| format!("`{text}` is not a duration like 30m, 1h or 2d"))
}

impl Command {
    fn target(&self) -> &Target {
        match self {
            Self::Create(create) => &create.target,
            Self::List(list) => &list.target,
            Self::Revoke(revoke) => &revoke.target,
        }
    }

    /// Runs the command.
    pub(in crate::cli) fn run(&self) -> ExitCode {
        let done = crate::cli::runtime().map_err(Error::Io).and_then(|runtime| runtime.block_on(self.act()));
        match done {
            Ok((answer, text)) => self.target().print(&answer, |_| text),
            Err(error) => print::failure(&error, 1),
        }
    }

    async fn act(&self) -> Result<(Value, String), Error> {
        let client = self.target().client()?;
        match self {
            Self::Create(create) => {
                let role = if create.role == Role::Learner { "learner" } else { "voter" };
                let body = json!({ "ttl_seconds": create.ttl.as_secs(), "role": role });
                let made = client.post(PATH, &body).await?;
                let token = made["token"].as_str().unwrap_or_default();
                let text = format!(
                    "{token}\n\nOn the new machine: rafthold cluster join --token TOKEN --seed HOST:PORT --config \
                     node.toml, then rafthold serve --config node.toml.\nHOST:PORT is the rpc address of a member. The \
                     token is good for one node and {} s.\n",
                    made["expires_in_seconds"]
                );
                Ok((made.clone(), text))
            }
            Self::List(_) => {
                let tokens = client.get(PATH).await?;
                let text = table(&tokens);
                Ok((tokens, text))
            }
            Self::Revoke(revoke) => {
                let gone = client.delete(&format!("{PATH}/{}", revoke.id)).await?;
                Ok((gone, format!("token {} is good for nothing any more\n", revoke.id)))
            }
        }
    }
}

fn table(tokens: &Value) -> String {
    let mut rows = vec![["id", "role", "state"].map(str::to_owned).to_vec()];
    for token in tokens["tokens"].as_array().into_iter().flatten() {
        let text = |key: &str| token[key].as_str().unwrap_or_default().to_owned();
        let state = match (token["used_by"].as_u64(), token["expired"].as_bool()) {
            (Some(node), _) => format!("used by node {node}"),
            (None, Some(true)) => "expired".to_owned(),
            _ => format!("good for {} s", token["expires_in_seconds"]),
        };
        rows.push(vec![text("id"), text("role"), state]);
    }
    print::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed_with_what_became_of_them() {
        let token = |id: &str, expired, used_by: Option<u64>| json!({ "id": id, "role": "voter", "expires_in_seconds": 9, "expired": expired, "used_by": used_by });
        let tokens = json!({ "tokens": [token("a", false, None), token("b", true, None), token("c", true, Some(4))] });
        let text = table(&tokens);
        assert!(text.contains("a   voter  good for 9 s\n"), "{text}");
        assert!(text.contains("b   voter  expired\n") && text.contains("c   voter  used by node 4\n"), "{text}");
        assert!(ttl("1h").is_ok() && ttl("soon").is_err());
    }
}
