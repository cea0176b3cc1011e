//! Durations as people and clients give them.

use std::time::Duration;

/// Longer is a mistake, and sums with it overflow at last.
const MOST: f64 = 365.0 * 24.0 * 3600.0;

/// `None` where that is no number of seconds up to a year.
pub(crate) fn duration(seconds: f64) -> Option<Duration> {
    (0.0..=MOST).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// An argument of the command line.
pub(crate) fn argument(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|&seconds| duration(seconds).is_some());
    seconds.ok_or_else(|| "not a number of seconds up to a year".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_of_seconds_is_refused() {
        assert_eq!(argument("0.5").map(duration), Ok(Some(Duration::from_millis(500))));
        for text in ["inf", "nan", "-1", "1e19", "", "5s"] {
            assert!(argument(text).is_err(), "{text}");
        }
    }
}
