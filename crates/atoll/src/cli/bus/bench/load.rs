//! What is published, prepared as bytes.

use std::fmt::Write;

/// The subject of everything that isn't about wildcards.
pub const SUBJECT: &str = "bench.flow";
/// Values of the first and of the other two tokens after `bench` in a subject of the load for wildcards.
const FIRST: usize = 100;
const OTHERS: usize = 50;
/// Publications for each subscription that is made and each that is removed, if they churn.
pub const CHURN_EVERY: u64 = 1000;

/// Publications in batches, each of which is handed to the socket as a whole.
pub struct Load {
    pub bytes: Vec<u8>,
    pub batches: Vec<Batch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    pub start: usize,
    pub end: usize,
    pub messages: u64,
    /// How often they are delivered, all together.
    pub deliveries: u64,
}

impl Load {
    /// One batch of the same publication again and again, `deliveries` for each.
    pub fn of_one_subject(size: usize, batch: usize, deliveries: u64) -> Self {
        let mut load = Self { bytes: Vec::new(), batches: Vec::new() };
        load.fill(std::iter::repeat((SUBJECT.to_owned(), deliveries)), size, batch, 1);
        load
    }

    /// All subjects of [`wildcards`], in an order without locality.
    pub fn of_many_subjects(size: usize, batch: usize) -> Self {
        let count = FIRST * OTHERS * OTHERS;
        // a step without a factor in common with the count reaches all of them
        let step = 96_001;
        let subjects = (0..count).map(|number| {
            let place = number * step % count;
            let (a, b, c) = (place / OTHERS / OTHERS, place / OTHERS % OTHERS, place % OTHERS);
            (format!("bench.{a}.{b}.{c}"), matches(a))
        });
        let mut load = Self { bytes: Vec::new(), batches: Vec::new() };
        load.fill(subjects, size, batch, usize::MAX);
        load
    }

    fn fill(&mut self, subjects: impl Iterator<Item = (String, u64)>, size: usize, batch: usize, batches: usize) {
        let payload = vec![b'x'; size];
        let mut current = Batch { start: 0, end: 0, messages: 0, deliveries: 0 };
        for (subject, deliveries) in subjects {
            self.bytes.extend_from_slice(format!("PUB {subject} {size}\r\n").as_bytes());
            self.bytes.extend_from_slice(&payload);
            self.bytes.extend_from_slice(b"\r\n");
            current =
                Batch { end: self.bytes.len(), messages: current.messages + 1, deliveries: current.deliveries + deliveries, ..current };
            if current.end - current.start >= batch {
                self.batches.push(current);
                if self.batches.len() >= batches {
                    return;
                }
                current = Batch { start: current.end, end: current.end, messages: 0, deliveries: 0 };
            }
        }
        if current.messages > 0 {
            self.batches.push(current);
        }
    }

    /// Bytes of one publication, on average.
    pub fn frame(&self) -> u64 {
        let messages: u64 = self.batches.iter().map(|batch| batch.messages).sum();
        (self.bytes.len() as u64 / messages.max(1)).max(1)
    }
}

/// 10,000 patterns. Each subject `bench.A.B.C` matches one of the first kind, one of the second, and one of the third if A is low.
pub fn wildcards() -> Vec<String> {
    let mut patterns = Vec::new();
    for c in 0..OTHERS {
        patterns.extend((0..FIRST).map(|a| format!("bench.{a}.*.{c}")));
        patterns.extend((0..OTHERS).map(|b| format!("bench.*.{b}.{c}")));
        patterns.extend((0..OTHERS).map(|b| format!("bench.{c}.{b}.>")));
    }
    patterns
}

fn matches(a: usize) -> u64 {
    if a < OTHERS { 3 } else { 2 }
}

/// Subscriptions that come and go and match nothing that is published: one more, and one of the oldest 64 less.
pub fn churn(number: u64) -> String {
    let mut text = String::new();
    let _ = write!(text, "SUB bench.{}.*.other{} {}\r\n", number % FIRST as u64, number % OTHERS as u64, number + 1);
    if let Some(old) = number.checked_sub(64) {
        let _ = write!(text, "UNSUB {}\r\n", old + 1);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(pattern: &str, subject: &str) -> bool {
        let mut tokens = subject.split('.');
        for part in pattern.split('.') {
            match (part, tokens.next()) {
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (part, Some(token)) if part == token => {}
                _ => return false,
            }
        }
        tokens.next().is_none()
    }

    #[test]
    fn each_subject_comes_once_and_matches_as_many_as_counted() {
        let patterns = wildcards();
        assert_eq!(patterns.len(), 10_000);
        let load = Load::of_many_subjects(1, 64 << 10);
        let text = std::str::from_utf8(&load.bytes).unwrap();
        let subjects: Vec<&str> = text.lines().step_by(2).map(|line| line.split(' ').nth(1).unwrap()).collect();
        let all: std::collections::HashSet<&str> = subjects.iter().copied().collect();
        assert_eq!((subjects.len(), all.len()), (250_000, 250_000));
        for subject in subjects.iter().step_by(9973) {
            let a = subject.split('.').nth(1).unwrap().parse().unwrap();
            assert_eq!(patterns.iter().filter(|pattern| covers(pattern, subject)).count() as u64, matches(a), "{subject}");
        }
        let counted: (u64, u64) = load.batches.iter().fold((0, 0), |sum, batch| (sum.0 + batch.messages, sum.1 + batch.deliveries));
        assert_eq!(counted, (250_000, 625_000));
        assert!(load.batches.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!((0..100).all(|number| !churn(number).contains("UNSUB 0\r\n")));
    }

    #[test]
    fn a_batch_is_whole_publications() {
        let load = Load::of_one_subject(16, 1000, 8);
        let frame = "PUB bench.flow 16\r\nxxxxxxxxxxxxxxxx\r\n".len();
        let messages = 1000usize.div_ceil(frame) as u64;
        assert_eq!(load.batches, [Batch { start: 0, end: frame * messages as usize, messages, deliveries: 8 * messages }]);
        assert_eq!(load.frame(), frame as u64);
    }
}
