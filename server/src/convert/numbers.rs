//! Numbers within bounds.

use std::fmt::Display;
use std::ops::RangeInclusive;

use crate::error::{ApiError, ApiResult};

/// `value`, which must lie in `range`.
pub(super) fn real(
    field: &'static str,
    value: Option<f64>,
    range: RangeInclusive<f64>,
) -> ApiResult<Option<f32>> {
    match value {
        Some(value) if !range.contains(&value) => Err(out_of_range(field, range, value)),
        value => Ok(value.map(|value| value as f32)),
    }
}

/// `value`, which must be over 0 and at most `most`; what f32 would round to 0 becomes its least number.
pub(super) fn positive(
    field: &'static str,
    value: Option<f64>,
    most: f64,
) -> ApiResult<Option<f32>> {
    match value {
        Some(value) if !(value > 0.0 && value <= most) => Err(ApiError::param(
            field,
            format!("`{field}` must be over 0 and at most {most}, got {value}"),
        )),
        value => Ok(value.map(|value| (value as f32).max(f32::MIN_POSITIVE))),
    }
}

/// `value`, which must lie in `range`.
pub(super) fn integer(
    field: &'static str,
    value: Option<i64>,
    range: RangeInclusive<i64>,
) -> ApiResult<Option<i64>> {
    match value {
        Some(value) if !range.contains(&value) => Err(out_of_range(field, range, value)),
        value => Ok(value),
    }
}

/// `value`, which must lie between 0 and `most`.
pub(super) fn count(field: &'static str, value: Option<i64>, most: u32) -> ApiResult<Option<u32>> {
    let value = integer(field, value, 0..=i64::from(most))?;
    Ok(value.map(|value| u32::try_from(value).expect("it lies between 0 and a u32")))
}

fn out_of_range<T: Display>(field: &str, range: RangeInclusive<T>, value: T) -> ApiError {
    let (least, most) = range.into_inner();
    ApiError::param(field, format!("`{field}` must be from {least} to {most}, got {value}"))
}
