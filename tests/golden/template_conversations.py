"""Conversations to render real chat templates with: what OpenAI-style clients send."""

import itertools
from collections.abc import Iterator

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place — today's & tomorrow's \"facts\" <b>",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City\nor village"},
                "days": {"type": "integer", "minimum": 0, "maximum": 18446744073709551615, "default": 1},
                "units": {"type": "string", "enum": ["°C", "°F", None], "nullable": True},
                "where": {
                    "type": "object",
                    "properties": {
                        "lat": {"type": "number", "minimum": -90.5, "maximum": 1e22},
                        "path": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
                    },
                    "required": ["lat"],
                    "additionalProperties": False,
                },
                "any": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": {"type": "string"}}]},
            },
            "required": ["place"],
        },
        "return": {"type": "object"},
    },
}
NOTHING = {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}}
EMOJI = {
    "type": "function",
    "function": {
        "name": "emoji",
        "description": "😀 表情符号\u2028\x7f",
        "parameters": {"type": "object", "properties": {"x": {"type": ["string", "null"], "default": 1.5e-7}}},
    },
}


def system(text="You are helpful."):
    return {"role": "system", "content": text}


def user(text="Hello!"):
    return {"role": "user", "content": text}


def assistant(text="Hi, how can I help?", **more):
    return {"role": "assistant", "content": text, **more}


def tool(text='{"temperature": 21.5}', **more):
    return {"role": "tool", "content": text, **more}


def call(name="get_weather", arguments=None, number=1):
    function = {"name": name, "arguments": {"place": "Zürich", "days": 2} if arguments is None else arguments}
    return {"id": f"call_{number:05}", "type": "function", "function": function}


TEXTS = ["", " ", "  two\n\nlines \n", "Ünïcödé 東京 😀👩‍👩‍👧 \u202eabc", "{{ x }} {% if %} {# no #}", "<tool_response>x</tool_response>",
         "<think>\nhm\n</think>\n\nfour", "<think></think>", "a</think>b</think>c", "\\n \\u0041 \"quoted\" 'single'", "tab\there\r\nend",
         "<|im_end|>", "0", "null"]


def message_lists() -> Iterator[list[dict]]:
    yield [user()]
    yield [system(), user()]
    yield [system(""), user("")]
    yield [user(), assistant(), user("And now?")]
    yield [system(), user(), assistant(), user("And now?"), assistant("Bye.")]
    yield [system(), system("Be brief."), user(), assistant(), system("Late."), user("x")]
    yield [{"role": "developer", "content": "Do as told."}, user()]
    for text in TEXTS:
        yield [user(text)]
        yield [system(text), user("q"), assistant(text), user(text)]
        yield [user("q"), assistant(text)]
        yield [user("q"), assistant(text, reasoning_content=text), user("r")]
    yield [user("weather?"), assistant(None, tool_calls=[call()]), tool(tool_call_id="call_00001"), assistant("21.5")]
    yield [user("weather?"), assistant("", tool_calls=[call()]), tool(tool_call_id="call_00001", name="get_weather")]
    yield [system(), user("weather?"), assistant("Let me see.", tool_calls=[call(), call("now", {}, 2)]),
           tool(tool_call_id="call_00001"), tool("12:00", tool_call_id="call_00002"), assistant("It is late."), user("thanks")]
    yield [user("weather?"), assistant("", tool_calls=[call(arguments='{"place": "Bern"}')], reasoning_content="I need a tool."),
           tool(), assistant("", reasoning_content="So."), user("go on")]
    nested = {"a": [1, 2.0, -0.0, 1e100, None, True, {"b": "ü"}], "": {}, "list": [], "text": "\x01\u2028</s>"}
    yield [user("q"), assistant(None, tool_calls=[call("deep", nested)]), tool("😀"), user("w")]
    yield [user("q"), assistant(None, tool_calls=[call(arguments="{}")]), tool([{"type": "text", "text": "part"}])]
    yield [user("q"), assistant("x", thinking="analysis text"), user("w"), assistant("y", thinking="more")]
    yield [assistant(), user()]
    yield [user(), user("again")]
    yield [{"role": "user", "content": [{"type": "text", "text": "in parts"}, {"type": "text", "text": "two"}]}]
    yield [{"role": "other", "content": "x"}]
    yield [{"role": "user"}]
    yield []
    yield [message for i in range(40) for message in (user(f"question {i}"), assistant(f"<think>t{i}</think>answer {i}"))]


TOOLS = [None, [WEATHER], [WEATHER, NOTHING, EMOJI], []]
OPTIONS = [{}, {"enable_thinking": False}, {"enable_thinking": True, "reasoning_effort": "high", "thinking": True},
           {"documents": [{"title": "T", "text": "body", "doc_id": 1}], "date_string": "26 Jul 2024"}]


def renderings() -> Iterator[dict]:
    """Variables of one rendering each: what apply_chat_template would pass, special tokens excepted."""
    for number, messages in enumerate(message_lists()):
        for prompt, tools in itertools.product((True, False), TOOLS):
            yield {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt,
                   **OPTIONS[(number + prompt) % len(OPTIONS)]}
