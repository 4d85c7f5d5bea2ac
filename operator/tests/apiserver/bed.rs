//! What every test needs: clients, the resource's definition, and a namespace of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dialog_operator::api::DialogCluster;
use dialog_operator::context::{Context, Pull, Settings};
use dialog_operator::metrics::Metrics;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{DynamicObject, ObjectMeta};
use kube::discovery::ApiResource;
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Config, CustomResourceExt};
use serde_json::{Value, json};
use testbed::apiserver::ApiServer;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_mins(1);

/// A place to test in.
pub struct Bed {
    pub client: Client,
    pub context: Context,
    pub namespace: String,
    server: Arc<ApiServer>,
}

impl Bed {
    /// A namespace of this name on a server that other tests use too, with the resource defined.
    pub async fn new(namespace: &str) -> Result<Self> {
        Self::on(tokio::task::spawn_blocking(ApiServer::shared).await??, namespace).await
    }

    /// The same on a server of its own.
    pub async fn alone(namespace: &str) -> Result<Self> {
        Self::on(Arc::new(tokio::task::spawn_blocking(ApiServer::start).await??), namespace).await
    }

    async fn on(server: Arc<ApiServer>, namespace: &str) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let (client, watcher) = dialog_operator::run::clients(config)?;
        define(&client).await?;
        let metadata = ObjectMeta { name: Some(namespace.to_owned()), ..ObjectMeta::default() };
        let object = Namespace { metadata, ..Namespace::default() };
        Api::all(client.clone()).create(&PostParams::default(), &object).await?;
        let settings = Settings {
            postgres_image: Some("example.org/postgres:1".to_owned()),
            api_image: Some("example.org/dialog-api:1".to_owned()),
            pull: Pull::default(),
            namespace: Some(namespace.to_owned()),
        };
        let context =
            Context::new(client.clone(), watcher, settings, Metrics::new(), CancellationToken::new());
        Ok(Self { client, context, namespace: namespace.to_owned(), server })
    }

    /// The file by which programs reach the server.
    pub fn kubeconfig(&self) -> &Path {
        self.server.kubeconfig()
    }

    pub fn clusters(&self) -> Api<DialogCluster> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The clusters as untyped objects, so that wrong ones can be sent.
    pub fn untyped(&self) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::erase::<DialogCluster>(&()))
    }

    /// Applies a cluster as `kubectl apply` does.
    pub async fn apply(&self, name: &str, spec: &Value) -> Result<DynamicObject, kube::Error> {
        let object = json!({
            "apiVersion": "dialogcluster.io/v1alpha1",
            "kind": "DialogCluster",
            "metadata": { "name": name },
            "spec": spec,
        });
        let how = PatchParams::apply("somebody").validation_strict();
        self.untyped().patch(name, &how, &Patch::Apply(&object)).await
    }

    /// The resource versions of all objects of a kind in the namespace, by name.
    pub async fn versions<K>(&self) -> Result<BTreeMap<String, String>>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = api.list_metadata(&ListParams::default()).await?;
        let pair = |meta: &ObjectMeta| {
            Some((format!("{} {}", K::kind(&()), meta.name.as_ref()?), meta.resource_version.clone()?))
        };
        Ok(found.iter().filter_map(|object| pair(&object.metadata)).collect())
    }
}

/// Defines the resource, or waits until another test has.
async fn define(client: &Client) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let definition = DialogCluster::crd();
    let name = definition.metadata.name.clone().context("a definition has a name")?;
    definitions.patch(&name, &PatchParams::apply("testbed").force(), &Patch::Apply(&definition)).await?;
    let established = await_condition(definitions, &name, conditions::is_crd_established());
    tokio::time::timeout(LIMIT, established).await.context("the definition is not established")??;
    Ok(())
}

/// Asks again and again until there is an answer.
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    testbed::wait::eventually(what, LIMIT, ask).await
}
