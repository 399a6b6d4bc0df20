//! What the bus and its streams say, and who may do what there.

use atoll_contract::{
    bus::{BusAccount, BusBridge, BusConnection, BusPrefix, BusReport, BusTraffic},
    claims::ConnectClaims,
    streams::{
        Data, Done, GetRequest, KeyView, Keys, KeysRequest, Page, ReadFormat, ReadRequest, Record, StreamConfig, StreamEntry, StreamInfo,
        StreamKind, StreamList, Written,
    },
    subject::{GrantReply, Mapping, Permissions},
};

use super::*;

#[test]
fn streams() {
    let bare = Record { sequence: 7, time: time(), key: None, deleted: false, headers: vec![], data: Data::Text("a".into()) };
    let full = Record {
        key: Some("a.b".into()),
        deleted: true,
        headers: vec![("Kind".into(), "x".into())],
        data: Data::Base64("/w==".into()),
        ..bare.clone()
    };
    let config = StreamConfig { max_age_seconds: Some(1), max_records: Some(2), max_bytes: Some(3), history: Some(4) };
    let info = StreamInfo {
        stream: "s".into(),
        kind: StreamKind::Kv,
        name: "notes".parse().unwrap(),
        created_at: time(),
        first_sequence: 1,
        last_sequence: 9,
        records: 9,
        bytes: 90,
        keys: Some(3),
        file_bytes: 4096,
        config: config.clone(),
    };
    let entry = StreamEntry { name: "notes".parse().unwrap(), file_bytes: 4096, quarantined: None };
    let read = ReadRequest {
        from: Some(1),
        last: Some(2),
        max_count: Some(3),
        max_bytes: Some(4),
        format: ReadFormat::Packed,
        wait_millis: Some(5),
        latest: true,
    };
    let key = KeyView { key: "a.b".into(), revision: 7, time: time() };
    Golden::default()
        .add("Written", Written { stream: "s".into(), sequence: 7, duplicate: false })
        .add("Written, duplicate", Written { stream: "s".into(), sequence: 7, duplicate: true })
        .add("ReadFormat", [ReadFormat::Json, ReadFormat::Messages, ReadFormat::Packed])
        .add("ReadRequest", read)
        .add("ReadRequest, bare", ReadRequest::default())
        .add("Page", Page { stream: "s".into(), first_sequence: 1, last_sequence: 9, next: 8, records: vec![bare, full] })
        .add("StreamConfig", config)
        .add("StreamConfig, bare", StreamConfig::default())
        .add("StreamInfo", info.clone())
        .add("StreamInfo, log", StreamInfo { kind: StreamKind::Log, keys: None, config: StreamConfig::default(), ..info })
        .add("StreamList", StreamList { streams: vec![entry.clone(), StreamEntry { quarantined: Some("f".into()), ..entry }] })
        .add("GetRequest", [GetRequest { revision: Some(7) }, GetRequest::default()])
        .add("KeysRequest", KeysRequest { pattern: Some("a.>".into()), after: Some("a.b".into()), max_count: Some(3) })
        .add("KeysRequest, bare", KeysRequest::default())
        .add("Keys", Keys { stream: "s".into(), last_sequence: 9, keys: vec![key], next: Some("a.b".into()) })
        .add("Keys, last", Keys { stream: "s".into(), last_sequence: 9, keys: vec![], next: None })
        .add("Done", Done {})
        .check("streams");
}

#[test]
fn bus() {
    let traffic = BusTraffic { in_messages: 1, in_bytes: 2, out_messages: 3, out_bytes: 4 };
    let connection = BusConnection {
        id: 7,
        name: "client".into(),
        peer: "127.0.0.1:4000".into(),
        account: Some("ada".into()),
        grants: vec!["session.1".into()],
        subscriptions: 2,
        pending_messages: 0,
        pending_bytes: 0,
        traffic,
    };
    let report = BusReport {
        at: time(),
        server_id: "ID".into(),
        connections: 1,
        subscriptions: 2,
        slow_consumers: 0,
        memory_used: 65_536,
        memory_limit: 1 << 30,
        traffic,
        bridge: Some(BusBridge {
            open: true,
            connects: 2,
            interests: 3,
            pending_messages: 0,
            pending_bytes: 0,
            traffic,
            refused: 1,
            slow: 0,
        }),
        by_connection: vec![connection],
        by_account: vec![BusAccount { account: "ada".into(), connections: 1, subscriptions: 2, traffic }],
        by_prefix: vec![BusPrefix { prefix: "project.7".into(), traffic }],
    };
    Golden::default().add("BusReport", report).check("bus");
}

#[test]
fn claims_and_subjects() {
    let claims = ConnectClaims {
        sub: id(1),
        aud: id(2),
        project: id(3),
        role: Role::Collaborator,
        generation: Generation(4),
        iat: 1_795_000_000,
        exp: 1_795_000_300,
        jti: "abcdefghijklmnopqrstuvwxyz".into(),
    };
    Golden::default()
        .add("ConnectClaims", claims)
        .add("Jwks", jwks())
        .add("Role", Role::ALL)
        .add("GrantReply ok", GrantReply::Ok { project: id(3), expires_at: time() })
        .add("GrantReply error", GrantReply::Error(Error::new(ErrorCode::Unauthenticated, "No.")))
        .add("Permissions", Permissions { publish: vec!["a.>".into()], subscribe: vec!["b.*".into()], ..Permissions::default() })
        .add(
            "Permissions with all",
            Permissions {
                responses: true,
                mappings: vec![Mapping { pattern: "c.>".into(), prefix: "d.e".into() }],
                ..Permissions::default()
            },
        )
        .check("claims");
}
