//! The binary: see [`backup_cli`].

fn main() -> std::process::ExitCode {
    backup_cli::main()
}
