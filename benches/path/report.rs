//! What the windows gave: a line for each, and at the end the least and the median of each scenario.

use super::cpu::Cpu;

/// Microseconds of processor time per call.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub path: f64,
    pub journal: f64,
    pub shipper: f64,
    pub sqlite: f64,
    pub calls_per_second: f64,
}

impl Cost {
    /// Path and journal are counted for the calls of the window; shipping runs behind, so it is counted until all records are
    /// shipped, and for all the calls that made them.
    pub fn new(window: Cpu, calls: u64, until_shipped: Cpu, all_calls: u64, seconds: f64) -> Self {
        let each = |nanoseconds: u64, calls: u64| nanoseconds as f64 / 1_000.0 / calls as f64;
        Self {
            path: each(window.path, calls),
            journal: each(window.journal, calls),
            shipper: each(until_shipped.shipper, all_calls),
            sqlite: each(until_shipped.sqlite, all_calls),
            calls_per_second: calls as f64 / seconds,
        }
    }

    pub fn total(&self) -> f64 {
        self.path + self.journal + self.shipping()
    }

    pub fn shipping(&self) -> f64 {
        self.shipper + self.sqlite
    }
}

/// All rounds of one scenario, or of the passthrough.
pub struct Series {
    pub name: String,
    pub costs: Vec<Cost>,
}

impl Series {
    pub fn new(name: String) -> Self {
        Self { name, costs: Vec::new() }
    }

    /// The round that cost least.
    pub fn least(&self) -> Cost {
        let least = self.costs.iter().min_by(|a, b| a.total().total_cmp(&b.total()));
        *least.expect("a round was run")
    }

    /// The least of this beside the least of another.
    pub fn ratio(&self, to: &Series) -> f64 {
        self.least().total() / to.least().total()
    }

    /// The median over the rounds.
    pub fn median_ratio(&self, to: &Series) -> f64 {
        median(
            self.costs
                .iter()
                .zip(&to.costs)
                .map(|(cost, to)| cost.total() / to.total())
                .collect(),
        )
    }

    pub fn median_total(&self) -> f64 {
        median(self.costs.iter().map(Cost::total).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub fn heads() {
    println!(
        "{:<52} {:>7} {:>8} {:>9} {:>7} {:>8}",
        "us of processor time per call", "path", "journal", "shipping", "total", "calls/s"
    );
}

pub fn line(name: &str, cost: &Cost) {
    println!(
        "{name:<52} {:>7.1} {:>8.1} {:>9.1} {:>7.1} {:>8.0}",
        cost.path,
        cost.journal,
        cost.shipping(),
        cost.total(),
        cost.calls_per_second
    );
}

/// The least round of a scenario, and how many times the passthrough it is.
pub fn summary(series: &Series, passthrough: &Series) {
    let least = series.least();
    line(&series.name, &least);
    println!(
        "    the whole process is {:.2} times the passthrough (median of the rounds {:.2}, {:.1} us); shipping: {:.1} us reading and sending, {:.1} us SQLite",
        series.ratio(passthrough),
        series.median_ratio(passthrough),
        series.median_total(),
        least.shipper,
        least.sqlite,
    );
}
