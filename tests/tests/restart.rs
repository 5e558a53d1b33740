//! Restarts of the adapter under live sessions, over software devices of their own.

fn main() -> std::process::ExitCode {
    tests::suite::run("restart", &[], &tests::restart::all())
}
