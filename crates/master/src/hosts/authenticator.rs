//! Who may connect to the master's bus, and what each may do there.

use std::sync::Arc;

use atoll_contract::{
    Error, ErrorCode, HostId,
    subject::{account_permissions, admin_publish, host_permissions},
};
use atoll_net::bus::{Authenticator, Credentials, Grant, nkey_proves};

use super::Hosts;
use crate::auth::{Auth, Identity, Means};

/// What a host may do on this bus, or an account. Reply inboxes are `_INBOX.<host id>` and `_INBOX.<account id>`: a client can know its own
/// without asking, and nobody else may subscribe to it.
pub(crate) struct MasterAuthenticator {
    pub hosts: Arc<Hosts>,
    pub auth: Arc<Auth>,
}

impl Authenticator for MasterAuthenticator {
    fn connect(&self, credentials: &Credentials) -> Result<Vec<Grant>, Error> {
        let refused = || Error::new(ErrorCode::Unauthenticated, "No member and no account.");
        if let Some(nkey) = &credentials.nkey {
            let host = self.hosts.by_key(nkey).filter(|_| nkey_proves(credentials)).ok_or_else(refused)?;
            return Ok(vec![Grant { key: host_grant(host), permissions: host_permissions(host), account: None, expires_at: None }]);
        }
        let token = credentials.token.as_deref().ok_or_else(refused)?;
        let identity = self.auth.identify_now(token)?;
        let mut permissions = account_permissions(identity.account, &identity.account.to_string());
        if identity.admin {
            permissions.publish.extend(admin_publish());
        }
        Ok(vec![Grant {
            key: identity_grant(&identity),
            permissions,
            account: Some(identity.account.to_string()),
            expires_at: identity.expires_at,
        }])
    }
}

/// The key of a host's grant on the bus, to end it by.
pub(crate) fn host_grant(host: HostId) -> String {
    format!("host.{host}")
}

/// The key of a session's or API key's grant on the bus, to end it by.
pub(crate) fn identity_grant(identity: &Identity) -> String {
    match &identity.means {
        Means::Session(token) => format!("session.{}", token.as_str()),
        Means::Key(key) => format!("key.{key}"),
    }
}
