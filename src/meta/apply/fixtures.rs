//! Commands that several tests of this module make.

use crate::meta::command::Command;
use crate::meta::plan::TokenJoin;
use crate::topology::{Region, Zone};

/// A node in zone `z` of region `r`, of weight 1, without addresses.
pub(super) fn add_node(name: &str, key: u8) -> Command {
    Command::AddNode {
        name: name.to_owned(),
        zone: Zone("z".to_owned()),
        region: Region("r".to_owned()),
        rpc_address: String::new(),
        api_url: String::new(),
        weight: 1,
        key_fingerprint: [key; 32],
    }
}

/// The same node, by a token.
pub(super) fn join_by_token(token: u8, name: &str, key: u8) -> Command {
    Command::JoinByToken(Box::new(TokenJoin {
        token: [token; 32],
        name: name.to_owned(),
        zone: Zone("z".to_owned()),
        region: Region("r".to_owned()),
        rpc_address: String::new(),
        api_url: String::new(),
        weight: 1,
        key_fingerprint: [key; 32],
    }))
}
