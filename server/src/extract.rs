//! axum's extractors, whose own refusals are plain text, with the failure's body that every other 4xx has.

use std::error::Error;

use axum::extract::multipart::MultipartError;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, FromRequestParts, Multipart, Request};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::body::{Stalled, unless_stalled};
use crate::error::{ApiError, ApiResult};

/// The request's query.
#[derive(Debug, Clone)]
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(bad_query(&rejection)),
        }
    }
}

/// Names the field, if one is at fault.
fn bad_query(rejection: &QueryRejection) -> ApiError {
    type Place = serde_path_to_error::Error<serde::de::value::Error>;
    match cause::<Place>(rejection) {
        Some(place) if place.path().iter().len() > 0 => {
            let field = place.path().to_string();
            ApiError::param(field.clone(), format!("`{field}`: {}", place.inner()))
        }
        _ => ApiError::invalid(rejection.body_text()),
    }
}

/// What the path of a route leaves open.
#[derive(Debug, Clone)]
pub(crate) struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(path)) => Ok(Self(path)),
            Err(rejection) if rejection.status().is_client_error() => {
                Err(ApiError::invalid(rejection.body_text()))
            }
            Err(rejection) => Err(ApiError::internal(rejection.body_text())),
        }
    }
}

/// A body in parts, none of which is long in coming.
#[derive(Debug)]
pub(crate) struct Form(pub Multipart);

impl<S: Send + Sync> FromRequest<S> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let form = Multipart::from_request(request.map(unless_stalled), state).await;
        form.map(Self).map_err(|rejection| ApiError::invalid(rejection.body_text()))
    }
}

/// Why a part of a form cannot be read.
pub(crate) fn bad_form(error: &MultipartError) -> ApiError {
    match cause::<Stalled>(error) {
        Some(stalled) => stalled.into(),
        None => ApiError::new(error.status(), "BadRequestError", error.body_text()),
    }
}

/// The error of type `E` that stands behind `error`.
fn cause<E: Error + 'static>(error: &dyn Error) -> Option<&E> {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.filter_map(|cause| cause.downcast_ref()).next()
}
