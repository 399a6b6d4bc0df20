//! Where a project is, and the right to go there: connect tokens.
//!
//! The map from project to host and generation is the store's `project` table and nothing else, so there is no second copy that
//! could differ.

use std::sync::Arc;

use atoll_contract::{AccountId, ConnectClaims, Error, ErrorCode, Role, api::ConnectReply, project::Intent, subject::inbox_prefix};
use atoll_net::clock::{SharedClock, random_text};

use crate::{hosts::Hosts, keys::Signer, store::ProjectRow};

/// How long a connect token is good for: long enough for a client to renew at leisure, short enough that a lost one soon isn't worth
/// having.
const TOKEN_SECONDS: i64 = 300;

pub(crate) struct Routing {
    pub hosts: Arc<Hosts>,
    pub signer: Arc<Signer>,
    pub clock: SharedClock,
}

impl Routing {
    /// Where the project is, with a token for `account` there. The caller has checked that the account may have the role.
    ///
    /// # Errors
    /// `host_unavailable` if its host doesn't report, `conflict` if it is being deleted.
    pub(crate) fn connect(&self, project: &ProjectRow, account: AccountId, role: Role) -> Result<ConnectReply, Error> {
        if project.intent == Intent::Deleted {
            return Err(Error::new(ErrorCode::Conflict, format!("{:?} is being deleted.", project.spec.name)));
        }
        let Some(host_url) = self.hosts.public_url(project.host) else {
            return Err(Error::new(
                ErrorCode::HostUnavailable,
                format!("The host {:?} of this project doesn't report.", project.host_name),
            )
            .mend("Wait until it is back; atoll host list shows it."));
        };
        let iat = self.clock.now().seconds();
        let claims = ConnectClaims {
            sub: account,
            aud: project.host,
            project: project.id,
            role,
            generation: project.generation,
            iat,
            exp: iat + TOKEN_SECONDS,
            jti: random_text(&*self.clock),
        };
        Ok(ConnectReply {
            host: project.host,
            host_url,
            generation: project.generation,
            role,
            token: self.signer.sign(&claims)?,
            inbox_prefix: inbox_prefix(&claims.jti),
            expires_at: atoll_contract::Timestamp::from_millis(claims.exp * 1000),
        })
    }
}
