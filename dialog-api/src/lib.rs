//! Chat HTTP service on PostgreSQL.
