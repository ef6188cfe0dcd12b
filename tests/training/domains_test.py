#!/usr/bin/env python3
"""Tests training/domains on its own cleaning, splitting and limits; fetches nothing."""

import contextlib
import gzip
import importlib.machinery
import importlib.util
import io
import json
import os
import sys
import tempfile
import unittest

TRAINING = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir, "training"
)
sys.path.insert(0, TRAINING)
loader = importlib.machinery.SourceFileLoader("domains", os.path.join(TRAINING, "domains"))
domains = importlib.util.module_from_spec(importlib.util.spec_from_loader("domains", loader))
loader.exec_module(domains)

PAGES = 400


def page(i):
    """A manual page of its own: macros around words that say which page it is."""
    body = "\n".join(
        f".PP\nSatz {n} der \\fBSeite\\fR {i}: etwas Text dazu." for n in range(i % 60 + 8)
    )
    return f'\'\\" t\n.\\" Kommentar\n.TH seite{i} 1\n.SH NAME\nseite{i} \\- eine Seite\n{body}\n'


class DomainsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        # A package that is unpacked already: nothing is fetched.
        man = os.path.join(self.folder.name, "cache", "manpages-de", "usr", "share", "man", "de")
        os.makedirs(man)
        for i in range(PAGES):
            with gzip.open(os.path.join(man, f"seite{i}.1.gz"), "wb") as f:
                f.write(page(i).encode())

    def run_main(self, *args):
        """Exit status, printed text, error text."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = domains.main(["--cache", os.path.join(self.folder.name, "cache"), *args])
            except SystemExit as error:
                status = error.code
        return status, out.getvalue(), err.getvalue()

    def build(self, name="german", kb=20, out="out"):
        """The bytes of both files of a domain."""
        folder = os.path.join(self.folder.name, out)
        status, _, err = self.run_main("-o", folder, "--domains", name, "--kb", str(kb))
        self.assertEqual((status, err), (0, ""))
        files = {}
        for split in ("calib", "eval"):
            with open(os.path.join(folder, f"{name}.{split}.jsonl"), "rb") as f:
                files[split] = f.read()
        self.assertEqual(sorted(os.listdir(folder)), [f"{name}.calib.jsonl", f"{name}.eval.jsonl"])
        return files

    def test_records_and_sizes(self):
        for split, content in self.build().items():
            with self.subTest(split=split):
                self.assertLessEqual(len(content), 20000)
                self.assertGreater(len(content), 10000)
                for line in content.decode().splitlines():
                    record = json.loads(line)
                    self.assertEqual(sorted(record), ["domain", "text"])
                    self.assertEqual(record["domain"], "german")
                    self.assertTrue(200 <= len(record["text"]) <= 6000)

    def test_no_macros_are_left(self):
        for content in self.build().values():
            for line in content.decode().splitlines():
                text = json.loads(line)["text"]
                self.assertNotIn("\\", text)
                self.assertNotIn("Kommentar", text)
                self.assertNotIn("'", text)
                self.assertFalse(any(row.startswith(".") for row in text.splitlines()))
                self.assertIn("Satz 0 der Seite", text)

    def test_no_source_is_in_both_files(self):
        def names(content):
            return {json.loads(line)["text"].split()[0] for line in content.decode().splitlines()}

        files = self.build()
        self.assertTrue(names(files["calib"]) and names(files["eval"]))
        self.assertFalse(names(files["calib"]) & names(files["eval"]))

    def test_eval_holds_nothing_that_training_saw(self):
        for line in self.build(kb=140)["eval"].decode().splitlines():
            name = json.loads(line)["text"].split()[0]
            key = f"share/man/de/{name}.1.gz"
            self.assertIn(domains.split_of(domains.source_hash(key)), ("eval", "held"))

    def test_same_sources_same_bytes(self):
        self.assertEqual(self.build(out="one"), self.build(out="two"))

    def test_python_comes_from_this_machine(self):
        files = self.build("python", kb=60)
        for split, content in files.items():
            self.assertGreater(content.count(b"def "), 20, split)
            self.assertGreater(content.count(b"return"), 20, split)

    def test_unknown_domain(self):
        status, _, err = self.run_main("--domains", "klingon")
        self.assertEqual(status, 2)
        self.assertIn("unknown domain 'klingon': choose from python, german", err)

    def test_too_small_a_limit_says_so(self):
        out = os.path.join(self.folder.name, "small")
        os.makedirs(out)
        status, _, err = self.run_main("-o", out, "--domains", "german", "--kb", "0")
        self.assertEqual(status, 2)
        self.assertIn("--kb is 0", err)

    def test_empty_source_says_so(self):
        empty = os.path.join(self.folder.name, "cache", "manpages-fr", "usr")
        os.makedirs(empty)
        out = os.path.join(self.folder.name, "empty")
        status, _, err = self.run_main("-o", out, "--domains", "french")
        self.assertEqual(status, 1)
        self.assertIn("french: no text for calib", err)
        self.assertEqual(os.listdir(out), [])

    def test_output_that_cannot_be_written(self):
        blocked = os.path.join(self.folder.name, "file")
        with open(blocked, "w"):
            pass
        status, _, err = self.run_main("-o", blocked, "--domains", "german")
        self.assertEqual(status, 1)
        self.assertIn(blocked, err)


if __name__ == "__main__":
    unittest.main()
