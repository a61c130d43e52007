//! The rules of the code base that no compiler checks: layers, sizes, the crate budget, documents that agree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use day0::ready::qa::{ContainerPolicy, QaConfig};
use day0::record::qa::CheckTier;

/// Layers from low to high. A module uses only rows above it here, or modules to its left in its row.
const LAYERS: &[&[&str]] = &[
    &["base"],
    &["record"],
    &["checkpoint", "device"],
    &["ops", "dense", "recipe"],
    &["model"],
    &["exec", "scan", "quantize", "engine"],
    &["serve", "suite"],
    &["eval"],
    &["gate", "ready"],
    &["report", "release"],
    &["cli"],
];

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;
const MAX_CRATES: usize = 280;

/// Files or `file::function`s over a cap, with the date they were let through and the reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("src/eval/endpoint/tests.rs::gives_up", "2026-11-21: one table of servers that fail"),
    (
        "src/eval/probe/tests.rs::servers_whose_logprobs_are_wrong",
        "2026-11-21: one table of servers that misbehave",
    ),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Files below `dir` with this extension, as paths relative to the root.
fn files(dir: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(relative(&path));
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).expect("below the root").display().to_string()
}

#[test]
fn modules_stand_in_layer_order() {
    let lib = read("src/lib.rs");
    let modules: Vec<&str> =
        lib.lines().filter_map(|l| l.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let expected: Vec<&str> = LAYERS.concat();
    assert_eq!(modules, expected, "the mod lines of src/lib.rs stand in the order of the layers");
    for module in modules {
        assert!(lib.contains(&format!("[`{module}`]")), "the code map of src/lib.rs names {module}");
    }
}

#[test]
fn dependencies_point_one_way() {
    let mut order = BTreeMap::new();
    for (row, modules) in LAYERS.iter().enumerate() {
        for (column, module) in modules.iter().enumerate() {
            order.insert(*module, (row, column));
        }
    }
    let mut wrong = Vec::new();
    for file in files("src", "rs") {
        let Some(module) = file.strip_prefix("src/").and_then(|f| f.split('/').next()) else { continue };
        let Some(own) = order.get(module.trim_end_matches(".rs")) else { continue };
        for (line, used) in used_modules(&read(&file)) {
            let allowed = order
                .get(used.as_str())
                .is_none_or(|other| other == own || other.0 < own.0 || (other.0 == own.0 && other.1 < own.1));
            // Gates are pure decisions: they may see records and nothing that makes them.
            let pure = module != "gate" || matches!(used.as_str(), "base" | "record" | "gate");
            if !allowed || !pure {
                wrong.push(format!("{file}:{line}: uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "a module uses only layers below it:\n{}", wrong.join("\n"));
}

/// Top-level modules named in code as `crate::module` or `crate::{module, other::Item}`, with their lines.
fn used_modules(code: &str) -> Vec<(usize, String)> {
    let is_comment = |line: &&str| line.trim_start().starts_with("//");
    let code: Vec<&str> = code.lines().map(|line| if is_comment(&line) { "" } else { line }).collect();
    let code = code.join("\n");
    let name = |at: usize| {
        let line = code[..at].lines().count().max(1);
        (line, code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
    };
    let starts = code.match_indices("crate::").map(|(at, m)| at + m.len());
    starts.flat_map(|at| group_members(&code[at..]).into_iter().map(move |i| at + i)).map(name).collect()
}

/// Where the members of `{a, b::{c, d}}` begin, or the only one of what is no group.
fn group_members(text: &str) -> Vec<usize> {
    if !text.starts_with('{') {
        return vec![0];
    }
    let (mut begins, mut depth, mut expected) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '{' => (depth, expected) = (depth + 1, depth == 0),
            '}' => depth -= 1,
            ',' => expected = depth == 1,
            c if expected && !c.is_whitespace() => {
                begins.push(at);
                expected = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    begins
}

#[test]
fn imports_in_groups_are_seen() {
    let code = "// crate::no\nuse crate::{\n    base::{self, x},\n    cli, report::{y, z},\n};\nuse crate::gate::A;\n\
                fn f() { crate::scan::g(crate::record::B) }\n";
    let found = used_modules(code);
    let found: Vec<(usize, &str)> = found.iter().map(|(line, name)| (*line, name.as_str())).collect();
    assert_eq!(found, [(3, "base"), (4, "cli"), (4, "report"), (6, "gate"), (7, "scan"), (7, "record")]);
}

#[test]
fn files_and_functions_stay_short() {
    let excepted = |name: &str| EXCEPTIONS.iter().any(|(n, _)| *n == name);
    let mut long = Vec::new();
    for file in ["src", "tests", "examples", "benches"].iter().flat_map(|d| files(d, "rs")) {
        let text = read(&file);
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() > MAX_FILE_LINES && !excepted(&file) {
            long.push(format!("{file}: {} lines", lines.len()));
        }
        for (name, length) in function_lengths(&lines) {
            let name = format!("{file}::{name}");
            if length > MAX_FUNCTION_LINES && !excepted(&name) {
                long.push(format!("{name}: {length} lines"));
            }
        }
    }
    assert!(long.is_empty(), "over the caps ({MAX_FILE_LINES}/{MAX_FUNCTION_LINES}):\n{}", long.join("\n"));
}

/// Functions with their line counts; rustfmt puts a function's closing brace at the indent of its first line.
fn function_lengths(lines: &[&str]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let Some(at) = trimmed.find("fn ").filter(|at| {
            trimmed[..*at].split_whitespace().all(|w| {
                matches!(w, "pub" | "const" | "async" | "unsafe" | "extern") || w.starts_with("pub(")
            })
        }) else {
            continue;
        };
        let indent = &line[..line.len() - trimmed.len()];
        let name: String =
            trimmed[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        // A trait's declaration has no body.
        if lines[start..].iter().find(|l| l.ends_with(['{', '}', ';'])).is_some_and(|l| l.ends_with(';')) {
            continue;
        }
        let closing = format!("{indent}}}");
        if let Some(length) = lines[start..].iter().position(|l| *l == closing) {
            found.push((name, length + 1));
        }
    }
    found
}

#[test]
fn crate_budget_is_kept() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-e", "normal,build,dev", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8_lossy(&output.stdout);
    let mut crates: Vec<&str> =
        tree.lines().map(|l| l.trim_end_matches(" (*)")).filter(|l| !l.is_empty()).collect();
    crates.sort_unstable();
    crates.dedup();
    assert!(crates.len() <= MAX_CRATES, "{} crates, at most {MAX_CRATES}", crates.len());
    for banned in ["aws-lc", "cmake", "openssl-sys"] {
        assert!(!crates.iter().any(|c| c.starts_with(banned)), "{banned} is in the tree");
    }
}

#[test]
fn readme_and_ci_run_the_same_commands() {
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    let qa = read("qa.yaml");
    for command in ["cargo run --release -- release", "cargo test"] {
        assert!(readme.contains(command), "README.md shows `{command}`");
        assert!(ci.contains(command), ".ci/run runs `{command}`");
    }
    // The tests are run by the checks of qa.yaml, and .ci/run makes sure that they were.
    assert!(ci.contains("target/release/day0 ready qa --tier pr"), ".ci/run goes through qa.yaml");
    assert!(qa.contains("{label: tests, command: cargo test,"), "qa.yaml runs `cargo test` on every change");
    assert!(ci.contains("passed \"cargo test\""), ".ci/run asks whether `cargo test` passed");
    for folder in ["docs", "src", "kernels", "recipes", "suites", "benches", "models", "tests", "examples"] {
        assert!(readme.contains(&format!("`{folder}/`")), "the map in README.md names {folder}/");
    }
}

/// Founding documents 000, "CI Gates (Required on PR)", and 004, "Enforcement Points": lint, format, tests,
/// smoke runs and the docs on every change, then the project's own baseline and ratchet.
#[test]
fn every_change_passes_the_checks_and_the_ratchet() {
    let qa = QaConfig::parse(&read("qa.yaml"), "qa.yaml").expect("qa.yaml is valid");
    assert_eq!(
        qa.container,
        ContainerPolicy::Never,
        "DESIGN section 7: the project's own QA has no container"
    );
    let on_every_change: Vec<&str> =
        qa.full.iter().filter(|c| c.tier == CheckTier::Pr && c.required).map(|c| c.label.as_str()).collect();
    assert_eq!(on_every_change, ["format", "lint", "tests", "smoke", "docs"]);
    for tier in [CheckTier::Nightly, CheckTier::Release] {
        assert!(qa.full.iter().any(|c| c.tier == tier), "qa.yaml has checks of tier {tier}");
    }
    let ci = read(".ci/run");
    let counts = ci.split("\ncounts() {").nth(1).and_then(|text| text.split("\n}\n").next());
    let counts = counts.expect(".ci/run has a function `counts`");
    for command in ["ready diff check", "ready ratchet check", "ready ratchet update"] {
        let line = format!("target/release/day0 {command} ");
        assert!(counts.contains(&line), "the counts of .ci/run are those of `{command}`");
    }
    assert!(ci.lines().any(|l| l.starts_with("step ") && l.ends_with(" counts")), ".ci/run takes the counts");
}

/// docs/readiness.md maps each requirement to its test: every test it names is there.
#[test]
fn tests_named_by_the_documentation_exist() {
    let text = read("docs/readiness.md");
    let rows =
        text.lines().skip_while(|l| !l.starts_with("## Every requirement")).filter(|l| l.starts_with('|'));
    let mut missing = Vec::new();
    let mut named = 0;
    for row in rows {
        // A name without a path is one of the file named before it.
        let mut sources = String::new();
        for name in row.split('`').skip(1).step_by(2).filter(|n| n.contains("::") || n.contains('_')) {
            let parts: Vec<&str> = name.split("::").collect();
            if parts.len() > 1 {
                sources = test_sources(&parts);
                named += 1;
                if sources.is_empty() {
                    missing.push(name.to_owned());
                }
            }
            let function = parts.last().copied().unwrap_or_default();
            let is_module = matches!(function, "tests" | "samples");
            if !sources.is_empty() && !is_module && !sources.contains(&format!("fn {function}(")) {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(named > 30, "{named} tests are named");
    assert!(missing.is_empty(), "docs/readiness.md names tests that are not there: {missing:?}");
}

/// The text of the file that `a::b::tests::name` or `it::file::name` lies in, with its separate test file.
fn test_sources(parts: &[&str]) -> String {
    let text = |path: String| std::fs::read_to_string(root().join(path)).unwrap_or_default();
    if parts[0] == "it" {
        return text(format!("tests/it/{}.rs", parts[1]));
    }
    let module: Vec<&str> = parts.iter().take_while(|p| **p != "tests").copied().collect();
    let path = module.join("/");
    [format!("src/{path}.rs"), format!("src/{path}/mod.rs"), format!("src/{path}_tests.rs")]
        .map(text)
        .concat()
}

#[test]
fn no_unfinished_code_is_committed() {
    let marks = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("FIX", "ME"),
        concat!("#[ign", "ore"),
    ];
    let mut found = Vec::new();
    for file in
        ["src", "tests", "examples"].iter().flat_map(|d| files(d, "rs")).filter(|f| !f.ends_with("tidy.rs"))
    {
        for (number, line) in read(&file).lines().enumerate() {
            if marks.iter().any(|m| line.contains(m)) {
                found.push(format!("{file}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
