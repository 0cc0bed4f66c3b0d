"""Published files of X-Decoder: recognized, loaded strictly, written back, and what is refused."""

import dataclasses
import json
import re

import pytest
import torch

from fiber.checkpoints.published import load_mapped, unstack
from fiber.models.init import WithoutInit
from fiber.models.xdecoder.config import XDECODER_PRESETS, XDecoderConfig
from fiber.models.xdecoder.infer_config import (
    describe,
    main_sizes,
    stored_config,
    stored_sizes,
    xdecoder_config,
)
from fiber.models.xdecoder.keys import (
    CLASS_WEIGHTS,
    DECODER,
    QUERIES,
    SELF_MASK,
    ignored_xdecoder_key,
    is_xdecoder,
    with_buffers,
    xdecoder_keys,
)
from fiber.models.xdecoder.segmenter import XDecoder
from tests.golden import KEYS, XDECODER
from tests.parity.xdecoder_case import XDecoderCase

pytestmark = pytest.mark.oldest

#: What shapes of small files are divided by.
SHRINK = 16


def key_list(name):
    """Shapes of a released file, by published name."""
    content = json.loads((KEYS / f"xdecoder_{name}_keys.json").read_text())
    return {key: tuple(shape) for key, shape in content["keys"].items()}


def meta_state(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def small_shapes(name):
    """Names of a released file, with a sixteenth of its channels and words."""
    small = {}
    for key, shape in key_list(name).items():
        sides = [side // SHRINK if side >= 96 and side % SHRINK == 0 else side for side in shape]
        if key == CLASS_WEIGHTS or key.endswith("self_attn_mask"):
            sides = list(shape)
        elif match := re.search(r"layers\.(\d)\.blocks.*modulation\.f\.", key):
            channels = key_list(name)["backbone.patch_embed.proj.bias"][0] << int(match[1])
            sides[0] = 2 * channels // SHRINK + shape[0] - 2 * channels
        small[key] = tuple(sides)
    return small


def load(state, config):
    model = XDecoder(config)
    load_mapped(
        model, state, xdecoder_keys(config), lambda name: ignored_xdecoder_key(name, config)
    )
    return model


def written(model):
    return with_buffers(unstack(model.state_dict(), xdecoder_keys(model.config)), model.config)


@pytest.mark.parametrize("name", ["focalt", "focall"])
@pytest.mark.parametrize("queries", [None, 101])
def test_released_files_have_the_sizes_of_their_preset(name, queries):
    shapes, preset = key_list(name), XDECODER_PRESETS[name]
    if queries:
        rows = queries + 77
        shapes |= {
            QUERIES: (queries, 512),
            f"{DECODER}query_embed.weight": (queries, 512),
            SELF_MASK: (1, rows, rows),
        }
        preset = dataclasses.replace(
            preset, decoder=dataclasses.replace(preset.decoder, num_queries=queries)
        )
    assert is_xdecoder(shapes)
    assert xdecoder_config(meta_state(shapes), {}) == preset
    with torch.device("meta"), WithoutInit():
        model = XDecoder(preset)
    found = written(model)
    assert {key: tuple(tensor.shape) for key, tensor in found.items()} == shapes
    total = sum(parameter.numel() for parameter in model.parameters())
    if queries is None:
        content = json.loads((KEYS / f"xdecoder_{name}_keys.json").read_text())
        assert total == content["num_parameters"]


@pytest.fixture(scope="module", params=["focalt", "focall"])
def small(request):
    torch.manual_seed(0)
    state = {key: torch.randn(shape) for key, shape in small_shapes(request.param).items()}
    config = xdecoder_config(state, {})
    return with_buffers(state, config), config


def test_small_files_are_written_back_bit_for_bit(small):
    state, config = small
    found = written(load(state, config))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found[SELF_MASK].dtype == torch.bool


def test_buffers_equal_the_published_rule(small):
    state, config = small
    mask, queries = state[SELF_MASK][0], config.decoder.num_queries
    assert not mask[3, 5] and mask[3, queries - 1] and mask[queries - 1, 3]
    assert mask[3, queries] and not mask[queries, 3]
    assert mask[queries, queries + 1] and not mask[queries + 1, queries]
    weights = state[CLASS_WEIGHTS]
    assert len(weights) == 134 and weights[0] == 1 and weights[-1] == torch.tensor(0.1)


def test_no_tensor_of_a_file_can_be_missing(small):
    state = meta_of(small[0])
    names = sorted(state.keys() - {SELF_MASK, CLASS_WEIGHTS})
    # A few of every part; those that sizes are inferred from fail earlier than the others.
    for name in names[::9]:
        rest = {key: value for key, value in state.items() if key != name}
        try:
            config = xdecoder_config(rest, {})
        except ValueError as error:
            assert name in str(error)
        else:
            needed = {each for theirs in xdecoder_keys(config).values() for each in theirs}
            assert needed - rest.keys() == {name}


def meta_of(state):
    return {name: tensor.to("meta") for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("backbone.unheard", (3,)), r"unknown backbone\.unheard"),
        ((f"{DECODER}class_embed", (32, 31)), r"class_embed has shape \(32, 31\)"),
        (("backbone_proj", None), "missing backbone_proj"),
        ((f"{DECODER}caping_embed", None), r"missing .*caping_embed"),
    ],
)
def test_faults_of_tensors(small, change, message):
    state, config = small
    name, shape = change
    state = dict(state)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        load(state, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({SELF_MASK: (1, 177, 177)}, r"self_attn_mask has shape \(1, 177, 177\), .*178"),
        ({CLASS_WEIGHTS: (1,)}, "expected a class and the background"),
        ({QUERIES: (76, 512), SELF_MASK: (1, 153, 153)}, "has 76 rows, expected at least 77"),
        ({"backbone.layers.0.blocks.0.modulation.f.weight": (190, 96)}, "has 190 rows, expected"),
        ({f"{DECODER}pn_indicator.weight": (2, 512)}, "the file is SEEM .*pn_indicator"),
        ({f"{DECODER}mask_sptial_embed.0": (512, 512)}, "the file is SEEM .*mask_sptial_embed"),
        ({"vqa_classifier.0.weight": (3, 3)}, "is X-Decoder's VQA file .*vqa_classifier"),
        ({"backbone.main_blocks.0.0.x": (3,)}, "is the DaViT form .*main_blocks"),
        (
            {"sem_seg_head.pixel_decoder.x.sampling_offsets.weight": (3,)},
            r"is the DaViT form .*sampling_offsets.*expected one of xdecoder_focalt_last\.pt",
        ),
    ],
)
def test_files_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        xdecoder_config(meta_state(key_list("focalt") | changes), {})


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("backbone.layers.2.blocks.5.", r"'focalt', but image depths \(2, 2, 5, 2\), expected"),
        (f"{DECODER}lang_encoder.lang_encoder.resblocks.11.", "text blocks 11, expected 12"),
        ("sem_seg_head.pixel_decoder.transformer.encoder.layers.5.", "decoder layers 5, expected"),
    ],
)
def test_layers_that_are_missing_as_a_whole(prefix, message):
    shapes = {key: s for key, s in key_list("focalt").items() if not key.startswith(prefix)}
    with pytest.raises(ValueError, match=message):
        xdecoder_config(meta_state(shapes), {})


def test_a_stored_config_of_ours_is_read_and_checked():
    case = XDecoderCase(XDECODER / "micro.json")
    config, state = case.xdecoder_config(), meta_of(case.published_state())
    assert xdecoder_config(state, stored_config(config)) == config
    wrong = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_queries=90))
    with pytest.raises(ValueError, match=r"decoder\.num_queries is 90, expected 81"):
        xdecoder_config(state, stored_config(wrong))


def test_sizes_that_shapes_of_ours_show():
    config = XDecoderConfig()
    with torch.device("meta"), WithoutInit():
        model = XDecoder(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for field, value in stored_sizes(shapes).items():
        section, name = field.split(".")
        assert getattr(getattr(config, section), name) == value
    assert "96 channels, norms after sums" in describe(config)
    assert main_sizes(config)["queries"] == 101
