"""Plain PEFT, and int8 weights of torchao, on small networks of every family."""

import copy

import peft
import pytest
import torch
import transformers

import fiber
from fiber.inference.model import Model
from fiber.models.lora import find_targets, lora_config
from tests.models.small_networks import NETWORKS, heads, network

pytestmark = pytest.mark.oldest

#: Ratio of the largest difference to the largest logit. W x + B (A x) and (W + B A) x are rounded
#: differently: by up to 9.4e-6 for the unit vectors of ITC, 7e-7 for logits.
TOLERANCE = 1e-5


def adapted(model, **options):
    """Wrap a network by PEFT, with the default targets of its family."""
    config = lora_config(find_targets(model), r=4, alpha=8, **options)
    return peft.get_peft_model(model, config)


def randomize(model, std=0.05):
    """Give every adapter a part in the output; a new one has none."""
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=std)


def with_gradient(model):
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_every_adapter_of_what_a_head_reads_has_a_gradient(name):
    plain = network(name)
    targets, runs = find_targets(plain), heads(plain.config)
    wrapped = adapted(copy.deepcopy(plain))
    of_layer = {
        each.removeprefix("base_model.model.").removesuffix(".lora_B.default.weight"): each
        for each, _ in wrapped.named_parameters()
        if ".lora_B." in each
    }
    assert of_layer.keys() == set(targets)
    read_by_some = set()
    for head, run in runs.items():
        for model in (plain, wrapped):
            model.zero_grad(set_to_none=True)
            run(model).square().mean().backward()
        read = {
            layer for layer in targets if plain.get_submodule(layer).weight.grad is not None
        } & {each.removesuffix(".weight") for each in with_gradient(plain)}
        assert {of_layer[layer] for layer in read} <= with_gradient(wrapped), head
        read_by_some |= read
    assert read_by_some == set(targets)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_merged_adapter_computes_what_the_adapter_does(name):
    base = network(name).eval()
    wrapped = adapted(copy.deepcopy(base)).eval()
    randomize(wrapped)
    merged = copy.deepcopy(wrapped).merge_and_unload()
    assert merged.state_dict().keys() == base.state_dict().keys()
    with torch.no_grad():
        for head, run in heads(base.config).items():
            expected = run(wrapped)
            largest = expected.abs().max().item()
            assert (run(base) - expected).abs().max() > 0.01 * largest, head
            torch.testing.assert_close(
                run(merged), expected, rtol=0, atol=TOLERANCE * largest, msg=head
            )


@pytest.mark.parametrize("layer", ["text_to_image.output", "image_to_text.output"])
def test_an_adapter_that_is_trained_with_dropout_is_used_in_evaluation(layer):
    base = network("coarse", dropout=0.1)
    run = heads(base.config)["vqa"]
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=rf".*\.{layer}"))
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], 1.0)
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(run(wrapped), torch.tensor([3, 7])).backward()
        optimizer.step()
    wrapped.eval()
    with torch.no_grad():
        after = run(wrapped)
        with wrapped.disable_adapter():
            before = run(wrapped)
        merged = run(wrapped.merge_and_unload())
    assert (after - before).abs().max() > 0.1
    assert (after - merged).abs().max() < TOLERANCE * after.abs().max()


def test_prompts_are_encoded_again_when_an_adapter_is_switched(scene_picture):
    model = fiber.load("scenes/fine")

    def ask(asked):
        found = asked.ground(scene_picture, ["a red circle", "the square"])
        scores = torch.as_tensor(found.scores)[:, None]
        return torch.cat([torch.as_tensor(found.boxes_xyxy), scores], 1)

    before = ask(model)
    # `scenes` fuses from the first layer of the text encoder on: the embeddings are what is kept.
    config = peft.LoraConfig(r=4, target_modules=["backbone.text.embeddings.word", "qkv"])
    wrapped = peft.get_peft_model(model.network, config)
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if ".lora_B." in name or ".lora_embedding_" in name:
            torch.nn.init.normal_(parameter, std=0.1)

    def fresh():
        return Model(model.network, model.tokenizer)

    on = ask(model)
    assert torch.equal(on, ask(fresh())) and not torch.equal(on, before)
    with wrapped.disable_adapter():
        off = ask(model)
        assert torch.equal(off, ask(fresh()))
    # Modules are called where there are adapters, whose sums are rounded in another order.
    assert ((off - before).abs().amax(0) < TOLERANCE * before.abs().amax(0)).all()
    assert torch.equal(ask(model), on)
    assert (on - before).abs().max() > 1e-3


def test_fiber_loads_what_peft_saves(tmp_path):
    model = fiber.load("scenes/coarse")
    wrapped = adapted(copy.deepcopy(model.network), trained=["vqa_head.output"]).eval()
    randomize(wrapped)
    with torch.no_grad():
        wrapped.get_submodule("base_model.model.vqa_head.output").weight.mul_(1.5)
    wrapped.save_pretrained(tmp_path / "adapter")
    with pytest.warns(RuntimeWarning, match="no fingerprint of its base"):
        loaded = fiber.load(tmp_path / "adapter", base="scenes/coarse")
    assert loaded.answers == model.answers
    expected = wrapped.merge_and_unload().state_dict()
    found = loaded.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# PEFT asks the model of transformers by a name that transformers is about to remove.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_fiber_loads_what_peft_trained_on_a_model_of_transformers(folders, tmp_path):
    model = transformers.AutoModel.from_pretrained(folders["fine"])
    config = peft.LoraConfig(r=2, target_modules=r".*\.(qkv|query)")
    wrapped = peft.get_peft_model(model, config).eval()
    randomize(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    # It names its base itself, which the models of `fiber.load` do not tell PEFT.
    with pytest.warns(RuntimeWarning, match="no fingerprint of its base"):
        found = fiber.load(tmp_path / "adapter", device="cpu")
    expected = wrapped.merge_and_unload().network.state_dict()
    plain = network("fine").state_dict()
    assert found.network.state_dict().keys() == expected.keys()
    changed = 0
    for name, tensor in found.network.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
        changed += not torch.equal(tensor, plain[name])
    assert changed > 5


@pytest.mark.parametrize("name", NETWORKS)
def test_int8_weights_of_torchao_run(name):
    quantization = pytest.importorskip("torchao.quantization")
    plain, quantized = network(name).eval(), network(name).eval()
    quantization.quantize_(quantized, quantization.Int8WeightOnlyConfig())
    rounded = copy.deepcopy(plain)
    for layer, module in quantized.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert type(module.weight) is not torch.nn.Parameter
            with torch.no_grad():
                rounded.get_submodule(layer).weight.copy_(module.weight.dequantize())
    with torch.no_grad():
        for head, run in heads(plain.config).items():
            # The same as float32 weights with the rounded values.
            expected = run(rounded)
            largest = expected.abs().max().item()
            torch.testing.assert_close(
                run(quantized), expected, rtol=0, atol=TOLERANCE * largest, msg=head
            )
            assert (run(plain) - expected).abs().max() > 1e-4 * largest, head
