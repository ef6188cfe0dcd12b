#!/usr/bin/env python3
"""The HTTP API of `moiety serve`, by the official OpenAI client and byte by byte. usage: api_test.py BIN_DIR"""
import http.client
import json
import re
import socket
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import LAYERS, MODEL, ROUTED, Server, Stream, call, metric, wait_until, write_subset  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
NAME = "moiety-tiny-emo"
CONTEXT = 1024
NO_EOS = {"ignore_eos": True}


def raw(server, method, path, body=None, headers=None):
    """(status, headers with lower-case names, body bytes) of one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def parse_sse(test, body):
    """The JSON objects of a stream's data lines; checks the frames' form and that [DONE] comes last."""
    *frames, done, rest = body.split(b"\n\n")
    test.assertEqual(rest, b"")
    test.assertEqual(done, b"data: [DONE]")
    for frame in frames:
        test.assertTrue(frame.startswith(b"data: {"), frame)
        test.assertNotIn(b"\n", frame)
    return [json.loads(frame[6:].decode("utf-8", errors="strict")) for frame in frames]


class OpenRequest:
    """A completion request on a bare socket, for clients that go away."""

    def __init__(self, server, **body):
        data = json.dumps(dict({"model": NAME, "prompt": "<|endoftext|>", "temperature": 0, "ignore_eos": True,
                                "max_tokens": CONTEXT - 10}, **body)).encode()
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        self.socket.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    def read_until(self, marker):
        received = b""
        while marker not in received:
            piece = self.socket.recv(65536)
            if not piece:
                raise AssertionError(f"the server closed after {received!r}")
            received += piece
        return received

    def close(self):
        self.socket.close()


SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (\S+)')


def parse_metrics(test, page):
    """Checks a page of the text exposition format; {family: (type, {series: value})}."""
    families, helped, current, seen = {}, set(), None, set()
    test.assertTrue(page.endswith("\n"))
    for line in page.splitlines():
        if line.startswith("# HELP "):
            name, text = line[7:].split(" ", 1)
            test.assertNotIn(name, helped)
            test.assertTrue(text)
            helped.add(name)
        elif line.startswith("# TYPE "):
            current, kind = line[7:].split(" ")
            test.assertIn(kind, ("counter", "gauge", "histogram"))
            test.assertIn(current, helped)
            test.assertNotIn(current, families)
            families[current] = (kind, {})
        else:
            match = SAMPLE.fullmatch(line)
            test.assertIsNotNone(match, line)
            name, labels, value = match.groups()
            kind, series = families[current]
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            test.assertIn(name, [current + suffix for suffix in suffixes], line)
            test.assertNotIn((name, labels), seen, "a series stands there twice")
            seen.add((name, labels))
            series[name + (labels or "")] = float(value)
    test.assertEqual(helped, set(families))
    for name, (kind, series) in families.items():
        test.assertEqual(name.endswith("_total"), kind == "counter", name)
        if kind != "gauge":
            test.assertTrue(all(value >= 0 for value in series.values()), name)
        if kind != "histogram":
            continue
        buckets = [(key, value) for key, value in series.items() if key.startswith(name + "_bucket")]
        for before, after in zip(buckets, buckets[1:]):
            if 'le="+Inf"' not in before[0]:
                test.assertLessEqual(before[1], after[1], f"{after[0]} is not cumulative")
        ends = [value for key, value in buckets if 'le="+Inf"' in key]
        test.assertEqual(ends, [value for key, value in series.items() if key.startswith(name + "_count")])
    return families


class ApiTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="moiety-test-")
        cls.subset = Path(cls.folder.name) / "a.json"
        write_subset(BIN, cls.subset, 1)
        cls.server = Server(BIN, "--deploy", f"a={cls.subset}")
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="none", max_retries=0, timeout=60)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__()
        cls.folder.cleanup()

    def create(self, prompt="<|endoftext|>def main():\n", model=NAME, **fields):
        return self.client.completions.create(model=model, prompt=prompt, **dict({"temperature": 0, "max_tokens": 24}, **fields))

    # --- with the official client

    def test_models(self):
        models = list(self.client.models.list())
        self.assertEqual([(m.id, m.object, m.owned_by) for m in models],
                         [(NAME, "model", "moiety"), (NAME + ":a", "model", "moiety")])
        for model in models:
            self.assertLess(abs(model.created - time.time()), 3600)
            self.assertEqual(model.max_model_len, CONTEXT)
            self.assertEqual(self.client.models.retrieve(model.id), model)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.models.retrieve("gpt-9")
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        self.assertIn(NAME + ":a", str(caught.exception))

    def test_a_completion(self):
        answer = self.create(extra_body=NO_EOS)
        self.assertEqual((answer.object, answer.model), ("text_completion", NAME))
        self.assertTrue(answer.id.startswith("cmpl-"))
        self.assertLess(abs(answer.created - time.time()), 60)
        self.assertEqual(len(answer.choices), 1)
        choice = answer.choices[0]
        self.assertEqual((choice.index, choice.finish_reason, choice.logprobs), (0, "length", None))
        self.assertTrue(choice.text)
        usage = answer.usage
        self.assertEqual((usage.completion_tokens, usage.total_tokens), (24, usage.prompt_tokens + 24))
        self.assertEqual(answer.moiety, {"deployment": NAME, "masked_mass": 0})
        self.assertNotEqual(self.create().id, answer.id)

    def test_a_deployment_masks(self):
        answer = self.create(model=NAME + ":a", extra_body=NO_EOS)
        self.assertEqual((answer.model, answer.moiety["deployment"]), (NAME + ":a", "a"))
        self.assertGreater(answer.moiety["masked_mass"], 0.05)
        self.assertLess(answer.moiety["masked_mass"], 1)
        self.assertNotEqual(answer.choices[0].text, self.create(extra_body=NO_EOS).choices[0].text)

    def test_defaults(self):
        answer = self.client.completions.create(model=NAME, prompt="<|endoftext|>The", extra_body=NO_EOS)
        self.assertEqual(answer.usage.completion_tokens, 16)
        texts = {self.client.completions.create(model=NAME, prompt="<|endoftext|>The").choices[0].text for _ in range(4)}
        self.assertGreater(len(texts), 1, "temperature is 1 and the seed random unless given")
        self.create(n=1, best_of=1, echo=False, stop=None, logprobs=None, presence_penalty=0, frequency_penalty=0, user="me")

    def test_a_stream_says_what_the_plain_answer_says(self):
        expected = self.create(extra_body=NO_EOS)
        chunks = list(self.create(extra_body=NO_EOS, stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), expected.choices[0].text)
        self.assertEqual([c.choices[0].finish_reason for c in chunks[:-1]], [None] * (len(chunks) - 1))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
        self.assertEqual(len({(c.id, c.created, c.model, c.object) for c in chunks}), 1)
        self.assertTrue(all(c.usage is None for c in chunks))
        self.assertEqual(chunks[-1].moiety, {"deployment": NAME, "masked_mass": 0})

    def test_a_stream_with_usage(self):
        usage = self.create(extra_body=NO_EOS).usage
        *chunks, last = self.create(extra_body=NO_EOS, stream=True, stream_options={"include_usage": True})
        self.assertEqual((last.choices, last.usage), ([], usage))
        self.assertTrue(all(c.usage is None and len(c.choices) == 1 for c in chunks))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_it_stops_at_the_end_of_text(self):
        for seed in range(40):
            answer = self.create("<|endoftext|>", temperature=1.2, seed=seed, max_tokens=300)
            if answer.choices[0].finish_reason == "stop":
                break
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertLess(answer.usage.completion_tokens, 300)
        self.assertNotIn("<|endoftext|>", answer.choices[0].text)
        longer = self.create("<|endoftext|>", temperature=1.2, seed=seed, max_tokens=300, extra_body=NO_EOS)
        self.assertEqual((longer.choices[0].finish_reason, longer.usage.completion_tokens), ("length", 300))
        self.assertTrue(longer.choices[0].text.startswith(answer.choices[0].text))
        *_, last = self.create("<|endoftext|>", temperature=1.2, seed=seed, max_tokens=300, stream=True)
        self.assertEqual(last.choices[0].finish_reason, "stop")

    def test_the_same_seed_gives_the_same_text(self):
        ask = dict(prompt="<|endoftext|>The", temperature=1, max_tokens=32, extra_body=NO_EOS)
        expected = {seed: self.create(seed=seed, **ask).choices[0].text for seed in range(4)}
        self.assertEqual(len(set(expected.values())), 4)
        # Again, all at once and among others: neither time nor company matters.
        with ThreadPoolExecutor(12) as pool:
            others = [pool.submit(self.create, seed=99 + i, **ask) for i in range(4)]
            again = {seed: pool.submit(self.create, seed=seed, **ask) for seed in expected for _ in range(2)}
            self.assertEqual({seed: a.result().choices[0].text for seed, a in again.items()}, expected)
            for other in others:
                other.result()

    def test_prompts_as_token_ids(self):
        text = "<|endoftext|>Die Datei wird geöffnet.\n\ndef 東京(x): 😀"
        ids = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode(text).ids
        expected = self.create(text)
        self.assertEqual(expected.usage.prompt_tokens, len(ids))
        for prompt in (ids, [ids], [text]):
            answer = self.create(prompt)
            self.assertEqual((answer.choices, answer.usage.prompt_tokens), (expected.choices, len(ids)))

    def test_errors_are_the_clients_exceptions(self):
        for model in ("nope", NAME + ":b", NAME + ":", ":a", NAME.upper()):
            with self.assertRaises(openai.NotFoundError) as caught:
                self.create(model=model)
            self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
            self.assertEqual(caught.exception.type, "invalid_request_error")
        wrong = [(dict(temperature=9), "temperature"), (dict(temperature=-0.1), "temperature"), (dict(top_p=2), "top_p"),
                 (dict(max_tokens=0), "max_tokens"), (dict(max_tokens="x"), "max_tokens"), (dict(prompt=""), "prompt"),
                 (dict(prompt=[]), "prompt"), (dict(prompt=[1, -1]), "prompt"), (dict(prompt=[8192]), "prompt"),
                 (dict(prompt=["a", 5]), "prompt"), (dict(prompt={"a": 1}), "prompt"), (dict(prompt=[1.5]), "prompt"),
                 (dict(prompt=[5] * CONTEXT, max_tokens=1), "prompt"), (dict(prompt=["x", ""]), "prompt"), (dict(n=0), "n"),
                 (dict(best_of=2), "best_of"), (dict(logprobs=21), "logprobs"), (dict(echo=True, logprobs=1), "echo"),
                 (dict(suffix="x"), "suffix"), (dict(stop=[""]), "stop"), (dict(seed=1.5), "seed"), (dict(stream="yes"), "stream"),
                 (dict(logit_bias={"8192": 1}), "logit_bias"), (dict(presence_penalty=3), "presence_penalty"),
                 (dict(extra_body={"stop_token_ids": [8192]}), "stop_token_ids"), (dict(extra_body={"top_k": 0.5}), "top_k"),
                 (dict(extra_body={"min_tokens": 25}), "min_tokens"), (dict(extra_body={"prompt_logprobs": 1}), "prompt_logprobs"),
                 (dict(extra_body={"bananas": 1}), "bananas"), (dict(extra_body={"ignore_eos": 1}), "ignore_eos"),
                 (dict(stream_options={"include_usage": 1}), "stream_options")]
        for fields, param in wrong:
            with self.subTest(**fields), self.assertRaises(openai.BadRequestError) as caught:
                self.create(**fields)
            self.assertEqual(caught.exception.param, param, caught.exception)
            self.assertEqual(caught.exception.type, "invalid_request_error")
            self.assertIn(param.split("_")[0], str(caught.exception))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.create([5] * CONTEXT, max_tokens=2)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        for number in (CONTEXT, 2, CONTEXT + 2):
            self.assertIn(str(number), str(caught.exception))
        self.create([5] * (CONTEXT - 1), max_tokens=1)  # the whole context is fine

    def test_32_at_once(self):
        prompts = [[0, 100 + i, 7 * i + 3] for i in range(8)]
        expected = [self.create(p, extra_body=NO_EOS).choices[0].text for p in prompts]
        with ThreadPoolExecutor(32) as pool:
            answers = [pool.submit(self.create, prompts[i % 8], model=NAME + (":a" if i >= 24 else ""), extra_body=NO_EOS)
                       for i in range(32)]
            for i, answer in enumerate(answers):
                answer = answer.result(timeout=60)
                self.assertEqual(answer.usage.completion_tokens, 24)
                if i < 24:
                    self.assertEqual(answer.choices[0].text, expected[i % 8])
                else:
                    self.assertGreater(answer.moiety["masked_mass"], 0)

    # --- byte by byte

    def check_envelope(self, answer, status, param=None, code=None):
        self.assertEqual(answer[0], status, answer)
        self.assertEqual(answer[1]["content-type"], "application/json")
        error = json.loads(answer[2])["error"]
        self.assertEqual(sorted(error), ["code", "message", "param", "type"])
        self.assertEqual(error["param"], param)
        self.assertTrue(error["message"] and isinstance(error["message"], str))
        if code:
            self.assertEqual(error["code"], code)

    def test_error_envelopes(self):
        for path in ("/", "/v1", "/v1/chat", "/v1/chat/completions/", "/v1/modelsfoo", "/v1/completions/", "/metrics/x", "/%2e%2e/etc"):
            self.check_envelope(raw(self.server, "GET", path), 404, code="not_found")
        self.check_envelope(raw(self.server, "GET", "/v1/models/nope"), 404, "model", "model_not_found")
        for method, path, allowed in (("GET", "/v1/completions", "POST"), ("DELETE", "/v1/completions", "POST"),
                                      ("GET", "/v1/chat/completions", "POST"),
                                      ("POST", "/v1/models", "GET"), ("PUT", "/health", "GET"), ("POST", "/metrics", "GET")):
            answer = raw(self.server, method, path)
            self.check_envelope(answer, 405, code="method_not_allowed")
            self.assertIn(allowed, answer[1]["allow"])
        for body in (b"", b"{", b"[]", b"null", b'"x"', b"{} {}", b'{"model": "\xff"}', b"[" * 100000):
            self.check_envelope(raw(self.server, "POST", "/v1/completions", body), 400)
        self.check_envelope(raw(self.server, "POST", "/v1/completions", b"{}"), 400, "model")

    def test_a_large_body_is_refused_before_it_is_sent(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
            response = http.client.HTTPResponse(connection, method="POST")
            response.begin()
            self.check_envelope((response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()), 413)
            response.close()

    def test_frames_of_a_stream(self):
        body = {"model": NAME, "prompt": [0, 500], "max_tokens": 12, "temperature": 0, "stream": True, "ignore_eos": True}
        status, headers, answer = raw(self.server, "POST", "/v1/completions", json.dumps(body))
        self.assertEqual((status, headers["content-type"]), (200, "text/event-stream"))
        frames = parse_sse(self, answer)
        self.assertEqual([f["choices"][0]["finish_reason"] for f in frames], [None] * (len(frames) - 1) + ["length"])
        for frame in frames:
            self.assertEqual((frame["object"], frame["model"]), ("text_completion", NAME))
            self.assertEqual([c["index"] for c in frame["choices"]], [0])
            self.assertNotIn("usage", frame)
        # Refused before the first byte: a status, not a stream.
        self.check_envelope(raw(self.server, "POST", "/v1/completions", json.dumps(dict(body, max_tokens=0))), 400, "max_tokens")

    def test_no_frame_holds_half_a_character(self):
        beyond_ascii = held_back = 0
        for prompt in ("<|endoftext|>日本語の文章です。東京は", "emoji 😀😃👍🏽 🎉", "<|endoftext|>Привет, как"):
            for seed in range(5):
                ask = {"model": NAME, "prompt": prompt, "temperature": 1, "seed": seed, "max_tokens": 48, "ignore_eos": True}
                expected = call("POST", self.server.url + "/v1/completions", ask)[1]["choices"][0]["text"]
                frames = parse_sse(self, raw(self.server, "POST", "/v1/completions", json.dumps(dict(ask, stream=True)))[2])
                texts = [f["choices"][0]["text"] for f in frames]
                self.assertEqual("".join(texts), expected)
                expected.encode("utf-8", errors="strict")  # no lone surrogate
                self.assertTrue(all(texts[:-1]), "an empty frame")
                beyond_ascii += sum(not text.isascii() for text in texts)
                held_back += 48 - (len(frames) - 1)
        # Otherwise this test saw nothing.
        self.assertGreater(beyond_ascii, 50)
        self.assertGreater(held_back, 5)

    def test_health_and_readiness(self):
        for path in ("/health", "/ready"):
            status, headers, body = raw(self.server, "GET", path)
            self.assertEqual((status, headers["content-type"]), (200, "application/json"))
            head = raw(self.server, "HEAD", path)
            self.assertEqual((head[0], head[2]), (200, b""))
            self.assertEqual(head[1]["content-length"], str(len(body)))
        # The connection is still in step after HEAD.
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        for method in ("HEAD", "GET", "HEAD", "GET"):
            connection.request(method, "/health?x=1")
            response = connection.getresponse()
            self.assertEqual((response.status, bool(response.read())), (200, method == "GET"))
        connection.close()

    def test_metrics(self):
        self.create(model=NAME + ":a")
        status, headers, page = raw(self.server, "GET", "/metrics")
        self.assertEqual(status, 200)
        self.assertEqual(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        families = parse_metrics(self, page.decode())
        self.assertEqual({name: families[name][0] for name in (
            "moiety_requests_total", "moiety_prompt_tokens_total", "moiety_generation_tokens_total", "moiety_step_seconds",
            "moiety_masked_mass", "moiety_expert_tokens_total", "moiety_requests_running", "moiety_requests_waiting")}, {
                "moiety_requests_total": "counter", "moiety_prompt_tokens_total": "counter",
                "moiety_generation_tokens_total": "counter", "moiety_step_seconds": "histogram",
                "moiety_masked_mass": "histogram", "moiety_expert_tokens_total": "counter",
                "moiety_requests_running": "gauge", "moiety_requests_waiting": "gauge"})
        self.assertEqual(len(families["moiety_expert_tokens_total"][1]), LAYERS * ROUTED)
        self.assertIn(f'moiety_masked_mass_count{{deployment="a"}}', families["moiety_masked_mass"][1])

        answer = self.create([0, 1, 2, 3, 4], max_tokens=7, extra_body=NO_EOS)
        self.assertEqual(answer.usage.completion_tokens, 7)
        after = parse_metrics(self, raw(self.server, "GET", "/metrics")[2].decode())

        def grown(name, labels=""):
            return after[name][1][name + labels] - families[name][1].get(name + labels, 0)

        self.assertEqual(grown("moiety_prompt_tokens_total"), 5)
        self.assertEqual(grown("moiety_generation_tokens_total"), 7)
        # The last token is not fed back: 5 + 6 went through every layer, 3 experts each.
        per_expert = sum(after["moiety_expert_tokens_total"][1].values()) - sum(families["moiety_expert_tokens_total"][1].values())
        self.assertEqual(per_expert, LAYERS * 3 * (5 + 6))
        reason = f'{{model="{NAME}",reason="length"}}'
        self.assertEqual(grown("moiety_requests_total", reason), 1)

    def test_names_of_unknown_models_are_no_labels(self):
        for i in range(5):
            self.assertEqual(call("POST", self.server.url + "/v1/completions", {"model": f"{NAME}:x{i}", "prompt": "x"})[0], 404)
        page = raw(self.server, "GET", "/metrics")[2].decode()
        self.assertNotIn(":x0", page)
        self.assertIn(f'model="{NAME}",reason="not_found"', page)

    def cancelled(self):
        page = call("GET", self.server.url + "/metrics")[1]
        return sum(metric(page, line.rsplit(" ", 1)[0]) for line in page.splitlines()
                   if line.startswith("moiety_requests_total{") and 'reason="cancelled"' in line)

    def test_a_client_that_goes_away_ends_its_request(self):
        for stream in (True, False):
            before = self.cancelled()
            generated = self.server.metric("moiety_generation_tokens_total")
            request = OpenRequest(self.server, stream=stream)
            if stream:
                request.read_until(b"data: ")
            else:
                wait_until(lambda: self.server.metric("moiety_requests_running") == 1, "the request runs")
            request.close()
            wait_until(lambda: self.server.metric("moiety_requests_running") == 0, "nothing runs", timeout=5)
            wait_until(lambda: self.cancelled() == before + 1, "it counts as cancelled", timeout=5)
            self.assertLess(self.server.metric("moiety_generation_tokens_total") - generated, CONTEXT - 10, "it ran to its end")
        self.assertEqual(self.create(max_tokens=1).usage.completion_tokens, 1)

    def test_a_slow_reader_gets_everything(self):
        request = OpenRequest(self.server, stream=True, max_tokens=200)
        wait_until(lambda: self.server.metric("moiety_requests_running") == 0, "the request has ended")
        self.assertEqual(request.read_until(b"data: [DONE]").count(b'"finish_reason":"length"'), 1)
        request.close()


class LimitsTest(unittest.TestCase):
    def test_a_full_queue_is_429(self):
        with Server(BIN, "--max-num-seqs", "1", "--max-queue", "1", "--no-expert-metrics") as server:
            self.assertNotIn("moiety_expert_tokens_total{", call("GET", server.url + "/metrics")[1])
            running = OpenRequest(server, stream=True)
            running.read_until(b"data: ")
            waiting = OpenRequest(server, stream=True)
            wait_until(lambda: server.metric("moiety_requests_waiting") == 1, "the second one waits")
            with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
                with self.assertRaises(openai.RateLimitError) as caught:
                    client.completions.create(model=NAME, prompt="x")
                self.assertEqual(caught.exception.code, "resource_exhausted")
                self.assertGreaterEqual(int(caught.exception.response.headers["retry-after"]), 1)
                page = call("GET", server.url + "/metrics")[1]
                self.assertEqual(metric(page, f'moiety_requests_total{{model="{NAME}",reason="resource_exhausted"}}'), 1)
                running.close()
                waiting.read_until(b"data: ")  # its turn now
                waiting.close()
                wait_until(lambda: server.metric("moiety_requests_running") == 0, "nothing runs")
                self.assertEqual(client.completions.create(model=NAME, prompt="x", max_tokens=1).usage.completion_tokens, 1)

    def test_a_waiting_client_that_goes_away_leaves_the_queue(self):
        with Server(BIN, "--max-num-seqs", "1") as server:
            running = OpenRequest(server, stream=True)
            running.read_until(b"data: ")
            waiting = OpenRequest(server, stream=True)
            wait_until(lambda: server.metric("moiety_requests_waiting") == 1, "the second one waits")
            waiting.close()
            wait_until(lambda: server.metric("moiety_requests_waiting") == 0, "the queue is empty", timeout=5)
            self.assertEqual(server.metric("moiety_requests_running"), 1)
            running.close()

    def stop_with_requests_under_way(self, max_tokens, *flags):
        """The stream and the plain answer (status, JSON) that SIGTERM met."""
        with Server(BIN, *flags) as server, ThreadPoolExecutor(1) as pool:
            body = {"model": NAME, "prompt": "<|endoftext|>", "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
            plain = pool.submit(call, "POST", server.url + "/v1/completions", body)
            stream = Stream(server.url, body)
            stream.start()
            wait_until(lambda: stream.frames and server.metric("moiety_requests_running") == 2, "both run")
            self.assertEqual(server.stop(), 0)
            stream.join(timeout=20)
            self.assertFalse(stream.is_alive())
            self.assertIsNone(stream.error)
            self.assertTrue(stream.done, "no [DONE]")
            return stream, plain.result(timeout=20)

    def test_sigterm_lets_requests_finish(self):
        stream, plain = self.stop_with_requests_under_way(600, "--stop-grace-s", "60")
        self.assertEqual(stream.frames[-1]["choices"][0]["finish_reason"], "length")
        self.assertEqual((plain[0], plain[1]["usage"]["completion_tokens"]), (200, 600))
        self.assertEqual(stream.text(), plain[1]["choices"][0]["text"])

    def test_sigterm_ends_what_takes_too_long_with_an_error(self):
        # The slowest way to compute: it does not come to an end within the second.
        stream, plain = self.stop_with_requests_under_way(
            CONTEXT - 10, "--stop-grace-s", "1", "--kernels", "reference", "--dtype", "f32", "--threads", "1")
        self.assertEqual(stream.failure(), "unavailable")
        self.assertIn("shutting down", stream.frames[-1]["error"]["message"])
        self.assertEqual((plain[0], plain[1]["error"]["code"]), (503, "unavailable"))

    def test_without_the_full_model(self):
        with tempfile.TemporaryDirectory(prefix="moiety-test-") as folder:
            subset = Path(folder) / "a.json"
            write_subset(BIN, subset, 1)
            with Server(BIN, "--no-full", "--deploy", f"a={subset}", "--served-model-name", "emo") as server:
                self.assertEqual([m["id"] for m in call("GET", server.url + "/v1/models")[1]["data"]], ["emo:a"])
                for model, status in (("emo", 404), (NAME, 404), (NAME + ":a", 404), ("emo:a", 200)):
                    self.assertEqual(call("POST", server.url + "/v1/completions", {"model": model, "prompt": "x"})[0], status)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
