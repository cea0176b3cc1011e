//! The curves as one SVG: four panels, each with a logarithmic axis of what grows and a linear one of ms.

use std::fmt::Write;

use super::curve::{Curve, Report};
use crate::bench::picture::{COLOURS, begin, ceiling, number, text};

const WIDTH: f64 = 1090.0;
const HEIGHT: f64 = 840.0;
const PLOT: (f64, f64) = (420.0, 270.0);

/// The picture.
pub(super) fn svg(report: &Report) -> String {
    let mut out = begin(WIDTH, HEIGHT);
    let title = format!(
        "Time of a step, {} on {}, adapters of rank {}",
        report.model, report.device, report.rank
    );
    text(&mut out, (WIDTH / 2.0, 26.0), "middle", &title, 16);
    for (place, curve) in report.curves.iter().enumerate() {
        let corner = (85.0 + 530.0 * (place % 2) as f64, 78.0 + 385.0 * (place / 2) as f64);
        panel(&mut out, corner, curve, COLOURS[1 + place % 4]);
    }
    let note = "dot: median of rounds, bar: least to most; one scale of ms a panel, from zero";
    text(&mut out, (WIDTH / 2.0, HEIGHT - 10.0), "middle", note, 11);
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, (left, top): (f64, f64), curve: &Curve, colour: &str) {
    let (right, bottom) = (left + PLOT.0, top + PLOT.1);
    let most = curve.points.iter().map(|point| point.spread().1).fold(0.01, f64::max);
    let end = ceiling(most);
    let y = |ms: f64| bottom - PLOT.1 * ms / end;
    for part in 0..=4 {
        let ms = end * f64::from(part) / 4.0;
        let y = y(ms);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>"
        );
        text(out, (left - 8.0, y + 4.0), "end", &number(ms), 13);
    }
    let _ = writeln!(
        out,
        "<polyline points=\"{left},{top} {left},{bottom} {right},{bottom}\" fill=\"none\" stroke=\"#444444\"/>"
    );
    text(out, (left, top - 12.0), "start", &format!("ms, {}", curve.fixed), 13);
    text(out, (left + PLOT.0 / 2.0, bottom + 40.0), "middle", curve.kind.name(), 13);
    let log = |at: usize| (at.max(1) as f64).log2();
    let first = curve.points.first().map_or(0.0, |point| log(point.at));
    let last = curve.points.last().map_or(1.0, |point| log(point.at));
    let x = |at: usize| left + 15.0 + (PLOT.0 - 30.0) * (log(at) - first) / (last - first).max(1.0);
    let mut line = String::new();
    for point in &curve.points {
        let (x, middle, (low, high)) = (x(point.at), y(point.step_ms), point.spread());
        let (low, high) = (y(low), y(high));
        let _ = write!(line, "{x:.1},{middle:.1} ");
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <circle cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"4\" fill=\"{colour}\"/>"
        );
        text(out, (x, bottom + 19.0), "middle", &point.at.to_string(), 13);
        text(out, (x, high - 8.0), "middle", &number(point.step_ms), 11);
    }
    let _ = writeln!(
        out,
        "<polyline points=\"{line}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
    );
}
