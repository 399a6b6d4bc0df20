//! Where a project is and what the caller is there, from the store.

use std::sync::Arc;

use atoll_contract::{Error, ErrorCode, Generation, HostId, ProjectId, Role, project::Intent};
use atoll_net::bus::BoxFuture;

use super::Caller;
use crate::{
    edge::internal,
    hosts::{Hosts, Presence},
    store::Store,
};

/// A project's place, with the caller's role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub host: HostId,
    pub host_name: String,
    pub generation: Generation,
    pub role: Role,
}

/// What calls ask of the rest of the master.
pub(crate) trait Places: Send + Sync + 'static {
    /// # Errors
    /// `not_found`, also for a project that the caller may not know of; `conflict` if it is being deleted.
    fn find(&self, caller: Caller, project: ProjectId) -> BoxFuture<'_, Result<Place, Error>>;

    fn presence(&self, host: HostId) -> Presence;
}

/// The store's map, which is the only one.
pub(crate) struct StorePlaces {
    pub store: Store,
    pub hosts: Arc<Hosts>,
}

impl StorePlaces {
    async fn find_now(&self, caller: Caller, project: ProjectId) -> Result<Place, Error> {
        let row = self.store.project(project).await.map_err(internal)?.ok_or_else(|| Error::not_found("project"))?;
        if let Caller::Account(account) = caller
            && account != row.owner
        {
            // there are owners and admins only; collaborators come with shared access
            let admin = self.store.account(account).await.map_err(internal)?.is_some_and(|account| account.admin);
            if !admin {
                return Err(Error::not_found("project"));
            }
        }
        if row.intent == Intent::Deleted {
            return Err(Error::new(ErrorCode::Conflict, format!("{:?} is being deleted.", row.spec.name)));
        }
        Ok(Place { host: row.host, host_name: row.host_name, generation: row.generation, role: Role::Owner })
    }
}

impl Places for StorePlaces {
    fn find(&self, caller: Caller, project: ProjectId) -> BoxFuture<'_, Result<Place, Error>> {
        Box::pin(self.find_now(caller, project))
    }

    fn presence(&self, host: HostId) -> Presence {
        self.hosts.presence(host)
    }
}
