//! The checkpoint against its source and the recipe: nothing lost, nothing added, and quantized what was asked for.

use safetensors::Dtype;

use super::Findings;
use super::modules::{Declared, Module};
use super::source_view::SourceView;
use super::table::{Table, shown};
use crate::recipe::Recipe;
use crate::recipe::assignment::{AssignedModule, Assignment, AssignmentError, TensorDecl};

/// What source and recipe let one expect.
pub(super) struct SourceCheck<'a> {
    /// Its fused experts are fused where the checkpoint's are.
    source: Option<SourceView<'a>>,
    /// The recipe applied to the source, or to what the checkpoint itself was before.
    assignment: Option<Result<Assignment, AssignmentError>>,
    recipe: Option<&'a Recipe>,
    table: &'a Table<'a>,
}

impl<'a> SourceCheck<'a> {
    pub(super) fn new(
        table: &'a Table<'a>,
        modules: &[Module<'_>],
        mut source: Option<SourceView<'a>>,
        recipe: Option<&'a Recipe>,
    ) -> Self {
        let assignment = recipe.map(|recipe| {
            if let Some(source) = &source {
                return Assignment::new(&source.decls(), source.config(), recipe);
            }
            let before: Vec<(String, Dtype, Vec<usize>)> = modules
                .iter()
                .filter_map(|m| Some((format!("{}.weight", m.name), Dtype::BF16, m.shape?.to_vec())))
                .collect();
            let decls: Vec<TensorDecl<'_>> =
                before.iter().map(|(name, dtype, shape)| TensorDecl { name, dtype: *dtype, shape }).collect();
            Assignment::new(&decls, &table.unquantized_config(), recipe)
        });
        if let Some(source) = &mut source {
            source.fuse_as_in(&table.tensors);
        }
        Self { source, assignment, recipe, table }
    }

    /// Predicted bytes, from the source's headers only.
    pub(super) fn predicted_bytes(&self) -> Option<u64> {
        self.source.as_ref()?;
        self.assignment.as_ref()?.as_ref().ok().map(|a| a.predicted_bytes)
    }

    /// Bytes of the source's tensors as they are stored, and as they would be if its floats were BF16 and nothing was
    /// quantized.
    pub(super) fn source_bytes(&self) -> Option<(u64, u64)> {
        let source = self.source.as_ref()?;
        let dense = source.decls().iter().map(TensorDecl::bf16_bytes).sum();
        Some((source.stored_bytes(), dense))
    }

    /// Whether the source declares or holds a quantization itself.
    pub(super) fn source_is_quantized(&self) -> bool {
        self.source.as_ref().is_some_and(SourceView::is_quantized)
    }

    /// Every tensor of the source is there, as it was or quantized, and nothing else is.
    pub(super) fn names_and_shapes(&self, modules: &[Module<'_>], findings: &mut Findings) {
        let Some(source) = &self.source else { return };
        let quantized = |name: &str| {
            let module = name.strip_suffix(".weight")?;
            let at = modules.binary_search_by(|m| m.name.cmp(module)).ok()?;
            modules[at].found.is_quantized().then_some(&modules[at])
        };
        for info in source.decls() {
            if quantized(info.name).is_some() {
                continue;
            }
            let expected = shown(info.dtype, info.shape);
            match self.table.tensors.get(info.name) {
                None => findings.defect("names", info.name, "missing", expected),
                Some(found) if found.shape != info.shape => {
                    findings.defect("shapes", info.name, shown(found.dtype, &found.shape), expected);
                }
                Some(found) if found.dtype != info.dtype => {
                    findings.defect("dtypes", info.name, shown(found.dtype, &found.shape), expected);
                }
                Some(_) => {}
            }
        }
        for (name, info) in &self.table.tensors {
            let of_module = |(module, suffix): (&str, &str)| {
                let module = quantized(&format!("{module}.weight"));
                module.is_some_and(|m| m.tensors.contains_key(suffix) || suffix.starts_with("input_"))
            };
            let belongs = source.get(name).is_some()
                || name.rsplit_once('.').is_some_and(of_module)
                || name.ends_with(".k_scale")
                || name.ends_with(".v_scale");
            if !belongs {
                findings.defect(
                    "names",
                    *name,
                    shown(info.dtype, &info.shape),
                    "no such tensor: not in the source",
                );
            }
        }
    }

    /// Whether weights are stored, and inputs quantized, as the recipe says.
    fn is_as_asked(&self, declared: &Declared, target: &AssignedModule) -> bool {
        let asked = self.recipe.and_then(|recipe| recipe.groups.get(target.group));
        let inputs = match (asked.and_then(|group| group.input_activations.as_ref()), &declared.inputs) {
            (None, None) => true,
            (Some(asked), Some(declared)) => asked.is_declared_as(declared),
            _ => false,
        };
        inputs && declared.layout == target.layout
    }

    /// What the recipe targets is quantized as it says, and nothing else is.
    pub(super) fn coverage(&self, modules: &[Module<'_>], findings: &mut Findings) {
        let assignment = match &self.assignment {
            None => return,
            Some(Ok(assignment)) => assignment,
            Some(Err(AssignmentError::NothingMatched { .. })) => {
                findings.coverage.recipe_targets = Some(0);
                return;
            }
            Some(Err(error)) => {
                findings.not_checked.insert("recipe".to_owned(), error.to_string());
                return;
            }
        };
        findings.coverage.recipe_targets = Some(assignment.modules.len());
        // Fused experts are no modules of the checkpoint: that they were left is seen here or nowhere.
        for tensor in self.source.iter().flat_map(SourceView::decls) {
            let fused = tensor.shape.len() == 3
                && tensor.name.rsplit_once('.').is_some_and(|(module, _)| {
                    module.ends_with("experts") && assignment.quantizes_within(module)
                });
            if fused && self.table.tensors.contains_key(tensor.name) {
                findings.coverage.unexpected_unquantized.push(tensor.name.to_owned());
            }
        }
        for module in modules {
            let target = assignment.modules.binary_search_by(|m| m.name.as_str().cmp(module.name)).ok();
            match (target.map(|i| &assignment.modules[i]), module.found.is_quantized()) {
                (Some(_), false) => findings.coverage.unexpected_unquantized.push(module.name.to_owned()),
                (None, true) => findings.coverage.declaration_mismatch.push(module.name.to_owned()),
                (Some(target), true)
                    if module.declared.as_ref().is_some_and(|d| !self.is_as_asked(d, target)) =>
                {
                    findings.coverage.declaration_mismatch.push(module.name.to_owned());
                }
                _ => {}
            }
        }
    }
}
