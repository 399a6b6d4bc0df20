//! `/v1/projects/{id}/files/…`

use std::sync::Arc;

use atoll_contract::{
    Access, ProjectId, Read, Write,
    claims::ConnectClaims,
    files::{FileEntry, MAX_PAGE},
};
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio_util::{
    io::StreamReader,
    sync::{CancellationToken, DropGuard},
};

use super::{
    Gate,
    body::IdleBody,
    conditions::{self, Wanted, http_date},
    download,
    limits::Turn,
    reply::Refusal,
    request::{self, Query, wrong_type},
};
use crate::files::{Archive, Fault, Found, OpenFile, RelPath, Root, encode};

const METHODS: &str = "GET, HEAD, PUT, POST, DELETE";

pub(super) async fn handle(State(gate): State<Arc<Gate>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut body = Some(IdleBody::new(body, gate.limits.idle));
    let outcome = match gate.users.claims(&parts.headers) {
        Ok(claims) => answer(gate, claims, &parts.method, &parts.uri, &parts.headers, &mut body).await,
        Err(error) => Err(error.into()),
    };
    let refusal = match outcome {
        Ok(response) => return response,
        Err(refusal) => refusal,
    };
    if let Some(body) = body {
        body.discard().await;
    }
    refusal.into_response()
}

async fn answer(
    gate: Arc<Gate>,
    claims: ConnectClaims,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &mut Option<IdleBody>,
) -> Result<Response, Refusal> {
    let (project, encoded) = request::project(uri)?;
    if *method == Method::GET || *method == Method::HEAD {
        let access = gate.users.read(claims, project)?;
        let path = request::path(encoded)?;
        let call = Call::begin(gate, project, access, path).await?;
        return get(call, *method == Method::HEAD, uri, headers).await;
    }
    if ![Method::PUT, Method::POST, Method::DELETE].contains(method) {
        return Err(Refusal::method(METHODS));
    }
    let access = gate.users.write(claims, project)?;
    let path = request::path(encoded)?;
    let call = Call::begin(gate, project, access, path).await?;
    match *method {
        Method::PUT => put(call, uri, headers, body).await,
        Method::POST => post(call, uri).await,
        _ => delete(call, uri).await,
    }
}

/// A request that may go on: who, where, and its turn.
struct Call<A> {
    gate: Arc<Gate>,
    turn: Arc<Turn>,
    access: Arc<Access<A>>,
    root: Arc<Root>,
    path: RelPath,
    /// Fires when the caller has gone or the host stops.
    cancel: CancellationToken,
    _gone: DropGuard,
}

impl<A: Send + Sync + 'static> Call<A> {
    async fn begin(gate: Arc<Gate>, project: ProjectId, access: Access<A>, path: RelPath) -> Result<Self, Refusal> {
        let turn = gate.shares.request(project).await?;
        let (places, clock) = (gate.places.clone(), gate.clock.clone());
        let open = move || {
            let home = places.home(project)?;
            Root::open(&home, clock).map_err(|fault| fault.about(&"home"))
        };
        let root = Arc::new(gate.shares.job(gate.limits.quick, open).await??);
        let cancel = gate.cancel.child_token();
        Ok(Self { gate, turn, access: Arc::new(access), root, path, _gone: cancel.clone().drop_guard(), cancel })
    }

    /// Runs one step on home.
    async fn step<T, F>(&self, step: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Root, &Access<A>, &RelPath, &CancellationToken) -> Result<T, Fault> + Send + 'static,
    {
        self.step_within(self.gate.limits.quick, step).await
    }

    async fn step_within<T, F>(&self, limit: std::time::Duration, step: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&Root, &Access<A>, &RelPath, &CancellationToken) -> Result<T, Fault> + Send + 'static,
    {
        let (root, access, path, cancel) = (self.root.clone(), self.access.clone(), self.path.clone(), self.cancel.clone());
        let outcome = self.gate.shares.job(limit, move || step(&root, &access, &path, &cancel)).await?;
        outcome.map_err(|fault| self.refuse(fault))
    }

    fn refuse(&self, fault: Fault) -> Refusal {
        Refusal::about(fault, &self.path)
    }
}

async fn get(call: Call<Read>, head: bool, uri: &Uri, headers: &HeaderMap) -> Result<Response, Refusal> {
    let query = Query::parse(uri, &["stat", "archive", "after", "limit"])?;
    if query.flag("stat")? {
        let entry = call.step(|root, access, path, _| root.stat(access, path)).await?;
        return Ok(described(StatusCode::OK, &entry));
    }
    if let Some(format) = archive_format(&query)? {
        return get_archive(call, head, format).await;
    }
    match call.step(|root, access, path, _| root.find(access, path)).await? {
        Found::File(file) => get_file(call, head, headers, file),
        Found::Directory(_) => {
            let (after, limit) = (query.text("after")?.map(str::to_owned), query.number("limit")?.unwrap_or(MAX_PAGE));
            if !(1..=MAX_PAGE).contains(&limit) {
                return Err(Refusal::invalid(format!("A page has 1 to {MAX_PAGE} entries.")));
            }
            let list = call.step(move |root, access, path, cancel| root.list(access, path, after.as_deref(), limit, cancel)).await?;
            Ok(Json(list).into_response())
        }
    }
}

fn get_file(call: Call<Read>, head: bool, headers: &HeaderMap, file: OpenFile) -> Result<Response, Refusal> {
    let (etag, modified_at, size) = (file.etag(), file.modified_at(), file.size());
    if conditions::mismatch(headers, &etag)? {
        return Err(call.refuse(Fault::Changed));
    }
    let mut response = Response::builder()
        .header(header::ETAG, &etag)
        .header(header::LAST_MODIFIED, http_date(modified_at).to_string())
        .header(header::ACCEPT_RANGES, "bytes");
    let complete =
        |builder: http::response::Builder, body| builder.body(body).map_err(|_| Refusal::invalid("The answer has no valid header."));
    if conditions::unchanged(headers, &etag, modified_at)? {
        return complete(response.status(StatusCode::NOT_MODIFIED), Body::empty());
    }
    let name = call.path.names().last().map_or(&b""[..], Vec::as_slice);
    let guess = mime_guess::from_path(String::from_utf8_lossy(name).as_ref()).first_or_octet_stream();
    response = response.header(header::CONTENT_TYPE, guess.as_ref()).header(header::CONTENT_DISPOSITION, attachment(name, ""));
    let wanted = conditions::range(headers, size, &etag, modified_at);
    let (offset, length) = match wanted {
        Wanted::All => (0, size),
        Wanted::Part(offset, length) => {
            let range = format!("bytes {offset}-{}/{size}", offset + length - 1);
            response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, range);
            (offset, length)
        }
        Wanted::Nothing => {
            let refusal = Refusal::invalid(format!("The file has {size} bytes, and none in that range."));
            let range = HeaderValue::from_str(&format!("bytes */{size}")).unwrap_or(HeaderValue::from_static("bytes */*"));
            return Err(refusal.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, range));
        }
    };
    response = response.header(header::CONTENT_LENGTH, length);
    if head || length == 0 {
        return complete(response, Body::empty());
    }
    complete(response, download::file(call.gate.clone(), call.turn.clone(), file, offset, length))
}

async fn get_archive(call: Call<Read>, head: bool, format: Archive) -> Result<Response, Refusal> {
    // what isn't there or can't be read is said before the first byte; what goes wrong later breaks the body off
    call.step(|root, access, path, _| root.stat(access, path)).await?;
    let (kind, ending) = match format {
        Archive::Tar => ("application/x-tar", ".tar"),
        Archive::Zip => ("application/zip", ".zip"),
    };
    let name = call.path.names().last().map_or(&b"home"[..], Vec::as_slice);
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_DISPOSITION, attachment(name, ending))];
    if head {
        return Ok((headers, Body::empty()).into_response());
    }
    let turn = call.gate.shares.archive(&call.turn.share).await?;
    let (root, access, path) = (call.root.clone(), call.access.clone(), call.path.clone());
    let body = download::archive(call.gate.clone(), call.turn.clone(), turn, move |out, cancel| match format {
        Archive::Tar => root.write_tar(&access, &path, out, cancel),
        Archive::Zip => root.write_zip(&access, &path, out, cancel),
    });
    let body = body.await.map_err(|fault| call.refuse(fault))?;
    Ok((headers, body).into_response())
}

async fn put(call: Call<Write>, uri: &Uri, headers: &HeaderMap, body: &mut Option<IdleBody>) -> Result<Response, Refusal> {
    let query = Query::parse(uri, &["archive", "mode", "parents"])?;
    match archive_format(&query)? {
        Some(Archive::Tar) => return put_tar(call, body).await,
        Some(Archive::Zip) => return Err(Refusal::invalid("Only a tar can be unpacked.")),
        None => {}
    }
    let (condition, mode, parents) = (conditions::of_write(headers)?, query.mode()?, query.flag("parents")?);
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Refusal::invalid("A file is written as a whole; for a part at a time use an upload."));
    }
    let mut draft = call.step(move |root, access, path, _| root.draft(access, path, condition, mode, parents)).await?;
    if let Some(body) = body {
        while let Some(chunk) = body.chunk().await.map_err(|fault| call.refuse(fault))? {
            draft = call.step(move |_, _, _, _| draft.write(&chunk).map(|()| draft)).await?;
        }
    }
    let turn = call.turn.clone();
    let (entry, created) = call.step_within(call.gate.limits.long, move |root, _, _, _| draft.commit(root, &turn.share.commits)).await?;
    Ok(described(if created { StatusCode::CREATED } else { StatusCode::OK }, &entry))
}

async fn put_tar(call: Call<Write>, body: &mut Option<IdleBody>) -> Result<Response, Refusal> {
    let Some(body) = body.take() else { return Err(wrong_type("application/x-tar")) };
    let turn = call.gate.shares.archive(&call.turn.share).await?;
    let (root, access, path, cancel) = (call.root.clone(), call.access.clone(), call.path.clone(), call.cancel.clone());
    let (handle, span) = (Handle::current(), tracing::Span::current());
    let work = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        span.in_scope(|| handle.block_on(root.unpack_tar(&access, &path, StreamReader::new(body.into_stream()), &cancel)))
    });
    // bounded by the body's own idle time; when the caller has gone `cancel` fires
    let outcome = work.await.map_err(|_| atoll_contract::Error::internal("The host failed at this request."))?;
    Ok(Json(outcome.map_err(|fault| call.refuse(fault))?).into_response())
}

async fn post(call: Call<Write>, uri: &Uri) -> Result<Response, Refusal> {
    let query = Query::parse(uri, &["op", "parents", "to", "replace", "target"])?;
    let missing = |name: &str| Refusal::invalid(format!("The parameter {name} is missing."));
    match query.text("op")? {
        Some("mkdir") => {
            let parents = query.flag("parents")?;
            let (entry, created) = call.step(move |root, access, path, _| root.mkdir(access, path, parents)).await?;
            Ok(described(if created { StatusCode::CREATED } else { StatusCode::OK }, &entry))
        }
        Some("rename") => {
            let to = RelPath::from_bytes(query.bytes("to").ok_or_else(|| missing("to"))?).map_err(|fault| call.refuse(fault))?;
            let replace = query.flag("replace")?;
            let new = to.clone();
            let renamed = call.step(move |root, access, path, _| Ok(root.rename(access, path, &new, replace))).await?;
            // of the two paths the one that is in the way is named
            let entry = renamed.map_err(|fault| match fault {
                Fault::Exists | Fault::NotEmpty | Fault::IsDirectory => Refusal::about(fault, &to),
                other => call.refuse(other),
            })?;
            Ok(described(StatusCode::OK, &entry))
        }
        Some("symlink") => {
            let target = query.bytes("target").ok_or_else(|| missing("target"))?.to_vec();
            let entry = call.step(move |root, access, path, _| root.symlink(access, path, &target)).await?;
            Ok(described(StatusCode::CREATED, &entry))
        }
        Some(_) => Err(Refusal::invalid("The parameter op is mkdir, rename or symlink.")),
        None => Err(missing("op")),
    }
}

async fn delete(call: Call<Write>, uri: &Uri) -> Result<Response, Refusal> {
    let recursive = Query::parse(uri, &["recursive"])?.flag("recursive")?;
    let limit = call.gate.limits.long;
    call.step_within(limit, move |root, access, path, cancel| root.remove(access, path, recursive, cancel)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn archive_format(query: &Query) -> Result<Option<Archive>, Refusal> {
    match query.text("archive")? {
        None => Ok(None),
        Some("tar") => Ok(Some(Archive::Tar)),
        Some("zip") => Ok(Some(Archive::Zip)),
        Some(_) => Err(Refusal::invalid("The parameter archive is tar or zip.")),
    }
}

/// One entry as JSON, with its etag as a header, too.
fn described(status: StatusCode, entry: &FileEntry) -> Response {
    let mut response = json(status, entry);
    if let Ok(etag) = HeaderValue::from_str(&entry.etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    (status, Json(value)).into_response()
}

/// `Content-Disposition` (RFC 6266): a browser saves it and never shows it as a page of this host. The name is encoded as RFC 8187 says, so no byte of
/// it can end the header.
fn attachment(name: &[u8], ending: &str) -> String {
    format!("attachment; filename*=UTF-8''{}{ending}", encode(name))
}
