//! A Slurm that only keeps a list: for answers that a real one does not give on demand, and runs whose jobs the test ends.

use std::path::Path;
use std::process::Command;

use super::cluster::Site;
use crate::common::{Ran, ran};

/// Numbers jobs from 101 on. `on-check` and `on-submit` are what it does besides, where there is such a file.
const SBATCH: &str = r#"[ "$1" != --version ] || exit 0
for script; do :; done
case "$*" in *--test-only*) [ ! -e SITE/on-check ] || . SITE/on-check; exit 0;; esac
id=$(($(wc -l < SITE/jobs) + 101))
env | grep -E '^(SBATCH|SQUEUE|SLURM)_' >> SITE/environment
echo "$id $(sed -n 's/^#SBATCH --job-name=//p' "$script")" >> SITE/jobs
sed -n 's/^#SBATCH --array=/ArrayTaskId=/p' "$script" > "SITE/array-$id"
[ ! -e SITE/on-submit ] || . SITE/on-submit
echo "$id""#;

const SQUEUE: &str = r#"for name; do :; done
while read -r id other; do
  if [ "$other" = "$name" ] && ! [ -e "SITE/end-$id" ]; then echo "$id"; fi
done < SITE/jobs"#;

const SCONTROL: &str = r#"case "$*" in *'show job'*) ;; *) exit 0;; esac
for id; do :; done
state='JobState=PENDING Reason=Dependency'
[ ! -e "SITE/end-$id" ] || state=$(cat "SITE/end-$id")
echo "JobId=$id $(cat "SITE/array-$id") $state""#;

const SCANCEL: &str = r#"for id; do
  [ "$id" = --quiet ] || { echo "$id" >> SITE/cancelled; echo 'JobState=CANCELLED NodeList=(null)' > "SITE/end-$id"; }
done"#;

/// What the controller says of a job that never began because one before it failed.
pub const CONSEQUENCE: &str = "JobState=CANCELLED Reason=DependencyNeverSatisfied NodeList=(null)";
/// Of a job whose node is gone.
pub const LOST: &str = "JobState=NODE_FAIL Reason=None NodeList=n1";

/// A run whose jobs go there.
pub struct FakeSlurm {
    pub site: Site,
}

impl FakeSlurm {
    /// With a cluster profile.
    pub fn new(profile: &str) -> Self {
        let site =
            Site::new(&format!("{profile}\nstages: {{quantize: {{tasks: 1}}, score: {{tasks: 1}}}}\n"));
        for (name, script) in
            [("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", SCONTROL), ("scancel", SCANCEL)]
        {
            site.add_command(name, script);
        }
        site.add_command("sacct", "exit 1");
        std::fs::write(site.path().join("jobs"), "").unwrap();
        Self { site }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.site.command(args);
        command.env("PATH", self.site.path_variable());
        command
    }

    pub fn day0(&self, args: &[&str]) -> Ran {
        ran(self.command(args).output().unwrap())
    }

    /// Submits a small release.
    pub fn release(&self) -> Ran {
        self.day0(&Self::release_args())
    }

    pub fn release_args() -> Vec<&'static str> {
        Site::release_args(&["--suite", "tiny_homes"])
    }

    pub fn resume(&self) -> Ran {
        self.day0(&["release", "--resume", "run"])
    }

    /// Writes a file of the site.
    pub fn write(&self, name: impl AsRef<Path>, text: &str) {
        std::fs::write(self.site.path().join(name), text).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.site.path().join(name)).unwrap();
    }

    /// The lines of a file of the site; none where there is no such file.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.site.path().join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The last submission: its number, whether it is complete, and the stages with their ids.
    pub fn last(&self) -> (u64, bool, Vec<(String, String)>) {
        let submission = self.site.submission();
        let job = |job: &serde_json::Value| {
            (job["stage"].as_str().unwrap().to_owned(), job["id"].as_u64().unwrap().to_string())
        };
        let jobs = submission["jobs"].as_array().unwrap().iter().map(job).collect();
        (submission["number"].as_u64().unwrap(), submission["complete"] == true, jobs)
    }

    /// What the controller says of a job from now on.
    pub fn end(&self, id: &str, state: &str) {
        self.write(format!("end-{id}"), state);
    }

    /// The first job of the last submission ends like this, and those that wait for it with it.
    pub fn first_ends(&self, state: &str) {
        let jobs = self.last().2;
        self.end(&jobs[0].1, state);
        for (_, id) in jobs[1..].iter().filter(|(stage, _)| stage != "closeout") {
            self.end(id, CONSEQUENCE);
        }
    }

    /// Runs what the job of a stage runs, and ends it.
    pub fn runs(&self, stage: &str) -> Ran {
        let id = self.site.job(stage);
        let ran = self.runs_as(stage, &id);
        let (state, code) =
            if ran.code == Some(0) { ("COMPLETED", 0) } else { ("FAILED", ran.code.unwrap_or(137)) };
        self.end(&id, &format!("JobState={state} ExitCode={code}:0 NodeList=n1"));
        ran
    }

    /// Runs what the job of a stage runs, as the job `id`.
    pub fn runs_as(&self, stage: &str, id: &str) -> Ran {
        let mut command = self.command(&["unit", stage, "--run", "run"]);
        ran(command.env("SLURM_JOB_ID", id).output().unwrap())
    }

    /// Whether the run was closed.
    pub fn is_closed(&self) -> bool {
        self.site.run().join("slurm/closed.json").is_file()
    }
}
