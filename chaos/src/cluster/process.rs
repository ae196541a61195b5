//! Starts, kills and restarts the nodes.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::client::Client;

use super::disk::LoopDisk;
use super::operator::Operator;

/// How to lay out a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The `rafthold` binary.
    pub(crate) binary: PathBuf,
    /// Where everything is kept; must be empty or absent.
    pub(crate) dir: PathBuf,
    pub(crate) nodes: usize,
    /// The zone of each node, those that come later included; one without an entry is in a zone of its own.
    pub(crate) zones: &'static [usize],
    /// Further nodes that are laid out and not started: they join by a token, and know no secret.
    pub(crate) later: usize,
    /// Bytes of a loop-mounted disk per node; `None` keeps data in plain directories.
    pub(crate) disk_bytes: Option<u64>,
    /// Further sections of every node's configuration.
    pub(crate) settings: String,
    /// What every node finds in its environment: settings in sections that each configuration has already.
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

#[derive(Debug)]
struct Node {
    config: PathBuf,
    data_dir: PathBuf,
    log: PathBuf,
    api: String,
    rpc: String,
    zone: usize,
    child: Option<Child>,
    disk: Option<LoopDisk>,
}

/// A cluster of real processes on loopback. All of them are killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    binary: PathBuf,
    environment: &'static [(&'static str, &'static str)],
    nodes: Vec<Node>,
    serving: Serving,
}

/// Which nodes the laboratory has not touched since they said they serve.
#[derive(Debug, Clone)]
pub(crate) struct Serving(Arc<Vec<AtomicBool>>);

impl Serving {
    fn new(nodes: usize) -> Self {
        Self(Arc::new((0..nodes).map(|_| AtomicBool::new(false)).collect()))
    }

    fn set(&self, node: usize, serves: bool) {
        self.0[node].store(serves, Ordering::SeqCst);
    }

    /// Whether a node was left alone: an error there needs an excuse.
    pub(crate) fn has(&self, node: usize) -> bool {
        self.0[node].load(Ordering::SeqCst)
    }
}

/// Reserves distinct free ports by holding them all open at once.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>()?;
    Ok(listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.port()))
        .collect::<Result<_, _>>()?)
}

fn write_secret(path: &Path) -> Result<()> {
    let mut secret = [0; 32];
    StdRng::from_os_rng().fill_bytes(&mut secret);
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(path)?;
    std::io::Write::write_all(&mut file, &secret)?;
    Ok(())
}

impl Cluster {
    /// Lays out the nodes' disks and configs, starts them all and waits until each serves.
    pub(crate) async fn start(options: &Options) -> Result<Self> {
        fs::create_dir_all(&options.dir)?;
        fs::set_permissions(&options.dir, fs::Permissions::from_mode(0o700))?;
        let secret = options.dir.join("secret");
        write_secret(&secret)?;
        let laid_out = options.nodes + options.later;
        let ports = free_ports(laid_out * 2)?;
        let (api_ports, rpc_ports) = ports.split_at(laid_out);
        let seeds: Vec<String> =
            rpc_ports[..options.nodes].iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let founding = format!("bootstrap_expect = {}\nsecret_file = \"{}\"", options.nodes, secret.display());
        let mut nodes = Vec::new();
        for (at, (api, rpc)) in api_ports.iter().zip(rpc_ports).enumerate() {
            let name = format!("n{}", at + 1);
            let home = options.dir.join(&name);
            fs::create_dir_all(&home)?;
            let disk = match options.disk_bytes {
                Some(bytes) => Some(LoopDisk::create(home.join("disk.img"), home.join("disk"), bytes)?),
                None => None,
            };
            let data_dir = disk.as_ref().map_or_else(|| home.clone(), |disk| disk.path().to_owned()).join("data");
            let config = home.join("node.toml");
            let zone = options.zones.get(at).copied().unwrap_or(at + 1);
            let text = format!(
                "[node]\nname = \"{name}\"\nzone = \"z{zone}\"\nregion = \"r1\"\ndata_dir = \"{data}\"\n\n\
                 [api]\nlisten = \"127.0.0.1:{api}\"\n\n\
                 [rpc]\nlisten = \"127.0.0.1:{rpc}\"\nadvertise = \"127.0.0.1:{rpc}\"\n\n\
                 [cluster]\nseeds = [{seeds}]\n{founding}\n{settings}",
                data = data_dir.display(),
                seeds = seeds.join(", "),
                founding = if at < options.nodes { founding.as_str() } else { "" },
                settings = options.settings,
            );
            fs::write(&config, text)?;
            let (api, rpc) = (format!("http://127.0.0.1:{api}"), format!("127.0.0.1:{rpc}"));
            nodes.push(Node { config, data_dir, log: home.join("node.log"), api, rpc, zone, child: None, disk });
        }
        let serving = Serving::new(laid_out);
        let mut cluster = Self { binary: options.binary.clone(), environment: options.environment, nodes, serving };
        for node in 0..options.nodes {
            cluster.start_node(node)?;
        }
        for node in 0..options.nodes {
            cluster.wait_ready(node, Duration::from_secs(60)).await?;
        }
        Ok(cluster)
    }

    /// How many nodes are laid out.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The nodes whose processes were started and not taken away.
    pub(crate) fn living(&self) -> Vec<usize> {
        (0..self.len()).filter(|node| self.nodes[*node].child.is_some()).collect()
    }

    /// Runs commands of the binary as an operator does.
    pub(crate) fn operator(&self) -> Operator {
        Operator::new(self.binary.clone())
    }

    pub(crate) fn serving(&self) -> Serving {
        self.serving.clone()
    }

    pub(crate) fn apis(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.api.clone()).collect()
    }

    pub(crate) fn api(&self, node: usize) -> &str {
        &self.nodes[node].api
    }

    /// Where other nodes reach a node: `host:port`.
    pub(crate) fn rpc(&self, node: usize) -> &str {
        &self.nodes[node].rpc
    }

    pub(crate) fn config(&self, node: usize) -> &Path {
        &self.nodes[node].config
    }

    pub(crate) fn zone(&self, node: usize) -> usize {
        self.nodes[node].zone
    }

    /// Where a node's own disk is mounted.
    pub(crate) fn disk(&self, node: usize) -> Result<&Path> {
        Ok(self.nodes[node].disk.as_ref().context("node has no disk of its own")?.path())
    }

    pub(crate) fn data_dir(&self, node: usize) -> &Path {
        &self.nodes[node].data_dir
    }

    fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().and_then(Child::id)
    }

    /// Starts a node that is not running.
    pub(crate) fn start_node(&mut self, node: usize) -> Result<()> {
        let node = &mut self.nodes[node];
        ensure!(node.child.is_none(), "node is already running");
        let log = File::options().create(true).append(true).open(&node.log)?;
        let child = Command::new(&self.binary)
            .args(["serve", "--config"])
            .arg(&node.config)
            .envs(self.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        node.child = Some(child);
        Ok(())
    }

    /// Waits until a node answers `/readyz` with 200.
    pub(crate) async fn wait_ready(&mut self, node: usize, within: Duration) -> Result<()> {
        let client = Client::new(vec![self.nodes[node].api.clone()]);
        let deadline = Instant::now() + within;
        loop {
            let entry = &mut self.nodes[node];
            if let Some(status) = entry.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                bail!("node {} ended with {status}; its log is {}", node + 1, entry.log.display());
            }
            if client.get(0, "/readyz").await.is_ok_and(|answer| answer.status == 200) {
                self.serving.set(node, true);
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "node {} not ready within {within:?}: {}",
                node + 1,
                entry.log.display()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a node's process has ended by itself.
    pub(crate) fn has_ended(&mut self, node: usize) -> Result<bool> {
        let child = self.nodes[node].child.as_mut().context("node was not started")?;
        Ok(child.try_wait()?.is_some())
    }

    /// From now on an error at this node has an excuse.
    pub(crate) fn excuse(&self, node: usize) {
        self.serving.set(node, false);
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, node: usize) -> Result<()> {
        self.serving.set(node, false);
        if let Some(mut child) = self.nodes[node].child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Stops a node as an operator would, and waits until it has ended.
    pub(crate) async fn stop(&mut self, node: usize, within: Duration) -> Result<()> {
        self.serving.set(node, false);
        self.signal(node, rustix::process::Signal::TERM)?;
        let mut child = self.nodes[node].child.take().context("node is not running")?;
        let ended = tokio::time::timeout(within, child.wait()).await;
        let status = ended.with_context(|| format!("node {} did not stop within {within:?}", node + 1))??;
        ensure!(
            status.success(),
            "node {} ended with {status}; its log is {}",
            node + 1,
            self.nodes[node].log.display()
        );
        Ok(())
    }

    /// Runs another command of the binary with a node's configuration; returns what it printed.
    pub(crate) async fn run(&self, node: usize, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).arg("--config").arg(&self.nodes[node].config).kill_on_drop(true);
        let output = command.output().await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{arguments:?}: {}{text}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }

    fn signal(&self, node: usize, signal: rustix::process::Signal) -> Result<()> {
        let pid = self.pid(node).context("node is not running")?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("pid")?;
        rustix::process::kill_process(pid, signal)?;
        Ok(())
    }

    /// Cuts the power of the given nodes at one moment and brings it back; they stay down until started.
    pub(crate) async fn cut_power(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            self.serving.set(*node, false);
            self.signal(*node, rustix::process::Signal::STOP)?;
        }
        for node in nodes {
            self.nodes[*node].disk.as_ref().context("node has no disk of its own")?.cut_power()?;
        }
        for node in nodes {
            self.kill(*node).await?;
        }
        for node in nodes {
            self.nodes[*node].disk.as_ref().context("node has no disk of its own")?.restore_power()?;
        }
        Ok(())
    }

    /// The node that leads, as the living nodes say.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for node in (0..self.len()).filter(|node| self.nodes[*node].child.is_some()) {
            let client = Client::new(vec![self.nodes[node].api.clone()]);
            let Ok(answer) = client.get(0, "/api/v1/cluster/status").await else { continue };
            let Ok(status) = serde_json::from_slice::<serde_json::Value>(&answer.body) else { continue };
            let Some(leader) = status["leader"].as_u64() else { continue };
            let name = status["nodes"].as_array()?.iter().find(|entry| entry["id"] == leader)?["name"].as_str()?;
            let at: usize = name.strip_prefix('n')?.parse().ok()?;
            return Some(at - 1);
        }
        None
    }

    pub(crate) async fn status(&self, node: usize) -> Result<serde_json::Value> {
        let answer = Client::new(vec![self.nodes[node].api.clone()]).get(0, "/api/v1/cluster/status").await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Open file descriptors of a node's process.
    pub(crate) fn descriptors(&self, node: usize) -> Result<usize> {
        let pid = self.pid(node).context("node is not running")?;
        Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
    }

    /// Processor time that a node's process has used.
    pub(crate) fn processor_time(&self, node: usize) -> Result<Duration> {
        let pid = self.pid(node).context("node is not running")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("stat")?;
        // user and system time, the 14th and 15th field of the line, in ticks of 10 ms
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Resident memory of a node's process in bytes.
    pub(crate) fn resident_bytes(&self, node: usize) -> Result<u64> {
        let pid = self.pid(node).context("node is not running")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }

    /// Fails if a node's log holds a panic.
    pub(crate) fn check_logs(&self) -> Result<()> {
        for node in self.nodes.iter().filter(|node| node.log.exists()) {
            let log = String::from_utf8_lossy(&fs::read(&node.log)?).into_owned();
            ensure!(!log.contains("panicked at"), "a node panicked: {}", node.log.display());
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(child) = node.child.as_mut() {
                // Ends it now: a mounted disk can only be released when nobody uses it.
                let _ = child.start_kill();
                let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
                if let Some(pid) = pid {
                    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
                }
            }
        }
    }
}
