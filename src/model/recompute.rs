//! Blocks whose activations are computed again in the backward pass instead of being kept for it.
//!
//! *Source*: Chen et al., "Training deep nets with sublinear memory cost" (2016). Kept, a block's activations take some
//! twenty times its input; computed again, its input is all that stays. The price is one more forward pass, and the
//! gradients are the same, since the same operations compute them.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Tensor, Var};

use super::attach::{attach, attach3};
use super::batch::TokenBatch;
use super::block::{Block, Context};
use super::blueprint::Blueprint;
use super::hooks::Hooks;
use super::rope::RopeTable;
use crate::Result;

/// A block in a pass over a batch, with all that it takes to run it once more.
pub(super) struct Recomputed {
    pub block: Block,
    pub layer: usize,
    pub blueprint: Arc<Blueprint>,
    pub ropes: Arc<[RopeTable]>,
    pub batch: TokenBatch,
}

impl Recomputed {
    /// The output of the block's [`Block::body`] for `h` `[batch, pos, d_model]`: differentiable in `h` and in the block's
    /// variables, with nothing but `h` kept.
    pub fn forward(self, h: &Tensor) -> Result<Tensor> {
        let mut tracked = Vec::new();
        let detached = self.block.with_tensors(&mut |tensor| {
            if tensor.track_op() {
                tracked.push(tensor.clone());
            }
            tensor.detach()
        })?;
        // What depends on other variables has a graph beyond the block.
        if tracked.iter().any(|tensor| !tensor.is_variable()) {
            return self.run(&self.block, h);
        }
        let value = self.run(&detached, &h.detach())?;
        let outlet = Outlet::new(tracked, h)?;
        let (input, wanted, token) = (h.detach(), h.track_op(), outlet.token.clone());
        Ok(attach3([h, &token, &token], value, move |grad| {
            let of_input = self.gradients(&input, grad, wanted, &outlet).map_err(candle_core::Error::wrap)?;
            Ok([of_input, outlet.token.track_op().then(|| outlet.token.ones_like()).transpose()?, None])
        })?)
    }

    fn run(&self, block: &Block, h: &Tensor) -> Result<Tensor> {
        let context = Context {
            blueprint: &self.blueprint,
            ropes: &self.ropes,
            batch: &self.batch,
            pads: Arc::new(self.batch.pads().to_vec()),
            past: 0,
        };
        block.body(self.layer, h, &context, &mut Hooks::none(), None)
    }

    /// The gradient of `input`, if `wanted`, from that of the output; those of the variables go to `outlet`.
    fn gradients(&self, input: &Tensor, grad: &Tensor, wanted: bool, outlet: &Outlet) -> Result<Option<Tensor>> {
        let var = wanted.then(|| Var::from_tensor(input)).transpose()?;
        let output = self.run(&self.block, var.as_ref().map_or(input, Var::as_tensor))?;
        let grad = grad.clone();
        let root = attach(&output, Tensor::zeros((), grad.dtype(), grad.device())?, move |_| Ok(grad.clone()))?;
        let mut store = root.backward()?;
        outlet.fill(|variable| store.remove(variable));
        Ok(var.and_then(|var| store.remove(&var)))
    }
}

/// Where the gradients of a block's variables leave: candle's operations take three tensors at most, so the output depends
/// on a chain of scalars, each of which depends on two variables.
struct Outlet {
    variables: Vec<Tensor>,
    found: Arc<Mutex<Vec<Option<Tensor>>>>,
    /// The end of the chain, 0.
    token: Tensor,
}

impl Outlet {
    fn new(variables: Vec<Tensor>, like: &Tensor) -> Result<Self> {
        let found: Arc<Mutex<Vec<Option<Tensor>>>> = Arc::default();
        let zero = Tensor::zeros((), like.dtype(), like.device())?;
        let mut token = zero.clone();
        for (i, pair) in variables.chunks(2).enumerate() {
            let (found, begun) = (found.clone(), token.track_op());
            // A variable without a partner stands twice, and has its gradient in the first place.
            token = attach3([&token, &pair[0], &pair[pair.len() - 1]], zero.clone(), move |one| {
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                let mut take = |i: usize| found.get_mut(i).and_then(Option::take);
                Ok([begun.then(|| one.clone()), take(2 * i), take(2 * i + 1)])
            })?;
        }
        Ok(Self { variables, found, token })
    }

    /// Puts the gradient of each variable where its scalar finds it.
    fn fill(&self, of: impl FnMut(&Tensor) -> Option<Tensor>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = self.variables.iter().map(of).collect();
    }
}
