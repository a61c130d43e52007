//! Where the units of a run ran, from its ledger.

use std::collections::BTreeMap;

use crate::exec::{Ledger, Owner, UnitHistory};
use crate::record::Failure;
use crate::record::release::{Execution, PlaceRecord, RestartRecord, ResubmissionRecord, RetryRecord};
use crate::release::run_dir::RunDir;
use crate::release::slurm::{SlurmDir, SubmissionRecord};

/// Where the units of `run` ran so far.
pub fn execution(run: &RunDir) -> Result<Execution, Failure> {
    let snapshot = Ledger::snapshot(&run.ledger())?.unwrap_or_default();
    let mut execution = of(snapshot.units.values().filter(|h| h.unit != "submission"));
    let submissions = SlurmDir::of(run).submissions()?;
    execution.resubmitted = submissions.into_iter().filter(|s| s.number > 1).map(resubmission).collect();
    Ok(execution)
}

fn resubmission(record: SubmissionRecord) -> ResubmissionRecord {
    let why = record.because.map_or_else(|| "the run was resumed".to_owned(), |cause| cause.what);
    ResubmissionRecord { number: record.number, by: record.submitted_by, why }
}

fn of<'h>(units: impl Iterator<Item = &'h UnitHistory>) -> Execution {
    let mut places: BTreeMap<(String, String, String), PlaceRecord> = BTreeMap::new();
    let mut retried = Vec::new();
    let mut restarts: BTreeMap<String, u32> = BTreeMap::new();
    for history in units {
        if let Some(owner) = history.done_by() {
            let (place, job) = (owner.place().to_owned(), job(owner));
            let units = common_name(&history.unit).to_owned();
            let record = places.entry((units.clone(), job.clone(), place.clone())).or_insert(PlaceRecord {
                units,
                count: 0,
                place,
                job,
                elapsed_s: 0.0,
            });
            record.count += 1;
            record.elapsed_s += history.elapsed_s;
        }
        let owners = history.attempts.iter().filter_map(|a| a.owner.job.as_deref());
        for (job, count) in owners.filter_map(restart) {
            let most = restarts.entry(job.to_owned()).or_default();
            *most = count.max(*most);
        }
        retried.extend(history.lost().map(|attempt| RetryRecord {
            unit: history.unit.clone(),
            place: attempt.owner.place().to_owned(),
            job: job(&attempt.owner),
            why: match &attempt.failure {
                Some(failure) => failure.message.clone(),
                None => "never heard of again".to_owned(),
            },
        }));
    }
    retried.sort_by(|a, b| (&a.unit, &a.job).cmp(&(&b.unit, &b.job)));
    let restarted = restarts.into_iter().map(|(job, restarts)| RestartRecord { job, restarts }).collect();
    Execution { places: places.into_values().collect(), retried, restarted, resubmitted: Vec::new() }
}

/// `12_3+1` as job and number of restarts.
fn restart(job: &str) -> Option<(&str, u32)> {
    let (job, count) = job.split_once('+')?;
    Some((job, count.parse().ok()?))
}

fn job(owner: &Owner) -> String {
    owner.job.clone().unwrap_or_default()
}

/// A wave or look without its number: `score/baseline/arc_easy/7` is one of many.
fn common_name(unit: &str) -> &str {
    match unit.rsplit_once('/') {
        Some((name, number)) if number.chars().all(|c| c.is_ascii_digit()) => name,
        _ => unit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{Attempt, Flow};
    use crate::record::FailureClass;

    #[test]
    fn waves_of_one_process_are_one_line_and_lost_attempts_are_listed() {
        let owner = |job: &str, node: &str| Owner {
            job: Some(job.to_owned()),
            node: Some(node.to_owned()),
            ..Owner::current()
        };
        let attempt =
            |owner: Owner, done, failure| Attempt { owner, done, failure, failed_at: String::new() };
        let history = |unit: &str, attempts: Vec<Attempt>| UnitHistory {
            unit: unit.to_owned(),
            attempts,
            done: Some(Flow::Continue),
            reused: false,
            elapsed_s: 2.0,
        };
        let failure = Failure::new(FailureClass::InfraTransient, "lost");
        let units = [
            history("scan", vec![attempt(owner("1", "n1"), true, None)]),
            history("score/baseline/a/0", vec![attempt(owner("2_0", "n1"), true, None)]),
            history("score/baseline/a/1", vec![attempt(owner("2_0", "n1"), true, None)]),
            history(
                "score/baseline/a/2",
                vec![
                    attempt(owner("2_0", "n1"), false, Some(failure)),
                    attempt(owner("2_0+1", "n2"), false, None),
                    attempt(owner("2_0+2", "n2"), true, None),
                ],
            ),
        ];
        let found = of(units.iter());
        let shown: Vec<_> = found
            .places
            .iter()
            .map(|p| (p.units.as_str(), p.count, p.place.as_str(), p.job.as_str()))
            .collect();
        let expected = [
            ("scan", 1, "n1", "1"),
            ("score/baseline/a", 2, "n1", "2_0"),
            ("score/baseline/a", 1, "n2", "2_0+2"),
        ];
        assert_eq!(shown, expected);
        let whys: Vec<&str> = found.retried.iter().map(|r| r.why.as_str()).collect();
        assert_eq!(whys, ["lost", "never heard of again"]);
        assert_eq!(found.restarted, [RestartRecord { job: "2_0".to_owned(), restarts: 2 }]);
        assert_eq!(
            found.tried_again(),
            [
                "job 2_0: put back into the queue 2 times",
                "score/baseline/a/2 (on n1, job 2_0): lost",
                "score/baseline/a/2 (on n2, job 2_0+1): never heard of again",
            ]
        );
    }
}
