//! Numbers from times.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Test {
    /// One way of a message, half of its round trip
    Latency,
    /// One side sends, as fast as it can
    Bandwidth,
    /// Both sides send at once
    Bibandwidth,
    /// Messages a second, one side sending
    Rate,
    /// As bandwidth, between half of the processes and the other half at once
    Pairs,
    /// Every process sends to every other
    Alltoall,
}

impl Test {
    pub(super) const ALL: [Self; 6] =
        [Self::Latency, Self::Bandwidth, Self::Bibandwidth, Self::Rate, Self::Pairs, Self::Alltoall];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
            Self::Bibandwidth => "bibandwidth",
            Self::Rate => "rate",
            Self::Pairs => "pairs",
            Self::Alltoall => "alltoall",
        }
    }

    /// What its figures are in.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Latency | Self::Alltoall => "µs",
            Self::Bandwidth | Self::Bibandwidth | Self::Pairs => "MiB/s",
            Self::Rate => "messages/s",
        }
    }

    /// Whether less is better.
    pub(super) fn is_time(self) -> bool {
        matches!(self, Self::Latency | Self::Alltoall)
    }

    /// The figure for `count` messages of `size` bytes, sent by each of `senders`, that took so long.
    pub(super) fn figure(self, took: Duration, size: u64, count: usize, senders: usize) -> f64 {
        let seconds = took.as_secs_f64().max(1e-12);
        let bytes = (size * count as u64 * senders as u64) as f64;
        match self {
            // A round trip of one message.
            Self::Latency => seconds / count as f64 / 2.0 * 1e6,
            Self::Alltoall => seconds / count as f64 * 1e6,
            Self::Bandwidth | Self::Pairs | Self::Bibandwidth => bytes / seconds / f64::from(1 << 20),
            Self::Rate => count as f64 / seconds,
        }
    }
}

/// How figures are spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) count: usize,
    pub(super) mean: f64,
    /// Half of the interval in which the mean lies with 95 % confidence, as far as batches are independent.
    pub(super) ci95: f64,
    pub(super) p50: f64,
    /// Of rates, which are better the higher they are, the percentiles count from above: 90 % are at
    /// least `p90`.
    pub(super) p90: f64,
    pub(super) p99: f64,
    /// The worst.
    pub(super) worst: f64,
}

impl Spread {
    /// Of the figures of each batch; `None` of none.
    pub(super) fn of(batches: &[Vec<f64>], is_time: bool) -> Option<Self> {
        let mut all: Vec<f64> = batches.iter().flatten().copied().collect();
        if all.is_empty() {
            return None;
        }
        all.sort_by(f64::total_cmp);
        if !is_time {
            all.reverse();
        }
        let at = |part: f64| all[((all.len() - 1) as f64 * part).round() as usize];
        let mean_of = |figures: &[f64]| figures.iter().sum::<f64>() / figures.len() as f64;
        // Figures of one batch share its luck: batches are what is independent.
        let means: Vec<f64> = match batches {
            [one] => one.clone(),
            many => many.iter().filter(|batch| !batch.is_empty()).map(|batch| mean_of(batch)).collect(),
        };
        let centre = mean_of(&means);
        let variance =
            means.iter().map(|m| (m - centre).powi(2)).sum::<f64>() / (means.len().max(2) - 1) as f64;
        let ci95 = student(means.len()) * (variance / means.len() as f64).sqrt();
        Some(Self {
            count: all.len(),
            mean: mean_of(&all),
            ci95,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            worst: at(1.0),
        })
    }
}

/// Student's t for 95 % of the mean of `count` figures.
fn student(count: usize) -> f64 {
    const T: [f64; 10] = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23];
    match count {
        0 | 1 => f64::INFINITY,
        few => T.get(few - 2).copied().unwrap_or(if few < 30 { 2.09 } else { 1.96 }),
    }
}

/// One line of a report.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) transport: String,
    pub(super) test: Test,
    pub(super) size: u64,
    pub(super) unit: &'static str,
    /// Over Rankine's connections.
    pub(super) rankine: Spread,
    /// What it is compared with.
    pub(super) baseline: Option<&'static str>,
    /// Over the bare fabric.
    pub(super) bare: Option<Spread>,
    /// Median by median; of times above 1, of rates below 1 is what Rankine costs.
    pub(super) ratio: Option<f64>,
    /// Part of a core that the leading side used, and the other.
    pub(super) cpu: [f64; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_the_names_say() {
        let second = Duration::from_secs(1);
        assert_eq!(Test::Latency.figure(second, 8, 1, 1), 500_000.0);
        assert_eq!(Test::Bandwidth.figure(second, 1 << 20, 10, 1), 10.0);
        assert_eq!(Test::Bibandwidth.figure(second, 1 << 20, 10, 2), 20.0);
        assert_eq!(Test::Rate.figure(second, 8, 1000, 1), 1000.0);
        assert_eq!(Test::Alltoall.figure(second, 8, 10, 3), 100_000.0);
    }

    #[test]
    fn the_worst_of_times_is_the_greatest_and_of_rates_the_least() {
        let batches = [vec![1.0, 2.0, 3.0], vec![4.0, 5.0]];
        let times = Spread::of(&batches, true).unwrap();
        assert_eq!((times.p50, times.p90, times.worst, times.count), (3.0, 5.0, 5.0, 5));
        let rates = Spread::of(&batches, false).unwrap();
        assert_eq!((rates.p50, rates.p90, rates.worst), (3.0, 1.0, 1.0));
        assert_eq!(times.mean, 3.0);
        assert!(Spread::of(&[], true).is_none() && Spread::of(&[vec![]], true).is_none());
    }

    #[test]
    fn confidence_comes_from_what_batches_differ_by() {
        let same = Spread::of(&[vec![1.0, 3.0], vec![3.0, 1.0], vec![2.0, 2.0]], true).unwrap();
        assert_eq!(same.ci95, 0.0);
        let apart = Spread::of(&[vec![1.0], vec![2.0], vec![3.0]], true).unwrap();
        assert!((apart.ci95 - 4.30 / 3f64.sqrt()).abs() < 0.01, "{}", apart.ci95);
    }
}
