//! What a bus says of itself, as tables for people. Pure.

use std::{collections::HashMap, fmt::Write, hash::Hash, time::Duration};

use atoll_contract::bus::{BusBridge, BusReport, BusTraffic, MAX_ROWS};

use super::tables::table;
use crate::values::human_size;

/// What went in and out in a second; unknown for what wasn't seen before.
type Rates = Option<[f64; 4]>;

/// A look at a bus, with rates since the look before. `rows` of each table, the busiest first.
pub fn top(before: Option<&BusReport>, now: &BusReport, rows: usize) -> String {
    // after a restart counts have begun again
    let before = before.filter(|before| before.server_id == now.server_id && before.at < now.at);
    let seconds = before.map(|before| now.at.since(before.at).as_secs_f64());
    let mut text = head(before.map(|before| &before.traffic), now, seconds);
    if let Some(bridge) = &now.bridge {
        text.push_str(&cluster(before.and_then(|before| before.bridge.as_ref()), bridge, seconds));
    }
    let since = Since { seconds };
    let connections = since.rates(before.map(|before| &*before.by_connection), &now.by_connection, |row| row.id, |row| &row.traffic);
    section(&mut text, &["CONNECTION", "PEER", "ACCOUNT", "SUBS", "PENDING"], busiest(connections, rows), |row| {
        let name = if row.name.is_empty() { format!("#{}", row.id) } else { format!("#{} {}", row.id, row.name) };
        let account = row.account.clone().unwrap_or_else(|| "-".into());
        vec![name, row.peer.clone(), account, row.subscriptions.to_string(), human_size(row.pending_bytes)]
    });
    let accounts = since.rates(before.map(|before| &*before.by_account), &now.by_account, |row| row.account.clone(), |row| &row.traffic);
    section(&mut text, &["ACCOUNT", "CONNECTIONS", "SUBS"], busiest(accounts, rows), |row| {
        vec![row.account.clone(), row.connections.to_string(), row.subscriptions.to_string()]
    });
    let prefixes = since.rates(before.map(|before| &*before.by_prefix), &now.by_prefix, |row| row.prefix.clone(), |row| &row.traffic);
    section(&mut text, &["SUBJECTS"], busiest(prefixes, rows), |row| vec![row.prefix.clone()]);
    text
}

/// What went over a bus between two looks.
pub fn sum(first: &BusReport, last: &BusReport) -> String {
    if first.server_id != last.server_id {
        return "The bus was started anew meanwhile.".into();
    }
    let [in_messages, in_bytes, out_messages, out_bytes] = grown(&first.traffic, &last.traffic);
    let seconds = last.at.since(first.at).as_secs();
    format!("In {seconds} s: {in_messages} messages ({}) in, {out_messages} ({}) out.", human_size(in_bytes), human_size(out_bytes))
}

fn head(before: Option<&BusTraffic>, now: &BusReport, seconds: Option<f64>) -> String {
    let share = 100.0 * now.memory_used as f64 / (now.memory_limit.max(1)) as f64;
    let mut text = format!(
        "{} connections, {} subscriptions, {} of {} memory ({share:.0} %), {} slow consumers dropped\n",
        now.connections,
        now.subscriptions,
        human_size(now.memory_used),
        human_size(now.memory_limit),
        now.slow_consumers
    );
    let rates = before.zip(seconds).map(|(before, seconds)| per_second(before, &now.traffic, seconds));
    let [in_messages, in_bytes, out_messages, out_bytes] = cells(rates);
    let _ = writeln!(text, "in {in_messages} messages/s, {in_bytes}/s; out {out_messages} messages/s, {out_bytes}/s");
    text
}

/// The line about the cluster that the bus is joined to.
fn cluster(before: Option<&BusBridge>, now: &BusBridge, seconds: Option<f64>) -> String {
    let state = match (now.open, now.connects) {
        (true, _) => "joined",
        (false, 0) => "not joined yet",
        (false, _) => "away",
    };
    let rates = before.zip(seconds).map(|(before, seconds)| per_second(&before.traffic, &now.traffic, seconds));
    let [in_messages, in_bytes, out_messages, out_bytes] = cells(rates);
    format!(
        "cluster {state} ({} connections so far), {} interests, {} pending; in {in_messages} messages/s, {in_bytes}/s; out {out_messages} messages/s, {out_bytes}/s; \
         {} refused, {} times too slow\n",
        now.connects,
        now.interests,
        human_size(now.pending_bytes),
        now.refused,
        now.slow
    )
}

struct Since {
    seconds: Option<f64>,
}

impl Since {
    /// Each row with its rates. A row that is new counts from 0 if the look before had them all; else it may only have been less busy.
    fn rates<'a, R, K: Hash + Eq>(
        &self,
        before: Option<&[R]>,
        now: &'a [R],
        key: impl Fn(&R) -> K,
        traffic: impl Fn(&R) -> &BusTraffic,
    ) -> Vec<(Rates, u64, &'a R)> {
        let whole = before.is_some_and(|rows| rows.len() < MAX_ROWS);
        let then: HashMap<K, &BusTraffic> = before.unwrap_or_default().iter().map(|row| (key(row), traffic(row))).collect();
        let none = BusTraffic::default();
        let rate = |row: &R| {
            let then = then.get(&key(row)).copied().or_else(|| whole.then_some(&none))?;
            Some(per_second(then, traffic(row), self.seconds?))
        };
        now.iter().map(|row| (rate(row), traffic(row).in_bytes + traffic(row).out_bytes, row)).collect()
    }
}

/// By bytes a second, then by bytes in all.
fn busiest<R>(mut rows: Vec<(Rates, u64, &R)>, most: usize) -> Vec<(Rates, &R)> {
    let speed = |rates: &Rates| rates.map_or(0.0, |[_, in_bytes, _, out_bytes]| in_bytes + out_bytes);
    rows.sort_by(|a, b| speed(&b.0).total_cmp(&speed(&a.0)).then(b.1.cmp(&a.1)));
    rows.truncate(most);
    rows.into_iter().map(|(rates, _, row)| (rates, row)).collect()
}

fn section<R>(text: &mut String, head: &[&str], rows: Vec<(Rates, &R)>, cells_of: impl Fn(&R) -> Vec<String>) {
    if rows.is_empty() {
        return;
    }
    let head = [head, &["IN MSG/S", "IN B/S", "OUT MSG/S", "OUT B/S"]].concat();
    text.push('\n');
    text.push_str(&table(&head, rows.into_iter().map(|(rates, row)| [cells_of(row), cells(rates).to_vec()].concat())));
}

fn cells(rates: Rates) -> [String; 4] {
    let Some([in_messages, in_bytes, out_messages, out_bytes]) = rates else { return ["-"; 4].map(Into::into) };
    [count(in_messages), human_size(in_bytes as u64), count(out_messages), human_size(out_bytes as u64)]
}

fn count(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.2}M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.1}k", rate / 1e3),
        rate => format!("{rate:.0}"),
    }
}

fn grown(then: &BusTraffic, now: &BusTraffic) -> [u64; 4] {
    [
        now.in_messages.saturating_sub(then.in_messages),
        now.in_bytes.saturating_sub(then.in_bytes),
        now.out_messages.saturating_sub(then.out_messages),
        now.out_bytes.saturating_sub(then.out_bytes),
    ]
}

fn per_second(then: &BusTraffic, now: &BusTraffic, seconds: f64) -> [f64; 4] {
    let seconds = seconds.max(Duration::from_millis(1).as_secs_f64());
    grown(then, now).map(|count| count as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use atoll_contract::{
        Timestamp,
        bus::{BusAccount, BusConnection, BusPrefix},
    };

    use super::*;

    fn traffic(n: u64) -> BusTraffic {
        BusTraffic { in_messages: n, in_bytes: 10 * n, out_messages: 2 * n, out_bytes: 20 * n }
    }

    fn connection(id: u64, n: u64) -> BusConnection {
        BusConnection {
            id,
            name: if id == 1 { "exec\u{1b}[2J".into() } else { String::new() },
            peer: format!("127.0.0.1:{id}"),
            account: (id == 1).then(|| "ada".into()),
            grants: Vec::new(),
            subscriptions: id,
            pending_messages: 0,
            pending_bytes: 2048,
            traffic: traffic(n),
        }
    }

    fn report(millis: i64, rows: Vec<BusConnection>) -> BusReport {
        BusReport {
            at: Timestamp::from_millis(millis),
            server_id: "S".into(),
            connections: rows.len() as u64,
            subscriptions: 7,
            slow_consumers: 1,
            memory_used: 1 << 20,
            memory_limit: 4 << 20,
            traffic: traffic(1000),
            bridge: None,
            by_account: vec![BusAccount { account: "ada".into(), connections: 1, subscriptions: 2, traffic: traffic(5) }],
            by_connection: rows,
            by_prefix: vec![BusPrefix { prefix: "project.7".into(), traffic: traffic(30_000) }],
        }
    }

    #[test]
    fn rates_are_those_between_two_looks() {
        let before = BusReport { traffic: traffic(0), ..report(0, vec![connection(1, 100), connection(2, 0)]) };
        let now = report(2000, vec![connection(1, 100), connection(2, 400), connection(3, 40)]);
        let text = top(Some(&before), &now, 10);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "3 connections, 7 subscriptions, 1.00M of 4.00M memory (25 %), 1 slow consumers dropped");
        assert_eq!(lines[1], "in 500 messages/s, 4.88K/s; out 1000 messages/s, 9.77K/s");
        let words = |line: &str| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
        // the busiest first, though the first one has more in all; one that has come since counts from 0
        assert_eq!(words(lines[4]), ["#2", "127.0.0.1:2", "-", "2", "2.00K", "200", "1.95K", "400", "3.91K"]);
        assert_eq!(words(lines[5]), ["#3", "127.0.0.1:3", "-", "3", "2.00K", "20", "200B", "40", "400B"]);
        assert_eq!(words(lines[6]), ["#1", "exec\u{fffd}[2J", "127.0.0.1:1", "ada", "1", "2.00K", "0", "0B", "0", "0B"]);
        assert!(text.contains("\nSUBJECTS") && text.contains("\nACCOUNT "), "{text}");
        assert_eq!(top(Some(&before), &now, 1).lines().filter(|line| line.starts_with('#')).count(), 1);
    }

    #[test]
    fn unknown_rates_are_shown_as_that() {
        let now = report(2000, vec![connection(1, 100)]);
        let text = top(None, &now, 10);
        assert!(text.contains("in - messages/s"), "{text}");
        let restarted = BusReport { server_id: "other".into(), ..report(0, vec![connection(1, 90)]) };
        assert_eq!(top(Some(&restarted), &now, 10), text);
        // of a list that was cut off, a row that is new now may have been there before
        let full = report(0, (10..10 + MAX_ROWS as u64).map(|id| connection(id, 1)).collect());
        let text = top(Some(&full), &now, 10);
        assert!(text.lines().any(|line| line.starts_with("#1 ") && line.trim_end().ends_with('-')), "{text}");
    }

    #[test]
    fn a_cluster_has_a_line() {
        let with = |millis, bridge| BusReport { bridge: Some(bridge), ..report(millis, Vec::new()) };
        let line = |before: Option<&BusReport>, now: &BusReport| top(before, now, 10).lines().nth(2).unwrap().to_owned();
        let before = with(0, BusBridge { open: true, connects: 1, traffic: traffic(0), ..BusBridge::default() });
        let now = BusBridge {
            open: true,
            connects: 1,
            interests: 4,
            pending_bytes: 2048,
            traffic: traffic(10),
            refused: 3,
            ..BusBridge::default()
        };
        assert_eq!(
            line(Some(&before), &with(1000, now)),
            "cluster joined (1 connections so far), 4 interests, 2.00K pending; in 10 messages/s, 100B/s; out 20 messages/s, 200B/s; \
             3 refused, 0 times too slow"
        );
        assert!(line(None, &with(0, BusBridge::default())).starts_with("cluster not joined yet (0 connections so far)"));
        assert!(line(None, &with(0, BusBridge { open: false, ..now })).starts_with("cluster away (1 connections so far)"));
    }

    #[test]
    fn the_sum_is_what_grew() {
        let first = BusReport { traffic: traffic(1), ..report(0, Vec::new()) };
        let last = BusReport { traffic: traffic(3), ..report(5000, Vec::new()) };
        assert_eq!(sum(&first, &last), "In 5 s: 2 messages (20B) in, 4 (40B) out.");
        assert!(sum(&BusReport { server_id: "other".into(), ..first }, &last).contains("anew"));
    }
}
