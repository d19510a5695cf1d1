//! Whatever somebody may have typed into a configuration file: it is read, or refused with a line.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(error) = backup_cli::check_config_text(text) {
        assert!(error.to_string().starts_with("backup.toml:"), "{error}");
    }
});
