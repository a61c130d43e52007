use serde_json::{Value, json};

use super::*;
use crate::dense::DenseSource;
use crate::dense::test_checkpoint::{bf16s, open, values};

const E: usize = 3;
const H: usize = 4;
const I: usize = 5;
const MODULE: &str = "model.layers.0.mlp.experts";

/// A different small integer for each (expert, projection, row, column): exact in bf16.
fn element(expert: usize, projection: usize, row: usize, column: usize) -> f32 {
    (((expert * 3 + projection) * 6 + row) * 5 + column) as f32 - 100.0
}

/// Rows of `projection` (0 gate, 1 up, 2 down) of an expert.
fn expected(expert: usize, projection: usize) -> Vec<f32> {
    let [n, k] = if projection == 2 { [H, I] } else { [I, H] };
    (0..n * k).map(|at| element(expert, projection, at / k, at % k)).collect()
}

/// `gate_up_proj` and `down_proj` as torch would fuse them, with their shapes.
fn fused(order: Order) -> [(Vec<usize>, Vec<f32>); 2] {
    let (mut gate_up, mut down) = (Vec::new(), Vec::new());
    for e in 0..E {
        match order {
            Order::Rows => {
                gate_up.extend([expected(e, 0), expected(e, 1)].concat());
                down.extend(expected(e, 2));
            }
            Order::Columns | Order::Interleaved => {
                for h in 0..H {
                    for column in 0..2 * I {
                        let (projection, i) = if order == Order::Columns {
                            (column / I, column % I)
                        } else {
                            (column % 2, column / 2)
                        };
                        gate_up.push(element(e, projection, i, h));
                    }
                }
                down.extend((0..I).flat_map(|i| (0..H).map(move |h| element(e, 2, h, i))));
            }
        }
    }
    match order {
        Order::Rows => [(vec![E, 2 * I, H], gate_up), (vec![E, H, I], down)],
        _ => [(vec![E, H, 2 * I], gate_up), (vec![E, I, H], down)],
    }
}

fn source(dir: &std::path::Path, order: Order, config: &Value, biases: bool) -> DenseSource {
    let [gate_up, down] = fused(order);
    let mut tensors = vec![
        bf16s("model.norm.weight", &[H], vec![1.0; H]),
        bf16s(&format!("{MODULE}.down_proj"), &down.0, down.1),
        bf16s(&format!("{MODULE}.gate_up_proj"), &gate_up.0, gate_up.1),
    ];
    if biases {
        let count = |n: usize| (0..n).map(|x| x as f32);
        tensors.push(bf16s(&format!("{MODULE}.gate_up_proj_bias"), &[E, 2 * I], count(E * 2 * I)));
        tensors.push(bf16s(&format!("{MODULE}.down_proj_bias"), &[E, H], count(E * H)));
    }
    open(dir, config, &tensors).unwrap()
}

#[test]
fn every_layout_gives_the_same_experts() {
    for (order, model_type) in [
        (Order::Rows, "qwen3_moe"),
        (Order::Rows, "an_architecture_of_next_year"),
        (Order::Columns, "llama4_text"),
        (Order::Columns, "qwen3_vl_moe"),
        (Order::Interleaved, "gpt_oss"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"text_config": {"model_type": model_type, "hidden_size": H, "num_experts": E}});
        let mut source = source(dir.path(), order, &config, false);
        assert_eq!(source.tensors().count(), 1 + 3 * E, "{model_type}");
        for e in 0..E {
            for (projection, name) in ["gate_proj", "up_proj", "down_proj"].iter().enumerate() {
                let name = format!("{MODULE}.{e}.{name}.weight");
                for step in [1, 7, 8, 1000] {
                    assert_eq!(values(&source, &name, step), expected(e, projection), "{model_type} {name}");
                }
            }
        }
        assert_eq!(source.fused()[MODULE].len(), 2);
        // Experts stand where their fused tensor stands: in the order of its data.
        let in_order: Vec<&str> = source.shard(0).map(|t| t.name.as_str()).collect();
        assert_eq!(in_order.len(), 1 + 3 * E);
        assert!(in_order[1].contains("down_proj") && in_order[1 + E].contains("gate_proj"), "{in_order:?}");
        source.keep_fused(&[MODULE.to_owned()]);
        assert!(source.fused().is_empty());
        assert_eq!(source.shard(0).count(), 3);
        assert_eq!(source.get(&format!("{MODULE}.gate_up_proj")).unwrap().shape, fused(order)[0].0);
    }
}

#[test]
fn biases_of_gpt_oss_are_split_too() {
    let dir = tempfile::tempdir().unwrap();
    let source = source(dir.path(), Order::Interleaved, &json!({"model_type": "gpt_oss"}), true);
    let of = |name: &str| values(&source, &format!("{MODULE}.1.{name}.bias"), 2);
    assert_eq!(of("gate_proj"), [10.0, 12.0, 14.0, 16.0, 18.0]);
    assert_eq!(of("up_proj"), [11.0, 13.0, 15.0, 17.0, 19.0]);
    assert_eq!(of("down_proj"), [4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn what_is_not_certain_is_left_and_explained() {
    let shapes = |order| fused(order).map(|(shape, _)| shape);
    let cases = [
        (Order::Columns, json!({"model_type": "unknown"}), "halves or alternating"),
        (Order::Columns, json!({}), "no architecture"),
        (Order::Rows, json!({"model_type": "gpt_oss"}), "gpt_oss has [E, H, 2I]"),
        (Order::Rows, json!({"hidden_size": H + 1}), "hidden_size 5"),
        (Order::Rows, json!({"num_experts": E + 1}), "num_experts 4"),
        (Order::Rows, json!({"moe_intermediate_size": 2 * I}), "moe_intermediate_size 10"),
    ];
    for (order, config, because) in cases {
        let dir = tempfile::tempdir().unwrap();
        let source = source(dir.path(), order, &config, false);
        let name = format!("{MODULE}.gate_up_proj");
        let problem = &source.unclear()[&name];
        assert!(problem.contains(because), "{problem}");
        assert!(source.get(&name).unwrap().is_plain() && source.fused().is_empty());
        assert_eq!(source.get(&name).unwrap().shape, shapes(order)[0]);
    }
}

#[test]
fn shapes_that_do_not_go_together_are_left() {
    let dir = tempfile::tempdir().unwrap();
    for (gate_up, down) in [([2, 6, 4], [2, 3, 3]), ([2, 6, 4], [3, 4, 3]), ([2, 6, 6], [2, 3, 4])] {
        let tensor = |name: &str, shape: [usize; 3]| {
            bf16s(&format!("{MODULE}.{name}"), &shape, vec![0.0; shape.iter().product()])
        };
        let source =
            open(dir.path(), &json!({}), &[tensor("gate_up_proj", gate_up), tensor("down_proj", down)])
                .unwrap();
        assert_eq!(source.unclear().len(), 2, "{gate_up:?} {down:?}");
    }
    let lonely = [bf16s(&format!("{MODULE}.gate_up_proj"), &[2, 6, 4], vec![0.0; 48])];
    let source = open(dir.path(), &json!({}), &lonely).unwrap();
    assert!(source.unclear().values().all(|p| p.contains("side by side")));
}

#[test]
fn mixtral_keeps_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let module = "model.layers.0.block_sparse_moe.experts";
    let [gate_up, down] = fused(Order::Rows);
    let tensors = [
        bf16s(&format!("{module}.gate_up_proj"), &gate_up.0, gate_up.1),
        bf16s(&format!("{module}.down_proj"), &down.0, down.1),
    ];
    let source = open(dir.path(), &json!({"model_type": "mixtral"}), &tensors).unwrap();
    for (projection, name) in ["w1", "w3", "w2"].iter().enumerate() {
        assert_eq!(values(&source, &format!("{module}.2.{name}.weight"), 3), expected(2, projection));
    }
}
