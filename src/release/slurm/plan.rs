//! Which jobs a release needs, with their scripts.

use std::path::{Path, PathBuf};

use super::state::SlurmDir;
use crate::base::atomic;
use crate::base::digest::Digest;
use crate::base::env_vars;
use crate::checkpoint::hub_env::HubEnv;
use crate::exec::Graph;
use crate::exec::slurm::{Profile, Script};
use crate::record::Failure;
use crate::release::jobs::{self, CLOSEOUT, StageJob};
use crate::release::preflight::Inputs;

/// A job with its script.
pub struct Planned<'a> {
    /// The job; `None` for closeout.
    pub job: Option<StageJob>,
    /// Its script.
    pub script: Script<'a>,
    /// Seconds that its longest task will probably take; `None`: unknown.
    pub estimate_s: Option<f64>,
}

impl Planned<'_> {
    /// Stage.
    pub fn stage(&self) -> &str {
        self.job.as_ref().map_or(CLOSEOUT, |job| job.stage)
    }

    /// Number of units.
    pub fn units(&self) -> usize {
        self.job.as_ref().map_or(1, |job| job.nodes().len())
    }

    /// Writes the script into `dir`.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, Failure> {
        let path = dir.join(format!("{}.sh", self.stage()));
        atomic::write(&path, self.script.render().as_bytes()).map_err(|e| Failure::io(path.display(), &e))?;
        Ok(path)
    }
}

/// Where the jobs run.
pub struct Place {
    /// Run directory.
    pub run: PathBuf,
    /// Name of the run, which the names of its jobs begin with.
    pub run_id: String,
    /// Directory in which they run.
    pub directory: PathBuf,
    /// Cache that all nodes share.
    pub cache: PathBuf,
    /// The program.
    pub program: PathBuf,
}

impl Place {
    /// Jobs of the run at `run` that run in the current directory.
    pub fn here(run: &Path, run_id: &str, profile: &Profile, cache: &Path) -> Result<Self, Failure> {
        let directory = std::env::current_dir().map_err(|e| Failure::io("the current directory", &e))?;
        let own = || std::env::current_exe().map_err(|e| Failure::io("the running program", &e));
        Ok(Self {
            run: directory.join(run),
            run_id: run_id.to_owned(),
            cache: directory.join(cache),
            program: profile.program.clone().map_or_else(own, Ok)?,
            directory,
        })
    }

    /// Name of the job of a stage: of no other run, also where two begin in one second on the same inputs.
    pub fn job_name(&self, stage: &str) -> String {
        let place = Digest::of(self.run.as_os_str().as_encoded_bytes());
        format!("day0-{}-{}-{stage}", self.run_id, place.short(8))
    }
}

/// The jobs of `graph` and the one that closes the run.
pub fn plan<'p>(graph: &Graph<'_>, inputs: &Inputs, profile: &'p Profile, place: &Place) -> Vec<Planned<'p>> {
    let tasks = |stage: &str| profile.resources(stage).tasks.map(|n| n as usize);
    let all = jobs::jobs(graph, &tasks);
    let paths = paths(inputs, profile, place);
    let planned = all.into_iter().map(|job| {
        let count = job.parts.len() as u32;
        let mut arguments = vec!["unit".to_owned(), job.stage.to_owned()];
        if job.is_array() {
            let parts = ["--part", "$SLURM_ARRAY_TASK_ID", "--parts", &count.to_string()].map(str::to_owned);
            arguments.extend(parts);
        }
        let tasks = job.is_array().then(|| (0..count).collect());
        let script = script(profile, place, job.stage, tasks, arguments);
        let script = Script { paths: paths.clone(), ..script };
        let parameters = inputs.source.num_elements();
        let estimate_s = jobs::estimate(&job, parameters, script.cpus(), &inputs.config);
        Planned { estimate_s, script, job: Some(job) }
    });
    let mut planned: Vec<Planned<'p>> = planned.collect();
    let arguments = vec!["unit".to_owned(), CLOSEOUT.to_owned()];
    let script = script(profile, place, CLOSEOUT, None, arguments);
    planned.push(Planned { job: None, script, estimate_s: Some(0.0) });
    planned
}

fn script<'p>(
    profile: &'p Profile,
    place: &Place,
    stage: &str,
    tasks: Option<Vec<u32>>,
    mut arguments: Vec<String>,
) -> Script<'p> {
    let slurm = SlurmDir::at(&place.run);
    arguments.extend(["--run".to_owned(), place.run.display().to_string()]);
    Script {
        name: place.job_name(stage),
        resources: profile.resources(stage),
        profile,
        tasks,
        directory: place.directory.clone(),
        logs: slurm.logs(),
        exits: slurm.exits(),
        program: place.program.clone(),
        arguments,
        environment: vec![(env_vars::DAY0_CACHE.to_owned(), place.cache.display().to_string())],
        paths: Vec::new(),
        in_container: stage != CLOSEOUT,
        is_warned: stage != CLOSEOUT,
    }
}

/// What the jobs read and write: the run, the cache, the model, the data, the hub's cache.
fn paths(inputs: &Inputs, profile: &Profile, place: &Place) -> Vec<PathBuf> {
    let model = inputs.model.dir.clone();
    let data = inputs.config.data.clone();
    // Files of the hub are links into its cache.
    let hub = Some(HubEnv::from_env().cache);
    let home = profile.environment.get(env_vars::HF_HOME).map(PathBuf::from);
    let there = |path: &PathBuf| path.exists();
    let hubs = [hub, home].into_iter().flatten().filter(there);
    let read = [Some(model), data].into_iter().flatten().chain(hubs).map(|path| place.directory.join(path));
    [place.run.clone(), place.cache.clone()].into_iter().chain(read).collect()
}
