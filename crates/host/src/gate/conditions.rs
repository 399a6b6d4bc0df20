//! Conditions and ranges of HTTP (RFC 9110, sections 13 and 14).

use atoll_contract::Timestamp;
use http::{HeaderMap, HeaderName, header};

use super::reply::Refusal;
use crate::files::{Condition, Tags};

/// Entity tags in one header at most.
const MAX_TAGS: usize = 32;

/// The condition of a write.
///
/// # Errors
/// `invalid_argument` for tags that can't be read, and for `If-None-Match` with anything but `*`.
pub(super) fn of_write(headers: &HeaderMap) -> Result<Condition, Refusal> {
    let matches = tags(headers, &header::IF_MATCH)?;
    let absent = match tags(headers, &header::IF_NONE_MATCH)? {
        None => false,
        Some(Tags::Any) => true,
        Some(Tags::These(_)) => return Err(Refusal::invalid("For a write If-None-Match can only be \"*\".")),
    };
    Ok(Condition { matches, absent })
}

/// Whether a reader has this version already (then the answer is 304).
pub(super) fn unchanged(headers: &HeaderMap, etag: &str, modified_at: Timestamp) -> Result<bool, Refusal> {
    if let Some(tags) = tags(headers, &header::IF_NONE_MATCH)? {
        return Ok(tags.cover(etag));
    }
    let since = headers.get(header::IF_MODIFIED_SINCE).and_then(|value| value.to_str().ok());
    // a date that can't be read is no condition (section 13.1.3)
    Ok(since.and_then(|text| text.parse::<httpdate::HttpDate>().ok()).is_some_and(|since| http_date(modified_at) <= since))
}

/// Whether `If-Match` names another version (then the answer is 412).
pub(super) fn mismatch(headers: &HeaderMap, etag: &str) -> Result<bool, Refusal> {
    Ok(tags(headers, &header::IF_MATCH)?.is_some_and(|tags| !tags.cover(etag)))
}

/// A time in whole seconds, as HTTP has it.
pub(super) fn http_date(time: Timestamp) -> httpdate::HttpDate {
    let seconds = u64::try_from(time.seconds()).unwrap_or(0);
    // the last year that the format has is 9999
    (std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(253_402_300_799))).into()
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Refusal> {
    let mut tags = Vec::new();
    for value in headers.get_all(name) {
        let wrong = || Refusal::invalid(format!("The header {name} can't be read."));
        let text = value.to_str().map_err(|_| wrong())?;
        if text.trim() == "*" {
            return Ok(Some(Tags::Any));
        }
        for tag in text.split(',').map(str::trim) {
            // ours are never weak, and a tag from JSON may have lost its quotes
            let bare = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
            if bare.is_empty() || bare.contains('"') || tags.len() >= MAX_TAGS {
                return Err(wrong());
            }
            tags.push(format!("\"{bare}\""));
        }
    }
    Ok((!tags.is_empty()).then_some(Tags::These(tags)))
}

/// Which bytes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// First byte, and how many; at least one.
    Part(u64, u64),
    /// None of them exist (416).
    Nothing,
}

/// Reads `Range` for something of `size` bytes. What isn't a single range of bytes is ignored, as section 14.2 allows.
pub(super) fn range(headers: &HeaderMap, size: u64, etag: &str, modified_at: Timestamp) -> Wanted {
    let Some(text) = headers.get(header::RANGE).and_then(|value| value.to_str().ok()) else { return Wanted::All };
    if let Some(version) = headers.get(header::IF_RANGE).and_then(|value| value.to_str().ok()) {
        let same = version == etag || version.parse::<httpdate::HttpDate>().is_ok_and(|date| date == http_date(modified_at));
        if !same {
            return Wanted::All;
        }
    }
    parse(text, size).unwrap_or(Wanted::All)
}

fn parse(text: &str, size: u64) -> Option<Wanted> {
    let (unit, set) = text.split_once('=')?;
    let (first, last) = set.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return None;
    }
    // a number with more digits than fit is beyond every file's end
    let number = |text: &str| match text.trim() {
        digits if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) => None,
        digits => Some(digits.parse().unwrap_or(u64::MAX)),
    };
    let (first, end) = if first.trim().is_empty() {
        (size.saturating_sub(number(last)?), if number(last)? == 0 { 0 } else { size })
    } else if last.trim().is_empty() {
        (number(first)?, size)
    } else {
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return None;
        }
        (first, last.saturating_add(1).min(size))
    };
    Some(if first < end { Wanted::Part(first, end - first) } else { Wanted::Nothing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn ranges() {
        use Wanted::{All, Nothing, Part};
        for (text, size, wanted) in [
            ("bytes=0-0", 10, Part(0, 1)),
            ("bytes=0-9", 10, Part(0, 10)),
            ("bytes=0-99", 10, Part(0, 10)),
            ("bytes=9-", 10, Part(9, 1)),
            ("bytes=10-", 10, Nothing),
            ("bytes=10-20", 10, Nothing),
            ("bytes=-3", 10, Part(7, 3)),
            ("bytes=-30", 10, Part(0, 10)),
            ("bytes=-0", 10, Nothing),
            ("bytes=0-", 0, Nothing),
            ("bytes=-1", 0, Nothing),
            ("bytes=5-4", 10, All),
            ("bytes=1-2,4-5", 10, All),
            ("bytes=a-b", 10, All),
            ("bytes=+1-2", 10, All),
            ("bytes=-", 10, All),
            ("bytes=", 10, All),
            ("lines=1-2", 10, All),
            ("BYTES= 1-2", 10, Part(1, 2)),
            ("bytes=0-18446744073709551615", 10, Part(0, 10)),
            ("bytes=99999999999999999999999-", 10, Nothing),
            ("bytes=0-99999999999999999999999", 10, Part(0, 10)),
        ] {
            let map = headers(&[(header::RANGE, text)]);
            assert_eq!(range(&map, size, "\"e\"", Timestamp::default()), wanted, "{text} of {size}");
        }
    }

    #[test]
    fn if_range_with_another_version_gives_all() {
        let time = Timestamp::from_millis(1_795_000_000_123);
        let date = http_date(time).to_string();
        for (version, part) in [("\"e\"", true), ("\"f\"", false), ("W/\"e\"", false), (date.as_str(), true), ("rubbish", false)] {
            let map = headers(&[(header::RANGE, "bytes=0-0"), (header::IF_RANGE, version)]);
            assert_eq!(range(&map, 10, "\"e\"", time) == Wanted::Part(0, 1), part, "{version}");
        }
    }

    #[test]
    fn tags_of_conditions() {
        for (text, holds) in [("*", true), ("\"a\"", true), ("\"b\"", false), ("\"b\", \"a\"", true), ("a", true), ("W/\"a\"", true)] {
            let map = headers(&[(header::IF_MATCH, text)]);
            assert_eq!(of_write(&map).unwrap().matches.unwrap().cover("\"a\""), holds, "{text}");
            assert_eq!(mismatch(&map, "\"a\"").unwrap(), !holds, "{text}");
        }
        assert!(of_write(&headers(&[(header::IF_NONE_MATCH, "*")])).unwrap().absent);
        assert!(of_write(&headers(&[(header::IF_NONE_MATCH, "\"a\"")])).is_err());
        for bad in ["", "\"a", "a\"b", "\"a\",,\"b\""] {
            let map = headers(&[(header::IF_MATCH, bad)]);
            // an unbalanced quote is read leniently; what is empty or has a quote inside isn't
            assert_eq!(of_write(&map).is_err(), bad != "\"a", "{bad:?}");
        }
    }
}
