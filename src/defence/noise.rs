//! Prompts that are in no set, made of those that are: tokens dropped, or replaced by tokens of other prompts.
//!
//! A model that is held to the original on some thousand prompts learns them by heart, and drifts on those beside them. What
//! the original answers is the right answer to any text, sensible or not, so there are as many anchors as one likes: this is
//! distillation by function matching (Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022).

use super::Dialogue;
use crate::math::seed::Stream;

/// Makes prompts that are in no set out of those that are.
pub(super) struct Noise<'a> {
    share: f64,
    dialogues: &'a [Dialogue],
    /// Tokens that all prompts begin and end with: the template's.
    frame: [usize; 2],
}

impl<'a> Noise<'a> {
    /// Noise on a share of the tokens of `dialogues`' prompts; nothing where no token is to change.
    pub(super) fn of(share: f64, dialogues: &'a [Dialogue]) -> Option<Self> {
        let first = &dialogues.first()?.prompt;
        let (mut start, mut end) = (first.len(), first.len());
        for Dialogue { prompt, .. } in dialogues {
            start = start.min(prompt.iter().zip(first).take_while(|(a, b)| a == b).count());
            end = end.min(prompt.iter().rev().zip(first.iter().rev()).take_while(|(a, b)| a == b).count());
        }
        // A token in the middle of a short prompt belongs to its beginning only.
        let shortest = dialogues.iter().map(|dialogue| dialogue.prompt.len()).min()?;
        let frame = [start, end.min(shortest - start)];
        (share > 0.0).then_some(Self { share, dialogues, frame })
    }

    /// Tokens of a prompt that are its own.
    fn body(&self, row: usize) -> &'a [u32] {
        let (prompt, [start, end]) = (&self.dialogues[row].prompt, self.frame);
        prompt.get(start..prompt.len().saturating_sub(end)).unwrap_or(&[])
    }

    /// Dialogue `row`'s prompt with some tokens changed; nothing in half of all cases, or where nothing came to be changed.
    pub(super) fn disturbed(&self, row: usize, draws: &mut Stream) -> Option<Vec<u32>> {
        if draws.unit() < 0.5 {
            return None;
        }
        let (prompt, body) = (&self.dialogues[row].prompt, self.body(row));
        let mut changed = Vec::with_capacity(body.len());
        for token in body {
            let place = draws.unit() / self.share;
            if place >= 1.0 {
                changed.push(*token);
            } else if place >= 0.5 {
                let other = self.body(draws.below(self.dialogues.len()));
                changed.extend((!other.is_empty()).then(|| other[draws.below(other.len())]));
            }
        }
        let [start, end] = self.frame;
        (changed != body).then(|| [&prompt[..start], &changed, &prompt[prompt.len() - end..]].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogues(bodies: &[&[u32]]) -> Vec<Dialogue> {
        let prompt = |body: &&[u32]| [&[90, 91], *body, &[92]].concat();
        bodies.iter().map(|body| Dialogue { prompt: prompt(body), answer: vec![7] }).collect()
    }

    #[test]
    fn noise_keeps_the_template_and_about_its_share_of_tokens() {
        let long: Vec<u32> = (0..40).collect();
        let rows = dialogues(&[&long, &[50, 51, 52], &[60; 40]]);
        let noise = Noise::of(0.25, &rows).unwrap();
        assert_eq!(noise.frame, [2, 1]);
        let mut draws = Stream::new(0, "noise");
        let changed: Vec<Vec<u32>> = (0..200).filter_map(|_| noise.disturbed(0, &mut draws)).collect();
        assert!((80..120).contains(&changed.len()), "half of all prompts stay: {}", changed.len());
        assert!(changed.iter().all(|prompt| prompt.starts_with(&[90, 91]) && prompt.ends_with(&[92])));
        let kept: usize = changed.iter().map(|prompt| long.iter().filter(|token| prompt.contains(token)).count()).sum();
        let share = kept as f64 / (40 * changed.len()) as f64;
        assert!((0.7..0.85).contains(&share), "{share}");
        let foreign = changed.iter().flatten().filter(|token| (50..70).contains(*token)).count();
        assert!(foreign > changed.len(), "tokens of other prompts come in: {foreign}");
        assert!(Noise::of(0.0, &rows).is_none());
    }

    #[test]
    fn prompts_that_are_nearly_all_template_lose_nothing_of_it() {
        let mut rows = dialogues(&[&[], &[91]]);
        let noise = Noise::of(1.0, &rows).unwrap();
        assert_eq!((noise.body(0), noise.body(1)), (&[][..], &[91][..]));
        let mut draws = Stream::new(0, "noise");
        assert!((0..20).all(|_| noise.disturbed(0, &mut draws).is_none()));
        rows.truncate(1);
        assert!(Noise::of(1.0, &rows).unwrap().body(0).is_empty());
    }
}
