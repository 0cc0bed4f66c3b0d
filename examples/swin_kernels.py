"""Let somebody else's Swin run fiber's window attention: torchvision's and timm's.

python examples/swin_kernels.py

`use_in_torchvision(model)` and `use_in_timm(model)` change a model where it is; its weights and its
outputs stay the same within float32 rounding. On a GPU the Triton kernel runs, on a CPU PyTorch.
A block that the operation does not compute keeps its own code: dropout of attention weights,
windows that are no squares, a map that is shifted along one side only, and in timm shifted maps
that are no whole number of windows, which timm rolls before it pads them.
"""

import types
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fiber import kernels


def attend(
    qkv: nn.Linear, output: nn.Linear, table: Tensor, tokens: Tensor, window: int, shift: int
) -> Tensor:
    """Attend in windows of a map and project what is read: (B, H, W, C) -> (B, H, W, C)."""
    heads = table.shape[1]
    packed = qkv(tokens).unflatten(-1, (3, heads, -1))
    # A padded place is a token of zeros: it is projected to the bias.
    bias = qkv.bias if qkv.bias is not None else qkv.weight.new_zeros(len(qkv.weight))
    read = kernels.window_attention(
        packed, table, bias.view(packed.shape[3:]), window_size=window, shift=shift
    )
    return output(read.flatten(-2))


def use_in_torchvision(model: nn.Module) -> int:
    """Change every `ShiftedWindowAttention` of torchvision; gives their number."""
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    def forward(self: ShiftedWindowAttention, tokens: Tensor) -> Tensor:
        window, (down, right) = self.window_size[0], self.shift_size
        # torchvision does not shift along a side that one window covers.
        shifts = [
            shift if side > window else 0
            for shift, side in zip((down, right), tokens.shape[1:3], strict=True)
        ]
        drops = self.training and (self.attention_dropout or self.dropout)
        if drops or len({*self.window_size}) > 1 or len({*shifts}) > 1:
            return type(self).forward(self, tokens)
        table = self.relative_position_bias_table
        return attend(self.qkv, self.proj, table, tokens, window, shifts[0])

    # The second version's attention is another one: by cosines.
    found = [each for each in model.modules() if type(each) is ShiftedWindowAttention]
    for attention in found:
        attention.forward = types.MethodType(forward, attention)
    return len(found)


def use_in_timm(model: nn.Module) -> int:
    """Change every `SwinTransformerBlock` of timm; gives their number."""
    from timm.models.swin_transformer import SwinTransformerBlock

    def attend_in_block(self: SwinTransformerBlock, tokens: Tensor) -> Tensor:
        attention = self.attn
        (window, other), (down, right) = self.window_size, self.shift_size
        whole = all(side % window == 0 for side in tokens.shape[1:3])
        drops = self.training and (attention.attn_drop.p or attention.proj_drop.p)
        if drops or window != other or down != right or (down and not whole):
            return type(self)._attn(self, tokens)
        table = attention.relative_position_bias_table
        return attend(attention.qkv, attention.proj, table, tokens, window, down)

    found = [each for each in model.modules() if type(each) is SwinTransformerBlock]
    for block in found:
        block._attn = types.MethodType(attend_in_block, block)
    return len(found)


def compare(
    name: str, model: nn.Module, change: Callable[[nn.Module], int], pictures: Tensor
) -> None:
    """Print how far outputs and gradients are apart before and after the change."""

    def run() -> list[Tensor]:
        out = model(pictures)
        return [out, *torch.autograd.grad(out.square().mean(), list(model.parameters()))]

    theirs = run()
    count = change(model)
    ours = run()
    worst = max(
        ((after - before).abs().max() / before.abs().max().clamp(min=1e-12)).item()
        for before, after in zip(theirs, ours, strict=True)
    )
    print(f"{name}: {count} blocks, largest difference {worst:.1e} of the largest value")


def main() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4]}
    try:
        from torchvision.models.swin_transformer import SwinTransformer
    except ImportError:
        print("torchvision is not installed")
    else:
        model = SwinTransformer([4, 4], window_size=[7, 7], stochastic_depth_prob=0, **sizes)
        compare("torchvision", model.eval(), use_in_torchvision, torch.randn(2, 3, 100, 136))
    try:
        import timm
    except ImportError:
        print("timm is not installed")
    else:
        model = timm.models.swin_transformer.SwinTransformer(img_size=112, window_size=7, **sizes)
        compare("timm", model.eval(), use_in_timm, torch.randn(2, 3, 112, 112))


if __name__ == "__main__":
    main()
