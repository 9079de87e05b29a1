//! A report with plots: one HTML file that needs nothing else.

use plotters::prelude::*;

use super::{
    figures::{Row, Test},
    report::{sentences, show},
    show_size,
};
use crate::{Error, Result};

/// Colours that are told apart in print and by those who see fewer of them (Okabe and Ito's), one a
/// transport.
const COLOURS: [(&str, RGBColor); 5] = [
    ("inproc", RGBColor(0, 0, 0)),
    ("shm", RGBColor(0, 158, 115)),
    ("verbs", RGBColor(213, 94, 0)),
    ("mpi", RGBColor(204, 121, 167)),
    ("tcp", RGBColor(0, 114, 178)),
];
const SIZE: (u32, u32) = (760, 420);

const STYLE: &str = "\
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin: 2em 0 .3em; }
figure { margin: 0 0 1em; } svg { max-width: 100%; height: auto; }
.key { display: flex; flex-wrap: wrap; gap: .2em 1.4em; padding: 0; list-style: none; }
.key b { display: inline-block; width: 2em; height: 0; border-top: 3px solid; vertical-align: middle; margin-right: .5em; }
.key .bare { border-top-style: dashed; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15em .7em; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; } h2 { break-after: avoid; } }";

/// The page of these figures.
///
/// # Errors
/// If a plot cannot be drawn.
pub(super) fn page(context: &str, rows: &[Row], absent: &[(String, String)]) -> Result<String> {
    let mut body = String::new();
    body += &format!("<h1>Transports of Rankine</h1>\n<p>{}</p>\n<ul>\n", escape(context));
    for sentence in sentences(rows) {
        body += &format!("<li>{}</li>\n", escape(&sentence));
    }
    for (scheme, reason) in absent {
        body += &format!("<li>{}: not measured: {}</li>\n", escape(scheme), escape(reason));
    }
    body += "</ul>\n";
    for test in Test::ALL {
        let of_test: Vec<&Row> = rows.iter().filter(|row| row.test == test).collect();
        if of_test.is_empty() {
            continue;
        }
        let better = if test.is_time() { "less" } else { "more" };
        body += &format!("<h2 id=\"{0}\">{0}, {1} ({better} is better)</h2>\n", test.name(), test.unit());
        body += &key(&of_test);
        body += &format!("<figure>{}</figure>\n", draw(test, &of_test)?);
        body += &table(test, &of_test);
    }
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Transports of Rankine</title>\n\
         <style>\n{STYLE}\n</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn colour(transport: &str) -> RGBColor {
    COLOURS.iter().find(|(name, _)| *name == transport).map_or(RGBColor(110, 110, 110), |(_, colour)| *colour)
}

fn transports<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
    let mut names: Vec<&str> = rows.iter().map(|row| &*row.transport).collect();
    names.dedup();
    names
}

fn key(rows: &[&Row]) -> String {
    let mut items = String::new();
    for transport in transports(rows) {
        let RGBColor(r, g, b) = colour(transport);
        let baseline = rows.iter().find(|row| row.transport == transport).and_then(|row| row.baseline);
        items += &format!("<li><b style=\"color:rgb({r},{g},{b})\"></b>{}</li>\n", escape(transport));
        if let Some(baseline) = baseline {
            let baseline = escape(baseline);
            items += &format!("<li><b class=\"bare\" style=\"color:rgb({r},{g},{b})\"></b>{baseline}</li>\n");
        }
    }
    format!("<ul class=\"key\">\n{items}</ul>\n")
}

/// Figures over sizes, both axes logarithmic; a line a transport, what it is compared with dashed.
fn draw(test: Test, rows: &[&Row]) -> Result<String> {
    let failed =
        |e: &dyn std::fmt::Display| Error::Usage(format!("cannot draw the plot of {}: {e}", test.name()));
    let positive = |size: u64| size.max(1) as f64;
    let figures = || rows.iter().flat_map(|row| [Some(row.rankine.p50), row.bare.map(|b| b.p50)]).flatten();
    let least = figures().fold(f64::INFINITY, f64::min).max(1e-6);
    let most = figures().fold(0.0, f64::max).max(least * 1.0001);
    let decade = |figure: f64, up: bool| {
        let exponent = figure.log10();
        10f64.powf(if up { exponent.ceil() } else { exponent.floor() })
    };
    let (bottom, mut top) = (decade(least, false), decade(most, true));
    if top <= bottom {
        top = bottom * 10.0;
    }
    let sizes = || rows.iter().map(|row| positive(row.size));
    let left = sizes().fold(f64::INFINITY, f64::min);
    let right = sizes().fold(0.0, f64::max).max(left * 2.0);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|e| failed(&e))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(78)
            .build_cartesian_2d((left..right).log_scale().base(2.0), (bottom..top).log_scale())
            .map_err(|e| failed(&e))?;
        chart
            .configure_mesh()
            .x_desc("size of a message")
            .y_desc(test.unit())
            .x_labels(12)
            .y_labels(10)
            .x_label_formatter(&|size| show_size(size.round() as u64))
            .y_label_formatter(&|figure| show(*figure).trim_end_matches(".00").to_owned())
            .bold_line_style(RGBColor(215, 215, 215))
            .light_line_style(RGBColor(242, 242, 242))
            .label_style(("sans-serif", 13))
            .draw()
            .map_err(|e| failed(&e))?;
        for transport in transports(rows) {
            let of: Vec<&&Row> = rows.iter().filter(|row| row.transport == transport).collect();
            let style = colour(transport).stroke_width(2);
            let line: Vec<(f64, f64)> = of.iter().map(|row| (positive(row.size), row.rankine.p50)).collect();
            chart.draw_series(LineSeries::new(line.iter().copied(), style)).map_err(|e| failed(&e))?;
            let dots = line.iter().map(|&place| Circle::new(place, 3, colour(transport).filled()));
            chart.draw_series(dots).map_err(|e| failed(&e))?;
            let bare = of.iter().filter_map(|row| Some((positive(row.size), row.bare?.p50)));
            let dashed = DashedLineSeries::new(bare, 6, 5, colour(transport).stroke_width(1));
            chart.draw_series(dashed).map_err(|e| failed(&e))?;
        }
        area.present().map_err(|e| failed(&e))?;
    }
    // A plot fits the page's width: its own size is only its shape.
    let (width, height) = SIZE;
    let fixed = format!("width=\"{width}\" height=\"{height}\"");
    let label = format!("role=\"img\" aria-label=\"{} over size\"", test.name());
    Ok(svg.replacen(&fixed, &label, 1))
}

fn table(test: Test, rows: &[&Row]) -> String {
    let worst = if test.is_time() { "max" } else { "min" };
    let mut text = format!(
        "<div class=\"wide\"><table>\n<tr><th>transport</th><th>size</th><th>p50</th><th>p90</th><th>p99</th>\
         <th>{worst}</th><th>mean ± 95 %</th><th>cpu</th><th class=\"text\">beside</th><th>p50</th><th>ratio</th></tr>\n"
    );
    for row in rows {
        let spread = &row.rankine;
        text += &format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{} ± {}</td>\
             <td>{:.0} %, {:.0} %</td><td class=\"text\">{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&row.transport),
            show_size(row.size),
            show(spread.p50),
            show(spread.p90),
            show(spread.p99),
            show(spread.worst),
            show(spread.mean),
            show(spread.ci95),
            row.cpu[0] * 100.0,
            row.cpu[1] * 100.0,
            escape(row.baseline.unwrap_or("-")),
            row.bare.map_or("-".into(), |bare| show(bare.p50)),
            row.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
        );
    }
    text + "</table></div>\n"
}
