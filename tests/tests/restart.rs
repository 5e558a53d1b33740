//! Restarts of the adapter under live sessions: under load over any device, all else over software devices of their own.

fn main() -> std::process::ExitCode {
    tests::suite::run("restart", tests::restart::ANY, &tests::restart::software())
}
