//! `rafthold cluster policy`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::ops::client::Error;

use super::cluster::Target;
use super::print;

const PATH: &str = "/api/v1/cluster/policy";

/// Options of `cluster policy`; without `--copies` and `--region` it only shows.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Copies wanted of each blob in all, 1 to 16.
    #[arg(long)]
    copies: Option<u32>,
    /// Copies wanted in a region at least, as `eu=2`; `eu=0` takes the region out. May be given several times.
    #[arg(long = "region", value_parser = region, value_name = "NAME=COPIES")]
    regions: Vec<(String, u32)>,
    #[command(flatten)]
    target: Target,
}

fn region(text: &str) -> Result<(String, u32), String> {
    let (name, copies) = text.split_once('=').ok_or("want NAME=COPIES, like eu=2")?;
    let copies = copies.parse().map_err(|_| format!("`{copies}` is no number of copies"))?;
    Ok((name.to_owned(), copies))
}

/// Runs the command.
pub(super) fn run(options: &Options) -> ExitCode {
    let done = super::runtime().map_err(Error::Io).and_then(|runtime| runtime.block_on(act(options)));
    match done {
        Ok(policy) => options.target.print(&policy, text),
        Err(error) => print::failure(&error, 1),
    }
}

async fn act(options: &Options) -> Result<Value, Error> {
    let client = options.target.client()?;
    let now = client.get(PATH).await?;
    if options.copies.is_none() && options.regions.is_empty() {
        return Ok(now);
    }
    client.put(PATH, &changed(&now, options.copies, &options.regions)).await
}

/// The policy that is to be, from the one that is.
fn changed(now: &Value, copies: Option<u32>, regions: &[(String, u32)]) -> Value {
    let old = now["regions"].as_object().into_iter().flatten();
    let mut all: BTreeMap<String, Value> = old.map(|(name, copies)| (name.clone(), copies.clone())).collect();
    for (name, copies) in regions {
        match copies {
            0 => drop(all.remove(name)),
            copies => drop(all.insert(name.clone(), (*copies).into())),
        }
    }
    json!({ "copies": copies.map_or_else(|| now["copies"].clone(), Value::from), "regions": all })
}

fn text(policy: &Value) -> String {
    let mut text = format!("copies: {}\n", policy["copies"]);
    for (region, copies) in policy["regions"].as_object().into_iter().flatten() {
        text.push_str(&format!("region {region}: {copies}\n"));
    }
    if policy["agreed"] == false {
        text.push_str("not agreed on yet: each node goes by its own configuration\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays() {
        let now = json!({ "copies": 3, "regions": { "eu": 2, "us": 1 }, "agreed": true, "index": 9 });
        let region = |text: &str| region(text).unwrap();
        assert_eq!(changed(&now, Some(4), &[]), json!({ "copies": 4, "regions": { "eu": 2, "us": 1 } }));
        let regions = [region("us=0"), region("asia=1")];
        assert_eq!(changed(&now, None, &regions), json!({ "copies": 3, "regions": { "asia": 1, "eu": 2 } }));
        assert!(super::region("eu").is_err() && super::region("eu=many").is_err());
        assert_eq!(text(&now), "copies: 3\nregion eu: 2\nregion us: 1\n");
    }
}
