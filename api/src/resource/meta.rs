//! Name, namespace, labels and annotations of a resource. Pure.
//!
//! What a server owns (`resourceVersion`, `uid`, …) is taken and forgotten, so that the output of
//! `tombolo get -o yaml` and of `kubectl get -o yaml` can be applied again.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fields::Fields;
use super::names;

/// The namespace of a resource that names none, as in Kubernetes.
const DEFAULT_NAMESPACE: &str = "default";

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Meta {
    pub name: String,
    pub namespace: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Meta {
    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub(super) fn read(mut fields: Fields<'_>, name: names::Check) -> Self {
        let meta = Self {
            name: fields
                .required("name", "every object has a name")
                .and_then(|at| at.checked(name))
                .unwrap_or_default(),
            namespace: match fields.at("namespace") {
                Some(at) => at.checked(names::label).unwrap_or_default(),
                None => DEFAULT_NAMESPACE.to_owned(),
            },
            labels: fields.at("labels").map(|at| at.labels()).unwrap_or_default(),
            annotations: annotations(&mut fields),
        };
        for owned in SERVER_OWNED {
            fields.at(owned);
        }
        fields.finish(&[
            ("generateName", "write a name"),
            ("ownerReferences", "nothing is deleted because something else was"),
            ("finalizers", "deletion is not delayed"),
        ]);
        meta
    }
}

pub(super) fn annotations(fields: &mut Fields<'_>) -> BTreeMap<String, String> {
    fields.at("annotations").map(|at| at.map(names::qualified, names::anything)).unwrap_or_default()
}

const SERVER_OWNED: [&str; 7] =
    ["resourceVersion", "uid", "creationTimestamp", "generation", "managedFields", "selfLink", "deletionTimestamp"];
