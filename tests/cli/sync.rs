//! `sync`: mirrors of files, carried out against real registries.

use std::{path::Path, time::Duration};

use hyper::Method;
use serde_json::{Value, json};

use crate::support::{
    Result,
    binary::{Finished, Sandbox},
    gateway::{Action, Gateway, Rule},
    images::Image,
    process::poll,
    registry::{LoggedRequest, Registry},
    skopeo,
};

const USER: &str = "pusher";
const PASSWORD: &str = "a-canary-password-4711";

/// A mirror of tags of `repository` at one registry to `mirror/...` at another.
fn mirror(name: &str, from: &str, repository: &str, tags: &[&str], to: &str) -> Value {
    json!({
        "apiVersion": "imagepusher.io/v1alpha1",
        "kind": "ImageMirror",
        "metadata": {"name": name, "namespace": "team-a"},
        "spec": {
            "source": {"registry": {"repository": format!("{from}/{repository}"), "tags": tags, "insecure": true}},
            "destinations": [{"repository": format!("{to}/mirror/{{repository}}"), "insecure": true}],
        },
    })
}

fn secret(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: team-a}}\ntype: kubernetes.io/basic-auth\n\
         stringData:\n  username: {USER}\n  password: {PASSWORD}\n"
    )
}

fn assert_no_password(run: &Finished) {
    let said = format!("{}{}", run.stdout, run.stderr);
    for secret in [PASSWORD, "YS1jYW5hcnk", "cHVzaGVyOmEt"] {
        assert!(
            !said.contains(secret),
            "{secret} in\n{}\n{said}",
            run.command
        );
    }
}

fn report(sandbox: &Sandbox) -> Value {
    let text = std::fs::read_to_string(sandbox.path().join("report.json")).unwrap();
    let report = serde_json::from_str(&text).unwrap();
    let schema = include_str!("../../docs/report.schema.json");
    conforms("report", &report, &serde_json::from_str(schema).unwrap());
    report
}

/// Ends the test unless `value` is what the schema says, with no field that it does not know.
fn conforms(path: &str, value: &Value, schema: &Value) {
    let kind = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::Null => "null",
    };
    if let Some(variants) = schema["oneOf"].as_array() {
        let is_one = variants.iter().any(|variant| variant["const"] == *value);
        assert!(is_one, "{path}: {value}");
        return;
    }
    let allowed = schema["type"].to_string();
    assert!(
        allowed.contains(&format!("\"{kind}\"")),
        "{path} is {kind}, not {allowed}"
    );
    if let Some(choices) = schema["enum"].as_array() {
        assert!(choices.contains(value), "{path}: {value}");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{path}.{name}");
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let schema = &schema["properties"][name];
        assert!(schema.is_object(), "{path}.{name} is not in the schema");
        conforms(&format!("{path}.{name}"), value, schema);
    }
    for value in value.as_array().into_iter().flatten() {
        conforms(&format!("{path}[]"), value, &schema["items"]);
    }
}

fn left_behind(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().display().to_string());
    names.filter(|name| name.contains("report")).collect()
}

/// Two mirrors in two files, a third that is suspended, and the Secret of one of them.
struct Bed {
    source: Registry,
    open: Registry,
    closed: Registry,
    app: Image,
    tool: Image,
    sandbox: Sandbox,
}

impl Bed {
    fn new() -> Result<Self> {
        let (source, open) = (Registry::open()?, Registry::open()?);
        let closed = Registry::with_htpasswd(USER, PASSWORD)?;
        let app = Image::builder().layers(2, 50_000).build()?;
        app.push(source.access(), "team/app:1.0")?;
        app.push(source.access(), "team/app:latest")?;
        let tool = Image::builder().build()?;
        tool.push(source.access(), "team/tool:2")?;
        let bed = Self {
            source,
            open,
            closed,
            app,
            tool,
            sandbox: Sandbox::new()?,
        };
        bed.write_files()?;
        Ok(bed)
    }

    fn write_files(&self) -> Result<()> {
        let from = self.source.address();
        let (open, closed) = (self.open.address(), self.closed.address());
        let one = mirror("app", from, "team/app", &["1.0", "latest"], open);
        self.sandbox.file("one.yaml", one.to_string())?;
        let mut two = mirror("tool", from, "team/tool", &["2"], closed);
        two["spec"]["destinations"][0]["secretRef"] = json!({"name": "login"});
        let mut suspended = mirror("later", from, "team/none", &["1"], open);
        suspended["spec"]["suspend"] = json!(true);
        let two = format!("{two}\n---\n{suspended}\n---\n{}", secret("login"));
        self.sandbox.file("two.yaml", two).map(drop)
    }

    fn sync(&self, options: &[&str]) -> Result<Finished> {
        let sync = ["sync", "-f", "one.yaml", "-f", "two.yaml"];
        let run = self
            .sandbox
            .run(&[&sync, options].concat())?
            .expect_code(0)?;
        assert_no_password(&run);
        Ok(run)
    }
}

#[test]
fn mirrors_of_several_files_are_copied_with_their_secrets() -> Result<()> {
    let bed = Bed::new()?;
    let run = bed.sync(&["-vv"])?;
    let (open, closed) = (bed.open.access(), bed.closed.access());
    assert_eq!(skopeo::digest(open, "mirror/team/app:1.0")?, bed.app.digest);
    assert_eq!(
        skopeo::digest(open, "mirror/team/app:latest")?,
        bed.app.digest
    );
    assert_eq!(
        skopeo::digest(closed, "mirror/team/tool:2")?,
        bed.tool.digest
    );
    let asked = |request: &LoggedRequest| request.path.contains("team/none");
    assert!(!bed.source.requests().iter().any(asked));
    assert!(
        run.stderr.contains("team-a/later: is suspended"),
        "{}",
        run.stderr
    );
    for row in [
        "MIRROR        IMAGES  UP TO DATE  COPIED  FAILED  OUTCOME    FIRST FAILURE",
        "team-a/app    2       0           2       0       succeeded",
        "team-a/later  0       0           0       0       suspended",
        "team-a/tool   1       0           1       0       succeeded",
        "blobs copied",
    ] {
        assert!(run.stdout.contains(row), "{row}\n{}", run.stdout);
    }
    Ok(())
}

#[test]
fn the_report_says_what_became_of_each_image_and_json_output_says_the_same() -> Result<()> {
    let bed = Bed::new()?;
    bed.sync(&["--report", "report.json"])?;
    let first = report(&bed.sandbox);
    assert_eq!(first["version"], 1);
    assert_eq!(
        first["mirrors"][0]["totals"],
        json!({"total": 2, "upToDate": 0, "copied": 2, "failed": 0})
    );
    assert_eq!(first["mirrors"][1]["outcome"], "Suspended");
    assert_eq!(
        first["mirrors"][2]["images"],
        json!([{
            "source": format!("{}/team/tool:2", bed.source.address()),
            "digest": bed.tool.digest,
            "outcome": "Copied",
            "destinations": [{
                "name": "default",
                "target": format!("{}/mirror/team/tool:2", bed.closed.address()),
                "outcome": "Copied",
            }],
        }])
    );
    assert_eq!(left_behind(bed.sandbox.path()), ["report.json"]);

    let again = bed.sync(&["--report", "report.json", "--output", "json"])?;
    let result: Value = serde_json::from_str(again.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(result["event"], "result");
    assert_eq!(result["mirrors"], report(&bed.sandbox)["mirrors"]);
    assert_eq!(result["mirrors"][2]["totals"]["upToDate"], 1);
    let moved = (
        &result["totals"]["downloaded"],
        &result["totals"]["uploaded"],
    );
    assert_eq!(moved, (&json!(0), &json!(0)));
    Ok(())
}

#[test]
fn what_failed_decides_the_exit_code_and_stands_in_the_report() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let image = Image::builder().build()?;
    image.push(source.access(), "team/app:1")?;
    let sandbox = Sandbox::new()?;
    let with = |name, tags: &[&str]| {
        mirror(
            name,
            source.address(),
            "team/app",
            tags,
            destination.address(),
        )
    };
    sandbox.file("partly.yaml", with("partly", &["1", "missing"]).to_string())?;
    sandbox.file(
        "nothing.yaml",
        with("nothing", &["none", "nobody"]).to_string(),
    )?;
    let report_to = ["--report", "report.json"];
    let partly = sandbox
        .run(&[&["sync", "-f", "partly.yaml"][..], &report_to].concat())?
        .expect_code(3)?;
    assert!(partly.stdout.contains("partly failed"), "{}", partly.stdout);
    assert!(
        partly.stderr.contains("team-a/partly: ") && partly.stderr.contains("team/app:missing"),
        "{}",
        partly.stderr
    );
    assert_eq!(
        skopeo::digest(destination.access(), "mirror/team/app:1")?,
        image.digest
    );
    let told = report(&sandbox);
    assert_eq!(told["mirrors"][0]["outcome"], "PartlyFailed");
    assert_eq!(
        told["mirrors"][0]["images"][1]["failure"]["reason"],
        "ManifestUnknown"
    );

    let nothing = sandbox
        .run(
            &[
                &["sync", "-f", "nothing.yaml", "--output", "json"][..],
                &report_to,
            ]
            .concat(),
        )?
        .expect_code(1)?;
    let error: Value = serde_json::from_str(nothing.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&error["event"], &error["reason"], &error["class"]),
        (&json!("error"), &json!("ImagesFailed"), &json!("NotFound"))
    );
    assert_eq!(report(&sandbox)["mirrors"][0]["outcome"], "Failed");
    sandbox
        .run(&["sync", "-f", "nothing.yaml", "-f", "partly.yaml"])?
        .expect_code(3)?;
    Ok(())
}

#[test]
fn everything_wrong_is_listed_before_anything_starts() -> Result<()> {
    let registry = Registry::open()?;
    let sandbox = Sandbox::new()?;
    let one = "\
apiVersion: imagepusher.io/v1alpha1
kind: ImageMirror
metadata:
  name: app
spec:
  source:
    registry:
      repository: HOST/team/app
      tags: [1.10, 'fine']
  destinations:
  - repository: HOST/mirror/app
    skipTlsVerify: true
---
apiVersion: imagepusher.io/v1alpha1
kind: ImageMirror
metadata:
  name: other
spec:
  source:
    registry:
      repository: HOST/team/app
      tags: ['1']
      secretRef: {name: nowhere}
      serviceAccountName:
  destinations:
  - repository: HOST/mirror/other
    serviceAccountName: robot
---
apiVersion: v1
kind: Namespace
metadata: {name: team-a}
";
    sandbox.file("one.yaml", one.replace("HOST", registry.address()))?;
    let broken = secret("login").replace("stringData", "data");
    sandbox.file(
        "two.yaml",
        broken.replace("password: a-canary", "password: a canary"),
    )?;
    let run = sandbox
        .run(&[
            "sync",
            "-f",
            "one.yaml",
            "-f",
            "two.yaml",
            "--report",
            "report.json",
        ])?
        .expect_code(2)?;
    let expected = "\
warning: one.yaml:29:1: Namespace of v1 is passed over
error: nothing was started, since this is wrong:
one.yaml:9:14: spec.source.registry.tags[0]: must be a string, not a number: put it in quotes
one.yaml:12:5: unknown field \"spec.destinations[0].skipTlsVerify\": did you mean skipTLSVerify?
one.yaml:23:7: spec.source.registry.secretRef: Secret nowhere is in none of the files: add it, in namespace default
one.yaml:27:5: spec.destinations[0].serviceAccountName: ServiceAccount robot is in none of the files: add it, in namespace \
default, or use --docker-auth
two.yaml:6:13: data[username]: is not base64; text as it is goes under stringData
two.yaml:7:13: data[password]: is not base64; text as it is goes under stringData
";
    assert_eq!(run.stderr, expected);
    assert_eq!(run.stdout, "");
    let as_json = sandbox
        .run(&[
            "sync", "-f", "one.yaml", "-f", "two.yaml", "--output", "json",
        ])?
        .expect_code(2)?;
    let error: Value = serde_json::from_str(as_json.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(error["problems"].as_array().unwrap().len(), 6);
    let text = "data[password]: is not base64; text as it is goes under stringData";
    assert_eq!(
        error["problems"][5],
        json!({"file": "two.yaml", "line": 7, "column": 13, "text": text})
    );
    assert_eq!(registry.requests().len(), 0);
    assert!(!sandbox.path().join(".cache").exists());
    assert_eq!(left_behind(sandbox.path()), Vec::<String>::new());
    Ok(())
}

#[test]
fn what_is_no_file_of_mirrors_and_no_place_for_a_report_is_refused() -> Result<()> {
    let sandbox = Sandbox::new()?;
    sandbox.file("empty/notes.txt", "nothing")?;
    sandbox.file(
        "mirror.yaml",
        mirror("app", "localhost:1", "a", &["1"], "localhost:1").to_string(),
    )?;
    std::fs::create_dir(sandbox.path().join("folder")).unwrap();
    for (options, parts) in [
        (&["-f", "missing.yaml"][..], &["missing.yaml", "-f"][..]),
        (&["-f", "empty"], &["no ImageMirror", "empty"]),
        (
            &["-f", "mirror.yaml", "--report", "-"],
            &["--report -", "--output json"],
        ),
        (
            &["-f", "mirror.yaml", "--report", "folder"],
            &["--report folder", "no file"],
        ),
        (
            &["-f", "mirror.yaml", "--report", "/dev/null"],
            &["--report /dev/null", "no file"],
        ),
        (
            &["-f", "mirror.yaml", "--report", "no/such/report"],
            &["--report no/such/report"],
        ),
        (&[], &["--file"]),
    ] {
        let run = sandbox
            .run(&[&["sync"], options].concat())?
            .expect_code(2)?;
        for part in parts {
            assert!(run.stderr.contains(part), "{part}\n{}", run.stderr);
        }
    }
    assert!(!sandbox.path().join(".cache").exists());
    Ok(())
}

#[test]
fn an_image_of_the_cache_is_what_another_mirror_of_the_run_brought() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let image = Image::builder().build()?;
    image.push(source.access(), "team/app:1")?;
    let sandbox = Sandbox::new()?;
    let mut fills = mirror(
        "z-fills",
        source.address(),
        "team/app",
        &["1"],
        "localhost:1",
    );
    fills["spec"]["destinations"] = json!([]);
    let mut sends = mirror(
        "a-sends",
        source.address(),
        "team/app",
        &["1"],
        destination.address(),
    );
    sends["spec"]["source"] = json!({"cache": {"repository": format!("{}/team/app", source.address()), "reference": "1"}});
    sandbox.file("mirrors.yaml", format!("{sends}\n---\n{fills}\n"))?;
    sandbox
        .run(&["sync", "-f", "mirrors.yaml"])?
        .expect_code(0)?;
    assert_eq!(
        skopeo::digest(destination.access(), "mirror/team/app:1")?,
        image.digest
    );
    let listed = sandbox.run(&["list"])?.expect_code(0)?;
    assert!(
        listed
            .stdout
            .contains(&format!("{}/team/app:1", source.address())),
        "{}",
        listed.stdout
    );
    Ok(())
}

#[test]
fn folders_lists_and_standard_input_are_read() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    Image::builder()
        .build()?
        .push(source.access(), "team/app:1")?;
    let sandbox = Sandbox::new()?;
    let to = |name: &str| {
        let mut mirror = mirror(
            name,
            source.address(),
            "team/app",
            &["1"],
            destination.address(),
        );
        mirror["spec"]["destinations"][0]["repository"] =
            json!(format!("{}/{name}", destination.address()));
        mirror
    };
    sandbox.file("mirrors/one.yaml", to("one").to_string())?;
    sandbox.file("mirrors/two.yml", to("two").to_string())?;
    sandbox.file("mirrors/three.json", format!("{:#}", to("three")))?;
    sandbox.file("mirrors/README.md", "no mirror")?;
    sandbox.file("mirrors/below/four.yaml", "kind: x")?;
    sandbox.run(&["sync", "-f", "mirrors"])?.expect_code(0)?;
    let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": [to("five")]});
    let stdin = sandbox.file("stdin", list.to_string())?;
    sandbox
        .run_with_stdin(&["sync", "-f", "-"], &stdin)?
        .expect_code(0)?;
    for name in ["one", "two", "three", "five"] {
        skopeo::digest(destination.access(), &format!("{name}:1"))?;
    }
    // Four mirrors of one image, three of them at once: its two blobs were fetched once.
    assert_eq!(source.count("GET", "/blobs/"), 2);
    let wrong = sandbox.file("wrong", "{\n  \"kind\": \"ImageMirror\",\n}")?;
    let run = sandbox
        .run_with_stdin(&["sync", "-f", "-"], &wrong)?
        .expect_code(2)?;
    assert!(
        run.stderr.contains("standard input:1:1: must be an object"),
        "{}",
        run.stderr
    );
    Ok(())
}

#[test]
fn service_accounts_log_in_by_their_pull_secrets_or_as_the_user_of_docker() -> Result<()> {
    let (source, closed) = (Registry::open()?, Registry::with_htpasswd(USER, PASSWORD)?);
    Image::builder()
        .build()?
        .push(source.access(), "team/app:1")?;
    let mut robot = mirror(
        "app",
        source.address(),
        "team/app",
        &["1"],
        closed.address(),
    );
    robot["spec"]["destinations"][0]["serviceAccountName"] = json!("robot");
    // The user and password in base64, as docker keeps them.
    let auths = json!({closed.address(): {"username": USER, "password": PASSWORD}});
    let config = json!({"auths": auths}).to_string();
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot", "namespace": "team-a"},
        "imagePullSecrets": [{"name": "other"}, {"name": "pull"}],
    });
    let secret = |name: &str, kind: &str, data: Value| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "team-a"},
            "type": kind, "stringData": data,
        })
    };
    let other = secret("other", "Opaque", json!({"token": PASSWORD}));
    for (kind, data) in [
        (
            "kubernetes.io/dockerconfigjson",
            json!({".dockerconfigjson": config}),
        ),
        (
            "kubernetes.io/dockercfg",
            json!({".dockercfg": auths.to_string()}),
        ),
    ] {
        let pull = secret("pull", kind, data);
        let by_documents = Sandbox::new()?;
        by_documents.file(
            "all.yaml",
            format!("{robot}\n---\n{account}\n---\n{other}\n---\n{pull}\n"),
        )?;
        let run = by_documents
            .run(&["sync", "-f", "all.yaml", "-vv"])?
            .expect_code(0)?;
        assert_no_password(&run);
        let told = "Secret other of ServiceAccount robot is passed over: its type is Opaque";
        assert!(run.stderr.contains(told), "{}", run.stderr);
    }

    let by_docker = Sandbox::new()?;
    by_docker.file("mirror.yaml", robot.to_string())?;
    by_docker.file(".docker/config.json", &config)?;
    by_docker
        .run(&["sync", "-f", "mirror.yaml"])?
        .expect_code(2)?;
    let docker_auth = ["sync", "-f", "mirror.yaml", "--docker-auth", "-vv"];
    let run = by_docker.run(&docker_auth)?.expect_code(0)?;
    assert_no_password(&run);
    assert!(run.stderr.contains(".docker/config.json"), "{}", run.stderr);
    skopeo::digest(closed.access(), "mirror/team/app:1")?;

    by_docker.file(".docker/config.json", "{\"auths\": {}}")?;
    let other = robot.to_string().replace("/mirror/", "/other/");
    by_docker.file("mirror.yaml", other)?;
    let anonymous = by_docker.run(&docker_auth)?.expect_code(1)?;
    assert!(
        anonymous.stdout.contains("failed   AuthenticationRequired"),
        "{}",
        anonymous.stdout
    );
    Ok(())
}

#[test]
fn an_interrupt_ends_with_130_and_a_report_of_what_was_not_done() -> Result<()> {
    let (source, destination) = (Registry::open()?, Registry::open()?);
    let image = Image::builder()
        .layers(1, 4_000_000)
        .gzip_level(0)
        .build()?;
    image.push(source.access(), "slow/app:1")?;
    Image::builder()
        .build()?
        .push(source.access(), "fast/app:1")?;
    let slow = Rule::on(&Method::GET, "slow/app/blobs/", Action::SlowAnswer(200_000));
    let gateway = Gateway::before(&source).rule(slow).start()?;
    let sandbox = Sandbox::new()?;
    let address = gateway.address();
    let mirrors = ["fast", "slow"].map(|name| {
        mirror(
            name,
            &address,
            &format!("{name}/app"),
            &["1"],
            destination.address(),
        )
        .to_string()
    });
    sandbox.file("mirrors.yaml", mirrors.join("\n---\n"))?;
    let running = sandbox.start(&["sync", "-f", "mirrors.yaml", "--report", "report.json"])?;
    poll(Duration::from_secs(20), || {
        let is_fast_done = skopeo::digest(destination.access(), "mirror/fast/app:1").is_ok();
        (is_fast_done && gateway.count(&Method::GET, "slow/app/blobs/") > 0).then_some(())
    })
    .expect("one mirror ends and the other begins");
    // The tag is there a moment before the mirror has ended, which nothing tells; the other takes 20 seconds.
    std::thread::sleep(Duration::from_secs(3));
    running.signal("INT")?;
    let stopped = running.wait()?.expect_code(130)?;
    assert!(stopped.stderr.contains("interrupted"), "{}", stopped.stderr);
    let told = report(&sandbox);
    assert_eq!(told["mirrors"][0]["outcome"], "Succeeded");
    assert_eq!(told["mirrors"][1]["failure"]["reason"], "Interrupted");
    assert_eq!(left_behind(sandbox.path()), ["report.json"]);
    Ok(())
}

#[test]
fn a_bandwidth_limit_holds_back_what_comes_from_the_source() -> Result<()> {
    let (from, to) = (Registry::open()?, Registry::open()?);
    Image::builder()
        .layers(2, 4_000_000)
        .gzip_level(0)
        .build()?
        .push(from.access(), "team/app:1")?;
    let gateway = Gateway::before(&from).start()?;
    let mut mirror = mirror("app", &gateway.address(), "team/app", &["1"], to.address());
    mirror["spec"]["transfer"] = json!({"bandwidthLimit": "4M"});
    let sandbox = Sandbox::new()?;
    sandbox.file("mirror.yaml", mirror.to_string())?;
    let run = sandbox
        .run(&["sync", "-f", "mirror.yaml"])?
        .expect_code(0)?;
    let bytes = gateway.answer_bytes(|exchange| exchange.path.contains("/blobs/"));
    assert!(bytes >= 8_000_000, "{bytes}");
    // 2 s, less the tenth of a second that may be made up for and the piece that waits for nobody.
    assert!(
        run.duration > Duration::from_millis(1800),
        "{:?}",
        run.duration
    );
    assert_eq!(
        skopeo::digest(to.access(), "mirror/team/app:1")?,
        skopeo::digest(from.access(), "team/app:1")?
    );
    Ok(())
}
