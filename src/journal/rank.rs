//! Where the threads of the journal stand among others.

use rustix::process::getpriority_process;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// From now on the thread that calls this interrupts nobody by waking up: it takes its turn when the one that runs is
/// done or its time is over. A sync wakes the journal several times, each time in the middle of somebody's call, and all of
/// them wait for the sync anyway. Where a core is free nothing changes; where the system refuses, nothing does either.
pub fn step_back() {
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
    // The two are set together, and the niceness is to stay what the operator made it.
    let stays = |priority: &ThreadPriority| match (priority.to_posix(policy), getpriority_process(None)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    };
    let all = (0..=99u8).filter_map(|value| ThreadPriorityValue::try_from(value).ok());
    let Some(priority) = all.map(ThreadPriority::Crossplatform).find(stays) else {
        return;
    };
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), priority, policy) {
        tracing::debug!(%error, "this thread keeps its scheduling policy");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thread_priority::thread_schedule_policy;

    #[test]
    fn only_the_thread_that_asks_steps_back_and_keeps_its_niceness() {
        let of_this = || (thread_schedule_policy().ok(), getpriority_process(None).ok());
        let before = of_this();
        let batch = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
        let stepped = std::thread::spawn(move || {
            step_back();
            of_this()
        });
        assert_eq!(stepped.join().unwrap(), (Some(batch), before.1));
        assert_eq!(of_this(), before);
    }
}
