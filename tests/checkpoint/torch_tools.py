"""Files of torch.save to read, in one piece or several under an index json as transformers writes them."""

import json

import torch

from hanmo.checkpoint.source import STORAGE


def write_torch(path, tensors, *, max_shard_bytes=None):
    """Save (name, array, or array of raw bits with its info) pairs; with a limit, each tensor in its own file."""
    made = {}
    for name, value in tensors:
        info, array = (value[0], value[1][0]) if isinstance(value, tuple) else (None, value)
        tensor = torch.from_numpy(array.copy())
        made[name] = (
            tensor if info is None or STORAGE[info.dtype] == info.dtype else tensor.view(getattr(torch, info.dtype))
        )
    if max_shard_bytes is None or len(made) < 2:
        torch.save(made, path)
        return path
    files = {name: f"{path.stem}-{i + 1:05d}-of-{len(made):05d}{path.suffix}" for i, name in enumerate(made)}
    for name, file in files.items():
        torch.save({name: made[name]}, path.with_name(file))
    index = path.with_name(f"{path.name}.index.json")
    index.write_text(json.dumps({"weight_map": files}, ensure_ascii=False), "utf-8")
    return index
