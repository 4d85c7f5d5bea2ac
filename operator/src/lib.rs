//! Kubernetes operator for Citus with a chat back end on top.
