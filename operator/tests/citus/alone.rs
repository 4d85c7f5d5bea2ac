//! Tests that measure who waits, or count what is refused for being late: they need the machine for themselves.

mod acting_under_load;
mod adopted;
mod writers;
