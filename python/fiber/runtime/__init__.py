"""Exported graphs without torch: what `fiber export` wrote, checked and run.

No file of this folder needs torch, but for graphs in the format of `torch.export`.
"""
