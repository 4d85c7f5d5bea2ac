//! A server's port and its files: certificates, `pg_hba.conf`, `pg_ident.conf`.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context, Result, bail};

use super::installation::{Owner, effective_user};
use crate::certificates::{Authority, IdentityFiles};

/// Ports are taken below the kernel's range for outgoing connections, so that a server that was
/// stopped finds its port still free when it is started again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Roles that a node's certificate may act as; `pg_ident.conf` says so.
const NODE_ROLES: [&str; 5] = ["postgres", "dialog_operator", "dialog_api", "replicator", "rewinder"];

/// Writes the node's certificate where the server finds it and turns TLS on.
pub(super) fn write_tls(
    authority: &Authority,
    directory: &Path,
    owner: &Owner,
    parameters: &mut BTreeMap<String, String>,
) -> Result<IdentityFiles> {
    let directory = directory.join("tls");
    fs::create_dir(&directory).context("create the directory for certificates")?;
    let files = authority.write(&authority.node()?, &directory)?;
    for path in [&directory, &files.ca, &files.certificate, &files.key] {
        owner.give(path)?;
    }
    parameters.insert("ssl".into(), "on".into());
    parameters.insert("ssl_min_protocol_version".into(), "TLSv1.3".into());
    for (name, path) in
        [("ssl_ca_file", &files.ca), ("ssl_cert_file", &files.certificate), ("ssl_key_file", &files.key)]
    {
        parameters.insert(name.into(), path.display().to_string());
    }
    Ok(files)
}

/// How a node connects to the others, for `citus.node_conninfo`.
pub(super) fn node_conninfo(files: &IdentityFiles) -> String {
    format!(
        "sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
        files.ca.display(),
        files.certificate.display(),
        files.key.display()
    )
}

/// `pg_hba.conf`: with TLS exactly the rules of a cluster's node, otherwise anybody on this machine.
pub(super) fn access(tls: bool) -> &'static str {
    if tls {
        "local all all peer map=local\n\
         local replication all peer map=local\n\
         hostssl all all all cert clientcert=verify-full map=nodes\n\
         hostssl replication all all cert clientcert=verify-full map=nodes\n"
    } else {
        "local all all trust\n\
         local replication all trust\n\
         host all all localhost trust\n\
         host replication all localhost trust\n"
    }
}

/// `pg_ident.conf`: which certificate may act as which role, and who this machine's users are.
pub(super) fn identities() -> Result<String> {
    let mut lines = String::new();
    for role in NODE_ROLES {
        writeln!(lines, "nodes dialog-node {role}")?;
    }
    for role in ["postgres", "dialog_operator"] {
        writeln!(lines, "nodes dialog-operator {role}")?;
    }
    writeln!(lines, "nodes dialog-api dialog_api")?;
    let me = effective_user()?;
    for user in ["postgres", me.as_str()] {
        for role in NODE_ROLES {
            writeln!(lines, "local {user} {role}")?;
        }
    }
    Ok(lines)
}

pub(super) fn append(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

/// A port that nobody listens on. Each process walks the range from a place of its own, so that test
/// programs running side by side rarely meet.
pub(super) fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let size = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id().wrapping_mul(97) % u32::from(size))?;
    for _ in 0..size {
        let offset = (first + NEXT.fetch_add(1, Ordering::Relaxed) % size) % size;
        let port = PORTS.start + offset;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_differ() {
        let (one, two) = (free_port().unwrap(), free_port().unwrap());
        assert!(PORTS.contains(&one) && PORTS.contains(&two));
        assert_ne!(one, two);
    }

    #[test]
    fn a_node_may_act_as_every_role_and_the_api_only_as_its_own() {
        let text = identities().unwrap();
        let of = |user: &str| text.lines().filter(|line| line.starts_with(&format!("nodes {user} "))).count();
        assert_eq!((of("dialog-node"), of("dialog-operator"), of("dialog-api")), (5, 2, 1));
    }
}
