//! What every request meets first: checks that no route may skip, a guard against panics, and the count.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures::FutureExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower_service::Service;
use tracing::Instrument;

use super::activity::Activity;
use super::body::{Paced, Tracked};
use super::metrics::Metrics;

/// Requests of the registry at once, in all: as many as connections by default, so only clients that send many on each meet
/// it. Each may hold some tens of KiB for as long as its client stalls.
pub(crate) const REQUESTS_MAX: usize = 4096;

/// Bytes of a request's path and query.
const TARGET_BYTES_MAX: usize = 16 << 10;

/// Where requests go: the registry's routes under `/v2`, all others elsewhere; replaced when the node is whole.
#[derive(Clone)]
pub(crate) struct Routes(Arc<RwLock<(Router, Router)>>);

impl Routes {
    /// `registry` answers `/v2` and below, `rest` everything else.
    pub(crate) fn new(registry: Router, rest: Router) -> Self {
        Self(Arc::new(RwLock::new((registry, rest))))
    }

    /// Puts others in their place.
    pub(crate) fn replace(&self, registry: Router, rest: Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (registry, rest);
    }

    fn pick(&self, path: &str) -> Router {
        let routers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if path == "/v2" || path.starts_with("/v2/") { routers.0.clone() } else { routers.1.clone() }
    }
}

/// The first to see a request; cheap to clone.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) routes: Routes,
    pub(crate) metrics: Metrics,
    pub(crate) stall_timeout: Duration,
    /// Room for requests of the registry, in all; see [`REQUESTS_MAX`].
    pub(crate) room: Arc<Semaphore>,
}

impl Front {
    /// Answers one request; never fails.
    pub(super) async fn answer(&self, request: Request<Incoming>, activity: Arc<Activity>) -> Response<Tracked> {
        let begun = Instant::now();
        let in_flight = activity.request(request.version() == Version::HTTP_2);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let is_registry = request.uri().path().starts_with("/v2");
        let permit = is_registry.then(|| Arc::clone(&self.room).try_acquire_owned());
        let response = match refuse(&request) {
            Some(refused) => refused,
            None if matches!(permit, Some(Err(_))) => {
                let mut busy = refusal(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many requests at once");
                busy.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
                busy
            }
            None if activity.has_two_lengths() => {
                let mut refused = refusal(StatusCode::BAD_REQUEST, "UNSUPPORTED", "the body has two lengths");
                refused.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
                refused
            }
            None => {
                let request = request.map(|body| Body::new(Paced::new(body, activity, self.stall_timeout)));
                self.route(request).await
            }
        };
        let after = begun.elapsed();
        let status = response.status();
        self.metrics.answered(&method, status, after);
        tracing::debug!(%method, path, status = status.as_u16(), duration_ms = after.as_secs_f64() * 1e3, "request");
        let permit = permit.and_then(Result::ok);
        response.map(|body| Tracked::new(body, (in_flight, permit)))
    }

    async fn route(&self, request: Request<Body>) -> Response<Body> {
        let mut router = self.routes.pick(request.uri().path());
        let span = tracing::info_span!("request", method = %request.method());
        let work = AssertUnwindSafe(async move { router.call(request).await }.instrument(span));
        match work.catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => {
                self.metrics.panicked();
                refusal(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "internal error")
            }
        }
    }
}

/// Checks what is wrong on every route alike.
fn refuse<B>(request: &Request<B>) -> Option<Response<Body>> {
    let (method, uri) = (request.method(), request.uri());
    if method == Method::CONNECT || method == Method::TRACE {
        return Some(refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "method is not supported"));
    }
    if uri.path_and_query().is_some_and(|target| target.as_str().len() > TARGET_BYTES_MAX) {
        return Some(refusal(StatusCode::URI_TOO_LONG, "UNSUPPORTED", "path and query are too long"));
    }
    let good = if request.version() == Version::HTTP_2 {
        uri.authority().is_some() || one_host(request.headers())
    } else {
        // a server that is no proxy is asked by path alone
        uri.authority().is_none() && (one_host(request.headers()) || optional_host(request))
    };
    (!good).then(|| refusal(StatusCode::BAD_REQUEST, "UNSUPPORTED", "exactly one valid Host and a path are wanted"))
}

fn optional_host<B>(request: &Request<B>) -> bool {
    request.version() < Version::HTTP_11 && !request.headers().contains_key(header::HOST)
}

fn one_host(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Ok(host) = host.to_str() else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '[' | ']' | '%');
    host.len() <= 300 && host.chars().all(plain) && host.parse::<http::uri::Authority>().is_ok()
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(version: Version, uri: &str, hosts: &[&str], refused: Option<StatusCode>) {
        let mut request = Request::builder().version(version).uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let answer = refuse(&request.body(()).unwrap()).map(|response| response.status());
        assert_eq!(answer, refused, "{uri} {hosts:?}");
    }

    #[test]
    fn a_request_names_one_valid_host() {
        let bad = Some(StatusCode::BAD_REQUEST);
        for host in ["localhost:5000", "127.0.0.1", "[::1]:5000", "registry.example.org"] {
            check(Version::HTTP_11, "/v2/", &[host], None);
        }
        for host in ["", "a/..", "a b", "user@host", "a:b:c"] {
            check(Version::HTTP_11, "/v2/", &[host], bad);
        }
        check(Version::HTTP_11, "/v2/", &[], bad);
        check(Version::HTTP_11, "/v2/", &["a", "b"], bad);
        check(Version::HTTP_11, "http://a/v2/", &["a"], bad);
        check(Version::HTTP_10, "/v2/", &[], None);
        check(Version::HTTP_2, "http://a/v2/", &[], None);
        check(Version::HTTP_2, "/v2/", &[], bad);
    }

    #[test]
    fn a_long_target_is_refused() {
        let long = format!("/v2/?{}", "a=b&".repeat(10_000));
        check(Version::HTTP_11, &long, &["a"], Some(StatusCode::URI_TOO_LONG));
    }
}
