//! The batch script of one job.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::profile::{Container, Profile, Resources, Runtime};

/// One job: what to run, how often, with what.
#[derive(Debug, Clone)]
pub struct Script<'a> {
    /// Job name.
    pub name: String,
    /// Resources.
    pub resources: Resources,
    /// The profile.
    pub profile: &'a Profile,
    /// Tasks of the array; `None` for a job that is no array.
    pub tasks: Option<Vec<u32>>,
    /// Directory in which it runs.
    pub directory: PathBuf,
    /// Directory of the logs.
    pub logs: PathBuf,
    /// Directory of the files that hold exit codes.
    pub exits: PathBuf,
    /// The program on the node.
    pub program: PathBuf,
    /// Its arguments; `$SLURM_ARRAY_TASK_ID` stands for the task.
    pub arguments: Vec<String>,
    /// Environment beside the profile's.
    pub environment: Vec<(String, String)>,
    /// Files and directories that the program reads and writes, which a container sees under the same paths.
    pub paths: Vec<PathBuf>,
    /// Whether it runs in the profile's container. A job that asks and tells Slurm does not: images lack its commands.
    pub in_container: bool,
    /// Whether it is warned before its time limit, to store what it has and go on later.
    pub is_warned: bool,
}

/// The id of the job.
const HEAD: &str = r#"job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}}"
job="${job:-$SLURM_JOB_ID}"
warned=
child=
"#;
/// The warning before the time limit is passed on to the program: it stores what it has and ends with 138 (128 + SIGUSR1).
const PASS_WARNING: &str = r#"trap 'warned=1; [ -z "$child" ] || kill -USR1 "$child" 2>/dev/null' USR1
"#;
/// Neither the script nor the program hears of it.
const IGNORE_WARNING: &str = "trap '' USR1\n";

/// CPUs of a task whose profile names none.
const DEFAULT_CPUS: u32 = 1;

impl Script<'_> {
    /// CPUs of each task.
    pub fn cpus(&self) -> u32 {
        self.resources.cpus.unwrap_or(DEFAULT_CPUS)
    }

    /// Nodes of each task.
    pub fn nodes(&self) -> u32 {
        self.resources.nodes.unwrap_or(1)
    }

    /// The text of the script.
    pub fn render(&self) -> String {
        let mut text = String::from("#!/bin/bash\n");
        for option in self.options() {
            let _ = writeln!(text, "#SBATCH {option}");
        }
        text.push_str(HEAD);
        text.push_str(if self.is_warned { PASS_WARNING } else { IGNORE_WARNING });
        for (name, value) in self.environment.iter().map(|(n, v)| (n, v)).chain(&self.profile.environment) {
            let _ = writeln!(text, "export {name}={}", quote(value));
        }
        let exits = quote_path(&self.exits);
        let _ = writeln!(text, "rm -f {exits}/\"$job\"");
        if !self.profile.prologue.trim().is_empty() {
            // A prologue that fails ends the job, which leaves its exit code as the program would.
            let _ = write!(
                text,
                r#"trap 'code=$?; [ "$code" = 0 ] || echo "$code" > {exits}/"$job"' EXIT
set -e
{prologue}
set +e
trap - EXIT
"#,
                exits = exits.replace('\'', r"'\''"),
                prologue = self.profile.prologue.trim_end(),
            );
        }
        let _ = write!(
            text,
            r#"{command} &
child=$!
[ -z "$warned" ] || kill -USR1 "$child" 2>/dev/null
wait "$child"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do
  wait "$child"
  code=$?
done
if [ "$code" = 138 ]; then
  # The same id goes on, so that the jobs that wait for it keep waiting.
  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ] && scontrol requeue "$job"; then
    sleep 60
  fi
  code=75
fi
echo "$code" > {exits}/"$job"
exit "$code"
"#,
            command = self.command(),
            max_requeues = self.profile.max_requeues,
        );
        text
    }

    fn options(&self) -> Vec<String> {
        let r = &self.resources;
        let mut options = vec![
            format!("--job-name={}", self.name),
            format!("--chdir={}", option_value(&self.directory.display().to_string())),
            format!("--output={}", option_value(&self.log_pattern())),
            "--open-mode=append".to_owned(),
            "--requeue".to_owned(),
            "--kill-on-invalid-dep=yes".to_owned(),
            // `--ntasks=1` would make one node of several.
            if self.nodes() > 1 { "--ntasks-per-node=1" } else { "--ntasks=1" }.to_owned(),
            format!("--nodes={}", self.nodes()),
            format!("--cpus-per-task={}", self.cpus()),
        ];
        let text = |name: &str, value: &Option<String>| {
            value.as_ref().map(|v| format!("--{name}={}", option_value(v)))
        };
        options.extend(text("partition", &r.partition));
        options.extend(text("account", &r.account));
        options.extend(text("qos", &r.qos));
        options.extend(text("constraint", &r.constraint));
        options.extend(text("gres", &r.gres));
        options.extend(text("gpus-per-node", &r.gpus));
        options.extend(text("mem", &r.memory));
        options.extend(text("time", &r.time));
        options.extend(self.is_warned.then(|| format!("--signal=B:USR1@{}", self.profile.signal_seconds)));
        if let Some(tasks) = &self.tasks {
            let throttle = r.throttle.map_or_else(String::new, |n| format!("%{n}"));
            options.push(format!("--array={}{throttle}", ranges(tasks)));
        }
        options.extend(r.sbatch.iter().flatten().cloned());
        options
    }

    /// Where the output of a task goes: `%A_%a` is job and task of an array, `%j` a job.
    fn log_pattern(&self) -> String {
        let dir = self.logs.display().to_string().replace('%', "%%");
        let id = if self.tasks.is_some() { "%A_%a" } else { "%j" };
        format!("{dir}/{id}.out")
    }

    fn command(&self) -> String {
        let arguments = self.arguments.iter().map(|a| match a.as_str() {
            "$SLURM_ARRAY_TASK_ID" => "\"$SLURM_ARRAY_TASK_ID\"".to_owned(),
            other => quote(other),
        });
        let own: Vec<String> = std::iter::once(quote_path(&self.program)).chain(arguments).collect();
        let own = own.join(" ");
        let Some(container) = self.profile.container.as_ref().filter(|_| self.in_container) else {
            return own;
        };
        let mounts = quote(&self.mounts(container).join(","));
        let directory = quote_path(&self.directory);
        let more = container.arguments.iter().fold(String::new(), |text, a| text + " " + &quote(a));
        let image = quote(&container.image);
        match container.runtime {
            Runtime::Apptainer => {
                let gpus = if self.resources.wants_gpus() { " --nv" } else { "" };
                format!("apptainer exec{gpus} --bind {mounts} --pwd {directory}{more} {image} {own}")
            }
            // A step does not take over the CPUs of its job (srun(1), --cpus-per-task, since 22.05).
            Runtime::Pyxis => format!(
                "srun --ntasks=1 --nodes=1 --cpus-per-task={} --container-image={image} --container-mounts={mounts} \
                 --container-workdir={directory}{more} {own}",
                self.cpus()
            ),
        }
    }

    /// What the container sees: the program's own paths under their own names, then what the profile mounts. What lies in a
    /// directory that is mounted is not mounted again.
    fn mounts(&self, container: &Container) -> Vec<String> {
        let own = self.paths.iter().chain([&self.program, &self.directory]);
        let mut paths: Vec<&Path> = own.map(PathBuf::as_path).collect();
        paths.sort_unstable();
        paths.dedup();
        let inner = |path: &Path| paths.iter().any(|other| *other != path && path.starts_with(other));
        let own = paths.iter().filter(|path| !inner(path)).map(|path| format!("{0}:{0}", path.display()));
        own.chain(container.mounts.iter().cloned()).collect()
    }
}

/// `0-3,5` for ascending numbers.
fn ranges(numbers: &[u32]) -> String {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for n in numbers {
        match found.last_mut() {
            Some((_, end)) if *end + 1 == *n => *end = *n,
            _ => found.push((*n, *n)),
        }
    }
    let text = |(from, to): &(u32, u32)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    found.iter().map(text).collect::<Vec<_>>().join(",")
}

/// A value of an #SBATCH line, which is split at white space unless quoted.
fn option_value(value: &str) -> String {
    if value.contains([' ', '\t', '#']) { format!("\"{value}\"") } else { value.to_owned() }
}

fn quote_path(path: &Path) -> String {
    quote(&path.display().to_string())
}

/// One word of the shell.
pub(crate) fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::super::profile::ProfileFile;
    use super::*;

    fn render_in(profile: &str, tasks: Option<Vec<u32>>, is_stage: bool) -> String {
        let profile = ProfileFile::parse(profile, "x").unwrap().validate(&["score"]).unwrap();
        let script = Script {
            name: "day0-score".to_owned(),
            resources: profile.resources("score"),
            profile: &profile,
            tasks,
            directory: "/home/a b".into(),
            logs: "/runs/1/slurm/logs".into(),
            exits: "/runs/1/slurm/exit".into(),
            program: "/opt/day0".into(),
            arguments: ["unit", "score", "--part", "$SLURM_ARRAY_TASK_ID", "--run", "/runs/it's"]
                .map(str::to_owned)
                .to_vec(),
            environment: vec![("DAY0_CACHE".to_owned(), "/cache".to_owned())],
            paths: vec!["/runs/1".into(), "/cache".into(), "/cache/models".into(), "/home/a b/data".into()],
            in_container: is_stage,
            is_warned: is_stage,
        };
        script.render()
    }

    fn render(profile: &str, tasks: Option<Vec<u32>>) -> String {
        render_in(profile, tasks, true)
    }

    #[track_caller]
    fn says(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn everything_the_profile_says_is_in_the_script() {
        let profile = "partition: gpu\naccount: q\nqos: high\nconstraint: 'a&b'\ngres: gpu:2\ncpus: 4\nmemory: 8G\n\
            time: 1:00:00\nthrottle: 2\nsbatch: ['--exclusive']\nprologue: module load x\n\
            environment: {A: 'b c'}\nsignal_seconds: 90";
        let text = render(profile, Some(vec![0, 1, 2, 3, 5]));
        says(
            &text,
            &[
                "#SBATCH --partition=gpu",
                "#SBATCH --account=q",
                "#SBATCH --qos=high",
                "#SBATCH --constraint=a&b",
                "#SBATCH --gres=gpu:2",
                "#SBATCH --cpus-per-task=4",
                "#SBATCH --mem=8G",
                "#SBATCH --time=1:00:00",
                "#SBATCH --signal=B:USR1@90",
                "#SBATCH --array=0-3,5%2",
                "#SBATCH --exclusive",
                "#SBATCH --kill-on-invalid-dep=yes",
                "#SBATCH --chdir=\"/home/a b\"",
                "#SBATCH --output=/runs/1/slurm/logs/%A_%a.out",
                "export DAY0_CACHE=/cache",
                "export A='b c'",
                "module load x",
                r#"/opt/day0 unit score --part "$SLURM_ARRAY_TASK_ID" --run '/runs/it'\''s' &"#,
            ],
        );
    }

    #[test]
    fn cpus_are_always_set_and_a_job_is_no_array() {
        let text = render("", None);
        says(&text, &["#SBATCH --cpus-per-task=1", "#SBATCH --output=/runs/1/slurm/logs/%j.out"]);
        assert!(!text.contains("--array"));
    }

    #[test]
    fn the_job_that_closes_the_run_hears_of_no_warning() {
        let text = render_in("", None, false);
        says(&text, &["trap '' USR1"]);
        assert!(!text.contains("--signal") && !text.contains("trap 'warned"), "{text}");
    }

    /// What the program reads and writes is mounted without being asked for, and it runs where it would run outside.
    #[test]
    fn containers() {
        let apptainer =
            "gres: gpu:1\ncontainer: {image: /i.sif, runtime: apptainer, mounts: ['/data:/data']}";
        let text = render(apptainer, None);
        let expected = "apptainer exec --nv --bind '/cache:/cache,/home/a b:/home/a b,/opt/day0:/opt/day0,/runs/1:/runs/1,\
             /data:/data' --pwd '/home/a b' /i.sif /opt/day0 unit";
        assert!(text.contains(expected), "{text}");
        let pyxis = "cpus: 4\ncontainer: {image: 'nvcr.io#x', runtime: pyxis}";
        let text = render(pyxis, None);
        let expected = "srun --ntasks=1 --nodes=1 --cpus-per-task=4 --container-image='nvcr.io#x' \
             --container-mounts='/cache:/cache,/home/a b:/home/a b,/opt/day0:/opt/day0,/runs/1:/runs/1' \
             --container-workdir='/home/a b' /opt/day0 unit";
        assert!(text.contains(expected), "{text}");
        let outside = render_in(pyxis, None, false);
        assert!(!outside.contains("srun") && outside.contains("\n/opt/day0 unit"), "{outside}");
    }

    #[test]
    fn several_nodes_have_a_task_each_and_gpus() {
        let text = render("nodes: 2\ngpus: h100:4", None);
        says(&text, &["#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --gpus-per-node=h100:4"]);
        assert!(!text.contains("--ntasks=1"));
        says(&render("", None), &["#SBATCH --nodes=1", "#SBATCH --ntasks=1"]);
    }

    /// Runs the script with `prologue`, its exit codes in `dir`; the exit code of bash and what was noted.
    fn run(prologue: &str, dir: &Path) -> (Option<i32>, Option<String>) {
        let text = render(&format!("prologue: '{prologue}'"), None);
        let text = text.replace("/runs/1/slurm/exit", &dir.display().to_string());
        let path = dir.join("script.sh");
        std::fs::write(&path, text.replace("/opt/day0", "true")).unwrap();
        let status = std::process::Command::new("bash").arg(&path).env("SLURM_JOB_ID", "7").status().unwrap();
        (status.code(), std::fs::read_to_string(dir.join("7")).ok())
    }

    #[test]
    fn a_prologue_that_fails_leaves_its_exit_code() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(run("false", dir.path()), (Some(1), Some("1\n".to_owned())));
        assert_eq!(run("exit 3", dir.path()), (Some(3), Some("3\n".to_owned())));
        assert_eq!(run("true", dir.path()), (Some(0), Some("0\n".to_owned())));
        // What ended before it ran the program has not done its work.
        assert_eq!(run("exit 0", dir.path()), (Some(0), None));
    }

    #[test]
    fn bash_accepts_the_script() {
        let text = render("prologue: |\n  true\n  if true; then :; fi\n", Some(vec![1]));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sh");
        std::fs::write(&path, text).unwrap();
        assert!(std::process::Command::new("bash").arg("-n").arg(&path).status().unwrap().success());
    }
}
