#!/usr/bin/env python3
"""The commands of `moiety` that need no server, as people and scripts see them. usage: cli_test.py BIN_DIR"""
import hashlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import LAYERS, MODEL, ROOT, ROUTED, write_subset  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
GOLDEN = ROOT / "tests/golden"
TOP_K = 3
TEXTS = {
    "code": ["def main():\n    return 0\n", "import os\n\nclass A:\n    x = [1, 2, 3]\n", "for i in range(10):\n    print(i)\n"],
    "german": ["Die Datei wird nicht gefunden. Bitte prüfen Sie den Namen.", "Größe und Zeit der Änderung werden angezeigt."],
}


def moiety(*words, timeout=120, given=None):
    source = {"stdin": subprocess.DEVNULL} if given is None else {"input": given}
    return subprocess.run([BIN / "moiety", *words], text=True, capture_output=True, timeout=timeout,
                          encoding="utf-8", errors="strict", **source)


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="moiety-test-")
        cls.dir = Path(cls.folder.name)
        for domain, texts in TEXTS.items():
            lines = [json.dumps({"domain": domain, "text": text}) for text in texts]
            (cls.dir / f"{domain}.jsonl").write_text("\n".join(lines) + "\n\n")
        cls.profile = cls.dir / "two.profile"
        cls.profiled = cls.json("profile", "-m", MODEL, "--domain", f"code={cls.dir}/code.jsonl", "--domain",
                                f"german={cls.dir}/german.jsonl", "-o", cls.profile)
        cls.subset = cls.dir / "a.json"
        cls.kept = write_subset(BIN, cls.subset, 1)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @staticmethod
    def json(*words):
        done = moiety(*words, "--json")
        if done.returncode != 0:
            raise AssertionError(f"{words}: status {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def text(self, *words):
        done = moiety(*words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def fails(self, *words, says, given=None):
        """Exit status 1 and one line on stderr that holds every text of `says`."""
        done = moiety(*words, given=given)
        self.assertEqual(done.returncode, 1, (words, done.stderr))
        self.assertTrue(done.stderr.endswith("\n") and done.stderr.count("\n") == 1, done.stderr)
        self.assertTrue(done.stderr.startswith("moiety: "), done.stderr)
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, done.stderr, words)
        return done

    # --- what works

    def test_values_that_are_no_numbers_and_two_sources_are_refused(self):
        for value in ("nan", "inf", "0"):
            self.fails("status", "--watch", "--interval", value, says="--interval")
        self.fails("up", "--move-headroom", "nan", says="--move-headroom")
        self.fails("up", "--capacity-bytes", "-5", says=["--capacity-bytes", "negative"])
        self.fails("deploy", "z=a.json", "--subset", "/nonexistent", says=["z=a.json", "--subset /nonexistent", "one subset file"])
        self.fails("deploy", "z=a.json,on_missing=fail", "--on-missing", "mask", says="--on-missing mask")

    def test_inspect(self):
        seen = self.json("inspect", MODEL)
        self.assertEqual(seen["fingerprint"], "7001f6a4b8400f991bf0626b8963e7a94f3fa7f62f82ca4bb558533d2e748687")
        self.assertEqual((seen["layers"], seen["experts_per_layer"], seen["shared_experts"], seen["routed_experts_per_token"]),
                         (LAYERS, ROUTED + 1, 1, TOP_K))
        tensors = load_header(MODEL / "model.safetensors")
        self.assertEqual(seen["parameters"], sum(math.prod(t["shape"]) for t in tensors.values()))
        self.assertLess(seen["active_parameters"], seen["parameters"] / 2)
        sizes = {size["keep"]: size["bytes"] for size in seen["bytes_by_kept_experts"]}
        self.assertEqual(list(sizes), [64, 32, 16, 8, 4])
        self.assertEqual(sizes[64], 2 * seen["parameters"])
        self.assertEqual(sizes[64] - sizes[16], LAYERS * 48 * 3 * 64 * 256 * 2)
        self.assertEqual(seen["active_parameters"], seen["parameters"] - LAYERS * (ROUTED - TOP_K) * 3 * 64 * 256)
        self.assertEqual(seen["kv_bytes_per_token"], LAYERS * 2 * 256 * 2)
        self.assertEqual((seen["tokenizer"]["tokens"], seen["tokenizer"]["special_tokens"]), (8192, 2))
        self.assertEqual(seen["tokenizer"]["end_of_text"], [{"id": 0, "text": "<|endoftext|>"}])
        small = self.json("inspect", MODEL, "--dtype", "f32", "--expert-dtype", "int8")["bytes_by_kept_experts"][0]
        one = 3 * 64 * 256 + 4 * (64 + 64 + 256)  # a byte per weight, a scale per output
        self.assertEqual(small["expert_bytes"], LAYERS * ROUTED * one)
        self.assertEqual(small["dense_bytes"], 4 * (seen["parameters"] - LAYERS * ROUTED * 3 * 64 * 256))
        shown = self.text("inspect", "-m", MODEL)
        for text in (seen["fingerprint"], "64 per layer (1 shared)", "3 routed ones per token"):
            self.assertIn(text, shown)
        for name, pruned in (("emo", False), ("emo-pruned", True), ("emo-ragged", True), ("olmoe", False)):
            other = self.json("inspect", GOLDEN / "fixtures" / name)
            self.assertEqual(other["physically_pruned"], pruned)
            self.assertIsNone(other["tokenizer"])

    def test_inspect_knows_published_sizes(self):
        """In billions: parameters, active ones; GiB of the whole model and of half its experts; KV bytes per token."""
        published = {"olmoe-7b": (6.92, 1.28, 12.89, 6.89, 131072), "emo-1b-14b": (13.57, 1.49, 25.27, 13.27, 131072)}
        for shape, (parameters, active, whole, half, kv) in published.items():
            seen = self.json("inspect", hollow_checkpoint(self.dir / f"hollow-{shape}", HOLLOW[shape]))
            self.assertAlmostEqual(seen["parameters"] / 1e9, parameters, 2)
            self.assertAlmostEqual(seen["active_parameters"] / 1e9, active, 2)
            self.assertEqual(seen["kv_bytes_per_token"], kv)
            for size, gib in zip(seen["bytes_by_kept_experts"], (whole, half)):
                self.assertAlmostEqual(size["bytes"] / 2**30, gib, 2)

    def test_help_and_version(self):
        self.assertRegex(self.text("--version"), r"^moiety \d+\.\d+\.\d+\n$")
        for words in ((), ("generate",), ("profile",), ("logits",), ("up",), ("bench",), ("bench", "engine"),
                      ("bench", "kernels"), ("bench", "serve"), ("bench", "make-checkpoint"), ("bench", "fabric"),
                      ("bench", "cluster")):
            self.assertIn("--help", self.text(*words, "--help"))

    def test_generate(self):
        ask = ("generate", "-m", MODEL, "-p", "<|endoftext|>def main():\n", "--max-tokens", "24", "--ignore-eos")
        plain = moiety(*ask)
        self.assertEqual(plain.returncode, 0)
        self.assertRegex(plain.stderr, r"^\d+ \+ 24 tokens, .*\n$")
        answer = self.json(*ask)
        self.assertEqual(plain.stdout, answer["text"] + "\n")
        self.assertEqual((answer["finish_reason"], answer["completion_tokens"], answer["masked_mass"]), ("length", 24, 0))
        masked = self.json(*ask, "--subset", self.subset)
        self.assertGreater(masked["masked_mass"], 0.05)
        self.assertNotEqual(masked["text"], answer["text"])

    def test_generate_with_a_seed(self):
        ask = ("generate", "-m", MODEL, "-p", "<|endoftext|>東京", "--max-tokens", "24", "--temperature", "1", "--ignore-eos")
        texts = [self.json(*ask, "--seed", str(seed))["text"] for seed in (1, 1, 2)]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])
        # All 64 bits count, with or without a sign.
        largest, minus_one, half = (self.json(*ask, "--seed", seed)["text"] for seed in (str(2**64 - 1), "-1", str(2**63 - 1)))
        self.assertEqual(largest, minus_one)
        self.assertNotEqual(largest, half)
        for seed in (str(2**64), "1.5", "x", ""):
            self.fails(*ask, f"--seed={seed}", says="--seed")
        # Neither threads nor kernels' blocking matter.
        self.assertEqual(self.json(*ask, "--seed", "1", "--threads", "1")["text"], texts[0])
        self.assertGreater(len({self.json(*ask)["text"] for _ in range(3)}), 1)

    def test_generate_from_ids_and_standard_input(self):
        tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        prompt = "def main():\n    return"
        ask = ("generate", "-m", MODEL, "--max-tokens", "12", "--ignore-eos", "--json")
        answer = self.json(*ask[:-1], "-p", prompt)
        self.assertEqual(tokenizer.decode(answer["ids"]), answer["text"])
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        for words, given in (("--ids", ",".join(map(str, ids))), None), (("--ids", json.dumps(ids)), None), (("-p", "-"), prompt):
            done = moiety(*ask, *words, given=given)
            self.assertEqual(json.loads(done.stdout)["ids"], answer["ids"], words)
        # Without a tokenizer there are ids only.
        model = GOLDEN / "fixtures/olmoe"
        plain = moiety("generate", "-m", model, "--ids", "5,6,7", "--max-tokens", "4", "--ignore-eos")
        seen = self.json("generate", "-m", model, "--ids", "5,6,7", "--max-tokens", "4", "--ignore-eos")
        self.assertEqual(plain.stdout, " ".join(map(str, seen["ids"])) + "\n")
        self.assertNotIn("text", seen)
        for text in ("", "1,x", "-1", "1 2", "[]"):
            self.fails("generate", "-m", MODEL, f"--ids={text}", says="--ids")
        self.fails("generate", "-m", MODEL, "--ids", "8192", says="8192")
        self.fails("generate", "-m", MODEL, "-p", "-", given="", says="empty")

    def test_generate_batch(self):
        lines = [{"prompt": "def main():", "max_tokens": 9}, {"ids": [11, 12, 13]}, {"prompt": "import", "temperature": 1, "seed": 3},
                 {"messages": [{"role": "user", "content": "Hello"}]}, {"prompt": "x = [", "stop": ","},
                 {"prompt": "x = [", "logprobs": 2, "max_tokens": 2}] * 3
        flags = ("-m", MODEL, "--max-tokens", "16", "--ignore-eos")
        text = "\n\n".join(json.dumps(line) for line in lines)
        done = moiety("generate", *flags, "--batch", "-", given=text)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, r"^18 answers, \d+ \+ \d+ tokens in .* tokens/s\n$")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([answer["index"] for answer in answers], list(range(18)))
        for answer, again in zip(answers, answers[6:]):
            self.assertEqual({**answer, "index": 0}, {**again, "index": 0})
        self.assertEqual([answer["completion_tokens"] for answer in answers[:4]], [9, 16, 16, 16])
        self.assertEqual((answers[4]["finish_reason"], answers[4]["stop_reason"]), ("stop", ","))
        self.assertNotIn(",", answers[4]["text"])
        self.assertEqual([len(token["top"]) for token in answers[5]["logprobs"]], [2, 2])
        # Alone or in a batch: the same tokens.
        alone = self.json("generate", *flags, "-p", "import", "--temperature", "1", "--seed", "3")
        self.assertEqual(alone["ids"], answers[2]["ids"])
        self.assertEqual(self.json("generate", *flags, "--chat", "Hello")["ids"], answers[3]["ids"])
        file = self.dir / "batch.jsonl"
        for bad, says in (("{}", "exactly one"), ('{"prompt": "x", "ids": [1]}', "exactly one"), ("[]", "JSON object"), ("x", "valid JSON"),
                          ('{"prompt": ' + "[" * 130 + "]" * 130 + "}", "more than 130"),
                          ('{"prompt": "x", "bananas": 1}', "bananas"), ('{"prompt": "x", "temperature": 9}', "temperature"),
                          ('{"ids": [1, "x"]}', "ids"), ('{"prompt": 5}', "prompt"), ('{"prompt": "x", "n": 2}', "n must be 1"),
                          ('{"messages": "x"}', "array of at least one message"), ('{"messages": []}', "array of at least one message"),
                          ('{"messages": [{"role": "user"}]}', "messages[0].content is missing"), ('{"prompt": "x", "echo": true}', "echo"),
                          ('{"prompt": "x", "min_tokens": 17}', "min_tokens is 17, but no more than 16")):
            file.write_text('{"prompt": "good"}\n\n' + bad + "\n")
            self.fails("generate", *flags, "--batch", file, says=[f"{file}:3: ", says])
        # Fields mean what they mean over HTTP: contents in parts, and special tokens around a text.
        file.write_text('{"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], "best_of": 1}\n'
                        '{"prompt": "x", "add_special_tokens": false, "echo": false, "seed": 18446744073709551615}\n')
        done = moiety("generate", *flags, "--batch", file)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout.splitlines()[0])["ids"], answers[3]["ids"])
        file.write_text("\n")
        self.fails("generate", *flags, "--batch", file, says=[str(file), "no lines"])
        self.fails("generate", *flags, "--batch", "/none.jsonl", says="/none.jsonl")
        # A request that cannot run is its own line's error, and the command's.
        file.write_text('{"prompt": "good"}\n{"prompt": "x", "max_tokens": 5000}\n{"prompt": "good"}\n')
        done = moiety("generate", *flags, "--batch", file)
        self.assertEqual(done.returncode, 1)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(answers[0]["ids"], answers[2]["ids"])
        self.assertEqual(answers[1]["error"]["code"], "invalid_argument")
        self.assertIn("1 of 3 requests failed", done.stderr)

    def test_generate_sampling_flags(self):
        ask = ("generate", "-m", MODEL, "-p", "def main():\n", "--max-tokens", "20", "--ignore-eos")
        greedy = self.json(*ask)
        hot = ("--temperature", "2", "--seed", "5")
        self.assertNotEqual(self.json(*ask, *hot)["ids"], greedy["ids"])
        for flags in (("--top-k", "1"), ("--top-p", "0"), ("--min-p", "1")):
            self.assertEqual(self.json(*ask, *hot, *flags)["ids"], greedy["ids"], flags)
        self.assertEqual(self.json(*ask, *hot, "--top-k", "-1")["ids"], self.json(*ask, *hot)["ids"])
        self.fails(*ask, "--top-k", "-2", says="not in range -1 to 2147483647")
        self.fails(*ask, "--max-tokens", "0", says="not in range 1 to")
        self.fails(*ask, "--min-tokens", "21", says="moiety: min_tokens is 21, but no more than 20")
        for flags in (("--repetition-penalty", "50"), ("--presence-penalty", "2"), ("--frequency-penalty", "2")):
            self.assertNotEqual(self.json(*ask, *flags)["ids"], greedy["ids"], flags)
        piece = greedy["text"][3:6]
        stopped = self.json(*ask, "--stop", piece, "--stop", "never seen")
        self.assertEqual((stopped["text"], stopped["stop_reason"]), (greedy["text"][:greedy["text"].index(piece)], piece))
        ids = greedy["ids"]
        stopped = self.json(*ask, "--stop-token-ids", f"8191,{ids[5]}")
        self.assertEqual((stopped["ids"], stopped["stop_reason"]), (ids[:ids.index(ids[5]) + 1], ids[5]))
        self.assertEqual(self.json(*ask, "--logit-bias", "300=100", "--logit-bias", "8191=-100")["ids"], [300] * 20)
        self.assertNotEqual(self.json(*ask, "--logit-bias", f"{ids[0]}=-100")["ids"][0], ids[0])
        for text in ("300", "300=", "300=x", "=5", "300=101", "8192=1", "x=1"):
            self.fails(*ask, f"--logit-bias={text}", says="bias")
        self.fails(*ask, "--logit-bias", "3=1", "--logit-bias", "3=2", says=["--logit-bias", "twice"])
        self.fails(*ask, "--stop-token-ids", "1,x", says="--stop-token-ids")
        self.fails(*ask, "--stop-token-ids", "8192", says="moiety: stop_token_ids")
        folder = self.dir / "stops"
        folder.mkdir()
        for file in MODEL.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "generation_config.json").write_text(json.dumps({"stop_strings": piece}))
        own = ("generate", "-m", folder, *ask[3:])
        self.assertEqual(self.json(*own)["stop_reason"], piece)
        self.assertEqual(self.json(*own, "--stop", "never seen")["ids"], ids)
        self.assertEqual(self.json(*own, "--stop", "")["ids"], ids)
        best = self.json(*ask, "--logprobs", "2")["logprobs"]
        self.assertEqual([token["id"] for token in best], greedy["ids"])
        self.assertTrue(all(token["top"][0]["id"] == token["id"] and token["logprob"] <= 0 for token in best))
        self.fails(*ask, "--logprobs", "2", says=["--logprobs", "--json"])
        self.fails("generate", "-m", GOLDEN / "fixtures/olmoe", "--ids", "1", "--stop", "x", says=["stop", "tokenizer.json"])
        self.fails("generate", "-m", GOLDEN / "fixtures/olmoe", "--chat", "x", says="tokenizer.json")

    # --- bench

    def test_make_checkpoint(self):
        shapes = [shape["name"] for shape in self.json("bench", "make-checkpoint", "--list")["shapes"]]
        self.assertIn("olmoe-1.8b", shapes)
        tiny = [shape for shape in shapes if shape.endswith("tiny")]
        self.assertEqual(len(tiny), 7)
        for shape in tiny:
            folder = self.dir / "made" / shape
            made = self.json("bench", "make-checkpoint", "--shape", shape, "-o", folder)
            seen = self.json("inspect", folder)
            self.assertEqual(made["bytes"], 2 * seen["parameters"], shape)
            self.assertTrue(seen["chat_template"])
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            self.assertEqual(tokenizer.get_vocab_size(), seen["vocab_size"])
            self.assertEqual(tokenizer.decode(tokenizer.encode("a é 中").ids), "a é 中")
            answer = self.json("generate", "-m", folder, "--ids", "5,6,7", "--max-tokens", "4", "--ignore-eos", "--logprobs", "0")
            self.assertTrue(all(-20 < token["logprob"] <= 0 for token in answer["logprobs"]), (shape, answer))
        weights = load_header(self.dir / "made/tiny/model.safetensors")
        again = self.dir / "made/again"
        self.json("bench", "make-checkpoint", "--shape", "tiny", "-o", again, "--threads", "1")
        for file in (self.dir / "made/tiny").iterdir():
            self.assertEqual((again / file.name).read_bytes(), file.read_bytes(), file)
        for flags, dtype in (("f32", "F32"), ("f16", "F16")):
            folder = self.dir / "made" / flags
            self.json("bench", "make-checkpoint", "--shape", "tiny", "-o", folder, "--dtype", flags, "--seed", "2", "--layers", "1")
            header = load_header(folder / "model.safetensors")
            self.assertEqual({tensor["dtype"] for tensor in header.values()}, {dtype})
            self.assertLess(len(header), len(weights) / 3)
        self.assertEqual([path.name for path in (self.dir / "made").iterdir() if ".tmp." in path.name], [])
        self.fails("bench", "make-checkpoint", "--shape", "tiny", "-o", again, says=[str(again), "not empty"])
        self.fails("bench", "make-checkpoint", "--shape", "huge", "-o", self.dir / "never", says=["--shape", "huge", "olmoe-1.8b"])
        self.fails("bench", "make-checkpoint", "--shape", "tiny", "-o", "/proc/never", says="/proc/never")
        self.fails("bench", "make-checkpoint", says=["--shape", "--output"])
        self.assertFalse((self.dir / "never").exists())
        empty = self.dir / "made/empty"
        empty.touch()
        self.fails("bench", "make-checkpoint", "--shape", "tiny", "-o", empty, says=[str(empty), "not a folder"])
        self.assertTrue(empty.is_file())

    def test_bench_engine(self):
        kept = self.dir / "kept"
        ask = ("bench", "engine", "--shape", "tiny", "--checkpoint-dir", kept, "--batch", "1,3", "--prompt", "40", "--runs", "2",
               "--run-seconds", "0.01")
        seen = self.json(*ask)
        self.assertEqual([case["name"] for case in seen["cases"]], ["prefill 40", "decode B=1", "decode B=3"])
        for case in seen["cases"]:
            for name in ("tokens_per_second", "limit_tokens_per_second", "fraction_of_limit"):
                spread = case[name]
                self.assertTrue(0 < spread["lowest"] <= spread["median"] <= spread["highest"], (case["name"], name, spread))
            self.assertEqual(case["phases"]["head"]["bytes_per_step"], 4096 * 256 * 2)
        one = seen["cases"][1]
        self.assertEqual((one["distinct_experts_per_layer"], one["phases"]["experts"]["bytes_per_step"]), (4, 4 * 4 * 3 * 128 * 256 * 2))
        for name in ("dram_bytes_per_second", "matrix_operations_per_second"):
            self.assertGreater(seen[name], 1e7)
        written = (kept / "model.safetensors").stat().st_mtime_ns
        int8 = self.json(*ask, "--expert-dtype", "int8")
        self.assertEqual((kept / "model.safetensors").stat().st_mtime_ns, written)  # used again
        self.assertEqual(int8["cases"][1]["phases"]["experts"]["bytes_per_step"], 4 * 4 * (3 * 128 * 256 + 4 * 512))
        shown = self.text("bench", "engine", "-m", kept, "--batch", "2", "--prompt", "0", "--runs", "1", "--run-seconds", "0.01")
        self.assertIn("decode B=2", shown)
        self.assertNotIn("prefill", shown)
        again = ("bench", "engine", "--shape", "tiny", "--checkpoint-dir", kept)
        for batch in ("1,x", "0", "-1", "2000"):
            self.fails(*again, f"--batch={batch}", says=["--batch", batch])
        self.fails(*again, "--batch=,", "--prompt", "0", says=["--batch", "--prompt"])
        self.fails(*again, "--context", "5000", says=["5000", "2048"])
        self.fails(*again, "--prompt", "5000", says=["5000", "2048"])
        self.fails("bench", "engine", "--shape", "emo-tiny", "--checkpoint-dir", kept, says=[str(kept), "emo-tiny"])
        self.fails("bench", "engine", "--shape", "tiny", "-m", kept, says="--shape")

    def test_bench_serve(self):
        flags = ("--streams", "3", "--requests", "2", "--prompt-tokens", "9", "--max-tokens", "5", "--rounds", "1")
        seen = self.json("bench", "serve", "-m", MODEL, *flags)
        self.assertGreater(seen["fraction_of_predicted"], 0)
        for name in ("first_token_ms", "gap_ms"):
            self.assertTrue(0 < seen[name]["p50"] <= seen[name]["p90"] <= seen[name]["p99"], seen)
        self.fails("bench", "serve", "-m", MODEL, "--url", "http://127.0.0.1:1", "--served-model-name", "x", *flags, says="127.0.0.1:1")

    def test_bench_fabric_and_cluster(self):
        shown = self.json("bench", "fabric", "--rounds", "10", "--workers", "2", "--hidden", "64")
        self.assertEqual({each["fabric"] for each in shown["results"]}, {"ucx", "mpi"})
        for each in shown["results"]:
            if each["fabric"] == "mpi" and "error" in each:
                self.assertIn("this build has no MPI", each["error"])
                continue
            self.assertTrue(each["bytes_as_counted"], each)
            self.assertGreater(each["layer_us"], 0)
        shown = self.json("bench", "cluster", "--rounds", "1", "--workers", "2", "--streams", "2", "--prompt-tokens", "20",
                          "--max-tokens", "6", "--combine", "per_expert")
        embedded, two = shown["results"]
        self.assertEqual(embedded["of_embedded"], 1)
        self.assertGreater(two["tokens_per_second"], 0)
        for way in ("sent", "received"):
            self.assertEqual(two[f"bytes_{way}"], two[f"bytes_{way}_from_placement"])

    def test_bench_kernels(self):
        results = self.json("bench", "kernels", "--runs", "1", "--dtype", "bf16", "--kernels", "auto")["results"]
        seen = {(result["kernel"], result["m"]) for result in results if result["kernel"] != "linear, two chains"}
        self.assertEqual(seen, {(kernel, m) for kernel in ("linear", "expert_ffn") for m in (1, 4, 16, 64, 512)} |
                         {("attention decode", 32), ("attention prefill", 512)})
        self.assertTrue(all(result["fraction_of_limit"] > 0 for result in results))
        self.fails("bench", "kernels", "--dtype", "f64", says=["--dtype", "f64"])
        self.fails("bench", "kernels", "--kernels", "avx9", says="avx9")

    def test_profile(self):
        profile = json.loads(self.profile.read_text())
        self.assertEqual((profile["format"], profile["checkpoint"]),
                         ("moiety.profile/1", self.json("inspect", MODEL)["fingerprint"]))
        tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        for domain, texts in TEXTS.items():
            seen = profile["domains"][domain]
            self.assertEqual(seen["tokens"], sum(1 + len(tokenizer.encode(t).ids) for t in texts))  # EOS first
            self.assertEqual(seen["tokens"], self.profiled["tokens"][domain])
            self.assertEqual(seen["text_sha256"], hashlib.sha256((self.dir / f"{domain}.jsonl").read_bytes()).hexdigest())
            self.assertEqual(np.shape(seen["mean_prob"]), (LAYERS, ROUTED))
            np.testing.assert_allclose(np.sum(seen["mean_prob"], axis=1), 1, atol=1e-5)
        self.assertFalse(np.allclose(*[profile["domains"][d]["mean_prob"] for d in TEXTS], atol=1e-3))
        short = self.json("profile", "-m", MODEL, "--domain", f"x={self.dir}/code.jsonl", "-o", self.dir / "x.profile",
                          "--max-tokens", "2")
        self.assertEqual(short["tokens"], {"x": 2 * len(TEXTS["code"])})

    def test_select(self):
        profile = json.loads(self.profile.read_text())
        best = {domain: [set(np.argsort(-np.array(layer), kind="stable")[:15]) | {ROUTED} for layer in seen["mean_prob"]]
                for domain, seen in profile["domains"].items()}
        for domains in (["code"], ["german"], ["code", "german"]):
            out = self.dir / "selected.json"
            said = self.json("select", "--profile", self.profile, "--domains", ",".join(domains), "--keep", "16", "-o", out)
            subset = json.loads(out.read_text())
            self.assertEqual((subset["format"], subset["checkpoint"]), ("moiety.subset/1", profile["checkpoint"]))
            self.assertEqual((subset["domains"], subset["method"]), (domains, "mean_prob"))
            kept = subset["experts_kept_per_layer"]
            self.assertEqual(kept, [sorted(map(int, set.union(*sets))) for sets in zip(*[best[d] for d in domains])])
            self.assertEqual((said["kept_per_layer_min"], said["kept_per_layer_max"]), (min(map(len, kept)), max(map(len, kept))))

    def test_eval(self):
        files = [str(self.dir / f"{domain}.jsonl") for domain in TEXTS]
        seen = self.json("eval", "-m", MODEL, "--text", files[0], "--text", files[1], "--subset", self.subset, "--dtype", "f32")
        self.assertEqual([f["text"] for f in seen["files"]], files)
        total = seen["total"]
        self.assertEqual(total["tokens"], sum(f["tokens"] for f in seen["files"]))
        self.assertTrue(0 < total["top1_agreement"] < 1 and 0.05 < total["masked_mass"] < 1)
        self.assertAlmostEqual(total["loss_change"], total["loss_subset"] / total["loss_full"] - 1, places=9)
        shown = self.text("eval", "-m", MODEL, "--text", files[0], "--text", files[1], "--subset", self.subset, "--dtype", "f32")
        self.assertIn(f"{total['loss_full']:.4f}", shown.splitlines()[-1])

        # The same losses, from logits.
        tokenizer = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
        for flags, key in (((), "loss_full"), (("--subset", self.subset), "loss_subset")):
            loss = []
            for text in TEXTS["code"]:
                ids = np.array([[0] + tokenizer.encode(text).ids])
                logits = self.logits(MODEL, ids, "--dtype", "f32", *flags)["logits"][0].astype(np.float64)
                log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
                loss += list(log_sum[:-1] - logits[np.arange(ids.shape[1] - 1), ids[0, 1:]])
            self.assertEqual(seen["files"][0]["tokens"], len(loss))
            self.assertAlmostEqual(seen["files"][0][key], np.mean(loss), places=4)
        self.assertEqual(self.json("eval", "-m", MODEL, "--text", files[0], "--limit", "1")["total"].keys(),
                         {"tokens", "loss_full"})

    # --- logits

    def logits(self, model, ids, *flags, **others):
        source, target = self.dir / "in.safetensors", self.dir / "out.safetensors"
        save_file({"input_ids": np.ascontiguousarray(ids), **others}, source)
        said = self.json("logits", "-m", model, "--input", source, "--output", target, *flags)
        self.assertEqual(said, {"output": str(target), "batch": ids.shape[0], "length": ids.shape[1]})
        return load_file(target)

    def golden(self):
        """(name, checkpoint, expected file) of the fixtures and the bundled model."""
        for name in ("emo", "emo-pruned", "emo-ragged", "olmoe"):
            yield name, GOLDEN / "fixtures" / name, GOLDEN / "fixtures" / name / "expected.safetensors"
        yield MODEL.name, MODEL, GOLDEN / f"{MODEL.name}.expected.safetensors"

    def test_logits_against_the_reference_engine(self):
        for name, model, file in self.golden():
            expected = load_file(file)
            spread = expected["logits"].std()
            out = self.dir / f"{name}.out.safetensors"
            self.json("logits", "-m", model, "--input", file, "--output", out, "--dtype", "f32", "--kernels", "reference")
            actual = load_file(out)
            gates = {key for key in expected if key.startswith("gate_logits.")}
            self.assertEqual(set(actual), gates | {"logits"})
            for key, value in actual.items():
                self.assertEqual((value.dtype, value.shape), (np.float32, expected[key].shape), (name, key))
            self.assertLess(np.abs(actual["logits"] - expected["logits"]).max(), 2e-4 * spread, name)
            for key in gates:
                self.assertLess(np.abs(actual[key] - expected[key]).max(), 1e-3 * expected[key].std(), (name, key))
            # bf16, with the expected choice of experts.
            self.json("logits", "-m", model, "--input", file, "--output", out, "--replay-gate", file)
            difference = load_file(out)["logits"] - expected["logits"]
            self.assertLess(np.abs(difference).max(), 0.1 * spread, name)
            self.assertLess(np.sqrt((difference**2).mean()), 0.02 * spread, name)

    def test_logits_bits(self):
        ids = np.random.default_rng(1).integers(0, 8192, (2, 37))
        expected = self.logits(MODEL, ids)
        same = {
            "I32": (ids.astype(np.int32), (), {}),
            "chunks": (ids, ("--chunk-tokens", "5"), {}),
            "one thread": (ids, ("--threads", "1"), {}),
            "other tensors": (ids, (), {"mask": np.array([True, False, True]), "codes": np.arange(5, dtype=np.uint8),
                                        "half": np.ones((2, 2), np.float16), "wide": np.ones(3), "last": np.int16([1])}),
        }
        for what, (these, flags, others) in same.items():
            actual = self.logits(MODEL, these, *flags, **others)
            for key, value in expected.items():
                np.testing.assert_array_equal(actual[key], value, f"{what}: {key}")
        alone = self.logits(MODEL, ids[1:])
        np.testing.assert_array_equal(alone["logits"][0], expected["logits"][1])
        # Its own gate replayed changes nothing; another row's gate does.
        own, other = self.dir / "own.safetensors", self.dir / "other.safetensors"
        save_file(expected, own)
        save_file({key: np.ascontiguousarray(value[::-1]) for key, value in expected.items()}, other)
        np.testing.assert_array_equal(self.logits(MODEL, ids, "--replay-gate", own)["logits"], expected["logits"])
        self.assertFalse(np.array_equal(self.logits(MODEL, ids, "--replay-gate", other)["logits"], expected["logits"]))
        masked = self.logits(MODEL, ids, "--subset", self.subset)
        self.assertFalse(np.array_equal(masked["logits"], expected["logits"]))
        np.testing.assert_array_equal(masked["gate_logits.0"], expected["gate_logits.0"])  # raw, before the mask

    def test_logits_refuses(self):
        good, bad, out = self.dir / "good.safetensors", self.dir / "bad.safetensors", self.dir / "never.safetensors"
        save_file({"input_ids": np.array([[1, 2, 3]])}, good)
        cases = [({"ids": np.array([[1]])}, "no tensor 'input_ids'"), ({"input_ids": np.array([1, 2])}, "[B, T]"),
                 ({"input_ids": np.zeros((0, 3), np.int64)}, "at least one token"),
                 ({"input_ids": np.array([[1.0]])}, "'input_ids' is F64"),
                 ({"input_ids": np.array([[True]])}, "'input_ids' is BOOL"),
                 ({"input_ids": np.array([[0.5]], np.float32)}, "'input_ids' is F32"),
                 ({"input_ids": np.array([[8192]])}, "8192"), ({"input_ids": np.array([[-1]])}, "-1"),
                 ({"input_ids": np.zeros((1, 1025), np.int64)}, "1025")]
        for tensors, says in cases:
            save_file(tensors, bad)
            self.fails("logits", "-m", MODEL, "--input", bad, "--output", out,
                       says=[says] if says == "1025" else [says, str(bad)])
        bad.write_bytes(good.read_bytes()[:-1])
        self.fails("logits", "-m", MODEL, "--input", bad, "--output", out, says=[str(bad), "truncated"])
        self.fails("logits", "-m", MODEL, "--input", "/none.safetensors", "--output", out, says="/none.safetensors")
        self.fails("logits", "-m", MODEL, "--input", good, "--output", "/none/out.safetensors", says="/none/out.safetensors")
        shape = "[1, 3, 64]"  # the gate of EMO has a row for the shared expert too
        for tensors in ({}, {f"gate_logits.{i}": np.zeros((1, 4, 64), np.float32) for i in range(LAYERS)}):
            save_file({"x": np.zeros(1), **tensors}, bad)
            self.fails("logits", "-m", MODEL, "--input", good, "--output", out, "--replay-gate", bad,
                       says=[str(bad), "gate_logits.0", shape])
        self.assertFalse(out.exists())

    # --- what fails, and how

    def test_wrong_command_lines(self):
        self.fails(says="--help")
        self.fails("frobnicate", says="frobnicate")
        self.fails("generate", "-m", MODEL, says=["--prompt", "--ids", "--chat", "--batch"])
        self.fails("generate", "-m", MODEL, "-p", "x", "--ids", "1", says="--ids")
        self.fails("generate", "-p", "x", says="--model")
        self.fails("generate", "-m", MODEL, "-p", "x", "--bananas", says="--bananas")
        for flag, value in (("--threads", "-1"), ("--threads", "100000"), ("--dtype", "f16"), ("--max-tokens", "0"), ("--max-tokens", "x"), ("--temperature", "3"),
                            ("--top-p", "1.1"), ("--seed", "x")):
            self.fails("generate", "-m", MODEL, "-p", "x", flag, value, says=flag)
        self.fails("select", "--profile", self.profile, "--domains", "code", "--keep", "many", "-o", "x", says="--keep")
        for command in (("generate", "-p", "x"), ("eval", "--text", self.dir / "code.jsonl")):
            self.fails(*command, "-m", MODEL, "--kernels", "avx9", says=["avx9", "plain", "reference"])
        for value in ("code", "=x.jsonl", "code="):
            self.fails("profile", "-m", MODEL, "--domain", value, "-o", self.dir / "p", says=["--domain", value, "NAME=FILE"])
        twice = f"code={self.dir}/code.jsonl"
        self.fails("profile", "-m", MODEL, "--domain", twice, "--domain", twice, "-o", self.dir / "p", says=["--domain", "twice"])

    def test_output_that_cannot_be_written(self):
        batch = "".join(json.dumps({"prompt": text, "max_tokens": 200, "ignore_eos": True}) + "\n" for text in "abcd")
        for words, given in ((("generate", "-m", MODEL, "-p", "x", "--max-tokens", "2"), None), (("inspect", MODEL, "--json"), None),
                             (("inspect", MODEL), None), (("--help",), None), (("generate", "-m", MODEL, "--batch", "-"), batch)):
            with open("/dev/full", "w") as full:
                done = subprocess.run([BIN / "moiety", *words], text=True, stdout=full, stderr=subprocess.PIPE, input=given or "",
                                      timeout=120)
            self.assertEqual(done.returncode, 1, words)
            self.assertRegex(done.stderr, r"\Amoiety: standard output cannot be written.*\n\Z", words)

    def test_wrong_models(self):
        text, ids = self.dir / "code.jsonl", self.dir / "ids.safetensors"
        save_file({"input_ids": np.array([[1, 2, 3]])}, ids)
        commands = [("inspect",), ("generate", "-p", "x"), ("eval", "--text", text),
                    ("profile", "--domain", f"a={text}", "-o", self.dir / "p"),
                    ("logits", "--input", ids, "--output", self.dir / "o")]
        for words in commands:
            self.fails(*words, "-m", "/nonexistent/model", says="/nonexistent/model")
            self.fails(*words, "-m", self.dir, says=str(self.dir / "config.json"))
        broken = self.dir / "broken"
        shutil.copytree(GOLDEN / "fixtures/olmoe", broken)
        weights = broken / "model.safetensors"
        whole = weights.read_bytes()
        # It has no tokenizer: fine for logits, not where text is read.
        for words in commands[1:4]:
            self.fails(*words, "-m", broken, says=str(broken / "tokenizer.json"))
        damages = [(whole[:-5], "truncated"), (whole[:100], "truncated"), (b"", "too short"), (b"x" * 500, "header"),
                   (whole[:9] + b"x" + whole[10:], "header")]
        for damaged, says in damages:
            weights.write_bytes(damaged)
            for words in (commands[0], commands[4]):
                self.fails(*words, "-m", broken, says=[str(weights), says])
        weights.unlink()
        self.fails("inspect", broken, says=[str(broken), "model.safetensors"])
        (broken / "config.json").write_text("{")
        self.fails("inspect", broken, says=str(broken / "config.json"))

    def test_wrong_texts(self):
        bad = self.dir / "bad.jsonl"
        good = json.dumps({"text": "def f"})
        cases = [(f"{good}\nnot json\n{good}\n", f"{bad}:2"), (f"{good}\n\n\n" + '{"text": 5}', f"{bad}:4"),
                 ('["text"]\n', f"{bad}:1"), ('{"txt": "a"}', f"{bad}:1"), ("", "no texts"), ("\n \n", "no texts"),
                 (good[:-2], f"{bad}:1")]
        for content, says in cases:
            bad.write_text(content)
            self.fails("eval", "-m", MODEL, "--text", bad, says=[str(bad), says])
            self.fails("profile", "-m", MODEL, "--domain", f"a={bad}", "-o", self.dir / "never", says=[str(bad), says])
        for path in (self.dir / "none.jsonl", self.dir):
            self.fails("eval", "-m", MODEL, "--text", path, says=str(path))
        self.fails("generate", "-m", MODEL, "-p", "", says="prompt")
        self.fails("generate", "-m", MODEL, "-p", "x", "--max-tokens", "5000", says="1024")
        self.assertFalse((self.dir / "never").exists())

    def test_wrong_subsets(self):
        bad = self.dir / "bad.json"
        text = self.dir / "code.jsonl"

        def changed(layer, change):
            kept = [list(k) for k in self.kept]
            kept[layer] = change(kept[layer])
            return {"experts_kept_per_layer": kept}

        where = "experts_kept_per_layer[%d]"
        cases = [({"checkpoint": "0" * 64}, "checkpoint"), ({"format": "moiety.subset/9"}, "moiety.subset/9"),
                 (changed(2, lambda k: k[-3:]), where % 2), (changed(3, lambda k: k[:-1]), where % 3),
                 (changed(1, lambda k: k[:-1] + [64]), where % 1), (changed(0, lambda k: [-1] + k), where % 0),
                 (changed(4, lambda k: k[::-1]), where % 4), (changed(5, lambda k: [k[0]] + k), where % 5),
                 ({"experts_kept_per_layer": self.kept[:-1]}, "layers"), ({"experts_kept_per_layer": 5}, "experts_kept_per_layer")]
        for changes, says in cases:
            write_subset(BIN, bad, 1, **changes)
            self.fails("generate", "-m", MODEL, "-p", "x", "--subset", bad, says=[str(bad), says])
        for words in (("eval", "--text", text, "--subset", bad), ("generate", "-p", "x", "--subset", bad)):
            for content in ("", "{", "[]", "{}"):
                bad.write_text(content)
                self.fails(*words, "-m", MODEL, says=str(bad))
            bad.unlink()
            self.fails(*words, "-m", MODEL, says=str(bad))
        # A subset of this checkpoint says nothing about another one.
        ids = self.dir / "ids2.safetensors"
        save_file({"input_ids": np.array([[1, 2, 3]])}, ids)
        self.fails("logits", "-m", GOLDEN / "fixtures/olmoe", "--input", ids, "--output", self.dir / "o", "--subset", self.subset,
                   says=[str(self.subset), "checkpoint"])

    def test_select_refuses(self):
        out = self.dir / "never.json"
        for keep in ("3", "0", "-1", "65"):  # three routed ones per token and the shared one
            self.fails("select", "--profile", self.profile, "--domains", "code", "--keep", keep, "-o", out, says="keep")
        self.fails("select", "--profile", self.profile, "--domains", "code,law", "--keep", "16", "-o", out,
                   says=[str(self.profile), "law", "german"])
        self.fails("select", "--profile", self.profile, "--domains", ",", "--keep", "16", "-o", out, says="domain")
        self.fails("select", "--profile", "/none.profile", "--domains", "code", "--keep", "16", "-o", out, says="/none.profile")
        self.fails("select", "--profile", self.subset, "--domains", "code", "--keep", "16", "-o", out, says=str(self.subset))
        self.fails("select", "--profile", self.profile, "--domains", "code", "--keep", "16", "-o", "/none/x.json", says="/none/x.json")
        self.assertFalse(out.exists())
        self.assertEqual(self.json("select", "--profile", self.profile, "--domains", "code", "--keep", "4", "-o", out)
                         ["kept_per_layer_min"], 4)

    def test_serve_refuses(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            cases = [(("--port", port), [port]), (("--deploy", "a"), ["--deploy", "NAME=FILE"]),
                     (("--deploy", "a=/none.json"), ["/none.json"]), (("--deploy", f"bad name={self.subset}"), ["bad name"]),
                     (("--no-full",), ["deploy"]), (("--kernels", "avx9"), ["avx9"]), (("--max-queue", "0"), ["--max-queue"])]
            for flags, says in cases:
                done = moiety("serve", "-m", MODEL, *(() if "--port" in flags else ("--port", "0")), *flags, timeout=30)
                self.assertEqual(done.returncode, 1, (flags, done.stderr))
                last = done.stderr.splitlines()[-1]
                self.assertTrue(last.startswith("moiety: "), done.stderr)
                for text in says:
                    self.assertIn(text, last)

    def test_ctrl_c_stops_cleanly(self):
        with subprocess.Popen([BIN / "moiety", "generate", "-m", MODEL, "-p", "<|endoftext|>", "--max-tokens", "1000",
                               "--ignore-eos"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            self.assertTrue(os.read(process.stdout.fileno(), 1))  # it generates
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
        self.assertEqual(process.returncode, 130)
        self.assertTrue(errors.decode().endswith("moiety: interrupted\n"), errors)


HOLLOW = {
    "olmoe-7b": {"architectures": ["OlmoeForCausalLM"], "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048,
                 "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "num_experts": 64,
                 "num_experts_per_tok": 8, "max_position_embeddings": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
                 "torch_dtype": "bfloat16"},
    "emo-1b-14b": {"architectures": ["EmoForCausalLM"], "model_type": "emo", "vocab_size": 100352, "hidden_size": 2048,
                   "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16, "num_experts": 128,
                   "num_shared_experts": 1, "num_experts_per_tok": 8, "max_position_embeddings": 4096, "rope_theta": 500000.0,
                   "rms_norm_eps": 1e-6, "torch_dtype": "bfloat16"},
}


def hollow_checkpoint(folder, config):
    """A checkpoint whose weights are a hole in a file: all zero, and no bytes on the disk."""
    hidden, width, olmoe = config["hidden_size"], config["intermediate_size"], config["model_type"] == "olmoe"
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], hidden], "model.norm.weight": [hidden],
              "lm_head.weight": [config["vocab_size"], hidden]}
    norms = ("input_layernorm", "post_attention_layernorm") if olmoe else ("pre_attention_layernorm", "pre_feedforward_layernorm")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in norms + (("self_attn.q_norm", "self_attn.k_norm") if olmoe else ()):
            shapes[f"{prefix}{norm}.weight"] = [hidden]
        for name in "qkvo":
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = [hidden, hidden]
        shapes[f"{prefix}mlp.gate.weight"] = [config["num_experts"], hidden]
        for expert in range(config["num_experts"]):
            for name, shape in (("gate", [width, hidden]), ("up", [width, hidden]), ("down", [hidden, width])):
                shapes[f"{prefix}mlp.experts.{expert}.{name}_proj.weight"] = shape
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * math.prod(shape)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def load_header(file):
    """The JSON header of a safetensors file, without its metadata."""
    raw = file.read_bytes()
    header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
    header.pop("__metadata__", None)
    return header


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
