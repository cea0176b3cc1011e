//! A report as one SVG: throughput against distinct adapters, and how end-to-end times are distributed.

use std::fmt::Write;

use super::report::Report;

const WIDTH: f64 = 1090.0;
const HEIGHT: f64 = 470.0;
const PLOT: (f64, f64) = (440.0, 300.0);
const TOP: f64 = 90.0;
/// Told apart by people who see colours differently.
pub(crate) const COLOURS: [&str; 8] =
    ["#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];

/// The beginning of a picture of this size.
pub(crate) fn begin(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

/// The picture.
pub fn svg(report: &Report) -> String {
    let mut out = begin(WIDTH, HEIGHT);
    let title = format!(
        "{}, shape {}, {} rounds of {} requests",
        report.base_model, report.shape, report.rounds, report.requests
    );
    text(&mut out, (WIDTH / 2.0, 28.0), "middle", &title, 16);
    throughput(&mut out, report);
    latency(&mut out, report);
    out.push_str("</svg>\n");
    out
}

/// Median over rounds as a dot, smallest to largest as a bar.
fn throughput(out: &mut String, report: &Report) {
    let rates = report.mixes.iter().map(|mix| {
        let mut rates: Vec<f64> = mix.rounds.iter().map(|r| r.output_tokens_per_s).collect();
        rates.sort_by(f64::total_cmp);
        rates
    });
    let rates: Vec<Vec<f64>> = rates.collect();
    let most = rates.iter().filter_map(|rates| rates.last().copied()).fold(1.0, f64::max);
    let mut counts: Vec<usize> = report.mixes.iter().map(|mix| mix.adapters).collect();
    counts.sort_unstable();
    counts.dedup();
    let plot = Plot { left: 80.0, top_value: ceiling(most) };
    plot.frame(out, "Output tokens per second", "distinct adapters (0: base)", "");
    let step = PLOT.0 / counts.len() as f64;
    for (place, count) in counts.iter().enumerate() {
        let x = plot.left + step * (place as f64 + 0.5);
        text(out, (x, TOP + PLOT.1 + 20.0), "middle", &count.to_string(), 13);
    }
    for (index, (mix, rates)) in report.mixes.iter().zip(&rates).enumerate() {
        let place = counts.iter().position(|&count| count == mix.adapters).unwrap_or(0);
        // Mixes over as many adapters stand beside each other.
        let same = || report.mixes.iter().enumerate().filter(|(_, m)| m.adapters == mix.adapters);
        let (before, all) = (same().filter(|&(i, _)| i < index).count(), same().count());
        let shift =
            (before as f64 - (all as f64 - 1.0) / 2.0) * (step / (all as f64 + 1.0)).min(30.0);
        let x = plot.left + step * (place as f64 + 0.5) + shift;
        let (low, high) = (rates.first().copied(), rates.last().copied());
        let (low, high) = (plot.y(low.unwrap_or(0.0)), plot.y(high.unwrap_or(0.0)));
        let middle = plot.y(super::stats::percentile(rates, 50.0));
        let colour = COLOURS[index % COLOURS.len()];
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{low:.1}\" y2=\"{high:.1}\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <circle cx=\"{x:.1}\" cy=\"{middle:.1}\" r=\"5\" fill=\"{colour}\"/>"
        );
        text(
            out,
            (x, high - 8.0),
            "middle",
            &format!("{:.2}", mix.ratio_to_base.output_tokens_per_s.of_medians),
            11,
        );
    }
    let note = "dot: median of rounds, bar: least to most, number: share of base";
    text(out, (plot.left + PLOT.0 / 2.0, TOP + PLOT.1 + 62.0), "middle", note, 11);
}

/// Share of requests that took at most so long.
fn latency(out: &mut String, report: &Report) {
    let plot = Plot { left: 600.0, top_value: 100.0 };
    plot.frame(out, "Requests done by then", "end-to-end time in ms", "%");
    let longest = report.mixes.iter().filter_map(|mix| mix.e2e_ms.last().copied());
    let longest = ceiling(longest.fold(1.0, f64::max));
    let x = |ms: f64| plot.left + ms / longest * PLOT.0;
    for part in 0..=4 {
        let ms = longest * f64::from(part) / 4.0;
        text(out, (x(ms), TOP + PLOT.1 + 20.0), "middle", &number(ms), 13);
    }
    for (index, mix) in report.mixes.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let total = mix.e2e_ms.len().max(1) as f64;
        let mut points = format!("{:.1},{:.1}", plot.left, plot.y(0.0));
        for (done, &ms) in mix.e2e_ms.iter().enumerate() {
            let (from, to) = (done as f64 / total * 100.0, (done + 1) as f64 / total * 100.0);
            let _ = write!(points, " {0:.1},{1:.1} {0:.1},{2:.1}", x(ms), plot.y(from), plot.y(to));
        }
        let _ = writeln!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>"
        );
        let (x, y) = (plot.left + 14.0, TOP + 16.0 + 18.0 * index as f64);
        let _ =
            writeln!(out, "<circle cx=\"{x}\" cy=\"{:.1}\" r=\"5\" fill=\"{colour}\"/>", y - 4.0);
        text(out, (x + 12.0, y), "start", &mix.mix, 12);
    }
}

/// Axes that start at zero.
struct Plot {
    left: f64,
    top_value: f64,
}

impl Plot {
    fn y(&self, value: f64) -> f64 {
        TOP + PLOT.1 * (1.0 - value / self.top_value)
    }

    fn frame(&self, out: &mut String, title: &str, label: &str, unit: &str) {
        let (left, right) = (self.left, self.left + PLOT.0);
        text(out, (left + PLOT.0 / 2.0, TOP - 24.0), "middle", title, 14);
        text(out, (left + PLOT.0 / 2.0, TOP + PLOT.1 + 42.0), "middle", label, 13);
        for part in 0..=4 {
            let value = self.top_value * f64::from(part) / 4.0;
            let y = self.y(value);
            let _ = writeln!(
                out,
                "<line x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#dddddd\"/>"
            );
            text(out, (left - 8.0, y + 4.0), "end", &format!("{}{unit}", number(value)), 13);
        }
        let bottom = self.y(0.0);
        let _ = writeln!(
            out,
            "<polyline points=\"{left},{TOP} {left},{bottom} {right},{bottom}\" fill=\"none\" stroke=\"#444444\"/>"
        );
    }
}

pub(crate) fn text(out: &mut String, (x, y): (f64, f64), anchor: &str, text: &str, size: u32) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>"
    );
}

pub(crate) fn number(value: f64) -> String {
    if value < 10.0 && value.fract() != 0.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// A number above `value`, with a little air, whose quarters are short.
pub(crate) fn ceiling(value: f64) -> f64 {
    let value = value * 1.05;
    let power = 10f64.powf(value.log10().floor());
    let step = [1.0, 1.2, 1.6, 2.0, 2.4, 3.2, 4.0, 6.0, 8.0, 10.0]
        .into_iter()
        .find(|step| step * power >= value);
    step.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers_above() {
        for (value, end) in
            [(0.9, 1.0), (1.0, 1.2), (130.0, 160.0), (199.0, 240.0), (950.0, 1000.0)]
        {
            assert!((ceiling(value) - end).abs() < 1e-9, "{value}: {}", ceiling(value));
        }
    }

    #[test]
    fn text_cannot_break_the_picture() {
        let mut out = String::new();
        text(&mut out, (0.0, 0.0), "end", "a<b>&", 1);
        assert!(out.contains("a&lt;b&gt;&amp;"));
    }
}
