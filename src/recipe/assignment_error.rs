//! Why a recipe cannot be applied to a checkpoint.

use crate::base::units::human_bytes;
use crate::recipe::Recipe;
use crate::record::{Classified, FailureClass};

/// A recipe and a checkpoint that do not go together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// No module is targeted.
    #[error("recipe {recipe} matches none of the {linear_modules} linear modules")]
    NothingMatched {
        /// The recipe.
        recipe: String,
        /// Linear-like modules in the checkpoint.
        linear_modules: usize,
        /// Built-in recipes that can be applied.
        recipes: Vec<String>,
    },
    /// Groups do not divide the columns.
    #[error("group size {group_size} does not divide the columns of {}; {}", listed(tensors), fits(fitting))]
    GroupSize {
        /// The recipe's group size.
        group_size: usize,
        /// Tensors with their shapes [N, K].
        tensors: Vec<(String, [usize; 2])>,
        /// Group sizes that divide K everywhere.
        fitting: Vec<usize>,
        /// Built-in recipes that can be applied.
        recipes: Vec<String>,
    },
    /// Blocks do not divide a weight, and the layout has no cut ones.
    #[error("blocks of {block:?} do not divide {tensor} {shape:?}, as ModelOpt's layout needs")]
    RaggedBlocks {
        /// The first such tensor.
        tensor: String,
        /// [N, K].
        shape: [usize; 2],
        /// Rows and columns of a block.
        block: [usize; 2],
    },
    /// Layers that engines fuse would get different schemes.
    #[error("{module} would be quantized, but {member}, which engines fuse with it, is {found}")]
    SplitFusedSet {
        /// A quantized member.
        module: String,
        /// The other member.
        member: String,
        /// What happens to that one.
        found: String,
    },
    /// Quantizing would not save anything.
    #[error(
        "recipe {recipe} would write {} of tensors, not less than the {} that the source takes in BF16",
        human_bytes(*predicted_bytes),
        human_bytes(*source_bf16_bytes)
    )]
    NotSmaller {
        /// The recipe.
        recipe: String,
        /// Bytes that would be written.
        predicted_bytes: u64,
        /// Bytes of the source in BF16.
        source_bf16_bytes: u64,
        /// Built-in recipes that can be applied.
        recipes: Vec<String>,
    },
    /// Static scales of the KV cache are not known.
    #[error(
        "recipe {recipe} needs {count} static scales of keys and values, the first {tensor}, which are not calibrated"
    )]
    UnknownScales {
        /// The recipe.
        recipe: String,
        /// The first tensor without a value.
        tensor: String,
        /// How many there are.
        count: usize,
    },
    /// Scales of keys and values are asked for, but nothing looks like attention.
    #[error(
        "recipe {recipe} quantizes the KV cache, but no k_proj, qkv_proj or query_key_value tells where it is"
    )]
    NoAttention {
        /// The recipe.
        recipe: String,
    },
    /// The source is quantized itself.
    #[error("source is already quantized: {evidence}")]
    AlreadyQuantized {
        /// What shows it.
        evidence: String,
    },
    /// All experts of a layer in one tensor.
    #[error("tensor {tensor} {shape:?} holds fused experts that cannot be told apart: {problem}")]
    FusedExperts {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What is not certain.
        problem: String,
    },
    /// The recipe itself is at fault.
    #[error("the recipe cannot be applied: {0}")]
    Recipe(String),
}

impl AssignmentError {
    /// Whether it is worth to look for another recipe.
    pub(super) fn another_recipe_may_do(&self) -> bool {
        matches!(self, Self::NothingMatched { .. } | Self::GroupSize { .. } | Self::NotSmaller { .. })
    }

    /// The error with recipes that can be applied, those with the same kind of weights first.
    pub(super) fn with_recipes(mut self, mut found: Vec<String>, failed: &Recipe) -> Self {
        let kind = |recipe: &Recipe| recipe.groups.first().map(|g| (g.weights.qtype, g.weights.num_bits));
        found.sort_by_key(|name| !crate::recipe::load(name).is_ok_and(|r| kind(&r) == kind(failed)));
        match &mut self {
            Self::NothingMatched { recipes, .. }
            | Self::GroupSize { recipes, .. }
            | Self::NotSmaller { recipes, .. } => *recipes = found,
            _ => {}
        }
        self
    }
}

/// At most three tensors by name, then how many more.
fn listed(tensors: &[(String, [usize; 2])]) -> String {
    let shown: Vec<String> =
        tensors.iter().take(3).map(|(name, shape)| format!("{name} {shape:?}")).collect();
    match tensors.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn fits(sizes: &[usize]) -> String {
    if sizes.is_empty() {
        return "no smaller group size fits all".to_owned();
    }
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    format!("group sizes that fit: {}", sizes.join(", "))
}

impl Classified for AssignmentError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Recipe(_) => FailureClass::UserConfigError,
            _ => FailureClass::ModelUnsupported,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NothingMatched { recipes, .. }
            | Self::GroupSize { recipes, .. }
            | Self::NotSmaller { recipes, .. } => {
                let first: Vec<&str> = recipes.iter().take(2).map(String::as_str).collect();
                (!first.is_empty()).then(|| format!("use --recipe {}", first.join(" or --recipe ")))
            }
            Self::RaggedBlocks { .. } => {
                Some("use --recipe fp8_dynamic, or write compressed-tensors (leave --format out)".to_owned())
            }
            Self::UnknownScales { .. } => {
                Some("give a constant amax under kv_cache in the recipe: 448 makes the scales 1".to_owned())
            }
            Self::NoAttention { .. } => Some("leave kv_cache out of the recipe".to_owned()),
            Self::SplitFusedSet { .. } => Some("target or exclude all members of the set alike".to_owned()),
            Self::AlreadyQuantized { .. } => Some("start from the original, unquantized model".to_owned()),
            Self::FusedExperts { .. } => {
                Some("exclude the tensor by name, or use a checkpoint with one tensor per expert".to_owned())
            }
            Self::Recipe(_) => None,
        }
    }
}
