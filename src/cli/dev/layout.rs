//! Where `dev` puts what, and what the nodes' configurations say.

use std::fs;
use std::io;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::disk;

use super::Error;

/// All nodes of one machine stand in one region, each in a zone of its own.
pub(super) const REGION: &str = "local";
const CLUSTER_FILE: &str = "cluster.json";
const SECRET_FILE: &str = "secret";
const SECRET_BYTES: usize = 32;

/// The directory of one `dev`.
#[derive(Debug)]
pub(super) struct Layout {
    /// Absolute.
    pub(super) dir: PathBuf,
    pub(super) places: Vec<Place>,
}

/// One node's part of it.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) zone: String,
    dir: PathBuf,
    api_port: u16,
    rpc_port: u16,
}

impl Place {
    pub(super) fn api_address(&self) -> String {
        format!("127.0.0.1:{}", self.api_port)
    }

    pub(super) fn api_url(&self) -> String {
        format!("http://{}", self.api_address())
    }

    pub(super) fn rpc_address(&self) -> String {
        format!("127.0.0.1:{}", self.rpc_port)
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

fn doing<T>(doing: &'static str, path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Io { doing, path: path.to_owned(), source })
}

impl Layout {
    /// Makes the directory if need be and says where things lie in it; touches nothing else, for another `dev` may run there.
    pub(super) fn new(dir: &Path, nodes: u16, base_port: u16) -> Result<Self, Error> {
        doing("create", dir, disk::create_dir_durable(dir))?;
        let dir = doing("find", dir, dir.canonicalize())?;
        let place = |i: u16| Place {
            name: format!("n{}", i + 1),
            zone: format!("z{}", i + 1),
            dir: dir.join(format!("n{}", i + 1)),
            api_port: base_port + i,
            rpc_port: base_port + 100 + i,
        };
        Ok(Self { places: (0..nodes).map(place).collect(), dir })
    }

    /// Removes the old `cluster.json`, writes secret and configurations, and checks that the ports are free.
    pub(super) fn prepare(&self, fresh: bool) -> Result<(), Error> {
        self.remove_cluster_file()?;
        for address in self.places.iter().flat_map(|place| [place.api_address(), place.rpc_address()]) {
            if let Err(source) = std::net::TcpListener::bind(&address) {
                return Err(Error::Taken { address, source });
            }
        }
        if fresh {
            self.wipe()?;
        }
        self.make_secret()?;
        for place in &self.places {
            doing("create", &place.dir, disk::create_dir_durable(&place.dir))?;
            let text = format!(
                "# Written by `rafthold dev`; start this node by hand with: rafthold serve --config {}\n\n{}",
                place.config().display(),
                self.config_of(place).show(),
            );
            let path = place.config();
            doing("write", &path, disk::write_durable(&path, text.as_bytes()))?;
        }
        Ok(())
    }

    fn config_of(&self, place: &Place) -> Config {
        let mut config = Config::default();
        config.node.name.clone_from(&place.name);
        config.node.zone.clone_from(&place.zone);
        config.node.region = REGION.to_owned();
        config.node.data_dir = place.data_dir();
        config.api.listen = place.api_address();
        config.rpc.listen = place.rpc_address();
        config.cluster.bootstrap_expect = u32::try_from(self.places.len()).expect("few nodes");
        config.cluster.seeds = self.places.iter().map(Place::rpc_address).collect();
        config.cluster.secret_file = Some(self.dir.join(SECRET_FILE));
        config
    }

    fn make_secret(&self) -> Result<(), Error> {
        let path = self.dir.join(SECRET_FILE);
        if path.exists() {
            return Ok(());
        }
        let mut secret = [0; SECRET_BYTES];
        let source = Path::new("/dev/urandom");
        doing("read", source, fs::File::open(source).and_then(|mut file| file.read_exact(&mut secret)))?;
        let beside = self.dir.join("secret.new");
        let written = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside);
        let written = written.and_then(|mut file| file.write_all(&secret).and_then(|()| file.sync_all()));
        doing("write", &beside, written)?;
        doing("rename", &path, disk::rename_durable(&beside, &path))
    }

    /// Removes what earlier runs left. A node's directory, or its `data`, may be a mount: then only what is in it goes.
    fn wipe(&self) -> Result<(), Error> {
        let entries =
            doing("list", &self.dir, fs::read_dir(&self.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>))?;
        for entry in entries {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix('n'));
            if number.is_some_and(|number| number.parse::<u16>().is_ok()) {
                let path = entry.path();
                doing("empty", &path, empty(&path))?;
            }
        }
        let secret = self.dir.join(SECRET_FILE);
        doing("remove", &secret, disk::remove_durable(&secret))
    }

    pub(super) fn write_cluster_file(&self, cluster: &serde_json::Value) -> Result<(), Error> {
        let path = self.dir.join(CLUSTER_FILE);
        let text = serde_json::to_string_pretty(cluster).expect("JSON prints");
        doing("write", &path, disk::write_durable(&path, format!("{text}\n").as_bytes()))
    }

    pub(super) fn remove_cluster_file(&self) -> Result<(), Error> {
        let path = self.dir.join(CLUSTER_FILE);
        doing("remove", &path, disk::remove_durable(&path))
    }
}

/// Removes everything below `dir`, and leaves directories that cannot be removed because something is mounted there.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if fs::symlink_metadata(&path)?.is_dir() {
            empty(&path)?;
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != io::ErrorKind::ResourceBusy => return Err(error),
                _ => {}
            }
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_written_configuration_is_valid_and_names_all_nodes() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("dev"), 3, 23_000).unwrap();
        layout.prepare(false).unwrap();
        for place in &layout.places {
            let config = Config::load(Some(&place.config()), std::iter::empty()).unwrap();
            assert_eq!(config.node.name, place.name);
            assert_eq!(config.cluster.seeds.len(), 3);
            assert!(config.cluster.seeds.contains(&config.rpc_advertised()));
        }
        let secret = fs::metadata(layout.dir.join(SECRET_FILE)).unwrap();
        assert_eq!(secret.len(), SECRET_BYTES as u64);
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&secret.permissions()) & 0o777, 0o600);
    }

    #[test]
    fn a_fresh_start_removes_the_data_and_a_plain_one_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path(), 2, 23_010).unwrap();
        layout.prepare(false).unwrap();
        let secret = fs::read(dir.path().join(SECRET_FILE)).unwrap();
        let kept = layout.places[0].data_dir().join("blobs/x");
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::write(&kept, "bytes").unwrap();
        fs::write(dir.path().join("notes"), "mine").unwrap();

        layout.prepare(false).unwrap();
        assert!(kept.exists());
        assert_eq!(fs::read(dir.path().join(SECRET_FILE)).unwrap(), secret);

        layout.prepare(true).unwrap();
        assert!(!kept.exists());
        assert_ne!(fs::read(dir.path().join(SECRET_FILE)).unwrap(), secret);
        assert!(dir.path().join("notes").exists());
    }

    #[test]
    fn a_taken_port_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let layout = Layout::new(dir.path(), 1, port).unwrap();
        let error = layout.prepare(false).expect_err("the port is taken").to_string();
        assert!(error.contains(&port.to_string()), "{error}");
    }
}
