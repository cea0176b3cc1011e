//! `strftime_now`: the date in templates that tell the model what day it is. Always UTC.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(format, now.as_secs())
}

fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days as usize + 4) % 7];
    let half = if hour < 12 { "AM" } else { "PM" };
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut code = chars.next();
        // `%-d` is glibc's `%d` without the zero.
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let (number, width) = match code {
            Some('d') => (day, 2),
            Some('m') => (month, 2),
            Some('y') => (year % 100, 2),
            Some('Y') => (year, 4),
            Some('H') => (hour, 2),
            Some('I') => ((hour + 11) % 12 + 1, 2),
            Some('M') => (minute, 2),
            Some('S') => (second, 2),
            Some('j') => (days - days_before_year(year) + 1, 3),
            other => {
                match other {
                    Some('B') => text.push_str(month_name),
                    Some('b' | 'h') => text.push_str(&month_name[..3]),
                    Some('A') => text.push_str(day_name),
                    Some('a') => text.push_str(&day_name[..3]),
                    Some('p') => text.push_str(half),
                    Some('Z') => text.push_str("UTC"),
                    Some('F') => text.push_str(&strftime("%Y-%m-%d", seconds)?),
                    Some('T') => text.push_str(&strftime("%H:%M:%S", seconds)?),
                    Some('%') => text.push('%'),
                    _ => {
                        let message = format!("strftime_now does not know {format:?}");
                        return Err(Error::new(ErrorKind::InvalidOperation, message));
                    }
                }
                continue;
            }
        };
        let width = if padded { width } else { 0 };
        // Writing to a string does not fail.
        let _ = write!(text, "{number:0width$}");
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let mut day = days - days_before_year(year);
    let leap = days_before_year(year + 1) - days_before_year(year) == 366;
    let lengths = [31, 28 + u64::from(leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

/// Days from 1970-01-01 to the first day of `year`.
fn days_before_year(year: u64) -> u64 {
    let before = year - 1;
    let leaps = |year: u64| year / 4 - year / 100 + year / 400;
    (year - 1970) * 365 + leaps(before) - leaps(1969)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_glibc_writes_it() {
        let format = "%d %b %Y|%-d %B %y|%A %a|%H:%M:%S|%I %p|%j|%F|%%";
        for (seconds, text) in [
            (0, "01 Jan 1970|1 January 70|Thursday Thu|00:00:00|12 AM|001|1970-01-01|%"),
            (951_826_154, "29 Feb 2000|29 February 00|Tuesday Tue|12:09:14|12 PM|060|2000-02-29|%"),
            (
                1_798_761_599,
                "31 Dec 2026|31 December 26|Thursday Thu|23:59:59|11 PM|365|2026-12-31|%",
            ),
            (4_102_444_800, "01 Jan 2100|1 January 00|Friday Fri|00:00:00|12 AM|001|2100-01-01|%"),
        ] {
            assert_eq!(strftime(format, seconds).unwrap(), text);
        }
        assert!(strftime("%Q", 0).is_err());
        assert!(strftime("%", 0).is_err());
    }
}
