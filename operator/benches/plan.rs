//! How long planning takes, and how much memory, at the size of a very large cluster.

fn main() {
    divan::main();
}
