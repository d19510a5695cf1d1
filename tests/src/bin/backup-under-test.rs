//! The program as it is shipped, in this package: cargo tells a test where a binary is only if both are in one package.
//!
//! With `BACKUP_TEST_PANIC` in its environment it panics, where only a bug could make it: it starts the log, and finds that somebody has.

fn main() -> std::process::ExitCode {
    if std::env::var_os("BACKUP_TEST_PANIC").is_some() {
        let _ = tracing::subscriber::set_global_default(tracing::subscriber::NoSubscriber::new());
    }
    backup_cli::main()
}
