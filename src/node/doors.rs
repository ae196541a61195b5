//! The doors for clients and operators: bound first, so that a starting node says that it starts.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;
use http::{StatusCode, header};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::config::Config;
use crate::env::Env;
use crate::ops::{self, Health};
use crate::telemetry;

use super::StartError;
use super::door::{self, Certificate, Door, Front, Limits, Opening, Routes};
use super::tasks::Tasks;

/// The open doors.
pub(super) struct Doors {
    pub(super) api: SocketAddr,
    pub(super) ops: Option<SocketAddr>,
    api_routes: Routes,
    ops_routes: Option<Routes>,
    certificate: Option<Arc<Certificate>>,
    opening: watch::Sender<Opening>,
    /// Ends when every door is closed.
    closed: mpsc::Receiver<()>,
}

impl Doors {
    /// Binds and serves; until [`Doors::install`] everything but `/livez` is answered with 503.
    pub(super) async fn open(
        config: &Config,
        env: &Env,
        tasks: &Tasks,
        health: &Health,
        metrics: &telemetry::Metrics,
    ) -> Result<Self, StartError> {
        let certificate = match (&config.api.tls_cert, &config.api.tls_key) {
            (Some(cert), Some(key)) => Some(Arc::new(Certificate::read(cert, key)?)),
            _ => None,
        };
        if let Some(certificate) = &certificate {
            let certificate = Arc::clone(certificate);
            tasks.critical("certificate", async move {
                certificate.watch().await;
                Ok::<_, Infallible>(())
            });
        }
        let (opening, receiver) = watch::channel(Opening::Open);
        let (open, closed) = mpsc::channel(1);
        let limits = Limits {
            connections_max: config.api.connections_max,
            connections_per_address_max: config.api.connections_per_address_max,
            head_timeout: config.api.head_timeout,
            idle_timeout: config.api.idle_timeout,
            stall_timeout: config.api.stall_timeout,
        };
        let counts = metrics.register(door::Metrics::new);
        let room = Arc::new(Semaphore::new(door::REQUESTS_MAX));
        let bind = async |name: &'static str, address: &str, rest: Router| {
            let listen = |source| StartError::Listen { name, address: address.to_owned(), source };
            let listener = env.net.bind(address).await.map_err(listen)?;
            let bound = listener.local_address().map_err(listen)?;
            let routes = Routes::new(starting_registry(), rest);
            let front = Front {
                routes: routes.clone(),
                metrics: counts.clone(),
                stall_timeout: limits.stall_timeout,
                room: room.clone(),
            };
            let (tls, limits, opening) = (certificate.clone(), limits.clone(), receiver.clone());
            let (open, door) = (open.clone(), Door { listener, tls, limits, front, opening });
            tasks.critical(name, async move {
                let ended = door.serve().await;
                drop(open);
                ended
            });
            tracing::info!(task = name, address = %bound, "listening");
            Ok::<_, StartError>((bound, routes))
        };
        let own_ops = config.ops.listen.as_deref();
        let rest = if own_ops.is_some() { nothing() } else { ops::starting(health.clone()) };
        let (api, api_routes) = bind("api", &config.api.listen, rest).await?;
        let (ops, ops_routes) = match own_ops {
            None => (None, None),
            Some(address) => {
                let (ops, routes) = bind("ops", address, ops::starting(health.clone())).await?;
                (Some(ops), Some(routes))
            }
        };
        Ok(Self { api, ops, api_routes, ops_routes, certificate, opening, closed })
    }

    /// Puts the real routes in place.
    pub(super) fn install(&self, registry: Router, operations: Router) {
        match &self.ops_routes {
            None => self.api_routes.replace(registry, operations),
            Some(routes) => {
                self.api_routes.replace(registry, nothing());
                routes.replace(nothing(), operations);
            }
        }
    }

    /// Reads the certificate for clients again if its files are others than before.
    pub(super) fn reload(&self) {
        if let Some(certificate) = &self.certificate {
            certificate.reload();
        }
    }

    /// Takes no new connections and waits until the open requests have finished.
    pub(super) async fn drain(&mut self) {
        self.opening.send_replace(Opening::Draining);
        while self.closed.recv().await.is_some() {}
    }
}

/// The registry of a node that is not whole yet.
fn starting_registry() -> Router {
    Router::new().fallback(|| async {
        let body = serde_json::json!({
            "errors": [{ "code": "UNAVAILABLE", "message": "the node is starting; try again soon" }]
        });
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::RETRY_AFTER, "1")];
        (StatusCode::SERVICE_UNAVAILABLE, headers, body.to_string()).into_response()
    })
}

fn nothing() -> Router {
    Router::new().fallback(|| async { (StatusCode::NOT_FOUND, "not found\n") })
}
