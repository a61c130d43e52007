//! Each rule of the loaders on a checkpoint that breaks it, and on one that does not.

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::checkpoint::header::TensorInfo;
use crate::record::scan::Defect;
use crate::scan::table::Table;
use crate::scan::{Findings, coverage, fused, modules};

/// Headers that a writer would make.
#[derive(Default)]
struct Model {
    tensors: Vec<TensorInfo>,
    config: Value,
}

impl Model {
    /// A checkpoint that declares one group of each (name, targets, arguments with format).
    fn new(groups: &[(&str, &[&str], Value)]) -> Self {
        let mut declared = serde_json::Map::new();
        for (name, targets, group) in groups {
            let mut group = group.clone();
            group["targets"] = json!(targets);
            declared.insert((*name).to_owned(), group);
        }
        let format = if groups.len() > 1 { json!("mixed-precision") } else { groups[0].2["format"].clone() };
        let config = json!({"architectures": ["LlamaForCausalLM"], "quantization_config": {
            "quant_method": "compressed-tensors", "quantization_status": "compressed", "format": format,
            "config_groups": declared, "ignore": ["lm_head"]}});
        Self { tensors: Vec::new(), config }
    }

    fn tensor(mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Self {
        let bytes = shape.iter().product::<usize>() as u64 * dtype.bitsize() as u64 / 8;
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push(TensorInfo { name, dtype, shape, begin: 0, end: bytes });
        self
    }

    /// FP8 by channel, [128, 64].
    fn fp8(self, module: &str) -> Self {
        self.tensor(&format!("{module}.weight"), Dtype::F8_E4M3, &[128, 64]).tensor(
            &format!("{module}.weight_scale"),
            Dtype::BF16,
            &[128, 1],
        )
    }

    /// Packed INT4 by groups of 32, [128, 64].
    fn int4(self, module: &str) -> Self {
        self.tensor(&format!("{module}.weight_packed"), Dtype::I32, &[128, 8])
            .tensor(&format!("{module}.weight_scale"), Dtype::BF16, &[128, 2])
            .tensor(&format!("{module}.weight_shape"), Dtype::I64, &[2])
    }

    fn plain(self, module: &str) -> Self {
        self.tensor(&format!("{module}.weight"), Dtype::BF16, &[128, 64])
    }

    fn config(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    fn findings(&self) -> Findings {
        let mut findings = Findings::default();
        let table = Table::of_headers(&self.tensors, &self.config);
        let declared = findings.declaration(&table);
        let mut modules = modules::find(&table, None);
        coverage::judge(&mut modules, declared.as_ref(), false, &mut findings);
        fused::check(&table, &modules, &mut findings);
        super::check(&table, &modules, &declared.unwrap(), &mut findings);
        findings.finish();
        findings
    }

    #[track_caller]
    fn is_sound(&self) {
        let findings = self.findings();
        assert_eq!(findings.defects, []);
        assert_eq!(findings.notes, []);
        assert_eq!(findings.coverage.unexpected_unquantized, [] as [&str; 0]);
        assert_eq!(findings.coverage.declaration_mismatch, [] as [&str; 0]);
    }

    /// Fails unless the only defects are of this check and name the subject.
    #[track_caller]
    fn is_refused(&self, check: &str, subject: &str) -> Vec<Defect> {
        let defects = self.findings().defects;
        assert!(!defects.is_empty(), "no defect");
        for defect in &defects {
            assert!(defect.check == check && defect.tensor.contains(subject), "{defect:?}");
        }
        defects
    }

    #[track_caller]
    fn is_noted(&self, subject: &str) {
        let findings = self.findings();
        assert_eq!(findings.defects, []);
        assert!(findings.notes.iter().any(|n| n.tensor.contains(subject)), "{:?}", findings.notes);
    }
}

fn fp8_scheme() -> Value {
    json!({"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}, "format": "float-quantized",
        "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}})
}

fn int4_scheme() -> Value {
    json!({"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
        "format": "pack-quantized"})
}

fn fp8() -> Model {
    Model::new(&[("group_0", &["Linear"], fp8_scheme())])
}

fn int4() -> Model {
    Model::new(&[("group_0", &["Linear"], int4_scheme())])
}

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.0.mlp.down_proj";

#[test]
fn sound_checkpoints() {
    fp8().fp8(Q).fp8(DOWN).plain("lm_head").plain("model.embed_tokens").is_sound();
    int4().int4(Q).int4(DOWN).is_sound();
}

#[test]
fn symmetric_schemes_have_no_zero_point() {
    let name = format!("{Q}.weight_zero_point");
    int4().int4(Q).tensor(&name, Dtype::I32, &[16, 2]).is_refused("names", &name);
}

#[test]
fn channel_scales_have_two_dimensions() {
    let model = fp8().tensor(&format!("{Q}.weight"), Dtype::F8_E4M3, &[128, 64]).tensor(
        &format!("{Q}.weight_scale"),
        Dtype::BF16,
        &[128],
    );
    model.is_refused("shapes", &format!("{Q}.weight_scale"));
}

#[test]
fn mixed_precision_needs_a_format_in_each_group() {
    let two = |second: Value| {
        let groups: [(&str, &[&str], Value); 2] =
            [("group_0", &["re:.*self_attn"], fp8_scheme()), ("group_1", &["re:.*mlp"], second)];
        Model::new(&groups).fp8(Q).int4(DOWN)
    };
    two(int4_scheme()).is_sound();
    let mut silent = int4_scheme();
    silent.as_object_mut().unwrap().remove("format");
    two(silent).is_refused("declaration", "config_groups.group_1.format");
    let not_mixed =
        two(int4_scheme()).config(|c| c["quantization_config"]["format"] = json!("float-quantized"));
    not_mixed.is_refused("declaration", "config.json format");
}

#[test]
fn format_must_hold_the_scheme() {
    let model = fp8().fp8(Q).config(|c| {
        c["quantization_config"]["config_groups"]["group_0"]["format"] = json!("pack-quantized");
    });
    model.is_refused("declaration", "config_groups.group_0");
    assert_eq!(model.findings().coverage.declaration_mismatch, [Q]);
}

#[test]
fn mtp_layers_in_bf16_must_be_ignored() {
    let mtp = "mtp.layers.0.self_attn.q_proj";
    let model = fp8().fp8(Q).plain(mtp);
    assert_eq!(model.findings().coverage.unexpected_unquantized, [mtp]);
    model.config(|c| c["quantization_config"]["ignore"] = json!(["lm_head", "re:^mtp.*"])).is_sound();
}

#[test]
fn routers_are_unquantized_and_ignored() {
    let router = "model.layers.0.mlp.gate";
    fp8().fp8(Q).fp8(router).is_refused("exclusions", router);
    let model = fp8().fp8(Q).plain(router);
    assert_eq!(model.findings().coverage.unexpected_unquantized, [router]);
    model.config(|c| c["quantization_config"]["ignore"] = json!(["lm_head", router])).is_sound();
}

#[test]
fn embeddings_and_norms() {
    let embedding = "model.embed_tokens";
    fp8().fp8(Q).fp8(embedding).is_refused("exclusions", embedding);
    int4().int4(Q).int4(embedding).is_refused("exclusions", embedding);
    let groups: [(&str, &[&str], Value); 1] = [("group_0", &["Linear", "re:.*embed_tokens$"], int4_scheme())];
    Model::new(&groups).int4(Q).int4(embedding).is_sound();
}

#[test]
fn output_heads() {
    let head_ignored = |c: &mut Value| c["quantization_config"]["ignore"] = json!([]);
    fp8().fp8(Q).config(head_ignored).is_refused("declaration", "ignore");
    let quantized = fp8().fp8(Q).fp8("lm_head").config(head_ignored);
    quantized.is_refused("declaration", "lm_head");
    let groups: [(&str, &[&str], Value); 1] = [("group_0", &["Linear", "re:.*lm_head$"], fp8_scheme())];
    let named = || Model::new(&groups).fp8(Q).fp8("lm_head").config(head_ignored);
    named().is_sound();
    named().config(|c| c["tie_word_embeddings"] = json!(true)).is_refused("exclusions", "lm_head");
    let duplicate = fp8().fp8(Q).plain("lm_head").config(|c| c["tie_word_embeddings"] = json!(true));
    duplicate.is_noted("lm_head");
    let encoder = fp8().fp8(Q).config(head_ignored).config(|c| c["architectures"] = json!(["BertModel"]));
    encoder.is_sound();
}

/// A layer of two experts, each with three projections.
fn experts(make: impl Fn(Model, &str) -> Model, model: Model) -> Model {
    let mut model = model;
    for expert in 0..2 {
        for projection in ["gate_proj", "up_proj", "down_proj"] {
            model = make(model, &format!("model.layers.0.mlp.experts.{expert}.{projection}"));
        }
    }
    model
}

#[test]
fn experts_are_complete_and_of_one_scheme() {
    experts(Model::fp8, fp8()).is_sound();
    experts(Model::fp8, fp8()).config(|c| c["num_experts"] = json!(2)).is_sound();
    let fewer = experts(Model::fp8, fp8()).config(|c| c["num_experts"] = json!(3));
    fewer.is_refused("experts", "model.layers.0.mlp.experts.2");
    let more = experts(Model::fp8, fp8()).config(|c| c["num_experts"] = json!(1));
    more.is_refused("experts", "model.layers.0.mlp.experts");
    let incomplete =
        experts(|model, name| if name.ends_with("1.up_proj") { model } else { model.fp8(name) }, fp8());
    incomplete.is_refused("experts", "model.layers.0.mlp.experts.1.up_proj");
    let groups: [(&str, &[&str], Value); 2] =
        [("group_0", &["re:.*down_proj"], int4_scheme()), ("group_1", &["Linear"], fp8_scheme())];
    let two = experts(
        |model, name| if name.ends_with("down_proj") { model.int4(name) } else { model.fp8(name) },
        Model::new(&groups),
    );
    let defects = two.is_refused("experts", "model.layers.0.mlp.experts");
    assert!(defects[0].observed.contains("down_proj") || defects[0].expected.contains("down_proj"));
}

#[test]
fn packed_three_dimensional_experts() {
    let name = "model.layers.0.mlp.experts.gate_up_proj_packed";
    int4().int4(Q).tensor(name, Dtype::I32, &[4, 128, 8]).is_refused("names", name);
}

#[test]
fn fused_layers_are_looked_up_by_their_fused_name() {
    let attention = |targets: &[&str]| {
        let groups: [(&str, &[&str], Value); 2] =
            [("group_0", targets, int4_scheme()), ("group_1", &["Linear"], fp8_scheme())];
        let model = Model::new(&groups).fp8(DOWN);
        ["q_proj", "k_proj", "v_proj"]
            .iter()
            .fold(model, |model, p| model.int4(&format!("model.layers.0.self_attn.{p}")))
    };
    let defects =
        attention(&["re:.*\\.(q|k|v)_proj$"]).is_refused("declaration", "model.layers.0.self_attn.qkv_proj");
    assert!(defects[0].observed.contains("group_1"), "{defects:?}");
    attention(&["re:.*\\.(q|k|v|qkv)_proj$"]).is_sound();
    attention(&["re:.*self_attn"]).is_sound();
}

#[test]
fn static_inputs_need_their_scale() {
    let mut scheme = fp8_scheme();
    scheme["input_activations"] = json!({"num_bits": 8, "type": "float", "strategy": "tensor"});
    let model = || Model::new(&[("group_0", &["Linear"], scheme.clone())]).fp8(Q);
    let name = format!("{Q}.input_scale");
    model().is_refused("scales", &name);
    model().tensor(&name, Dtype::BF16, &[1]).is_sound();
    model().tensor(&name, Dtype::BF16, &[128]).is_refused("shapes", &name);
    fp8().fp8(Q).tensor(&name, Dtype::BF16, &[1]).is_refused("names", &name);
}

#[test]
fn kv_cache_declarations() {
    let cache = |scheme: Value| fp8().fp8(Q).config(|c| c["quantization_config"]["kv_cache_scheme"] = scheme);
    let sound =
        json!({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false});
    let (k, v) = ("model.layers.0.self_attn.k_scale", "model.layers.0.self_attn.v_scale");
    cache(sound.clone()).tensor(k, Dtype::BF16, &[1]).tensor(v, Dtype::BF16, &[1]).is_sound();
    cache(sound.clone()).is_noted("KV cache");
    cache(sound.clone()).tensor(k, Dtype::BF16, &[1]).is_refused("scales", v);
    let flat = cache(sound.clone()).tensor(k, Dtype::BF16, &[7]).tensor(v, Dtype::BF16, &[1]);
    flat.is_refused("shapes", k);
    fp8().fp8(Q).tensor(k, Dtype::BF16, &[1]).tensor(v, Dtype::BF16, &[1]).is_noted("kv_cache_scheme");
    for (key, value) in [
        ("num_bits", json!(4)),
        ("type", json!("int")),
        ("symmetric", json!(false)),
        ("strategy", json!("group")),
    ] {
        let mut scheme = sound.clone();
        scheme[key] = value;
        cache(scheme).is_refused("declaration", &format!("kv_cache_scheme.{key}"));
    }
}

#[test]
fn groups_and_ignore_entries_without_modules_are_noted() {
    let groups: [(&str, &[&str], Value); 2] =
        [("group_0", &["re:.*self_attn"], fp8_scheme()), ("group_1", &["re:.*mlp"], int4_scheme())];
    Model::new(&groups).fp8(Q).is_noted("config_groups.group_1.targets");
    let ignored = fp8().fp8(Q).config(|c| {
        c["quantization_config"]["ignore"] = json!(["lm_head", "model.layers.0.linear_attn.in_proj_b"]);
    });
    ignored.is_noted("in_proj_b");
}
