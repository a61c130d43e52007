//! Container runtimes: finding one that works, and running one check in a fresh container.
//!
//! Probing means that a trivial container ran, not that a client is installed. A lost container is told apart
//! from a failing check by what the runtime says afterwards: a client that died by a signal, left no
//! container to inspect or contradicts it lost it. Where the runtime cannot tell a code that the check chose
//! from a killed container (137, 143), or has no state to ask (apptainer's own 255), the check runs once
//! more.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::config::{Check, Image, QaConfig, Runtime, RuntimeName};
use crate::base::progress;
use crate::ready::process::{self, End, Ended, RunError, Spec};
use crate::record::qa::ContainerAttempt;

/// Longest time of a client's small commands.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a runtime's message that are kept.
const DETAIL_BYTES: usize = 2000;
/// Time beyond twice that of the first run that a check has when it runs once more.
const AGAIN_SLACK: Duration = Duration::from_secs(5);

/// A runtime that ran a trivial container.
pub(super) struct Container<'a> {
    pub name: RuntimeName,
    runtime: Runtime,
    image: &'a Image,
    image_ref: String,
    dir: PathBuf,
    run_id: String,
    pub version: String,
}

/// How a check ended in its container.
pub(super) enum Ran {
    /// The check itself ended so.
    Check(Ended),
    /// The container was lost; why.
    Lost(Ended, String),
}

/// What the runtime says of how a check ended.
enum Said {
    /// The check itself ended so.
    Check,
    /// The container was lost; why.
    Lost(String),
    /// The container was lost for this reason, or the check chose to end so.
    Either(String),
}

/// The first runtime that works, with everything that was tried.
pub(super) fn find<'a>(
    config: &'a QaConfig,
    dir: &Path,
    out: &Path,
    run_id: &str,
) -> (Option<Container<'a>>, Vec<ContainerAttempt>) {
    let mut attempts = Vec::new();
    let Some(image) = &config.image else { return (None, attempts) };
    for name in config.container.runtimes() {
        let mut runtime = config.runtimes.get(name).cloned().unwrap_or_default();
        if runtime.command.is_empty() {
            runtime.command = vec![name.as_str().to_owned()];
        }
        let image_ref = match name {
            RuntimeName::Apptainer if image.context.is_some() => out.join("image.sif").display().to_string(),
            RuntimeName::Apptainer if !image.name.contains(':') => format!("docker://{}", image.name),
            _ => image.name.clone(),
        };
        let mut container = Container {
            name: *name,
            runtime,
            image,
            image_ref,
            dir: dir.to_path_buf(),
            run_id: run_id.to_owned(),
            version: String::new(),
        };
        let mut note = |step: &str, result: &Result<String, String>| {
            let (ok, detail) = match result {
                Ok(text) => (true, text.clone()),
                Err(text) => (false, text.clone()),
            };
            let (runtime, step) = (name.as_str().to_owned(), step.to_owned());
            attempts.push(ContainerAttempt { runtime, step, ok, detail });
            ok
        };
        let client = container.client();
        if let Ok(version) = &client {
            container.version.clone_from(version);
        }
        if note("client", &client)
            && note("image", &container.provide_image())
            && note("probe", &container.probe())
        {
            return (Some(container), attempts);
        }
    }
    (None, attempts)
}

impl Container<'_> {
    /// The client's version.
    fn client(&self) -> Result<String, String> {
        self.call(&["--version"], CLIENT_TIMEOUT)
    }

    /// Builds or pulls the image.
    fn provide_image(&self) -> Result<String, String> {
        let timeout = Duration::from_secs_f64(self.image.timeout_s);
        let mut arguments: Vec<String>;
        match (&self.image.context, self.name) {
            (Some(context), RuntimeName::Apptainer) => {
                let file = self.image.file.clone().unwrap_or_else(|| context.join("apptainer.def"));
                arguments = vec!["build".into(), "--force".into()];
                arguments.extend(self.runtime.build_args.clone());
                arguments.extend([self.image_ref.clone(), file.display().to_string()]);
            }
            (Some(context), _) => {
                arguments = vec!["build".into(), "-t".into(), self.image_ref.clone()];
                if let Some(file) = &self.image.file {
                    arguments.extend(["-f".into(), file.display().to_string()]);
                }
                arguments.extend(self.runtime.build_args.clone());
                arguments.push(context.display().to_string());
            }
            // apptainer pulls when it runs.
            (None, RuntimeName::Apptainer) => return Ok("pulled by the probe".to_owned()),
            (None, _) => {
                if self.call(&["image", "inspect", &self.image_ref], CLIENT_TIMEOUT).is_ok() {
                    return Ok("there already".to_owned());
                }
                arguments = vec!["pull".into(), self.image_ref.clone()];
            }
        }
        self.call(&arguments, timeout)
    }

    /// Runs the trivial container.
    fn probe(&self) -> Result<String, String> {
        let name = self.container_name("probe");
        let argv = self.run_argv(&name, &self.image.probe, &[]);
        let timeout = Duration::from_secs_f64(self.image.timeout_s);
        let result = self.call_argv(argv, timeout);
        self.remove(&name);
        result
    }

    /// Runs one check in a fresh container; once more where its end may be its own as well as a loss. A check
    /// that chose its code chooses it again; a container that was killed from outside is not killed again.
    pub fn run(
        &self,
        check: &Check,
        env: &[(String, String)],
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<Ran, RunError> {
        let timeout = Duration::from_secs_f64(check.timeout_s);
        let (first, said) = self.once(check, env, timeout, stdout, stderr)?;
        let why = match said {
            Said::Check => return Ok(Ran::Check(first)),
            Said::Lost(why) => return Ok(Ran::Lost(first, why)),
            Said::Either(why) => why,
        };
        progress::note(&format!("qa: {why}, or the check ended so itself: it runs once more"));
        let limit = timeout.min(first.elapsed * 2 + AGAIN_SLACK);
        let (again, said) = self.once(check, env, limit, stdout, stderr)?;
        let both = |end| Ended {
            end,
            elapsed: first.elapsed + again.elapsed,
            output_bytes: first.output_bytes + again.output_bytes,
        };
        let repeated = again.end == first.end && !matches!(said, Said::Lost(_));
        Ok(if repeated || matches!(again.end, End::Interrupted(_)) {
            Ran::Check(both(again.end))
        } else {
            Ran::Lost(both(first.end), why)
        })
    }

    fn once(
        &self,
        check: &Check,
        env: &[(String, String)],
        timeout: Duration,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<(Ended, Said), RunError> {
        let name = self.container_name(&check.label);
        let argv = self.run_argv(&name, &check.command.argv(), env);
        let ended = process::run(&Spec { timeout, ..self.spec(argv) }, stdout, stderr);
        let said = ended.as_ref().map_or(Said::Check, |ended| self.said(&name, ended.end));
        // The client may have been killed at the timeout while its container runs on.
        self.remove(&name);
        Ok((ended?, said))
    }

    /// What the runtime says of a check whose client ended so.
    fn said(&self, name: &str, end: End) -> Said {
        let apptainer = self.name == RuntimeName::Apptainer;
        let code = match end {
            End::TimedOut | End::Interrupted(_) => return Said::Check,
            End::Signaled(signal) => return Said::Lost(format!("the client was killed by signal {signal}")),
            End::Exited(code) => code,
        };
        if let Some(why) = if apptainer { self.fails(code) } else { self.contradiction(name, code) } {
            return Said::Lost(why);
        }
        match code {
            255 if apptainer => Said::Either("exit code 255: the runtime failed".to_owned()),
            137 | 143 => {
                Said::Either(format!("exit code {code}: the container was killed by signal {}", code - 128))
            }
            _ => Said::Check,
        }
    }

    /// Why an exit code of the client is not that of the check, by the state of its container.
    fn contradiction(&self, name: &str, code: i32) -> Option<String> {
        let format = "{{.State.Status}} {{.State.ExitCode}}";
        let state = match self.call(&["inspect", "--format", format, name], CLIENT_TIMEOUT) {
            Ok(state) => state,
            Err(why) => return Some(format!("no exit code can be retrieved: {why}")),
        };
        // Clients end so where the image has no such program or it cannot be executed: the check's mistake.
        let not_invoked = matches!(code, 126 | 127) && state.starts_with("created ");
        let agrees = not_invoked || state == format!("exited {code}");
        (!agrees).then(|| format!("the client saw exit code {code}, the runtime says '{state}'"))
    }

    /// Why apptainer, which keeps no state, can run nothing any more after it ended with its own code of
    /// failures.
    fn fails(&self, code: i32) -> Option<String> {
        if code != 255 {
            return None;
        }
        let why = self.probe().err()?;
        Some(format!("exit code 255, and a trivial container does not run: {why}"))
    }

    fn container_name(&self, label: &str) -> String {
        format!("day0-{}-{label}", self.run_id)
    }

    fn run_argv(&self, name: &str, command: &[String], env: &[(String, String)]) -> Vec<String> {
        let mut argv = self.runtime.command.clone();
        let (host, inside) = (self.dir.display().to_string(), &self.image.workdir);
        match self.name {
            RuntimeName::Apptainer => {
                argv.extend(["exec", "--containall", "--bind"].map(str::to_owned));
                argv.extend([format!("{host}:{inside}"), "--pwd".into(), inside.clone()]);
                for (key, value) in env {
                    argv.extend(["--env".into(), format!("{key}={value}")]);
                }
                argv.extend(self.runtime.run_args.clone());
            }
            RuntimeName::Docker | RuntimeName::Podman => {
                argv.extend(["run".into(), "--name".into(), name.to_owned(), "-v".into()]);
                argv.extend([format!("{host}:{inside}"), "-w".into(), inside.clone()]);
                for (key, value) in env {
                    argv.extend(["-e".into(), format!("{key}={value}")]);
                }
                argv.extend(self.runtime.run_args.clone());
                // The whole command line, whatever entry point the image declares.
                argv.extend(["--entrypoint".into(), command.first().cloned().unwrap_or_default()]);
            }
        }
        argv.push(self.image_ref.clone());
        let skip = usize::from(self.name != RuntimeName::Apptainer);
        argv.extend(command.iter().skip(skip).cloned());
        argv
    }

    /// Removes a container, running or not; apptainer leaves none.
    fn remove(&self, name: &str) {
        if self.name != RuntimeName::Apptainer {
            // One that is not there is as gone as it should be.
            let words = ["rm", "-f", name].map(str::to_owned);
            let argv = self.runtime.command.iter().cloned().chain(words).collect();
            let _ = called(&Spec { interruptible: false, ..self.spec(argv) });
        }
    }

    fn spec(&self, argv: Vec<String>) -> Spec {
        Spec {
            argv,
            dir: self.dir.clone(),
            env: std::collections::BTreeMap::new(),
            timeout: CLIENT_TIMEOUT,
            // The runtime's own helpers outlive its client, and end what they have to end.
            cookie: None,
            interruptible: true,
        }
    }

    fn call<S: AsRef<str>>(&self, arguments: &[S], timeout: Duration) -> Result<String, String> {
        let words = arguments.iter().map(|a| a.as_ref().to_owned());
        self.call_argv(self.runtime.command.iter().cloned().chain(words).collect(), timeout)
    }

    fn call_argv(&self, argv: Vec<String>, timeout: Duration) -> Result<String, String> {
        called(&Spec { timeout, ..self.spec(argv) })
    }
}

/// Runs a command of the client; what it printed, or why it failed.
fn called(spec: &Spec) -> Result<String, String> {
    let tail = || process::Bounded::new(Vec::new(), 0, DETAIL_BYTES);
    let (mut out, mut err) = (tail(), tail());
    let ended = process::run(spec, &mut out, &mut err).map_err(|e| format!("{}: {e}", spec.argv[0]))?;
    let text = |bounded: process::Bounded<Vec<u8>>| {
        bounded.finish().map(|(bytes, _)| String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    let (out, err) = (text(out).unwrap_or_default(), text(err).unwrap_or_default());
    match ended.end {
        End::Exited(0) => Ok(out),
        End::Exited(code) => Err(format!("exit code {code}: {}", if err.is_empty() { out } else { err })),
        End::Signaled(signal) => Err(format!("killed by signal {signal}: {err}")),
        End::TimedOut => Err(format!("no answer within {} s", spec.timeout.as_secs())),
        End::Interrupted(signal) => Err(format!("interrupted by signal {signal}")),
    }
}
