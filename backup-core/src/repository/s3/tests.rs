//! What becomes of options, environment and profiles.

use super::*;
use crate::error::ErrorKind;

fn with(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "AKID"), ("AWS_SECRET_ACCESS_KEY", "hush")];

fn value(options: &S3Options, variables: &[(&str, &str)], key: Key) -> Option<String> {
    builder("bucket", options, &with(&[&KEYS, variables].concat())).unwrap().get_config_value(&key)
}

#[test]
fn an_explicit_endpoint_wins_over_the_environment_and_http_needs_no_further_consent() {
    let options = S3Options { endpoint: Some("http://127.0.0.1:9000/".to_owned()), ..S3Options::default() };
    let variables = [("AWS_ENDPOINT_URL_S3", "https://elsewhere"), ("AWS_ENDPOINT_URL", "https://nowhere")];
    assert_eq!(value(&options, &variables, Key::S3Endpoint).as_deref(), Some("http://127.0.0.1:9000"));
    assert_eq!(
        value(&options, &variables, Key::Client(object_store::ClientConfigKey::AllowHttp)).as_deref(),
        Some("true")
    );
    assert_eq!(value(&S3Options::default(), &variables, Key::S3Endpoint).as_deref(), Some("https://elsewhere"));
    assert_eq!(value(&S3Options::default(), &variables[1..], Key::S3Endpoint).as_deref(), Some("https://nowhere"));
}

#[test]
fn the_bucket_goes_where_the_store_expects_it() {
    let virtual_host = |endpoint: Option<&str>, path_style| {
        let options = S3Options { endpoint: endpoint.map(str::to_owned), path_style, ..S3Options::default() };
        let host = value(&options, &[], Key::S3Endpoint);
        (value(&options, &[], Key::VirtualHostedStyleRequest).unwrap(), host)
    };
    assert_eq!(virtual_host(None, None), ("true".to_owned(), None));
    assert_eq!(virtual_host(None, Some(true)).0, "false");
    assert_eq!(virtual_host(Some("https://s3.example:9000"), None).0, "false");
    let host = Some("https://bucket.s3.example:9000".to_owned());
    assert_eq!(virtual_host(Some("https://s3.example:9000"), Some(false)), ("true".to_owned(), host));
    let options =
        S3Options { endpoint: Some("http://127.0.0.1".to_owned()), path_style: Some(false), ..S3Options::default() };
    assert_eq!(builder("bucket", &options, &with(&KEYS)).unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn payloads_are_never_hashed_with_sha256() {
    let checksum = |endpoint: Option<&str>, variables: &[(&str, &str)]| {
        let options = S3Options { endpoint: endpoint.map(str::to_owned), ..S3Options::default() };
        assert_eq!(value(&options, variables, Key::UnsignedPayload).as_deref(), Some("true"));
        value(&options, variables, Key::Checksum)
    };
    assert_eq!(checksum(None, &[]).as_deref(), Some("crc64nvme"));
    assert_eq!(checksum(Some("http://s3.example"), &[]).as_deref(), Some("crc64nvme"));
    assert_eq!(checksum(Some("https://s3.example"), &[]), None);
    let refused = [("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")];
    assert_eq!(checksum(Some("http://s3.example"), &refused), None);
}

#[test]
fn the_environment_s_keys_win_over_a_profile_and_a_profile_without_keys_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("credentials");
    std::fs::write(&file, "[dr]\naws_access_key_id=PROFILE\naws_secret_access_key=hush\naws_session_token=t\n")
        .unwrap();
    let file = file.display().to_string();
    let profile =
        [("AWS_SHARED_CREDENTIALS_FILE", file.as_str()), ("AWS_PROFILE", "dr"), ("AWS_CONFIG_FILE", "/nonexistent")];
    let built = builder("bucket", &S3Options::default(), &with(&profile)).unwrap();
    assert_eq!(built.get_config_value(&Key::AccessKeyId).as_deref(), Some("PROFILE"));
    assert_eq!(built.get_config_value(&Key::Token).as_deref(), Some("t"));
    assert_eq!(value(&S3Options::default(), &profile, Key::AccessKeyId).as_deref(), Some("AKID"));

    // One of several stores has it by name, whatever else is set for all of them.
    let variables =
        [&KEYS[..], &[profile[0], profile[2], ("AWS_SESSION_TOKEN", "other"), ("AWS_REGION", "x")]].concat();
    let own = S3Options { profile: Some("dr".to_owned()), ..S3Options::default() };
    let built = builder("bucket", &own, &with(&variables)).unwrap();
    assert_eq!(built.get_config_value(&Key::AccessKeyId).as_deref(), Some("PROFILE"));
    assert_eq!(built.get_config_value(&Key::Token).as_deref(), Some("t"));
    assert_eq!(built.get_config_value(&Key::Region), None);

    let absent = [profile[0], profile[2], ("AWS_PROFILE", "absent")];
    let error = builder("bucket", &S3Options::default(), &with(&absent)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let error = builder("bucket", &S3Options::default(), &with(&[("AWS_EC2_METADATA_DISABLED", "true")])).unwrap_err();
    assert_eq!(error.to_string(), "no AWS credentials were found");
}

#[test]
fn an_endpoint_with_a_secret_in_it_is_refused_and_not_repeated() {
    for endpoint in ["https://key:hush@s3.example", "https://s3.example/?token=hush", "hush", "ftp://s3.example"] {
        let options = S3Options { endpoint: Some(endpoint.to_owned()), ..S3Options::default() };
        let error = builder("bucket", &options, &with(&KEYS)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    }
}

#[test]
fn variables_that_nobody_documents_change_nothing() {
    let variables = [
        ("AWS_SERVER_SIDE_ENCRYPTION", "sse-c"),
        ("AWS_SSE_CUSTOMER_KEY_BASE64", "aHVzaA=="),
        ("AWS_CHECKSUM_ALGORITHM", "sha256"),
        ("AWS_CONDITIONAL_PUT", "disabled"),
        ("AWS_REQUEST_PAYER", "true"),
        ("AWS_ENDPOINT", "https://elsewhere"),
        ("AWS_TOKEN", "other"),
        ("AWS_METADATA_ENDPOINT", "http://elsewhere"),
        ("AWS_TIMEOUT", "1s"),
    ];
    for (name, _) in variables {
        let key: Key = name.to_ascii_lowercase().parse().unwrap();
        let untouched = value(&S3Options::default(), &[], key);
        assert_eq!(value(&S3Options::default(), &variables, key), untouched, "{name}");
    }
    let region = [("AWS_REGION", "eu-1"), ("AWS_DEFAULT_REGION", "us-9")];
    assert_eq!(value(&S3Options::default(), &region, Key::Region).as_deref(), Some("eu-1"));
    assert_eq!(value(&S3Options::default(), &region[1..], Key::Region).as_deref(), Some("us-9"));
}

#[tokio::test]
async fn uploads_are_asked_for_where_the_store_has_the_bucket() {
    use object_store::signer::Signer;

    let endpoint = Some("https://s3.example:9000/".to_owned());
    for (bucket, endpoint, path_style, region) in [
        ("bucket", None, None, None),
        ("bucket", None, Some(true), Some("eu-1")),
        ("with.dots", None, None, None),
        ("bucket", endpoint.clone(), None, None),
        ("bucket", endpoint, Some(false), None),
    ] {
        let options = S3Options { endpoint, path_style, region: region.map(str::to_owned), ..S3Options::default() };
        let builder = builder(bucket, &options, &with(&KEYS)).unwrap();
        let (store, _) = connect(bucket, &options, &HttpOptions::default(), &with(&KEYS)).unwrap();
        let path = object_store::path::Path::from("x");
        let signed = store.signed_url("GET".parse().unwrap(), &path, std::time::Duration::from_secs(60)).await.unwrap();
        let url = bucket_url(bucket, &builder).unwrap();
        assert_eq!(format!("{}/x", url.as_str().trim_end_matches('/')), signed.as_str().split('?').next().unwrap());
        let scope = format!("%2F{}%2Fs3%2Faws4_request", region_of(&builder));
        assert!(signed.as_str().contains(&scope), "{signed}");
    }
}
