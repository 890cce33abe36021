//! Dialogues on which the model must stay what it was: its original next-token distributions, kept compactly.

use candle_core::Tensor;

use super::Dialogue;
use crate::Result;
use crate::intervention::{Placed, Positions};
use crate::model::batch::sum_by_length;
use crate::model::loss::{kl_divergence, log_probabilities};
use crate::model::{Decoder, Hooks, TokenBatch};

/// One dialogue of a batch.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// Its number.
    pub row: usize,
    /// What is asked instead of its prompt; the original is asked the same.
    pub instead: Option<Vec<u32>>,
    /// Tokens between prompt and answer that the original did not see.
    pub after: &'a [u32],
}

impl Asked<'_> {
    /// The dialogue as it is.
    pub fn plainly(row: usize) -> Self {
        Self { row, instead: None, after: &[] }
    }
}

/// Dialogues with the original decoder's final hidden states at their answers.
///
/// Hidden states are kept instead of distributions: a row of the vocabulary is up to a thousand times longer, and one
/// product with the unembedding brings it back.
pub struct Anchors<'a> {
    original: &'a Decoder,
    dialogues: &'a [Dialogue],
    /// Per dialogue, `[answer tokens, d_model]`.
    hidden: Vec<Tensor>,
    pad: u32,
}

impl<'a> Anchors<'a> {
    /// Runs `original` over `dialogues` once.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn new(original: &'a Decoder, dialogues: &'a [Dialogue], pad: u32) -> Result<Self> {
        let mut order: Vec<usize> = (0..dialogues.len()).collect();
        order.sort_by_key(|i| dialogues[*i].prompt.len() + dialogues[*i].answer.len());
        let mut hidden: Vec<Option<Tensor>> = vec![None; dialogues.len()];
        for rows in order.chunks(32) {
            let prompts = rows.iter().map(|row| dialogues[*row].prompt.clone()).collect();
            let states = answer_states(original, prompts, rows.iter().map(|row| &dialogues[*row].answer), pad)?;
            for (row, states) in rows.iter().zip(states) {
                hidden[*row] = Some(states);
            }
        }
        let hidden = hidden.into_iter().flatten().collect();
        Ok(Self { original, dialogues, hidden, pad })
    }

    /// Mean nats per answer token of `KL(original, clean ‖ decoder under edit)` on the chosen dialogues; differentiable.
    ///
    /// Where tokens come between prompt and answer, the decoder answers after them as the original does without.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn divergence(
        &self,
        decoder: &Decoder,
        rows: &[Asked<'_>],
        edit: Option<(&Placed, Positions)>,
    ) -> Result<Tensor> {
        let tokens: usize = rows.iter().map(|asked| self.dialogues[asked.row].answer.len()).sum();
        let lengths: Vec<usize> = rows.iter().map(|asked| self.length(asked)).collect();
        sum_by_length(&lengths, |group| {
            let group: Vec<&Asked<'_>> = group.iter().map(|i| &rows[*i]).collect();
            self.divergence_of(decoder, &group, edit, 1.0 / tokens.max(1) as f32)
        })
    }

    fn length(&self, asked: &Asked<'_>) -> usize {
        self.prompt(asked).len() + asked.after.len() + self.dialogues[asked.row].answer.len()
    }

    fn prompt<'b>(&'b self, asked: &'b Asked<'_>) -> &'b Vec<u32> {
        asked.instead.as_ref().unwrap_or(&self.dialogues[asked.row].prompt)
    }

    /// The original's hidden states at the answers of `rows`; those to other prompts than the dialogues' are computed now.
    fn states(&self, rows: &[&Asked<'_>]) -> Result<Vec<Tensor>> {
        let others = || rows.iter().filter(|asked| asked.instead.is_some());
        let prompts: Vec<Vec<u32>> = others().filter_map(|asked| asked.instead.clone()).collect();
        let fresh = if prompts.is_empty() {
            vec![]
        } else {
            answer_states(self.original, prompts, others().map(|asked| &self.dialogues[asked.row].answer), self.pad)?
        };
        let mut fresh = fresh.into_iter();
        let kept = |asked: &Asked<'_>| self.hidden[asked.row].clone();
        Ok(rows
            .iter()
            .map(|asked| asked.instead.as_ref().and_then(|_| fresh.next()).unwrap_or_else(|| kept(asked)))
            .collect())
    }

    /// Sum over answer tokens, each with `weight`.
    fn divergence_of(
        &self,
        decoder: &Decoder,
        rows: &[&Asked<'_>],
        edit: Option<(&Placed, Positions)>,
        weight: f32,
    ) -> Result<Tensor> {
        // An edit that acts on the prompt alone leaves the given beginning of an answer as it is.
        let prompts: Vec<Vec<u32>> = rows.iter().map(|asked| self.prompt(asked).clone()).collect();
        let answers: Vec<Vec<u32>> =
            rows.iter().map(|asked| [asked.after, &self.dialogues[asked.row].answer].concat()).collect();
        let given: Vec<usize> = rows.iter().map(|asked| asked.after.len()).collect();
        let batch = TokenBatch::dialogues(&prompts, &answers, self.pad);
        let (positions, _) = batch.answer_targets_after(&given);
        let reference = self.reference(&self.states(rows)?)?;
        self.divergence_at(decoder, &batch, &positions, &reference, edit, weight)
    }

    /// Mean nats per token of `KL(original's first answer token, clean ‖ decoder under edit)` before each token of the other answers
    /// that are given, one to each of `rows`; differentiable.
    ///
    /// # Errors
    /// As [`Decoder::run`].
    pub fn interruption(
        &self,
        decoder: &Decoder,
        rows: &[(usize, &[u32])],
        edit: Option<(&Placed, Positions)>,
    ) -> Result<Tensor> {
        let prompts: Vec<Vec<u32>> = rows.iter().map(|(row, _)| self.dialogues[*row].prompt.clone()).collect();
        let answers: Vec<Vec<u32>> = rows.iter().map(|(_, given)| given.to_vec()).collect();
        let batch = TokenBatch::dialogues(&prompts, &answers, self.pad);
        let (positions, _) = batch.answer_targets();
        let first = |(row, _): &(usize, &[u32])| Ok(self.hidden[*row].narrow(0, 0, 1)?);
        let states: Vec<Tensor> = rows.iter().map(first).collect::<Result<_>>()?;
        let row_of: Vec<u32> =
            (0_u32..).zip(rows).flat_map(|(at, (_, given))| std::iter::repeat_n(at, given.len())).collect();
        let row_of = Tensor::new(row_of, decoder.device())?;
        let reference = self.reference(&states)?.index_select(&row_of, 0)?;
        self.divergence_at(decoder, &batch, &positions, &reference, edit, 1.0 / positions.len().max(1) as f32)
    }

    /// Log-probabilities that the original gives from its hidden `states`, `[tokens, d_model]` in parts: `[tokens, vocab]`.
    fn reference(&self, states: &[Tensor]) -> Result<Tensor> {
        let states = Tensor::cat(states, 0)?;
        let all: Vec<u32> = (0..states.dim(0)? as u32).collect();
        log_probabilities(&self.original.logits_at(&states, &all)?)
    }

    /// Sum over `positions`, each with `weight`, of the divergence from `reference`, log-probabilities `[positions, vocab]`.
    fn divergence_at(
        &self,
        decoder: &Decoder,
        batch: &TokenBatch,
        positions: &[u32],
        reference: &Tensor,
        edit: Option<(&Placed, Positions)>,
        weight: f32,
    ) -> Result<Tensor> {
        let mut hooks = match edit {
            Some((edit, positions)) => Hooks::edit(edit, positions),
            None => Hooks::none(),
        };
        let hidden = decoder.hidden(batch, &mut hooks, None)?;
        kl_divergence(&decoder.logits_at(&hidden, positions)?, reference, &vec![weight; positions.len()])
    }
}

/// The final hidden states of `original` at the answers to `prompts`, `[answer tokens, d_model]` each.
fn answer_states<'a>(
    original: &Decoder,
    prompts: Vec<Vec<u32>>,
    answers: impl Iterator<Item = &'a Vec<u32>>,
    pad: u32,
) -> Result<Vec<Tensor>> {
    let answers: Vec<Vec<u32>> = answers.cloned().collect();
    let batch = TokenBatch::dialogues(&prompts, &answers, pad);
    let states = original.hidden(&batch, &mut Hooks::none(), None)?.detach();
    let flat = states.reshape((batch.rows() * batch.cols(), original.blueprint().d_model))?;
    let of_row = |(row, answer): (usize, &Vec<u32>)| {
        let from = row * batch.cols() + batch.prompt_end()[row] - 1;
        // Moved out of the batch, or every row would keep the whole of it alive; `copy` copies all of it.
        Ok(flat.narrow(0, from, answer.len())?.force_contiguous()?)
    };
    answers.iter().enumerate().map(of_row).collect()
}

pub(super) fn batch_of(dialogues: &[Dialogue], rows: &[usize], pad: u32) -> TokenBatch {
    let prompts: Vec<Vec<u32>> = rows.iter().map(|row| dialogues[*row].prompt.clone()).collect();
    let answers: Vec<Vec<u32>> = rows.iter().map(|row| dialogues[*row].answer.clone()).collect();
    TokenBatch::dialogues(&prompts, &answers, pad)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::intervention::Edit;
    use crate::math::seed::Stream;
    use crate::model::{Blueprint, Point, Site};

    fn decoder(name: &str) -> Decoder {
        let blueprint = Blueprint {
            vocab: 20,
            d_model: 8,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 4,
            d_ff: 12,
            max_positions: 32,
            tied: true,
            ..Blueprint::default()
        };
        let mut stream = Stream::new(0, name);
        let weights = |_: &str, shape: &[usize]| {
            let values = stream.gaussian(shape.iter().product(), 0.5);
            Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
        };
        Decoder::from_weights(blueprint, &Device::Cpu, weights).unwrap()
    }

    #[test]
    fn another_prompt_is_put_to_both_models() {
        let (original, changed) = (decoder("original"), decoder("changed"));
        let dialogue = |prompt: &[u32], answer: &[u32]| Dialogue { prompt: prompt.into(), answer: answer.into() };
        let rows = [dialogue(&[1, 2, 3], &[4]), dialogue(&[1, 5], &[6, 7, 8, 9, 10]), dialogue(&[1, 11, 3, 12], &[4])];
        let anchors = Anchors::new(&original, &rows, 0).unwrap();
        let divergence = |decoder: &Decoder, asked: &[Asked<'_>]| {
            anchors.divergence(decoder, asked, None).unwrap().to_scalar::<f32>().unwrap()
        };
        let instead = || Asked { instead: Some(vec![1, 11, 3, 12]), ..Asked::plainly(0) };
        let begun = || Asked { after: &[13, 14], ..Asked::plainly(1) };
        let close = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        close(divergence(&original, &[instead()]), 0.0);
        let alone = divergence(&changed, &[instead()]);
        close(alone, divergence(&changed, &[Asked::plainly(2)]));
        assert!((alone - divergence(&changed, &[Asked::plainly(0)])).abs() > 1e-3);
        // What is given belongs to the answer: an edit of the prompt alone is not an edit of it.
        let site = Site::new(1, Point::ResidPre);
        let vector = vec![1.0; 8];
        let edit = Edit::Add { site, vector, keep_norm: false }.place(&Device::Cpu).unwrap();
        let edited = |positions| {
            let edit = Some((&edit, positions));
            anchors.divergence(&changed, &[begun()], edit).unwrap().to_scalar::<f32>().unwrap()
        };
        let whole = [dialogue(&[1, 5, 13, 14], &[6, 7, 8, 9, 10])];
        let hidden = Anchors { hidden: vec![anchors.hidden[1].clone()], ..Anchors::new(&original, &whole, 0).unwrap() };
        let of_prompt = |positions| {
            let edit = Some((&edit, positions));
            hidden.divergence(&changed, &[Asked::plainly(0)], edit).unwrap().to_scalar::<f32>().unwrap()
        };
        close(edited(Positions::All), of_prompt(Positions::All));
        assert!((edited(Positions::Prompt) - of_prompt(Positions::Prompt)).abs() > 1e-3);
        // Every answer token weighs the same.
        let long = divergence(&changed, &[begun()]);
        close(divergence(&changed, &[instead(), begun()]), (alone + 5.0 * long) / 6.0);
    }
    #[test]
    fn an_interruption_asks_for_the_refusal_at_every_token_of_the_answer() {
        let (original, changed) = (decoder("original"), decoder("changed"));
        let dialogue = |prompt: &[u32], answer: &[u32]| Dialogue { prompt: prompt.into(), answer: answer.into() };
        let prompts: [&[u32]; 2] = [&[1, 5, 2], &[1, 9, 4, 3]];
        // Refusals of one token, to compare with, and the same prompts with longer ones, of which the first token counts.
        let rows = [
            dialogue(prompts[0], &[6]),
            dialogue(prompts[1], &[7]),
            dialogue(prompts[0], &[6, 7, 8]),
            dialogue(prompts[1], &[7, 11]),
        ];
        let anchors = Anchors::new(&original, &rows, 0).unwrap();
        let site = Site::new(1, Point::ResidPre);
        let edit = Edit::Add { site, vector: vec![1.0; 8], keep_norm: false }.place(&Device::Cpu).unwrap();
        for positions in [Positions::All, Positions::Prompt, Positions::Last] {
            let edit = Some((&edit, positions));
            let after = |row, given| {
                let asked = [Asked { after: given, ..Asked::plainly(row) }];
                anchors.divergence(&changed, &asked, edit).unwrap().to_scalar::<f32>().unwrap()
            };
            let begun = |row| after(row, &[]) + after(row, &[13]) + after(row, &[13, 14]);
            let interrupted = |asked: &[(usize, &[u32])]| {
                anchors.interruption(&changed, asked, edit).unwrap().to_scalar::<f32>().unwrap()
            };
            let close = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            let answer: &[u32] = &[13, 14, 15];
            assert!((begun(0) - begun(1)).abs() > 1e-3, "rows that differ");
            close(interrupted(&[(2, answer)]), begun(0) / 3.0);
            close(interrupted(&[(3, answer)]), begun(1) / 3.0);
            close(interrupted(&[(3, &[13]), (2, answer)]), (after(1, &[]) + begun(0)) / 4.0);
        }
    }
}
