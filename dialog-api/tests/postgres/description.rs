//! The description of the API, and the page to browse it.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::support::{Service, database};

/// Parts of the description that are behind references.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => schema,
    }
}

#[tokio::test]
async fn every_operation_is_described() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let response = service.client().get("/openapi.json").await?;
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")));
    let document = response.json()?;
    assert!(document["openapi"].as_str().context("openapi")?.starts_with("3.1."), "{}", document["openapi"]);
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().context("paths")? {
        for (method, operation) in item.as_object().context("operations")? {
            let id = operation["operationId"].as_str().context("operationId")?;
            assert!(ids.insert(id.to_owned()), "{id} twice");
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            let needs_token =
                path.starts_with("/dialog") || ["/user/export", "/user/erase"].contains(&path.as_str());
            assert_eq!(operation["security"].is_array(), needs_token, "{method} {path}");
            let described = &operation["responses"];
            assert_eq!(described["401"].is_object(), needs_token, "{method} {path}");
            if operation["tags"][0] != "operation" {
                let failure = resolve(&document, &described["503"]["content"]["application/json"]["schema"]);
                assert!(failure["properties"]["request_id"].is_object(), "{method} {path}: {failure}");
            }
        }
    }
    for id in ["login", "registerUser", "getUser", "searchUsers", "sendMessage", "listMessages"] {
        assert!(ids.contains(id), "{id} is in the public specification and not in {ids:?}");
    }
    // The limits that are written beside the fields are those that are enforced.
    let send = &document["components"]["schemas"]["SendRequest"]["properties"];
    assert_eq!(send["text"]["maxLength"], dialog_api::dialogs::TEXT_LIMIT);
    assert_eq!(send["client_msg_id"]["maxLength"], dialog_api::dialogs::CLIENT_ID_LIMIT);
    let list = document["paths"]["/dialog/{user_id}/list"]["get"]["parameters"].as_array().context("list")?;
    let limit = list.iter().find(|parameter| parameter["name"] == "limit").context("limit")?;
    assert_eq!(limit["schema"]["maximum"], dialog_api::dialogs::page::PAGE_LIMIT);
    Ok(())
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() -> Result<()> {
    let server = database().await?;
    let service = Service::start(&server, &[]).await?;
    let client = service.client();
    let moved = client.get("/docs").await?;
    assert_eq!((moved.status, moved.header("location")), (308, Some("docs/")));
    let page = client.get("/docs/").await?;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
    let policy = page.header("content-security-policy").context("a policy")?;
    assert!(policy.starts_with("default-src 'self'") && !policy.contains("http"), "{policy}");
    let text = page.text();
    let loaded: Vec<_> =
        text.split(['"', '\'']).filter(|part| [Some("js"), Some("css")].contains(&extension(part))).collect();
    assert!(loaded.len() >= 3, "{text}");
    for file in loaded {
        let file = file.trim_start_matches("./");
        let response = client.get(&format!("/docs/{file}")).await?;
        assert!(response.status == 200 && !response.body.is_empty(), "{file}: {}", response.status);
        if file == "swagger-initializer.js" {
            let script = response.text();
            assert!(
                script.contains("../openapi.json") && script.contains(r#""validatorUrl": "none""#),
                "{script}"
            );
        }
    }
    client.get("/docs/absent.js").await?.assert_error(404);
    Ok(())
}

fn extension(file: &str) -> Option<&str> {
    Path::new(file).extension()?.to_str()
}
