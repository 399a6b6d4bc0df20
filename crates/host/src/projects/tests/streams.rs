//! A project's logs and key-value stores, and what becomes of them with it.

use std::sync::Arc;

use atoll_contract::{ErrorCode, ProjectId, Role, subject};
use atoll_net::bus::{Conn, Message};

use crate::projects::testing::{REMOVE, RUN, Rig, STOP, WAIT, command, id, volumes};

async fn ask(conn: &Arc<dyn Conn>, project: ProjectId, rest: &str, payload: &str) -> (Option<u16>, serde_json::Value) {
    let message = Message::new(subject::project(project, rest), payload.to_owned());
    let answer = conn.request(message, WAIT).await.unwrap();
    (answer.headers.status, serde_json::from_slice(&answer.payload).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_served_running_and_stopped_and_stay_over_a_restart_of_the_host() {
    let rig = Rig::new().await;
    let project = id(1);
    let conn = rig.router.connect("someone", Some(subject::project_permissions(project, Role::Collaborator, "J")));
    rig.run(project).await;
    assert_eq!(ask(&conn, project, "log.l.append", "running").await.1["sequence"], 1);
    rig.tell(command(project, 1, 2, STOP)).await.unwrap();
    assert_eq!(ask(&conn, project, "log.l.append", "stopped").await.1["sequence"], 2);
    let rig = rig.crash().await;
    let conn = rig.router.connect("someone", None);
    // the host opens the volumes of projects that don't run one after the other
    let page = loop {
        let (status, page) = ask(&conn, project, "log.l.read", "").await;
        match status {
            None => break page,
            Some(503) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            other => panic!("{other:?} {page}"),
        }
    };
    assert_eq!(page["records"].as_array().unwrap().len(), 2);
    assert_eq!(ask(&conn, id(2), "log.l.append", "x").await.0, Some(404), "no such project");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_project_has_no_streams_and_a_raised_one_keeps_them() {
    let rig = Rig::new().await;
    let (project, conn) = (id(1), rig.router.connect("someone", None));
    rig.run(project).await;
    ask(&conn, project, "kv.k.put.a", "1").await;
    rig.tell(command(project, 2, 2, volumes())).await.unwrap();
    rig.tell(command(project, 2, 2, RUN)).await.unwrap();
    assert_eq!(ask(&conn, project, "kv.k.put.a", "2").await.1["sequence"], 2);
    rig.tell(command(project, 2, 3, REMOVE)).await.unwrap();
    let (status, error) = ask(&conn, project, "kv.k.put.a", "3").await;
    assert_eq!((status, &error["code"]), (Some(404), &ErrorCode::NotFound.as_str().into()));
    assert!(!rig.has_volumes(project).await);
}
