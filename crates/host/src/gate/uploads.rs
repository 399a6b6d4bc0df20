//! `/v1/projects/{id}/uploads[/{upload}]`: tus 1.0.0 with the extensions creation, termination and expiration (<https://tus.io/protocols/resumable-upload>).

use std::sync::Arc;

use atoll_contract::{Access, Error, ErrorCode, ProjectId, Write};
use axum::{
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    Gate,
    body::IdleBody,
    conditions::http_date,
    limits::Turn,
    reply::Refusal,
    request::{self, wrong_type},
};
use crate::files::{Fault, Home, Plan, RelPath, Root, Upload, UploadId, Uploads};

const VERSION: &str = "1.0.0";
const OFFSET_STREAM: &str = "application/offset+octet-stream";
const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const TUS_MAX_SIZE: HeaderName = HeaderName::from_static("tus-max-size");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");

pub(super) async fn handle(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut body = IdleBody::new(body, gate.limits.idle);
    let mut response = match answer(&gate, &parts, &mut body).await {
        Ok(response) => response,
        Err(refusal) => {
            body.discard().await;
            refusal.into_response()
        }
    };
    response.headers_mut().insert(TUS_RESUMABLE, HeaderValue::from_static(VERSION));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn answer(gate: &Arc<Gate>, parts: &http::request::Parts, body: &mut IdleBody) -> Result<Response, Refusal> {
    let claims = gate.users.claims(&parts.headers)?;
    let (project, id) = request::project(&parts.uri)?;
    let access = Arc::new(gate.users.write(claims, project)?);
    if parts.method == Method::OPTIONS {
        return Ok(options(gate));
    }
    if parts.headers.get(TUS_RESUMABLE).is_none_or(|version| version != VERSION) {
        return Err(Refusal::invalid("The header Tus-Resumable must be 1.0.0.")
            .status(StatusCode::PRECONDITION_FAILED)
            .header(TUS_VERSION, HeaderValue::from_static(VERSION)));
    }
    let call = Call::begin(gate, project, access).await?;
    if id.is_empty() {
        return match parts.method {
            Method::POST => create(call, &parts.headers).await,
            _ => Err(Refusal::method("POST, OPTIONS")),
        };
    }
    let id: UploadId = id.parse().map_err(|_| Error::not_found("upload"))?;
    match parts.method {
        Method::HEAD => head(call, id).await,
        Method::PATCH => patch(call, id, &parts.headers, body).await,
        Method::DELETE => delete(call, id).await,
        _ => Err(Refusal::method("HEAD, PATCH, DELETE, OPTIONS")),
    }
}

fn options(gate: &Gate) -> Response {
    let headers = [
        (TUS_VERSION, HeaderValue::from_static(VERSION)),
        (TUS_EXTENSION, HeaderValue::from_static("creation,termination,expiration")),
        (TUS_MAX_SIZE, HeaderValue::from(gate.limits.uploads.bytes)),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// A request that may go on.
struct Call {
    gate: Arc<Gate>,
    project: ProjectId,
    turn: Arc<Turn>,
    access: Arc<Access<Write>>,
    home: Home,
    uploads: Arc<Uploads>,
}

impl Call {
    async fn begin(gate: &Arc<Gate>, project: ProjectId, access: Arc<Access<Write>>) -> Result<Self, Refusal> {
        let turn = gate.shares.request(project).await?;
        let (places, limits, clock) = (gate.places.clone(), gate.limits.uploads, gate.clock.clone());
        let open = move || {
            let home = places.home(project)?;
            let uploads = Uploads::open(&home, limits, clock).map_err(|fault| fault.about(&"uploads"))?;
            Ok::<_, Error>((home, Arc::new(uploads)))
        };
        let (home, uploads) = gate.shares.job(gate.limits.quick, open).await??;
        Ok(Self { gate: gate.clone(), project, turn, access, home, uploads })
    }

    async fn step<T, F>(&self, step: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Uploads, &Access<Write>) -> Result<T, Fault> + Send + 'static,
    {
        let (uploads, access) = (self.uploads.clone(), self.access.clone());
        let outcome = self.gate.shares.job(self.gate.limits.long, move || step(&uploads, &access)).await?;
        outcome.map_err(|fault| match fault {
            Fault::NotFound => Error::not_found("upload").into(),
            other => Refusal::about(other, &"upload"),
        })
    }

    /// Puts a complete upload in its place.
    async fn place(&self, mut upload: Upload) -> Result<Upload, Refusal> {
        let (home, clock, turn, path) = (self.home.clone(), self.gate.clock.clone(), self.turn.clone(), upload.plan.path.clone());
        let placed = self.step(move |uploads, access| {
            let root = Root::open(&home, clock)?;
            Ok(uploads.place(access, &root, &mut upload, &turn.share.commits).map(|()| upload))
        });
        // a fault from here is about the file in home, not about the upload
        placed.await?.map_err(|fault| Refusal::about(fault, &path))
    }
}

async fn create(call: Call, headers: &HeaderMap) -> Result<Response, Refusal> {
    if headers.contains_key(UPLOAD_DEFER_LENGTH) {
        return Err(Refusal::invalid("The length must be known when an upload begins."));
    }
    let length = number(headers, &UPLOAD_LENGTH)?;
    if length > call.gate.limits.uploads.bytes {
        return Err(Error::new(ErrorCode::TooLarge, format!("An upload has at most {} bytes.", call.gate.limits.uploads.bytes)).into());
    }
    let plan = plan(headers, length)?;
    let mut upload = {
        let _beginning = call.turn.share.beginnings.lock().await;
        call.step(move |uploads, access| uploads.create(access, plan)).await?
    };
    let location = format!("/v1/projects/{}/uploads/{}", call.project, upload.id);
    if length == 0 {
        upload = call.place(upload).await?;
    }
    let mut response = (StatusCode::CREATED, [(header::LOCATION, location)]).into_response();
    add_state(&mut response, &upload);
    Ok(response)
}

async fn head(call: Call, id: UploadId) -> Result<Response, Refusal> {
    let _turn = call.turn.share.upload(&id, call.gate.limits.turn).await?;
    let upload = call.step(move |uploads, access| uploads.find(access, &id)).await?;
    let mut response = StatusCode::OK.into_response();
    let metadata = format!("path {}", STANDARD.encode(upload.plan.path.bytes()));
    if let Ok(value) = HeaderValue::from_str(&metadata) {
        response.headers_mut().insert(UPLOAD_METADATA, value);
    }
    response.headers_mut().insert(UPLOAD_LENGTH, upload.plan.length.into());
    add_state(&mut response, &upload);
    Ok(response)
}

async fn patch(call: Call, id: UploadId, headers: &HeaderMap, body: &mut IdleBody) -> Result<Response, Refusal> {
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != OFFSET_STREAM) {
        return Err(wrong_type(OFFSET_STREAM));
    }
    let offset = number(headers, &UPLOAD_OFFSET)?;
    let turn = call.turn.share.upload(&id, call.gate.limits.turn).await?;
    let mut upload = call.step(move |uploads, access| uploads.find(access, &id)).await?;
    if offset != upload.offset {
        let error = Error::new(ErrorCode::Conflict, format!("The upload has {} bytes, not {offset}.", upload.offset));
        return Err(error.mend("Ask with HEAD and go on from there.").details(serde_json::json!({ "offset": upload.offset })).into());
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > upload.plan.length - offset) {
        return Err(Error::new(ErrorCode::TooLarge, "More bytes come than the upload's length leaves.").into());
    }
    let (outcome, received);
    (upload, outcome) = loop {
        let chunk = tokio::select! {
            chunk = body.chunk() => chunk,
            () = turn.taken_over.cancelled() => Err(Fault::Cancelled),
            () = call.gate.cancel.cancelled() => Err(Fault::Cancelled),
        };
        match chunk {
            Ok(Some(chunk)) => {
                let (back, written) = call
                    .step(move |uploads, access| {
                        let outcome = uploads.append(access, &mut upload, &chunk);
                        Ok((upload, outcome))
                    })
                    .await?;
                upload = back;
                if let Err(fault) = written {
                    break (upload, Err(fault));
                }
            }
            Ok(None) => break (upload, Ok(())),
            Err(fault) => break (upload, Err(fault)),
        }
    };
    received = outcome;
    // what came is kept in any case
    upload = call.step(move |uploads, access| uploads.rest(access, &mut upload).map(|()| upload)).await?;
    received.map_err(|fault| Refusal::about(fault, &"upload"))?;
    if upload.offset == upload.plan.length {
        upload = call.place(upload).await?;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    add_state(&mut response, &upload);
    Ok(response)
}

async fn delete(call: Call, id: UploadId) -> Result<Response, Refusal> {
    let _turn = call.turn.share.upload(&id, call.gate.limits.turn).await?;
    call.step(move |uploads, access| uploads.find(access, &id).and_then(|upload| uploads.remove(access, upload))).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn add_state(response: &mut Response, upload: &Upload) {
    response.headers_mut().insert(UPLOAD_OFFSET, upload.offset.into());
    if let Some(value) = upload.expires_at.and_then(|time| HeaderValue::from_str(&http_date(time).to_string()).ok()) {
        response.headers_mut().insert(UPLOAD_EXPIRES, value);
    }
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<u64, Refusal> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    // not +5, which parse would take
    let digits = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).ok_or_else(|| Refusal::invalid(format!("The header {name} must be a number.")))
}

/// The metadata keys `path` (its bytes, not percent-encoded) and `mode` (octal); others, such as a client's own `filename`, are ignored.
fn plan(headers: &HeaderMap, length: u64) -> Result<Plan, Refusal> {
    let wrong = || Refusal::invalid("The header Upload-Metadata must have \"path\" and the path in base64.");
    let text = headers.get(UPLOAD_METADATA).ok_or_else(wrong)?.to_str().map_err(|_| wrong())?;
    let value = |key: &str| {
        let value = text.split(',').map(str::trim).find_map(|pair| pair.split_once(' ').filter(|(name, _)| *name == key));
        value.map(|(_, value)| STANDARD.decode(value.trim()).map_err(|_| wrong())).transpose()
    };
    let path = RelPath::from_bytes(&value("path")?.ok_or_else(wrong)?).map_err(|fault| Refusal::about(fault, &"path"))?;
    let mode = value("mode")?.map(|mode| request::mode(&String::from_utf8_lossy(&mode))).transpose()?;
    Ok(Plan { path, length, mode })
}
