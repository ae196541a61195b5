use std::ffi::OsString;
use std::time::Duration;

use super::*;

fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, text).unwrap();
    let environment: Vec<(OsString, OsString)> =
        environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Config::load(Some(&path), environment.into_iter())
}

fn refused(text: &str, environment: &[(&str, &str)]) -> String {
    let error = load(text, environment).expect_err("refused");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

#[test]
fn defaults_are_valid() {
    Config::default().validate().unwrap();
    assert_eq!(load("", &[]).unwrap(), Config::default());
}

#[test]
fn the_documented_file_says_the_defaults_and_every_key() {
    let text = include_str!("../../deploy/rafthold.toml");
    assert_eq!(text.parse::<toml::Table>().unwrap().try_into::<Config>().unwrap(), Config::default());
    let all = Config {
        api: Api { url: Some("u".into()), tls_cert: Some("c".into()), tls_key: Some("k".into()), ..Api::default() },
        ops: Ops { listen: Some("l".into()) },
        rpc: Rpc { advertise: Some("a".into()), ..Rpc::default() },
        cluster: Cluster { secret_file: Some("s".into()), ..Cluster::default() },
        auth: Auth { htpasswd: Some("h".into()) },
        ..Config::default()
    };
    for (section, keys) in toml::Table::try_from(all).unwrap() {
        let from = text.find(&format!("[{section}]")).unwrap_or_else(|| panic!("[{section}] is not documented"));
        let body = text[from + 1..].split("\n[").next().unwrap();
        for key in keys.as_table().unwrap().keys() {
            let line = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
            assert!(body.lines().any(line), "{section}.{key} is not documented");
        }
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let config = load(
        "[node]\nname = \"a\"\n[cluster]\nsecret_file = \"s\"",
        &[
            ("RAFTHOLD_NODE__NAME", "b"),
            ("RAFTHOLD_STORAGE__COPIES", "5"),
            ("RAFTHOLD_API__INSECURE", "true"),
            ("RAFTHOLD_CLUSTER__SEEDS", "x:1, y:2"),
            ("RAFTHOLD_REGISTRY__UPLOAD_TTL", "2h"),
            ("RAFTHOLD_OPS__LISTEN", "127.0.0.1:9"),
            ("RAFTHOLD_PASSWORD", "not a setting"),
        ],
    )
    .unwrap();
    assert_eq!(config.node.name, "b");
    assert_eq!(config.storage.copies, 5);
    assert!(config.api.insecure);
    assert_eq!(config.cluster.seeds, ["x:1", "y:2"]);
    assert_eq!(config.registry.upload_ttl, Duration::from_secs(7200));
    assert_eq!(config.ops.listen.as_deref(), Some("127.0.0.1:9"));
}

#[test]
fn unknown_names_are_refused() {
    assert!(refused("[node]\nnmae = \"a\"", &[]).contains("nmae"));
    assert!(refused("[nodes]\n", &[]).contains("nodes"));
    assert!(refused("", &[("RAFTHOLD_NODE__NMAE", "a")]).contains("nmae"));
    assert!(refused("", &[("RAFTHOLD_NODES__NAME", "a")]).contains("RAFTHOLD_NODES__NAME"));
    assert!(refused("", &[("RAFTHOLD_STORAGE__COPIES", "many")]).contains("RAFTHOLD_STORAGE__COPIES"));
}

#[test]
fn an_open_door_without_login_is_refused() {
    assert!(refused("[api]\nlisten = \"0.0.0.0:5000\"", &[]).contains("--insecure"));
    load("[api]\nlisten = \"0.0.0.0:5000\"\ninsecure = true", &[]).unwrap();
    load("[api]\nlisten = \"0.0.0.0:5000\"\n[auth]\nhtpasswd = \"users\"", &[]).unwrap();
    load("[api]\nlisten = \"[::1]:5000\"", &[]).unwrap();
    assert!(refused("[ops]\nlisten = \"0.0.0.0:9000\"", &[]).contains("ops.listen"));
}

#[test]
fn nonsense_is_refused_by_name() {
    for (text, key) in [
        ("[node]\nname = \"a b\"", "node.name"),
        ("[api]\nlisten = \"localhost\"", "api.listen"),
        ("[api]\ntls_cert = \"c\"", "api.tls_cert"),
        ("[api]\nidle_timeout = \"5\"", "not a duration"),
        ("[storage]\nfree_min = \"5 apples\"", "not a size"),
        ("[rpc]\nlisten = \"0.0.0.0:1\"", "rpc.advertise"),
        ("[cluster]\nbootstrap_expect = 3", "cluster.seeds"),
        ("[cluster]\nseeds = [\"127.0.0.1:5100\"]", "cluster.secret_file"),
        ("[cluster]\nout_after = \"10ms\"", "cluster.out_after"),
        ("[cluster]\nseeds = [\"127.0.0.1:5100\", \"a:1\"]\nsecret_file = \"s\"", "cluster.seeds"),
        ("[cluster]\nseeds = [\"a\"]\nsecret_file = \"s\"", "cluster.seeds"),
        ("[storage]\nwrite_copies = 4", "storage.write_copies"),
        ("[raft]\nelection_min = \"100ms\"", "raft: election_min"),
        ("[registry]\nread = \"maybe\"", "read"),
    ] {
        let error = refused(text, &[]);
        assert!(error.contains(key), "{text}: {error}");
    }
}

#[test]
fn what_is_shown_reads_back() {
    let config = load("[node]\nname = \"a\"\n[registry]\nsparse = \"allow\"", &[]).unwrap();
    assert_eq!(load(&config.show(), &[]).unwrap(), config);
}
