//! The way of every request: who asks, for what, may they, and then the noun that answers.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::FutureExt;
use http::request::Parts as Head;
use http::{HeaderValue, Method, StatusCode, header};
use http_body::Body as _;

use crate::auth::{Action, Decision, Principal};

use super::body::ClientBody;
use super::call::Call;
use super::error::Failure;
use super::headers::{self, SetHeader};
use super::route::{Route, RouteError};
use super::{Parts, base, blobs, catalog, manifests, referrers, tags, uploads};

/// Answers any request below `/v2`; a panic on the way is a 500, logged and counted.
pub(super) async fn answer(State(parts): State<Arc<Parts>>, request: Request) -> Response {
    let id = format!("{:016x}", parts.seed.draw_u64());
    let asks_head = *request.method() == Method::HEAD;
    let work = AssertUnwindSafe(Box::pin(respond(&parts, request, &id))).catch_unwind();
    let response = work.await.unwrap_or_else(|_panic| {
        parts.metrics.panics.inc();
        // What it said went to the panic hook.
        tracing::error!(request = id, "request handler panicked");
        Failure::panicked().into_response(&id)
    });
    finish(response, asks_head, &id)
}

async fn respond(parts: &Parts, request: Request, id: &str) -> Response {
    let (head, body) = request.into_parts();
    let body = ClientBody::new(body, &head.headers);
    match route(parts, head, &body).await {
        Ok(response) => response,
        Err(mut failure) => {
            if body.timed_out() {
                failure.status = StatusCode::REQUEST_TIMEOUT;
                failure = failure.header(header::CONNECTION, "close");
            }
            body.drain().await;
            failure.into_response(id)
        }
    }
}

async fn route(parts: &Parts, head: Head, body: &ClientBody) -> Result<Response, Failure> {
    let route = Route::parse(head.uri.path());
    let principal = authorize(parts, &head, &route).await?;
    let route = route.map_err(|error| Failure::route(error, head.method == Method::PUT))?;
    if !route.allows(&head.method) {
        return Err(Failure::method(route.methods()));
    }
    let call = Call::new(parts, head, principal)?;
    match &route {
        Route::Base => Ok(base::get()),
        Route::Catalog => catalog::list(&call).await,
        Route::Tags(name) => tags::list(&call, name).await,
        Route::Referrers(name, digest) => referrers::list(&call, name, digest).await,
        Route::Blob(name, digest) if call.method == Method::DELETE => blobs::delete(&call, name, digest).await,
        Route::Blob(name, digest) => blobs::get(&call, name, digest).await,
        Route::Uploads(name) => uploads::start(&call, name, body).await,
        Route::Upload(name, id) => match call.method {
            Method::PATCH => uploads::append(&call, name, *id, body).await,
            Method::PUT => uploads::commit(&call, name, *id, body).await,
            Method::DELETE => uploads::cancel(&call, name, *id).await,
            _ => uploads::status(&call, name, *id).await,
        },
        Route::Manifest(name, reference) => match call.method {
            Method::PUT => manifests::put(&call, name, reference, body).await,
            Method::DELETE => manifests::delete(&call, name, reference).await,
            _ => manifests::get(&call, name, reference).await,
        },
    }
}

/// The one place where a request is let through: before it, nothing tells what exists.
async fn authorize(parts: &Parts, head: &Head, route: &Result<Route, RouteError>) -> Result<Principal, Failure> {
    let mut credentials = head.headers.get_all(header::AUTHORIZATION).iter();
    let credential = match (credentials.next(), credentials.next()) {
        (None, _) => None,
        // Nothing that a browser or client means; wrong like any other text.
        (Some(_), Some(_)) => Some(""),
        (Some(value), None) => Some(value.to_str().unwrap_or_default()),
    };
    let principal = parts.auth.authenticate(credential).await.ok_or_else(Failure::unauthenticated)?;
    // A path that names nothing is nobody's repository: whoever may ask for the base may hear so.
    let (action, repository) = match route {
        Ok(route) => (route.action(&head.method), route.repository()),
        Err(_) => (Action::Base, None),
    };
    match parts.auth.decide(&principal, action, repository) {
        Decision::Allowed => Ok(principal),
        Decision::Unauthenticated => Err(Failure::unauthenticated()),
        Decision::Denied => Err(Failure::denied()),
    }
}

/// Adds what every answer carries, and takes the body off an answer to HEAD.
pub(super) fn finish(response: Response, asks_head: bool, id: &str) -> Response {
    let mut response = response
        .set(headers::API_VERSION, "registry/2.0")
        .set(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .set(headers::REQUEST_ID, id);
    if asks_head {
        // Answers without a body either say their length already or, as a 204, must not.
        if let Some(length) = response.body().size_hint().exact().filter(|length| *length > 0) {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        *response.body_mut() = Body::empty();
    }
    response
}
