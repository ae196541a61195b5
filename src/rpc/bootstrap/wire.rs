//! Questions and answers to and from protobuf.

use prost::Message;

use crate::topology::{ClusterId, NodeId, NodeRecord, NodeState, Region, Zone};

use super::decide::{SeedState, Stage};
use super::promise::Promise;
use super::proto;
use super::{NodeDescription, Nonce, Pems};

/// The protocol spoken.
pub(super) const VERSION: u32 = 1;
/// Largest question or answer: an answer lists the nodes of the cluster.
pub(super) const BYTES_MAX: usize = 1 << 20;
/// Longest text taken in a join.
const TEXT_BYTES_MAX: usize = 512;

pub(super) use proto::bootstrap_answer::Answer;
pub(super) use proto::bootstrap_question::Question;

pub(super) fn nonce(bytes: &[u8]) -> Option<Nonce> {
    bytes.try_into().ok()
}

pub(super) fn encode_question(question: Question) -> Vec<u8> {
    proto::BootstrapQuestion { question: Some(question) }.encode_to_vec()
}

pub(super) fn decode_question(body: &[u8]) -> Option<Question> {
    proto::BootstrapQuestion::decode(body).ok()?.question
}

pub(super) fn encode_answer(answer: Answer) -> Vec<u8> {
    proto::BootstrapAnswer { answer: Some(answer) }.encode_to_vec()
}

pub(super) fn decode_answer(body: &[u8]) -> Option<Answer> {
    proto::BootstrapAnswer::decode(body).ok()?.answer
}

pub(super) fn ask_standing() -> Question {
    Question::Standing(proto::StandingQuestion {})
}

pub(super) fn tell_standing(state: &SeedState) -> Answer {
    let (stage, cluster, initialiser) = match &state.stage {
        Stage::Empty { promise: None } => (proto::Stage::Empty, String::new(), String::new()),
        Stage::Empty { promise: Some((cluster, by)) } => (proto::Stage::Empty, cluster.to_string(), by.clone()),
        Stage::Forming { cluster } => (proto::Stage::Forming, cluster.to_string(), String::new()),
        Stage::Formed { cluster } => (proto::Stage::Formed, cluster.to_string(), String::new()),
    };
    Answer::Standing(proto::Standing {
        name: state.name.clone(),
        instance: state.instance.to_be_bytes().to_vec().into(),
        expect: u32::try_from(state.expect).unwrap_or(u32::MAX),
        stage: stage.into(),
        cluster,
        initialiser,
        node: state.node.map(|node| node.0).unwrap_or_default(),
        epoch: state.epoch,
    })
}

pub(super) fn standing(told: &proto::Standing) -> Option<SeedState> {
    let cluster = || told.cluster.parse::<ClusterId>().ok();
    let stage = match proto::Stage::try_from(told.stage).ok()? {
        proto::Stage::Unspecified => return None,
        proto::Stage::Empty if told.cluster.is_empty() => Stage::Empty { promise: None },
        proto::Stage::Empty => Stage::Empty { promise: Some((cluster()?, told.initialiser.clone())) },
        proto::Stage::Forming => Stage::Forming { cluster: cluster()? },
        proto::Stage::Formed => Stage::Formed { cluster: cluster()? },
    };
    Some(SeedState {
        name: told.name.clone(),
        instance: u128::from_be_bytes(told.instance.as_ref().try_into().ok()?),
        expect: usize::try_from(told.expect).ok()?,
        stage,
        node: (told.node != 0).then_some(NodeId(told.node)),
        epoch: told.epoch,
    })
}

pub(super) fn ask_promise(promise: &Promise) -> Question {
    Question::Promise(proto::Promise {
        cluster: promise.cluster.to_string(),
        initialiser: promise.initialiser.clone(),
        participants: promise.participants.clone(),
    })
}

pub(super) fn promise(asked: proto::Promise) -> Option<Promise> {
    Some(Promise::new(asked.cluster.parse().ok()?, asked.initialiser, asked.participants))
}

/// A join as it was asked for.
pub(super) struct Join {
    pub(super) node: NodeDescription,
    pub(super) certificate_request: Vec<u8>,
    pub(super) promised: Option<ClusterId>,
}

pub(super) fn ask_join(join: Join) -> Question {
    Question::Join(join_question(join))
}

pub(super) fn join_question(join: Join) -> proto::JoinQuestion {
    let Join { node, certificate_request, promised } = join;
    proto::JoinQuestion {
        name: node.name,
        zone: node.zone.0,
        region: node.region.0,
        rpc_address: node.rpc_address,
        api_url: node.api_url,
        weight: node.weight,
        certificate_request: certificate_request.into(),
        promised_cluster: promised.map(|cluster| cluster.to_string()).unwrap_or_default(),
    }
}

/// Reads a join; the fingerprint is left for the certificate request to say.
pub(super) fn join(asked: proto::JoinQuestion) -> Option<Join> {
    let texts = [&asked.name, &asked.zone, &asked.region, &asked.rpc_address, &asked.api_url];
    let sound = |text: &String| text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
    if asked.name.is_empty() || asked.rpc_address.is_empty() || !texts.into_iter().all(sound) {
        return None;
    }
    let promised = match asked.promised_cluster.as_str() {
        "" => None,
        text => Some(text.parse().ok()?),
    };
    let node = NodeDescription {
        name: asked.name,
        zone: Zone(asked.zone),
        region: Region(asked.region),
        rpc_address: asked.rpc_address,
        api_url: asked.api_url,
        weight: asked.weight,
        key_fingerprint: [0; 32],
    };
    Some(Join { node, certificate_request: asked.certificate_request.to_vec(), promised })
}

/// A membership as it was given.
pub(super) struct Membership {
    pub(super) cluster: ClusterId,
    pub(super) epoch: u64,
    pub(super) node: NodeId,
    pub(super) pems: Pems,
    pub(super) nodes: Vec<NodeRecord>,
}

pub(super) fn tell_joined(membership: Membership) -> Answer {
    let Membership { cluster, epoch, node, pems, nodes } = membership;
    Answer::Joined(proto::Joined {
        cluster: cluster.to_string(),
        epoch,
        node: node.0,
        certificate_pem: pems.certificate,
        ca_certificate_pem: pems.ca_certificate,
        ca_key_pem: pems.ca_key.unwrap_or_default(),
        nodes: nodes.iter().map(Into::into).collect(),
    })
}

pub(super) fn joined(told: proto::Joined) -> Option<Membership> {
    let nodes: Option<Vec<NodeRecord>> = told.nodes.into_iter().map(|node| NodeRecord::try_from(node).ok()).collect();
    Some(Membership {
        cluster: told.cluster.parse().ok()?,
        epoch: told.epoch,
        node: NodeId(told.node),
        pems: Pems {
            certificate: told.certificate_pem,
            ca_certificate: told.ca_certificate_pem,
            ca_key: Some(told.ca_key_pem).filter(|key| !key.is_empty()),
        },
        nodes: nodes?,
    })
}

pub(super) fn refuse(reason: impl Into<String>, later: bool) -> Answer {
    Answer::Refused(proto::Refused { reason: reason.into(), later })
}

impl From<&NodeRecord> for proto::NodeRecord {
    fn from(record: &NodeRecord) -> Self {
        let state = match record.state {
            NodeState::In => proto::NodeState::In,
            NodeState::Out => proto::NodeState::Out,
            NodeState::Decommissioned => proto::NodeState::Decommissioned,
        };
        Self {
            id: record.id.0,
            name: record.name.clone(),
            zone: record.zone.0.clone(),
            region: record.region.0.clone(),
            rpc_address: record.rpc_address.clone(),
            api_url: record.api_url.clone(),
            weight: record.weight,
            state: state.into(),
        }
    }
}

/// A node record on the wire is in a state this binary does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("node on the wire is in an unknown state")]
pub struct BadNode;

impl TryFrom<proto::NodeRecord> for NodeRecord {
    type Error = BadNode;

    fn try_from(record: proto::NodeRecord) -> Result<Self, BadNode> {
        let state = match proto::NodeState::try_from(record.state).map_err(|_| BadNode)? {
            proto::NodeState::Unspecified => return Err(BadNode),
            proto::NodeState::In => NodeState::In,
            proto::NodeState::Out => NodeState::Out,
            proto::NodeState::Decommissioned => NodeState::Decommissioned,
        };
        Ok(Self {
            id: NodeId(record.id),
            name: record.name,
            zone: Zone(record.zone),
            region: Region(record.region),
            rpc_address: record.rpc_address,
            api_url: record.api_url,
            weight: record.weight,
            state,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standings_come_back_as_they_were_sent() {
        let cluster = ClusterId(5);
        for stage in [
            Stage::Empty { promise: None },
            Stage::Empty { promise: Some((cluster, "a".to_owned())) },
            Stage::Forming { cluster },
            Stage::Formed { cluster },
        ] {
            let state = SeedState {
                name: "n".to_owned(),
                instance: u128::MAX - 1,
                expect: 3,
                stage,
                node: Some(NodeId(4)),
                epoch: 2,
            };
            let body = encode_answer(tell_standing(&state));
            let Some(Answer::Standing(told)) = decode_answer(&body) else { panic!("a standing") };
            assert_eq!(standing(&told), Some(state));
        }
        assert_eq!(standing(&proto::Standing::default()), None);
    }

    #[test]
    fn a_join_with_control_characters_or_endless_texts_is_none() {
        let good = proto::JoinQuestion {
            name: "n1".to_owned(),
            rpc_address: "127.0.0.1:1".to_owned(),
            ..proto::JoinQuestion::default()
        };
        assert!(join(good.clone()).is_some());
        for bad in ["", "n\n1", "n\u{0}", &"n".repeat(600)] {
            assert!(join(proto::JoinQuestion { name: bad.to_owned(), ..good.clone() }).is_none(), "{bad:?}");
        }
        assert!(join(proto::JoinQuestion { promised_cluster: "x".to_owned(), ..good }).is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            if let Some(Question::Join(asked)) = decode_question(&bytes) {
                drop(join(asked));
            }
            match decode_answer(&bytes) {
                Some(Answer::Standing(told)) => drop(standing(&told)),
                Some(Answer::Joined(told)) => drop(joined(told)),
                _ => {}
            }
        }
    }
}
