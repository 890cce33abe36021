//! How an adversary finds an intervention. Never imports a defence, a judge or a utility task.

pub mod spec;
