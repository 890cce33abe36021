//! A rectangle of token ids with left padding, and which of its columns belong to the prompt.

use candle_core::{Device, Tensor};

use super::hooks::Positions;
use crate::{Error, Result};

/// Token ids `[rows, cols]`, padded on the left so that all rows end in the same column.
///
/// A column below a row's pad count is masked in attention and has no position. `prompt_end` is the column at which a
/// row's answer begins (`cols` for bare prompts).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    ids: Vec<u32>,
    rows: usize,
    cols: usize,
    pads: Vec<usize>,
    prompt_end: Vec<usize>,
}

/// Fewest rows that are worth a pass of their own.
const FEWEST: usize = 4;

/// The sum of what `part` gives for groups of rows of similar length, each of which is padded on its own.
///
/// A group is halved, short rows from long ones, wherever that saves an eighth of its cells. Every row is in one group; the
/// grouping depends on nothing but the lengths.
///
/// # Errors
/// Those of `part`; when there is no row.
pub fn sum_by_length(lengths: &[usize], part: impl Fn(&[usize]) -> Result<Tensor>) -> Result<Tensor> {
    let groups = by_length(lengths);
    let (first, rest) =
        groups.split_first().ok_or_else(|| Error::input("batch", "expected one row at least, got none"))?;
    rest.iter().try_fold(part(first)?, |sum, group| Ok((sum + part(group)?)?))
}

fn by_length(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|row| (lengths[*row], *row));
    let (mut open, mut groups) = (vec![order], Vec::new());
    while let Some(mut group) = open.pop() {
        let widest = |rows: &[usize]| rows.last().map_or(0, |row| lengths[*row]);
        let half = group.len() / 2;
        let saved = half * (widest(&group) - widest(&group[..half]));
        if half >= FEWEST && 8 * saved >= group.len() * widest(&group) {
            open.push(group.split_off(half));
            open.push(group);
        } else if !group.is_empty() {
            groups.push(group);
        }
    }
    groups
}

impl TokenBatch {
    /// Rows of prompt tokens alone.
    pub fn prompts(rows: &[Vec<u32>], pad: u32) -> Self {
        Self::dialogues(rows, &vec![Vec::new(); rows.len()], pad)
    }

    /// Rows of prompt tokens followed by answer tokens.
    ///
    /// # Panics
    /// When the two lists differ in length: they come from one list of examples.
    pub fn dialogues(prompts: &[Vec<u32>], answers: &[Vec<u32>], pad: u32) -> Self {
        let cols = prompts.iter().zip(answers).map(|(p, a)| p.len() + a.len()).max().unwrap_or(0);
        Self::dialogues_of_width(prompts, answers, pad, cols)
    }

    /// As [`TokenBatch::dialogues`] with at least `cols` columns, so that parts of one data set line up.
    ///
    /// # Panics
    /// When the two lists differ in length or a row is longer than `cols`.
    pub fn dialogues_of_width(prompts: &[Vec<u32>], answers: &[Vec<u32>], pad: u32, cols: usize) -> Self {
        assert_eq!(prompts.len(), answers.len(), "every prompt has one answer");
        let mut ids = Vec::with_capacity(prompts.len() * cols);
        let (mut pads, mut prompt_end) = (Vec::new(), Vec::new());
        for (prompt, answer) in prompts.iter().zip(answers) {
            let padding = cols - prompt.len() - answer.len();
            ids.extend(std::iter::repeat_n(pad, padding).chain(prompt.iter().copied()).chain(answer.iter().copied()));
            pads.push(padding);
            prompt_end.push(padding + prompt.len());
        }
        Self { ids, rows: prompts.len(), cols, pads, prompt_end }
    }

    /// The next column of every row during generation; it continues rows with these pads and holds no prompt token.
    pub(super) fn step(ids: Vec<u32>, pads: Vec<usize>) -> Self {
        let rows = ids.len();
        Self { ids, rows, cols: 1, pads, prompt_end: vec![0; rows] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Masked columns at the start of each row.
    pub fn pads(&self) -> &[usize] {
        &self.pads
    }

    /// Column at which each row's answer begins.
    pub fn prompt_end(&self) -> &[usize] {
        &self.prompt_end
    }

    /// All ids, row by row.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Ids as a flat `[rows · cols]` u32 tensor.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.ids, self.rows * self.cols, device)?)
    }

    /// Flat indices whose next token is an answer token, with that token: the rows of a next-token loss on answers.
    pub fn answer_targets(&self) -> (Vec<u32>, Vec<u32>) {
        self.answer_targets_after(&vec![0; self.rows])
    }

    /// The same without as many tokens at the beginning of each row's answer as are `given`.
    pub(crate) fn answer_targets_after(&self, given: &[usize]) -> (Vec<u32>, Vec<u32>) {
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (row, given) in given.iter().enumerate() {
            for col in self.prompt_end[row] + given..self.cols {
                if col > self.pads[row] {
                    positions.push((row * self.cols + col - 1) as u32);
                    targets.push(self.ids[row * self.cols + col]);
                }
            }
        }
        (positions, targets)
    }

    /// Flat indices of the last prompt token of every row.
    pub fn last_prompt_positions(&self) -> Vec<u32> {
        (0..self.rows).map(|row| (row * self.cols + self.prompt_end[row] - 1) as u32).collect()
    }

    /// 1 where an edit at `positions` acts and 0 elsewhere, `[rows, cols, 1]` f32; `None` when it acts everywhere.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn edit_mask(&self, positions: Positions, device: &Device) -> Result<Option<Tensor>> {
        let acts = |row: usize, col: usize| match positions {
            Positions::All => true,
            Positions::Prompt => col < self.prompt_end[row],
            Positions::Last => col + 1 >= self.prompt_end[row],
        };
        let mask: Vec<f32> = (0..self.rows)
            .flat_map(|row| (0..self.cols).map(move |col| (row, col)))
            .map(|(row, col)| if acts(row, col) { 1.0 } else { 0.0 })
            .collect();
        if mask.iter().all(|m| *m == 1.0) {
            return Ok(None);
        }
        Ok(Some(Tensor::from_vec(mask, (self.rows, self.cols, 1), device)?))
    }

    /// 1 for real tokens and 0 for padding and each row's first `skip` tokens, `[rows · cols, 1]` f32.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn token_mask(&self, skip: usize, device: &Device) -> Result<Tensor> {
        let mask: Vec<f32> = (0..self.rows)
            .flat_map(|row| (0..self.cols).map(move |col| (row, col)))
            .map(|(row, col)| if col >= self.pads[row] + skip { 1.0 } else { 0.0 })
            .collect();
        Ok(Tensor::from_vec(mask, (self.rows * self.cols, 1), device)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_grouped_where_that_saves_padding() {
        assert_eq!(by_length(&[9, 9, 10, 9, 10, 10, 9, 9]), [vec![0, 1, 3, 6, 7, 2, 4, 5]]);
        assert_eq!(by_length(&[40, 3, 41, 4, 40, 3, 4, 41]), [vec![1, 5, 3, 6], vec![0, 4, 2, 7]]);
        assert_eq!(by_length(&[1, 50, 50]), [vec![0, 1, 2]], "too few rows");
        assert!(by_length(&[]).is_empty());
    }

    #[test]
    fn padding_is_on_the_left_and_targets_are_the_answers() {
        let batch = TokenBatch::dialogues(&[vec![1, 2], vec![3]], &[vec![7, 8], vec![9]], 0);
        assert_eq!((batch.rows(), batch.cols()), (2, 4));
        assert_eq!(batch.ids(), [1, 2, 7, 8, 0, 0, 3, 9]);
        assert_eq!(batch.pads(), [0, 2]);
        assert_eq!(batch.answer_targets(), (vec![1, 2, 6], vec![7, 8, 9]));
        assert_eq!(batch.answer_targets_after(&[1, 0]), (vec![2, 6], vec![8, 9]));
        assert_eq!(batch.last_prompt_positions(), [1, 6]);
    }

    #[test]
    fn masks_follow_the_positions() {
        let batch = TokenBatch::dialogues(&[vec![1, 2]], &[vec![7, 8]], 0);
        let mask =
            |p| batch.edit_mask(p, &Device::Cpu).unwrap().map(|m| m.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        assert_eq!(mask(Positions::All), None);
        assert_eq!(mask(Positions::Prompt), Some(vec![1.0, 1.0, 0.0, 0.0]));
        assert_eq!(mask(Positions::Last), Some(vec![0.0, 1.0, 1.0, 1.0]));
    }
}
