# SPDX-License-Identifier: Apache-2.0
"""Eager attention of ``transformers``, recorded: ``python record.py`` writes ``attention.npz``.

Run where torch and transformers are installed (recorded with 5.24 and torch 2.13, float64). Masks
are those that the models make for themselves, so that a window means here what it means there.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.mistral import modeling_mistral as mistral

BATCH, TOKENS, HEADS, GROUPS, DIM, WINDOW = 2, 9, 4, 2, 8, 4
TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": DIM,
    "vocab_size": 16,
    "sliding_window": WINDOW,
    "attn_implementation": "eager",
}


def recorded(name, config, attend, sinks=None, bias=None):
    """Arrays of one case: q [s, b, n, d], k, v, dout, out [s, b, n * d], and gradients."""
    generator = torch.Generator().manual_seed(3)

    def drawn(heads):
        shape = (BATCH, heads, TOKENS, DIM)
        return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

    q, k, v = drawn(HEADS), drawn(GROUPS), drawn(GROUPS)
    mask = create_sliding_window_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(BATCH, TOKENS, 32, dtype=torch.float64),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(TOKENS)[None],
    )
    out, _ = attend(q, k, v, mask if bias is None else mask + bias)
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    out.backward(dout)
    arrays = {"q": q, "k": k, "v": v, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    result = {key: t.detach().permute(2, 0, 1, 3).numpy() for key, t in arrays.items()}
    for key, tensor in (("out", out), ("dout", dout)):
        flat = tensor.detach().permute(1, 0, 2, 3).reshape(TOKENS, BATCH, -1)
        result[key] = flat.numpy()
    if sinks is not None:
        result |= {"sinks": sinks.detach().numpy(), "dsinks": sinks.grad.numpy()}
    return {f"{name}|{key}": array for key, array in result.items()}


def main() -> None:
    """Record all cases."""
    module = torch.nn.Module()
    module.num_key_value_groups = HEADS // GROUPS
    config = transformers.MistralConfig(**TINY)
    scale = DIM**-0.5

    def of_mistral(q, k, v, mask):
        return mistral.eager_attention_forward(module, q, k, v, mask, scale)

    def of_gemma2(q, k, v, mask):
        return gemma2.eager_attention_forward(module, q, k, v, mask, 0.0, 24**-0.5, 1.5)

    def of_gpt_oss(q, k, v, mask):
        return gpt_oss.eager_attention_forward(module, q, k, v, mask, scale)

    module.sinks = torch.nn.Parameter(torch.linspace(-1.0, 2.0, HEADS, dtype=torch.float64))
    alibi = build_alibi_tensor(torch.ones(BATCH, TOKENS), HEADS, torch.float64)
    bias = alibi.reshape(BATCH, HEADS, 1, TOKENS)
    arrays = {
        **recorded("mistral", config, of_mistral),
        **recorded("gemma2", transformers.Gemma2Config(**TINY), of_gemma2),
        **recorded("gpt_oss", transformers.GptOssConfig(**TINY), of_gpt_oss, module.sinks),
        **recorded("alibi", config, of_mistral, bias=bias),
    }
    np.savez_compressed(Path(__file__).with_name("attention.npz"), **arrays)


if __name__ == "__main__":
    main()
