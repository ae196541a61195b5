//! `rafthold dev`: a registry of real node processes on this machine.
//!
//! Owns `PATH`: its lock, `secret`, `cluster.json` (there exactly while the cluster it describes has come up), and per node
//! `n<i>/node.toml`, `n<i>/log`, `n<i>/data`. A node that dies stays dead until somebody starts it again with
//! `rafthold serve --config`; it never ends `dev`. The nodes' standard input is a pipe from here, so they stop when `dev` is
//! gone, however it went. Start reading at [`run`].

mod children;
mod layout;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::disk;
use crate::ops::client::Client;

use super::print;
use children::Child;
use layout::{Layout, Place};

/// Options of `dev`.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=15))]
    nodes: u16,
    /// Where everything lies; kept between runs.
    #[arg(long, default_value = "rafthold-dev", value_name = "PATH")]
    dir: PathBuf,
    /// Port of the first node; node i serves on base-port + i - 1, and other nodes reach it on base-port + 100 + i - 1.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..=65_400))]
    base_port: u16,
    /// Begin anew: everything that earlier runs left in the directory is removed.
    #[arg(long)]
    fresh: bool,
}

/// Says why the nodes could not be started.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{doing} {path}", path = path.display())]
    Io { doing: &'static str, path: PathBuf, source: std::io::Error },
    #[error("another `rafthold dev` runs in {path}", path = path.display())]
    Running { path: PathBuf },
    #[error("address {address} is taken: stop what listens there, or choose another --base-port")]
    Taken { address: String, source: std::io::Error },
    #[error("runtime")]
    Runtime { source: std::io::Error },
}

/// How often nodes are asked whether they are ready.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Runs the command.
pub(super) fn run(options: &Options) -> ExitCode {
    let done = super::runtime().map_err(|source| Error::Runtime { source }).and_then(|runtime| {
        runtime.block_on(async {
            let layout = Layout::new(&options.dir, options.nodes, options.base_port)?;
            let lock = disk::lock_dir(&layout.dir).map_err(|source| match source.kind() {
                std::io::ErrorKind::WouldBlock => Error::Running { path: layout.dir.clone() },
                _ => Error::Io { doing: "lock", path: layout.dir.clone(), source },
            })?;
            let ended = live(&layout, options.fresh).await;
            drop(lock);
            ended
        })
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => print::failure(&error, 1),
    }
}

async fn live(layout: &Layout, fresh: bool) -> Result<(), Error> {
    let stop = |kind| signal(kind).map_err(|source| Error::Runtime { source });
    let (mut interrupt, mut terminate) = (stop(SignalKind::interrupt())?, stop(SignalKind::terminate())?);
    layout.prepare(fresh)?;
    let mut children = Vec::new();
    for place in &layout.places {
        children.push(Child::start(place)?);
    }
    print::line(&format!("starting {} nodes in {} …", children.len(), layout.dir.display()));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        never = watch(layout, &mut children) => match never? {},
    }
    print::line("stopping …");
    tokio::select! {
        () = Child::stop_all(&mut children) => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Child::kill_all(&mut children).await;
    layout.remove_cluster_file()
}

/// Brings the cluster up and then reports every node that ends; never returns but with an error.
async fn watch(layout: &Layout, children: &mut [Child]) -> Result<std::convert::Infallible, Error> {
    let pids: Vec<u32> = children.iter().map(Child::pid).collect();
    let report = async {
        let mut ends: futures::stream::FuturesUnordered<_> = children.iter_mut().map(Child::ended).collect();
        while let Some(end) = futures::StreamExt::next(&mut ends).await {
            print::complain(&end);
        }
        std::future::pending::<()>().await;
    };
    let announce = async {
        ready(layout).await;
        let nodes = describe(layout, &pids).await;
        layout.write_cluster_file(&json!({ "nodes": nodes }))?;
        print::text(&introduction(layout, &nodes));
        std::future::pending::<Result<std::convert::Infallible, Error>>().await
    };
    tokio::select! {
        () = report => std::future::pending().await,
        failed = announce => failed,
    }
}

/// Waits until every node says that it serves.
async fn ready(layout: &Layout) {
    for place in &layout.places {
        loop {
            if let Ok(client) = Client::new(&place.api_url(), None)
                && client.is_ready().await
            {
                break;
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

/// Describes the nodes as `cluster.json` has them; ids come from the cluster itself.
async fn describe(layout: &Layout, pids: &[u32]) -> Vec<serde_json::Value> {
    let ids = loop {
        if let Some(ids) = ids(layout).await {
            break ids;
        }
        tokio::time::sleep(ASK_EVERY).await;
    };
    let places = layout.places.iter().zip(pids).zip(ids);
    let describe = |((place, pid), id): ((&Place, &u32), u64)| {
        json!({
            "id": id, "name": place.name, "zone": place.zone, "region": layout::REGION,
            "api": place.api_url(), "rpc": place.rpc_address(), "pid": pid,
            "data_dir": place.data_dir(), "config": place.config(),
        })
    };
    places.map(describe).collect()
}

async fn ids(layout: &Layout) -> Option<Vec<u64>> {
    let client = Client::new(&layout.places[0].api_url(), None).ok()?;
    let status = client.get("/api/v1/cluster/status").await.ok()?;
    let nodes = status["nodes"].as_array()?;
    let id = |place: &Place| {
        let same = nodes.iter().filter(|node| node["name"] == place.name.as_str());
        same.filter_map(|node| node["id"].as_u64()).max()
    };
    layout.places.iter().map(id).collect()
}

/// What people see when the cluster is up.
fn introduction(layout: &Layout, nodes: &[serde_json::Value]) -> String {
    let columns = ["id", "name", "zone", "api", "rpc", "pid", "config"];
    let mut rows = vec![columns.map(str::to_owned).to_vec()];
    for node in nodes {
        let cell = |key: &&str| node[*key].as_str().map_or_else(|| node[*key].to_string(), str::to_owned);
        rows.push(columns.iter().map(cell).collect());
    }
    let first = layout.places[0].api_address();
    let last = layout.places[layout.places.len() - 1].api_address();
    let config = layout.places[0].config();
    let me = std::env::current_exe().map_or_else(|_| "rafthold".to_owned(), |path| path.display().to_string());
    format!(
        "\n{table}\nThe registry is up. Any node answers any request:\n\n  \
         docker tag alpine {first}/alpine && docker push {first}/alpine && docker pull {last}/alpine\n  \
         skopeo copy --dest-tls-verify=false docker://docker.io/library/alpine docker://{first}/alpine\n  \
         crane copy --insecure alpine {first}/alpine && crane manifest --insecure {last}/alpine\n  \
         curl http://{last}/v2/_catalog\n\n\
         Kill a node and go on; start it again when you like:\n\n  \
         kill -9 {pid}\n  \
         {me} cluster status --endpoint http://{last}\n  \
         {me} serve --config {config}\n\n\
         Ctrl-C stops all nodes; what they hold stays in {dir} (--fresh begins anew).\n",
        table = print::table(&rows),
        pid = nodes[0]["pid"],
        config = config.display(),
        dir = layout.dir.display(),
    )
}
