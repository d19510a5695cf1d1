//! What a user sees: help texts and error messages as snapshots, exit codes, and what goes to which stream.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A user with an empty home, and the program.
struct User {
    home: TempDir,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl User {
    fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    /// A user who has run `init`.
    fn with_repository() -> Self {
        let user = Self::new();
        assert_eq!(user.run(&["init"]).code, 0);
        user
    }

    fn path(&self) -> &Path {
        self.home.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backup"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path())
            .env("BACKUP_REPO", self.path().join("repository"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        self.ran(self.command(arguments).output().unwrap())
    }

    fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that refuses to read is what some tests are about.
        let _ = child.stdin.take().unwrap().write_all(input);
        self.ran(child.wait_with_output().unwrap())
    }

    fn ran(&self, output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace(&self.path().display().to_string(), "~");
        Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// A shell in which `$0` is the program.
    fn shell(&self, script: &str) -> Command {
        let program = self.command(&[]);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(program.get_program()).current_dir(self.path()).stdin(Stdio::null());
        shell.env_clear().envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell
    }

    fn run_in_shell(&self, script: &str) -> Ran {
        self.ran(self.shell(script).output().unwrap())
    }

    fn wait_for(&self, file: &str) {
        while !self.path().join(file).exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn signal(&self, child: &Child, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// What a failing command says, and its exit code.
    fn refusal(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.stdout, "", "{arguments:?}");
        format!("$ backup {}\n{}exit code {}\n\n", arguments.join(" "), ran.stderr, ran.code)
    }
}

#[test]
fn help_texts() {
    let user = User::new();
    for command in [
        "",
        "init",
        "save",
        "run",
        "list",
        "show",
        "restore",
        "verify",
        "copy",
        "wal",
        "wal check",
        "key",
        "key status",
        "key rotate",
        "key rewrap",
        "key retire",
        "config",
        "config show",
        "generate",
    ] {
        let arguments: Vec<&str> = command.split_whitespace().chain(["-h"]).collect();
        let ran = user.run(&arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
        insta::assert_snapshot!(format!("help {command}").trim().replace(' ', "_"), ran.stdout);
    }
    insta::assert_snapshot!("long_help", user.run(&["--help"]).stdout);
    // PostgreSQL must not take help for an archived or a restored file.
    for (command, code) in [("push", 1), ("fetch", 200)] {
        let ran = user.run(&["wal", command, "-h"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (code, ""));
        insta::assert_snapshot!(format!("help_wal_{command}"), ran.stdout);
    }
}

#[test]
fn slips_of_the_finger_are_usage_errors_with_hints() {
    let user = User::new();
    let refusals = [
        &["lst"][..],
        &["list", "--jsn"],
        &["save"],
        &["save", "app", "--level", "high"],
        &["save", "app", "--level", "20"],
        &["save", "app", "--codec", "gzip"],
        &["save", "app", "--memory", "lots"],
        &["save", "app", "--memory", "-1"],
        &["save", "app", "--workers", "-1"],
        &["save", "app", "--pg-dump", ""],
        &["save", "app", "--pg-dump", "dbname="],
        &["save", "app", "--directory", "/etc", "--pg-dump", "app"],
        &["save", "app", "--directory", "/etc", "--", "true"],
        &["save", "a/b"],
        &["save", "app", "--"],
        &["save", "app", "--", ""],
        &["restore", "app"],
        &["restore", "app", "--into", " "],
        &["restore", "app", "--to", "x", "--to-stdout"],
        &["restore", "app", "--to", "x", "--no-owner"],
        &["verify", "app", "--all"],
        &["--repo", "ftp://bucket", "list"],
        &["--repo", "s3:/bucket", "list"],
        &["--repo", "memory:", "init"],
        &["--repo", "~/backups", "init"],
        &["--repo", "s3://key:secret@bucket/x", "list"],
    ]
    .map(|arguments| user.refusal(arguments));
    insta::assert_snapshot!(refusals.concat());
}

#[test]
fn what_is_missing_or_wrong_is_told_with_its_exit_code() {
    let user = User::with_repository();
    let saved = user.run_with_input(&["save", "app"], b"data");
    std::fs::write(user.path().join("bad.toml"), "levl = 3\n").unwrap();
    let refusals = [
        &["--repo", "missing", "list"][..],
        &["list", "other"],
        &["show", "other"],
        &["restore", "app", "--to-stdout", "--stream", "other"],
        &["restore", "app", "--to-stdout", "--identity-file", "none.txt"],
        &["list", "--config", "none.toml"],
        &["list", "--config", "bad.toml"],
        &["save", "app", "--recipient", "age1nonsense"],
        &["save", "app", "--passphrase-command", "exit 7"],
        &["save", "app", "--", "/no/such/program"],
        &["save", "app", "--", "sh", "-c", "echo half; echo reason >&2; exit 4"],
        &["save", "app", "--directory", "/no/such/directory"],
        &["save", "app", "--memory", "8", "--directory", "/"],
        &["init", "--identity-file", "repository/key.txt"],
    ]
    .map(|arguments| user.refusal(arguments));
    insta::assert_snapshot!(refusals.concat().replace(saved.stdout.trim(), "ID"));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let user = User::with_repository();
    user.run_with_input(&["save", "app"], b"data");
    let key = user.path().join(".config/backup/identity.txt");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ran = user.run(&["restore", "app", "--to-stdout"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (12, ""));
    assert!(ran.stderr.contains("hint: chmod 600"), "{}", ran.stderr);
}

#[test]
fn another_users_key_does_not_open_a_backup() {
    let (user, other) = (User::with_repository(), User::with_repository());
    user.run_with_input(&["save", "app"], b"data");
    let key = other.path().join(".config/backup/identity.txt");
    let ran = user.run(&["restore", "app", "--to-stdout", "--identity-file", key.to_str().unwrap()]);
    assert_eq!((ran.code, ran.stdout.as_str()), (12, ""), "{}", ran.stderr);
}

#[test]
fn init_makes_a_key_once_and_none_where_a_recipient_is_given() {
    use std::os::unix::fs::PermissionsExt;
    let user = User::new();
    let first = user.run(&["init"]);
    assert_eq!((first.code, first.stdout.as_str()), (0, ""));
    assert!(first.stderr.contains("Keep a copy of ~/.config/backup/identity.txt elsewhere"), "{}", first.stderr);
    let key = user.path().join(".config/backup/identity.txt");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let made = std::fs::read_to_string(&key).unwrap();
    let again = user.run(&["init", "--json"]);
    assert_eq!(again.code, 0);
    assert!(again.stdout.contains("\"created\": false") && again.stdout.contains("\"identity_created\": false"));
    assert_eq!(std::fs::read_to_string(&key).unwrap(), made);

    let recipient = made.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    let writer = User::new();
    assert_eq!(writer.run(&["init", "--recipient", recipient]).code, 0);
    assert!(!writer.path().join(".config").exists());
    assert_eq!(writer.run_with_input(&["save", "app", "--recipient", recipient], b"data").code, 0);
    assert_eq!(writer.run(&["restore", "app", "--to-stdout"]).code, 12);
    assert_eq!(writer.run(&["verify", "app"]).code, 0);
}

#[test]
fn save_prints_the_id_and_nothing_else_on_standard_output() {
    let user = User::with_repository();
    let saved = user.run_with_input(&["save", "app"], b"some data");
    assert_eq!(saved.code, 0, "{}", saved.stderr);
    assert_eq!(saved.stdout.lines().count(), 1);
    assert!(saved.stderr.starts_with("saved app: 9 B of data"), "{}", saved.stderr);
    let quiet = user.run_with_input(&["save", "app", "-q"], b"some data");
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
    let restored = user.run(&["restore", saved.stdout.trim(), "--to-stdout"]);
    assert_eq!((restored.code, restored.stdout.as_str()), (0, "some data"));
}

#[test]
fn an_empty_stream_is_stored_and_said_to_be_empty() {
    let user = User::with_repository();
    let saved = user.run(&["save", "app"]);
    assert_eq!(saved.code, 0);
    assert!(saved.stderr.contains("the stream was empty"), "{}", saved.stderr);
    let restored = user.run(&["restore", "app", "--to-stdout"]);
    assert_eq!((restored.code, restored.stdout.as_str()), (0, ""));
}

#[test]
fn a_reader_that_goes_away_is_no_error_for_a_listing() {
    let user = User::with_repository();
    user.run_with_input(&["save", "app"], b"data");
    let mut child = user.command(&["list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = user.ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_flipped_byte_is_found_with_and_without_the_key() {
    let user = User::with_repository();
    let saved = user.run_with_input(&["save", "app"], &[7; 5000]);
    assert_eq!(user.run(&["verify", "app", "--deep"]).code, 0);
    let volume = user.path().join(format!("repository/app/backups/{}/data.00000.vol", saved.stdout.trim()));
    let mut bytes = std::fs::read(&volume).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&volume, bytes).unwrap();
    for arguments in
        [&["verify", "app"][..], &["verify", "--all", "--deep", "--json"], &["restore", "app", "--to-stdout"]]
    {
        let ran = user.run(arguments);
        assert_eq!(ran.code, 13, "{arguments:?}: {}", ran.stderr);
        assert!((ran.stdout + &ran.stderr).contains("data.00000.vol"), "{arguments:?}");
    }
}

#[test]
fn a_directory_comes_back_and_a_stream_becomes_a_file() {
    let user = User::with_repository();
    let tree = user.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/file"), "contents").unwrap();
    assert_eq!(user.run(&["save", "tree", "--directory", "tree"]).code, 0);
    let restored = user.run(&["restore", "tree", "--to", "back"]);
    assert_eq!(restored.code, 0, "{}", restored.stderr);
    assert_eq!(std::fs::read_to_string(user.path().join("back/sub/file")).unwrap(), "contents");

    assert_eq!(user.run_with_input(&["save", "app"], b"data").code, 0);
    assert_eq!(user.run(&["restore", "app", "--to", "files"]).code, 0);
    assert_eq!(std::fs::read_to_string(user.path().join("files/data")).unwrap(), "data");
    assert_eq!(user.run(&["restore", "app", "--to", "files"]).code, 2, "what exists is not overwritten");
}

#[test]
fn a_passphrase_encrypts_and_opens() {
    let user = User::new();
    let with = |arguments: &[&str]| {
        let phrase = ["--passphrase-command", "echo correct horse battery"];
        user.run_with_input(&[arguments, &phrase[..]].concat(), b"data")
    };
    assert_eq!(with(&["init"]).code, 0);
    assert!(!user.path().join(".config").exists());
    assert_eq!(with(&["save", "app"]).code, 0);
    assert_eq!(with(&["restore", "app", "--to-stdout"]).stdout, "data");
    assert_eq!(user.run(&["restore", "app", "--to-stdout", "--passphrase-command", "echo wrong"]).code, 12);
}

#[test]
fn the_passphrase_command_does_not_eat_what_is_backed_up() {
    let user = User::new();
    let phrase = ["--passphrase-command", "cat >&2; echo correct horse battery"];
    let with = |arguments: &[&str]| user.run_with_input(&[arguments, &phrase[..]].concat(), b"data");
    assert_eq!(with(&["init"]).code, 0);
    assert!(with(&["save", "app"]).stderr.starts_with("saved app: 4 B"));
    assert_eq!(with(&["restore", "app", "--to-stdout"]).stdout, "data");
}

#[test]
fn a_signal_is_answered_while_the_passphrase_command_runs() {
    let user = User::with_repository();
    let command = "touch started; exec sleep 60";
    let arguments = ["save", "app", "--passphrase-command", command];
    let mut child = user.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
    user.wait_for("started");
    user.signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_recipient_that_is_named_twice_is_one_recipient() {
    let user = User::with_repository();
    let key = std::fs::read_to_string(user.path().join(".config/backup/identity.txt")).unwrap();
    let recipient = key.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    user.run_with_input(&["save", "app", "-R", recipient, "-R", recipient], b"data");
    assert_eq!(user.run(&["show", "app"]).stdout.matches("age1").count(), 1);
}

#[test]
fn config_show_says_where_each_value_came_from() {
    let user = User::new();
    std::fs::write(
        user.path().join("backup.toml"),
        "level = 9\nmemory = \"64MiB\"\n[repository.s3]\nregion = \"eu\"\n",
    )
    .unwrap();
    let shown = user.run(&["config", "show", "--workers", "2", "--repo", "s3://backups/prod"]);
    assert_eq!(shown.code, 0);
    // Columns are as wide as the name of the temporary directory.
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = shown.stderr.lines().chain(shown.stdout.lines()).map(words).collect();
    insta::assert_snapshot!(lines.join("\n"));
    insta::assert_snapshot!(user.run(&["config", "show", "--json", "--repo", "s3://backups/prod"]).stdout);
    assert_eq!(user.run(&["config", "check"]).code, 0);
}

#[test]
fn config_show_tells_of_each_repository_that_is_used_and_of_its_kind_of_store() {
    let user = User::new();
    let text = "[repositories.here]\nurl = \"/srv\"\n[repositories.far]\nurl = \"s3://backups/far\"\n[repositories.far.s3]\n\
                profile = \"dr\"\nregion = \"eu\"\n[repositories.azure]\nurl = \"az://backups\"\ncapacity_warning = 90\n\
                [repositories.unused]\nurl = \"gs://backups\"\n";
    std::fs::write(user.path().join("backup.toml"), text).unwrap();
    let shown = user.run(&["config", "show", "--repo", "here", "--repo", "far", "--repo", "azure"]);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = shown.stdout.lines().filter(|line| line.starts_with("repositor")).map(words).collect();
    insta::assert_snapshot!(lines.join("\n"));
    std::fs::write(user.path().join("backup.toml"), text.replace("90", "101")).unwrap();
    let refused = user.run(&["config", "check"]);
    assert!(refused.code == 2 && refused.stderr.contains(":10: capacity_warning"), "{}", refused.stderr);
}

#[test]
fn sigterm_cancels_and_leaves_nothing_to_list() {
    let user = User::with_repository();
    let script = "touch started; exec sleep 60";
    let mut child = user.command(&["save", "app", "--", "sh", "-c", script]).stderr(Stdio::piped()).spawn().unwrap();
    user.wait_for("started");
    user.signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(user.run(&["list"]).stdout, "");
}

#[test]
fn a_hang_up_cancels_unless_it_is_to_be_ignored() {
    let user = User::with_repository();
    for (trap, code) in [("", 130), ("trap '' HUP;", 0)] {
        let command = "touch started; while [ ! -e go ]; do sleep 0.05; done";
        let script = format!("{trap} exec \"$0\" save app -- sh -c '{command}'");
        let mut child = user.shell(&script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        user.wait_for("started");
        user.signal(&child, "HUP");
        if code == 0 {
            std::thread::sleep(std::time::Duration::from_millis(100));
            assert_eq!(child.try_wait().unwrap(), None, "it goes on");
            std::fs::write(user.path().join("go"), "").unwrap();
        }
        assert_eq!(child.wait().unwrap().code(), Some(code), "{trap}");
        std::fs::remove_file(user.path().join("started")).unwrap();
    }
}

#[test]
fn an_output_that_leads_nowhere_is_told() {
    let user = User::with_repository();
    user.run_with_input(&["save", "app"], b"data");
    for (redirected, told) in
        [("--to-stdout >&-", true), ("--to-stdout <>/dev/null >&0", true), ("--to-stdout >/dev/null", false)]
    {
        let ran = user.run_in_shell(&format!("exec \"$0\" restore app {redirected}"));
        assert_eq!(ran.code, 0, "{redirected}: {}", ran.stderr);
        assert_eq!(ran.stderr.contains("goes nowhere"), told, "{redirected}: {}", ran.stderr);
    }
}

#[test]
fn names_that_are_not_utf8_are_saved_and_shown() {
    use std::os::unix::ffi::OsStrExt;
    let user = User::with_repository();
    let name = std::ffi::OsStr::from_bytes(b"na\xffme");
    let directory = user.path().join(name);
    std::fs::create_dir(&directory).unwrap();
    let ran = user.ran(user.command(&["save", "tree", "--directory"]).arg(&directory).output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    std::fs::write(directory.join("backup.toml"), "level = 1\n").unwrap();
    let config = directory.join("backup.toml");
    let ran = user.ran(user.command(&["config", "show", "--json", "--config"]).arg(&config).output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let key = directory.join("key.txt");
    let ran = user.ran(user.command(&["init", "--json", "--identity-file"]).arg(&key).output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn config_show_keeps_secrets() {
    let user = User::new();
    let environment = [("BACKUP_PASSPHRASE_COMMAND", "echo hush"), ("BACKUP_RECIPIENTS", "AGE-SECRET-KEY-1hush")];
    let ran = user.ran(user.command(&["config", "show"]).envs(environment).output().unwrap());
    assert!(ran.stdout.contains("echo …") && ran.stdout.contains("(not a recipient)"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("hush"), "{}", ran.stdout);
}

#[test]
fn show_says_why_a_key_that_is_there_does_not_do() {
    use std::os::unix::fs::PermissionsExt;
    let user = User::with_repository();
    user.run_with_input(&["save", "app"], b"data");
    let shown = user.run(&["show", "app"]);
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert!(shown.stdout.contains("authentic"), "{}", shown.stdout);
    let failing = user.run(&["show", "app", "--passphrase-command", "exit 7"]);
    assert_eq!(failing.code, 3);
    assert!(failing.stderr.contains("the passphrase command failed: exit status: 7"), "{}", failing.stderr);
    let key = user.path().join(".config/backup/identity.txt");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = user.run(&["show", "app", "--json"]);
    assert_eq!(open.code, 3);
    assert!(open.stdout.contains("\"authenticated\": false") && open.stderr.contains("chmod 600"), "{}", open.stderr);
    std::fs::remove_file(&key).unwrap();
    let keyless = user.run(&["show", "app"]);
    assert_eq!((keyless.code, keyless.stderr.as_str()), (0, ""));
}

#[test]
fn a_manifest_that_cannot_be_read_is_a_warning_of_every_listing() {
    let user = User::with_repository();
    let saved = user.run_with_input(&["save", "app"], b"data");
    let manifest = user.path().join(format!("repository/app/backups/{}/manifest.json", saved.stdout.trim()));
    std::fs::write(&manifest, "garbage").unwrap();
    assert_eq!(user.run(&["list"]).code, 3);
    let json = user.run(&["list", "--json"]);
    assert_eq!(json.code, 3);
    assert!(json.stdout.contains("\"unreadable\": [\n    {"), "{}", json.stdout);
}

#[test]
fn verify_goes_on_after_a_backup_that_it_cannot_judge() {
    let user = User::with_repository();
    assert_eq!(user.run(&["verify", "--all"]).code, 10, "nothing was verified");
    let other = User::with_repository();
    let theirs = std::fs::read_to_string(other.path().join(".config/backup/identity.txt")).unwrap();
    let theirs = theirs.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    user.run_with_input(&["save", "a", "-R", theirs], b"data");
    let saved = user.run_with_input(&["save", "b"], b"data");
    let ran = user.run(&["verify", "--all", "--deep"]);
    assert_eq!(ran.code, 12, "{}", ran.stderr);
    assert!(ran.stdout.starts_with("unverified") && ran.stdout.contains("\nok "), "{}", ran.stdout);
    let json = user.run(&["verify", "--all", "--deep", "--json"]);
    assert_eq!(json.code, 12);
    assert!(json.stdout.contains("\"outcome\": \"unverified\"") && json.stdout.contains("\"outcome\": \"ok\""));
    assert_eq!(user.run(&["verify", "a", "--deep"]).code, 12);
    std::fs::remove_file(user.path().join(format!("repository/b/backups/{}/data.00000.vol", saved.stdout.trim())))
        .unwrap();
    assert_eq!(user.run(&["verify", "--all", "--deep"]).code, 13, "damage is worse");
}

#[test]
fn a_backup_of_a_later_release_is_not_called_damaged() {
    let user = User::with_repository();
    let saved = user.run_with_input(&["save", "app"], b"data");
    let manifest = user.path().join(format!("repository/app/backups/{}/manifest.json", saved.stdout.trim()));
    let text = String::from_utf8_lossy(&std::fs::read(&manifest).unwrap()).replace("\"format\":1", "\"format\":2");
    std::fs::write(&manifest, text).unwrap();
    assert_eq!(user.run(&["verify", "app"]).code, 13, "beside volumes of this release it is damaged");
    for volume in ["data", "details"] {
        let volume = manifest.with_file_name(format!("{volume}.00000.vol"));
        let mut bytes = std::fs::read(&volume).unwrap();
        bytes[7] = 2;
        std::fs::write(&volume, bytes).unwrap();
    }
    for arguments in [&["verify", "--all"][..], &["verify", "--all", "--deep"], &["verify", "app"]] {
        let ran = user.run(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {}", ran.stderr);
        assert!((ran.stdout.clone() + &ran.stderr).contains("needs a newer release"), "{}", ran.stdout);
        assert!(!ran.stdout.contains("DAMAGED"), "{}", ran.stdout);
    }
}

#[test]
fn manual_pages_and_completions_are_made() {
    let user = User::new();
    for (what, sign) in
        [("man", ".TH"), ("bash", "complete -F"), ("zsh", "#compdef backup"), ("fish", "complete -c backup")]
    {
        let ran = user.run(&["generate", what]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains(sign), "{what}");
    }
    assert_eq!(user.run(&["generate", "man", "--dir", "man"]).code, 0);
    assert!(user.path().join("man/backup-save.1").exists());
}
