//! Which readiness gates a release runs, and which of them decide: the section `readiness` of `day0.yaml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ready::config::QualityConfig;
use crate::ready::repro;
use crate::record::qa::CheckTier;
use crate::record::{Failure, FailureClass, Finding, GateName, GateReport};

/// Whether a gate runs and decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Its findings decide the verdict.
    Required,
    /// Its findings are notes.
    Advisory,
    /// It does not run.
    Off,
}

/// The section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReadinessConfig {
    /// Save/load parity of the candidate; it always runs, so it is never off.
    pub roundtrip: Level,
    /// The families below.
    pub repro: Level,
    /// The project's own checks.
    pub qa: Level,
    /// Against the last accepted release of this model and recipe, and against captured counts where there are any.
    pub diff: Level,
    /// Against the ratchet of the working directory, where there is one.
    pub ratchet: Level,
    /// The quality score and the integrity of the run directory.
    pub quality: Level,
    /// Families of `repro` beside roundtrip.
    pub families: Vec<String>,
    /// Seeds of `repro`.
    pub seeds: Vec<u64>,
    /// Steps of each seed.
    pub steps: u64,
    /// Tier whose criteria `repro` asks.
    pub repro_tier: CheckTier,
    /// File of `qa`.
    pub qa_config: PathBuf,
    /// Tier of `qa`.
    pub qa_tier: CheckTier,
    /// The ratchet.
    pub ratchet_file: PathBuf,
}

impl Default for ReadinessConfig {
    fn default() -> Self {
        Self {
            roundtrip: Level::Required,
            repro: Level::Off,
            qa: Level::Off,
            diff: Level::Off,
            ratchet: Level::Advisory,
            quality: Level::Advisory,
            families: vec!["ptq".to_owned()],
            seeds: vec![0, 1, 2],
            steps: 200,
            repro_tier: CheckTier::Nightly,
            qa_config: "qa.yaml".into(),
            qa_tier: CheckTier::Release,
            ratchet_file: crate::ready::ratchet::RATCHET_FILE.into(),
        }
    }
}

impl ReadinessConfig {
    /// Checks every value, and applies the switches of the section `quality`: an enabled baseline or ratchet decides.
    pub fn validate(mut self, quality: &QualityConfig) -> Result<Self, Failure> {
        if quality.baseline_enabled {
            self.diff = Level::Required;
        }
        if quality.ratchet_enabled {
            self.ratchet = Level::Required;
        }
        if self.roundtrip == Level::Off {
            return Err(Failure::config("readiness.roundtrip: it always runs, so it cannot be off")
                .with_hint("advisory makes its findings notes"));
        }
        for name in &self.families {
            let family = repro::load(name)?;
            let own = matches!(family.kind, repro::FamilyKind::Ptq | repro::FamilyKind::Token);
            if !own && (family.kind == repro::FamilyKind::Roundtrip || family.command.is_none()) {
                return Err(Failure::config(format!(
                    "readiness.families: {name} cannot be run by a release"
                ))
                .with_hint("ptq, token, or a family file with a command"));
            }
        }
        if self.repro != Level::Off && (self.families.is_empty() || self.seeds.is_empty() || self.steps == 0)
        {
            return Err(Failure::config("readiness: repro needs families, seeds and steps"));
        }
        if self.qa != Level::Off {
            crate::ready::qa::QaConfig::read(&self.qa_config)?;
        }
        crate::ready::ratchet::load(&self.ratchet_file)?;
        Ok(self)
    }

    /// The gates of a release with their levels.
    pub fn levels(&self) -> [(&'static str, Level); 6] {
        [
            ("roundtrip", self.roundtrip),
            ("repro", self.repro),
            ("qa", self.qa),
            ("diff", self.diff),
            ("ratchet", self.ratchet),
            ("quality", self.quality),
        ]
    }
}

/// The report as the level has it: findings of an advisory gate are notes. A mistake in an input file stays one: nobody
/// can say what such a file would have asked for.
pub fn leveled(report: GateReport, level: Level) -> GateReport {
    if level == Level::Required {
        return report;
    }
    let soften = |finding: Finding| {
        let stays = finding.failure_class == FailureClass::UserConfigError || !finding.decides();
        if stays { finding } else { finding.as_note() }
    };
    let findings = report.findings.into_iter().map(soften).collect();
    let mut new =
        GateReport::new(report.gate, report.checks, report.per_task, findings).about(report.subject);
    new.detail = report.detail;
    new
}

/// Several reports of one gate as one.
pub fn merged(gate: GateName, reports: Vec<GateReport>) -> GateReport {
    let (mut checks, mut findings, mut details) = (std::collections::BTreeMap::new(), Vec::new(), Vec::new());
    for report in reports {
        if report.pass {
            details.push(report.detail.clone());
        }
        checks.extend(report.checks);
        findings.extend(report.findings);
    }
    let mut new = GateReport::new(gate, checks, std::collections::BTreeMap::new(), findings);
    if new.pass {
        new.detail = details.join("; ");
    }
    new
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::record::Verdict;

    fn failed(class: FailureClass) -> GateReport {
        let finding = Finding::new(GateName::Qa, "check.x", class, "x");
        GateReport::new(GateName::Qa, BTreeMap::new(), BTreeMap::new(), vec![finding])
    }

    /// DESIGN section 1: ANOMALOUS when required, else a note.
    #[test]
    fn only_required_gates_decide() {
        let failure = || failed(FailureClass::ReadinessFailed);
        assert_eq!(leveled(failure(), Level::Required).verdict, Some(Verdict::Anomalous));
        let noted = leveled(failure(), Level::Advisory);
        assert!(noted.pass && noted.findings.len() == 1 && noted.detail.contains("check.x"));
    }

    /// DESIGN section 1: USER_CONFIG_ERROR inside a gate's input file is ANOMALOUS, also of an advisory gate.
    #[test]
    fn a_mistake_in_an_input_file_is_never_softened() {
        let mistake = leveled(failed(FailureClass::UserConfigError), Level::Advisory);
        assert_eq!(
            (mistake.verdict, mistake.failure_class),
            (Some(Verdict::Anomalous), Some(FailureClass::UserConfigError))
        );
    }

    /// Document 004, "Configuration": `baselineEnabled` and `ratchetEnabled` enable the two gates.
    #[test]
    fn the_documents_switches_make_gates_required() {
        let config = |baseline_enabled, ratchet_enabled| {
            let quality = QualityConfig { baseline_enabled, ratchet_enabled, ..QualityConfig::default() };
            let config = ReadinessConfig::default().validate(&quality).unwrap();
            (config.diff, config.ratchet)
        };
        assert_eq!(config(false, false), (Level::Off, Level::Advisory));
        assert_eq!(config(true, true), (Level::Required, Level::Required));
    }

    #[test]
    fn what_a_release_cannot_run_is_refused() {
        let refused = |change: &dyn Fn(&mut ReadinessConfig)| {
            let mut config = ReadinessConfig::default();
            change(&mut config);
            config.validate(&QualityConfig::default()).is_err()
        };
        assert!(refused(&|c| c.roundtrip = Level::Off));
        assert!(refused(&|c| c.families = vec!["dreamerv3".into()]));
        assert!(refused(&|c| c.families = vec!["roundtrip".into()]));
        assert!(refused(&|c| (c.repro, c.steps) = (Level::Required, 0)));
        assert!(refused(&|c| (c.qa, c.qa_config) = (Level::Required, "no/such.yaml".into())));
        assert!(!refused(&|_| ()));
    }
}
