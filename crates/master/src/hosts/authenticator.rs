//! Who may connect to the master's bus, and what each may do there.

use std::sync::Arc;

use atoll_contract::{
    Error, ErrorCode, HostId,
    subject::{account_permissions, admin_permissions, host_permissions},
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
        let permissions = if identity.admin { admin_permissions } else { account_permissions };
        let permissions = permissions(identity.account, &identity.account.to_string());
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

#[cfg(test)]
mod tests {
    use atoll_contract::subject::{BUS_STATS, host_stats};

    use super::*;
    use crate::testing::World;

    #[tokio::test]
    async fn only_admins_may_ask_what_the_buses_do() {
        let world = World::new().await;
        let master = world.master();
        let password = "a password for tests";
        for (name, admin) in [("ada", true), ("bob", false)] {
            let account = master.auth.create_account(name.into(), password.into(), admin).await.unwrap();
            let token = master.auth.log_in(name.into(), password.into()).await.unwrap().token;
            let grants = master.authenticator.connect(&Credentials { token: Some(token), ..Credentials::default() }).unwrap();
            let [grant] = &*grants else { panic!("{grants:?}") };
            assert_eq!(grant.account, Some(account.id.to_string()));
            assert_eq!(grant.permissions.may_publish(BUS_STATS), admin, "{name}");
            assert_eq!(grant.permissions.may_publish(&host_stats(world.host.id)), admin, "{name}");
        }
    }
}
