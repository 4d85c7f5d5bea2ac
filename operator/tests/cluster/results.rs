//! Tables of what the tests have measured.

use std::path::Path;

use anyhow::{Context as _, Result};
use dialog_bench::machine;
use dialog_bench::table::{Page, Row};
use dialog_operator::names::Group;

use crate::bed::Bed;

/// Names the folder of the repository in which tables are written; without it they are printed only.
const FOLDER: &str = "DIALOG_CLUSTER_RESULTS";

/// Whether what is measured is to be written down: then it may take longer.
pub(crate) fn are_written() -> bool {
    std::env::var_os(FOLDER).is_some()
}

/// A table.
pub(crate) struct Table<'a> {
    /// Its headline.
    pub(crate) title: &'a str,
    /// The test that measures it, and further variables of the environment before it, each with a space at its end.
    pub(crate) test: (&'a str, &'a str),
    /// What was measured, and how.
    pub(crate) note: &'a str,
    /// The name of its file.
    pub(crate) file: &'a str,
    /// How busy the machine was before.
    pub(crate) busy: &'a str,
}

impl Table<'_> {
    /// Prints it with these rows, and writes it into the folder that [`FOLDER`] names.
    pub(crate) async fn publish(self, bed: &Bed, rows: &[Row]) -> Result<()> {
        let versions = bed.sql(Group::Coordinator, machine::VERSIONS).await?;
        let (postgresql, citus) = versions.split_once('|').context("two versions")?;
        let (test, variables) = self.test;
        let page = Page {
            title: self.title,
            command: &format!("{variables}{FOLDER}=bench cargo xtask test --tier cluster --only {test}"),
            machine: &machine::describe_with(postgresql, Some(citus), self.busy)?,
            note: self.note,
            rows,
        };
        let folder = std::env::var_os(FOLDER);
        page.publish(folder.as_ref().map(Path::new), self.file)
    }
}
