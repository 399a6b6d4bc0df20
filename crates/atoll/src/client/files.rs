//! A project's files over its host's HTTP. The connect token is renewed as needed; a project that has moved is looked for once more.

use std::sync::Mutex;

use atoll_contract::{
    Error, ErrorCode, ProjectId, Timestamp,
    files::{FileEntry, FileList},
};
use atoll_net::clock::SharedClock;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};

use super::{Http, Master};
use crate::errors::Result;

pub use reqwest::Body;

/// Bytes of one piece of a resumable upload.
pub const UPLOAD_CHUNK: u64 = 4 << 20;
/// A token that is good for less than this is replaced before it is used for something that can't be repeated.
const FRESH: std::time::Duration = std::time::Duration::from_mins(1);
/// Version of the tus protocol that uploads speak (tus.io, resumable upload protocol).
const TUS: (&str, &str) = ("Tus-Resumable", "1.0.0");

/// The files of one project.
pub struct Files {
    master: Master,
    project: ProjectId,
    clock: SharedClock,
    place: Mutex<Place>,
}

/// Where the project is, as the master said last.
#[derive(Clone)]
struct Place {
    http: Http,
    expires_at: Timestamp,
}

impl Files {
    pub async fn open(master: Master, project: ProjectId, clock: SharedClock) -> Result<Self> {
        let place = locate(&master, project).await?;
        Ok(Self { master, project, clock, place: Mutex::new(place) })
    }

    pub fn project(&self) -> ProjectId {
        self.project
    }

    pub fn master_url(&self) -> &str {
        self.master.url()
    }

    /// What is at a path, a symlink being described as one; none if nothing is.
    pub async fn stat(&self, path: &str) -> Result<Option<FileEntry>> {
        match self.repeat(|http| http.request(Method::GET, &self.at(path)).query(&[("stat", "true")])).await {
            Ok((http, response)) => Ok(Some(http.read(response).await?)),
            Err(error) if error.code == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a symlink leads to: for a file its etag and size, none for a directory.
    pub async fn follow(&self, path: &str) -> Result<Option<(String, u64)>> {
        let (_, response) = self.repeat(|http| http.request(Method::HEAD, &self.at(path))).await?;
        let text = |name| response.headers().get(name).and_then(|value: &header::HeaderValue| value.to_str().ok());
        // only files are served in ranges
        if text(header::ACCEPT_RANGES).is_none() {
            return Ok(None);
        }
        let size = text(header::CONTENT_LENGTH).and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Some((text(header::ETAG).unwrap_or_default().to_owned(), size)))
    }

    /// One page of a directory.
    pub async fn list(&self, path: &str, after: Option<&str>) -> Result<FileList> {
        let query: Vec<(&str, &str)> = after.map(|after| ("after", after)).into_iter().collect();
        let (http, response) = self.repeat(|http| http.request(Method::GET, &self.at(path)).query(&query)).await?;
        // a file's content would come as it is, and might even be JSON
        if response.headers().contains_key(header::ACCEPT_RANGES) {
            return Err(Error::invalid(format!("{path} isn't a directory.")));
        }
        http.read(response).await
    }

    /// Makes a directory and those above it.
    pub async fn mkdir(&self, path: &str) -> Result<()> {
        let query = [("op", "mkdir"), ("parents", "true")];
        self.repeat(|http| http.request(Method::POST, &self.at(path)).query(&query)).await.map(drop)
    }

    pub async fn remove(&self, path: &str, recursive: bool) -> Result<()> {
        let query = [("recursive", recursive.to_string())];
        self.repeat(|http| http.request(Method::DELETE, &self.at(path)).query(&query)).await.map(drop)
    }

    pub async fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        let query = [("op", "rename"), ("to", to), ("replace", if replace { "true" } else { "false" })];
        self.repeat(|http| http.request(Method::POST, &self.at(from)).query(&query)).await.map(drop)
    }

    /// A file's content from `resume`'s offset on, if it still is the version of that etag, else from the beginning. Gives where it begins.
    pub async fn get(&self, path: &str, resume: Option<(&str, u64)>) -> Result<(u64, Response)> {
        let (_, response) = self
            .repeat(|http| {
                let request = http.request(Method::GET, &self.at(path));
                match resume {
                    Some((etag, begin)) if begin > 0 => {
                        request.header(header::RANGE, format!("bytes={begin}-")).header(header::IF_RANGE, etag)
                    }
                    _ => request,
                }
            })
            .await?;
        let begin = if response.status() == StatusCode::PARTIAL_CONTENT { resume.map_or(0, |(_, begin)| begin) } else { 0 };
        Ok((begin, response))
    }

    /// A folder's content as a tar stream, with names from the folder on.
    pub async fn tar(&self, path: &str) -> Result<Response> {
        Ok(self.repeat(|http| http.request(Method::GET, &self.at(path)).query(&[("archive", "tar")])).await?.1)
    }

    /// Replaces or makes a file as a whole, with the directories above it.
    pub async fn put(&self, path: &str, mode: Option<u32>, body: Body) -> Result<()> {
        let mut query = vec![("parents", "true".to_owned())];
        query.extend(mode.map(|mode| ("mode", format!("{mode:o}"))));
        self.once(|http| http.request(Method::PUT, &self.at(path)).query(&query).body(body)).await.map(drop)
    }

    /// Unpacks a tar stream into a directory, which is made if need be.
    pub async fn untar(&self, path: &str, body: Body) -> Result<()> {
        let request = |http: &Http| {
            http.request(Method::PUT, &self.at(path))
                .query(&[("archive", "tar")])
                .header(header::CONTENT_TYPE, "application/x-tar")
                .body(body)
        };
        self.once(request).await.map(drop)
    }

    /// Begins a resumable upload. Gives its path at the host.
    pub async fn upload_create(&self, path: &str, size: u64, mode: u32) -> Result<String> {
        let metadata = format!("path {},mode {}", base64(path), base64(&format!("{mode:o}")));
        let url = format!("/v1/projects/{}/uploads", self.project);
        let request = |http: &Http| {
            let request = http.request(Method::POST, &url).header(TUS.0, TUS.1);
            request.header("Upload-Length", size).header("Upload-Metadata", metadata)
        };
        let response = self.once(request).await?;
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // the path alone is kept, since the host may be at another address tomorrow
        let path = match location.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
            None => location,
        };
        let ours = format!("/v1/projects/{}/", self.project);
        if path.starts_with(&ours) { Ok(path.to_owned()) } else { Err(Error::internal("The host didn't say where the upload goes.")) }
    }

    /// How much of an upload the host has.
    pub async fn upload_offset(&self, upload: &str) -> Result<u64> {
        let (_, response) = self.repeat(|http| http.request(Method::HEAD, upload).header(TUS.0, TUS.1)).await?;
        offset(&response)
    }

    /// Sends a piece of an upload that begins at `at`. Gives how much the host then has.
    pub async fn upload_patch(&self, upload: &str, at: u64, piece: bytes::Bytes) -> Result<u64> {
        let request = |http: &Http| {
            let request = http.request(Method::PATCH, upload).header(TUS.0, TUS.1).header("Upload-Offset", at);
            request.header(header::CONTENT_TYPE, "application/offset+octet-stream").body(piece)
        };
        offset(&self.once(request).await?)
    }

    fn at(&self, path: &str) -> String {
        format!("/v1/projects/{}/files/{}", self.project, encode(path))
    }

    fn place(&self) -> Place {
        self.place.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// A place whose token is good for a while.
    async fn fresh(&self) -> Result<Http> {
        let place = self.place();
        if place.expires_at.since(self.clock.now()) > FRESH { Ok(place.http) } else { self.locate_again().await }
    }

    async fn locate_again(&self) -> Result<Http> {
        let place = locate(&self.master, self.project).await?;
        *self.place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = place.clone();
        Ok(place.http)
    }

    /// A request that may be sent a second time: if the project has moved or the token has ended, the master is asked once more.
    async fn repeat(&self, request: impl Fn(&Http) -> RequestBuilder) -> Result<(Http, Response)> {
        let http = self.fresh().await?;
        match http.raw(request(&http)).await {
            Err(error) if matches!(error.code, ErrorCode::StaleAssignment | ErrorCode::Unauthenticated) => {
                let http = self.locate_again().await?;
                let response = http.raw(request(&http)).await?;
                Ok((http, response))
            }
            other => other.map(|response| (http, response)),
        }
    }

    /// A request whose body can't be had twice.
    async fn once(&self, request: impl FnOnce(&Http) -> RequestBuilder) -> Result<Response> {
        let http = self.fresh().await?;
        http.raw(request(&http)).await
    }
}

async fn locate(master: &Master, project: ProjectId) -> Result<Place> {
    let reply = master.connect(project).await?;
    Ok(Place { http: Http::new("host", &reply.host_url, Some(reply.token), master.ca_file())?, expires_at: reply.expires_at })
}

fn offset(response: &Response) -> Result<u64> {
    let value = response.headers().get("Upload-Offset").and_then(|value| value.to_str().ok()?.parse().ok());
    value.ok_or_else(|| Error::internal("The host didn't say how much of the upload it has."))
}

/// A path in a URL: all but unreserved characters and `/` percent-encoded (RFC 3986).
fn encode(path: &str) -> String {
    use std::fmt::Write;
    path.bytes().fold(String::with_capacity(path.len()), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

/// Base64 with padding, as tus wants it in metadata (RFC 4648, section 4).
fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(text.len().div_ceil(3) * 4);
    for chunk in text.as_bytes().chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            if index <= chunk.len() {
                out.push(char::from(ALPHABET[(bits >> (18 - 6 * index) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_encoded_but_for_their_slashes() {
        assert_eq!(encode("a b/ä?.txt"), "a%20b/%C3%A4%3F.txt");
        assert_eq!(encode(""), "");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        // the test vectors of RFC 4648, section 10
        for (text, want) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text), want);
        }
    }
}
