//! How the weights are changed so that interventions lose their effect. Never imports an attack.

pub mod finetune;
pub mod spec;
