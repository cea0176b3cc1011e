//! Who may call what. A layer on the router asks here for every request; a route that no table knows counts as a
//! user route, so nothing is open by oversight.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use crate::config::secret::Secret;
use crate::error::ApiError;
use crate::routes;
use crate::state::App;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone.
    Public,
    /// Holders of a user key or an admin key; everyone where no user key is set.
    User,
    /// Holders of an admin key; without any key at all, everyone who reaches the loopback address.
    Admin,
}

/// The keys, as digests: the keys themselves are not kept.
#[derive(Debug, Clone)]
pub struct Guard {
    user: Vec<Digest>,
    admin: Vec<Digest>,
    has_empty_key: bool,
}

type Digest = [u8; 32];

/// Why a caller is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No key, more than one, or none that we know.
    Unknown,
    /// A user key on a control route.
    NotAdmin,
}

impl Guard {
    /// Lets in whoever shows one of these keys.
    pub fn new(user: &[Secret], admin: &[Secret]) -> Self {
        let digests = |keys: &[Secret]| keys.iter().map(|key| digest(key.expose())).collect();
        let has_empty_key = user.iter().chain(admin).any(|key| key.expose().trim().is_empty());
        Self { user: digests(user), admin: digests(admin), has_empty_key }
    }

    /// Whether no key is empty.
    pub fn keys_are_usable(&self) -> bool {
        !self.has_empty_key
    }

    /// Whether the user routes are guarded.
    pub fn has_user_key(&self) -> bool {
        !self.user.is_empty()
    }

    /// Whether the control routes have a key of their own.
    pub fn has_admin_key(&self) -> bool {
        !self.admin.is_empty()
    }

    /// Whether a request with `headers` may call a route of `access`.
    pub fn check(&self, access: Access, headers: &HeaderMap) -> Result<(), Refusal> {
        let open = match access {
            Access::Public => true,
            Access::User => self.user.is_empty(),
            Access::Admin => self.user.is_empty() && self.admin.is_empty(),
        };
        if open {
            return Ok(());
        }
        let shown = digest(bearer(headers).ok_or(Refusal::Unknown)?);
        let (user, admin) = (contains(&self.user, &shown), contains(&self.admin, &shown));
        match access {
            _ if admin => Ok(()),
            Access::Admin if user => Err(Refusal::NotAdmin),
            Access::Admin => Err(Refusal::Unknown),
            _ if user => Ok(()),
            _ => Err(Refusal::Unknown),
        }
    }
}

/// The layer: looks at the route that the router chose, never at a path that it takes apart itself.
pub(crate) async fn layer(
    State(app): State<App>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let access = routes::access(path.as_ref().map(MatchedPath::as_str));
    match app.guard.check(access, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refuse(refusal),
    }
}

fn refuse(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Unknown => {
            let error = ApiError::unauthorized(
                "this server needs an API key: send the header `Authorization: Bearer KEY`",
            );
            ([(header::WWW_AUTHENTICATE, "Bearer")], error).into_response()
        }
        Refusal::NotAdmin => {
            ApiError::forbidden("this is a control route: it needs a key of --admin-api-key")
                .into_response()
        }
    }
}

/// The key of the only `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn digest(key: &str) -> Digest {
    *blake3::hash(key.as_bytes()).as_bytes()
}

/// Compares with all of `known`, in a time that depends on their number alone.
fn contains(known: &[Digest], shown: &Digest) -> bool {
    known.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(shown)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn secrets(keys: &[&str]) -> Vec<Secret> {
        keys.iter().map(|key| key.parse().unwrap()).collect()
    }

    fn headers(values: &[&'static str]) -> HeaderMap {
        let values = values.iter().map(|value| HeaderValue::from_static(value));
        values.map(|value| (header::AUTHORIZATION, value)).collect()
    }

    #[test]
    fn every_access_with_every_key() {
        let guard = Guard::new(&secrets(&["u1", "u2"]), &secrets(&["a"]));
        for (access, key, expected) in [
            (Access::Public, "", Ok(())),
            (Access::User, "Bearer u1", Ok(())),
            (Access::User, "bearer u2", Ok(())),
            (Access::User, "Bearer a", Ok(())),
            (Access::User, "Bearer u3", Err(Refusal::Unknown)),
            (Access::User, "Bearer u", Err(Refusal::Unknown)),
            (Access::User, "Bearer ", Err(Refusal::Unknown)),
            (Access::User, "Basic u1", Err(Refusal::Unknown)),
            (Access::User, "u1", Err(Refusal::Unknown)),
            (Access::Admin, "Bearer a", Ok(())),
            (Access::Admin, "Bearer u1", Err(Refusal::NotAdmin)),
            (Access::Admin, "Bearer x", Err(Refusal::Unknown)),
        ] {
            assert_eq!(guard.check(access, &headers(&[key])), expected, "{access:?} {key}");
        }
        let none = HeaderMap::new();
        assert_eq!(guard.check(Access::User, &none), Err(Refusal::Unknown));
        let twice = headers(&["Bearer u1", "Bearer u1"]);
        assert_eq!(guard.check(Access::User, &twice), Err(Refusal::Unknown));
    }

    #[test]
    fn what_is_open_without_keys() {
        let none = HeaderMap::new();
        let open = Guard::new(&[], &[]);
        let user = Guard::new(&secrets(&["u"]), &[]);
        let admin = Guard::new(&[], &secrets(&["a"]));
        assert_eq!(open.check(Access::Admin, &none), Ok(()));
        assert_eq!(user.check(Access::Admin, &none), Err(Refusal::Unknown));
        assert_eq!(user.check(Access::Admin, &headers(&["Bearer u"])), Err(Refusal::NotAdmin));
        assert_eq!(admin.check(Access::User, &none), Ok(()));
        assert_eq!(admin.check(Access::Admin, &none), Err(Refusal::Unknown));
        assert!(!Guard::new(&secrets(&[" "]), &[]).keys_are_usable());
    }
}
