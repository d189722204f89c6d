//! Draining as a listener and its program see it.
use super::*;

#[tokio::test]
async fn a_drain_waits_for_work_and_forces_at_the_deadline() {
    let cases = [(Duration::from_secs(20), Drained::Finished), (Duration::from_millis(50), Drained::Forced)];
    for (deadline, expected) in cases {
        let (trigger, watch) = channel();
        let tasks = Tasks::new();
        let drain = watch.clone();
        tasks.spawn(async move {
            drain.signaled().await;
            drop(drain);
            if expected == Drained::Forced {
                std::future::pending::<()>().await;
            }
        });
        let listener = tokio::spawn(async move {
            watch.signaled().await;
            tasks.finish(&watch).await;
            tasks.len()
        });
        assert_eq!(trigger.drain(deadline).await, expected);
        assert_eq!(listener.await.expect("the listener does not panic"), 0, "{expected:?}");
    }
}

#[tokio::test]
async fn a_kept_watch_does_not_hang_the_program() {
    let (trigger, watch) = channel();
    assert!(!watch.is_signaled());
    assert_eq!(trigger.drain(Duration::from_millis(10)).await, Drained::Forced);
    assert!(watch.is_signaled());
}

#[tokio::test]
async fn a_task_that_panics_leaves_the_list() {
    let (trigger, watch) = channel();
    let tasks = Tasks::new();
    tasks.spawn(async { panic!("on purpose") });
    tasks.finish(&watch).await;
    assert!(tasks.is_empty());
    drop(trigger);
    watch.forced().await;
}

#[test]
fn a_runtime_that_shuts_down_does_not_hang_on_new_tasks() {
    let tasks = Tasks::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let handle = runtime.handle().clone();
    drop(runtime);
    let _entered = handle.enter();
    tasks.spawn(async {});
    assert!(tasks.is_empty());
}
