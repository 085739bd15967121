//! The time of a call in the forms that policies read.

use crate::domain::Timestamp;

/// The text for Cedar's `datetime`: RFC 3339 in UTC with milliseconds.
pub(in crate::decide) fn datetime(at: Timestamp) -> String {
    let at = at.to_datetime();
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second, milli) = at.to_hms_milli();
    format!(
        "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z",
        u8::from(month)
    )
}

/// `context.hour`: 0 to 23, at an offset from UTC.
pub(in crate::decide) fn hour(at: Timestamp, offset_minutes: i32) -> i64 {
    minutes(at, offset_minutes).div_euclid(60).rem_euclid(24)
}

/// `context.weekday`: 1 for Monday to 7 for Sunday, at an offset from UTC.
pub(in crate::decide) fn weekday(at: Timestamp, offset_minutes: i32) -> i64 {
    const THURSDAY: i64 = 3; // the weekday of 1970-01-01, counted from Monday = 0
    (minutes(at, offset_minutes).div_euclid(24 * 60) + THURSDAY).rem_euclid(7) + 1
}

fn minutes(at: Timestamp, offset_minutes: i32) -> i64 {
    at.secs().div_euclid(60) + i64::from(offset_minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_moves_hour_and_day() {
        let friday = Timestamp::parse_rfc3339("2026-11-20T23:30:00Z").unwrap();
        assert_eq!((hour(friday, 0), weekday(friday, 0)), (23, 5));
        assert_eq!((hour(friday, 60), weekday(friday, 60)), (0, 6));
        assert_eq!((hour(friday, -570), weekday(friday, -570)), (14, 5));
        let sunday = Timestamp::parse_rfc3339("1969-12-28T00:00:00Z").unwrap();
        assert_eq!((hour(sunday, 0), weekday(sunday, 0)), (0, 7));
        assert_eq!((hour(sunday, -1), weekday(sunday, -1)), (23, 6));
    }

    #[test]
    fn a_datetime_is_written_as_cedar_reads_it() {
        let at = Timestamp::from_micros(1_795_167_296_123_456);
        assert_eq!(datetime(at), "2026-11-20T09:34:56.123Z");
        let value = cedar_policy::RestrictedExpression::new_datetime(datetime(at));
        assert!(cedar_policy::Context::from_pairs([("now".to_owned(), value)]).is_ok());
    }
}
