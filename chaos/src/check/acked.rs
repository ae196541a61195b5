//! Whether everything acknowledged is still there, whole, at every node (I1, I4).

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::workload::{AckedImage, Ledger};

/// Pulls every acknowledged image from every node: by tag, by digest, and each blob, byte for byte.
///
/// A node that is catching up may answer 503 for a while, never anything else.
pub(crate) async fn check(client: &Client, ledger: &Ledger, within: Duration) -> Result<usize> {
    let images = ledger.images();
    let deadline = Instant::now() + within;
    for node in 0..client.nodes() {
        for image in &images {
            check_image(client, node, image, deadline).await?;
        }
    }
    Ok(images.len())
}

async fn check_image(client: &Client, node: usize, image: &AckedImage, deadline: Instant) -> Result<()> {
    let repository = &image.repository;
    let manifests =
        [format!("/v2/{repository}/manifests/{}", image.tag), format!("/v2/{repository}/manifests/{}", image.manifest)];
    let blobs = image.blobs.iter().map(|blob| (format!("/v2/{repository}/blobs/{blob}"), blob));
    for (path, digest) in manifests.into_iter().map(|path| (path, &image.manifest)).chain(blobs) {
        loop {
            match client.pull(node, &path, digest).await {
                Ok(Ok(_)) => break,
                Ok(Err(answer)) if answer.status == 503 => {
                    ensure!(Instant::now() < deadline, "LOST: {path} at node {} is still 503", node + 1);
                }
                Ok(Err(answer)) => bail!("LOST: {path} at node {} is {}", node + 1, answer.status),
                Err(error) => {
                    let broken = !format!("{error:#}").contains("WRONG BYTES");
                    ensure!(broken && Instant::now() < deadline, "{path} at node {}: {error:#}", node + 1);
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rafthold::oci::{Algorithm, Digest};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A registry that answers every request with the same status and body.
    async fn liar(status: &'static str, body: &'static str) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 2048];
                let _ = stream.read(&mut request).await;
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Client::new(vec![format!("http://{address}")])
    }

    fn ledger() -> Ledger {
        let digest = Digest::of(Algorithm::Sha256, b"body");
        let ledger = Ledger::default();
        ledger.acked(AckedImage { repository: "r".into(), tag: "t".into(), manifest: digest, blobs: Vec::new() });
        ledger
    }

    #[tokio::test]
    async fn a_registry_that_keeps_its_word_passes() {
        let client = liar("200 OK", "body").await;
        assert_eq!(check(&client, &ledger(), Duration::from_secs(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn a_lost_manifest_is_caught() {
        let client = liar("404 Not Found", "").await;
        let error = check(&client, &ledger(), Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("LOST"));
    }

    #[tokio::test]
    async fn wrong_bytes_are_caught() {
        let client = liar("200 OK", "bodY").await;
        let error = check(&client, &ledger(), Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("WRONG BYTES"), "{error:#}");
    }

    #[tokio::test]
    async fn a_manifest_that_never_comes_back_is_caught() {
        let client = liar("503 Service Unavailable", "").await;
        let error = check(&client, &ledger(), Duration::from_millis(300)).await.unwrap_err();
        assert!(error.to_string().contains("still 503"));
    }
}
