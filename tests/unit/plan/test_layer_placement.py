# SPDX-License-Identifier: Apache-2.0
"""Which stage and chunk holds which layers."""

import pytest

from mindspeed_ms.config import ModelParallelConfig, TransformerConfig
from mindspeed_ms.plan.layer_placement import expand_layout, layer_placement


def place(num_layers, **parallel):
    config = ModelParallelConfig.from_dict(parallel)
    model = TransformerConfig(
        vocab_size=16, num_layers=num_layers, num_attention_heads=1, hidden_size=4, seq_length=4
    )
    return layer_placement(model, config)


def pp(stages, **more):
    return {"pipeline_model_parallel_size": stages, **more}


def vpp(stages, chunks, **more):
    return pp(stages, virtual_pipeline_model_parallel_size=chunks, **more)


@pytest.mark.parametrize(
    ("num_layers", "parallel", "counts"),
    [
        (8, {}, ((8,),)),
        (8, pp(4), ((2, 2, 2, 2),)),
        (8, vpp(2, 2), ((2, 2), (2, 2))),
        (8, pp(2, num_layers_per_virtual_pipeline_stage=1), ((1, 1),) * 4),
        # A remainder goes to the last stages but one, backwards, then to the ends.
        (10, pp(4), ((2, 3, 3, 2),)),
        (11, pp(4), ((2, 3, 3, 3),)),
        (5, pp(2), ((2, 3),)),
        (62, pp(4, num_layer_list=[16, 16, 16, 14]), ((16, 16, 16, 14),)),
        (7, pp(2, num_layer_list=[[3, 4]]), ((3, 4),)),
        (
            62,
            vpp(4, 4, num_layer_list="[[4,4,4,4],[4,4,4,4],[4,4,4,4],[4,4,4,2]]"),
            ((4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 2)),
        ),
        (9, pp(4, decoder_first_pipeline_num_layers=3), ((3, 2, 2, 2),)),
        (10, pp(4, decoder_last_pipeline_num_layers=1), ((3, 3, 3, 1),)),
        (
            8,
            pp(
                3,
                decoder_first_pipeline_num_layers=3,
                decoder_last_pipeline_num_layers=1,
            ),
            ((3, 4, 1),),
        ),
        (
            5,
            pp(2, decoder_first_pipeline_num_layers=2, decoder_last_pipeline_num_layers=3),
            ((2, 3),),
        ),
        (10, vpp(3, 2, decoder_first_pipeline_num_layers=2), ((1, 2, 2), (1, 2, 2))),
        (7, pp(4, account_for_embedding_in_pipeline_split=True), ((1, 2, 2, 2),)),
        (
            6,
            pp(
                4,
                account_for_embedding_in_pipeline_split=True,
                account_for_loss_in_pipeline_split=True,
            ),
            ((1, 2, 2, 1),),
        ),
        (7, vpp(2, 2, account_for_loss_in_pipeline_split=True), ((2, 2), (2, 1))),
        (6, pp(4, standalone_embedding_stage=True), ((0, 2, 2, 2),)),
        (6, vpp(4, 2, standalone_embedding_stage=True), ((0, 1, 1, 1), (0, 1, 1, 1))),
        (
            6,
            pp(4, standalone_embedding_stage=True, num_layers_per_virtual_pipeline_stage=1),
            ((0, 1, 1, 1), (0, 1, 1, 1)),
        ),
        (7, pp(4, pipeline_model_parallel_layout="Et|tt|ttt|tL"), ((1, 2, 3, 1),)),
        (7, pp(2, pipeline_model_parallel_layout="E|(tt|)*2t*3L"), ((0, 2), (2, 3))),
    ],
)
def test_layers_per_chunk_and_stage(num_layers, parallel, counts):
    placement = place(num_layers, **parallel)
    assert placement.counts == counts
    assert placement.num_layers == num_layers
    assert (placement.num_chunks, placement.num_stages) == (len(counts), len(counts[0]))


def test_numbers_grow_in_the_order_a_microbatch_takes():
    placement = place(8, **vpp(2, 2))
    assert placement.layers == (((0, 1), (4, 5)), ((2, 3), (6, 7)))
    assert placement.layers_of_stage(1) == (2, 3, 6, 7)


def test_every_layer_has_one_place():
    for placement in (place(10, **pp(4)), place(62, **pp(4)), place(24, **vpp(4, 3))):
        seen = sorted(n for stage in range(4) for n in placement.layers_of_stage(stage))
        assert seen == list(range(placement.num_layers))


def test_noop_layers_are_named():
    assert place(4, **pp(2, noop_layers=[1, 3])).noop_layers == {1, 3}


@pytest.mark.parametrize(
    ("num_layers", "parallel", "message"),
    [
        (8, pp(2, num_layer_list=[3, 4]), "holds 7 layers"),
        (10, pp(4, allow_uneven_stages=False), "use 8 or 12 layers"),
        (
            9,
            pp(4, allow_uneven_stages=False, decoder_first_pipeline_num_layers=1),
            "stages that share",
        ),
        (7, vpp(2, 2), "divisible by the pipeline stages"),
        (6, vpp(2, 2), "cannot be cut into 2 equal model chunks"),
        (8, pp(3, num_layers_per_virtual_pipeline_stage=2), "num_layers_per_virtual"),
        (4, pp(2, decoder_first_pipeline_num_layers=5), "make the counts fit"),
        (
            6,
            pp(2, decoder_first_pipeline_num_layers=2, decoder_last_pipeline_num_layers=3),
            "make the counts fit",
        ),
        (4, {"standalone_embedding_stage": True}, "at least 2 pipeline stages"),
        (
            4,
            pp(2, standalone_embedding_stage=True, decoder_first_pipeline_num_layers=1),
            "contradicts another option",
        ),
        (
            7,
            pp(
                2,
                account_for_loss_in_pipeline_split=True,
                decoder_first_pipeline_num_layers=1,
            ),
            "keep one kind",
        ),
        (
            1,
            pp(3, account_for_embedding_in_pipeline_split=True),
            "takes a layer from a model chunk that has none",
        ),
        (4, pp(2, pipeline_model_parallel_layout="Ett|xttL"), "contains 'x'"),
        (4, pp(2, pipeline_model_parallel_layout="Ett|mttL"), "must hold E first"),
        (4, pp(2, pipeline_model_parallel_layout="Et|t|ttL"), "multiple of pipeline"),
        (4, pp(2, pipeline_model_parallel_layout="Et|ttL"), "places 3 layers"),
        (4, pp(2, pipeline_model_parallel_layout="ttE|ttL"), "E first"),
        (4, pp(2, pipeline_model_parallel_layout="E(tt|ttL"), r"contains '\('"),
    ],
)
def test_placements_that_do_not_work_are_refused(num_layers, parallel, message):
    with pytest.raises(ValueError, match=message):
        place(num_layers, **parallel)


def test_layout_strings_are_expanded():
    assert expand_layout("Et*2|(tt|)*2tL") == ["Ett", "tt", "tt", "tL"]
    assert expand_layout("E,t | (t*2|)*2 t L") == ["Et", "tt", "tt", "tL"]
    assert expand_layout("E|((t|)*2t|)*2L") == ["E", "t", "t", "t", "t", "t", "t", "L"]
