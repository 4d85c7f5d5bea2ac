//! What a team would write in an afternoon, for comparison: axum, a pool of connections, prepared statements on the
//! service's own tables. It checks the token, the text and that the recipient exists, as dialog-api does, keeps
//! both users' inboxes if told to, and knows nothing of shards, retries, time limits or metrics.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{AppendHeaders, IntoResponse},
    routing::{get, post},
};
use clap::Parser;
use deadpool_postgres::{Manager, Pool};
use dialog_api::{dialogs::pair::Pair, tokens::read_key};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::{Deserialize, Serialize};
use tokio_postgres::NoTls;
use uuid::Uuid;

#[derive(Parser)]
struct Flags {
    #[arg(long)]
    listen: String,
    #[arg(long)]
    database: tokio_postgres::Config,
    #[arg(long)]
    token_key_file: PathBuf,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    inbox: bool,
}

struct App {
    pool: Pool,
    key: DecodingKey,
    validation: Validation,
    inbox: bool,
}

#[derive(Deserialize)]
struct Claims {
    sub: Uuid,
}

#[derive(Deserialize)]
struct Draft {
    text: String,
}

#[derive(Serialize)]
struct Message {
    from: Uuid,
    to: Uuid,
    text: String,
    id: Uuid,
    created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    edited_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_at: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Paging {
    limit: Option<i64>,
    before: Option<Uuid>,
}

fn internal(error: impl std::error::Error) -> StatusCode {
    eprintln!("{error:?}");
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Whose token it is, if it is ours and has not ended.
fn caller(app: &App, headers: &HeaderMap) -> Result<Uuid, StatusCode> {
    let token = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.ok_or(StatusCode::UNAUTHORIZED)?;
    let token = decode::<Claims>(token, &app.key, &app.validation).map_err(|_| StatusCode::UNAUTHORIZED)?;
    Ok(token.claims.sub)
}

async fn send(
    State(app): State<Arc<App>>,
    Path(to): Path<Uuid>,
    headers: HeaderMap,
    Json(draft): Json<Draft>,
) -> Result<(), StatusCode> {
    let from = caller(&app, &headers)?;
    if !(1..=4096).contains(&draft.text.chars().count()) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let mut client = app.pool.get().await.map_err(internal)?;
    let exists = client.prepare_cached("SELECT 1 FROM users WHERE user_id = $1").await.map_err(internal)?;
    client.query_opt(&exists, &[&to]).await.map_err(internal)?.ok_or(StatusCode::BAD_REQUEST)?;
    let insert = client
        .prepare_cached(
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .await
        .map_err(internal)?;
    let (dialog, id, now) = (Pair::new(from, to).dialog_id(), Uuid::now_v7(), Timestamp::now());
    if !app.inbox {
        client.execute(&insert, &[&dialog, &id, &from, &to, &draft.text, &now]).await.map_err(internal)?;
        return Ok(());
    }
    let merge = client
        .prepare_cached(
            "INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id) VALUES ($1, $2, $3, $4)
             ON CONFLICT (user_id, dialog_id) DO UPDATE SET last_message_id = excluded.last_message_id
             WHERE user_dialogs.last_message_id < excluded.last_message_id",
        )
        .await
        .map_err(internal)?;
    let transaction = client.transaction().await.map_err(internal)?;
    transaction.execute(&insert, &[&dialog, &id, &from, &to, &draft.text, &now]).await.map_err(internal)?;
    // In an order that both users' sends share: two that cross must not wait for each other.
    let (low, high) = (from.min(to), from.max(to));
    for (user, peer) in [(low, high), (high, low)] {
        transaction.execute(&merge, &[&user, &dialog, &peer, &id]).await.map_err(internal)?;
    }
    transaction.commit().await.map_err(internal)
}

async fn list(
    State(app): State<Arc<App>>,
    Path(peer): Path<Uuid>,
    Query(paging): Query<Paging>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, StatusCode> {
    let dialog = Pair::new(caller(&app, &headers)?, peer).dialog_id();
    let (before, limit) = (paging.before.unwrap_or(Uuid::max()), paging.limit.unwrap_or(100));
    if !(1..=100).contains(&limit) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let client = app.pool.get().await.map_err(internal)?;
    let list = client
        .prepare_cached(
            "SELECT from_user_id, to_user_id, text, message_id, created_at, edited_at, deleted_at FROM messages
             WHERE dialog_id = $1 AND message_id < $2 ORDER BY message_id DESC LIMIT $3",
        )
        .await
        .map_err(internal)?;
    let rows = client.query(&list, &[&dialog, &before, &limit]).await.map_err(internal)?;
    let message = |row: &tokio_postgres::Row| Message {
        from: row.get(0),
        to: row.get(1),
        text: row.get(2),
        id: row.get(3),
        created_at: row.get(4),
        edited_at: row.get(5),
        deleted_at: row.get(6),
    };
    let messages: Vec<Message> = rows.iter().map(message).collect();
    let full = messages.last().filter(|_| i64::try_from(messages.len()) == Ok(limit));
    let next = full.map(|message| ("x-next-cursor", message.id.to_string()));
    Ok((AppendHeaders(next), Json(messages)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let flags = Flags::parse();
    let pool = Pool::builder(Manager::new(flags.database, NoTls)).max_size(flags.connections).build()?;
    let key = DecodingKey::from_secret(&read_key(&flags.token_key_file)?);
    let mut validation = Validation::new(Algorithm::HS256);
    validation.leeway = 0;
    let router = Router::new()
        .route("/dialog/{user_id}/send", post(send))
        .route("/dialog/{user_id}/list", get(list))
        .with_state(Arc::new(App { pool, key, validation, inbox: flags.inbox }));
    Ok(axum::serve(tokio::net::TcpListener::bind(flags.listen).await?, router).await?)
}
