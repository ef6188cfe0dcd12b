#!/usr/bin/env python3
"""Writes the inputs from which fuzzing starts, taken from the golden checkpoints.

usage: seeds.py NAME DIR        NAME is a target, such as config_fuzz; one without seeds gets none
"""

import glob
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FIXTURES = os.path.join(ROOT, "tests", "golden", "fixtures")


def read(path):
    with open(path, "rb") as f:
        return f.read()


def config_fuzz():
    for path in sorted(glob.glob(os.path.join(FIXTURES, "*", "config.json"))):
        yield read(path)


def safetensors_fuzz():
    """The first byte is the size of the data, the rest a header or a shard index."""
    yield b"\x08" + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    yield b"\x0c" + (
        b'{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    )
    yield b"\x00" + b'{"metadata":{"total_size":8},"weight_map":{"a":"model.safetensors"}}'
    for path in sorted(glob.glob(os.path.join(FIXTURES, "*", "model*.safetensors"))):
        content = read(path)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        yield b"\x00" + header[:4000]


def main(argv):
    if len(argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    name, folder = argv[1:]
    seeds = {"config_fuzz": config_fuzz, "safetensors_fuzz": safetensors_fuzz}.get(name, lambda: [])
    for i, seed in enumerate(seeds()):
        with open(os.path.join(folder, f"seed-{i}"), "wb") as f:
            f.write(seed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
