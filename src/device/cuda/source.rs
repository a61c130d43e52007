//! The embedded sources of kernels, and the combinations of defines they are compiled with.

/// A `.cu` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelSource {
    /// File name below `kernels/`.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

impl std::hash::Hash for KernelSource {
    /// By the name: texts are long, and a name has one.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// Includes the file `kernels/<name>`.
macro_rules! kernel_source {
    ($name:literal) => {
        $crate::device::cuda::KernelSource {
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $name)),
        }
    };
}
pub(crate) use kernel_source;

/// The headers that sources include.
pub(super) const HEADERS: &[KernelSource] = &[
    kernel_source!("act.cuh"),
    kernel_source!("block.cuh"),
    kernel_source!("core.cuh"),
    kernel_source!("mma.cuh"),
    kernel_source!("numeric.cuh"),
    kernel_source!("pack.cuh"),
    kernel_source!("qparams.cuh"),
    kernel_source!("step.cuh"),
    kernel_source!("weight.cuh"),
];

/// A source with the values of its defines.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The source.
    pub source: KernelSource,
    /// Names and values, in the order of the source's description.
    pub defines: Vec<(&'static str, String)>,
}

impl Variant {
    /// A source that is compiled in one way only.
    pub fn plain(source: KernelSource) -> Self {
        Self { source, defines: Vec::new() }
    }

    /// Adds a define.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "numbers and names are passed as they are")]
    pub fn define(mut self, name: &'static str, value: impl ToString) -> Self {
        self.defines.push((name, value.to_string()));
        self
    }
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.source.name)?;
        for (name, value) in &self.defines {
            write!(f, " {name}={value}")?;
        }
        Ok(())
    }
}
