//! A server's port and its files: certificates, `pg_hba.conf`, `pg_ident.conf`.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context, Result, bail};

use super::installation::{Owner, effective_user};
use crate::certificates::{Authority, IdentityFiles, NODE};

/// Ports are taken below the kernel's range for outgoing connections, so that a server that was
/// stopped finds its port still free when it is started again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Which certificate may be which role where a test says nothing: what a node needs to reach the others, and dialog-api
/// its database.
const IDENTITIES: [(&str, &str); 3] =
    [(NODE, "postgres"), (NODE, "dialog_api"), ("dialog-api", "dialog_api")];

/// Who may connect, as lines of `pg_hba.conf` and `pg_ident.conf`. The superuser of this machine's tests may in any case,
/// over the Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Rules, of which the first that fits counts.
    pub rules: Vec<String>,
    /// Which certificate or user may be which role, as the rules' maps say.
    pub identities: Vec<String>,
}

impl Access {
    /// With TLS a certificate for every connection, otherwise anybody on this machine.
    pub(super) fn usual(tls: bool) -> Self {
        let lines = |rules: &[&str]| rules.iter().map(|rule| (*rule).to_owned()).collect();
        if !tls {
            let rules = [
                "local all all trust",
                "local replication all trust",
                "host all all localhost trust",
                "host replication all localhost trust",
            ];
            return Self { rules: lines(&rules), identities: Vec::new() };
        }
        Self {
            rules: lines(&["hostssl all all all cert clientcert=verify-full map=usual"]),
            identities: IDENTITIES.map(|(name, role)| format!("usual {name} {role}")).to_vec(),
        }
    }

    /// The content of `pg_hba.conf` and of `pg_ident.conf`.
    pub(super) fn files(&self) -> Result<(String, String)> {
        let file = |first: String, more: &[String]| {
            std::iter::once(&first).chain(more).map(|line| format!("{line}\n")).collect::<Vec<_>>().concat()
        };
        Ok((
            file("local all postgres peer map=testbed".to_owned(), &self.rules),
            file(format!("testbed {} postgres", effective_user()?), &self.identities),
        ))
    }
}

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
    fn the_superuser_of_the_tests_comes_before_all_rules() {
        let access = Access { rules: vec!["local all all reject".into()], identities: vec!["m x y".into()] };
        let (rules, identities) = access.files().unwrap();
        assert_eq!(rules, "local all postgres peer map=testbed\nlocal all all reject\n");
        assert!(
            identities.starts_with("testbed ") && identities.ends_with(" postgres\nm x y\n"),
            "{identities}"
        );
    }
}
