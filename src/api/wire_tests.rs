//! What answers look like on the wire: raw HTTP/1.1 through hyper, without a node behind.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures::StreamExt;
use http::{StatusCode, header};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::registry;

use super::body::ClientBody;
use super::dispatch::finish;
use super::error::Failure;
use super::headers::{self, SetHeader};
use super::range::ExactBody;

/// Sends `request` to a server that answers with `answer`, and returns all that comes back.
async fn exchange<F>(answer: fn(Request) -> F, request: &str) -> String
where
    F: Future<Output = Response> + Send + 'static,
{
    let router: Router = Router::new().route("/v2/{*rest}", any(answer));
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let connection = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), TowerToHyperService::new(router));
    let mut received = Vec::new();
    let asking = async {
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        client.read_to_end(&mut received).await.unwrap();
    };
    let (served, ()) = tokio::join!(connection, asking);
    // A cut body is an error of the connection: that is what cuts it.
    let _cut = served.is_err();
    String::from_utf8(received).unwrap()
}

fn streamed(pieces: Vec<registry::Result<&'static str>>, length: u64) -> Response {
    let pieces: Vec<_> =
        pieces.into_iter().map(|piece| piece.map(|text| Bytes::from_static(text.as_bytes()))).collect();
    let mut response = headers::empty(StatusCode::OK).set(header::CONTENT_LENGTH, length);
    *response.body_mut() = Body::new(ExactBody::new(futures::stream::iter(pieces).boxed(), length, Counter::default()));
    response
}

#[tokio::test]
async fn a_whole_body_has_its_length_and_is_not_chunked() {
    async fn answer(_: Request) -> Response {
        finish(streamed(vec![Ok("ab"), Ok("cd")], 4), false, "id")
    }
    let told = exchange(answer, "GET /v2/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("\r\n\r\nabcd"), "{told}");
    assert!(told.contains("content-length: 4\r\n") && !told.contains("transfer-encoding"), "{told}");
    assert!(told.contains("docker-distribution-api-version: registry/2.0\r\n"), "{told}");
    assert!(told.contains("x-content-type-options: nosniff\r\n"), "{told}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_cut_and_never_completed() {
    async fn answer(_: Request) -> Response {
        streamed(vec![Ok("ab"), Err(registry::Error::Unavailable)], 4)
    }
    let told = exchange(answer, "GET /v2/x HTTP/1.1\r\nhost: a\r\n\r\nGET /v2/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    // What was not flushed yet goes down with the connection, the head included.
    assert!(told.matches("HTTP/1.1 200").count() <= 1, "{told}");
    assert!(told.split_once("\r\n\r\n").is_none_or(|(_, body)| body.len() < 4), "{told}");
}

#[tokio::test]
async fn head_carries_the_length_of_the_body_it_leaves_out() {
    async fn known(_: Request) -> Response {
        finish(headers::empty(StatusCode::OK).set(header::CONTENT_LENGTH, 12345), true, "id")
    }
    async fn built(_: Request) -> Response {
        finish(Failure::denied().into_response("id"), true, "id")
    }
    let told = exchange(known, "HEAD /v2/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(told.contains("content-length: 12345\r\n") && told.ends_with("\r\n\r\n"), "{told}");
    let told = exchange(built, "HEAD /v2/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 403") && told.ends_with("\r\n\r\n"), "{told}");
    assert!(told.contains("content-length: ") && !told.contains("content-length: 0"), "{told}");
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_order() {
    async fn not_modified(_: Request) -> Response {
        headers::empty(StatusCode::NOT_MODIFIED).set(header::CONTENT_LENGTH, 7)
    }
    async fn no_content(_: Request) -> Response {
        headers::empty(StatusCode::NO_CONTENT)
    }
    let twice = "GET /v2/x HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
    let told = exchange(not_modified, &twice).await;
    assert_eq!(told.matches("HTTP/1.1 304").count(), 2, "{told}");
    let told = exchange(no_content, &twice).await;
    assert_eq!(told.matches("HTTP/1.1 204").count(), 2, "{told}");
    assert!(!told.contains("transfer-encoding") && !told.contains("content-length"), "{told}");
}

#[tokio::test]
async fn a_refused_body_is_drained_so_that_the_refusal_is_heard() {
    async fn answer(request: Request) -> Response {
        let (head, body) = request.into_parts();
        let body = ClientBody::new(body, &head.headers);
        let failure = body.read(2).await.unwrap_err();
        body.drain().await;
        failure.into_response("id")
    }
    let one = "PUT /v2/x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nabcde";
    let told = exchange(answer, &one.repeat(2)).await;
    assert_eq!(told.matches("HTTP/1.1 413").count(), 2, "{told}");
    let chunked = "PUT /v2/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let told = exchange(answer, &chunked.repeat(2)).await;
    assert_eq!(told.matches("HTTP/1.1 413").count(), 2, "{told}");
}

#[tokio::test]
async fn a_body_shorter_than_promised_is_an_error_not_an_end() {
    async fn answer(request: Request) -> Response {
        let (head, body) = request.into_parts();
        let body = ClientBody::new(body, &head.headers);
        assert_eq!(body.length(), Some(5));
        headers::empty(body.read(100).await.unwrap_err().status)
    }
    let told = exchange(answer, "PUT /v2/x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nabc").await;
    assert!(told.is_empty() || told.starts_with("HTTP/1.1 400"), "{told}");
}
