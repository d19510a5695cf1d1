//! The client of PostgreSQL's protocol, against real servers and false ones.

mod commands;
mod hostile;
mod hosts;
mod login;
