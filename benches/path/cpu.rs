//! The processor time of a process by what its threads do. All of its threads are counted.

use std::collections::HashMap;
use std::ops::Sub;

/// Nanoseconds on a processor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// The threads that serve calls, and everything that is not one of those below.
    pub path: u64,
    pub journal: u64,
    /// The thread that reads the journal's records back and has them inserted, and its helpers.
    pub shipper: u64,
    /// SQLite's own thread. Postgres has a process instead, which is not counted.
    pub sqlite: u64,
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, before: Cpu) -> Cpu {
        Cpu {
            path: self.path - before.path,
            journal: self.journal - before.journal,
            shipper: self.shipper - before.shipper,
            sqlite: self.sqlite - before.sqlite,
        }
    }
}

/// Adds up what each thread ran from one sample to the next. The kernel forgets a thread that has ended, and Guardian's helper
/// threads end when they had nothing to do for ten seconds: samples closer than that miss nothing.
pub struct Meter {
    pid: u32,
    threads: HashMap<String, u64>,
    sum: Cpu,
}

impl Meter {
    pub fn new(pid: u32) -> Self {
        let mut meter = Self {
            pid,
            threads: HashMap::new(),
            sum: Cpu::default(),
        };
        meter.sample();
        meter
    }

    /// Since the meter was made, or longer: only differences count.
    pub fn sample(&mut self) -> Cpu {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the process is alive");
        for thread in threads.flatten() {
            let (Ok(name), Ok(stat)) = (
                std::fs::read_to_string(thread.path().join("comm")),
                std::fs::read_to_string(thread.path().join("schedstat")),
            ) else {
                continue; // it has just ended
            };
            let ran = stat.split(' ').next().and_then(|ran| ran.parse().ok());
            let ran: u64 = ran.expect("schedstat begins with nanoseconds");
            let before = self.threads.insert(thread.file_name().to_string_lossy().into_owned(), ran);
            let more = ran - before.unwrap_or_default();
            match name.as_str() {
                name if name.starts_with("journal") => self.sum.journal += more,
                name if name.starts_with("shipper") => self.sum.shipper += more,
                name if name.starts_with("sqlx-sqlite") => self.sum.sqlite += more,
                _ => self.sum.path += more,
            }
        }
        self.sum
    }
}
