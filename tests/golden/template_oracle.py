"""Renders chat templates as Hugging Face transformers does, with PyPI jinja2."""

import datetime
import json

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}` marks what the assistant says; it prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("render"), [], [], body).set_lineno(line)

    def render(self, caller):
        return caller()


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def strftime_now(format):
    return datetime.datetime.now().strftime(format)


def environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    return made


class Oracle:
    """Compiles each template once."""

    def __init__(self):
        self.environment = environment()
        self.compiled = {}

    def render(self, template: str, variables: dict) -> dict:
        """{"text"}, {"parse_error"} or {"render_error"}, as the program template_check answers."""
        if template not in self.compiled:
            try:
                self.compiled[template] = self.environment.from_string(template)
            except Exception as error:  # whatever Jinja2 or Python finds wrong
                self.compiled[template] = error
        compiled = self.compiled[template]
        if isinstance(compiled, Exception):
            return {"parse_error": f"{type(compiled).__name__}: {compiled}"}
        try:
            return {"text": compiled.render(**variables)}
        except Exception as error:
            return {"render_error": f"{type(error).__name__}: {error}"}


SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(config: dict) -> dict:
    """The variables that a tokenizer_config.json gives to every render."""
    found = {}
    for name in SPECIAL_TOKENS:
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            found[name] = token
    if config.get("additional_special_tokens"):
        found["additional_special_tokens"] = config["additional_special_tokens"]
    return found
