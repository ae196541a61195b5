//! Every line of what the OCI's conformance suite asks, as a case named by the end-points it goes through.
//!
//! The cases run against one node, and against three with each request at another node in turn. Where
//! `OCI_CONFORMANCE` names the suite's own binary, `make conformance` runs that too.
//!
//! Spec: distribution-spec v1.1.1 and what `main` added since.

mod blobs;
mod content;
mod deletes;
mod lists;
mod manifests;
mod uploads;

use std::future::Future;
use std::pin::Pin;

use futures::FutureExt;

use crate::support::TestCluster;
use crate::support::http::Door;

/// One case: what it shows, and the requests that show it. The text is a repository of its own.
type Case = (&'static str, for<'a> fn(&'a Door, &'a str) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>);

/// Lists async functions as cases under their own names.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub(super) const CASES: &[super::Case] = &[$((stringify!($name), |door, repository| Box::pin($name(door, repository)))),*];
    };
}
use cases;

async fn run(cluster: &TestCluster, cases: impl Iterator<Item = &Case>) {
    let door = Door::new(cluster.api_addresses());
    let mut failed = Vec::new();
    for (name, case) in cases {
        let repository = format!("conformance/{}", name.replace('_', "-"));
        if std::panic::AssertUnwindSafe(case(&door, &repository)).catch_unwind().await.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "cases that failed: {}", failed.join(", "));
}

fn all() -> impl Iterator<Item = &'static Case> {
    [blobs::CASES, uploads::CASES, manifests::CASES, deletes::CASES, lists::CASES].into_iter().flatten()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_answers_as_the_specification_asks() {
    run(&TestCluster::start(1).await, all()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_answer_as_one_with_each_request_at_another() {
    run(&TestCluster::start(3).await, all()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_manifests_are_accepted_where_the_policy_says_so() {
    run(&TestCluster::start_sparse(3).await, manifests::SPARSE_CASES.iter()).await;
}
