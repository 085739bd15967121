//! The scheduling policy of the threads that write and ship records.

use rustix::process::getpriority_process;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};

/// Gives the calling thread the policy `SCHED_BATCH`: when it wakes up, it no longer preempts the running thread but
/// waits for its turn. A sync wakes the journal several times while other threads serve calls, and those calls wait for
/// the sync anyway. With a core free this changes nothing; if the system refuses the policy, the thread keeps its old
/// one.
pub fn lower_priority() {
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Batch);
    // One call sets policy and niceness, so look for the value that keeps the niceness the operator chose.
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
            lower_priority();
            of_this()
        });
        assert_eq!(stepped.join().unwrap(), (Some(batch), before.1));
        assert_eq!(of_this(), before);
    }
}
