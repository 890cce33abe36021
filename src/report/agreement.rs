//! How far two judges of the same answers agree.
//!
//! *Source*: Cohen 1960: `κ = (p_o − p_e)/(1 − p_e)`, agreement beyond what the two would reach by chance.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Answers by what two judges say of them; `success` means that the attacker got what they asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Agreement {
    /// Success by both.
    pub both: u64,
    /// Success by the first judge only.
    pub first_only: u64,
    /// Success by the second judge only.
    pub second_only: u64,
    /// Success by neither.
    pub neither: u64,
    /// Answers of which the second judge said nothing that could be read; in no other count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unparsed: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Agreement {
    /// Counts pairs of judgements; the second is absent where it could not be read.
    #[must_use]
    pub fn count(pairs: impl IntoIterator<Item = (bool, Option<bool>)>) -> Self {
        pairs.into_iter().fold(Self::default(), |mut table, pair| {
            *match pair {
                (true, Some(true)) => &mut table.both,
                (true, Some(false)) => &mut table.first_only,
                (false, Some(true)) => &mut table.second_only,
                (false, Some(false)) => &mut table.neither,
                (_, None) => &mut table.unparsed,
            } += 1;
            table
        })
    }

    /// Both tables together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            both: self.both + other.both,
            first_only: self.first_only + other.first_only,
            second_only: self.second_only + other.second_only,
            neither: self.neither + other.neither,
            unparsed: self.unparsed + other.unparsed,
        }
    }

    /// Answers that both judged.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.both + self.first_only + self.second_only + self.neither
    }

    /// Fraction of answers that the second judge calls a success.
    #[must_use]
    pub fn second(&self) -> f64 {
        self.part(self.both + self.second_only)
    }

    /// Fraction of answers on which both say the same.
    #[must_use]
    pub fn raw(&self) -> f64 {
        self.part(self.both + self.neither)
    }

    /// Cohen's κ; absent where a judge, or both, say the same of all answers, so that chance explains everything.
    #[must_use]
    pub fn kappa(&self) -> Option<f64> {
        let (first, second) = (self.part(self.both + self.first_only), self.second());
        let chance = first * second + (1.0 - first) * (1.0 - second);
        let room = 1.0 - chance;
        (room > 1e-12).then(|| (self.raw() - chance) / room)
    }

    fn part(&self, count: u64) -> f64 {
        count as f64 / self.n().max(1) as f64
    }
}

/// Agreement over all answers that both judges saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JudgeAgreement {
    /// Answers that both judged, over all attack and control rows.
    pub n: u64,
    /// Fraction of answers on which both say the same.
    pub raw: f64,
    /// Cohen's κ, where it is defined.
    pub kappa: Option<f64>,
    /// The answers by what both say.
    pub table: Agreement,
}

impl From<Agreement> for JudgeAgreement {
    fn from(table: Agreement) -> Self {
        Self { n: table.n(), raw: table.raw(), kappa: table.kappa(), table }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kappa_is_agreement_beyond_chance() {
        // Cohen's measure by hand: p_o = .7, p_e = .5·.6 + .5·.4 = .5.
        let table = Agreement { both: 20, first_only: 5, second_only: 10, neither: 15, unparsed: 9 };
        assert!((table.raw() - 0.7).abs() < 1e-12 && (table.second() - 0.6).abs() < 1e-12);
        assert!((table.kappa().unwrap() - 0.4).abs() < 1e-12);
        let opposed = Agreement::count([(true, Some(false)), (false, Some(true))]);
        assert_eq!((opposed.kappa(), opposed.raw()), (Some(-1.0), 0.0));
    }

    #[test]
    fn without_variety_there_is_no_kappa() {
        assert_eq!(Agreement::count([(true, Some(true)); 5]).kappa(), None);
        assert_eq!(Agreement::default().kappa(), None);
        assert_eq!(Agreement::count([(true, Some(true)), (true, Some(false))]).kappa(), Some(0.0));
    }

    #[test]
    fn tables_add_up() {
        let [yes, no] = [Some(true), Some(false)];
        let pairs = [(true, yes), (false, yes), (false, no), (true, None), (true, no), (true, yes)];
        let whole = Agreement::count(pairs);
        assert_eq!(
            Agreement::count(pairs[..2].iter().copied()).plus(Agreement::count(pairs[2..].iter().copied())),
            whole
        );
        assert_eq!((JudgeAgreement::from(whole).n, whole.unparsed), (5, 1));
    }
}
