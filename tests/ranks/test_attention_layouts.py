# SPDX-License-Identifier: Apache-2.0
"""Layers with windows, caps, slopes and sinks train the same in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mindspeed_ms.command import compare_layouts as tool

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).parents[2]

MODEL = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 32,
    "compute_dtype": "float32",
    "window_size": [20, 0],
    "softmax_type": "learnable",
    "attn_logit_softcapping": 3.0,
}
KINDS = {
    "rotated": {**MODEL, "window_attn_skip_freq": 2, "no_rope_freq": [0, 1]},
    "latent": {
        **MODEL,
        "group_query_attention": False,
        "multi_latent_attention": True,
        "mla_config": {
            "kv_lora_rank": 8,
            "qk_head_dim": 8,
            "qk_pos_emb_head_dim": 4,
            "v_head_dim": 6,
            "rope_type": "rope",
        },
    },
    "slopes, dropped": {
        **MODEL,
        "position_embedding_type": "alibi",
        "attention_dropout_rate": 0.1,
        "softmax_type": "off-by-one",
    },
}


def layouts_worker(path, layouts):
    runs = [tool.train(layout, ["--yaml", path], 2) for layout in layouts]
    again = tool.train(layouts[0], ["--yaml", path, *AGAIN], 2)
    again.layout += ",again"
    return tool.table([*runs, again], 1e-5)


AGAIN = ("--recompute-granularity", "selective")


@pytest.mark.parametrize(
    ("kind", "layouts"),
    [
        ("rotated", ["tp=1", "tp=2", "tp=2,sp", "pp=2", "cp=2", "cp=2,ring", "cp=2,gather"]),
        ("latent", ["tp=1", "tp=2,sp", "cp=2", "cp=2,ring"]),
        # Ranks with sequences of their own drop other scores; ways to share one do not.
        ("slopes, dropped", ["cp=2", "cp=2,ring", "cp=2,gather"]),
    ],
)
def test_layouts_agree(dist_run, tmp_path, kind, layouts):
    sections = yaml.safe_load((ROOT / "configs/tiny_gpt.yaml").read_text(encoding="utf-8"))
    sections["model_config"] |= KINDS[kind]
    sections["parallel_config"] = {}
    sections["training_config"]["global_batch_size"] = 4
    for key in ("data_path", "tokenizer_model"):
        sections["dataset_config"][key] = str(ROOT / sections["dataset_config"][key])
    sections["dataset_config"]["data_cache_path"] = str(tmp_path)
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    lines, agree = dist_run(
        layouts_worker, ranks=2, timeout=300.0, path=str(path), layouts=layouts
    )[0]
    assert agree, "\n".join(lines)
    assert len(lines) == len(layouts) + 2 and not any("refused" in line for line in lines)
