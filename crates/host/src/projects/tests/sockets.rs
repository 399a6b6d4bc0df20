//! The agents' sockets.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    time::Duration,
};

use atoll_contract::{
    ErrorCode,
    agent::AgentConfig,
    project::{ObservedProject, ObservedState},
    subject,
};
use atoll_net::bus::{Conn, Message, client};
use tokio::net::UnixStream;

use crate::projects::testing::{RESTART, Rig, STOP, command, id};

#[tokio::test]
async fn a_path_longer_than_a_socket_s_address() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    let rig = Rig::at(long).await;
    rig.run(id(3)).await;
    let rig = rig.crash().await;
    rig.until(id(3), ObservedState::Running).await;
}

#[tokio::test]
async fn only_the_container_s_root_reads_the_secret_and_each_start_has_its_own() {
    let rig = Rig::new().await;
    rig.run(id(3)).await;
    let dir = rig.dir.join("run").join(id::<atoll_contract::id::Project>(3).to_string());
    let owner = crate::runtime::Runtime::owner(&*rig.runtime);
    let read = || serde_json::from_slice::<AgentConfig>(&std::fs::read(dir.join("agent.json")).unwrap()).unwrap();
    let config = std::fs::metadata(dir.join("agent.json")).unwrap();
    assert_eq!((config.permissions().mode() & 0o777, config.uid(), config.gid()), (0o400, owner.uid, owner.gid));
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o750);
    let socket = std::fs::metadata(dir.join("host.sock")).unwrap();
    assert!(socket.file_type().is_socket() && socket.uid() == owner.uid);
    let first = read().secret;
    assert_eq!(first.len(), 26);
    rig.tell(command(id(3), 1, 2, RESTART)).await.unwrap();
    assert_ne!(read().secret, first);
    rig.tell(command(id(3), 1, 3, STOP)).await.unwrap();
    assert!(!dir.exists());
}

#[tokio::test]
async fn an_agent_speaks_for_its_own_project_only() {
    let rig = Rig::new().await;
    rig.run(id(3)).await;
    rig.run(id(4)).await;
    let dir = rig.dir.join("run").join(id::<atoll_contract::id::Project>(3).to_string());
    let config: AgentConfig = serde_json::from_slice(&std::fs::read(dir.join("agent.json")).unwrap()).unwrap();
    let connect = |token: Option<String>| {
        let path = dir.join("host.sock");
        async move {
            let stream = UnixStream::connect(path).await.unwrap();
            client::connect(stream, client::Options { token, ..client::Options::default() }).await
        }
    };
    for wrong in [None, Some(String::new()), Some("x".repeat(26)), Some("x".repeat(3000))] {
        assert_eq!(connect(wrong).await.err().unwrap().code, ErrorCode::Unauthenticated);
    }
    let agent = connect(Some(config.secret)).await.unwrap();
    agent.subscribe(&subject::project(id(3), "exec.>"), None).await.unwrap();
    for foreign in [subject::project(id(4), "exec.>"), "project.*.exec.>".into(), ">".into()] {
        assert_eq!(agent.subscribe(&foreign, None).await.err().map(|error| error.code), Some(ErrorCode::Forbidden), "{foreign}");
    }
}

#[tokio::test]
async fn an_agent_that_breaks_off_all_the_time_does_not_keep_the_runtime_busy() {
    let rig = Rig::new().await;
    rig.run(id(3)).await;
    let dir = rig.dir.join("run").join(id::<atoll_contract::id::Project>(3).to_string());
    let config: AgentConfig = serde_json::from_slice(&std::fs::read(dir.join("agent.json")).unwrap()).unwrap();
    // the agent itself is gone, and something else in the container has its secret
    rig.agents.leave(id(3));
    let listed = rig.runtime.lists();
    for _ in 0..50 {
        let stream = UnixStream::connect(dir.join("host.sock")).await.unwrap();
        let token = Some(config.secret.clone());
        // the socket takes no more connections than it may at once
        if let Ok(agent) = client::connect(stream, client::Options { token, ..client::Options::default() }).await {
            drop(agent);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // one look at once, and a few after it
    assert!(rig.runtime.lists() - listed <= 4, "{}", rig.runtime.lists() - listed);
}

#[tokio::test]
async fn states_are_published() {
    let rig = Rig::new().await;
    rig.create(id(3)).await;
    let watcher = rig.router.connect("watcher", None);
    let mut states = watcher.subscribe(&subject::project(id(3), "state"), None).await.unwrap();
    let next = async |states: &mut atoll_net::bus::Subscription, wanted| {
        tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let message: Message = states.next().await.unwrap();
                let observed: ObservedProject = serde_json::from_slice(&message.payload).unwrap();
                if observed.state == wanted {
                    return;
                }
            }
        })
        .await
        .unwrap();
    };
    rig.tell(command(id(3), 1, 2, crate::projects::testing::RUN)).await.unwrap();
    next(&mut states, ObservedState::Running).await;
    rig.tell(command(id(3), 1, 3, STOP)).await.unwrap();
    next(&mut states, ObservedState::Stopped).await;
}
