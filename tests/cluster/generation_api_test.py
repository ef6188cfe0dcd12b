#!/usr/bin/env python3
"""What requests can ask of the text that is generated, by the official OpenAI client over `moiety serve`: sampling, several
choices, stops, log-probabilities, chat. usage: generation_api_test.py BIN_DIR"""
import json
import math
import shutil
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import tokenizers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
from moiety_cluster import MODEL, Server, call, wait_until  # noqa: E402

BIN = Path(sys.argv[1]) if len(sys.argv) > 1 else None
NAME = "moiety-tiny-emo"
CONTEXT, VOCABULARY, EOS = 1024, 8192, 0
START = "<|endoftext|>def main():\n"
TOKENIZER = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def connect(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def ids_of(text):
    return TOKENIZER.encode(text).ids


def token_texts():
    """Text -> id of the tokens that a text names without doubt."""
    texts = {}
    for i in range(VOCABULARY):
        texts.setdefault(TOKENIZER.decode([i], skip_special_tokens=False), []).append(i)
    return {text: ids[0] for text, ids in texts.items() if len(ids) == 1}


def logprobs_of(prompt, generated):
    """log softmax over the vocabulary at each generated token, from `moiety logits` over the whole sequence."""
    with tempfile.TemporaryDirectory(prefix="moiety-test-") as folder:
        source, target = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_file({"input_ids": np.array([prompt + generated], dtype=np.int64)}, source)
        subprocess.run([BIN / "moiety", "logits", "-m", MODEL, "--input", source, "--output", target], check=True, timeout=60,
                       capture_output=True)
        logits = load_file(target)["logits"][0].astype(np.float64)
    rows = logits[len(prompt) - 1:len(prompt) + len(generated) - 1]
    peak = rows.max(-1, keepdims=True)
    return rows - peak - np.log(np.exp(rows - peak).sum(-1, keepdims=True))


class ServedTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server(BIN)
        cls.client = connect(cls.server)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__()

    def create(self, prompt=START, **fields):
        body = dict({"ignore_eos": True}, **fields.pop("extra_body", {}))
        return self.client.completions.create(model=NAME, prompt=prompt, extra_body=body,
                                              **dict({"temperature": 0, "max_tokens": 24}, **fields))

    def chat(self, messages=None, **fields):
        body = dict({"ignore_eos": True}, **fields.pop("extra_body", {}))
        return self.client.chat.completions.create(model=NAME, messages=messages or [{"role": "user", "content": "Hello"}],
                                                   extra_body=body, **dict({"temperature": 0, "max_tokens": 24}, **fields))

    def refuses(self, param, call, code=None):
        with self.assertRaises(openai.BadRequestError) as caught:
            call()
        self.assertEqual(caught.exception.param, param, caught.exception)
        if code:
            self.assertEqual(caught.exception.code, code)
        return str(caught.exception)


class CompletionsTest(ServedTest):
    # --- several choices

    def test_each_choice_has_its_own_seed(self):
        ask = dict(temperature=1, max_tokens=16)
        alone = [self.create(seed=7 + i, **ask).choices[0].text for i in range(4)]
        answer = self.create(seed=7, n=4, **ask)
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2, 3])
        self.assertEqual([c.text for c in answer.choices], alone)
        self.assertEqual(len(set(alone)), 4)
        prompt = len(ids_of(START))
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.completion_tokens), (prompt, 64))
        self.assertEqual(answer.usage.total_tokens, prompt + 64)
        self.assertGreater(len({c.text for c in self.create(n=3, **ask).choices}), 1, "random seeds differ, too")

    def test_several_prompts(self):
        prompts = [START, "<|endoftext|>The", "<|endoftext|>Der"]
        ask = dict(temperature=1, seed=3, max_tokens=12)
        alone = [[c.text for c in self.create(p, n=2, **ask).choices] for p in prompts]
        answer = self.create(prompts, n=2, **ask)
        self.assertEqual([c.text for c in answer.choices], sum(alone, []), "each prompt's choices are those that it gets alone")
        self.assertEqual([c.index for c in answer.choices], list(range(6)))
        self.assertEqual(answer.usage.prompt_tokens, sum(len(ids_of(p)) for p in prompts))
        again = self.create([ids_of(p) for p in prompts], n=2, **ask)
        self.assertEqual([c.text for c in again.choices], sum(alone, []))

    def test_a_stream_of_several_choices(self):
        ask = dict(n=3, seed=5, temperature=1, max_tokens=20)
        expected = self.create(**ask)
        texts, finished = ["", "", ""], []
        *chunks, last = self.create(stream=True, stream_options={"include_usage": True}, **ask)
        for chunk in chunks:
            self.assertEqual(len(chunk.choices), 1)
            choice = chunk.choices[0]
            self.assertNotIn(choice.index, finished)
            texts[choice.index] += choice.text
            if choice.finish_reason:
                finished.append(choice.index)
                self.assertEqual(choice.finish_reason, "length")
        self.assertEqual(texts, [c.text for c in expected.choices])
        self.assertEqual(sorted(finished), [0, 1, 2])
        self.assertEqual((last.usage.prompt_tokens, last.usage.completion_tokens),
                         (expected.usage.prompt_tokens, expected.usage.completion_tokens))

    def test_echo(self):
        answer = self.create()
        self.assertEqual(self.create(echo=True).choices[0].text, START + answer.choices[0].text)
        self.assertEqual(self.create(ids_of(START), echo=True).choices[0].text, START + answer.choices[0].text)
        chunks = list(self.create(echo=True, stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), START + answer.choices[0].text)

    # --- sampling

    def test_logit_bias_forces_and_forbids(self):
        forced = ids_of(" the")
        self.assertEqual(len(forced), 1)
        text = self.create(temperature=1, seed=1, max_tokens=5, logit_bias={str(forced[0]): 100}).choices[0].text
        self.assertEqual(text, " the" * 5)
        first = self.create(max_tokens=1).choices[0].text
        other = self.create(max_tokens=1, logit_bias={str(token_texts()[first]): -100}).choices[0].text
        self.assertNotEqual(other, first)

    def test_truncation_to_the_most_probable_is_greedy(self):
        greedy = self.create().choices[0].text
        for fields in (dict(extra_body={"top_k": 1}), dict(top_p=0), dict(extra_body={"min_p": 1})):
            self.assertEqual(self.create(temperature=1.5, seed=9, **fields).choices[0].text, greedy, fields)
        self.assertNotEqual(self.create(temperature=1.5, seed=9).choices[0].text, greedy)

    def test_penalties_break_repetition(self):
        def repeats(**fields):
            generated = ids_of(self.create("<|endoftext|>the the the the the", max_tokens=60, **fields).choices[0].text)
            return len(generated) - len(set(generated))

        plain = repeats()
        self.assertGreater(plain, 20, "the prompt no longer makes the model repeat itself: choose another")
        self.assertLess(repeats(frequency_penalty=2), plain)
        self.assertLess(repeats(presence_penalty=2), plain)
        self.assertLess(repeats(extra_body={"repetition_penalty": 1.8}), plain)

    def test_the_same_seed_alone_and_under_load(self):
        ask = dict(temperature=1, max_tokens=40, top_p=0.95, frequency_penalty=0.3, extra_body={"top_k": 200, "min_p": 0.001})
        expected = [self.create(seed=i, **ask).choices[0].text for i in range(4)]
        with ThreadPoolExecutor(16) as pool:
            others = [pool.submit(self.create, START + "x" * i, seed=i, n=2, logprobs=3, **ask) for i in range(8)]
            again = [pool.submit(self.create, seed=i % 4, **ask) for i in range(8)]
            self.assertEqual([a.result().choices[0].text for a in again], expected * 2)
            for other in others:
                other.result()

    # --- where answers end

    def test_stop_strings(self):
        whole = self.create(max_tokens=60).choices[0].text
        # Across token borders: it begins inside one token and ends inside another.
        stop = whole[11:17]
        end = whole.index(stop)
        answer = self.create(max_tokens=60, stop=[stop, "never in any text \u2603"])
        choice = answer.choices[0]
        self.assertEqual((choice.text, choice.finish_reason, choice.stop_reason), (whole[:end], "stop", stop))
        self.assertLess(answer.usage.completion_tokens, 60)
        chunks = list(self.create(max_tokens=60, stop=stop, stream=True))
        self.assertEqual("".join(c.choices[0].text for c in chunks), whole[:end])
        self.assertEqual((chunks[-1].choices[0].finish_reason, chunks[-1].choices[0].stop_reason), ("stop", stop))
        included = self.create(max_tokens=60, stop=stop, extra_body={"include_stop_str_in_output": True})
        self.assertEqual(included.choices[0].text, whole[:end] + stop)
        not_met = self.create(max_tokens=60, stop=whole[-3:] + "\u2603").choices[0]
        self.assertEqual((not_met.text, not_met.finish_reason, not_met.stop_reason), (whole, "length", None))

    def test_stop_tokens(self):
        generated = self.greedy_ids(8)
        at = next(i for i in range(2, 8) if generated[i] not in generated[:i])
        answer = self.create(max_tokens=8, extra_body={"stop_token_ids": [generated[at]]})
        choice = answer.choices[0]
        self.assertEqual((choice.text, choice.finish_reason), (TOKENIZER.decode(generated[:at]), "stop"))
        self.assertEqual((choice.stop_reason, answer.usage.completion_tokens), (generated[at], at + 1))

    def test_min_tokens(self):
        bias = {str(EOS): 100}
        self.assertEqual(self.create(logit_bias=bias, extra_body={"ignore_eos": False}).usage.completion_tokens, 1)
        later = self.create(logit_bias=bias, extra_body={"ignore_eos": False, "min_tokens": 5})
        self.assertEqual((later.usage.completion_tokens, later.choices[0].finish_reason), (6, "stop"))
        self.assertIsNone(later.choices[0].stop_reason)

    def test_special_tokens_in_the_text(self):
        bias = {str(EOS): 100}
        self.assertEqual(self.create(max_tokens=3, logit_bias=bias).choices[0].text, "")
        shown = self.create(max_tokens=3, logit_bias=bias, extra_body={"skip_special_tokens": False})
        self.assertEqual(shown.choices[0].text, "<|endoftext|>" * 3)

    # --- log-probabilities

    def greedy_ids(self, count):
        names = self.create(max_tokens=count, logprobs=0).choices[0].logprobs.tokens
        texts = token_texts()
        return [texts[name] for name in names]

    def test_logprobs_are_those_of_the_logits(self):
        choice = self.create(max_tokens=12, logprobs=5).choices[0]
        found = choice.logprobs
        self.assertEqual({len(l) for l in (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset)}, {12})
        self.assertEqual("".join(found.tokens), choice.text)
        self.assertEqual(found.text_offset, [len("".join(found.tokens[:i])) for i in range(12)])
        texts = token_texts()
        generated = [texts[name] for name in found.tokens]
        expected = logprobs_of(ids_of(START), generated)
        for i, row in enumerate(expected):
            self.assertAlmostEqual(found.token_logprobs[i], row[generated[i]], places=4)
            self.assertEqual(len(found.top_logprobs[i]), 5)
            best = np.sort(row)[::-1][:5]
            self.assertTrue(np.allclose(list(found.top_logprobs[i].values()), best, atol=1e-4), (found.top_logprobs[i], best))
            self.assertEqual(next(iter(found.top_logprobs[i])), found.tokens[i], "greedy takes the first")

    def test_logprobs_are_not_changed_by_the_way_of_choosing(self):
        the = ids_of(" the")[0]
        choice = self.create(max_tokens=1, temperature=0.3, seed=2, logprobs=2, logit_bias={str(the): 100}).choices[0]
        row = logprobs_of(ids_of(START), [the])[0]
        self.assertEqual(choice.text, " the")
        self.assertAlmostEqual(choice.logprobs.token_logprobs[0], row[the], places=4)
        self.assertEqual(len(choice.logprobs.top_logprobs[0]), 3, "the chosen one beside the two most probable")
        self.assertAlmostEqual(sum(math.exp(v) for v in row), 1, places=9)

    def test_logprobs_of_a_stream(self):
        ask = dict(max_tokens=30, logprobs=2, stop=["\u2603"])
        expected = self.create(**ask).choices[0]
        tokens, values, offsets, text = [], [], [], ""
        for chunk in self.create(stream=True, **ask):
            choice = chunk.choices[0]
            text += choice.text
            tokens += choice.logprobs.tokens
            values += choice.logprobs.token_logprobs
            offsets += choice.logprobs.text_offset
        self.assertEqual((text, tokens, values, offsets), (expected.text, expected.logprobs.tokens,
                                                           expected.logprobs.token_logprobs, expected.logprobs.text_offset))

    def test_no_logprobs_behind_a_stop_string(self):
        whole = self.create(max_tokens=40, logprobs=0).choices[0]
        stop = whole.text[20:26]
        choice = self.create(max_tokens=40, logprobs=0, stop=stop).choices[0]
        self.assertEqual(choice.text, whole.text[:whole.text.index(stop)])
        self.assertEqual(choice.logprobs.tokens, whole.logprobs.tokens[:len(choice.logprobs.tokens)])
        self.assertLess(choice.logprobs.text_offset[-1], len(choice.text))

    def test_cached_tokens_are_reported(self):
        usage = self.create("<|endoftext|>" + "a b c d " * 40, max_tokens=1).usage
        self.assertGreaterEqual(usage.prompt_tokens_details.cached_tokens, 0)
        self.assertLess(usage.prompt_tokens_details.cached_tokens, usage.prompt_tokens)

    def test_a_large_prompt_holds_up_nobody(self):
        large = "all work and no play " * 200000
        with ThreadPoolExecutor(3) as pool:
            slow = [pool.submit(self.refuses, "prompt", lambda: self.create(large), "context_length_exceeded") for _ in range(2)]
            for _ in range(20):
                self.assertEqual(call("GET", self.server.url + "/health", timeout=5)[0], 200)
            for s in slow:
                self.assertIn(str(CONTEXT), s.result())


class ChatTest(ServedTest):
    def test_a_chat(self):
        answer = self.chat()
        self.assertEqual((answer.object, answer.model), ("chat.completion", NAME))
        self.assertTrue(answer.id.startswith("chatcmpl-"))
        choice = answer.choices[0]
        self.assertEqual((choice.index, choice.finish_reason, choice.logprobs), (0, "length", None))
        self.assertEqual((choice.message.role, choice.message.refusal, choice.message.tool_calls), ("assistant", None, None))
        self.assertTrue(choice.message.content)
        self.assertEqual(answer.usage.completion_tokens, 24)
        self.assertEqual(answer.moiety, {"deployment": NAME, "masked_mass": 0})

    def test_the_prompt_is_what_the_template_makes(self):
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
        prompt = "<|endoftext|>System: Be brief.\n\nUser: Hello\n\nAssistant:"
        expected = self.create(prompt)
        answer = self.chat(messages)
        self.assertEqual(answer.choices[0].message.content, expected.choices[0].text)
        self.assertEqual(answer.usage.prompt_tokens, len(ids_of(prompt)))
        self.assertEqual(answer.usage.prompt_tokens, expected.usage.prompt_tokens)

    def test_it_goes_on_with_the_last_message(self):
        messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The answer is"}]
        expected = self.create("<|endoftext|>User: Hello\n\nAssistant: The answer is").choices[0].text
        body = {"continue_final_message": True}
        self.assertEqual(self.chat(messages, extra_body=body).choices[0].message.content, expected)
        self.refuses("continue_final_message", lambda: self.chat(messages, extra_body=dict(body, add_generation_prompt=True)))

    def test_a_stream(self):
        expected = self.chat().choices[0].message.content
        *chunks, last = self.chat(stream=True, stream_options={"include_usage": True})
        self.assertEqual({c.object for c in chunks}, {"chat.completion.chunk"})
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual([c.choices[0].delta.role for c in chunks[1:]], [None] * (len(chunks) - 1))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks), expected)
        self.assertEqual([c.choices[0].finish_reason for c in chunks[:-1]], [None] * (len(chunks) - 1))
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")
        self.assertEqual((last.choices, last.usage.completion_tokens), ([], 24))

    def test_the_clients_own_stream_helper(self):
        with self.client.chat.completions.stream(model=NAME, messages=[{"role": "user", "content": "Hello"}], max_tokens=16,
                                                 temperature=0, logit_bias={str(EOS): 100}, extra_body={"min_tokens": 5}) as stream:
            for _ in stream:
                pass
            choice = stream.get_final_completion().choices[0]
        self.assertEqual((choice.message.role, choice.finish_reason), ("assistant", "stop"))
        self.assertEqual(choice.message.content, self.chat(max_tokens=5).choices[0].message.content)

    def test_choices_stops_and_limits(self):
        answer = self.chat(n=2, seed=4, temperature=1)
        self.assertEqual([c.message.content for c in answer.choices],
                         [self.chat(seed=4 + i, temperature=1).choices[0].message.content for i in range(2)])
        text = self.chat().choices[0].message.content
        stopped = self.chat(stop=text[8:13]).choices[0]
        self.assertEqual((stopped.message.content, stopped.finish_reason), (text[:text.index(text[8:13])], "stop"))
        limited = self.client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "x"}],
                                                      max_completion_tokens=3, extra_body={"ignore_eos": True})
        self.assertEqual(limited.usage.completion_tokens, 3)

    def test_without_a_limit_the_context_is_one(self):
        answer = self.client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "the " * 500}],
                                                     temperature=0, extra_body={"ignore_eos": True})
        self.assertEqual(answer.usage.total_tokens, CONTEXT)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.refuses("messages", lambda: self.chat([{"role": "user", "content": "the " * 2000}]), "context_length_exceeded")

    def test_logprobs(self):
        choice = self.chat(logprobs=True, top_logprobs=3, max_tokens=10).choices[0]
        entries = choice.logprobs.content
        self.assertEqual(len(entries), 10)
        self.assertEqual(bytes(sum((e.bytes for e in entries), [])).decode(), choice.message.content)
        texts = token_texts()
        generated = [texts[e.token] for e in entries]
        rows = logprobs_of(ids_of("<|endoftext|>User: Hello\n\nAssistant:"), generated)
        for entry, row, token in zip(entries, rows, generated):
            self.assertAlmostEqual(entry.logprob, row[token], places=4)
            self.assertTrue(np.allclose([t.logprob for t in entry.top_logprobs], np.sort(row)[::-1][:3], atol=1e-4))
        streamed = [e for c in self.chat(logprobs=True, top_logprobs=3, max_tokens=10, stream=True)
                    for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
        self.assertEqual(streamed, entries)
        plain = self.chat(logprobs=True, max_tokens=2).choices[0].logprobs.content
        self.assertEqual([e.top_logprobs for e in plain], [[], []])

    def test_refused_by_name(self):
        user = {"role": "user", "content": "x"}
        image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
        self.assertIn("image_url", self.refuses("messages", lambda: self.chat([user, image])))
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        self.chat(tools=tools, tool_choice="auto")
        self.chat(tools=tools, tool_choice="none")
        wrong = [("tool_choice", dict(tools=tools, tool_choice="required")),
                 ("tool_choice", dict(tools=tools, tool_choice={"type": "function", "function": {"name": "f"}})),
                 ("response_format", dict(response_format={"type": "json_object"})),
                 ("top_logprobs", dict(top_logprobs=2)), ("n", dict(n=1000)), ("temperature", dict(temperature=3)),
                 ("modalities", dict(modalities=["audio"])), ("bananas", dict(extra_body={"bananas": 1})),
                 ("messages", dict(messages=[{"role": "robot", "content": "x"}]))]
        for param, fields in wrong:
            with self.subTest(param):
                self.refuses(param, lambda: self.chat(**fields))
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="gpt-9", messages=[user])


class ServersTest(unittest.TestCase):
    """Servers of other folders and flags."""

    def folder(self, without=(), **files):
        folder = tempfile.TemporaryDirectory(prefix="moiety-test-")
        self.addCleanup(folder.cleanup)
        for file in MODEL.iterdir():
            if file.name not in without:
                (Path(folder.name) / file.name).symlink_to(file)
        for name, content in files.items():
            target = Path(folder.name) / name.replace("__", ".")
            target.unlink(missing_ok=True)
            target.write_text(content if isinstance(content, str) else json.dumps(content))
        return Path(folder.name)

    def ask(self, server, **fields):
        status, answer = call("POST", server.url + "/v1/chat/completions",
                              dict({"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}, **fields))
        return status, answer

    def test_without_a_chat_template(self):
        folder = self.folder(without=("chat_template.jinja",))
        with Server(BIN, "--served-model-name", "m", model=folder) as server:
            status, answer = self.ask(server)
            self.assertEqual((status, answer["error"]["code"]), (400, "chat_template_missing"))
            for hint in ("chat_template.jinja", "--chat-template", "/v1/completions"):
                self.assertIn(hint, answer["error"]["message"])
            self.assertEqual(call("POST", server.url + "/v1/completions", {"model": "m", "prompt": "x"})[0], 200)
        with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
            template.write("{{ eos_token }}{{ messages[0].content }}")
            template.flush()
            with Server(BIN, "--served-model-name", "m", "--chat-template", template.name, model=folder) as server:
                status, answer = self.ask(server)
                self.assertEqual((status, answer["usage"]["prompt_tokens"]), (200, len(ids_of("<|endoftext|>Hello"))))

    def test_a_template_that_is_not_understood_or_refuses(self):
        folder = self.folder(chat_template__jinja="{% nonsense %}")
        with Server(BIN, "--served-model-name", "m", model=folder) as server:
            status, answer = self.ask(server)
            self.assertEqual((status, answer["error"]["code"]), (400, "chat_template_missing"))
            self.assertIn("nonsense", answer["error"]["message"])
        folder = self.folder(chat_template__jinja="{{ raise_exception('system messages only') }}")
        with Server(BIN, "--served-model-name", "m", model=folder) as server:
            status, answer = self.ask(server)
            self.assertEqual((status, answer["error"]["param"]), (400, "messages"))
            self.assertEqual(answer["error"]["message"], "the chat template: line 1: system messages only")

    def test_special_tokens_around_a_prompt(self):
        config = dict(json.loads((MODEL / "tokenizer_config.json").read_text()), tokenizer_class="GPTNeoXTokenizerFast",
                      add_bos_token=True, bos_token="<|endoftext|>")
        with Server(BIN, "--served-model-name", "m", model=self.folder(tokenizer_config__json=config)) as server:
            def complete(prompt, **fields):
                body = dict({"model": "m", "prompt": prompt, "temperature": 0, "ignore_eos": True}, **fields)
                answer = call("POST", server.url + "/v1/completions", body)[1]
                return answer["usage"]["prompt_tokens"], answer["choices"][0]["text"]

            ids = ids_of("The")
            begun = complete([EOS] + ids)
            self.assertEqual(complete("The"), begun)
            self.assertEqual(complete("The", add_special_tokens=False), complete(ids))
            self.assertEqual(complete("<|endoftext|>The", add_special_tokens=False), begun)
            # The chat template writes its own.
            messages = [{"role": "user", "content": "Hello"}]
            tokens = len(ids_of("<|endoftext|>User: Hello\n\nAssistant:"))
            for extra in (False, True):
                answer = self.ask(server, messages=messages, add_special_tokens=extra)[1]
                self.assertEqual(answer["usage"]["prompt_tokens"], tokens + extra)

    def test_defaults_of_the_checkpoint(self):
        config = {"eos_token_id": EOS, "do_sample": True, "temperature": 1.0, "top_k": 1, "max_new_tokens": 9, "num_beams": 3}
        folder = self.folder(generation_config__json=config)

        def texts(server, **fields):
            body = dict({"model": "m", "prompt": START, "ignore_eos": True}, **fields)
            return {call("POST", server.url + "/v1/completions", dict(body, seed=i))[1]["choices"][0]["text"] for i in range(4)}

        with Server(BIN, "--served-model-name", "m", model=folder) as server:
            greedy = texts(server)
            self.assertEqual(len(greedy), 1, "top_k = 1")
            self.assertEqual(len(texts(server, top_k=0)), 4, "the request's own field wins")
            status, answer = self.ask(server, max_tokens=None, ignore_eos=True)
            self.assertEqual((status, answer["usage"]["completion_tokens"]), (200, 9))
        with Server(BIN, "--served-model-name", "m", "--generation-config", "none", model=folder) as server:
            self.assertEqual(len(texts(server)), 4)
        greedy_folder = self.folder(generation_config__json={"do_sample": False})
        with Server(BIN, "--served-model-name", "m", model=greedy_folder) as server:
            self.assertEqual(texts(server), greedy)
            self.assertEqual(len(texts(server, temperature=1)), 4)

    def test_stop_strings_of_the_checkpoint(self):
        def complete(server, **fields):
            body = dict({"model": "m", "prompt": START, "temperature": 0, "ignore_eos": True, "max_tokens": 24}, **fields)
            choice = call("POST", server.url + "/v1/completions", body)[1]["choices"][0]
            return choice["text"], choice["stop_reason"]

        with Server(BIN, "--served-model-name", "m") as server:
            whole, _ = complete(server)
        first, second = whole[3:6], whole[8:10]
        folder = self.folder(generation_config__json={"stop_strings": [first]})
        with Server(BIN, "--served-model-name", "m", model=folder) as server:
            self.assertEqual(complete(server), (whole[:whole.index(first)], first))
            self.assertEqual(complete(server, stop=second), (whole[:whole.index(second)], second), "the request's own replace them")
            self.assertEqual(complete(server, stop=[]), (whole, None))
            self.assertEqual(complete(server, stop=None), (whole[:whole.index(first)], first))

    def test_a_template_for_tools(self):
        tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]

        def tokens(server, **fields):
            return self.ask(server, **fields)[1]["usage"]["prompt_tokens"]

        plain, with_tools = len(ids_of("plain")), len(ids_of("with tools: look"))
        self.assertNotEqual(plain, with_tools)
        named = [{"name": "default", "template": "plain"},
                 {"name": "tool_use", "template": "with tools: {{ tools[0].function.name }}"}]
        config = dict(json.loads((MODEL / "tokenizer_config.json").read_text()), chat_template=named)
        folder = self.folder(without=("chat_template.jinja",), tokenizer_config__json=config)
        with Server(BIN, "--served-model-name", "m", model=folder) as server:
            self.assertEqual(tokens(server), plain)
            self.assertEqual(tokens(server, tools=tools), with_tools)
            self.assertEqual(tokens(server, tools=tools, tool_choice="none"), plain)
            self.assertEqual(tokens(server, tools=[]), plain)
        folder = self.folder(chat_template__jinja="plain")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates/tool_use.jinja").write_text("{% nonsense %}")
        with Server(BIN, "--served-model-name", "m", model=folder) as server:
            self.assertEqual(tokens(server), plain)
            status, answer = self.ask(server, tools=tools)
            self.assertEqual((status, answer["error"]["code"], answer["error"]["param"]), (400, "chat_template_missing", "tools"))
            self.assertIn("nonsense", answer["error"]["message"])

    def test_a_text_on_which_the_tokenizer_takes_too_long(self):
        file = json.loads((MODEL / "tokenizer.json").read_text())
        file["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(?:a|aa)+[bc]"}, "content": "c"}
        with Server(BIN, "--served-model-name", "m", model=self.folder(tokenizer__json=file)) as server:
            for path, body, param in (("completions", {"prompt": "a" * 100}, "prompt"),
                                      ("chat/completions", {"messages": [{"role": "user", "content": "a" * 100}]}, "messages")):
                status, answer = call("POST", server.url + "/v1/" + path, dict(body, model="m", max_tokens=2))
                self.assertEqual((status, answer["error"]["param"]), (400, param))
                self.assertIn("(?:a|aa)+[bc]", answer["error"]["message"])
            self.assertEqual(call("POST", server.url + "/v1/completions", {"model": "m", "prompt": "aab", "max_tokens": 2})[0], 200)

    def test_several_choices_are_accepted_together_or_not_at_all(self):
        with Server(BIN, "--max-num-seqs", "1", "--max-queue", "2") as server, connect(server) as client:
            ask = dict(model=NAME, prompt=START, max_tokens=3, extra_body={"ignore_eos": True})
            for stream in (False, True):
                running = client.completions.create(stream=True, **dict(ask, max_tokens=900))
                next(iter(running))
                with self.assertRaises(openai.RateLimitError):
                    client.completions.create(n=3, stream=stream, **ask)
                wait_until(lambda: server.metric("moiety_requests_waiting") == 0, "nothing is left of it")
                running.close()
                wait_until(lambda: server.metric("moiety_requests_running") == 0, "nothing runs")
            self.assertEqual(client.completions.create(n=3, **ask).usage.completion_tokens, 9)
            with self.assertRaises(openai.BadRequestError) as caught:  # never possible: no reason to try again
                client.completions.create(n=4, **ask)
            self.assertEqual(caught.exception.param, "n")

    def test_a_client_that_leaves_ends_all_its_choices(self):
        with Server(BIN) as server, connect(server) as client:
            stream = client.completions.create(model=NAME, prompt=START, n=4, max_tokens=900, stream=True,
                                               extra_body={"ignore_eos": True})
            next(iter(stream))
            stream.close()
            wait_until(lambda: server.metric("moiety_requests_running") == 0, "nothing runs", timeout=10)
            self.assertLess(server.metric("moiety_generation_tokens_total"), 4 * 900)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
