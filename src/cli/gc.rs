//! `rafthold gc plan` and `rafthold gc run`.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use crate::ops::client::Error;

use super::cluster::Target;
use super::print;

/// How often a pass that takes long is asked about.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A plan looks at every link of the registry.
const PATIENCE: Duration = Duration::from_secs(120);

/// Look at what collection would take, or have it done now.
#[derive(Debug, clap::Subcommand)]
pub(super) enum GcCommand {
    /// Show what a pass would take now, or why something is kept.
    Plan(PlanOptions),
    /// Collect now, and show what went.
    Run(RunOptions),
}

/// Options of `gc plan`.
#[derive(Debug, clap::Args)]
pub(super) struct PlanOptions {
    #[command(flatten)]
    target: Target,
    /// Say what keeps this: a digest, or `<repository>@<digest>`.
    #[arg(long, value_name = "DIGEST")]
    explain: Option<String>,
    /// Links listed at most; all are counted.
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

/// Options of `gc run`.
#[derive(Debug, clap::Args)]
pub(super) struct RunOptions {
    #[command(flatten)]
    target: Target,
}

/// Runs the command.
pub(super) fn run(command: &GcCommand) -> ExitCode {
    let done = super::runtime().map_err(Error::Io).and_then(|runtime| runtime.block_on(ask(command)));
    let (target, table): (_, fn(&Value) -> String) = match command {
        GcCommand::Plan(options) if options.explain.is_some() => (&options.target, explained),
        GcCommand::Plan(options) => (&options.target, planned),
        GcCommand::Run(options) => (&options.target, collected),
    };
    match done {
        Ok(answer) => {
            target.print(&answer, table);
            verdict(&answer)
        }
        Err(error) => print::failure(&error, 1),
    }
}

/// A pass that stopped before its end is a failure.
fn verdict(answer: &Value) -> ExitCode {
    if answer["failed"].is_string() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn ask(command: &GcCommand) -> Result<Value, Error> {
    match command {
        GcCommand::Plan(options) => {
            let path = match &options.explain {
                Some(subject) => format!("/api/v1/gc/plan?explain={}", escaped(subject)),
                None => format!("/api/v1/gc/plan?limit={}", options.limit),
            };
            options.target.client()?.patient(PATIENCE).get(&path).await
        }
        GcCommand::Run(options) => {
            let client = options.target.client()?;
            let mut pass = client.post("/api/v1/gc/run", &serde_json::json!({})).await?;
            while pass["running"] == true {
                tokio::time::sleep(ASK_EVERY).await;
                pass = client.get("/api/v1/gc/run").await?;
            }
            Ok(pass)
        }
    }
}

/// Escapes what may not stand in a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn collected(pass: &Value) -> String {
    let mut text = format!(
        "collected {} blob links and {} manifests of {} links looked at; {} will be freed\n",
        pass["blobs"],
        pass["manifests"],
        pass["links"],
        bytes(&pass["bytes"]),
    );
    if let Some(reason) = pass["failed"].as_str() {
        text.push_str(&format!("stopped before the end: {reason}\n"));
    }
    text
}

fn planned(plan: &Value) -> String {
    let mut text = format!(
        "would collect {} blob links and {} manifests of {} links looked at; {} would be freed\n",
        plan["blobs"],
        plan["manifests"],
        plan["seen"],
        bytes(&plan["bytes"]),
    );
    if plan["fresh"] == false {
        text.push_str("warning: the node is out of touch with the quorum, this may be old\n");
    }
    if plan["spared"].as_u64().is_some_and(|spared| spared > 0) {
        text.push_str(&format!(
            "{} more that nothing names are spared, the first for {}, the last for {}\n",
            plan["spared"],
            span(&plan["spared_first_seconds"]),
            span(&plan["spared_last_seconds"]),
        ));
    }
    let links = plan["links"].as_array().map(Vec::as_slice).unwrap_or_default();
    if links.is_empty() {
        return text;
    }
    let mut rows = vec![["kind", "size", "goes", "link"].map(str::to_owned).to_vec()];
    rows.extend(links.iter().map(|link| {
        let left = &link["seconds_left"];
        let goes = if *left == 0 { "now".to_owned() } else { format!("in {}", span(left)) };
        let name = format!("{}@{}", word(&link["repository"]), word(&link["digest"]));
        vec![word(&link["kind"]), bytes(&link["size"]), goes, name]
    }));
    text.push('\n');
    text.push_str(&print::table(&rows));
    text
}

fn explained(answer: &Value) -> String {
    let found = answer["explained"].as_array().map(Vec::as_slice).unwrap_or_default();
    if found.is_empty() {
        return "nothing links it\n".to_owned();
    }
    let why = |one: &Value| match one["kept_by"].as_str() {
        Some("tag") => format!("tagged as {}", word(&one["tag"])),
        Some("manifest") => format!("named by {}", word(&one["manifest"])),
        Some("subject") => format!("refers to {}, which is there", word(&one["subject"])),
        Some("subject to come") => format!("refers to {}, which may still come", word(&one["subject"])),
        Some("lease") => format!("nothing names it; spared for {}", span(&one["seconds_left"])),
        Some("upload") => {
            let left = span(&one["seconds_left"]);
            format!("nothing names it; an upload to this repository is under way or has just ended; spared for {left}")
        }
        Some(_) => "nothing names it; untagged manifests are kept".to_owned(),
        None => "goes with the next pass".to_owned(),
    };
    let rows: Vec<_> = found.iter().map(|one| vec![word(&one["repository"]), word(&one["kind"]), why(one)]).collect();
    print::table(&rows)
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Prints a number of bytes in the largest unit in which it is at least one.
fn bytes(value: &Value) -> String {
    let bytes = value.as_u64().unwrap_or(0);
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = u128::from(bytes) * 10 / (1 << shift);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

/// Prints a number of seconds in two units at most.
fn span(value: &Value) -> String {
    let seconds = value.as_u64().unwrap_or(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_goes_now_and_what_later() {
        let plan = serde_json::json!({
            "fresh": true, "seen": 10, "blobs": 1, "manifests": 0, "bytes": 5_242_880, "spared": 1,
            "spared_first_seconds": 90, "spared_last_seconds": 90,
            "links": [
                { "repository": "a/b", "digest": "sha256:1", "kind": "blob", "size": 5_242_880, "seconds_left": 0 },
                { "repository": "a/b", "digest": "sha256:2", "kind": "manifest", "size": 12, "seconds_left": 90 },
            ],
        });
        let text = planned(&plan);
        assert!(text.contains("would collect 1 blob links and 0 manifests of 10 links looked at; 5.0 MiB"), "{text}");
        assert!(text.contains("1 more that nothing names are spared, the first for 1m 30s"), "{text}");
        assert!(text.contains("blob      5.0 MiB  now        a/b@sha256:1\n"), "{text}");
        assert!(text.contains("manifest  12 B     in 1m 30s  a/b@sha256:2\n"), "{text}");
    }

    #[test]
    fn an_explanation_is_a_sentence_for_each_repository() {
        let answer = serde_json::json!({ "explained": [
            { "repository": "a", "kind": "blob", "goes": false, "kept_by": "manifest", "manifest": "sha256:1" },
            { "repository": "b", "kind": "blob", "goes": false, "kept_by": "lease", "seconds_left": 3700 },
            { "repository": "c", "kind": "blob", "goes": false, "kept_by": "upload", "seconds_left": 60 },
            { "repository": "d", "kind": "blob", "goes": true },
        ] });
        let text = "a  blob  named by sha256:1\nb  blob  nothing names it; spared for 1h 1m\n\
            c  blob  nothing names it; an upload to this repository is under way or has just ended; spared for 1m 0s\n\
            d  blob  goes with the next pass\n";
        assert_eq!(explained(&answer), text);
        assert_eq!(explained(&serde_json::json!({ "explained": [] })), "nothing links it\n");
    }

    #[test]
    fn subjects_stay_one_parameter_whatever_they_hold() {
        assert_eq!(escaped("a/b@sha256:0f"), "a/b@sha256:0f");
        assert_eq!(escaped("a&b=c%"), "a%26b%3Dc%25");
    }
}
