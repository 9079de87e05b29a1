//! Efficiency against granularity, a line a pattern.

use plotters::prelude::*;

use crate::{
    Error,
    metg::{EFFECTIVE, Swept},
};

/// Told apart in print and by those who see fewer of them (Okabe and Ito's).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const SIZE: (u32, u32) = (860, 480);

/// The plot of some sweeps, as SVG.
///
/// # Errors
/// If it cannot be drawn.
pub fn plot(title: &str, sweeps: &[Swept]) -> Result<String, Error> {
    let mut svg = String::new();
    draw(&mut svg, title, sweeps).map_err(|error| Error::Plot(error.to_string()))?;
    Ok(svg)
}

fn draw(svg: &mut String, title: &str, sweeps: &[Swept]) -> Result<(), Box<dyn std::error::Error>> {
    let granularities = || sweeps.iter().flat_map(|swept| swept.points.iter().map(|p| p.granularity * 1e6));
    let least = granularities().fold(f64::INFINITY, f64::min).clamp(1e-3, 1e9);
    let most = granularities().fold(0.0, f64::max).max(least * 2.0);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d((least..most).log_scale(), 0.0..1.1)?;
    chart
        .configure_mesh()
        .x_desc("mean granularity of a task, µs")
        .y_desc("efficiency")
        .x_label_formatter(&|granularity| format!("{granularity:.0}"))
        .y_label_formatter(&|efficiency| format!("{:.0} %", efficiency * 100.0))
        .bold_line_style(RGBColor(215, 215, 215))
        .light_line_style(RGBColor(242, 242, 242))
        .label_style(("sans-serif", 13))
        .draw()?;
    let half = [(least, EFFECTIVE), (most, EFFECTIVE)];
    chart.draw_series(DashedLineSeries::new(half, 6, 5, RGBColor(110, 110, 110).stroke_width(1)))?;
    for (place, swept) in sweeps.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        // Beyond the colours that there are, thin lines.
        let style = colour.stroke_width(if place < COLOURS.len() { 2 } else { 1 });
        let line = swept.points.iter().map(|point| (point.granularity * 1e6, point.efficiency));
        chart
            .draw_series(LineSeries::new(line.clone(), style))?
            .label(swept.label())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        chart.draw_series(line.map(|place| Circle::new(place, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 12))
        .draw()?;
    area.present()?;
    Ok(())
}
