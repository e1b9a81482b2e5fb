//! Conditions: how they are built, how a new one meets the one that stands there, and what must hold for all of them.
//!
//! Ready is always present; Reconciling and Stalled only while they are True, and never both (operator rule S2): tools that
//! wait for health read exactly that. Only conditions of our own are built and sent; those of others survive because
//! server-side apply leaves alone what we do not name (CRD finding F28).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::limits::{MAX_MESSAGE_LENGTH, shortened};

/// The summary: all images are at all destinations.
pub const READY: &str = "Ready";
/// Work is going on or will be tried again by itself.
pub const RECONCILING: &str = "Reconciling";
/// Nothing will happen before somebody mends the cause (or, for a cause outside the spec, before the next interval).
pub const STALLED: &str = "Stalled";

/// Value of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::IntoStaticStr)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Nobody knows yet.
    Unknown,
}

/// A condition that begins `now`, unless [`merged`] finds that it stood before.
pub fn condition(
    type_: &str,
    truth: Truth,
    reason: &str,
    message: &str,
    generation: i64,
    now: &Time,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: <&str>::from(truth).to_owned(),
        reason: reason.to_owned(),
        message: shortened(message, MAX_MESSAGE_LENGTH),
        observed_generation: Some(generation),
        last_transition_time: now.clone(),
    }
}

/// The condition of this type.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The `wanted` conditions; each whose status stood before keeps the time since when it stands (operator rule S8).
/// Conditions that are not wanted are gone.
pub fn merged(previous: &[Condition], wanted: Vec<Condition>) -> Vec<Condition> {
    wanted
        .into_iter()
        .map(|mut condition| {
            if let Some(before) = find(previous, &condition.type_)
                && before.status == condition.status
            {
                condition.last_transition_time = before.last_transition_time.clone();
            }
            condition
        })
        .collect()
}

/// What must hold for every status that the operator writes (operator rule S5), for tests.
#[cfg(test)]
pub(crate) mod check {
    use crate::api::ImageMirrorStatus;

    use super::{READY, RECONCILING, STALLED, find};

    /// Whether a status is written during a run or after it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Moment {
        Mid,
        End,
    }

    /// The rules that `status` breaks for an object of this generation.
    pub(crate) fn violations(
        status: &ImageMirrorStatus,
        generation: i64,
        moment: Moment,
    ) -> Vec<&'static str> {
        let get = |type_| find(&status.conditions, type_);
        let is = |type_, value: &str| get(type_).is_some_and(|found| found.status == value);
        let (reconciling, stalled) = (get(RECONCILING).is_some(), get(STALLED).is_some());
        let end = moment == Moment::End;
        let ready_true = is(READY, "True");
        let old_condition = status
            .conditions
            .iter()
            .any(|found| found.observed_generation.unwrap_or(0) < generation);
        let mixed = status
            .conditions
            .iter()
            .any(|found| found.observed_generation != Some(status.observed_generation));
        let ready_is_column =
            get(READY).map(|found| found.status.as_str()) == status.ready.as_deref();
        let checks = [
            (
                "FAIL0001",
                end && ready_true && (is(RECONCILING, "True") || is(STALLED, "True")),
            ),
            ("FAIL0002", get(READY).is_none()),
            (
                "FAIL0003",
                end && is(RECONCILING, "True") && !is(READY, "False"),
            ),
            ("FAIL0004", is(STALLED, "True") && !is(READY, "False")),
            ("FAIL0005", reconciling && stalled),
            ("FAIL0006", status.observed_generation > generation),
            (
                "FAIL0007",
                end && status.observed_generation < generation && ready_true,
            ),
            ("FAIL0008", end && old_condition && ready_true),
            ("FAIL0009", end && ready_true && mixed),
            (
                "FAIL0011",
                // A mirror that was suspended before it ever ran waits for somebody, not for us.
                is(READY, "Unknown")
                    && !is(RECONCILING, "True")
                    && get(READY).is_some_and(|found| found.reason != "Suspended"),
            ),
            ("WARN0001", end && ready_true && (reconciling || stalled)),
            ("WARN0003", reconciling && !is(RECONCILING, "True")),
            ("WARN0004", stalled && !is(STALLED, "True")),
            (
                "WARN0005",
                status
                    .conditions
                    .iter()
                    .any(|found| found.observed_generation.is_none_or(|value| value < 1)),
            ),
            ("ready column", !ready_is_column),
            (
                "reason",
                status.conditions.iter().any(|found| {
                    !found
                        .reason
                        .starts_with(|first: char| first.is_ascii_uppercase())
                        || !found
                            .reason
                            .chars()
                            .all(|each| each.is_ascii_alphanumeric())
                }),
            ),
        ];
        checks
            .into_iter()
            .filter_map(|(name, broken)| broken.then_some(name))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    proptest! {
        #[test]
        fn the_transition_time_moves_only_when_the_status_flips(steps in proptest::collection::vec(
            (prop_oneof![Just(Truth::True), Just(Truth::False), Just(Truth::Unknown)], "[A-Z][a-z]{1,5}", 1_i64..5), 1..20)) {
            let mut conditions: Vec<Condition> = Vec::new();
            for (second, (truth, reason, generation)) in (0..).zip(steps) {
                let new = condition(READY, truth, &reason, "text", generation, &at(second));
                let next = merged(&conditions, vec![new]);
                let before = find(&conditions, READY);
                let after = find(&next, READY).unwrap();
                let flipped = before.is_none_or(|before| before.status != after.status);
                let expected = if flipped { at(second) } else { before.unwrap().last_transition_time.clone() };
                prop_assert_eq!(&after.last_transition_time, &expected);
                prop_assert_eq!((&after.reason, after.observed_generation), (&reason, Some(generation)));
                conditions = next;
            }
        }
    }

    #[test]
    fn what_is_not_wanted_is_gone() {
        let stalled = condition(STALLED, Truth::True, "InvalidSpec", "x", 1, &at(0));
        let ready = condition(READY, Truth::True, "Succeeded", "x", 1, &at(1));
        assert_eq!(merged(&[stalled], vec![ready.clone()]), vec![ready]);
    }

    #[test]
    fn the_check_finds_what_misleads_a_waiter() {
        use check::{Moment, violations};
        let of = |types: &[(&str, Truth)]| crate::api::ImageMirrorStatus {
            observed_generation: 1,
            ready: Some("True".to_owned()),
            conditions: types
                .iter()
                .map(|(type_, truth)| condition(type_, *truth, "Reason", "", 1, &at(0)))
                .collect(),
            ..crate::api::ImageMirrorStatus::default()
        };
        let ready = of(&[(READY, Truth::True)]);
        assert!(violations(&ready, 1, Moment::End).is_empty());
        assert_eq!(
            violations(&ready, 2, Moment::End),
            ["FAIL0007", "FAIL0008"],
            "an old verdict on a new spec"
        );
        let both = of(&[
            (READY, Truth::True),
            (RECONCILING, Truth::True),
            (STALLED, Truth::True),
        ]);
        assert_eq!(violations(&both, 1, Moment::Mid), ["FAIL0004", "FAIL0005"],);
    }
}
