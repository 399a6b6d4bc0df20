use std::time::Duration;

use atoll_contract::{AccountId, ErrorCode, HostId, operation::OperationKind, placement::Placement};
use atoll_net::clock::SystemClock;
use rusqlite::params;

use super::*;
use crate::{
    auth::{Token, TokenHash, TokenKind},
    mint,
    testing::{BOUND, START, World, spec},
};

const SOURCES: [&str; 6] = [
    include_str!("accounts.rs"),
    include_str!("hosts.rs"),
    include_str!("mod.rs"),
    include_str!("operations.rs"),
    include_str!("projects.rs"),
    include_str!("schema.rs"),
];

/// The statements in our sources: string literals that begin with a verb of SQL, or are put into one.
fn statements() -> Vec<String> {
    const VERBS: [&str; 5] = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE "];
    let mut found = Vec::new();
    for source in SOURCES {
        let code = source.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
        let mut texts = code.split('"').skip(1).step_by(2).map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
        found.extend(texts.by_ref().filter(|text| VERBS.iter().any(|verb| text.contains(verb)) || text.contains("} WHERE ")));
    }
    found
}

#[test]
fn the_sql_is_what_postgresql_takes_too() {
    const SQLITE_ONLY: [&str; 26] = [
        "INSERT OR ",
        "REPLACE INTO",
        "AUTOINCREMENT",
        "PRAGMA",
        "ROWID",
        "IFNULL(",
        "IIF(",
        "STRFTIME",
        "DATETIME(",
        "JULIANDAY",
        "UNIXEPOCH",
        "JSON_",
        "GROUP_CONCAT",
        "GLOB",
        "TOTAL(",
        "LAST_INSERT",
        " INTEGER",
        " REAL",
        " BLOB",
        "WITHOUT ROWID",
        "INSTR(",
        "PRINTF(",
        "RANDOMBLOB",
        "HEX(",
        "`",
        "==",
    ];
    let statements = statements();
    assert!(statements.len() > 40, "only {} statements were found", statements.len());
    for sql in &statements {
        let upper = sql.to_uppercase();
        for word in SQLITE_ONLY {
            assert!(!upper.contains(word), "{word:?} is SQLite's alone: {sql}");
        }
        assert!(!sql.contains('?'), "parameters are $1, $2, …: {sql}");
        // SQLite numbers `$n` by first appearance, PostgreSQL by n: the same only if they first appear in order
        let mut most = 0;
        for part in sql.split('$').skip(1) {
            let number: usize = part.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap();
            assert!(number <= most + 1, "${number} appears before ${}: {sql}", most + 1);
            most = most.max(number);
        }
    }
}

#[test]
fn every_statement_prepares() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = open::writer(&dir.path().join("master.db"), Durability::Written).unwrap();
    schema::migrate(&mut db).unwrap();
    for sql in statements().iter().filter(|sql| !sql.contains('{') && !sql.contains("CREATE TABLE")) {
        db.prepare(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}

#[test]
fn migrations_run_once_and_a_newer_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut db = open::writer(&dir.path().join("master.db"), Durability::Synced).unwrap();
    for _ in 0..2 {
        schema::migrate(&mut db).unwrap();
        assert_eq!(schema::version(&db).unwrap(), schema::MIGRATIONS.len() as i64);
    }
    db.execute("INSERT INTO schema_version (version) VALUES ($1)", params![99]).unwrap();
    assert!(matches!(schema::migrate(&mut db), Err(StoreError::TooNew { found: 99, .. })));
}

#[tokio::test]
async fn the_file_is_its_owners_alone_and_what_is_not_a_database_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("master.db");
    let store = Store::open(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    store.close(BOUND).await;
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    assert!(Store::open(&path).is_err());
}

#[tokio::test]
async fn a_failed_or_panicking_job_leaves_nothing_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("master.db")).unwrap();
    let insert = |tx: &Transaction<'_>| {
        row::change(tx, "INSERT INTO host (id, name, public_key, draining, joined_at) VALUES ('a', 'b', 'c', 0, 0)", params![])
    };
    let failed: Result<()> = store
        .write(Durability::Synced, move |tx| {
            insert(tx)?;
            Err(StoreError::Row("as told".into()))
        })
        .await;
    assert!(matches!(failed, Err(StoreError::Row(_))));
    let panicked: Result<()> = store
        .write(Durability::Synced, move |tx| {
            insert(tx)?;
            panic!("as told")
        })
        .await;
    assert!(matches!(panicked, Err(StoreError::Closed)));
    assert!(store.hosts().await.unwrap().is_empty());
    store.close(BOUND).await;
}

fn token() -> TokenHash {
    Token::new(TokenKind::Join, &SystemClock).hash()
}

async fn admin(store: &Store) -> AccountId {
    let id = mint::id(&SystemClock);
    let new = NewAccount { id, name: "Ann".into(), admin: true, password: "x".into(), now: START };
    assert!(store.create_first_account(new).await.unwrap());
    id
}

#[tokio::test]
async fn a_join_token_is_good_once_for_its_name_and_time_and_again_for_the_same_host() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("master.db")).unwrap();
    let created_by = Some(admin(&store).await);
    let expires_at = START.saturating_add(Duration::from_mins(1));
    let make = async |name: Option<&str>| {
        let token = token();
        let new = NewJoinToken { token: token.clone(), name: name.map(Into::into), created_by, now: START, expires_at };
        store.create_join_token(new).await.unwrap();
        token
    };
    let ask = async |token: &TokenHash, name: &str, key: &str, now| {
        let (token, name) = (token.clone(), name.to_owned());
        store.join(NewHost { id: mint::id(&SystemClock), token, name, public_key: key.into(), now }).await.unwrap()
    };
    let first = make(None).await;
    assert_eq!(ask(&token(), "a", "K1", START).await, Joined::BadToken);
    assert_eq!(ask(&first, "a", "K1", expires_at).await, Joined::BadToken);
    let Joined::Member(host) = ask(&first, "a", "K1", START).await else { panic!("joins") };
    assert_eq!(ask(&first, "a", "K1", START).await, Joined::Member(host.clone()));
    assert_eq!(ask(&first, "b", "K2", START).await, Joined::BadToken);
    let named = make(Some("b")).await;
    assert_eq!(ask(&named, "c", "K2", START).await, Joined::OtherName("b".into()));
    assert_eq!(ask(&named, "b", "K1", START).await, Joined::KeyTaken("a".into()));
    assert!(matches!(ask(&named, "b", "K2", START).await, Joined::Member(_)));
    let third = make(None).await;
    assert_eq!(ask(&third, "A", "K3", START).await, Joined::NameTaken);
    assert_eq!(ask(&third, "a", "K1", START).await, Joined::Member(host));
    assert_eq!(store.hosts().await.unwrap().len(), 2);
    store.close(BOUND).await;
}

#[tokio::test]
async fn accounts_sessions_and_keys_round_trip_and_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("master.db")).unwrap();
    let account = admin(&store).await;
    let again = NewAccount { id: mint::id(&SystemClock), name: "aNN".into(), admin: false, password: "x".into(), now: START };
    assert!(!store.create_first_account(again.clone()).await.unwrap());
    assert!(!store.create_account(again).await.unwrap(), "names differ by more than case");
    assert_eq!(store.credential("ANN".into()).await.unwrap().unwrap().account.id, account);

    let later = START.saturating_add(Duration::from_secs(10));
    let tokens: Vec<TokenHash> = (0..4).map(|_| token()).collect();
    for (at, token) in (0..).zip(&tokens) {
        let now = START.saturating_add(Duration::from_millis(at));
        store.open_session(token.clone(), account, now, later, 3).await.unwrap();
    }
    assert_eq!(store.session(tokens[0].clone(), START).await.unwrap(), None, "the oldest beyond the bound goes");
    let found = store.session(tokens[3].clone(), START).await.unwrap().unwrap();
    assert_eq!((found.account.id, found.expires_at), (account, Some(later)));
    assert_eq!(store.session_now(&tokens[3], START).unwrap(), Some(found));
    assert_eq!(store.session(tokens[3].clone(), later).await.unwrap(), None);
    store.end_session(tokens[3].clone()).await.unwrap();
    assert_eq!(store.session(tokens[3].clone(), START).await.unwrap(), None);

    let key = |name: &str, most| NewKey {
        id: mint::id(&SystemClock),
        account,
        name: name.into(),
        token: token(),
        now: START,
        expires_at: None,
        most,
    };
    let first = key("ci", 2);
    assert_eq!(store.create_key(first.clone()).await.unwrap(), Ok(()));
    assert_eq!(store.create_key(key("CI", 2)).await.unwrap(), Err(false));
    assert_eq!(store.create_key(key("other", 1)).await.unwrap(), Err(true));
    store.touch_key(first.id, later).await.unwrap();
    assert_eq!(store.keys(account).await.unwrap()[0].used_at, Some(later));
    assert_eq!(store.key(first.token.clone(), later).await.unwrap().unwrap().key, Some(first.id));
    assert!(!store.delete_key(mint::id(&SystemClock), first.id).await.unwrap(), "another account's key");
    assert!(store.delete_key(account, first.id).await.unwrap());
    assert_eq!(store.key(first.token, later).await.unwrap(), None);
    assert_eq!(store.prune(later, later).await.unwrap(), 2);
    store.close(BOUND).await;
}

fn new_project(owner: AccountId, name: &str, request: Option<(&str, &str)>) -> NewProject {
    NewProject {
        id: mint::id(&SystemClock),
        operation: mint::id(&SystemClock),
        owner,
        spec: spec(name),
        requirements: atoll_contract::placement::Requirements::default(),
        start: true,
        request: request.map(|(key, digest)| RequestKey { key: key.into(), digest: digest.into() }),
        now: START,
    }
}

#[tokio::test]
async fn a_create_is_all_or_nothing_and_the_same_request_is_the_same_project() {
    let world = World::new().await;
    let (store, owner, host) = (&world.projects().store, world.admin.account, world.host.id);
    let here = move |_: &[InFlight]| Placement { chosen: Some(host), candidates: Vec::new() };
    let nowhere = |_: &[InFlight]| Placement { chosen: None, candidates: Vec::new() };

    let refused = store.accept_create(new_project(owner, "a", None), START, nowhere).await.unwrap();
    assert!(matches!(refused, Outcome::Declined(Declined::NoRoom(_))));
    assert!(store.open_operations().await.unwrap().is_empty() && store.project_by_name(owner, "a".into()).await.unwrap().is_none());

    let asked = new_project(owner, "a", Some(("k", "d")));
    let Outcome::Begun(op) = store.accept_create(asked.clone(), START, here).await.unwrap() else { panic!("begins") };
    assert_eq!(store.operation(op.id).await.unwrap().as_ref(), Some(&op));
    assert_eq!(store.open_operations().await.unwrap(), vec![op.clone()]);
    let Outcome::Known(same) = store.accept_create(asked, START, here).await.unwrap() else { panic!("is known") };
    assert_eq!(same, op);
    let other = store.accept_create(new_project(owner, "b", Some(("k", "other"))), START, here).await.unwrap();
    assert_eq!(other, Outcome::Declined(Declined::KeyReused));
    let taken = store.accept_create(new_project(owner, "A", None), START, here).await.unwrap();
    assert_eq!(taken, Outcome::Declined(Declined::NameTaken));

    let row = store.project(op.project).await.unwrap().unwrap();
    assert_eq!((row.operation, row.host, row.host_name.as_str(), row.generation.0), (Some(op.id), host, "host-a", 1));
    assert_eq!(store.delete_host(host).await.unwrap(), Err(1));
    assert_eq!(store.assigned().await.unwrap().get(&host), Some(&1));
}

#[tokio::test]
async fn two_creates_at_once_are_not_promised_the_same_room() {
    let world = World::new().await;
    let (store, owner, host): (_, _, HostId) = (&world.projects().store, world.admin.account, world.host.id);
    let room_for_one = move |in_flight: &[InFlight]| Placement { chosen: in_flight.is_empty().then_some(host), candidates: Vec::new() };
    let (one, two) = tokio::join!(
        store.accept_create(new_project(owner, "a", None), START, room_for_one),
        store.accept_create(new_project(owner, "b", None), START, room_for_one)
    );
    let begun = [one.unwrap(), two.unwrap()].into_iter().filter(|outcome| matches!(outcome, Outcome::Begun(_))).count();
    assert_eq!(begun, 1);
}

#[tokio::test]
async fn an_ended_operation_is_never_changed_and_a_partly_deleted_project_only_takes_a_delete() {
    let world = World::new().await;
    let id = world.begin(OperationKind::Create, false).await.id;
    world.end(id).await;
    let store = &world.projects().store;
    let ended = store.operation(id).await.unwrap().unwrap();
    let mut changed = ended.clone();
    changed.version += 1;
    store.save_operation(changed).await.unwrap();
    assert_eq!(store.operation(id).await.unwrap(), Some(ended.clone()));

    let error = atoll_contract::Error::new(ErrorCode::StorageFailed, "as told");
    world.host.fault("ensure_absent", crate::testing::Fault::Refuse(error));
    world.end(world.begin(OperationKind::Delete, false).await.id).await;
    let row = world.projects().find(&world.admin, "thesis").await.unwrap();
    let refused = world.projects().change(&world.admin, &row, OperationKind::Start).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    world.end(world.begin(OperationKind::Delete, false).await.id).await;
    assert!(world.projects().store.project(ended.project).await.unwrap().is_none());
    assert!(world.host.get(ended.project).is_none());
}
