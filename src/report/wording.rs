//! How numbers, blocks, rows and changes are put in words, the same in every rendering.

use super::interval::Measured;
use super::schema::{AttackRow, Outcome, Report, SkippedRow, UtilityRow};
use super::threshold::MIN_BASE_ASR;

impl Report {
    /// Whether an un-hardened model was measured beside the one that the report is about.
    #[must_use]
    pub fn has_base(&self) -> bool {
        !self.base.digests.is_empty()
    }

    /// What tables call the model that was measured: `hardened` beside the un-hardened one; `model` where it was the only one, of
    /// which nobody has said that it is hardened.
    #[must_use]
    pub fn subject(&self) -> &'static str {
        if self.has_base() { "hardened" } else { "model" }
    }

    /// What a title names: the un-hardened model, where there is one.
    #[must_use]
    pub fn title(&self) -> &str {
        if self.has_base() { &self.base.source } else { "a model without its base" }
    }
}

impl AttackRow {
    /// `re-fitted` or `frozen`, the words that readers see.
    #[must_use]
    pub fn knowledge(&self) -> &'static str {
        if self.adaptive { "re-fitted" } else { "frozen" }
    }

    /// One line that names the row: name, knowledge, blocks and positions.
    #[must_use]
    pub fn title(&self) -> String {
        let knowledge = if self.control { "control" } else { self.knowledge() };
        format!("{} ({knowledge}, {} positions) at {}", self.name, self.positions, blocks(&self.layers))
    }

    /// Why a row that does not count doesn't: in few words for a table, and in a sentence.
    #[must_use]
    pub fn why_not_counted(&self) -> (&'static str, &'static str) {
        match self.base {
            _ if self.ungated => ("not gated", "shown and never gated"),
            None => ("not measured", "the un-hardened model was not measured: nothing to compare with"),
            Some(base) if base.by(self.rates).asr < MIN_BASE_ASR => {
                ("below 50%", "the un-hardened model withstands this attack: nothing to defend")
            }
            Some(_) => ("refuses too few", "the un-hardened model refuses too few hazards: nothing to defend"),
        }
    }
}

impl SkippedRow {
    /// One line that names the row: name, blocks and positions.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} ({} positions) at {}", self.name, self.positions, blocks(&self.layers))
    }

    /// Why it was not measured and what it would have cost, such as `skipped: budget (at most 600 gradient evaluations and 80
    /// tokens of answers)`.
    #[must_use]
    pub fn why(&self) -> String {
        format!("skipped: {} ({})", self.reason.word(), at_most(self.gradient_evaluations, self.generated_tokens))
    }
}

/// Such as `at most 2400 gradient evaluations and 16000 tokens of answers`.
#[must_use]
pub fn at_most(gradient_evaluations: u64, generated_tokens: u64) -> String {
    format!("at most {gradient_evaluations} gradient evaluations and {generated_tokens} tokens of answers")
}

/// What was skipped in one sentence: row names with their blocks.
#[must_use]
pub fn skipped_in_words(rows: &[SkippedRow]) -> String {
    let mut names: Vec<(&str, &str, Vec<usize>)> = vec![];
    for row in rows {
        match names
            .iter_mut()
            .find(|(name, positions, _)| (*name, *positions) == (row.name.as_str(), row.positions.as_str()))
        {
            Some((.., layers)) => layers.extend(&row.layers),
            None => names.push((&row.name, &row.positions, row.layers.clone())),
        }
    }
    let listed = names.into_iter().map(|(name, positions, mut layers)| {
        layers.sort_unstable();
        layers.dedup();
        format!("{name} ({positions} positions) at {}", blocks(&layers))
    });
    format!("not measured for want of budget: {}", listed.collect::<Vec<_>>().join("; "))
}

/// `block 3`, `blocks 0–2, 5`, or `no block`.
#[must_use]
pub fn blocks(layers: &[usize]) -> String {
    match layers {
        [] => "no block".into(),
        [one] => format!("block {one}"),
        _ => format!("blocks {}", ranges(layers)),
    }
}

/// Ascending indices as `0–2, 5`.
#[must_use]
pub fn ranges(layers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = vec![];
    for &layer in layers {
        match runs.last_mut() {
            Some((_, end)) if *end + 1 == layer => *end = layer,
            _ => runs.push((layer, layer)),
        }
    }
    let run = |&(start, end): &(usize, usize)| match end - start {
        0 => start.to_string(),
        1 => format!("{start}, {end}"),
        _ => format!("{start}–{end}"),
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

/// A fraction as a percentage with one decimal, such as `4.5%`.
#[must_use]
pub fn percent(value: f64) -> String {
    let text = format!("{:.1}", value * 100.0);
    format!("{}%", if text == "-0.0" { "0.0" } else { &text })
}

/// The lowest and highest of several rates, such as `2.5 to 13%`.
#[must_use]
pub fn rates((low, high): (f64, f64)) -> String {
    format!("{} to {}", percent(low).trim_end_matches('%'), percent(high))
}

/// A number with as many decimals as it deserves, at most four.
#[must_use]
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    let text = if magnitude >= 1000.0 {
        format!("{value:.0}")
    } else if magnitude >= 100.0 {
        format!("{value:.1}")
    } else if magnitude >= 10.0 {
        format!("{value:.2}")
    } else if magnitude >= 1.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.4}")
    };
    let trimmed = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if trimmed == "-0" { "0".into() } else { trimmed.into() }
}

/// A count with thin spaces between thousands.
#[must_use]
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// The text with a capital at its start.
#[must_use]
pub fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// `4.5% (95%: 2.1% to 8.0%, n = 200)`.
#[must_use]
pub fn with_interval(m: &Measured) -> String {
    format!("{} (95%: {} to {}, n = {})", percent(m.value), percent(m.low), percent(m.high), m.n)
}

/// What intervals of attack success are worth, where phrasings of one request make it less than the number of prompts.
#[must_use]
pub fn phrasings(report: &Report) -> Option<String> {
    let rows = report.attacks.iter().flat_map(|row| row.base.iter().chain([&row.hardened]));
    let outcomes: Vec<&Outcome> = rows.collect();
    outcomes.iter().find(|outcome| outcome.effective_n.is_some())?;
    let worth = || outcomes.iter().map(|outcome| outcome.effective_n.unwrap_or(outcome.n as f64));
    let (least, most) = (worth().reduce(f64::min)?.max(1.0), worth().reduce(f64::max)?.max(1.0));
    let (least, most) = (format!("{least:.0}"), format!("{most:.0}"));
    let answers = if least == most { most } else { format!("{least} to {most}") };
    Some(format!(
        "phrasings of one request that are answered alike count for less than as many requests: an attack's 95% intervals are \
         those of {answers} independent answers"
    ))
}

impl UtilityRow {
    /// One of the task's values in its unit.
    #[must_use]
    pub fn amount(&self, value: f64) -> String {
        if self.unit == "fraction" { percent(value) } else { number(value) }
    }

    /// A change with its sign, in percentage points, per cent of the base's value, or the task's unit.
    #[must_use]
    pub fn change(&self, value: f64) -> String {
        let text = self.bare_change(value.abs());
        let zero = !text.contains(|c: char| ('1'..='9').contains(&c));
        match value {
            _ if zero => text,
            v if v < 0.0 => format!("−{text}"),
            _ => format!("+{text}"),
        }
    }

    /// An end of a change's interval: as [`UtilityRow::change`] without the unit.
    #[must_use]
    pub fn bare_end(&self, value: f64) -> String {
        self.change(value).replace(" points", "").replace('%', "")
    }

    /// A size of change without a sign, such as a bound.
    #[must_use]
    pub fn bare_change(&self, value: f64) -> String {
        if self.relative {
            percent(value)
        } else if self.unit == "fraction" {
            format!("{:.1} points", value * 100.0)
        } else {
            number(value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn changes_carry_their_sign_and_unit() {
        let report = sample::report();
        let row = &report.utility[0];
        assert_eq!(
            [row.change(-0.004), row.change(0.02), row.change(-0.0001)],
            ["−0.4 points", "+2.0 points", "0.0 points"]
        );
        let relative = UtilityRow { relative: true, ..row.clone() };
        assert_eq!(relative.change(0.031), "+3.1%");
    }

    #[test]
    fn a_row_that_does_not_count_says_why() {
        let row = sample::row("a", 0, true, 180, 0);
        let words = |row: &AttackRow| row.why_not_counted().0;
        assert_eq!(words(&sample::row("a", 0, true, 60, 0)), "below 50%");
        assert_eq!(words(&row), "refuses too few");
        assert_eq!(words(&AttackRow { base: None, ..row.clone() }), "not measured");
        assert_eq!(words(&AttackRow { ungated: true, ..row }), "not gated");
    }

    #[test]
    fn numbers_and_blocks_read_well() {
        assert_eq!([percent(0.045), percent(-0.0001), percent(1.0)], ["4.5%", "0.0%", "100.0%"]);
        assert_eq!([number(0.0083), number(12.0), number(1234.5), number(-0.00001)], ["0.0083", "12", "1234", "0"]);
        assert_eq!([grouped(120), grouped(1200), grouped(64_000)], ["120", "1200", "64\u{202f}000"]);
        assert_eq!([blocks(&[]), blocks(&[3]), blocks(&[0, 1, 2, 5, 6])], ["no block", "block 3", "blocks 0–2, 5, 6"]);
    }
}
