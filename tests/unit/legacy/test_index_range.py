# SPDX-License-Identifier: Apache-2.0
"""An id that no row stands for is one line, wherever a table or a loss would read it as nothing."""

import mindspore as ms
import numpy as np
import pytest

from mindspeed_ms.config import DatasetConfig, TransformerConfig
from mindspeed_ms.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from mindspeed_ms.core.tensor_parallel.index_range import IGNORED_LABEL, require_range
from mindspeed_ms.legacy.model import GPTModel

pytestmark = pytest.mark.usefixtures("single_rank")
BATCH, SEQ, VOCAB = 2, 8, 32


def _ids(*outside):
    ids = np.arange(BATCH * SEQ, dtype=np.int32).reshape(BATCH, SEQ)
    ids.reshape(-1)[: len(outside)] = outside
    return ms.Tensor(ids)


@pytest.mark.parametrize("wrong", [VOCAB, VOCAB + 1000, -1, -(1 << 31), (1 << 31) - 1])
def test_numbers_outside_are_named(wrong):
    require_range(_ids(), VOCAB, "token id")
    with pytest.raises(ValueError, match=rf"^token id {wrong} is outside of 0 to 31; use"):
        require_range(_ids(wrong), VOCAB, "token id")
    require_range(_ids(IGNORED_LABEL), VOCAB, "label", IGNORED_LABEL)
    with pytest.raises(ValueError, match=f"label {wrong} is"):
        require_range(_ids(IGNORED_LABEL, wrong), VOCAB, "label", IGNORED_LABEL)


@pytest.mark.parametrize("wrong", [VOCAB, -1])
def test_no_loss_of_a_label_without_a_column(wrong):
    logits = ms.Tensor(np.zeros((BATCH, SEQ, VOCAB), np.float32))
    with pytest.raises(ValueError, match=f"label {wrong} is outside of 0 to 31"):
        vocab_parallel_cross_entropy(logits, _ids(wrong))
    loss = vocab_parallel_cross_entropy(logits, _ids(IGNORED_LABEL)).asnumpy()
    np.testing.assert_allclose(loss.reshape(-1)[1:], np.log(VOCAB), rtol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "labels", "positions", "message"),
    [
        ([VOCAB], [], [], "token id 32 is outside of 0 to 31"),
        ([], [-1], [], "label -1 is outside of 0 to 31"),
        ([], [], [SEQ], "position 8 is outside of 0 to 7"),
    ],
)
def test_a_model_reads_no_id_it_has_no_row_for(tokens, labels, positions, message):
    config = TransformerConfig(
        vocab_size=VOCAB,
        num_layers=1,
        num_attention_heads=2,
        hidden_size=8,
        ffn_hidden_size=8,
        seq_length=SEQ,
        compute_dtype=ms.float32,
        position_embedding_type="absolute",
        add_bias_linear=True,
        dataset_config=DatasetConfig(batch_size=BATCH),
    )
    model = GPTModel(config, pre_process=True, post_process=True)
    mask = ms.Tensor(np.ones((BATCH, SEQ), np.float32))
    places = np.tile(np.arange(SEQ, dtype=np.int32), (BATCH, 1))
    assert float(model(_ids(), ms.Tensor(places), None, labels=_ids(), loss_mask=mask)) > 0
    places.reshape(-1)[: len(positions)] = positions
    with pytest.raises(ValueError, match=message):
        model(_ids(*tokens), ms.Tensor(places), None, labels=_ids(*labels), loss_mask=mask)
