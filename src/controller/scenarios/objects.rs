//! What is read from and written to other objects of the mirror's namespace: Secrets, ServiceAccounts, ConfigMaps.

use std::collections::BTreeSet;

use super::*;
use crate::{
    controller::{
        engine::{Given, Needs},
        error::api_error,
        reports::{ClusterReports, Kept, ReportKeeper as _},
        secrets::SecretSource as _,
    },
    error::Classified as _,
};

/// Reads these Secrets and these accounts of the namespace `team`, while `answer` plays the server.
async fn read(
    secrets: &[&str],
    accounts: &[&str],
    answer: impl AsyncFnOnce(&mut Handle),
) -> Result<Given, Failure> {
    let (client, mut handle) = server();
    let source = ClusterSecrets::new(client);
    let set = |names: &[&str]| -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    };
    let needs = Needs {
        secrets: set(secrets),
        accounts: set(accounts),
    };
    let (result, ()) = tokio::join!(source.read("team", &needs), answer(&mut handle));
    result
}

/// Expects a GET of this object of the namespace `team`.
async fn get(handle: &mut Handle, path: &str) -> Call {
    let call = Call::next(handle).await;
    assert_eq!(call.method, Method::GET);
    assert_eq!(call.uri, format!("/api/v1/namespaces/team/{path}"));
    call
}

#[tokio::test]
async fn a_secret_or_account_that_cannot_be_read_is_told_by_name_and_missing_permission() {
    for (kind, code, reason, expected, text) in [
        (
            "secrets",
            404,
            "NotFound",
            "SecretNotFound",
            "Secret login does not exist in namespace team",
        ),
        (
            "secrets",
            403,
            "Forbidden",
            "AccessDenied",
            "lacks the verb get on secrets in namespace team",
        ),
        (
            "secrets",
            500,
            "InternalError",
            "ApiServerUnavailable",
            "the server says InternalError",
        ),
        (
            "serviceaccounts",
            404,
            "NotFound",
            "ServiceAccountNotFound",
            "ServiceAccount login does not exist in namespace team",
        ),
        (
            "serviceaccounts",
            403,
            "Forbidden",
            "AccessDenied",
            "lacks the verb get on serviceaccounts in namespace team",
        ),
    ] {
        let (secrets, accounts): (&[_], &[_]) = match kind {
            "secrets" => (&["login"], &[]),
            _ => (&[], &["login"]),
        };
        let failure = read(secrets, accounts, async |handle| {
            let call = get(handle, &format!("{kind}/login")).await;
            call.refuse(code, reason);
        })
        .await
        .unwrap_err();
        assert_eq!(failure.reason, expected);
        assert!(failure.message.contains(text), "{}", failure.message);
    }
}

fn account(pull_secrets: &[&str]) -> Value {
    let names: Vec<Value> = pull_secrets
        .iter()
        .map(|name| json!({"name": name}))
        .collect();
    json!({"metadata": {"name": "puller"}, "imagePullSecrets": names})
}

fn secret(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"imagepusher.io/registry": "registry.example"}},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": "e30="},
    })
}

#[tokio::test]
async fn the_pull_secrets_of_an_account_are_read_once_and_missing_ones_left_out() {
    let given = read(&[], &["builder", "puller"], async |handle| {
        // A name from the cluster may be any text there; as a path it would lead elsewhere.
        let names = account(&["gone", "../../other/secrets/login", "", "login"]);
        get(handle, "serviceaccounts/builder")
            .await
            .answer(200, &names);
        get(handle, "secrets/gone").await.refuse(404, "NotFound");
        get(handle, "secrets/login")
            .await
            .answer(200, &secret("login"));
        get(handle, "serviceaccounts/puller")
            .await
            .answer(200, &names);
    })
    .await
    .unwrap();
    for account in ["builder", "puller"] {
        let documents = &given.pull_secrets[account];
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0].name, "login");
        assert_eq!(documents[0].registry.as_deref(), Some("registry.example"));
    }
}

#[tokio::test]
async fn an_account_without_pull_secrets_is_no_trouble_and_a_forbidden_one_of_them_is() {
    let given = read(&[], &["default"], async |handle| {
        let plain = json!({"metadata": {"name": "default"}});
        get(handle, "serviceaccounts/default")
            .await
            .answer(200, &plain);
    })
    .await
    .unwrap();
    assert_eq!(given.pull_secrets["default"], []);
    let failure = read(&[], &["puller"], async |handle| {
        let answer = account(&["login"]);
        get(handle, "serviceaccounts/puller")
            .await
            .answer(200, &answer);
        get(handle, "secrets/login").await.refuse(403, "Forbidden");
    })
    .await
    .unwrap_err();
    assert_eq!(failure.reason, "AccessDenied");
}

/// Keeps the report of a run of so many images, while `answer` plays the server.
async fn keep(images: usize, answer: impl AsyncFnOnce(&mut Handle)) -> Kept {
    let (client, mut handle) = server();
    let keeper = ClusterReports::new(client);
    let target = Target::of(&object()).unwrap();
    let image: &[Option<Class>] = &[None];
    let outcome = RunOutcome::Reported(fixtures::report(&vec![image; images]));
    let (kept, ()) = tokio::join!(keeper.keep(&target, &outcome), answer(&mut handle));
    kept
}

fn names(kept: &Kept) -> Vec<&str> {
    let references = kept.references.iter().flatten();
    references
        .map(|reference| reference.name.as_str())
        .collect()
}

/// The first ConfigMap as it is made where there is none.
async fn made() -> Value {
    let mut made = Value::Null;
    let kept = keep(1, async |handle| {
        let call = get(handle, "configmaps/mirror-report").await;
        call.refuse(404, "NotFound");
        let call = Call::next(handle).await;
        assert_eq!(call.method, Method::POST);
        assert!(
            call.uri.starts_with("/api/v1/namespaces/team/configmaps?"),
            "{}",
            call.uri
        );
        made = call.body.clone();
        call.answer(201, &made);
    })
    .await;
    assert_eq!(
        (names(&kept), &kept.trouble),
        (vec!["mirror-report"], &None)
    );
    made["metadata"]["resourceVersion"] = json!("7");
    made["metadata"]["uid"] = json!("uid-of-the-report");
    made
}

#[tokio::test]
async fn a_report_is_made_once_owned_by_its_mirror_and_left_alone_while_it_is_the_same() {
    let made = made().await;
    assert_eq!(
        made["metadata"]["ownerReferences"],
        json!([{
            "apiVersion": "imagepusher.io/v1alpha1", "kind": "ImageMirror", "name": "mirror", "uid": "uid-1",
            "controller": true, "blockOwnerDeletion": false,
        }])
    );
    let report: Value =
        serde_json::from_str(made["data"]["report.json"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&report["version"], &report["outcome"]),
        (&json!(1), &json!("Succeeded"))
    );
    assert_eq!(report["images"][0]["source"], "localhost:1/image:0");
    let kept = keep(1, async |handle| {
        get(handle, "configmaps/mirror-report")
            .await
            .answer(200, &made);
    })
    .await;
    assert_eq!(
        (names(&kept), &kept.trouble),
        (vec!["mirror-report"], &None)
    );
}

#[tokio::test]
async fn a_changed_report_replaces_the_old_one_and_what_is_left_of_a_longer_one_goes() {
    let mut longer = made().await;
    longer["metadata"]["annotations"]["imagepusher.io/report-parts"] = json!("3");
    let kept = keep(2, async |handle| {
        get(handle, "configmaps/mirror-report")
            .await
            .answer(200, &longer);
        get(handle, "configmaps/mirror-report-1")
            .await
            .answer(200, &longer);
        let delete = Call::next(handle).await;
        assert_eq!(delete.method, Method::DELETE);
        assert!(
            delete.uri.contains("/configmaps/mirror-report-1?"),
            "{}",
            delete.uri
        );
        assert_eq!(
            delete.body["preconditions"],
            json!({"resourceVersion": "7", "uid": "uid-of-the-report"})
        );
        delete.answer(200, &longer);
        // Somebody removed it by hand.
        get(handle, "configmaps/mirror-report-2")
            .await
            .refuse(404, "NotFound");
        let patch = Call::next(handle).await;
        assert_eq!(patch.method, Method::PATCH);
        assert!(
            patch.uri.contains("/configmaps/mirror-report?"),
            "{}",
            patch.uri
        );
        assert_eq!(patch.content_type, "application/merge-patch+json");
        let metadata = &patch.body["metadata"];
        assert_eq!(metadata["resourceVersion"], "7");
        assert_eq!(metadata["annotations"]["imagepusher.io/report-parts"], "1");
        assert!(
            patch.body["data"]["report.json"]
                .as_str()
                .unwrap()
                .contains("image:1")
        );
        patch.answer(200, &longer);
    })
    .await;
    assert_eq!(
        (names(&kept), &kept.trouble),
        (vec!["mirror-report"], &None)
    );
}

#[tokio::test]
async fn the_first_part_of_a_long_report_is_written_last() {
    let kept = keep(9_000, async |handle| {
        get(handle, "configmaps/mirror-report")
            .await
            .refuse(404, "NotFound");
        get(handle, "configmaps/mirror-report-1")
            .await
            .refuse(404, "NotFound");
        let call = Call::next(handle).await;
        assert_eq!(call.method, Method::POST);
        assert_eq!(call.body["metadata"]["name"], "mirror-report-1");
        assert_eq!(call.body["metadata"].get("annotations"), None);
        let body = call.body.clone();
        call.answer(201, &body);
        let call = Call::next(handle).await;
        assert_eq!(call.body["metadata"]["name"], "mirror-report");
        assert_eq!(
            call.body["metadata"]["annotations"]["imagepusher.io/report-parts"],
            "2"
        );
        let body = call.body.clone();
        call.answer(201, &body);
    })
    .await;
    assert_eq!(names(&kept), ["mirror-report", "mirror-report-1"]);
}

/// Somebody's hand, or a run that was cut off.
#[tokio::test]
async fn a_report_that_was_tampered_with_is_mended() {
    let made = made().await;
    let mut other_data = made.clone();
    other_data["data"]["report.json"] = json!("nothing failed");
    let mut other_count = made.clone();
    other_count["metadata"]["annotations"]["imagepusher.io/report-parts"] = json!("0");
    let mut without_data = made.clone();
    without_data["data"] = Value::Null;
    for tampered in [other_data, other_count, without_data] {
        let kept = keep(1, async |handle| {
            get(handle, "configmaps/mirror-report")
                .await
                .answer(200, &tampered);
            let patch = Call::next(handle).await;
            assert_eq!(patch.method, Method::PATCH);
            assert_eq!(patch.body["data"], made["data"]);
            assert_eq!(
                patch.body["metadata"]["annotations"],
                made["metadata"]["annotations"]
            );
            patch.answer(200, &made);
        })
        .await;
        assert_eq!(
            (names(&kept), &kept.trouble),
            (vec!["mirror-report"], &None)
        );
    }
}

#[tokio::test]
async fn a_later_part_that_was_removed_is_made_again_and_a_whole_report_left_alone() {
    let [first, second] = made_in_two().await;
    keep(9_000, async |handle| {
        get(handle, "configmaps/mirror-report")
            .await
            .answer(200, &first);
        get(handle, "configmaps/mirror-report-1")
            .await
            .refuse(404, "NotFound");
        let create = Call::next(handle).await;
        assert_eq!(create.method, Method::POST);
        assert_eq!(create.body["data"], second["data"]);
        create.answer(201, &second);
    })
    .await;
    let kept = keep(9_000, async |handle| {
        get(handle, "configmaps/mirror-report")
            .await
            .answer(200, &first);
        get(handle, "configmaps/mirror-report-1")
            .await
            .answer(200, &second);
    })
    .await;
    assert_eq!(names(&kept), ["mirror-report", "mirror-report-1"]);
}

/// The ConfigMaps of a report that needs two.
async fn made_in_two() -> [Value; 2] {
    let mut made = [Value::Null, Value::Null];
    keep(9_000, async |handle| {
        for name in ["mirror-report", "mirror-report-1"] {
            get(handle, &format!("configmaps/{name}"))
                .await
                .refuse(404, "NotFound");
        }
        // The first comes last.
        for position in [1, 0] {
            let create = Call::next(handle).await;
            made[position] = create.body.clone();
            create.answer(201, &made[position]);
        }
    })
    .await;
    made
}

/// Its data is somebody's.
#[tokio::test]
async fn a_config_map_of_somebody_else_is_never_written() {
    let made = made().await;
    let of = |owners: Value| {
        let mut foreign = made.clone();
        foreign["metadata"]["ownerReferences"] = owners;
        foreign
    };
    let before = owner_before(&made);
    let but = |field: &str, value: Value| {
        let mut other = before.clone();
        other[field] = value;
        of(json!([other]))
    };
    for foreign in [
        of(json!([])),
        but("name", json!("other")),
        but("kind", json!("Deployment")),
        but("apiVersion", json!("other.io/v1alpha1")),
        but("controller", json!(false)),
        // It stays when the mirror goes.
        of(
            json!([before, {"apiVersion": "v1", "kind": "Secret", "name": "mirror", "uid": "uid-9"}]),
        ),
    ] {
        let kept = keep(1, async |handle| {
            get(handle, "configmaps/mirror-report")
                .await
                .answer(200, &foreign);
        })
        .await;
        assert_eq!(names(&kept), Vec::<&str>::new());
        let trouble = kept.trouble.unwrap();
        assert!(
            trouble.contains("mirror-report is not owned by this mirror"),
            "{trouble}"
        );
    }
}

/// The owner of the report of an earlier mirror of the same name.
fn owner_before(made: &Value) -> Value {
    let mut owner = made["metadata"]["ownerReferences"][0].clone();
    owner["uid"] = json!("uid-0");
    owner
}

#[tokio::test]
async fn what_an_earlier_mirror_of_the_name_left_is_removed_and_made_anew() {
    let made = made().await;
    let mut left = made.clone();
    left["metadata"]["ownerReferences"][0] = owner_before(&made);
    // The garbage collector may come between.
    for is_gone in [false, true] {
        let kept = keep(1, async |handle| {
            get(handle, "configmaps/mirror-report")
                .await
                .answer(200, &left);
            let delete = Call::next(handle).await;
            assert_eq!(delete.method, Method::DELETE);
            assert_eq!(
                delete.body["preconditions"],
                json!({"resourceVersion": "7", "uid": "uid-of-the-report"})
            );
            if is_gone {
                delete.refuse(404, "NotFound");
            } else {
                delete.answer(200, &left);
            }
            let create = Call::next(handle).await;
            assert_eq!(create.method, Method::POST);
            assert_eq!(
                create.body["metadata"]["ownerReferences"],
                made["metadata"]["ownerReferences"]
            );
            create.answer(201, &made);
        })
        .await;
        assert_eq!(
            (names(&kept), &kept.trouble),
            (vec!["mirror-report"], &None)
        );
    }
}

#[tokio::test]
async fn what_was_exchanged_before_it_could_be_removed_stays() {
    let mut left = made().await;
    left["metadata"]["ownerReferences"][0] = owner_before(&left);
    let kept = keep(1, async |handle| {
        get(handle, "configmaps/mirror-report")
            .await
            .answer(200, &left);
        Call::next(handle).await.refuse(409, "Conflict");
    })
    .await;
    let trouble = kept.trouble.unwrap();
    assert!(
        trouble.contains("delete the ConfigMap mirror-report"),
        "{trouble}"
    );
}

#[tokio::test]
async fn a_report_that_may_not_be_written_names_the_role_and_is_not_referred_to() {
    let kept = keep(1, async |handle| {
        get(handle, "configmaps/mirror-report")
            .await
            .refuse(404, "NotFound");
        Call::next(handle).await.refuse(403, "Forbidden");
    })
    .await;
    assert_eq!(names(&kept), Vec::<&str>::new());
    let trouble = kept.trouble.unwrap();
    let expected = "create the ConfigMap mirror-report";
    assert!(
        trouble.contains(expected) && trouble.contains("ClusterRole"),
        "{trouble}"
    );
}

/// CRD finding F30.
#[tokio::test]
async fn a_status_that_the_installed_crd_does_not_know_is_told_with_the_remedy() {
    let refusal = kube::core::Status {
        code: 500,
        message:
            "failed to create typed patch object: .status.reportRef: field not declared in schema"
                .into(),
        ..kube::core::Status::default()
    };
    let error = api_error("write the status", &kube::Error::Api(Box::new(refusal)));
    assert_eq!(
        (error.class(), error.reason()),
        (Class::Config, "CrdOutdated")
    );
    let text = error.to_string();
    assert!(
        text.contains(".status.reportRef") && text.contains("kubectl apply"),
        "{text}"
    );
}
