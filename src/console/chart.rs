//! Small charts, as SVG without styles or scripts of their own. Each says in words what it shows, and has its numbers in a table
//! beside it where they matter.

#![expect(clippy::float_arithmetic, reason = "places on the screen")]

use std::fmt::{Display, Write};

use maud::{Markup, html};

use super::page;

/// Size of a chart's coordinates; it's as wide as its place.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 160.0;

/// Bars of parts on top of each other. `classes` name the parts; each bar has one number for each. The scale ends at the highest
/// bar, and at least at `least`.
pub fn bars(label: &str, classes: &[&str], bars: &[Vec<u32>], least: u32) -> Markup {
    let highest = bars.iter().map(|bar| bar.iter().sum::<u32>()).max().unwrap_or(0).max(least);
    let (width, scale) = (WIDTH / bars.len().max(1) as f64, HEIGHT / f64::from(highest.max(1)));
    let mut shapes = String::new();
    for (number, bar) in bars.iter().enumerate() {
        let mut top = HEIGHT;
        for (class, count) in classes.iter().zip(bar).filter(|(_, count)| **count > 0) {
            let height = f64::from(*count) * scale;
            top -= height;
            let _ = write!(
                shapes,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
                number as f64 * width,
                (width - 1.0).max(0.5),
            );
        }
    }
    frame(label, &highest.to_string(), "0", shapes)
}

/// A line through `points`, whose first members grow, drawn in steps: each value holds until the next. The labels are of the
/// highest and the lowest value.
pub fn steps(label: &str, points: &[(f64, f64)], highest: &str, lowest: &str) -> Markup {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return html! {} };
    let (low, high) = points
        .iter()
        .fold((f64::MAX, f64::MIN), |(low, high), (_, value)| (low.min(*value), high.max(*value)));
    let x = |at: f64| (at - first.0) / (last.0 - first.0).max(f64::MIN_POSITIVE) * WIDTH;
    let y = |value: f64| HEIGHT - 4.0 - (value - low) / (high - low).max(f64::MIN_POSITIVE) * (HEIGHT - 8.0);
    let mut path = String::new();
    for (number, (at, value)) in points.iter().enumerate() {
        let _ = match number {
            0 => write!(path, "M{:.1} {:.1}", x(*at), y(*value)),
            _ => write!(path, "H{:.1}V{:.1}", x(*at), y(*value)),
        };
    }
    frame(label, highest, lowest, format!("<path class=\"line\" d=\"{path}\"/>"))
}

/// Spans of time, one on each line: class, begin and end.
pub fn spans(label: &str, spans: &[(&str, f64, f64)], end: &str) -> Markup {
    let longest = spans.iter().map(|(.., end)| *end).fold(f64::MIN_POSITIVE, f64::max);
    let height = HEIGHT * 2.0 / spans.len().max(1) as f64;
    let mut shapes = String::new();
    for (number, (class, from, to)) in spans.iter().enumerate() {
        let _ = write!(
            shapes,
            "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
            from / longest * WIDTH,
            number as f64 * height / 2.0,
            ((to - from) / longest * WIDTH).max(1.0),
            (height / 2.0 - 0.5).max(0.5),
        );
    }
    html! {
        figure.chart {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
                (page::ours(shapes))
            }
            figcaption.ends { span { "0 ms" } span { (end) } }
        }
    }
}

/// What the colors mean: name of the class, meaning, count.
pub fn legend<N: Display>(kinds: impl Iterator<Item = ((&'static str, &'static str), N)>) -> Markup {
    html! {
        ul.legend {
            @for ((name, meaning), count) in kinds {
                li { span class={ "swatch " (name) } aria-hidden="true" {} b { (count) " " (name) } " " span.soft { (meaning) } }
            }
        }
    }
}

fn frame(label: &str, highest: &str, lowest: &str, shapes: String) -> Markup {
    html! {
        figure.chart.scaled {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(label) {
                (page::ours(shapes))
            }
            div.scale aria-hidden="true" { span { (highest) } span { (lowest) } }
        }
    }
}
