//! The addresses: health and inference by the Open Inference Protocol, single images, metrics, and the page.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_http::timeout::TimeoutLayer;

use super::model::{Input, Model, Refusal};
use super::{Limits, Part, Service, infer};

/// Seconds after which a client may try again that found the queue full.
const RETRY_AFTER: &str = "1";

/// An answer that is no answer, in JSON.
pub struct Failure(pub StatusCode, pub String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.0, Json(json!({ "error": self.1 }))).into_response();
        if self.0 == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Busy => {
                Self(StatusCode::SERVICE_UNAVAILABLE, "too many requests are waiting; try again".to_string())
            }
            Refusal::Unreadable(error) => Self(StatusCode::UNPROCESSABLE_ENTITY, error),
            Refusal::Failed(error) => Self(StatusCode::INTERNAL_SERVER_ERROR, error),
        }
    }
}

/// Every address.
pub fn router(service: Arc<Service>, limits: &Limits) -> Router {
    let open = Router::new()
        .route("/", get(page))
        .route("/v2/health/live", get(|| async { Json(json!({ "live": true })) }))
        .route("/v2/health/ready", get(|| async { Json(json!({ "ready": true })) }));
    let guarded = Router::new()
        .route("/v2", get(server))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v1/inspect", post(inspect))
        .route("/v1/state", get(state))
        .route("/v1/parts/{number}/image", get(image_of_part))
        .route("/v1/parts/{number}/map", get(map_of_part))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(service.clone(), authorised));
    open.merge(guarded)
        .layer(DefaultBodyLimit::max(limits.body_bytes))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            Duration::from_secs(limits.seconds),
        ))
        .fallback(|| async { Failure(StatusCode::NOT_FOUND, "there is nothing at this address".to_string()) })
        .with_state(service)
}

/// Lets requests with the token through; without one to compare with, all.
async fn authorised(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    match &service.token {
        Some(token) if !same(token.as_bytes(), given.as_bytes()) => {
            let said = "this service wants `Authorization: Bearer TOKEN`".to_string();
            let mut response = Failure(StatusCode::UNAUTHORIZED, said).into_response();
            let wanted = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, wanted);
            response
        }
        _ => next.run(request).await,
    }
}

/// Compared in a time that depends on the lengths alone.
fn same(one: &[u8], other: &[u8]) -> bool {
    let different = one.iter().zip(other).fold(0, |different, (one, other)| different | (one ^ other));
    one.len() == other.len() && different == 0
}

async fn page() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob: data:; connect-src 'self'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, include_str!("page.html")).into_response()
}

async fn server() -> Json<Value> {
    let extensions = ["binary_tensor_data"];
    Json(json!({ "name": "steadfast", "version": env!("CARGO_PKG_VERSION"), "extensions": extensions }))
}

fn find<'a>(service: &'a Service, name: &str) -> Result<&'a Arc<Model>, Failure> {
    service.models.iter().find(|model| model.name == name).ok_or_else(|| {
        let names: Vec<&str> = service.models.iter().map(|model| model.name.as_str()).collect();
        Failure(StatusCode::NOT_FOUND, format!("no model {name} is served here: {}", names.join(", ")))
    })
}

/// A model in an address.
#[derive(Deserialize)]
struct Target {
    model: String,
    version: Option<String>,
}

impl Target {
    /// The model, if the bundle that answers is of the version that is asked for.
    fn find(self, service: &Service) -> Result<&Arc<Model>, Failure> {
        let model = find(service, &self.model)?;
        let is = model.loaded().version.clone();
        match self.version.is_none_or(|version| version == is) {
            true => Ok(model),
            false => Err(Failure(StatusCode::NOT_FOUND, format!("{} is of version {is} now", model.name))),
        }
    }
}

type Shared = State<Arc<Service>>;

async fn metadata(State(service): Shared, Path(target): Path<Target>) -> Result<Json<Value>, Failure> {
    Ok(Json(infer::metadata(target.find(&service)?)))
}

async fn ready(State(service): Shared, Path(target): Path<Target>) -> Result<Json<Value>, Failure> {
    // A bundle answers only after its golden self-test.
    Ok(Json(json!({ "name": target.find(&service)?.name, "ready": true })))
}

async fn infer(
    State(service): Shared,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Failure> {
    infer::infer(&service, target.find(&service)?, &headers, body).await
}

#[derive(Deserialize)]
struct Named {
    model: Option<String>,
    name: Option<String>,
}

/// An image file, to what `inspect --json` says about it.
async fn inspect(
    State(service): Shared,
    Query(Named { model, name }): Query<Named>,
    body: Bytes,
) -> Result<Json<Part>, Failure> {
    let model = match &model {
        Some(name) => find(&service, name)?,
        None if service.models.len() == 1 => &service.models[0],
        None => {
            let said = "several models are served; name one: /v1/inspect?model=NAME".to_string();
            return Err(Failure(StatusCode::BAD_REQUEST, said));
        }
    };
    let started = Instant::now();
    let (loaded, name) = (model.loaded(), name.unwrap_or_else(|| "the request".to_string()));
    let answer = model.answer(loaded, Input::Files(vec![body])).await;
    service.latency(model, started);
    let part = service.note(model, answer, &name)?.pop();
    part.map(Json).ok_or_else(|| Refusal::Failed("no answer".to_string()).into())
}

async fn state(State(service): Shared) -> Json<Value> {
    Json(service.state())
}

fn png(bytes: Option<Vec<u8>>) -> Result<Response, Failure> {
    let gone = || Failure(StatusCode::NOT_FOUND, "this part is not kept any more".to_string());
    let bytes = bytes.ok_or_else(gone)?;
    Ok(([(header::CONTENT_TYPE, "image/png")], Body::from(bytes)).into_response())
}

async fn image_of_part(State(service): Shared, Path(number): Path<u64>) -> Result<Response, Failure> {
    png(service.image(number))
}

async fn map_of_part(State(service): Shared, Path(number): Path<u64>) -> Result<Response, Failure> {
    png(service.map(number))
}

async fn metrics(State(service): Shared) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], service.metrics()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_compared_whole() {
        assert!(same(b"abc", b"abc") && !same(b"abc", b"abd"));
        assert!(!same(b"abc", b"ab") && !same(b"ab", b"abc") && !same(b"abc", b""));
    }
}
