//! The whole of `auth`, with a real file.

use super::*;

const ANN_ONE: &str = "Basic YW5uOm9uZQ==";
const ANN_TWO: &str = "Basic YW5uOnR3bw==";

fn write_users(path: &Path, password: &str) {
    std::fs::write(path, format!("ann:{}\n", bcrypt::hash(password, 4).unwrap())).unwrap();
}

fn open(path: &Path) -> Auth {
    Auth::open(Config { htpasswd: Some(path.to_owned()) }).unwrap()
}

fn ann() -> Option<Principal> {
    Some(Principal::User("ann".to_owned()))
}

#[tokio::test]
async fn without_a_file_everybody_may_do_everything() {
    let auth = Auth::open(Config::default()).unwrap();
    assert!(!auth.is_on());
    // docker login to a registry that asks for nothing must work.
    for header in [None, Some(ANN_ONE), Some("Bearer x")] {
        let principal = auth.authenticate(header).await.unwrap();
        assert_eq!(principal, Principal::Anonymous);
        assert_eq!(auth.decide(&principal, Action::Delete, None), Decision::Allowed);
    }
}

#[tokio::test]
async fn with_a_file_nobody_does_anything_without_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    write_users(&path, "one");
    let auth = open(&path);
    assert_eq!(auth.authenticate(Some(ANN_ONE)).await, ann());
    assert_eq!(auth.authenticate(Some(ANN_ONE)).await, ann(), "from memory");
    assert_eq!(auth.authenticate(Some(ANN_TWO)).await, None);
    assert_eq!(auth.authenticate(Some(ANN_TWO)).await, None, "from memory");
    assert_eq!(auth.authenticate(Some("Bearer x")).await, None);
    assert_eq!(auth.authenticate(None).await, Some(Principal::Anonymous));
    for action in [Action::Base, Action::Pull, Action::Push, Action::Delete, Action::Catalog, Action::Administer] {
        assert_eq!(auth.decide(&Principal::Anonymous, action, None), Decision::Unauthenticated);
        assert_eq!(auth.decide(&ann().unwrap(), action, None), Decision::Allowed);
    }
    assert!(!format!("{auth:?}").contains("$2"));
}

#[tokio::test]
async fn a_changed_file_counts_at_once_when_reloaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    write_users(&path, "one");
    let auth = open(&path);
    assert_eq!(auth.authenticate(Some(ANN_ONE)).await, ann());
    write_users(&path, "two");
    auth.reload().await.unwrap();
    assert_eq!(auth.authenticate(Some(ANN_ONE)).await, None);
    assert_eq!(auth.authenticate(Some(ANN_TWO)).await, ann());
}

#[tokio::test]
async fn a_changed_file_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    write_users(&path, "one");
    let auth = open(&path);
    assert_eq!(auth.authenticate(Some(ANN_ONE)).await, ann());
    let beside = folder.path().join("new");
    write_users(&beside, "two");
    std::fs::copy(&beside, &path).unwrap();
    assert_eq!(auth.authenticate(Some(ANN_ONE)).await, ann(), "not looked at again yet");
    let later = Instant::now() + LOOK_EVERY;
    assert_eq!(auth.authenticate_at(Some(ANN_ONE), later).await, None);
    assert_eq!(auth.authenticate(Some(ANN_TWO)).await, ann());
}

#[tokio::test]
async fn a_bad_file_leaves_the_users_of_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    write_users(&path, "one");
    let auth = open(&path);
    std::fs::write(&path, "ann:plain\n").unwrap();
    let error = auth.reload().await.unwrap_err();
    assert!(error.to_string().ends_with("line 1: the hash is not bcrypt (make it with htpasswd -B)"), "{error}");
    let later = Instant::now() + LOOK_EVERY;
    assert_eq!(auth.authenticate_at(Some(ANN_ONE), later).await, ann());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(auth.authenticate_at(Some(ANN_ONE), later + LOOK_EVERY).await, ann());
    assert!(matches!(Auth::open(Config { htpasswd: Some(path) }), Err(Error::Read { .. })));
}

#[tokio::test]
async fn many_connections_of_one_client_cost_few_checks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    write_users(&path, "one");
    let auth = open(&path);
    let answers = futures::future::join_all((0..200).map(|_| auth.authenticate(Some(ANN_ONE)))).await;
    assert!(answers.into_iter().all(|answer| answer == ann()));
}
