"""Writes the encoder with its weights in float16, 46 MB instead of 91, for a machine that cannot install its package:
`python examples/train/export_weights.py FOLDER` here, `python examples/train/train.py --weights FOLDER` there."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from encoder import weights
from safetensors.torch import load_file, save_file

FILES = ("config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def export(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = weights()
    for name in FILES:
        shutil.copy(source / name, folder)
    tensors = load_file(source / "model.safetensors")
    halves = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    export(parser.parse_args().folder)
