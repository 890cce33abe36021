//! The report's pictures as inline SVG: dots with whiskers per block, forest marks, bars. Colours come from the style sheet.

use std::fmt::Write as _;

use super::html::escape;
use super::interval::Measured;
use super::schema::{AttackRow, BlockDelta, Direction, Report, UtilityRow};
use super::wording::{number, percent, ranges};

/// Where the drawing begins, pixels: the scale stands to the left.
pub const LEFT: f64 = 46.0;
/// Room above.
pub const TOP: f64 = 12.0;
const HEIGHT: f64 = 230.0;
/// Room for what is below the drawing.
pub const BOTTOM: f64 = 44.0;

/// The four kinds of measurement that a block shows, in drawing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// The un-hardened model.
    Base,
    /// Edits carried over from it.
    Frozen,
    /// Edits fitted on the hardened weights.
    Refitted,
    /// A random edit that moves activations as far, on the hardened model.
    Control,
}

impl Series {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Base, Self::Frozen, Self::Refitted, Self::Control];

    /// Words for the legend.
    pub fn label(self, report: &Report) -> String {
        let edit = match self {
            Self::Base => return "un-hardened".into(),
            Self::Frozen => "frozen edit",
            Self::Refitted => "re-fitted edit",
            Self::Control => "random control",
        };
        format!("{}, {edit}", report.subject())
    }

    /// Its class in the style sheet.
    pub fn class(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Frozen => "frozen",
            Self::Refitted => "refit",
            Self::Control => "control",
        }
    }

    /// The mark: shapes differ, so that nothing hangs on colour alone.
    pub fn mark(self, x: f64, y: f64) -> String {
        let class = self.class();
        match self {
            Self::Base | Self::Frozen => format!(r#"<circle class="mark {class}" cx="{x:.1}" cy="{y:.1}" r="4"/>"#),
            Self::Refitted => {
                format!(r#"<path class="mark {class}" d="M{x:.1} {:.1}l5 5l-5 5l-5 -5z"/>"#, y - 5.0)
            }
            Self::Control => {
                format!(r#"<rect class="mark {class}" x="{:.1}" y="{:.1}" width="6" height="6"/>"#, x - 3.0, y - 3.0)
            }
        }
    }
}

/// One picture of all rows of one attack at one choice of positions; `None` of no rows.
///
/// `id` must be unique in the page. The description names every figure, so nothing is lost to those who don't see it.
pub fn attack(report: &Report, rows: &[&AttackRow], id: &str) -> Option<String> {
    let mut places: Vec<&[usize]> = rows.iter().map(|row| row.layers.as_slice()).collect();
    places.sort_unstable();
    places.dedup();
    if places.is_empty() {
        return None;
    }
    let slot = (820.0 / places.len() as f64).clamp(26.0, 92.0);
    let step = (slot / 5.0).min(13.0);
    let width = LEFT + slot * places.len() as f64 + 8.0;
    let y = |value: f64| TOP + HEIGHT * (1.0 - value);
    let mut body = frame(width, &[(0.0, "0"), (0.25, "25"), (0.5, "50"), (0.75, "75"), (1.0, "100%")], y);
    let mut bounds: Vec<f64> = rows.iter().filter_map(|row| row.bound).collect();
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    for bound in bounds {
        let at = y(bound);
        let _ = write!(body, r#"<line class="limit" x1="{LEFT}" x2="{width:.1}" y1="{at:.1}" y2="{at:.1}"/>"#);
    }
    let mut words = String::new();
    for (i, layers) in places.iter().enumerate() {
        let centre = LEFT + slot * (i as f64 + 0.5);
        let label = ranges(layers);
        let _ =
            write!(body, r#"<text x="{centre:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#, TOP + HEIGHT + 18.0);
        let here: Vec<&AttackRow> = rows.iter().copied().filter(|row| row.layers == *layers).collect();
        let marks = measurements(report, &here);
        let _ = write!(words, "Block {label}: ");
        for (series, outcome, counts) in marks {
            let place = Series::ALL.iter().position(|s| *s == series).unwrap_or(0) as f64;
            let x = centre + (place - 1.5) * step;
            let class = if counts { "" } else { r#" class="faded""# };
            let _ =
                write!(body, "<g{class}>{}{}</g>", whisker(series, x, &outcome, y), series.mark(x, y(outcome.value)));
            let _ = write!(words, "{} {}, ", series.label(report), percent(outcome.value));
        }
        words.truncate(words.trim_end_matches([',', ' ']).len());
        words.push_str(". ");
    }
    let _ = write!(
        body,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">block</text>"#,
        LEFT + slot * places.len() as f64 / 2.0,
        TOP + HEIGHT + 38.0
    );
    Some(svg(id, width, TOP + HEIGHT + BOTTOM, "Attack success by block", &words, &body))
}

/// What a block shows: the un-hardened value once, each knowledge, the control; and whether its row counts.
fn measurements(report: &Report, rows: &[&AttackRow]) -> Vec<(Series, Measured, bool)> {
    let mut marks = vec![];
    if let Some((base, counts)) = rows.iter().find_map(|row| Some((row.base?, row.applicable))) {
        marks.push((Series::Base, base.measured(), counts));
    }
    for row in rows {
        let series = if row.adaptive { Series::Refitted } else { Series::Frozen };
        marks.push((series, row.hardened.measured(), row.applicable));
    }
    if let Some(control) = rows.first().and_then(|row| report.control_of(row)) {
        marks.push((Series::Control, control.hardened.measured(), true));
    }
    marks
}

/// An upright interval.
pub fn whisker(series: Series, x: f64, m: &Measured, y: impl Fn(f64) -> f64) -> String {
    let (low, high) = (y(m.low), y(m.high));
    format!(
        r#"<path class="mark {}" style="fill:none" d="M{:.1} {low:.1}h5M{:.1} {high:.1}h5M{x:.1} {low:.1}V{high:.1}"/>"#,
        series.class(),
        x - 2.5,
        x - 2.5,
    )
}

/// Level grid lines with their labels.
pub fn frame(width: f64, ticks: &[(f64, &str)], y: impl Fn(f64) -> f64) -> String {
    ticks.iter().fold(String::new(), |mut out, (value, label)| {
        let at = y(*value);
        let class = if *value == 0.0 { "axis" } else { "grid" };
        let _ = write!(
            out,
            r#"<line class="{class}" x1="{LEFT}" x2="{width:.1}" y1="{at:.1}" y2="{at:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 8.0,
            at + 4.0
        );
        out
    })
}

/// Upright grid lines of a scale of fractions, labelled below.
pub fn axis(ticks: &[f64], x: impl Fn(f64) -> f64, (top, bottom): (f64, f64)) -> String {
    ticks.iter().fold(String::new(), |mut out, value| {
        let (at, class) = (x(*value), if *value == 0.0 { "axis" } else { "grid" });
        let label = if *value == 1.0 { "100%".into() } else { number(value * 100.0) };
        let _ = write!(
            out,
            r#"<line class="{class}" x1="{at:.1}" x2="{at:.1}" y1="{top:.1}" y2="{bottom:.1}"/><text x="{at:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            bottom + 18.0
        );
        out
    })
}

/// A change with its interval against zero and its bound, on a scale of its own; `None` without a change.
pub fn forest(row: &UtilityRow) -> Option<String> {
    const WIDTH: f64 = 190.0;
    let delta = row.delta?;
    let reach =
        [delta.low.abs(), delta.high.abs(), row.bound.unwrap_or(0.0), 1e-9].into_iter().fold(0.0, f64::max) * 1.15;
    let x = |value: f64| WIDTH / 2.0 * (1.0 + value / reach);
    let mut body = format!(r#"<line class="axis" x1="{0:.1}" x2="{0:.1}" y1="2" y2="22"/>"#, x(0.0));
    if let Some(bound) = row.bound {
        let sides: &[f64] = match row.direction {
            Direction::HigherIsBetter => &[-1.0],
            Direction::LowerIsBetter => &[1.0],
            Direction::Unchanged => &[-1.0, 1.0],
        };
        for side in sides {
            let _ = write!(body, r#"<line class="limit" x1="{0:.1}" x2="{0:.1}" y1="2" y2="22"/>"#, x(side * bound));
        }
    }
    let (low, high, at) = (x(delta.low), x(delta.high), x(delta.value));
    let _ = write!(
        body,
        r#"<path class="mark frozen" style="fill:none" d="M{low:.1} 12H{high:.1}M{low:.1} 9v6M{high:.1} 9v6"/>{}"#,
        Series::Frozen.mark(at, 12.0)
    );
    Some(format!(r#"<svg width="{WIDTH}" height="24" viewBox="0 0 {WIDTH} 24" aria-hidden="true">{body}</svg>"#))
}

/// A bar per block.
pub fn norms(blocks: &[BlockDelta], id: &str) -> Option<String> {
    const TALL: f64 = 120.0;
    let largest = blocks.iter().map(|block| block.relative_norm).fold(0.0, f64::max);
    if blocks.is_empty() || largest <= 0.0 {
        return None;
    }
    let top = nice(largest);
    let slot = (820.0 / blocks.len() as f64).clamp(18.0, 92.0);
    let width = LEFT + slot * blocks.len() as f64 + 8.0;
    let y = |value: f64| TOP + TALL * (1.0 - value / top);
    let (half, full) = (percent(top / 2.0), percent(top));
    let mut body = frame(width, &[(0.0, "0"), (top / 2.0, &half), (top, &full)], y);
    let mut words = String::new();
    for (i, block) in blocks.iter().enumerate() {
        let (x, at) = (LEFT + slot * (i as f64 + 0.5), y(block.relative_norm));
        let wide = (slot * 0.55).min(30.0);
        let _ = write!(
            body,
            r#"<rect class="bar" x="{:.1}" y="{at:.1}" width="{wide:.1}" height="{:.1}"/>"#,
            x - wide / 2.0,
            TOP + TALL - at
        );
        let _ = write!(
            body,
            r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            TOP + TALL + 18.0,
            block.layer
        );
        let _ = write!(words, "Block {}: {}. ", block.layer, percent(block.relative_norm));
    }
    let middle = LEFT + slot * blocks.len() as f64 / 2.0;
    let _ = write!(body, r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">block</text>"#, TOP + TALL + 38.0);
    Some(svg(id, width, TOP + TALL + BOTTOM, "Relative size of the weight change by block", &words, &body))
}

/// The next 1, 2 or 5 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|top| *top >= value).unwrap_or(value)
}

/// A picture with its title and its description in words; `id` must be unique in the page.
pub fn svg(id: &str, width: f64, height: f64, title: &str, words: &str, body: &str) -> String {
    format!(
        r#"<svg role="img" aria-labelledby="{id}-t {id}-d" width="{width:.0}" height="{height:.0}" viewBox="0 0 {width:.0} {height:.0}"><title id="{id}-t">{title}</title><desc id="{id}-d">{}</desc>{body}</svg>"#,
        escape(words.trim())
    )
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_description_of_a_picture_names_every_figure() {
        let report = sample::report();
        let rows: Vec<&AttackRow> = report.attacks.iter().filter(|row| row.family == "noreft").collect();
        let picture = attack(&report, &rows, "c").unwrap();
        assert!(picture.contains(
            "Block 5: un-hardened 89.0%, hardened, frozen edit 15.5%, hardened, re-fitted edit 80.0%, hardened, random control 0.5%."
        ), "{picture}");
        assert_eq!(picture.matches("<circle").count(), 12, "six blocks, un-hardened and frozen");
    }

    #[test]
    fn nothing_to_draw_draws_nothing() {
        assert_eq!(attack(&sample::report(), &[], "c"), None);
        assert_eq!(norms(&[], "c"), None);
        assert_eq!(norms(&[BlockDelta { layer: 0, relative_norm: 0.0, spectrum: vec![] }], "c"), None);
    }

    #[test]
    fn scales_end_on_round_numbers() {
        assert_eq!([nice(0.047), nice(0.1), nice(3.0)].map(|v| (v * 1e6).round() / 1e6), [0.05, 0.1, 5.0]);
    }
}
