//! Whether a server is in the state that was wanted (`target_session_attrs`).
//!
//! Since version 14 servers report `in_hot_standby` and `default_transaction_read_only` at the start, on connections of every mode. A 13 is
//! asked: by SQL as libpq does, or where a connection takes no SQL, by `SHOW`, which tells a standby from a primary unless somebody has made all
//! transactions read-only.

use super::connect::Failure;
use super::connection::{Connection, Mode};
use super::options::SessionAttrs;
use crate::error::{Error, ErrorKind, Result, Stage};

/// A server's state.
struct State {
    standby: bool,
    read_only: bool,
}

/// The connection, if its server will do.
pub(super) async fn check(mut connection: Connection, wanted: SessionAttrs, mode: Mode) -> Result<Connection, Failure> {
    if wanted == SessionAttrs::Any {
        return Ok(connection);
    }
    let state = state(&mut connection, mode).await.map_err(Failure::Next)?;
    let objection = match wanted {
        SessionAttrs::ReadWrite if state.read_only => "it is read-only",
        SessionAttrs::ReadOnly if !state.read_only => "it is not read-only",
        SessionAttrs::Primary if state.standby => "it is a standby",
        SessionAttrs::Standby | SessionAttrs::PreferStandby if !state.standby => "it is not a standby",
        _ => return Ok(connection),
    };
    let error = Error::new(ErrorKind::Source, Stage::Source, objection);
    Err(Failure::Next(error.with_hint("target_session_attrs demands otherwise")))
}

async fn state(connection: &mut Connection, mode: Mode) -> Result<State> {
    let reported = |name| connection.parameters().get(name).map(|value| value == "on");
    if let (Some(standby), Some(default)) = (reported("in_hot_standby"), reported("default_transaction_read_only")) {
        return Ok(State { standby, read_only: standby || default });
    }
    let read_only = connection.show("transaction_read_only").await? == "on";
    if mode == Mode::Replication {
        let default = connection.show("default_transaction_read_only").await? == "on";
        return Ok(State { standby: read_only && !default, read_only });
    }
    let rows = connection.query("SELECT pg_catalog.pg_is_in_recovery()").await?;
    let standby = rows.first().and_then(|row| row.first()?.as_deref()) == Some("t");
    Ok(State { standby, read_only })
}
