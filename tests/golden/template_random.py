"""Random templates over the whole language, from a seed: most are odd, many fail, all are answered alike."""

import random

NAMES = ["n", "z", "neg", "f", "s", "e", "u", "sp", "yes", "no", "nil", "l", "el", "m", "d", "ed", "nested", "mixed", "messages",
         "people", "weird", "html", "multi", "nums", "missing", "x", "y", "ns", "loop"]
ATTRIBUTES = ["a", "b", "C", "x", "name", "role", "content", "items", "keys", "index", "first", "last", "length", "previtem", "0", "1"]
CONSTANTS = ["0", "1", "2", "-1", "3.5", "1e3", "true", "false", "none", "'a'", "''", "'l'", "', '", "\"it's\"", "'ß東'", "[]", "{}", "()",
             "[1, 'a']", "{'a': 1, 'b': none}", "(1, 2)", "'%s'", "'\\n'", "10"]
BINARY = ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "+", "~", "=="]
METHODS = ["upper()", "lower()", "strip()", "split()", "split(',')", "items()", "keys()", "values()", "get('a')", "get('zz', 1)", "title()",
           "replace('l', 'LL')", "startswith('H')", "find('o')", "join(['p', 'q'])", "count('l')", "splitlines()", "rstrip('d\\n')",
           "capitalize()", "index(1)", "isdigit()", "copy()", "swapcase()", "partition(' ')", "zfill(4)", "append(1)", "center(9, '*')"]
FILTERS = ["upper", "lower", "length", "first", "last", "list", "string", "int", "float", "abs", "sort", "unique|list", "reverse|list", "join",
           "join('-')", "tojson", "tojson(indent=2)", "trim", "title", "capitalize", "default('D')", "default('D', true)", "sum", "min", "max",
           "items|list", "dictsort", "map('string')|list", "map(attribute='name')|list", "select|list", "reject|list", "select('string')|list",
           "selectattr('role')|list", "rejectattr('age', 'gt', 25)|list", "batch(2)|list", "slice(2)|list", "round(1)", "replace('a', 'b')", "e",
           "safe", "indent(2)", "wordcount", "map('length')|list", "selectattr('content', 'string')|map(attribute='role')|join(' ')", "urlencode",
           "round", "map('upper')|join", "format(1)", "count", "tojson(sort_keys=true)", "attr('keys')|string|length", "unique", "map('abs')"]
TESTS = ["defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "true", "false",
         "odd", "even", "divisibleby 3", "eq 1", "in [1, 2]", "callable", "upper", "lower", "lt 5", "ne 'a'", "sameas none", "escaped"]
TEXTS = ["a", " ", "\n", "\n  ", "text\n", " <b> ", "é\t", "  \n\n", "{", "}", "%", "#"]


class Generator:
    def __init__(self, seed: int):
        self.rng = random.Random(seed)

    def expression(self, depth: int) -> str:
        if depth <= 0:
            return self.rng.choice(self.rng.choice([NAMES, NAMES, CONSTANTS]))
        inner = lambda: self.expression(depth - 1)  # noqa: E731
        match self.rng.randrange(16):
            case 0 | 1 | 2:
                return self.expression(0)
            case 3 | 4:
                return f"{inner()} {self.rng.choice(BINARY)} {inner()}"
            case 5:
                return f"({inner()})"
            case 6:
                return f"{self.rng.choice(['not ', '-', '+'])}{inner()}"
            case 7:
                return f"{self.primary()}.{self.rng.choice(ATTRIBUTES)}"
            case 8:
                return f"{self.primary()}[{inner()}]"
            case 9:
                bounds = [self.rng.choice(["", "", "1", "-1", "2", "-2", "n", "z", "nil", "s"]) for _ in range(3)]
                return f"{self.primary()}[{':'.join(bounds[:self.rng.randint(2, 3)])}]"
            case 10:
                return f"{self.primary()}.{self.rng.choice(METHODS)}"
            case 11 | 12:
                return f"{inner()}|{self.rng.choice(FILTERS)}"
            case 13:
                return f"{inner()} is {self.rng.choice(['', 'not '])}{self.rng.choice(TESTS)}"
            case 14:
                other = f" else {inner()}" if self.rng.random() < 0.7 else ""
                return f"{inner()} if {inner()}{other}"
            case _:
                items = ", ".join(inner() for _ in range(self.rng.randint(1, 3)))
                return self.rng.choice([f"[{items}]", f"({items},)", f"{{'k': {inner()}}}", f"range({self.rng.randint(-2, 4)})", f"({items})"])

    def primary(self) -> str:
        return self.rng.choice([*NAMES, *NAMES, "'abc'", "[3, 4]", f"({self.expression(1)})"])

    def tag(self, content: str) -> str:
        left = self.rng.choice(["", "", "", "-", "+"])
        right = self.rng.choice(["", "", "", "-", "+"])
        return f"{{%{left} {content} {right}%}}"

    def output(self, depth: int) -> str:
        return f"{{{{{self.rng.choice(['', '', '-'])} {self.expression(depth)} {self.rng.choice(['', '', '-'])}}}}}"

    def body(self, depth: int) -> str:
        return "".join(self.statement(depth) for _ in range(self.rng.randint(1, 3)))

    def statement(self, depth: int) -> str:
        tag, body, expression = self.tag, self.body, self.expression
        choice = self.rng.randrange(14 if depth > 0 else 4)
        name = self.rng.choice(["x", "y", "n", "l", "ns", "q"])
        match choice:
            case 0 | 1:
                return self.rng.choice(TEXTS)
            case 2 | 3:
                return self.output(2)
            case 4 | 5:
                middle = tag("else") + body(depth - 1) if self.rng.random() < 0.5 else ""
                if self.rng.random() < 0.3:
                    middle = tag(f"elif {expression(2)}") + body(depth - 1) + middle
                return tag(f"if {expression(2)}") + body(depth - 1) + middle + tag("endif")
            case 6 | 7:
                target = self.rng.choice(["x", "y", "x", "x, y"])
                test = f" if {expression(1)}" if self.rng.random() < 0.3 else ""
                ending = tag("else") + body(depth - 1) if self.rng.random() < 0.3 else ""
                stop = tag(f"if {expression(1)}") + tag(self.rng.choice(["break", "continue"])) + tag("endif") if self.rng.random() < 0.3 else ""
                loop = self.rng.choice(["", "{{ loop.index }}", "{{ loop.last }}", "{{ loop.length }}", "{{ loop.previtem }}", "{{ loop.nextitem }}"])
                # A conditional expression would be read as the loop's condition.
                return tag(f"for {target} in ({expression(1)}){test}") + stop + loop + body(depth - 1) + ending + tag("endfor")
            case 8 | 9:
                return tag(f"set {name} = {expression(2)}")
            case 10:
                filters = self.rng.choice(["", "", " | upper", " | trim", " | length"])
                return tag(f"set {name}{filters}") + body(depth - 1) + tag("endset")
            case 11:
                return tag(f"set ns = namespace(a={expression(1)})") + body(depth - 1) + tag(f"set ns.{self.rng.choice('ab')} = {expression(1)}")
            case 12:
                parameters = self.rng.choice(["", "x", "x, y=2", "x=n", "y=x"])
                arguments = self.rng.choice(["", expression(1), f"{expression(1)}, {expression(1)}", f"y={expression(1)}"])
                return tag(f"macro {name}_({parameters})") + body(depth - 1) + tag("endmacro") + f"{{{{ {name}_({arguments}) }}}}"
            case _:
                kind, end = self.rng.choice([("filter upper", "endfilter"), ("generation", "endgeneration"), ("with x = 1, y = n", "endwith"),
                                             ("filter replace('a', 'b')", "endfilter")])
                return tag(kind) + body(depth - 1) + tag(end)

    def template(self) -> str:
        if self.rng.random() < 0.45:
            return "".join(f"{{{{ {self.expression(3)} }}}}" for _ in range(self.rng.randint(1, 2)))
        return self.body(3)


def random_templates(seed: int, count: int) -> list[str]:
    generator = Generator(seed)
    return [generator.template() for _ in range(count)]
