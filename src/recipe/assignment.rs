//! A recipe applied to the tensors of a checkpoint, by names and shapes alone: which module is quantized how, which is
//! left and why, and how many bytes will be written. Needs headers only.
//!
//! A module is linear-like if `<module>.weight` is a two-dimensional float tensor. Whether the architecture is known
//! does not matter.

use std::collections::BTreeMap;

use regex::Regex;
use safetensors::Dtype;
use serde_json::Value;

use super::{Recipe, exclusions, fused_sets, scalars};
use crate::checkpoint::name_match::NameMatcher;
use crate::checkpoint::quant_args::{Dialect, Format, Observer, Strategy};
use crate::dense::{DenseSource, DenseTensor};
use crate::ops::float_dtype::FloatDtype;
use crate::ops::weight_layout::{ModuleTensor, WeightLayout};

pub use error::AssignmentError;

#[path = "assignment_error.rs"]
mod error;

/// A tensor as a header declares it.
#[derive(Debug, Clone, Copy)]
pub struct TensorDecl<'a> {
    /// Name.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions.
    pub shape: &'a [usize],
}

impl<'a> From<&'a DenseTensor> for TensorDecl<'a> {
    fn from(tensor: &'a DenseTensor) -> Self {
        Self { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape }
    }
}

impl TensorDecl<'_> {
    /// Size of the data in bytes.
    pub fn num_bytes(&self) -> u64 {
        (self.num_elements() * self.dtype.bitsize() as u64).div_ceil(8)
    }

    /// Size in bytes if floats were BF16: the size to beat.
    pub fn bf16_bytes(&self) -> u64 {
        match self.dtype {
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 => self.num_elements() * 2,
            _ => self.num_bytes(),
        }
    }

    fn num_elements(&self) -> u64 {
        self.shape.iter().map(|d| *d as u64).product()
    }
}

/// What a recipe makes of a checkpoint.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Modules to be quantized, sorted by name.
    pub modules: Vec<AssignedModule>,
    /// Linear-like modules left as they are.
    pub excluded: BTreeMap<String, Excluded>,
    /// Tensors of one number that come on top: static scales of inputs, of keys and of values.
    pub scalars: Vec<ScalarTensor>,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the source's tensors if its floats were BF16.
    pub source_bf16_bytes: u64,
    /// Bytes of the tensors that will be written.
    pub predicted_bytes: u64,
}

/// One module to be quantized.
#[derive(Debug, Clone)]
pub struct AssignedModule {
    /// Name, without `.weight`.
    pub name: String,
    /// [N, K].
    pub shape: [usize; 2],
    /// Type of the weight and of its float scales.
    pub dtype: FloatDtype,
    /// Index into the recipe's groups.
    pub group: usize,
    /// Format on disk.
    pub format: Format,
    /// Tensors on disk.
    pub layout: WeightLayout,
    /// How ranges are found.
    pub observer: Observer,
}

impl AssignedModule {
    /// Name of the source's tensor.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// The tensors that replace it; the codes come first.
    pub fn tensors(&self) -> Vec<ModuleTensor> {
        self.layout.tensors(self.shape, self.dtype.dtype())
    }
}

/// A tensor of one number that the recipe adds.
#[derive(Debug, Clone, PartialEq)]
pub struct ScalarTensor {
    /// Name.
    pub name: String,
    /// A float type.
    pub dtype: Dtype,
    /// `[1]` or `[]`.
    pub shape: Vec<usize>,
    /// The number; `None` where it has to be calibrated.
    pub value: Option<f32>,
    /// The module whose inputs it scales; `None` for keys and values.
    pub inputs_of: Option<String>,
    /// The source's tensor in whose shard it lies.
    pub after: String,
}

/// Why a linear-like module is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excluded {
    /// The reason.
    pub reason: String,
    /// Whether the class `Linear` would claim it, so that the config must name it under `ignore`.
    pub is_linear: bool,
}

impl Assignment {
    /// Applies `recipe` to a source, whatever it is stored as. Fused experts of which none is quantized stay fused.
    pub fn of_source(source: &mut DenseSource, recipe: &Recipe) -> Result<Self, AssignmentError> {
        let decls: Vec<TensorDecl<'_>> = source.tensors().map(TensorDecl::from).collect();
        let mut assignment = Self::new(&decls, source.config(), recipe).map_err(|error| match error {
            AssignmentError::FusedExperts { tensor, shape, problem } => {
                let problem = source.unclear().get(&tensor).cloned().unwrap_or(problem);
                AssignmentError::FusedExperts { tensor, shape, problem }
            }
            other => other,
        })?;
        assignment.source_bytes = source.stored_bytes();
        let untouched = |experts: &&String| !assignment.quantizes_within(experts);
        let kept: Vec<String> = source.fused().keys().filter(untouched).cloned().collect();
        source.keep_fused(&kept);
        Ok(assignment)
    }

    /// Whether a module below this one is quantized.
    pub fn quantizes_within(&self, module: &str) -> bool {
        let below = format!("{module}.");
        let at = self.modules.partition_point(|m| m.name.as_str() < below.as_str());
        self.modules.get(at).is_some_and(|m| m.name.starts_with(&below))
    }

    /// Applies `recipe` and checks everything that headers can tell; errors carry recipes that would do.
    pub fn new(tensors: &[TensorDecl<'_>], config: &Value, recipe: &Recipe) -> Result<Self, AssignmentError> {
        assign(tensors, config, recipe).map_err(|error| {
            if !error.another_recipe_may_do() {
                return error;
            }
            let fitting = super::builtin_names()
                .iter()
                .filter(|name| **name != recipe.name)
                .filter(|name| {
                    let assigned = super::load(name).ok().and_then(|r| assign(tensors, config, &r).ok());
                    assigned.is_some_and(|a| a.scalars.iter().all(|s| s.value.is_some()))
                })
                .map(|name| (*name).to_owned());
            error.with_recipes(fitting.collect(), recipe)
        })
    }

    /// Static scales of inputs that calibration has to find.
    pub fn calibrated(&self) -> impl Iterator<Item = &ScalarTensor> {
        self.scalars.iter().filter(|s| s.value.is_none() && s.inputs_of.is_some())
    }

    /// Refuses static scales that nothing here finds: those of keys and values without a constant. A scan goes without.
    pub fn refuse_unknown_scales(&self, recipe: &Recipe) -> Result<(), AssignmentError> {
        let missing = |s: &&ScalarTensor| s.value.is_none() && s.inputs_of.is_none();
        let Some(first) = self.scalars.iter().find(missing) else { return Ok(()) };
        Err(AssignmentError::UnknownScales {
            recipe: recipe.name.clone(),
            tensor: first.name.clone(),
            count: self.scalars.iter().filter(missing).count(),
        })
    }
}

fn assign(
    tensors: &[TensorDecl<'_>],
    config: &Value,
    recipe: &Recipe,
) -> Result<Assignment, AssignmentError> {
    refuse_quantized(tensors, config)?;
    let rules = Rules::new(config, recipe)?;
    let mut assignment = Assignment {
        modules: Vec::new(),
        excluded: BTreeMap::new(),
        scalars: Vec::new(),
        source_bytes: 0,
        source_bf16_bytes: 0,
        predicted_bytes: 0,
    };
    let mut sorted = tensors.to_vec();
    sorted.sort_by_key(|t| t.name);
    for tensor in &sorted {
        assignment.source_bytes += tensor.num_bytes();
        assignment.source_bf16_bytes += tensor.bf16_bytes();
        match rules.judge(tensor)? {
            Judgement::Quantized(module) => {
                assignment.predicted_bytes +=
                    module.tensors().iter().map(ModuleTensor::num_bytes).sum::<u64>();
                assignment.scalars.extend(scalars::of_module(&module, recipe));
                assignment.modules.push(module);
            }
            Judgement::Excluded(module, excluded) => {
                assignment.predicted_bytes += tensor.num_bytes();
                assignment.excluded.insert(module, excluded);
            }
            Judgement::NotAModule => assignment.predicted_bytes += tensor.num_bytes(),
        }
    }
    if let Some(args) = &recipe.kv_cache {
        let names = sorted.iter().filter(|t| !rules.excludes(t.name)).map(|t| (t.name, t.dtype));
        assignment.scalars.extend(scalars::of_kv_cache(names, args, recipe)?);
    }
    assignment.predicted_bytes +=
        assignment.scalars.iter().map(|s| s.dtype.bitsize() as u64 / 8).sum::<u64>();
    assignment.check(recipe)?;
    Ok(assignment)
}

impl Assignment {
    fn check(&self, recipe: &Recipe) -> Result<(), AssignmentError> {
        if self.modules.is_empty() {
            return Err(AssignmentError::NothingMatched {
                recipe: recipe.name.clone(),
                linear_modules: self.excluded.len(),
                recipes: Vec::new(),
            });
        }
        self.check_groups()?;
        self.check_blocks(recipe.dialect)?;
        self.check_fused_sets()?;
        if self.predicted_bytes >= self.source_bf16_bytes {
            return Err(AssignmentError::NotSmaller {
                recipe: recipe.name.clone(),
                predicted_bytes: self.predicted_bytes,
                source_bf16_bytes: self.source_bf16_bytes,
                recipes: Vec::new(),
            });
        }
        Ok(())
    }

    /// Groups must divide K: compressed-tensors does not pad, and no loader expects a shorter last group.
    fn check_groups(&self) -> Result<(), AssignmentError> {
        let does_not_divide =
            |m: &&AssignedModule| m.layout.group_size().is_some_and(|g| !m.shape[1].is_multiple_of(g));
        let bad: Vec<&AssignedModule> = self.modules.iter().filter(does_not_divide).collect();
        let Some(group_size) = bad.first().and_then(|m| m.layout.group_size()) else { return Ok(()) };
        let fits = |g: &usize| self.modules.iter().all(|m| m.shape[1].is_multiple_of(*g));
        // Sizes that vLLM has kernels for.
        let fitting = [256, 128, 64, 32].into_iter().filter(|g| *g < group_size && fits(g)).collect();
        Err(AssignmentError::GroupSize {
            group_size,
            tensors: bad.iter().map(|m| (m.weight(), m.shape)).collect(),
            fitting,
            recipes: Vec::new(),
        })
    }

    /// ModelOpt's blocks must divide N and K; those of compressed-tensors may be cut at the edges.
    fn check_blocks(&self, dialect: Dialect) -> Result<(), AssignmentError> {
        let ragged = |m: &&AssignedModule| {
            let block = m.layout.block(m.shape);
            m.layout.strategy == Strategy::Block && (0..2).any(|i| !m.shape[i].is_multiple_of(block[i]))
        };
        match self.modules.iter().find(ragged) {
            Some(m) if dialect == Dialect::Modelopt => Err(AssignmentError::RaggedBlocks {
                tensor: m.weight(),
                shape: m.shape,
                block: m.layout.block(m.shape),
            }),
            _ => Ok(()),
        }
    }

    /// Fused layers must have one scheme (checkpoint-formats §4.4).
    fn check_fused_sets(&self) -> Result<(), AssignmentError> {
        let by_name: BTreeMap<&str, &AssignedModule> =
            self.modules.iter().map(|m| (m.name.as_str(), m)).collect();
        for module in &self.modules {
            for member in fused_sets::members(&module.name).unwrap_or_default() {
                let other = by_name.get(member.as_str());
                if other.is_some_and(|o| o.group == module.group) {
                    continue;
                }
                let found = match (other, self.excluded.get(&member)) {
                    (Some(_), _) => "quantized by another group".to_owned(),
                    (None, Some(excluded)) => format!("left unquantized ({})", excluded.reason),
                    (None, None) => continue,
                };
                return Err(AssignmentError::SplitFusedSet { module: module.name.clone(), member, found });
            }
        }
        Ok(())
    }
}

fn refuse_quantized(tensors: &[TensorDecl<'_>], config: &Value) -> Result<(), AssignmentError> {
    for key in ["quantization_config", "compression_config"] {
        if let Some(declared) = config.get(key).filter(|v| !v.is_null()) {
            let method = declared.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
            let evidence = format!("config.json declares {key} with quant_method {method}");
            return Err(AssignmentError::AlreadyQuantized { evidence });
        }
    }
    let is_quantized = |t: &&TensorDecl<'_>| {
        let by_name = [".weight_packed", ".weight_scale", ".qweight", ".weight_scale_inv", ".weight_scale_2"];
        by_name.iter().any(|suffix| t.name.ends_with(suffix))
            || (t.name.ends_with(".weight") && is_code_dtype(t.dtype) && t.shape.len() >= 2)
    };
    match tensors.iter().find(is_quantized) {
        None => Ok(()),
        Some(t) => Err(AssignmentError::AlreadyQuantized {
            evidence: format!("tensor {} has dtype {}", t.name, t.dtype),
        }),
    }
}

fn is_code_dtype(dtype: Dtype) -> bool {
    !matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::BOOL)
}

/// A recipe compiled for many names.
struct Rules {
    included: NameMatcher,
    excluded: Vec<(NameMatcher, Excluded)>,
    /// How many entries of `excluded` are the recipe's own, which `include_modules` does not override.
    own: usize,
    groups: Vec<(NameMatcher, Format, WeightLayout, Observer)>,
    /// `model.layers.N` at or beyond the number of layers is a multi-token prediction layer.
    layers: Option<(Regex, u64)>,
}

enum Judgement {
    Quantized(AssignedModule),
    Excluded(String, Excluded),
    NotAModule,
}

impl Rules {
    fn new(config: &Value, recipe: &Recipe) -> Result<Self, AssignmentError> {
        let compile = |entries: &[String]| {
            NameMatcher::new(entries).map_err(|e| AssignmentError::Recipe(e.to_string()))
        };
        let mut excluded = Vec::new();
        for entry in &recipe.exclude_modules {
            let known = exclusions::DEFAULT.iter().find(|e| e.pattern == entry);
            let because = known.map_or_else(
                || Excluded { reason: format!("excluded by the recipe: {entry}"), is_linear: true },
                |e| Excluded { reason: e.reason.to_owned(), is_linear: e.is_linear },
            );
            excluded.push((compile(std::slice::from_ref(entry))?, because));
        }
        let own = recipe.exclude_modules.len().saturating_sub(exclusions::DEFAULT.len());
        let mut groups = Vec::new();
        for scheme in &recipe.groups {
            let format = scheme
                .format()
                .ok_or_else(|| AssignmentError::Recipe("a group has no checkpoint format".to_owned()))?;
            let layout = WeightLayout::new(&scheme.weights, format)
                .and_then(|layout| layout.in_dialect(recipe.dialect))
                .map_err(|error| AssignmentError::Recipe(error.to_string()))?;
            groups.push((compile(&scheme.targets)?, format, layout, scheme.weights.observer));
        }
        let text_config = config.get("text_config").unwrap_or(config);
        let layers = text_config.get("num_hidden_layers").and_then(Value::as_u64).and_then(|layers| {
            Some((
                Regex::new(r"^(?:language_model\.)?model\.(?:language_model\.)?layers\.(\d+)\.").ok()?,
                layers,
            ))
        });
        Ok(Self { included: compile(&recipe.include_modules)?, excluded, own, groups, layers })
    }

    fn judge(&self, tensor: &TensorDecl<'_>) -> Result<Judgement, AssignmentError> {
        let dtype = FloatDtype::of(tensor.dtype);
        if tensor.shape.len() == 3 && dtype.is_some() {
            let module = tensor.name.strip_suffix(".weight").unwrap_or(tensor.name);
            if module.split('.').any(|part| part == "experts") && self.exclusion(module).is_none() {
                let shape = tensor.shape.to_vec();
                let problem = "its layout is not known".to_owned();
                return Err(AssignmentError::FusedExperts { tensor: tensor.name.to_owned(), shape, problem });
            }
        }
        let Some((name, dtype, &[n, k])) = tensor
            .name
            .strip_suffix(".weight")
            .zip(dtype)
            .and_then(|(name, dtype)| Some((name, dtype, <&[usize; 2]>::try_from(tensor.shape).ok()?)))
        else {
            return Ok(Judgement::NotAModule);
        };
        let left = |reason: &str| {
            let excluded = Excluded { reason: reason.to_owned(), is_linear: true };
            Ok(Judgement::Excluded(name.to_owned(), excluded))
        };
        if let Some(excluded) = self.exclusion(name) {
            return Ok(Judgement::Excluded(name.to_owned(), excluded));
        }
        if n == 0 || k == 0 {
            return left("has no elements");
        }
        let target = self.groups.iter().position(|(matcher, ..)| matcher.matches(name));
        let Some(group) = target else { return left("not targeted by the recipe") };
        let (_, format, layout, observer) = &self.groups[group];
        Ok(Judgement::Quantized(AssignedModule {
            name: name.to_owned(),
            shape: [n, k],
            dtype,
            group,
            format: *format,
            layout: *layout,
            observer: *observer,
        }))
    }

    /// Whether the module of a weight is excluded by name.
    fn excludes(&self, tensor: &str) -> bool {
        tensor.strip_suffix(".weight").is_some_and(|module| self.exclusion(module).is_some())
    }

    /// The entry that excludes a module, if any.
    fn exclusion(&self, module: &str) -> Option<Excluded> {
        let included = self.included.matches(module);
        let consulted = if included { &self.excluded[..self.own] } else { &self.excluded[..] };
        if let Some((_, because)) = consulted.iter().find(|(matcher, _)| matcher.matches(module)) {
            return Some(because.clone());
        }
        let (pattern, layers) = self.layers.as_ref()?;
        let layer: u64 = pattern.captures(module)?[1].parse().ok()?;
        let beyond = layer >= *layers && !included;
        beyond.then(|| Excluded { reason: "multi-token prediction".to_owned(), is_linear: true })
    }
}

#[cfg(test)]
#[path = "assignment_tests.rs"]
mod tests;
