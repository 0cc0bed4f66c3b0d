"""The image tower alone, forward and backward: fiber's, the eager peer's, and timm's.

Command: pip install '.[bench]'; python benches/bench_swin.py
Peer: timm's SwinTransformer. The eager model of `bench_model.py` is a fair peer only while its
tower is about as fast as timm's (within a tenth). All three have the same weights and must give the
same last feature map; fiber's and the eager one run without fusion.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import timm
import torch
from bench_model import PEER as EAGER
from bench_model import without_dropout
from eager_fiber import Swin
from rows import interleave, refuse_debug_build, report
from torch import Tensor, nn

from fiber.checkpoints.encoders import encoder_states
from fiber.config import FiberConfig
from fiber.models.fiber.image_text import FiberImageText

PEER = f"timm {timm.__version__}"


def timm_swin(config: FiberConfig) -> nn.Module:
    """timm's tower of a configuration's sizes, without classifier and dropout."""
    swin = config.swin
    return timm.models.swin_transformer.SwinTransformer(
        img_size=config.image_size,
        patch_size=swin.patch_size,
        num_classes=0,
        global_pool="",
        embed_dim=swin.embed_dim,
        depths=swin.depths,
        num_heads=swin.num_heads,
        window_size=swin.window_size,
        drop_path_rate=0.0,
    )


def trunks(config: FiberConfig) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    """Build the three towers with the same weights: parameters, and images to the last map."""
    torch.manual_seed(0)
    model = FiberImageText(config).train()
    eager, peer = Swin(config).train(), timm_swin(config).train()
    for tower, layout in ((eager, "microsoft"), (peer, "timm")):
        given = encoder_states(model, layout)["swin"]
        missing = set(tower.state_dict()) - set(given)
        assert all(name.endswith(("relative_position_index", "attn_mask")) for name in missing)
        tower.load_state_dict(given, strict=False)
    # timm's tower includes the last norm; the other two do not run it.
    norm = model.itc_image_norm
    return {
        PEER: (peer, lambda images: peer.forward_features(images).flatten(1, 2)),
        EAGER: (eager, lambda images: eager.norm(eager(images))),
        "fiber": (
            model,
            lambda images: norm(model.backbone.encode_image(images).stages[-1].flatten(1, 2)),
        ),
    }


def check_alike(
    towers: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor]]], images: Tensor
) -> None:
    """Exit with an error if the towers do not compute the same.

    Values up to 4.5 are off their float64 ones by up to 4.4e-6 in each tower, timm's included.
    """
    with torch.no_grad():
        maps = {name: run(images) for name, (_, run) in towers.items()}
    for name, found in maps.items():
        torch.testing.assert_close(found, maps[PEER], rtol=0, atol=2e-5, msg=f"map of {name}")


def stepper(
    tower: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor
) -> Callable[[], float]:
    """Make what runs forward and backward once and returns its milliseconds."""

    def step() -> float:
        began = time.perf_counter()
        tower.zero_grad(set_to_none=True)
        run(images).square().mean().backward()
        return 1000 * (time.perf_counter() - began)

    return step


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    refuse_debug_build()
    # At 96 pixels the last map of `small` is smaller than a window, where bias tables differ.
    for name, side, size in (("small", 192, 4), ("base", 384, 1)):
        whole = without_dropout(name)
        config = dataclasses.replace(
            whole,
            image_size=side,
            fusion=dataclasses.replace(whole.fusion, num_fused_layers=0),
        )
        images = torch.randn(size, 3, side, side)
        towers = trunks(config)
        check_alike(towers, images)
        steps = {f"{who}, {name}": stepper(*tower, images) for who, tower in towers.items()}
        report("swin", "ms", interleave(steps, options.rounds), peer=f"{PEER}, {name}")


if __name__ == "__main__":
    main()
