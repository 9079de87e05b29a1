//! Figures as a table, CSV or JSON.

use serde::Serialize;

use super::{
    figures::{Row, Test},
    show_size,
    transport::Format,
};
use crate::{Error, Result, cli::columns};

/// A size from which on bandwidth is that of chunks.
const BIG: u64 = 1 << 20;

/// All figures in a format, and the transports that there are none of.
pub(super) fn write(rows: &[Row], absent: &[(String, String)], format: Format) -> Result<String> {
    match format {
        Format::Table => Ok(table(rows, absent)),
        Format::Csv => Ok(csv(rows)),
        Format::Json => {
            #[derive(Serialize)]
            struct Report<'a> {
                figures: &'a [Row],
                absent: &'a [(String, String)],
            }
            let text = serde_json::to_string_pretty(&Report { figures: rows, absent });
            Ok(text.map_err(|e| Error::Usage(e.to_string()))? + "\n")
        }
    }
}

/// A figure with three digits that tell something.
pub(super) fn show(figure: f64) -> String {
    match figure.abs() {
        big if big >= 1000.0 => {
            let whole = format!("{figure:.0}");
            let digits = whole.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect::<Vec<_>>();
            digits.join(",")
        }
        some if some >= 100.0 => format!("{figure:.0}"),
        some if some >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

fn table(rows: &[Row], absent: &[(String, String)]) -> String {
    let mut text = String::new();
    for test in Test::ALL {
        let of_test: Vec<&Row> = rows.iter().filter(|row| row.test == test).collect();
        if of_test.is_empty() {
            continue;
        }
        let worst = if test.is_time() { "max" } else { "min" };
        let head =
            ["transport", "size", "p50", "p90", "p99", worst, "mean ±95%", "cpu", "beside", "p50", "ratio"];
        let mut lines = vec![head.map(String::from).to_vec()];
        for row in of_test {
            let spread = &row.rankine;
            lines.push(vec![
                row.transport.clone(),
                show_size(row.size),
                show(spread.p50),
                show(spread.p90),
                show(spread.p99),
                show(spread.worst),
                format!("{} ±{}", show(spread.mean), show(spread.ci95)),
                format!("{:.0}%/{:.0}%", row.cpu[0] * 100.0, row.cpu[1] * 100.0),
                row.baseline.unwrap_or("-").into(),
                row.bare.map_or("-".into(), |bare| show(bare.p50)),
                row.ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            ]);
        }
        text += &format!("{}, {}\n", test.name(), test.unit());
        text += &columns(&lines, |column| !matches!(column, 0 | 8));
        text.push('\n');
    }
    for sentence in sentences(rows) {
        text += &format!("{sentence}\n");
    }
    for (scheme, reason) in absent {
        text += &format!("{scheme}: not measured: {reason}\n");
    }
    text
}

/// What the figures of each transport say in words: what the fabric gives, what Rankine gets of it, and
/// where the rest goes.
pub(super) fn sentences(rows: &[Row]) -> Vec<String> {
    let mut transports: Vec<&str> = rows.iter().map(|row| &*row.transport).collect();
    transports.dedup();
    let mut told = Vec::new();
    for transport in transports {
        let of = |test: Test| rows.iter().filter(move |row| row.transport == transport && row.test == test);
        if let Some(row) = of(Test::Latency).min_by_key(|row| row.size) {
            let mut sentence =
                format!("{transport}: {} takes {} µs one way", show_size(row.size), show(row.rankine.p50));
            if let (Some(bare), Some(baseline)) = (row.bare, row.baseline) {
                let more = row.rankine.p50 - bare.p50;
                sentence += &format!(
                    ", {} µs {} than a {baseline}",
                    show(more.abs()),
                    if more < 0.0 { "less" } else { "more" }
                );
            }
            told.push(sentence + ".");
        }
        let sizes = of(Test::Latency).map(|row| row.size);
        // Nothing lies below a transport that hands chunks over: what it carries is not what bounds it.
        let hands_over =
            transport == "inproc" || of(Test::Bandwidth).any(|row| row.baseline == Some("memcpy"));
        if hands_over
            && let Some(row) = sizes.max().and_then(|most| of(Test::Latency).find(|row| row.size == most))
        {
            let (size, taken) = (show_size(row.size), show(row.rankine.p50));
            told.push(format!(
                "{transport}: {size} take {taken} µs: chunks change hands, whatever their size."
            ));
        }
        let best = of(Test::Bandwidth).filter(|row| row.size >= BIG && !hands_over);
        if let Some(row) = best.max_by(|a, b| a.rankine.p50.total_cmp(&b.rankine.p50)) {
            let mut sentence = format!(
                "{transport}: chunks of {} go at {} MiB/s",
                show_size(row.size),
                show(row.rankine.p50)
            );
            if let (Some(ratio), Some(baseline)) = (row.ratio, row.baseline) {
                sentence += &format!(", {:.0} % of a {baseline}", ratio * 100.0);
            }
            let [sends, receives] = row.cpu;
            let bound = match (sends > 0.9, receives > 0.9) {
                (true, true) => {
                    "; both sides' cores are busy with it: more cores, not a faster link, would help"
                }
                (true, false) => "; the sender's core is what bounds it",
                (false, true) => "; the receiver's core is what bounds it",
                (false, false) => "; no core is what bounds it: the link is, or waiting",
            };
            told.push(sentence + bound + ".");
        }
    }
    told
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from(
        "transport,test,size,unit,count,mean,ci95,p50,p90,p99,worst,baseline,bare_p50,ratio,cpu_leads,cpu_follows\n",
    );
    for row in rows {
        let spread = &row.rankine;
        let optional = |figure: Option<f64>| figure.map_or(String::new(), |figure| figure.to_string());
        text += &format!(
            "{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
            row.transport,
            row.test.name(),
            row.size,
            row.unit,
            spread.count,
            spread.mean,
            spread.ci95,
            spread.p50,
            spread.p90,
            spread.p99,
            spread.worst,
            row.baseline.unwrap_or(""),
            optional(row.bare.map(|bare| bare.p50)),
            optional(row.ratio),
            row.cpu[0],
            row.cpu[1],
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_tell_something() {
        let shown: Vec<String> = [0.123, 12.34, 123.4, 1234.5, 1_234_567.0].into_iter().map(show).collect();
        assert_eq!(shown, ["0.12", "12.3", "123", "1,234", "1,234,567"]);
    }
}
