#!/usr/bin/env python3
"""Damaged and hostile files given to the real program: exit status 1 and one line that names the file and what is
wrong with it; never a signal, a hang, or much memory. usage: hostile_test.py BIN_DIR"""
import copy
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/fuzz"))
from seeds import byte_level_file  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
FIXTURES = ROOT / "tests/golden/fixtures"
MEMORY_BYTES = 4 << 30  # of address space; the checkpoints have 2 MB
VOCAB_SIZE = 384        # of the fixtures
MISSING = object()


def limits():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def moiety(*words, timeout=60):
    return subprocess.run([BIN / "moiety", *map(str, words)], capture_output=True, timeout=timeout,
                          stdin=subprocess.DEVNULL, preexec_fn=limits, check=False)


def split(content):
    """(header, data) of a safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class HostileTest(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="moiety-hostile-")
        self.dir = Path(self.temporary.name)
        self.tried = 0

    def tearDown(self):
        self.temporary.cleanup()

    def checkpoint(self, fixture="olmoe"):
        """A fresh, sound checkpoint."""
        folder = self.dir / f"checkpoint-{self.tried}"
        self.tried += 1
        shutil.copytree(FIXTURES / fixture, folder, ignore=shutil.ignore_patterns("expected*"))
        (folder / "tokenizer.json").write_text(json.dumps(byte_level_file()), encoding="utf-8")
        (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
        return folder

    def refused(self, *words, says):
        done = moiety(*words)
        said = done.stderr.decode(errors="replace")
        about = f"moiety {' '.join(map(str, words))}\n{said[-2000:]}"
        self.assertEqual(done.returncode, 1, about)
        lines = [line for line in said.splitlines() if line.startswith("moiety: ")]
        self.assertEqual(len(lines), 1, about)
        self.assertLess(len(said), 3000, about)
        done.stderr.decode("utf-8")  # whatever was in the file
        self.assertIsNone(re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said), about)  # nothing steers a terminal
        for text in says:
            self.assertIn(text, lines[0], about)

    def each(self, cases, damage, says, commands, fixture="olmoe"):
        """For each (name, value, words): `damage` puts the value into a checkpoint, and every command refuses
        that with `says` and the words."""
        for name, value, *words in cases:
            with self.subTest(name):
                folder = self.checkpoint(fixture)
                damage(folder, value)
                for command in commands:
                    self.refused(*(folder if word == "DIR" else word for word in command), says=[*says, *words])
                shutil.rmtree(folder)

    INSPECT = ["inspect", "DIR"]
    GENERATE = ["generate", "-m", "DIR", "--ids", "5,6", "--max-tokens", "2"]
    PROMPT = ["generate", "-m", "DIR", "--prompt", "a", "--max-tokens", "2"]
    SERVE = ["serve", "-m", "DIR", "--port", "0"]

    def test_sound_checkpoints_pass(self):
        for fixture in ("olmoe", "emo"):
            folder = self.checkpoint(fixture)
            for command in (self.INSPECT, self.GENERATE, self.PROMPT):
                done = moiety(*(folder if word == "DIR" else word for word in command))
                self.assertEqual(done.returncode, 0, done.stderr)

    # --- config.json

    def test_config_fields(self):
        cases = []
        for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_experts", "num_experts_per_tok",
                      "intermediate_size", "vocab_size"):
            for bad in ("64", 1.5, -1, 0, 1 << 31, 1 << 62, 1e308, True, [64], {}, None):
                cases.append((f"{field}={bad!r}", (field, bad), field))
        for field, bad in (("max_position_embeddings", 0), ("max_position_embeddings", "many"), ("rms_norm_eps", -1),
                           ("rms_norm_eps", "small"), ("rope_theta", 0), ("rope_theta", -5), ("rope_theta", [1]),
                           ("rope_scaling", 3), ("rope_scaling", {"rope_type": "odd", "factor": 2}),
                           ("rope_scaling", {"rope_type": "linear", "factor": -1}), ("norm_topk_prob", 1),
                           ("norm_topk_prob", "yes"), ("tie_word_embeddings", "no"), ("hidden_act", "gelu"),
                           ("clip_qkv", -3), ("clip_qkv", "8"), ("attention_bias", 7), ("architectures", "OlmoeForCausalLM"),
                           ("architectures", ["GPT2LMHeadModel"]), ("architectures", [3]), ("eos_token_id", "x"),
                           ("eos_token_id", -2), ("eos_token_id", 2.5), ("eos_token_id", [1, 1 << 40]),
                           ("num_experts_per_tok", 17), ("num_attention_heads", 7), ("num_key_value_heads", 3),
                           ("surprise", {"change": 1}), ("architectures", MISSING), ("hidden_size", MISSING),
                           ("num_experts", MISSING), ("vocab_size", MISSING)):
            cases.append((f"{field}={bad!r}", (field, bad), field))

        def damage(folder, change):
            field, bad = change
            config = json.loads((folder / "config.json").read_text())
            config[field] = bad
            if bad is MISSING:
                del config[field]
            if field == "architectures" and bad is MISSING:
                config.pop("model_type")
            (folder / "config.json").write_text(json.dumps(config))

        self.each(cases, damage, ["config.json"], [self.INSPECT])
        self.each(cases[::7], damage, ["config.json"], [self.GENERATE, self.SERVE])

    def test_config_text(self):
        whole = (FIXTURES / "olmoe/config.json").read_bytes()
        cases = [("empty", b""), ("zeros", bytes(100)), ("cut", whole[:200]), ("list", b"[1]"), ("text", b'"x"'),
                 ("not UTF-8", whole.replace(b"olmoe", b"ol\xffmoe")), ("NaN", whole.replace(b"1e-05", b"NaN")),
                 ("infinite", whole.replace(b"1e-05", b"1e999")), ("deep", b"[" * 100_000),
                 ("deep objects", b'{"a":' * 100_000), ("field twice", whole.replace(b"{", b'{"hidden_size": 32,', 1)),
                 ("a huge number", whole.replace(b"1e-05", b"9" * 100_000))]

        def damage(folder, content):
            (folder / "config.json").write_bytes(content)

        self.each(cases, damage, ["config.json"], [self.INSPECT, self.GENERATE])

    # --- safetensors

    def test_safetensors(self):
        content = (FIXTURES / "olmoe/model.safetensors").read_bytes()
        header, data = split(content)
        name = "model.layers.1.mlp.experts.3.up_proj.weight"
        first, second = list(header)[1:3]

        def changed(tensor, **fields):
            other = copy.deepcopy(header)
            other[tensor] |= fields
            return join(other, data)

        def without(tensor):
            """The tensor and its bytes are gone, the file is sound."""
            other, begin, end = copy.deepcopy(header), *header[tensor]["data_offsets"]
            del other[tensor]
            for info in other.values():
                if "data_offsets" in info and info["data_offsets"][0] >= end:
                    info["data_offsets"] = [offset - (end - begin) for offset in info["data_offsets"]]
            return join(other, data[:begin] + data[end:])

        def with_extra(tensor):
            extra = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
            return join(header | {tensor: extra}, data + bytes(4))

        begin, end = header[name]["data_offsets"]
        shape = header[name]["shape"]
        twice = json.dumps(header).replace(f'"{name}"', f'"{second}"').encode()
        cases = [
            ("empty", b"", "too short"), ("seven bytes", content[:7], "too short"),
            ("huge header", struct.pack("<Q", 1 << 63) + content[8:], "header"),
            ("header beyond the end", struct.pack("<Q", len(content)) + content[8:], "header"),
            ("header of no length", struct.pack("<Q", 0) + content[8:]),
            ("header is no JSON", join(b"{" * 1000, data), "JSON"), ("header is a list", join(b"[]", data)),
            ("header is not UTF-8", join(json.dumps(header).encode().replace(b"experts", b"exp\xffrts"), data)),
            ("cut in the header", content[:1000]), ("cut in the data", content[:-1000]), ("longer", content + bytes(7)),
            ("offsets beyond the end", changed(name, data_offsets=[begin, len(data) + 400]), name),
            ("offsets turned round", changed(name, data_offsets=[end, begin]), name),
            ("negative offsets", changed(name, data_offsets=[-4, 4]), name),
            ("huge offsets", changed(name, data_offsets=[(1 << 63) - 8, (1 << 63) - 1]), name),
            ("offsets beyond 64 bits", changed(name, data_offsets=[0, 1 << 64])),
            ("one offset", changed(name, data_offsets=[begin]), name),
            ("offsets of text", changed(name, data_offsets=["0", "4"]), name),
            ("overlap", changed(first, data_offsets=header[second]["data_offsets"],
                                shape=header[second]["shape"])),
            ("unknown dtype", changed(name, dtype="F31"), name), ("dtype of number", changed(name, dtype=7), name),
            ("dtype of another size", changed(name, dtype="F16"), name),
            ("integers for weights", changed(name, dtype="I32"), name),
            ("quantised weights", changed(name, dtype="F8_E4M3", shape=[shape[0] * 4, shape[1]]), name),
            ("shape too small", changed(name, shape=[shape[0], shape[1] - 1]), name),
            ("shape that overflows", changed(name, shape=[1 << 32, 1 << 32, 1 << 32]), name),
            ("negative shape", changed(name, shape=[-shape[0], -shape[1]]), name),
            ("shape of text", changed(name, shape="all"), name), ("transposed", changed(name, shape=shape[::-1]), name),
            ("flat", changed(name, shape=[shape[0] * shape[1]]), name), ("no shape", join(
                {k: {f: v for f, v in info.items() if f != "shape"} for k, info in header.items()}, data)),
            ("a tensor twice", join(twice, data)),
        ]
        # Sound files that are not those of this model: the message names the folder and the tensor.
        others = [
            ("a tensor is missing", without(name), name), ("the norm is missing", without("model.norm.weight"), "model.norm.weight"),
            ("a tensor too much", with_extra("model.layers.1.mlp.experts.16.up_proj.weight"), "experts.16"),
            ("an unknown tensor", with_extra("model.layers.0.mlp.gate.bias"), "gate.bias"),
            ("a name that clears the screen", with_extra("a\x1b[2J\0b"), r"a\x1b[2J\x00b"),
            ("no tensors", join({}, b""), "model.embed_tokens.weight"),
            ("metadata only", join({"__metadata__": {"format": "pt"}}, b""), "model.embed_tokens.weight"),
        ]

        def damage(folder, bad):
            (folder / "model.safetensors").write_bytes(bad)

        self.each(cases, damage, ["model.safetensors"], [self.INSPECT, self.GENERATE])
        self.each(cases[::9], damage, ["model.safetensors"], [self.SERVE])
        self.each(others, damage, [str(self.dir)], [self.INSPECT, self.GENERATE, self.SERVE])

    def test_safetensors_places(self):
        def no_file(folder, _):
            (folder / "model.safetensors").unlink()

        def directory(folder, _):
            no_file(folder, _)
            (folder / "model.safetensors").mkdir()

        def pipe(folder, _):
            no_file(folder, _)
            os.mkfifo(folder / "model.safetensors")

        def cycle(folder, _):
            no_file(folder, _)
            (folder / "model.safetensors").symlink_to("other.safetensors")
            (folder / "other.safetensors").symlink_to("model.safetensors")

        def device(folder, _):
            no_file(folder, _)
            (folder / "model.safetensors").symlink_to("/dev/zero")

        for damage in (no_file, directory, pipe, cycle, device):
            self.each([(damage.__name__, None)], damage, ["model.safetensors"], [self.INSPECT, self.GENERATE])

        # Nobody waits for a pipe that nobody writes to.
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):

            def other_pipe(folder, _, name=name):
                (folder / name).unlink(missing_ok=True)
                os.mkfifo(folder / name)

            command = self.INSPECT if name == "config.json" else self.SERVE
            self.each([(f"pipe {name}", None)], other_pipe, [name], [command])
        self.refused("inspect", self.dir / "nowhere", says=["nowhere"])
        self.refused("inspect", "/dev/null", says=["/dev/null"])
        self.refused("generate", "-m", self.dir / "nowhere", "--ids", "1", says=["nowhere"])
        self.refused("serve", "-m", self.dir / "nowhere", says=["nowhere"])

    def test_shard_index(self):
        index = json.loads((FIXTURES / "emo/model.safetensors.index.json").read_text())
        shards = sorted(set(index["weight_map"].values()))
        name = next(iter(index["weight_map"]))
        outside = self.dir / "outside.safetensors"
        outside.write_bytes((FIXTURES / "emo" / shards[0]).read_bytes())

        def mapped(shard):
            return json.dumps({"weight_map": {k: shard if v == shards[0] else v for k, v in index["weight_map"].items()}})

        moved = index["weight_map"] | {name: shards[1]}
        fewer = {k: v for k, v in index["weight_map"].items() if k != name}
        cases = [("missing shard", mapped("model-00009-of-00003.safetensors"), "model-00009-of-00003"),
                 ("parent", mapped("../outside.safetensors"), "../outside"), ("absolute", mapped(str(outside)), "outside"),
                 ("folder", mapped("a/b.safetensors"), "a/b"), ("dot", mapped("."), "'.'"), ("empty name", mapped("")),
                 ("zero byte", mapped("model\0.safetensors")), ("back slash and parent", mapped("..")),
                 ("wrong shard", json.dumps({"weight_map": moved}), name), ("unlisted", json.dumps({"weight_map": fewer}), name),
                 ("extra", json.dumps({"weight_map": index["weight_map"] | {"model.extra": shards[0]}}), "model.extra"),
                 ("empty map", '{"weight_map": {}}'), ("no map", '{"metadata": {}}', "weight_map"),
                 ("map of list", '{"weight_map": ["a"]}', "weight_map"), ("number for a shard", mapped(7)),
                 ("garbage", "\x7fELF\x02"), ("cut", json.dumps(index)[:-20]), ("empty", "")]

        def damage(folder, text):
            (folder / "model.safetensors.index.json").write_text(text)

        self.each(cases, damage, ["model.safetensors.index.json"], [self.INSPECT, self.GENERATE], "emo")

        def truncated_shard(folder, shard):
            content = (folder / shard).read_bytes()
            (folder / shard).write_bytes(content[: len(content) // 2])

        self.each([(shard, shard, shard) for shard in shards], truncated_shard, [], [self.INSPECT, self.GENERATE], "emo")

    # --- tokenizer.json, generation_config.json and the like

    def test_tokenizer(self):
        whole = byte_level_file()

        def model(**changes):
            return json.dumps(whole | {"model": whole["model"] | changes})

        vocab = whole["model"]["vocab"]
        added = {"id": 301, "content": "<x>", "special": True}
        cases = [
            ("empty", ""), ("garbage", "\x00\x01"), ("cut", json.dumps(whole)[:2000]), ("list", "[]"), ("empty object", "{}"),
            ("deep", "[" * 100_000), ("vocab of list", model(vocab=[]), "model.vocab"),
            ("ids of text", model(vocab=vocab | {"x": "1"}), "model.vocab['x']"),
            ("negative id", model(vocab=vocab | {"x": -1}), "model.vocab['x']"),
            ("huge id", model(vocab=vocab | {"x": 1 << 40}), "model.vocab['x']"),
            ("id twice", model(vocab=vocab | {"xyz": 7}), "used twice"),
            ("a byte is missing", model(vocab={k: v for k, v in vocab.items() if k != "!"}), "0x21"),
            ("merge of unknown", model(merges=[["zz", "qq"]]), "merges[0]"), ("merge of one", model(merges=["a"]), "merges[0]"),
            ("merges of number", model(merges=3), "model.merges"), ("unigram", model(type="Unigram"), "Unigram"),
            ("dropout", model(dropout=0.5), "model.dropout"), ("flag of text", model(byte_fallback="no"), "byte_fallback"),
            ("normalizer", json.dumps(whole | {"normalizer": {"type": "Odd"}}), "normalizer", "Odd"),
            ("pattern", json.dumps(whole | {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a"},
                                                              "behavior": "Isolated"}}), "pre_tokenizer.pattern"),
            ("decoder", json.dumps(whole | {"decoder": None}), "decoder"),
            ("added twice", json.dumps(whole | {"added_tokens": [added, added]}), "added_tokens[1]"),
            ("post_processor", json.dumps(whole | {"post_processor": {"type": "TemplateProcessing"}}), "post_processor"),
        ]

        def damage(folder, text):
            (folder / "tokenizer.json").write_text(text)

        self.each(cases, damage, ["tokenizer.json"], [self.PROMPT])
        self.each(cases[::5], damage, ["tokenizer.json"], [self.SERVE])

        def no_tokenizer(folder, _):
            (folder / "tokenizer.json").unlink()

        self.each([("no tokenizer", None)], no_tokenizer, ["tokenizer.json"], [self.PROMPT, self.SERVE])

        # Some checkpoints have tokens that the model lacks; who uses one is told.
        def beyond(folder, _):
            (folder / "tokenizer.json").write_text(json.dumps(whole | {"added_tokens": [added | {"id": VOCAB_SIZE}]}))

        self.each([("a token beyond the model", None)], beyond, ["token", str(VOCAB_SIZE)],
                  [["generate", "-m", "DIR", "--prompt", "a<x>b", "--max-tokens", "1"]])

        def config(folder, text):
            (folder / "tokenizer_config.json").write_text(text)

        self.each([("garbage", "{]"), ("list", "[]"), ("empty", ""), ("deep", "[" * 100_000),
                   ("no such token", '{"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<none>"}', "bos_token")],
                  config, ["tokenizer_config.json"], [self.PROMPT, self.SERVE])

        def not_text(folder, content):
            (folder / "tokenizer.json").write_bytes(content)

        self.each([("not UTF-8", b'{"version": "\xff"}')], not_text, ["tokenizer.json"], [self.PROMPT])

    def test_generation_config(self):
        cases = [("garbage", "{]"), ("list", "[]"), ("empty", ""), ("eos of text", '{"eos_token_id": "x"}', "eos_token_id"),
                 ("negative eos", '{"eos_token_id": -1}', "eos_token_id"),
                 ("half an eos", '{"eos_token_id": [2, 3.5]}', "eos_token_id"),
                 ("temperature of text", '{"temperature": "hot"}', "temperature"),
                 ("negative temperature", '{"do_sample": true, "temperature": -1}', "temperature"),
                 ("infinite temperature", '{"do_sample": true, "temperature": 1e999}'),
                 ("top_p above 1", '{"do_sample": true, "top_p": 1.5}', "top_p"),
                 ("negative top_k", '{"do_sample": true, "top_k": -4}', "top_k"),
                 ("huge top_k", '{"do_sample": true, "top_k": 1e300}', "top_k"),
                 ("penalty of nothing", '{"repetition_penalty": 0}', "repetition_penalty"),
                 ("NaN", '{"do_sample": true, "temperature": NaN}')]

        def damage(folder, text):
            (folder / "generation_config.json").write_text(text)

        self.each(cases, damage, ["generation_config.json"], [self.GENERATE, self.SERVE])

    # --- files of the planner and of the commands

    def test_subsets_and_profiles(self):
        folder = self.checkpoint("emo")
        mark = json.loads(moiety("inspect", folder, "--json").stdout)["fingerprint"]
        kept = [list(range(8)) + [11]] * 3
        sound = {"format": "moiety.subset/1", "checkpoint": mark, "domains": ["a"], "method": "hand",
                 "experts_kept_per_layer": kept}
        path = self.dir / "subset.json"

        def using(content):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            return ["generate", "-m", folder, "--ids", "5", "--max-tokens", "1", "--subset", path]

        self.assertEqual(moiety(*using(sound)).returncode, 0)
        layers = "experts_kept_per_layer"
        for name, bad, *says in [
                ("garbage", "{]"), ("empty", ""), ("list", []), ("cut", json.dumps(sound)[:-9]), ("deep", "[" * 100_000),
                ("another format", sound | {"format": "moiety.subset/9"}, "format"),
                ("another checkpoint", sound | {"checkpoint": "00" * 32}, "checkpoint"),
                ("fewer layers", sound | {layers: kept[:2]}, "layers"), ("too few experts", sound | {layers: [[0, 11]] * 3}),
                ("an id twice", sound | {layers: [[1, 1, 2, 3, 4, 11]] * 3}), ("an id too high", sound | {layers: [[1, 2, 3, 4, 99]] * 3}),
                ("a negative id", sound | {layers: [[-1, 2, 3, 4, 11]] * 3}), ("ids of text", sound | {layers: [["1"]] * 3}),
                ("without the shared expert", sound | {layers: [list(range(8))] * 3}), ("no layer", sound | {layers: [None] * 3})]:
            with self.subTest(name):
                command = using(bad)
                self.refused(*command, says=["subset.json", *says])
                self.refused("serve", "-m", folder, "--port", "0", "--deploy", f"a={path}", says=["subset.json", *says])

        self.refused("generate", "-m", folder, "--ids", "1", "--subset", self.dir / "none.json", says=["none.json"])
        text = self.dir / "text.jsonl"
        text.write_text('{"text": "some text to measure"}\n')
        profile = self.dir / "a.profile"
        done = moiety("profile", "-m", folder, "--domain", f"a={text}", "-o", profile)
        self.assertEqual(done.returncode, 0, done.stderr)
        sound = json.loads(profile.read_text())
        select = ["select", "--profile", profile, "--domains", "a", "--keep", "6", "-o", self.dir / "out.json"]
        self.assertEqual(moiety(*select).returncode, 0)
        domain = sound["domains"]["a"]
        for name, bad in [("garbage", "{]"), ("empty", ""), ("list", "[]"), ("another format", sound | {"format": "x"}),
                          ("negative tokens", sound | {"domains": {"a": domain | {"tokens": -1}}}),
                          ("probabilities of text", sound | {"domains": {"a": domain | {"mean_prob": "x"}}}),
                          ("fewer layers", sound | {"domains": {"a": domain | {"mean_prob": domain["mean_prob"][:1]}}}),
                          ("fewer experts", sound | {"domains": {"a": domain | {"mean_prob": [[1.0]] * 3}}}),
                          ("infinite", json.dumps(sound).replace(repr(domain["mean_prob"][0][0]), "1e999")),
                          ("no domains", sound | {"domains": []})]:
            with self.subTest(name):
                profile.write_text(bad if isinstance(bad, str) else json.dumps(bad))
                self.refused(*select, says=["a.profile"])

    def test_texts_and_ids(self):
        folder = self.checkpoint()
        text = self.dir / "text.jsonl"
        for name, content in [("garbage", b"{]\n"), ("no text", b'{"domain": "a"}\n'), ("number", b'{"text": 7}\n'),
                              ("list", b"[1]\n"), ("not UTF-8", b'{"text": "\xff"}\n'), ("empty", b""), ("deep", b"[" * 100_000)]:
            with self.subTest(name):
                text.write_bytes(content)
                self.refused("profile", "-m", folder, "--domain", f"a={text}", "-o", self.dir / "x", says=["text.jsonl"])
                self.refused("eval", "-m", folder, "--text", text, says=["text.jsonl"])
        for ids in ("384", "-1", "x", "1,,2", "99999999999999999999", "1.5"):
            with self.subTest(ids):
                self.refused("generate", "-m", folder, f"--ids={ids}", says=["id"])
        tensors = self.dir / "input.safetensors"
        for name, header, data in [
                ("empty", b"", b""), ("garbage", b"{]", b""), ("no ids", {}, b""),
                ("ids of float", {"input_ids": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}, bytes(4)),
                ("flat ids", {"input_ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
                ("no positions", {"input_ids": {"dtype": "I64", "shape": [1, 0], "data_offsets": [0, 0]}}, b""),
                ("ids too high", {"input_ids": {"dtype": "I64", "shape": [1, 1], "data_offsets": [0, 8]}},
                 struct.pack("<q", VOCAB_SIZE))]:
            with self.subTest(name):
                tensors.write_bytes(join(header, data))
                self.refused("logits", "-m", folder, "--input", tensors, "--output", self.dir / "out", says=["input.safetensors"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
