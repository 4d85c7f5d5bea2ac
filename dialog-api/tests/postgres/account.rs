//! What is known of a user can be had, and can be erased.

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::support::{
    Service, database,
    erasure::{export, exported_texts, let_time_pass, only_places_are_left},
    eventually,
};

#[tokio::test]
async fn an_export_has_everything_and_nobody_elses() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &["--archive-after", "48h", "--jobs-interval", "100ms"]).await?;
    let client = service.client();
    let (ada, bob, carol) =
        (client.user("Ada").await?, client.user("Bob").await?, client.user("Carol").await?);
    for number in 0..150 {
        let (from, to) = if number % 2 == 0 { (&ada, &bob) } else { (&bob, &ada) };
        assert_eq!(client.send(from, to, &format!("{number}")).await?.status, 200);
    }
    client.send(&ada, &ada, "note").await?;
    client.send(&bob, &carol, "not Ada's").await?;
    eventually("an inbox with both dialogs", async || {
        let dialogs = client.get_as(&ada, "/dialogs").await?.json()?;
        Ok((dialogs.as_array().map(Vec::len) == Some(2)).then_some(()))
    })
    .await?;
    let lines = export(&client, &ada).await?;
    assert_eq!(lines[0]["profile"]["first_name"], "Ada");
    let dialogs: Vec<_> = lines.iter().filter_map(|line| line["dialog"]["user_id"].as_str()).collect();
    assert_eq!(dialogs.len(), 2);
    assert!(dialogs.contains(&bob.id.as_str()) && dialogs.contains(&ada.id.as_str()));
    let texts = exported_texts(&lines);
    assert_eq!(texts.len(), 151);
    assert!((0..150).all(|number| texts.contains(&number.to_string().as_str())));
    assert!(texts.contains(&"note") && !texts.contains(&"not Ada's"));
    client.get("/user/export").await?.assert_error(401);
    Ok(())
}

#[tokio::test]
async fn an_erased_user_leaves_places_in_others_dialogs_and_nothing_else() -> Result<()> {
    let server = database().await?;
    let flags = ["--archive-after", "48h", "--jobs-interval", "100ms"];
    let service = Service::start(&server, &flags).await?;
    // It hears of nothing for an hour.
    let other = Service::start(&server, &["--jobs-interval", "1h"]).await?;
    let client = service.client();
    let (ada, bob) = (client.user("Ada").await?, client.user("Bob").await?);
    let key = [("idempotency-key", "my private number")];
    client.send_with(&ada, &bob, &key, &json!({"text": "old secret"})).await?;
    let sql = server.connect("dialog").await?;
    // As after years: the first message is archived.
    sql.batch_execute(
        "INSERT INTO messages_archive SELECT dialog_id, '00000000-0000-7000-8000-000000000000', from_user_id,
             to_user_id, text, client_msg_id, created_at FROM messages;
         UPDATE messages SET older_archived = true",
    )
    .await?;
    // Through the other replica, which then knows her and the dialog.
    other.client().send(&ada, &bob, "new secret").await?;
    client.send(&bob, &ada, "Bob's own").await?;
    client.send(&ada, &ada, "note to self").await?;
    client.post_as(&ada, &format!("/dialog/{}/read", bob.id), &json!({})).await?;

    let erase = |password: String| {
        let (client, ada) = (&client, &ada);
        async move { client.post_as(ada, "/user/erase", &json!({"password": password})).await }
    };
    erase("wrong".into()).await?.assert_error(400);
    assert_eq!(client.list(&ada, &bob).await?.status, 200, "a wrong password erases nobody");
    assert_eq!(erase(ada.password.clone()).await?.status, 202);

    client.list(&ada, &bob).await?.assert_error(401);
    client.send(&bob, &ada, "are you there?").await?.assert_error(400);
    client.get(&format!("/user/get/{}", ada.id)).await?.assert_error(404);
    let login = json!({"id": ada.id, "password": ada.password});
    client.post("/login", &login).await?.assert_error(404);

    eventually("a dialog without what was erased", async || {
        Ok((client.texts(&bob, &ada).await? == ["Bob's own", "", "", ""]).then_some(()))
    })
    .await?;
    // What another replica took meanwhile.
    assert_eq!(
        other.client().send(&ada, &bob, "a last word").await?.status,
        200,
        "it has not heard of it yet"
    );
    let behind = "SELECT FROM messages JOIN dialogs USING (dialog_id) WHERE message_id > inbox_id";
    eventually("inboxes that follow", async || Ok(sql.query(behind, &[]).await?.is_empty().then_some(())))
        .await?;
    // Everybody has heard of it after an hour, and the last token has ended after two days.
    let_time_pass(&sql).await.with_context(|| service.log_text())?;
    only_places_are_left(&sql, &ada).await
}
