//! The section `quality` of `qa.yaml` or `day0.yaml`: which commands are counted and which gates are on (founding
//! document 004).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::parse::Format;
use crate::base::closest::suggestion;
use crate::record::Failure;

/// The section. Switches and command keys are spelled as in the document, with its defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct QualityConfig {
    /// Whether `diff` decides in a release.
    pub baseline_enabled: bool,
    /// Whether `ratchet` decides in a release.
    pub ratchet_enabled: bool,
    /// Whether the brief says to fix what is wrong in files that are touched anyway.
    pub boyscout_rule: bool,
    /// Whether the brief says how to work test first.
    pub tdd_workflow: bool,
    /// Program that runs the default commands: npm, pnpm, yarn, bun.
    pub package_manager: String,
    /// Command that runs the tests, without its reporter.
    pub test_command: Option<String>,
    /// Command of the type checker.
    pub validate_command: Option<String>,
    /// Command of the linter; none by default.
    pub lint_command: Option<String>,
    /// Commands with their formats; they replace those above.
    pub commands: BTreeMap<Kind, CountedCommand>,
}

impl Default for QualityConfig {
    fn default() -> Self {
        Self {
            baseline_enabled: false,
            ratchet_enabled: false,
            boyscout_rule: true,
            tdd_workflow: true,
            package_manager: "pnpm".to_owned(),
            test_command: None,
            validate_command: None,
            lint_command: None,
            commands: BTreeMap::new(),
        }
    }
}

/// What a command counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Tests.
    Tests,
    /// Errors of types.
    Typecheck,
    /// Errors and warnings of a linter.
    Lint,
}

impl Kind {
    /// The name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tests => "tests",
            Self::Typecheck => "typecheck",
            Self::Lint => "lint",
        }
    }
}

/// A command and how to count what it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountedCommand {
    /// Shell command; none where only a report is read.
    pub run: Option<String>,
    /// Format of its output.
    pub format: Format,
    /// File to count instead of the output, relative to the working directory.
    pub report: Option<PathBuf>,
    /// Longest time it may take, in seconds.
    #[serde(default = "default_timeout")]
    pub timeout_s: f64,
}

fn default_timeout() -> f64 {
    1800.0
}

/// A file that holds the section beside others.
#[derive(Default, Deserialize)]
struct Holder {
    #[serde(default)]
    quality: Option<serde_yaml_ng::Value>,
}

/// Field names, for suggestions.
const FIELDS: [&str; 9] = [
    "baselineEnabled",
    "ratchetEnabled",
    "boyscoutRule",
    "tddWorkflow",
    "packageManager",
    "testCommand",
    "validateCommand",
    "lintCommand",
    "commands",
];

impl QualityConfig {
    /// The section of `file`, or of the first of `qa.yaml` and `day0.yaml` in `dir` that has one.
    pub fn find(file: Option<&Path>, dir: &Path) -> Result<Option<Self>, Failure> {
        if let Some(file) = file {
            return Self::read(file);
        }
        for name in ["qa.yaml", "day0.yaml"] {
            let path = dir.join(name);
            if path.is_file()
                && let Some(config) = Self::read(&path)?
            {
                return Ok(Some(config));
            }
        }
        Ok(None)
    }

    /// The section of a file, if it has one.
    pub fn read(path: &Path) -> Result<Option<Self>, Failure> {
        let text = std::fs::read_to_string(path).map_err(|e| Failure::io(path.display(), &e))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// The section of the text of a file called `name`.
    pub fn parse(text: &str, name: &str) -> Result<Option<Self>, Failure> {
        let holder: Holder = serde_yaml_ng::from_str::<Option<Holder>>(text)
            .map_err(|e| Failure::config(format!("{name}: {e}")))?
            .unwrap_or_default();
        let Some(section) = holder.quality else { return Ok(None) };
        let config: Self = serde_yaml_ng::from_value(section).map_err(|e| {
            let message = e.to_string();
            let failure = Failure::config(format!("{name}: quality: {message}"));
            match message.split('`').nth(1).filter(|_| message.contains("unknown field")) {
                Some(field) => failure.with_hint(suggestion(field, &FIELDS)),
                None => failure,
            }
        })?;
        config.check(name)?;
        Ok(Some(config))
    }

    /// Checks every value of the section in a file called `name`.
    pub fn check(&self, name: &str) -> Result<(), Failure> {
        for (kind, command) in &self.commands {
            let field = format!("{name}: quality.commands.{}", kind.as_str());
            if command.run.is_none() && command.report.is_none() {
                return Err(Failure::config(format!("{field}: neither run nor report is given")));
            }
            if !(command.timeout_s > 0.0 && command.timeout_s <= MAX_TIMEOUT_S) {
                let found = command.timeout_s;
                return Err(Failure::config(format!(
                    "{field}.timeout_s: {found}, expected more than 0 and at most {MAX_TIMEOUT_S}"
                )));
            }
            let counts_tests = !matches!(command.format, Format::Tsc | Format::Eslint | Format::Clippy);
            if counts_tests != (*kind == Kind::Tests) {
                let message =
                    format!("{field}.format: {:?} does not count {}", command.format, kind.as_str());
                return Err(Failure::config(message).with_hint(
                    "tests: junit, libtest, nextest, jest, vitest, pytest; others: tsc, eslint, clippy",
                ));
            }
        }
        Ok(())
    }

    /// The commands to count. Without any, those of the document: `{packageManager} test` with Vitest's reporter and
    /// `{packageManager} typecheck`.
    pub fn counted(&self) -> BTreeMap<Kind, CountedCommand> {
        if !self.commands.is_empty() {
            return self.commands.clone();
        }
        let command = |run: String, format| CountedCommand {
            run: Some(run),
            format,
            report: None,
            timeout_s: default_timeout(),
        };
        let default = |script: &str| format!("{} {script}", self.package_manager);
        let tests = self.test_command.clone().unwrap_or_else(|| default("test"));
        let types = self.validate_command.clone().unwrap_or_else(|| default("typecheck"));
        let mut counted = BTreeMap::from([
            (Kind::Tests, command(format!("{tests} -- --reporter=json"), Format::Vitest)),
            (Kind::Typecheck, command(types, Format::Tsc)),
        ]);
        if let Some(lint) = &self.lint_command {
            counted.insert(Kind::Lint, command(lint.clone(), Format::Eslint));
        }
        counted
    }
}

/// The longest timeout that is taken for one: a week.
pub const MAX_TIMEOUT_S: f64 = 604_800.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<QualityConfig>, Failure> {
        QualityConfig::parse(text, "qa.yaml")
    }

    /// Document 004, "Configuration": all settings default to false/true; DESIGN section 7 names them.
    #[test]
    fn the_defaults_are_those_of_the_document() {
        let config = QualityConfig::default();
        let switches =
            (config.baseline_enabled, config.ratchet_enabled, config.boyscout_rule, config.tdd_workflow);
        assert_eq!(switches, (false, false, true, true));
        assert_eq!(parse("quality: {}").unwrap(), Some(config));
        assert_eq!(parse("model: x").unwrap(), None);
        assert_eq!(parse("").unwrap(), None);
    }

    /// Document 004, "What It Captures": `{testCommand} -- --reporter=json`, defaulting to pnpm test and typecheck.
    #[test]
    fn commands_default_to_those_of_the_document() {
        let counted = QualityConfig::default().counted();
        assert_eq!(counted[&Kind::Tests].run.as_deref(), Some("pnpm test -- --reporter=json"));
        assert_eq!(counted[&Kind::Typecheck].run.as_deref(), Some("pnpm typecheck"));
        assert!(!counted.contains_key(&Kind::Lint));
        let own = parse("quality: {testCommand: npm t, validateCommand: npx tsc, lintCommand: npx eslint .}");
        let counted = own.unwrap().unwrap().counted();
        assert_eq!(counted[&Kind::Tests].run.as_deref(), Some("npm t -- --reporter=json"));
        assert_eq!(counted[&Kind::Lint].run.as_deref(), Some("npx eslint ."));
    }

    #[test]
    fn mistakes_are_named() {
        let failure = parse("quality: {tddWorkflo: true}").unwrap_err();
        assert_eq!(failure.hint.as_deref(), Some("did you mean 'tddWorkflow'?"));
        for (text, says) in [
            ("quality: {commands: {tests: {run: x, format: tsc}}}", "does not count tests"),
            ("quality: {commands: {lint: {run: x, format: junit}}}", "does not count lint"),
            ("quality: {commands: {tests: {format: junit}}}", "neither run nor report"),
            ("quality: {commands: {tests: {run: x, format: junit, timeout_s: 0}}}", "timeout_s"),
            ("quality: {commands: {tests: {run: x, format: junit, timeout_s: .nan}}}", "timeout_s"),
            ("quality: {commands: {tests: {run: x, format: nose}}}", "nose"),
            ("quality: [", "qa.yaml"),
            ("quality: 3", "quality"),
        ] {
            let failure = parse(text).unwrap_err();
            assert!(failure.message.contains(says), "{text}: {failure}");
        }
    }
}
