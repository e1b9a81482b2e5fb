//! Files as users write them, and everything that is told about them.

use proptest::prelude::*;

use super::*;
use crate::{
    api::{
        Access, Destination, ExistingBlobs, ImageMirrorSpec, ImageTag, PinnedDigest,
        RegistrySource, SecretReference, Source, Transfer,
    },
    image::Digest,
    mirror::Logins,
    output::OutputManager,
    registry::Login,
};

fn read(texts: &[&str]) -> Documents {
    let mut documents = Documents::default();
    for (number, text) in texts.iter().enumerate() {
        let origin = Origin {
            name: format!("{}.yaml", (b'a' + u8::try_from(number).unwrap()) as char),
            folder: "/files".into(),
        };
        documents.read(&origin, text.as_bytes());
    }
    documents
}

fn prepare(
    texts: &[&str],
    surroundings: &Surroundings,
) -> Result<Vec<PreparedMirror>, Vec<String>> {
    // The program does it in main; an error means that another test has done it.
    drop(rustls::crypto::ring::default_provider().install_default());
    read(texts)
        .prepare(surroundings, &OutputManager::silent())
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn problems(texts: &[&str]) -> Vec<String> {
    prepare(texts, &Surroundings::default()).map_or_else(|problems| problems, |_| Vec::new())
}

/// A mirror from and to these repositories, with more fields for both.
fn mirror(name: &str, to: &str, access: &str) -> String {
    format!(
        "apiVersion: imagepusher.io/v1alpha1\n\
         kind: ImageMirror\n\
         metadata: {{name: {name}, namespace: team}}\n\
         spec:\n  \
           source:\n    \
             registry:\n      \
               repository: r.example/{name}\n      \
               tags: ['1']\n  \
           destinations:\n  \
           - repository: {to}\n    {access}\n"
    )
}

const LOGIN: &str = "\
apiVersion: v1
kind: Secret
metadata: {name: login, namespace: team}
type: kubernetes.io/basic-auth
stringData: {username: me}
data:
  password: |
    czNj
    cmV0
";

#[test]
fn mirrors_get_the_secrets_of_their_own_namespace_from_any_file() {
    let with_login = mirror("app", "i.example/app", "secretRef: {name: login}");
    let prepared = prepare(&[&with_login, LOGIN], &Surroundings::default()).unwrap();
    assert_eq!(
        (prepared[0].namespace.as_str(), prepared[0].name.as_str()),
        ("team", "app")
    );
    assert!(matches!(
        prepared[0].work,
        PreparedWork::Run {
            reads_cache: false,
            images: Some(1),
            ..
        }
    ));
    let elsewhere = LOGIN.replace("namespace: team", "namespace: other");
    assert_eq!(
        problems(&[&with_login, &elsewhere]),
        [
            "a.yaml:11:5: spec.destinations[0].secretRef: Secret login is in none of the files: add it, in namespace team"
        ]
    );
    assert_eq!(
        read(&[LOGIN])
            .secrets
            .values()
            .next()
            .unwrap()
            .content
            .as_ref()
            .unwrap()
            .data["password"],
        b"s3cret"
    );
}

#[test]
fn the_pull_secrets_of_accounts_are_used_and_otherwise_the_logins_of_the_user() {
    let by_account = mirror("app", "i.example/app", "serviceAccountName: robot");
    assert_eq!(
        problems(&[&by_account]),
        [
            "a.yaml:11:5: spec.destinations[0].serviceAccountName: ServiceAccount robot is in none of the files: add it, in \
          namespace team, or use --docker-auth"
        ]
    );
    let surroundings = Surroundings {
        logins: Some(Logins::new(|_, _| Ok(Some(Login::default())))),
        archives: None,
        ..Surroundings::default()
    };
    assert!(prepare(&[&by_account], &surroundings).is_ok());
    let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot, namespace: team}, imagePullSecrets: [{name: pull}]}";
    assert_eq!(
        problems(&[&by_account, account]),
        [
            "b.yaml:1:101: imagePullSecrets[0]: Secret pull is in none of the files: add it, in namespace team"
        ]
    );
    let pull = "{apiVersion: v1, kind: Secret, type: kubernetes.io/dockerconfigjson, metadata: {name: pull, namespace: team}, \
                stringData: {.dockerconfigjson: '{\"auths\":{}}'}}";
    assert_eq!(
        problems(&[&by_account, account, pull]),
        Vec::<String>::new()
    );
    // A kubelet takes no notice of these either.
    let other = pull
        .replace("kubernetes.io/dockerconfigjson", "Opaque")
        .replace(".dockerconfigjson", "token");
    assert_eq!(
        problems(&[&by_account, account, &other]),
        Vec::<String>::new()
    );
}

#[test]
fn everything_wrong_is_told_at_once_by_file_and_place() {
    let wrong_template = mirror("one", "i.example/{repository}", "tag: '{tag}-{tag}-{tag'");
    let wrong_names = "\
apiVersion: imagepusher.io/v1alpha1
kind: ImageMirror
metadata: {generateName: app-}
spec: {source: {cache: {repository: docker.io/a/b, reference: '1'}}}
---
apiVersion: imagepusher.io/v1
kind: ImageMirror
---
apiVersion: imagepusher.io/v1alpha1
kind: ImageMirrorr
---
apiVersion: v1
kind: Secret
metadata: {name: Login}
---
apiVersion: v1
kind: Secret
metadata: {name: broken, namespace: a.b}
---
apiVersion: v1
kind: Secret
metadata: {name: 4711}
---
metadata: {}
---
- 1
";
    let broken_secret = "\
apiVersion: v1
kind: Secret
metadata: {name: login, namespace: team}
data: {password: hunter2!}
";
    let uses_it = mirror("two", "i.example/two", "secretRef: {name: login}");
    let told = problems(&[
        &wrong_template,
        wrong_names,
        broken_secret,
        &uses_it,
        "a: [\n",
        "kind: x\nkind: y\n",
    ]);
    let expected = [
        "a.yaml:11:10: spec.destinations[0].tag: tag may hold letters, digits, '.', '_', '-' and the placeholders {tag} and {digest}",
        "b.yaml:3:12: metadata.generateName: a file needs a name that stays: write metadata.name",
        "b.yaml:6:1: ImageMirror is known in apiVersion imagepusher.io/v1alpha1 only",
        "b.yaml:10:1: imagepusher.io has no such kind: write ImageMirror",
        "b.yaml:14:12: metadata.name: must be lower-case letters, digits, '.' and '-', at most 253",
        "b.yaml:18:26: metadata.namespace: must be lower-case letters, digits and '-', at most 63",
        "b.yaml:22:18: metadata.name: must be a string, not a number: put it in quotes",
        "b.yaml:24:1: must be an object with apiVersion and kind, both strings",
        "b.yaml:26:1: must be an object with apiVersion and kind, both strings",
        "c.yaml:4:18: data[password]: is not base64; text as it is goes under stringData",
        "e.yaml:1:4: this is no YAML: unclosed bracket '['",
        "f.yaml:1:1: must be an object with apiVersion and kind, both strings",
        "f.yaml:2:1: the key kind stands here twice, first in line 1",
    ];
    assert_eq!(told, expected);
    assert!(!told.join("\n").contains("hunter2"));
    let mut binary = Documents::default();
    let origin = Origin {
        name: "x".into(),
        folder: "/".into(),
    };
    binary.read(&origin, b"\xff\xfe");
    assert_eq!(
        binary.problems[0].to_string(),
        "x:1:1: this is not text in UTF-8"
    );
}

#[test]
fn an_unknown_field_hides_nothing_else_of_its_document() {
    let contradiction = "insecure: true\n    skipTLSVerify: true";
    let mistyped = mirror("one", "i.example/one", contradiction)
        .replace("spec:\n", "spec:\n  suspended: true\n");
    let no_login = mirror("two", "i.example/two", "secretRef: {name: gone}")
        .replace("name: two,", "name: two, lables: {a: b},");
    let secret = LOGIN
        .replace("type:", "typo: x\ntype:")
        .replace("czNj", "s3cret!");
    assert_eq!(
        problems(&[&mistyped, &no_login, &secret]),
        [
            "a.yaml:5:3: unknown field \"spec.suspended\": did you mean suspend?",
            "a.yaml:11:5: spec.destinations[0]: insecure means plain http, skipTLSVerify cannot apply: set one of them",
            "b.yaml:3:23: unknown field \"metadata.lables\": did you mean labels?",
            "b.yaml:11:5: spec.destinations[0].secretRef: Secret gone is in none of the files: add it, in namespace team",
            "c.yaml:4:1: unknown field \"typo\": did you mean type?",
            "c.yaml:9:5: data[password]: is not base64; text as it is goes under stringData",
        ]
    );
}

#[test]
fn what_only_the_engine_knows_has_its_place_too() {
    let conflict = mirror("app", "i.example/app", "tag: latest").replace("['1']", "['1', '2']");
    let cache = "{apiVersion: imagepusher.io/v1alpha1, kind: ImageMirror, metadata: {name: c}, \n spec: {source: {cache: {repository: docker.io/a, \
                 reference: sha256:abc}, registry: {repository: r.example/a, tags: [x]}}}}";
    let unusable = mirror("app", "i.example/app", "secretRef: {name: login}");
    let empty_login = LOGIN.replace("username: me", "user: me");
    assert_eq!(
        problems(&[&conflict]),
        [
            "a.yaml:4:1: i.example/app:latest would be written by destination default with r.example/app:1 and by destination \
          default with r.example/app:2: give one of them another tag or repository"
        ]
    );
    assert_eq!(problems(&[cache]).len(), 1);
    assert_eq!(
        problems(&[&unusable, &empty_login]),
        [
            "a.yaml:11:5: Secret login, named by spec.destinations[0].secretRef, cannot be used: the key username is missing or \
          empty"
        ]
    );
}

#[test]
fn two_mirrors_may_not_write_different_images_to_one_place() {
    let (one, two) = (
        mirror("one", "i.example/same", ""),
        mirror("two", "i.example/same", ""),
    );
    assert_eq!(
        problems(&[&one, &two]),
        [
            "b.yaml:9:3: i.example/same:1 would be written by team/one with r.example/one:1 and by team/two with \
          r.example/two:1: give one of them another tag or repository"
        ]
    );
    let suspended = two.replace("spec:", "spec:\n  suspend: true");
    assert!(prepare(&[&one, &suspended], &Surroundings::default()).is_ok());
    let same = two.replace("r.example/two", "r.example/one");
    assert!(prepare(&[&one, &same], &Surroundings::default()).is_ok());
}

#[test]
fn names_are_taken_once_per_namespace_and_other_kinds_are_passed_over() {
    let one = mirror("app", "i.example/one", "");
    let told = problems(&[&one, &one]);
    assert_eq!(
        told,
        ["b.yaml:3:12: ImageMirror team/app stands in a.yaml:3 already"]
    );
    let other = one.replace("namespace: team", "namespace: other");
    assert_eq!(
        prepare(&[&one, &other], &Surroundings::default())
            .unwrap()
            .len(),
        2
    );
    assert!(!format!("{:?}", read(&[LOGIN])).contains("czNj"));
    let namespace = "# nothing\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n";
    let documents = read(&[namespace]);
    assert_eq!(documents.mirror_count(), 0);
    assert_eq!(
        documents.passed_over()[0].to_string(),
        "a.yaml:3:1: Namespace of v1 is passed over"
    );
}

#[test]
fn a_list_holds_documents_and_their_places_are_kept() {
    let items = mirror("app", "i.example/one", "insecur: true").replace('\n', "\n  ");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {items}");
    assert_eq!(
        problems(&[&list]),
        [r#"a.yaml:14:7: unknown field "spec.destinations[0].insecur": did you mean insecure?"#]
    );
    let right = list.replace("insecur:", "insecure:");
    let raw = right.replacen(
        "v1\nkind: List",
        "imagepusher.io/v1alpha1\nkind: ImageMirrorList",
        1,
    );
    assert_eq!(prepare(&[&raw], &Surroundings::default()).unwrap().len(), 1);
    assert_eq!(
        prepare(&[&right], &Surroundings::default()).unwrap().len(),
        1
    );
    assert_eq!(
        problems(&["apiVersion: v1\nkind: List\nitems: x\n"]),
        ["a.yaml:3:1: items: must be a list"]
    );
}

fn text(pattern: &'static str) -> impl Strategy<Value = String> {
    proptest::string::string_regex(pattern).unwrap()
}

/// Words that YAML 1.1 takes for something else are likely tags.
fn tag() -> impl Strategy<Value = ImageTag> {
    let traps = vec![
        "1.10", "y", "Off", "0x1F", "null", "08", "1e3", "true", "1_0",
    ];
    let trap = proptest::sample::select(traps).prop_map(str::to_owned);
    prop_oneof![trap, text("[A-Za-z0-9_][A-Za-z0-9._-]{0,20}")].prop_map(ImageTag)
}

fn access() -> impl Strategy<Value = Access> {
    let secret =
        || proptest::option::of(text("[a-z0-9]{1,9}").prop_map(|name| SecretReference { name }));
    (secret(), secret(), proptest::option::of(any::<bool>())).prop_map(
        |(secret_ref, cert_secret_ref, skip_tls_verify)| Access {
            secret_ref,
            cert_secret_ref,
            skip_tls_verify,
            ..Access::default()
        },
    )
}

fn destination() -> impl Strategy<Value = Destination> {
    (
        text("[a-z0-9]{1,9}"),
        text("(v|[{]tag[}]|[{]digest[}]){1,3}"),
        access(),
    )
        .prop_map(|(name, tag, access)| Destination {
            repository: format!("i.example:5000/{{repository}}/{name}"),
            name,
            tag,
            access,
        })
}

fn spec() -> impl Strategy<Value = ImageMirrorSpec> {
    let digest =
        text("[a-z]{0,4}").prop_map(|text| PinnedDigest(Digest::of(text.as_bytes()).to_string()));
    let registry = (
        proptest::collection::vec(tag(), 1..4),
        proptest::collection::vec(digest, 0..3),
        access(),
    );
    let transfer = proptest::option::of(
        (
            1..=64,
            0..=20,
            proptest::option::of(text("[1-9][0-9]{0,5}(k|Mi|G)?")),
        )
            .prop_map(
                |(max_concurrent, retry_attempts, bandwidth_limit)| Transfer {
                    max_concurrent,
                    retry_attempts,
                    existing_blobs: ExistingBlobs::Upload,
                    bandwidth_limit,
                },
            ),
    );
    let rest = (
        proptest::option::of(text("[1-9][0-9]{0,2}[mh]")),
        proptest::option::of(any::<bool>()),
    );
    (
        registry,
        proptest::collection::vec(destination(), 0..3),
        transfer,
        rest,
    )
        .prop_map(
            |((tags, digests, access), destinations, transfer, (interval, suspend))| {
                ImageMirrorSpec {
                    source: Source {
                        registry: Some(RegistrySource {
                            repository: "docker.io/library/nginx".into(),
                            tags,
                            digests,
                            access,
                        }),
                        ..Source::default()
                    },
                    destinations,
                    interval,
                    timeout: None,
                    suspend,
                    transfer,
                }
            },
        )
}

proptest! {
    #[test]
    fn what_our_own_types_write_is_read_back_without_a_complaint(spec in spec(), as_json in any::<bool>()) {
        let resource = serde_json::json!({
            "apiVersion": "imagepusher.io/v1alpha1",
            "kind": "ImageMirror",
            "metadata": {"name": "app"},
            "spec": spec,
        });
        let text = if as_json { format!("{resource:#}") } else { serde_saphyr::to_string(&resource).unwrap() };
        let documents = read(&[&text]);
        prop_assert_eq!(&documents.problems, &Vec::new(), "{}", text);
        let document = documents.mirrors.into_values().next().unwrap();
        prop_assert_eq!(document.content, Some(spec), "{}", text);
    }

    #[test]
    fn any_text_is_survived(text in "[ \n\t:{}\\[\\],&*!|>'\"#%@`a-c?<-]{0,60}") {
        read(&[&text]);
    }
}
