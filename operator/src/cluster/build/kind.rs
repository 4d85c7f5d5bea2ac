//! The objects of one kind, in the one form in which all kinds are written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use serde::Serialize;

use crate::cluster::applied;

/// What becomes of the cluster's objects of a kind that are not asked for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// They stay: they hold something that could be lost, or something runs in them.
    Stays,
    /// They go: they hold nothing.
    Goes,
}

/// The objects of one kind.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Which kind.
    pub resource: ApiResource,
    /// The objects that are asked for.
    pub objects: Vec<DynamicObject>,
    /// What becomes of others.
    pub surplus: Surplus,
}

impl Kind {
    /// `objects`, each belonging to `owner` and carrying a hash of its own form.
    ///
    /// # Errors
    /// If an object cannot be written as JSON.
    pub fn new<K>(
        objects: Vec<K>,
        surplus: Surplus,
        owner: &OwnerReference,
    ) -> Result<Self, serde_json::Error>
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let complete = |mut object: K| {
            object.meta_mut().owner_references = Some(vec![owner.clone()]);
            let mut object: DynamicObject = serde_json::from_value(serde_json::to_value(object)?)?;
            applied::stamp(&mut object)?;
            Ok(object)
        };
        Ok(Self {
            resource: ApiResource::erase::<K>(&()),
            objects: objects.into_iter().map(complete).collect::<Result<_, serde_json::Error>>()?,
            surplus,
        })
    }

    /// One of the objects as people call it, for example `Service chat-api`.
    #[must_use]
    pub fn called(&self, name: &str) -> String {
        format!("{} {name}", self.resource.kind)
    }
}
