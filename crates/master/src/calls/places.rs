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

#[cfg(test)]
mod tests {
    use atoll_contract::{AccountId, operation::OperationKind};

    use super::*;
    use crate::{
        store::NewAccount,
        testing::{Fault, START, World},
    };

    #[tokio::test]
    async fn owners_and_admins_find_a_project_and_nobody_else_may_know_of_it() {
        let world = World::new().await;
        let made = world.begin(OperationKind::Create, true).await;
        world.end(made.id).await;
        let (projects, hosts) = (world.projects(), world.master().hosts.clone());
        let places = StorePlaces { store: projects.store.clone(), hosts };
        let eve: AccountId = crate::mint::id(&*world.clock);
        let account = NewAccount { id: eve, name: "eve".into(), admin: false, password: "none".into(), now: START };
        assert!(projects.store.create_account(account).await.unwrap());
        let project = made.project;

        let found = places.find(Caller::Account(world.admin.account), project).await.unwrap();
        assert_eq!((found.host, found.host_name.as_str(), found.role), (world.host.id, "host-a", Role::Owner));
        assert_eq!(found, places.find(Caller::System, project).await.unwrap());
        assert_eq!(places.presence(found.host), Presence::Reporting);
        let code = async |caller, project| places.find(caller, project).await.unwrap_err().code;
        assert_eq!(code(Caller::Account(eve), project).await, ErrorCode::NotFound);
        let unknown = crate::mint::id(&*world.clock);
        assert_eq!(code(Caller::System, unknown).await, ErrorCode::NotFound);
        let nobody = crate::mint::id(&*world.clock);
        assert_eq!(code(Caller::Account(nobody), project).await, ErrorCode::NotFound);

        world.host.fault("ensure_absent", Fault::Hang);
        world.begin(OperationKind::Delete, false).await;
        world.host.until_hanging().await;
        assert_eq!(code(Caller::System, project).await, ErrorCode::Conflict);
    }

    #[tokio::test]
    async fn an_admin_finds_another_s_project() {
        let world = World::new().await;
        let store = &world.projects().store;
        let (eve, root): (AccountId, AccountId) = (crate::mint::id(&*world.clock), crate::mint::id(&*world.clock));
        for (id, name, admin) in [(eve, "eve", false), (root, "root", true)] {
            store.create_account(NewAccount { id, name: name.into(), admin, password: "none".into(), now: START }).await.unwrap();
        }
        let made = world.begin(OperationKind::Create, false).await;
        world.end(made.id).await;
        let places = StorePlaces { store: store.clone(), hosts: world.master().hosts.clone() };
        places.find(Caller::Account(root), made.project).await.unwrap();
        assert_eq!(places.find(Caller::Account(eve), made.project).await.unwrap_err().code, ErrorCode::NotFound);
    }
}
