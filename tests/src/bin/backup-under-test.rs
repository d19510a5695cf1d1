//! The program as it is shipped, in this package: cargo tells a test where a binary is only if both are in one package.

fn main() -> std::process::ExitCode {
    backup_cli::main()
}
