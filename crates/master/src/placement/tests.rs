use std::collections::BTreeMap;

use atoll_contract::host::{StorageCapabilities, StorageKind};
use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn host(n: u8) -> HostSnapshot {
    HostSnapshot {
        id: format!("0198c0de-0000-7000-8000-0000000000{n:02x}").parse().unwrap(),
        name: format!("host-{n}"),
        state: HostState::Online,
        draining: false,
        facts: Some(HostFacts {
            version: "0.1.0".into(),
            public_url: "http://127.0.0.1:7001".into(),
            region: "eu".into(),
            labels: BTreeMap::from([("gpu".into(), "no".into())]),
            storage: StorageKind::Btrfs,
            capabilities: StorageCapabilities { snapshots: true, quotas: true, cheap_usage: true, send_receive: true },
            arch: "x86_64".into(),
            findings: Vec::new(),
        }),
        capacity: Some(Capacity {
            cpus: 8,
            memory_bytes: 32 * GIB,
            memory_available_bytes: 24 * GIB,
            disk_bytes: 1000 * GIB,
            disk_used_bytes: 100 * GIB,
            disk_headroom_bytes: 800 * GIB,
            projects: 3,
            projects_running: 2,
            max_running: 50,
        }),
        promised: Promised::default(),
    }
}

fn facts(host: &mut HostSnapshot) -> &mut HostFacts {
    host.facts.as_mut().unwrap()
}

fn capacity(host: &mut HostSnapshot) -> &mut Capacity {
    host.capacity.as_mut().unwrap()
}

#[test]
fn every_refusal_has_its_reason() {
    type Edit = fn(&mut HostSnapshot, &mut Limits, &mut Requirements);
    let cases: &[(Edit, Refusal)] = &[
        (|host, _, _| host.state = HostState::Offline, Refusal::Offline),
        (|host, _, _| host.facts = None, Refusal::Offline),
        (|host, _, _| host.state = HostState::Unhealthy, Refusal::Unhealthy),
        (|host, _, _| host.draining = true, Refusal::Draining),
        (|_, _, wants| wants.host = Some("host-9".into()), Refusal::NotThePinnedHost),
        (|_, _, wants| wants.region = Some("us".into()), Refusal::OtherRegion { region: "eu".into() }),
        (|_, _, wants| drop(wants.labels.insert("gpu".into(), "yes".into())), Refusal::MissingLabel { label: "gpu=yes".into() }),
        (|_, _, wants| drop(wants.labels.insert("ssd".into(), "1".into())), Refusal::MissingLabel { label: "ssd=1".into() }),
        (
            |host, _, wants| {
                wants.snapshots = true;
                facts(host).capabilities.snapshots = false;
            },
            Refusal::NoSnapshots,
        ),
        (
            |host, _, wants| {
                wants.quotas = true;
                facts(host).capabilities.quotas = false;
            },
            Refusal::NoQuotas,
        ),
        (|_, limits, _| limits.memory_bytes = 33 * GIB, Refusal::TooLittleMemory { needed_bytes: 33 * GIB, machine_bytes: 32 * GIB }),
        (|_, limits, _| limits.cpu_millis = 8001, Refusal::TooFewCpus { needed_millis: 8001, machine_millis: 8000 }),
        (
            |host, limits, _| {
                limits.disk_bytes = 500 * GIB;
                host.promised.disk_bytes = 400 * GIB;
            },
            Refusal::TooLittleDisk { needed_bytes: 500 * GIB, headroom_bytes: 400 * GIB },
        ),
        (|host, _, _| capacity(host).projects_running = 50, Refusal::Full { max_running: 50 }),
        (|host, _, _| host.promised.projects = 48, Refusal::Full { max_running: 50 }),
    ];
    for (edit, expected) in cases {
        let (mut host, mut limits, mut wants) = (host(1), Limits::default(), Requirements::default());
        assert!(place(std::slice::from_ref(&host), &limits, &wants).chosen.is_some(), "before {expected:?}");
        edit(&mut host, &mut limits, &mut wants);
        let placement = place(std::slice::from_ref(&host), &limits, &wants);
        assert_eq!(placement.chosen, None, "{expected:?}");
        assert_eq!(&placement.candidates[0].refusals, std::slice::from_ref(expected));
    }
}

#[test]
fn a_pin_takes_id_or_name() {
    let hosts = [host(1), host(2)];
    for pin in ["host-2", "HOST-2", "0198c0de-0000-7000-8000-000000000002"] {
        let wants = Requirements { host: Some(pin.into()), ..Requirements::default() };
        assert_eq!(place(&hosts, &Limits::default(), &wants).chosen, Some(hosts[1].id), "{pin}");
    }
}

#[test]
fn a_little_more_memory_does_not_outweigh_fewer_projects() {
    let (mut busy, mut idle) = (host(1), host(2));
    capacity(&mut busy).memory_available_bytes += GIB / 8;
    capacity(&mut idle).projects = 2;
    assert_eq!(place(&[busy.clone(), idle.clone()], &Limits::default(), &Requirements::default()).chosen, Some(idle.id));
    capacity(&mut idle).memory_available_bytes = 8 * GIB;
    assert_eq!(place(&[busy.clone(), idle], &Limits::default(), &Requirements::default()).chosen, Some(busy.id));
}

#[test]
fn a_promise_counts_like_a_project() {
    let (mut first, second) = (host(1), host(2));
    assert_eq!(place(&[first.clone(), second.clone()], &Limits::default(), &Requirements::default()).chosen, Some(first.id));
    first.promised.add(&Limits::default());
    assert_eq!(place(&[first, second.clone()], &Limits::default(), &Requirements::default()).chosen, Some(second.id));
}

fn any_host() -> impl Strategy<Value = HostSnapshot> {
    let state = prop_oneof![3 => Just(HostState::Online), 1 => Just(HostState::Unhealthy), 1 => Just(HostState::Offline)];
    let room = (0u64..64, 0u64..100, 0u32..6, 0u32..6, 0u64..50);
    (1u8..20, state, prop::bool::weighted(0.2), prop::bool::weighted(0.9), any::<(bool, bool)>(), room).prop_map(
        |(n, state, draining, known, (snapshots, quotas), (memory, disk, running, most, promised))| {
            let mut host = host(n);
            host.state = state;
            host.draining = draining;
            facts(&mut host).capabilities.snapshots = snapshots;
            facts(&mut host).capabilities.quotas = quotas;
            *capacity(&mut host) = Capacity {
                memory_bytes: memory * GIB,
                memory_available_bytes: memory * GIB / 2,
                disk_headroom_bytes: disk * GIB,
                projects_running: running,
                projects: running,
                max_running: most,
                ..host.capacity.unwrap()
            };
            host.promised.disk_bytes = promised * GIB;
            host.capacity = host.capacity.filter(|_| known);
            host
        },
    )
}

proptest! {
    #[test]
    fn a_refused_host_is_never_chosen_and_the_order_of_hosts_means_nothing(
        mut hosts in prop::collection::vec(any_host(), 0..12),
        snapshots in any::<bool>(),
        quotas in any::<bool>(),
    ) {
        hosts.sort_by_key(|host| host.id);
        hosts.dedup_by_key(|host| host.id);
        let wants = Requirements { snapshots, quotas, ..Requirements::default() };
        let limits = Limits::default();
        let placement = place(&hosts, &limits, &wants);
        prop_assert_eq!(placement.candidates.len(), hosts.len());
        match placement.chosen {
            Some(chosen) => {
                let host = hosts.iter().find(|host| host.id == chosen).unwrap();
                prop_assert!(refusals(host, &limits, &wants).is_empty());
                prop_assert!(host.state == HostState::Online && !host.draining);
                let best = placement.candidates.iter().filter_map(|one| one.score.as_ref()).map(|one| one.free_after).fold(0.0, f64::max);
                prop_assert!(placement.candidates[0].score.as_ref().unwrap().free_after >= best - EQUAL);
                prop_assert_eq!(placement.candidates[0].host, chosen);
            }
            None => prop_assert!(placement.candidates.iter().all(|one| !one.refusals.is_empty())),
        }
        for one in &placement.candidates {
            prop_assert!(one.score.as_ref().is_none_or(|score| (0.0..=1.0).contains(&score.free_after)));
            prop_assert_eq!(one.score.is_some(), one.refusals.is_empty());
        }
        hosts.reverse();
        prop_assert_eq!(place(&hosts, &limits, &wants), placement);
    }
}
