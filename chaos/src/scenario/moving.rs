//! What the scenarios share in which nodes come and go for good: a cluster in zones with a stock of content, clients that
//! pull it all the time, others that write around the change, and what must be true at the end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use rafthold::oci::Digest;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::check::copies::{self, Disk};
use crate::client::Client;
use crate::cluster::{Cluster, Operator, Options};
use crate::workload::{Amount, Item, Ledger, Pulls, Stock, Workload};

use super::countdown::Countdown;
use super::{Setup, until, verdict};

/// How much there is to move, and how fast.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Scale {
    /// Blobs from 4 KiB to the largest size, evenly spread over the orders of magnitude.
    #[arg(long, default_value_t = 200)]
    blobs: usize,
    /// Size of the largest blob.
    #[arg(long, default_value_t = 64)]
    mebibytes: usize,
    /// Further blobs of less than 4 KiB.
    #[arg(long, default_value_t = 20_000)]
    small: usize,
    /// Clients that pull all the time.
    #[arg(long, default_value_t = 6)]
    pullers: usize,
    /// What a node may fetch in a second, clients or not.
    #[arg(long, default_value_t = 20)]
    limit_mebibytes: u64,
}

/// Copies that there should be of each blob: the default of the registry.
pub(super) const COPIES: usize = 3;

/// How long pulls are measured before anything changes.
const BEFORE: Duration = Duration::from_secs(20);

/// How long clients go on writing after a change.
const WRITES_AFTER: Duration = Duration::from_secs(10);

/// All copies must be back within this.
pub(super) const WITHIN: Duration = Duration::from_secs(25 * 60);

/// Pulls that are this fast are fast enough, whatever they were before: on a shared machine less is noise.
const FAST: Duration = Duration::from_millis(100);

/// Of its limit, a node must fetch at this part of it where the limit is what holds it up.
const OF_LIMIT_MIN: f64 = 0.7;

/// Pulls in each span that are too few to prove anything.
const PULLS_MIN: usize = 200;

/// Pulls while copies move of which the slowest hundredth says something.
const JUDGED_PULLS: usize = 500;

/// How long a command may take that only has something agreed on.
pub(super) const COMMAND_MAX: Duration = Duration::from_secs(30);

/// A node counts out soon, copies are counted often, and surplus ones go after a little more than a command may live.
const SETTINGS: &str = "\n[storage]\npin = \"70s\"\nfree_min = \"64MiB\"\nfree_reserve = \"32MiB\"\n";
const ENVIRONMENT: &[(&str, &str)] = &[("RAFTHOLD_CLUSTER__OUT_AFTER", "10s")];

/// A cluster with content and clients.
#[derive(Debug)]
pub(super) struct Lab {
    pub(super) cluster: Cluster,
    pub(super) stock: Arc<Stock>,
    pub(super) operator: Operator,
    pulls: Pulls,
    /// The span in which pulls were measured before anything changed.
    before: (Instant, Instant),
    limit: u64,
    seed: u64,
}

impl Lab {
    /// Starts five nodes in the given zones, with `later` more to join, fills them, and measures pulls for a while.
    pub(super) async fn begin(setup: &Setup, scale: Scale, (zones, later): (&'static [usize], usize)) -> Result<Self> {
        let limit = scale.limit_mebibytes << 20;
        let pace = format!(
            "\n[repair]\nbandwidth = \"{}MiB\"\nbusy_percent = 100\nsurvey_every = \"3s\"\n",
            scale.limit_mebibytes
        );
        let settings = format!("{SETTINGS}{pace}");
        let options = Options { nodes: 5, zones, later, settings, environment: ENVIRONMENT, ..setup.options(None) };
        let cluster = Cluster::start(&options).await?;
        let amount = Amount { large: scale.blobs, bytes_max: scale.mebibytes << 20, small: scale.small };
        let began = Instant::now();
        let client = Client::new(cluster.living().into_iter().map(|node| cluster.api(node).to_owned()).collect());
        let stock = Stock::push(&client, setup.seed, amount).await?;
        println!(
            "{} blobs and {} small ones, {} MiB, in {} manifests: pushed in {:.0} s",
            stock.large.len(),
            stock.small.len(),
            stock.bytes() >> 20,
            stock.manifests.len(),
            began.elapsed().as_secs_f64()
        );
        all_in_place(&cluster, 0).await?;
        let pulls = Pulls::start(&cluster, &stock, (setup.seed, scale.pullers));
        sleep(Duration::from_secs(3)).await;
        let from = Instant::now();
        sleep(BEFORE).await;
        let before = (from, Instant::now());
        let operator = cluster.operator();
        Ok(Self { cluster, stock, operator, pulls, before, limit, seed: setup.seed })
    }

    /// Lets one client push and pull and one write and read tags beside those that pull, until some writes are done.
    pub(super) async fn write(&self) -> Result<Workload> {
        let workload = Workload::start(&self.cluster, self.seed, 1);
        let ledger = workload.ledger.clone();
        let many = || ledger.images().len() >= 8 && ledger.registers().iter().map(Vec::len).sum::<usize>() >= 60;
        until("writes at first", Duration::from_secs(90), async || many()).await?;
        Ok(workload)
    }

    /// Ends the writes some time after a change.
    pub(super) async fn end_writes(&self, workload: Workload) -> Arc<Ledger> {
        sleep(WRITES_AFTER).await;
        workload.stop().await
    }

    /// Follows the cluster to the end of the work that a change has made.
    pub(super) async fn count_down(&self, asked: usize, because: Instant) -> Result<Countdown> {
        Countdown::follow(&self.cluster, asked, because, WITHIN).await
    }

    /// Runs a command of `rafthold cluster` against a node, again for a while where no leader takes it.
    pub(super) async fn operate(&self, asked: usize, words: &[&str], within: Duration) -> Result<String> {
        let mut arguments = vec!["cluster"];
        arguments.extend(words);
        arguments.extend(["--endpoint", self.cluster.api(asked)]);
        let deadline = Instant::now() + COMMAND_MAX;
        loop {
            let said = self.operator.run(&arguments, within).await?;
            let waits = said.errors.contains("no leader") || said.errors.contains("no quorum");
            if said.done || !waits || Instant::now() > deadline {
                return said.expect_done(&format!("rafthold {}", arguments.join(" ")));
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Has a node that is laid out join by a token of its own, as an operator would, and starts it.
    pub(super) async fn join(&mut self, asked: usize, new: usize) -> Result<()> {
        let made = self.operate(asked, &["token", "create", "-o", "json"], COMMAND_MAX).await?;
        let token: Value = serde_json::from_str(&made)?;
        let token = token["token"].as_str().context("no token")?.to_owned();
        let config = self.cluster.config(new).display().to_string();
        let join = ["cluster", "join", "--token", &token, "--seed", self.cluster.rpc(asked), "--config", &config];
        self.operator.run(&join, COMMAND_MAX).await?.expect_done("rafthold cluster join")?;
        self.cluster.start_node(new)?;
        self.cluster.wait_ready(new, Duration::from_secs(60)).await
    }

    /// The id under which a node is a member, by its name.
    pub(super) async fn id(&self, asked: usize, node: usize) -> Result<Option<u64>> {
        let status = self.cluster.status(asked).await?;
        Ok(named(&status, node).and_then(|entry| entry["id"].as_u64()))
    }

    /// The checks that end every run: the usual verdict; each linked blob with exactly its copies on the disks that are
    /// left, spread over their zones; every pull answered; and how pulls fared while copies moved.
    pub(super) async fn finish(mut self, ledger: Arc<Ledger>, countdown: &Countdown) -> Result<Self> {
        let asked = *self.cluster.living().first().context("nobody is left")?;
        all_in_place(&self.cluster, asked).await?;
        self.pulls.stop().await;
        countdown.judge()?;
        verdict(&self.cluster, &ledger).await?;
        self.check_disks(&ledger)?;
        let whole = self.pull_all().await?;
        println!("everything pulled once more: {whole} answers, each whole");
        let failed = self.pulls.failed();
        ensure!(failed.is_empty(), "{} pulls failed, the first: {}", failed.len(), failed[0]);
        for node in self.cluster.living() {
            let answered = self.pulls.answered_by(node);
            ensure!(answered > PULLS_MIN / 10, "VOID: node {} answered {answered} pulls", node + 1);
        }
        self.judge_pace(countdown)?;
        Ok(self)
    }

    /// Lists the disks of the nodes that are left.
    pub(super) fn disks(&self) -> Result<Vec<Disk>> {
        let disk = |node| Disk::list(self.cluster.zone(node), self.cluster.data_dir(node));
        self.cluster.living().into_iter().map(disk).collect()
    }

    fn check_disks(&self, ledger: &Ledger) -> Result<()> {
        let images = ledger.images();
        let digests = |items: &[Item]| items.iter().map(|item| item.digest.clone()).collect::<Vec<Digest>>();
        let mut blobs: Vec<Digest> = self.stock.blobs().map(|item| item.digest.clone()).collect();
        blobs.extend(images.iter().flat_map(|image| image.blobs.iter().cloned()));
        let mut bodies = digests(&self.stock.manifests);
        bodies.extend(images.iter().map(|image| image.manifest.clone()));
        let disks = self.disks()?;
        let found = copies::find(&disks, COPIES, blobs.iter(), bodies.iter());
        let zones: Vec<usize> = disks.iter().map(|disk| disk.zone).collect();
        println!(
            "on the disks of {} nodes in zones {zones:?}: {} blobs and {} manifests; too few copies {}, too many {}, in too \
             few zones {}",
            disks.len(),
            blobs.len(),
            bodies.len(),
            found.too_few.len(),
            found.too_many.len(),
            found.crowded.len()
        );
        let some = || format!("{found:?}").chars().take(1000).collect::<String>();
        ensure!(found.is_clean(), "copies are not where they should be: {}", some());
        Ok(())
    }

    /// Pulls every large blob and every manifest from every node that is left, and each small one from one of them.
    async fn pull_all(&self) -> Result<usize> {
        let living = self.cluster.living();
        let client = Client::new(living.iter().map(|node| self.cluster.api(*node).to_owned()).collect());
        let everywhere = self.stock.large.iter().chain(&self.stock.manifests);
        let everywhere = everywhere.flat_map(|item| (0..living.len()).map(move |node| (node, item)));
        let once = self.stock.small.iter().enumerate().map(|(at, item)| (at % living.len(), item));
        let all: Vec<(usize, &Item)> = everywhere.chain(once).collect();
        let client = &client;
        let pull = |(node, item): (usize, &Item)| {
            let (path, digest) = (item.path.clone(), item.digest.clone());
            async move {
                let pulled = client.pull(node, &path, &digest).await?;
                ensure!(pulled.is_ok(), "LOST {path}: {:?}", pulled.map_err(|answer| answer.status).err());
                Ok(())
            }
        };
        let count = all.len();
        let pulls: Vec<_> = all.into_iter().map(pull).collect();
        stream::iter(pulls).buffer_unordered(8).try_collect::<()>().await?;
        Ok(count)
    }

    /// Pulls while copies moved against pulls before, and the speed of repair against its limit.
    fn judge_pace(&self, countdown: &Countdown) -> Result<()> {
        let before = self.pulls.times(self.before.0, self.before.1);
        let during = self.pulls.times(countdown.began, countdown.ended);
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        println!(
            "pulls before: {}, p50 {:.1} ms, p99 {:.1} ms; while copies moved: {}, p50 {:.1} ms, p99 {:.1} ms, {:.2} times; \
             excused at nodes that were taken away: {}",
            before.len(),
            ms(before.percentile(50)),
            ms(before.percentile(99)),
            during.len(),
            ms(during.percentile(50)),
            ms(during.percentile(99)),
            ms(during.percentile(99)) / ms(before.percentile(99)).max(0.1),
            self.pulls.excused()
        );
        let rates = countdown.rates(self.limit);
        for rate in &rates {
            println!(
                "{}: {} contents, {} MiB in {:.1} s, {:.2} of the limit by repair, {:.2} with what clients waited for{}",
                rate.node,
                rate.contents,
                rate.bytes >> 20,
                rate.seconds,
                rate.of_limit,
                rate.held_of_limit,
                if rate.is_judged { "" } else { " (not judged: files, not bytes, are what takes the time)" }
            );
        }
        ensure!(
            before.len() >= PULLS_MIN && during.len() >= PULLS_MIN / 4,
            "VOID: {} pulls before and {} while copies moved",
            before.len(),
            during.len()
        );
        let (then, now) = (before.percentile(99), during.percentile(99));
        if during.len() < JUDGED_PULLS {
            println!("the slowest of so few pulls say nothing: p99 is not judged");
        } else {
            ensure!(now <= FAST || now <= then * 2, "pulls took {now:?} (p99) while copies moved, {then:?} before");
        }
        for rate in rates.iter().filter(|rate| rate.is_judged) {
            ensure!(rate.of_limit >= OF_LIMIT_MIN, "{} fetched at {:.2} of its limit", rate.node, rate.of_limit);
        }
        Ok(())
    }
}

/// What a status says of a node.
pub(super) fn named(status: &Value, node: usize) -> Option<&Value> {
    let name = format!("n{}", node + 1);
    status["nodes"].as_array()?.iter().find(|entry| entry["name"] == name.as_str())
}

/// Waits until a node says that every copy is in its place, and no surplus one is left.
async fn all_in_place(cluster: &Cluster, asked: usize) -> Result<()> {
    let mut seen = Value::Null;
    let outcome = until("all copies in their places", WITHIN, async || {
        let Ok(status) = cluster.status(asked).await else { return false };
        let done = |key: &str| status["blobs"][key].as_u64() == Some(0);
        let all = ["under_replicated", "misplaced", "over_replicated", "lost"].into_iter().all(done);
        seen = status["blobs"].clone();
        all && status["repair"]["queue"].as_u64() == Some(0)
    });
    outcome.await.map(drop).with_context(|| seen.to_string())
}
