//! The cluster of the tests.

pub fn admin_url() -> String {
    std::env::var("GUARDIAN_TEST_POSTGRES").expect("tests/run starts the cluster")
}
