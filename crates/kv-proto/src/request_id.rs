//! Request ids on the wire.

use bytes::Bytes;
use kv_types::{ClusterTime, Request, SessionId, SessionRequest, TimedId};

use crate::checksum;
use crate::status::ApiError;
use crate::v1::{self, request_id::Id};
use crate::validate::{self, WireError};

/// Reads a request id; most requests that only read have none.
///
/// # Errors
/// [`ApiError::Invalid`] for one of the wrong size, without a number or of an impossible time, [`ApiError::Checksum`].
pub fn read(wire: Option<v1::RequestId>) -> Result<Option<Request>, ApiError> {
    let Some(wire) = wire else { return Ok(None) };
    if wire.crc.is_some() {
        checksum::check("request id", wire.crc, checksum::request_id(&wire))?;
    }
    Ok(Some(match wire.id.ok_or(WireError::Missing("request_id"))? {
        Id::Session(request) => Request::Session(session(request)?),
        Id::Timed(raw) => {
            let raw = <[u8; 16]>::try_from(&raw[..]).map_err(|_| {
                ApiError::Invalid(format!("a request id has 16 bytes, this one {}", raw.len()))
            })?;
            Request::Timed(TimedId::from_raw(u128::from_be_bytes(raw)))
        }
    }))
}

fn session(wire: v1::SessionRequest) -> Result<SessionRequest, ApiError> {
    let number = |field, number| {
        validate::number(field, number)?;
        if number == 0 { Err(WireError::Missing(field)) } else { Ok(number) }
    };
    validate::number("first_incomplete", wire.first_incomplete)?;
    Ok(SessionRequest {
        session: SessionId::new(number("session", wire.session)?),
        seq: number("seq", wire.seq)?,
        first_incomplete: wire.first_incomplete,
        lease_until: cluster_time(wire.lease_until_ms)?,
    })
}

/// Reads a cluster time.
///
/// # Errors
/// [`ApiError::Invalid`] beyond the last one there is.
pub fn cluster_time(ms: u64) -> Result<ClusterTime, ApiError> {
    ClusterTime::from_ms(ms)
        .ok_or_else(|| ApiError::Invalid(format!("{ms} ms is beyond the last cluster time")))
}

/// A request id for the wire, with its checksum.
pub fn write(request: &Request) -> v1::RequestId {
    let id = match request {
        Request::Session(request) => Id::Session(v1::SessionRequest {
            session: request.session.get(),
            seq: request.seq,
            first_incomplete: request.first_incomplete,
            lease_until_ms: request.lease_until.ms(),
        }),
        Request::Timed(id) => Id::Timed(Bytes::copy_from_slice(&id.get().to_be_bytes())),
    };
    let mut wire = v1::RequestId { id: Some(id), crc: None };
    wire.crc = Some(checksum::request_id(&wire));
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Request {
        Request::Session(SessionRequest {
            session: SessionId::new(3),
            seq: 4,
            first_incomplete: 2,
            lease_until: ClusterTime::from_ms(9).unwrap(),
        })
    }

    #[test]
    fn ids_round_trip_and_a_changed_one_is_data_loss() {
        for sent in [session(), Request::Timed(TimedId::from_raw(5 << 90))] {
            let mut wire = write(&sent);
            assert_eq!(read(Some(wire.clone())), Ok(Some(sent)));
            match wire.id.as_mut().unwrap() {
                Id::Session(request) => request.seq += 1,
                Id::Timed(raw) => *raw = Bytes::from(vec![0; 16]),
            }
            assert!(matches!(read(Some(wire)), Err(ApiError::Checksum(_))));
        }
        assert_eq!(read(None), Ok(None));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let broken = |change: &dyn Fn(&mut v1::SessionRequest)| {
            let mut wire = write(&session());
            wire.crc = None;
            let Some(Id::Session(request)) = &mut wire.id else { unreachable!() };
            change(request);
            matches!(read(Some(wire)), Err(ApiError::Invalid(_)))
        };
        assert!(broken(&|request| request.session = 0));
        assert!(broken(&|request| request.seq = 0));
        assert!(broken(&|request| request.seq = u64::MAX));
        assert!(broken(&|request| request.first_incomplete = u64::MAX));
        assert!(broken(&|request| request.lease_until_ms = u64::MAX));
        let sized = |len| v1::RequestId { id: Some(Id::Timed(Bytes::from(vec![0; len]))), crc: None };
        assert!(matches!(read(Some(sized(15))), Err(ApiError::Invalid(_))));
        assert!(matches!(read(Some(sized(17))), Err(ApiError::Invalid(_))));
        assert!(matches!(read(Some(v1::RequestId::default())), Err(ApiError::Invalid(_))));
    }
}
