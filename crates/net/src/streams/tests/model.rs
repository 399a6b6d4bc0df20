//! The engine compared with a model in memory over random operations, restarts included.

use std::collections::BTreeMap;

use atoll_contract::streams::{StreamConfig, StreamInfo};
use proptest::prelude::*;

use super::*;
use crate::streams::{Records, db::ReadQuery, write::Write};

/// Key, length, message id, what is expected, whether it is a deletion.
type Asked = (u8, u8, Option<u8>, Option<u64>, bool);

#[derive(Debug, Clone)]
enum Op {
    /// Writes that are asked for at once.
    Write(Vec<Asked>),
    Configure(Option<u64>, Option<u64>, Option<u32>),
    Later(u64),
    Close,
    Delete,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let write = (0u8..4, 0u8..30, prop::option::weighted(0.3, 0u8..6), prop::option::weighted(0.2, 0u64..12), prop::bool::weighted(0.2));
    let op = prop_oneof![
        8 => prop::collection::vec(write, 1..6).prop_map(Op::Write),
        1 => (prop::option::of(1u64..8), prop::option::of(20u64..200), prop::option::of(1u32..4)).prop_map(|(a, b, c)| Op::Configure(a, b, c)),
        1 => (1u64..100).prop_map(Op::Later),
        2 => Just(Op::Close),
        1 => Just(Op::Delete),
    ];
    prop::collection::vec(op, 1..25)
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    key: Option<String>,
    deleted: bool,
    data: Vec<u8>,
}

/// What a stream should have.
#[derive(Debug, Default)]
struct Model {
    there: bool,
    config: StreamConfig,
    last: u64,
    records: BTreeMap<u64, Kept>,
    ids: BTreeMap<String, (u64, i64)>,
}

impl Model {
    fn write(&mut self, write: &Write, now: i64) -> Option<(u64, bool)> {
        if let Some((sequence, at)) = write.message_id.as_ref().and_then(|id| self.ids.get(id))
            && now - at <= 120_000
        {
            return Some((*sequence, true));
        }
        match &write.key {
            None => {
                if write.expected.is_some_and(|expected| expected != self.last)
                    || self.config.max_bytes.is_some_and(|most| write.data.len() as u64 > most)
                {
                    return None;
                }
            }
            Some(key) => self.make_room(key, write)?,
        }
        self.last += 1;
        self.records.insert(self.last, Kept { key: write.key.clone(), deleted: write.delete, data: write.data.to_vec() });
        if let Some(id) = &write.message_id {
            self.ids.insert(id.clone(), (self.last, now));
        }
        Some((self.last, false))
    }

    fn make_room(&mut self, key: &str, write: &Write) -> Option<()> {
        let of_key: Vec<u64> =
            self.records.iter().filter(|(_, kept)| kept.key.as_deref() == Some(key)).map(|(sequence, _)| *sequence).collect();
        let live = of_key.last().is_some_and(|newest| !self.records[newest].deleted);
        let good = match write.expected {
            None => true,
            Some(0) => !live,
            Some(expected) => of_key.last().copied().unwrap_or(0) == expected,
        };
        if !good || write.delete && !live {
            return None;
        }
        let history = self.config.history.unwrap_or(8) as usize;
        let replaced = &of_key[..of_key.len().saturating_sub(history - 1)];
        let freed: usize = replaced.iter().map(|sequence| self.size(*sequence)).sum();
        if !write.delete {
            let full = self.config.max_records.is_some_and(|most| !live && self.live() >= most);
            let large = self.config.max_bytes.is_some_and(|most| (self.bytes() + key.len() + write.data.len() - freed) as u64 > most);
            if full || large {
                return None;
            }
        }
        replaced.iter().for_each(|sequence| drop(self.records.remove(sequence)));
        Some(())
    }

    fn size(&self, sequence: u64) -> usize {
        let kept = &self.records[&sequence];
        kept.data.len() + kept.key.as_ref().map_or(0, String::len)
    }

    fn bytes(&self) -> usize {
        self.records.keys().map(|sequence| self.size(*sequence)).sum()
    }

    fn live(&self) -> u64 {
        let mut newest = BTreeMap::new();
        self.records.values().for_each(|kept| {
            newest.insert(&kept.key, kept.deleted);
        });
        newest.values().filter(|deleted| !**deleted).count() as u64
    }

    /// A log gives up its oldest.
    fn trim(&mut self) {
        while self.config.max_records.is_some_and(|most| self.records.len() as u64 > most)
            || self.config.max_bytes.is_some_and(|most| self.bytes() as u64 > most)
        {
            self.records.pop_first();
        }
    }
}

async fn step(rig: &Rig, kind: StreamKind, model: &mut Model, op: Op) {
    match op {
        Op::Write(writes) => {
            let writes = writes.into_iter().map(|(key, len, id, expected, delete)| Write {
                key: (kind == StreamKind::Kv).then(|| format!("k.{key}")),
                delete: delete && kind == StreamKind::Kv,
                headers: Bytes::new(),
                data: if delete && kind == StreamKind::Kv { Bytes::new() } else { vec![key; len.into()].into() },
                message_id: id.map(|id| id.to_string()),
                expected,
            });
            let writes: Vec<_> = writes.collect();
            // one after the other into the queue, so that their order is known, and only then waited for: they share transactions
            let asked: Vec<_> = writes.iter().map(|write| Box::pin(ask(rig, kind, "s", Ask::Write(write.clone())))).collect();
            let answers = futures_util::future::join_all(asked).await;
            let now = crate::clock::Clock::now(&*rig.clock).millis();
            if !model.there && writes.iter().all(|write| write.delete) {
                assert!(answers.iter().all(Result::is_err));
                return;
            }
            // whoever of them makes the stream, refused ones included, it is there
            model.there |= answers.iter().any(Result::is_ok) || rig.file(&format!("{}.s.db", kind.as_str())).exists();
            for (write, answer) in writes.iter().zip(answers) {
                let got = match answer {
                    Ok(Answer::Written(outcome)) => Some((outcome.sequence, outcome.duplicate)),
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => None,
                };
                assert_eq!(got, model.write(write, now), "{write:?} {model:?}");
            }
            if kind == StreamKind::Log {
                model.trim();
            }
        }
        Op::Configure(max_records, max_bytes, history) => {
            model.config =
                StreamConfig { max_records, max_bytes, history: history.filter(|_| kind == StreamKind::Kv), max_age_seconds: None };
            ask(rig, kind, "s", Ask::Configure(model.config.clone())).await.unwrap();
            model.there = true;
            if kind == StreamKind::Log {
                model.trim();
            }
        }
        Op::Later(seconds) => rig.clock.advance(Duration::from_secs(seconds)),
        Op::Close => rig.close().await,
        Op::Delete => {
            assert_eq!(ask(rig, kind, "s", Ask::Remove).await.is_ok(), model.there);
            *model = Model::default();
        }
    }
}

async fn compare(rig: &Rig, kind: StreamKind, model: &Model) {
    let read = |from| ReadQuery { from: Some(from), max_count: 3, max_bytes: 100, ..ReadQuery::default() };
    let (mut got, mut from) = (BTreeMap::new(), 1);
    loop {
        match ask(rig, kind, "s", Ask::Read(read(from))).await {
            Ok(Answer::Page(page)) => {
                for record in Records::new(page.records) {
                    let record = record.unwrap();
                    let key = Some(record.key).filter(|key| !key.is_empty());
                    got.insert(record.sequence, Kept { key, deleted: record.deleted, data: record.data.to_vec() });
                }
                from = page.next;
                if page.next > page.last {
                    assert_eq!(page.last, model.last);
                    break;
                }
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert_eq!((error.code, model.there), (ErrorCode::NotFound, false));
                return;
            }
        }
    }
    assert_eq!(got, model.records);
    let Ok(Answer::Info(info)) = ask(rig, kind, "s", Ask::Info).await else { panic!("no info") };
    let StreamInfo { records, bytes, keys, .. } = info;
    assert_eq!((records, bytes), (model.records.len() as u64, model.bytes() as u64));
    assert_eq!(keys, (kind == StreamKind::Kv).then(|| model.live()));
}

proptest! {
    // each operation waits for the disk
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_as_the_model(ops in ops(), kv in any::<bool>()) {
        let kind = if kv { StreamKind::Kv } else { StreamKind::Log };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new().await;
            let mut model = Model::default();
            for op in ops {
                step(&rig, kind, &mut model, op).await;
                compare(&rig, kind, &model).await;
            }
            let rig = rig.again().await;
            compare(&rig, kind, &model).await;
        });
    }
}
