"""Streams that run without end against a cluster, each answer compared with what one process gives for the same request."""
import http.client
import json
import random
import threading
import time


def request_body(model, rng, tokens):
    """A completion with sampling, so that a wrong bit shows soon; its log-probabilities are compared too."""
    return {"model": model, "prompt": [0] + [rng.randrange(2, 8000) for _ in range(rng.randrange(2, 24))], "max_tokens": tokens,
            "temperature": 0.8, "seed": rng.randrange(1 << 30), "ignore_eos": True, "logprobs": 0}


class Answer:
    """What came of one streamed completion."""

    def __init__(self):
        self.text, self.logprobs, self.finish, self.error, self.done = [], [], None, None, False
        self.gap, self.gap_at = 0.0, 0.0  # the longest silence after the first token, and when it ended

    def content(self):
        return "".join(self.text), self.logprobs, self.finish


def stream(host, port, body, timeout=120, on_frame=None):
    """One streamed completion, read to its end. Nothing is raised: an unexpected end is an error of the answer."""
    answer = Answer()
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("POST", "/v1/completions", json.dumps(dict(body, stream=True)), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            answer.error = f"HTTP {response.status}: {response.read().decode()[:200]}"
            return answer
        last = None
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                answer.done = True
                continue
            now = time.monotonic()
            if last is not None and now - last > answer.gap:
                answer.gap, answer.gap_at = now - last, now
            last = now
            if on_frame:
                on_frame(now)
            frame = json.loads(line[6:])
            if "error" in frame:
                answer.error = frame["error"]["code"]
                continue
            for choice in frame.get("choices", []):
                answer.text.append(choice["text"])
                if choice.get("logprobs"):
                    answer.logprobs += choice["logprobs"]["token_logprobs"]
                answer.finish = choice["finish_reason"] or answer.finish
        if not answer.done and answer.error is None:
            answer.error = "the stream broke off"
    except (OSError, http.client.HTTPException, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return answer


class Load:
    """`streams` clients that send one request after the other until stop(). `expected` maps a request's number to what
    embedded mode answers. Counts: finished, wrong (other bits), failed (an error, or no end)."""

    def __init__(self, addresses, bodies, expected, streams, seed=0):
        self.addresses, self.bodies, self.expected = addresses, bodies, expected
        self.lock = threading.Lock()
        self.finished, self.wrong, self.failed, self.tokens = 0, [], [], 0
        self.longest = {}  # client: (gap, when it ended) since the last take_pause()
        self.last_frame = [None] * streams
        self.stopping = False
        self.threads = [threading.Thread(target=self._client, args=(i, random.Random(f"{seed}-{i}")), daemon=True)
                        for i in range(streams)]
        for thread in self.threads:
            thread.start()

    def _client(self, index, rng):
        while not self.stopping:
            number = rng.randrange(len(self.bodies))
            host, port = self.addresses[index % len(self.addresses)]
            self.last_frame[index] = time.monotonic()

            def on_frame(now):
                gap, self.last_frame[index] = now - self.last_frame[index], now
                if gap > self.longest.get(index, 0.0):
                    self.longest[index] = gap

            answer = stream(host, port, self.bodies[number], on_frame=on_frame)
            self.last_frame[index] = None
            with self.lock:
                if answer.error:
                    self.failed.append((self.bodies[number]["model"], answer.error))
                    time.sleep(0.05)
                elif answer.content() != self.expected[number]:
                    self.wrong.append((number, first_difference(answer.content(), self.expected[number])))
                else:
                    self.finished += 1
                self.tokens += len(answer.logprobs)

    def take_pause(self):
        """The longest silence that any stream saw since the last call, seconds; a silence that lasts counts."""
        now = time.monotonic()
        pause = max([now - at for at in self.last_frame if at is not None] + list(self.longest.values()) + [0.0])
        self.longest = {}
        return pause

    def stop(self, timeout=120):
        """Lets every stream end; the number of those that do not."""
        self.stopping = True
        deadline = time.monotonic() + timeout
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self.threads)


def first_difference(got, want):
    if got[2] != want[2]:
        return f"ended with {got[2]} instead of {want[2]}"
    for i, (a, b) in enumerate(zip(got[1], want[1])):
        if a != b:
            return f"log-probability {i}: {a!r} instead of {b!r}"
    return f"{len(got[1])} tokens instead of {len(want[1])}, or another text"


def expected_answers(address, bodies):
    """What a server that never fails answers, several at a time."""
    answers = [None] * len(bodies)
    numbers = iter(range(len(bodies)))
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            answer = stream(*address, bodies[number])
            if answer.error:
                raise AssertionError(f"embedded mode failed: {answer.error}")
            answers[number] = answer.content()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in answers:
        raise AssertionError("embedded mode did not answer every request")
    return answers
