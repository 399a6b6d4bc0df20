//! From a connect token to an [`Access`], or to a grant on the bus.

use std::sync::Arc;

use atoll_contract::{
    Access, Error, ErrorCode, Generation, HostId, ProjectId, Read, Timestamp, Write,
    claims::{self, CLOCK_SKEW_SECONDS, ConnectClaims},
    subject,
};
use atoll_net::{
    bus::{Authenticator, Credentials, Grant},
    clock::SharedClock,
};
use http::{HeaderMap, header::AUTHORIZATION};

use super::{Places, SharedKeys};

/// Verifies users, for HTTP and for the bus.
pub struct UserAuth {
    keys: SharedKeys,
    host: HostId,
    places: Arc<dyn Places>,
    clock: SharedClock,
}

impl UserAuth {
    pub fn new(keys: SharedKeys, host: HostId, places: Arc<dyn Places>, clock: SharedClock) -> Self {
        Self { keys, host, places, clock }
    }

    /// The claims of a request. Only the header counts: a token in a URL would be in logs and histories.
    ///
    /// # Errors
    /// `unauthenticated`.
    pub(super) fn claims(&self, headers: &HeaderMap) -> Result<ConnectClaims, Error> {
        let missing = || {
            Error::new(ErrorCode::Unauthenticated, "No connect token came with the request.")
                .mend("Ask the master for one and send it as \"Authorization: Bearer …\".")
        };
        let value = headers.get(AUTHORIZATION).ok_or_else(missing)?.to_str().map_err(|_| missing())?;
        let (scheme, token) = value.split_once(' ').ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(missing());
        }
        self.verify(token.trim())
    }

    /// # Errors
    /// As [`Access::read`]; `stale_assignment` too for a project that isn't here.
    pub(super) fn read(&self, claims: ConnectClaims, project: ProjectId) -> Result<Access<Read>, Error> {
        let in_force = self.in_force(&claims, project)?;
        Access::read(claims, project, in_force)
    }

    /// # Errors
    /// As [`Access::write`]; `stale_assignment` too for a project that isn't here.
    pub(super) fn write(&self, claims: ConnectClaims, project: ProjectId) -> Result<Access<Write>, Error> {
        let in_force = self.in_force(&claims, project)?;
        Access::write(claims, project, in_force)
    }

    fn verify(&self, token: &str) -> Result<ConnectClaims, Error> {
        claims::verify(token, &self.keys.get(), self.host, self.clock.now())
    }

    /// The generation to compare with. For another project than the token's nothing is looked up, so that nobody learns what is here.
    fn in_force(&self, claims: &ConnectClaims, project: ProjectId) -> Result<Generation, Error> {
        if claims.project != project {
            return Ok(claims.generation);
        }
        self.places.generation(project).ok_or_else(|| {
            Error::new(ErrorCode::StaleAssignment, "This host doesn't have the project.").mend("Ask the master where the project is now.")
        })
    }

    fn grant_for(&self, token: &str) -> Result<Grant, Error> {
        let claims = self.verify(token)?;
        let project = claims.project;
        let access = self.read(claims, project)?;
        let claims = access.claims();
        Ok(Grant {
            key: project.to_string(),
            permissions: subject::project_permissions(project, claims.role, &claims.jti),
            account: Some(claims.sub.to_string()),
            // as long as the token itself would be taken
            expires_at: Some(Timestamp::from_millis(claims.exp.saturating_add(CLOCK_SKEW_SECONDS).saturating_mul(1000))),
        })
    }
}

impl Authenticator for UserAuth {
    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        let Some(token) = &credentials.token else {
            return Err(Error::new(ErrorCode::Unauthenticated, "No connect token was presented."));
        };
        Ok(vec![self.grant_for(token)?])
    }

    fn grant(&self, token: &str) -> Result<Grant, Error> {
        self.grant_for(token)
    }
}
