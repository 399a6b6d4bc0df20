use std::collections::BTreeMap;

use atoll_contract::{
    Error, ErrorCode, HostId, ProjectId,
    host::{Capacity, HostFacts, StorageCapabilities},
    operation::{OperationKind, Progress},
    placement::{Candidate, Score},
    project::{Generation, Limits, ProjectSpec},
};

use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);
const A: &str = "0198c0de-0000-7000-8000-00000000000a";
const B: &str = "0198c0de-0000-7000-8000-00000000000b";

fn ago(seconds: i64) -> Timestamp {
    Timestamp::from_millis(NOW.millis() - seconds * 1000)
}

fn project_view() -> ProjectView {
    ProjectView {
        id: A.parse().unwrap(),
        owner: B.parse().unwrap(),
        spec: ProjectSpec {
            name: "thesis".into(),
            image: "docker.io/library/debian:12".into(),
            limits: Limits { cpu_millis: 500, ..Limits::default() },
            env: BTreeMap::from([("LANG".into(), "C.UTF-8".into())]),
        },
        intent: Intent::Running,
        observed: ObservedState::Failed,
        error: Some(Error::new(ErrorCode::StartFailed, "It died\u{1b}[2J.").mend("Look at its log.")),
        host: Some(B.parse().unwrap()),
        host_name: Some("a".into()),
        generation: Some(Generation(3)),
        operation: None,
        used_bytes: Some(1500 << 10),
        created_at: ago(7200),
    }
}

fn host_view() -> HostView {
    HostView {
        id: B.parse::<HostId>().unwrap(),
        name: "a".into(),
        state: HostState::Online,
        draining: true,
        facts: Some(HostFacts {
            version: "0.1.0".into(),
            public_url: "http://a:7430".into(),
            region: "eu-west".into(),
            labels: BTreeMap::from([("disk".into(), "ssd".into())]),
            storage: StorageKind::Btrfs,
            capabilities: StorageCapabilities { snapshots: true, quotas: true, cheap_usage: true, send_receive: true },
            arch: "x86_64".into(),
            findings: vec![Finding {
                code: "runtime.crun_refuses_cgroups".into(),
                severity: Severity::Warning,
                message: "crun doesn't work here.".into(),
                mend: "Nothing: runc is used.".into(),
            }],
        }),
        capacity: Some(Capacity {
            cpus: 4,
            memory_bytes: 8 << 30,
            memory_available_bytes: 6 << 30,
            disk_bytes: 100 << 30,
            disk_used_bytes: 10 << 30,
            disk_headroom_bytes: 80 << 30,
            projects: 3,
            projects_running: 2,
            max_running: 200,
        }),
        last_report: Some(ago(3)),
        joined_at: ago(86_400),
        assigned: 3,
    }
}

/// One table after another, as one golden file.
#[test]
fn tables_are_as_in_the_golden_file() {
    let offline = HostView {
        name: "b".into(),
        state: HostState::Offline,
        draining: false,
        facts: None,
        capacity: None,
        last_report: None,
        ..host_view()
    };
    let operation = OperationView {
        id: A.parse().unwrap(),
        kind: OperationKind::Create,
        project: A.parse::<ProjectId>().unwrap(),
        project_name: "thesis".into(),
        account: B.parse().unwrap(),
        host: None,
        status: OperationStatus::Failed,
        step: Step::UndoVolumes,
        steps: vec![Step::Place, Step::Volumes, Step::Image, Step::Run],
        point_of_no_return: Step::Run,
        progress: Progress::default(),
        error: Some(Error::new(ErrorCode::ImageUnavailable, "There is no such image.")),
        attempts: 0,
        version: 7,
        created_at: ago(60),
        updated_at: ago(10),
    };
    let placement = Placement {
        chosen: Some(B.parse().unwrap()),
        candidates: vec![
            Candidate { host: B.parse().unwrap(), name: "a".into(), refusals: vec![], score: Some(Score { free_after: 0.754 }) },
            Candidate {
                host: A.parse().unwrap(),
                name: "b".into(),
                refusals: vec![Refusal::Draining, Refusal::TooLittleDisk { needed_bytes: 10 << 30, headroom_bytes: 1 << 30 }],
                score: None,
            },
        ],
    };
    let entry = |name: &str, kind, mode| FileEntry {
        name: name.into(),
        path: name.into(),
        kind,
        size: 1500,
        mode,
        modified_at: ago(90),
        target: (kind == FileKind::Symlink).then(|| "notes.txt".into()),
        etag: "1".into(),
    };
    let entries =
        [entry("src", FileKind::Directory, 0o755), entry("notes.txt", FileKind::File, 0o640), entry("link", FileKind::Symlink, 0o777)];
    let text = [
        projects(&[project_view()], NOW),
        project(&project_view()),
        hosts(&[host_view(), offline], NOW),
        host(&host_view(), NOW),
        operations(std::slice::from_ref(&operation), NOW),
        super::operation(&operation),
        super::placement(&placement),
        files(&entries, NOW),
    ]
    .join("\n");
    crate::tests::same_as_file("crates/atoll/tests/golden/tables.txt", &text);
}

#[test]
fn empty_lists_say_what_to_do() {
    for text in [projects(&[], NOW), hosts(&[], NOW), operations(&[], NOW), keys(&[], NOW), terminals(&[], NOW)] {
        assert!(text.starts_with("There are no"), "{text}");
    }
}

#[test]
fn modes_are_as_ls_has_them() {
    assert_eq!([mode(0o755), mode(0o640), mode(0)], ["rwxr-xr-x", "rw-r-----", "---------"]);
}
