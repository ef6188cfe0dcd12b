"""Small templates for each part of the language, with what they are rendered with. Both engines must give the same
text, or both must fail."""

CONTEXT = {
    "n": 7, "z": 0, "neg": -3, "f": 2.5, "big": 9007199254740993, "huge": 18446744073709551615, "s": "Hello, World",
    "e": "", "u": "straße ÉCLAIR 東京 😀", "sp": "  padded\t\n", "yes": True, "no": False, "nil": None, "l": [3, 1, 2],
    "el": [], "m": ["b", "A", "c", "a", "B"], "d": {"b": 1, "a": [1, 2], "C": {"x": "y"}}, "ed": {},
    "nested": [[1, 2], [3, [4, 5]], []], "mixed": [1, "1", 1.0, True, None, "x"],
    "messages": [{"role": "system", "content": "Sys"}, {"role": "user", "content": " Hi "},
                 {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                 {"role": "tool", "content": "<ok>"}],
    "people": [{"name": "Zoe", "age": 30, "city": "B"}, {"name": "adam", "age": 25}, {"name": "Bob", "age": 30, "city": "a"}],
    "weird": {"items": [1], "keys": "k", "get": 5, "a b": 1, "__x": 2, "_y": 3, "1": "one", "pop": 4, "copy": "c"},
    "html": "<a href=\"x\">'&'</a>", "quote": "it's \"q\"", "single": "it's", "ctl": "\x00\x1b\x7f\u00a0\u2028\ud7ff\ue000",
    "multi": "line1\nline2\r\nline3\n\n  line5", "float": 1e16, "tiny": 1e-5, "nums": [1, 2.5, -3, True],
}

WHITESPACE = """
a\n{% if yes %}\nb\n{% endif %}\nc|||  {% if yes %}x{% endif %}  |||a {%- if yes -%} b {%- endif -%} c
|||a\n  {%+ if yes %}\n b\n  {%+ endif +%}\nc|||{{- n -}}  x  {{ n -}}\n y|||a  \n\n  {{- n }}|||{# c #}\nx|||a\n  {# c #}\n  b
|||  {#- c -#}  x|||a {#+ c +#}\nb|||{% raw %}\n{{ x }} {% y %}{# z #}{% endraw %}\nq|||{%- raw -%}  {{ a }}  {%- endraw -%}  b
|||a\n  {% raw %} {{ r }}\n  {% endraw %}\n|||{{ n }}\n{{ n }}\n|||\n\n{{ n }}\n\n\n|||x\r\ny\rz\r\n|||{% set x = 1 %}\n\n{{ x }}
|||  {% set x = 1 +%}\n{{ x }}|||{%if yes%}1{%endif%}|||{%   if   yes   %}1{%   endif   %}|||\t{% if yes %}\t1\t{% endif %}\t
|||{{ '{{' }}{{ '}}' }}{{ "{%" }}|||{ % { { } } %}|||{{ {'a': {'b': 1}} }}|||{{ {'a': {'b': 1}}['a']['b'] }}|||{{{'a':1}.a}}
|||a {##} b|||{#-#}x|||{#}#}|||{{ n }}{|||{{ n }}{#x|||{% if yes|||{{ n|||{{ "a|||{% raw %}x|||{{ n } }|||{%- %}|||{{}}|||{% %}|||%}|||#}
|||{{ 'a\\nb\\tc\\\\d\\'e\\"f\\x41\\u00e9\\U0001F600\\101\\q' }}|||{{ "a\\\nb" }}|||{{ 'é\\é€\\€😀\\😀' }}|||{{ "\\N{DASH}" }}|||{{ "\\x4" }}
|||{{ 'a' 'b' "c" }}|||{{ 'a'\n'b' }}|||{{ "multi\nline" }}|||a\u00a0{%- if yes -%}\u3000b\u2003{% endif -%}\u2028c|||  \u00a0{% if yes %}x{% endif %}
""".strip("\n").replace("\n|||", "|||").split("|||")

LITERALS = """
{{ 1 }}|{{ 1_000 }}|{{ 0x1F }}|{{ 0b101 }}|{{ 0o17 }}|{{ 1.5 }}|{{ 1e3 }}|{{ 1.5e-7 }}|{{ 1E5 }}|{{ 100000000000000000.0 }}|{{ 1e22 }}|{{ 0.1 + 0.2 }}
{{ true }}|{{ True }}|{{ none }}|{{ None }}|{{ false }}|{{ TRUE }}|{{ [] }}|{{ [1, 'a', 2.0, none, true] }}|{{ () }}|{{ (1,) }}|{{ (1, 2) }}|{{ 1, 2 }}
{{ {} }}|{{ {'a': 1, "b": [1]} }}|{{ {1: 2, 1.0: 3, true: 4} }}|{{ {'a': 1, 'a': 2} }}|{{ {[1]: 2} }}|{{ {(1, 2): 3} }}|{{ {none: 1, 2.5: 3} }}|{{ [1,] }}|{{ {'a': 1,} }}
{{ 1.0 }}|{{ -0.0 }}|{{ 1e-4 }}|{{ 1e-5 }}|{{ 123456789.125 }}|{{ 1e15 }}|{{ 1e16 }}|{{ 5e-324 }}|{{ 1.7976931348623157e308 }}|{{ 012 }}|{{ 1.}}|{{ .5 }}|{{ 1__0 }}|{{ 0xG }}
{{ "a" ~ 1 ~ none ~ [1] ~ 1.0 }}|{{ ['it\\'s', "q\\"", 'both\\'"'] }}|{{ [quote, single, ctl, u, multi] }}|{{ ctl }}|{{ big }}|{{ huge }}|{{ huge + 1 }}|{{ float }}|{{ tiny }}
{{ nums }}|{{ mixed }}|{{ nested }}|{{ d }}|{{ messages }}|{{ [missing] }}|{{ {'a': missing} }}|{{ range(3) }}|{{ range(1, 10, 3) }}|{{ [range(2)] }}|{{ d.items() }}|{{ d.keys() }}|{{ d.values() }}
{{ 9223372036854775807 + 1 }}|{{ -9223372036854775808 - 1 }}|{{ 2 ** 64 }}|{{ 9223372036854775807 * 9223372036854775807 }}|{{ 170141183460469231731687303715884105727 }}
{{ nil.x }}|{{ n.real }}|{{ f.imag }}|{{ 'a'.b }}|{{ é }}|{{ é is defined }}|{{ _x is defined }}|{{ 1 if no }}|{{ (1 if no) is undefined }}|{{ 1 if no else 2 if no else 3 }}
"""

OPERATORS = """
{{ 7 / 2 }}|{{ 7 // 2 }}|{{ -7 // 2 }}|{{ 7 % 3 }}|{{ -7 % 3 }}|{{ 7 % -3 }}|{{ 7.5 % 2 }}|{{ -7.5 % 2 }}|{{ 7.5 // 2 }}|{{ -7.5 // 2 }}|{{ 2 ** 10 }}|{{ 2 ** -1 }}|{{ 2 ** 3 ** 2 }}
{{ 1 / 0 }}|{{ 1 // 0 }}|{{ 1 % 0 }}|{{ 1.0 / 0 }}|{{ 1.5 % 0 }}|{{ 0 ** -1 }}|{{ 0.0 ** -1 }}|{{ 4 ** 0.5 }}|{{ -2 ** 2 }}|{{ - 2 }}|{{ +true }}|{{ -yes }}|{{ -s }}|{{ +nil }}
{{ 1 + 2 * 3 - 4 }}|{{ (1 + 2) * 3 }}|{{ 'a' + 'b' }}|{{ 'a' * 3 }}|{{ 3 * 'ab' }}|{{ 'a' * -1 }}|{{ [1] * 2 }}|{{ (1,) * 2 }}|{{ [1] + [2] }}|{{ (1,) + (2,) }}|{{ [1] + (2,) }}|{{ 'a' + 1 }}
{{ 1 + nil }}|{{ nil + 1 }}|{{ 'a' + nil }}|{{ missing + 1 }}|{{ 'a' + missing }}|{{ missing ~ 'a' }}|{{ -missing }}|{{ d + d }}|{{ 'a' - 'b' }}|{{ yes + yes }}|{{ yes * 'ab' }}|{{ 1.0 * 'a' }}
{{ 1 < 2 < 3 }}|{{ 1 < 3 < 2 }}|{{ 3 > 2 == 2 }}|{{ 1 == 1.0 }}|{{ 1 == true }}|{{ '1' == 1 }}|{{ [1, 2] == [1, 2.0] }}|{{ [1] == (1,) }}|{{ {'a': 1} == {'a': 1.0} }}|{{ nil == none }}|{{ nil == no }}
{{ 'a' < 'b' }}|{{ 'B' < 'a' }}|{{ 'a' < 1 }}|{{ [1, 2] < [1, 3] }}|{{ [1] < [1, 0] }}|{{ (1, 'a') < (1, 2) }}|{{ {} < {} }}|{{ nil < 1 }}|{{ missing < 1 }}|{{ missing == missing }}|{{ missing == other_missing }}|{{ missing == nil }}
{{ 1 in [1, 2] }}|{{ 1 not in [1, 2] }}|{{ 'a' in 'abc' }}|{{ '' in 'abc' }}|{{ 1 in 'abc' }}|{{ 'a' in d }}|{{ 'x' in nil }}|{{ 'x' in 5 }}|{{ 'x' in missing }}|{{ missing in l }}|{{ missing in 'abc' }}|{{ [1] in d }}
{{ 1 in range(3) }}|{{ 'b' in d.keys() }}|{{ ('b', 1) in d.items() }}|{{ 1 in d.values() }}|{{ 1.0 in l }}|{{ true in [1] }}|{{ not 1 in [1] }}|{{ not yes }}|{{ not e }}|{{ not not n }}|{{ not missing }}
{{ yes and 5 }}|{{ 0 or 'x' }}|{{ no and missing.x }}|{{ e or nil }}|{{ el or ed or 'last' }}|{{ 1 and 2 and 3 }}|{{ nil or missing or 0 }}|{{ yes or missing.x }}|{{ not yes or yes }}|{{ 1 if yes else missing.y }}
{{ 9007199254740993 == 9007199254740992.0 }}|{{ 9007199254740993 < 9007199254740992.0 }}|{{ 9007199254740993 > 9007199254740992.0 }}|{{ 1e400 > 5 }}|{{ huge > 1 }}|{{ 1 ~ 2 + 3 }}|{{ 1 + 2 ~ 3 }}|{{ 'a' ~ 'b' * 2 }}
{{ '%s is %d' % ('x', 3) }}|{{ '%s' % 'x' }}|{{ '%s' % [1] }}|{{ '%05.2f|%-6s|%+d|%x|%X|%o|%e|%g|%%' % (3.14159, 'ab', 5, 255, 255, 8, 12345.678, 0.0001) }}|{{ '%(a)s-%(b)d' % {'a': 1, 'b': 2} }}|{{ '%r' % 'x' }}
{{ '%d' % 'x' }}|{{ '%s %s' % 'x' }}|{{ '%s' % (1, 2) }}|{{ '%d' % 2.9 }}|{{ '%q' % 1 }}|{{ '%' % 1 }}|{{ '%s' % missing }}|{{ 'x' % () }}|{{ 'x' % d }}|{{ 'x' % 5 }}|{{ '%*d' % (5, 3) }}|{{ '%.2s' % 'abc' }}|{{ '%c' % 'x' }}|{{ '%#x' % 255 }}|{{ '%5%' % () }}
{{ 10 % 3 * 2 }}|{{ 2 * 3 % 4 }}|{{ -3 % 2 }}|{{ -3 | abs }}|{{ -3.7 | int }}|{{ (-3) | abs }}|{{ 1 + 2 | string }}|{{ 'a' ~ 1 | string | length }}|{{ not 0 | int }}|{{ 2 ** 3 | int }}|{{ 1 is odd and 2 is even }}
"""

ACCESS = """
{{ s[0] }}|{{ s[-1] }}|{{ s[100] }}|{{ s[1:4] }}|{{ s[::-1] }}|{{ s[::2] }}|{{ s[5:1:-1] }}|{{ s[-5:] }}|{{ s[:-5] }}|{{ s[:] }}|{{ s[::0] }}|{{ u[8:] }}|{{ u[-1] }}|{{ u[::-1] }}|{{ u|length }}|{{ s['a':] }}|{{ s[nil:2] }}
{{ l[0] }}|{{ l[-1] }}|{{ l[5] }}|{{ l['0'] }}|{{ l[1.0] }}|{{ l[true] }}|{{ l[nil] }}|{{ l[missing] }}|{{ l[1:] }}|{{ l[::-1] }}|{{ l[10:] }}|{{ l[-10:2] }}|{{ l[2:0:-1] }}|{{ (1,2,3)[1:] }}|{{ range(10)[2:8:2] }}|{{ range(5)[1] }}|{{ range(5)[9] }}
{{ d.a }}|{{ d['a'] }}|{{ d.a[1] }}|{{ d.C.x }}|{{ d.nope }}|{{ d.nope.deeper }}|{{ d['nope'] }}|{{ d[missing] }}|{{ d[['x']] }}|{{ d[1:2] }}|{{ n[0] }}|{{ n.foo }}|{{ n.foo.bar }}|{{ nil[0] }}|{{ nil.a.b }}|{{ missing.a }}|{{ missing['a'] }}|{{ missing[0] }}|{{ missing[1:] }}
{{ weird.items is callable }}|{{ weird['items'] }}|{{ weird.get is callable }}|{{ weird['get'] }}|{{ weird['a b'] }}|{{ weird.__x }}|{{ weird._y }}|{{ weird['__x'] }}|{{ weird['1'] }}|{{ weird.1 }}|{{ weird.pop }}|{{ weird['pop'] }}|{{ weird.copy is callable }}|{{ weird['copy'] }}|{{ weird.__class__ }}
{{ d.update }}|{{ d.update({'x': 1}) }}|{{ d.pop('a') }}|{{ l.append(1) }}|{{ l.append }}|{{ l.sort() }}|{{ d.setdefault('a') }}|{{ d.clear() }}|{{ l.count(1) }}|{{ l.index(2) }}|{{ l.index(9) }}|{{ (1,1).count(1) }}|{{ l.copy() }}|{{ d.copy() }}
{{ d.get('a') }}|{{ d.get('zz') }}|{{ d.get('zz', 'dflt') }}|{{ d.get() }}|{{ d.get([1]) }}|{{ d.get('zz', default=1) }}|{{ d.keys()|list }}|{{ d.values()|list }}|{{ d.items()|list }}|{{ d.keys()[0] }}|{{ d.items()|length }}|{{ d.keys()|first }}
{{ people[0].name }}|{{ people[0]['name'] }}|{{ messages[0].content[0] }}|{{ messages[-1]['role'] }}|{{ messages[2].tool_calls[0].function.arguments.a }}|{{ messages|length }}|{{ messages[1:][0].role }}|{{ messages[9].role }}|{{ messages[0]['x'] is defined }}
{{ s.upper is callable }}|{{ s.upper() is string }}|{{ s.nope() }}|{{ missing() }}|{{ n() }}|{{ 'x'() }}|{{ s() }}|{{ nested[1][1][0] }}|{{ nested.1.1.0 }}|{{ l.0 }}|{{ l.-1 }}|{{ d['a', 'b'] }}|{{ l[0, 1] }}|{{ s.__len__ }}|{{ s._x }}|{{ ''.__class__.__mro__ }}
{{ l.reverse }}|{{ l[yes] }}|{{ 'abc'[1] }}|{{ 'abc'.0 }}|{{ 'abc'[-3] }}|{{ 'abc'[-4] }}|{{ l[n - 5] }}|{{ l[n // 7 * 1] }}|{{ d[s[7:8]|lower] is defined }}|{{ (d.b if no).x }}|{{ l[big] }}|{{ s[:big] }}|{{ s[-big:] }}|{{ l[::big] }}|{{ l[::-big] }}
"""

METHODS = """
{{ s.upper() }}|{{ s.lower() }}|{{ u.upper() }}|{{ u.lower() }}|{{ u.title() }}|{{ u.capitalize() }}|{{ u.swapcase() }}|{{ 'ΑΣ ΑΣΑ Σ ΣΑΣ'.lower() }}|{{ 'ŉǰΐﬁİı'.upper() }}|{{ 'İ'.lower() }}|{{ 'ǆ ﬁn'.title() }}|{{ "they're bill's".title() }}|{{ 'hELLO wORLD'.capitalize() }}
{{ sp.strip() }}x|{{ sp.lstrip() }}x|{{ sp.rstrip() }}x|{{ 'xxaxx'.strip('x') }}|{{ 'xyaxy'.strip('xy') }}|{{ 'xxa'.rstrip('x') }}|{{ '\u3000a\u00a0'.strip() }}|{{ 'éaé'.strip('é') }}|{{ s.strip(nil) }}|{{ s.strip(1) }}|{{ s.strip('') }}|{{ s.strip(chars='H') }}
{{ s.split() }}|{{ s.split(',') }}|{{ 'a,b,c'.split(',', 1) }}|{{ 'a b  c '.split() }}|{{ ' a b c '.split(none, 1) }}|{{ 'a,b,c'.rsplit(',', 1) }}|{{ ' a b c '.rsplit(none, 1) }}|{{ ''.split() }}|{{ ''.split(',') }}|{{ 'abc'.split('') }}|{{ 'a,b'.split(sep=',', maxsplit=0) }}|{{ 'a--b'.split('--')[-1] }}|{{ 'a,b'.split(1) }}
{{ s.split(', ')[1] }}|{{ '</think>x'.split('</think>')[-1].lstrip('\\n') }}|{{ multi.splitlines() }}|{{ multi.splitlines(true) }}|{{ 'a\u2028b\x0bc\x1cd'.splitlines() }}|{{ multi.split('\\n') }}|{{ 'a b'.partition(' ') }}|{{ 'ab'.partition(' ') }}|{{ 'a b c'.rpartition(' ') }}|{{ 'ab'.rpartition('x') }}
{{ s.replace('l', 'L') }}|{{ s.replace('l', 'L', 1) }}|{{ 'aaa'.replace('a', 'b', 2) }}|{{ 'abc'.replace('', '-') }}|{{ 'abc'.replace('', '-', 2) }}|{{ ''.replace('', 'x') }}|{{ s.replace('l') }}|{{ s.replace(1, 2) }}|{{ 'aaa'.replace('aa', 'b') }}|{{ 'a'.replace('a', 'aa', 0) }}|{{ 'éé'.replace('', '.') }}
{{ s.startswith('Hell') }}|{{ s.startswith(('x', 'He')) }}|{{ s.endswith('ld') }}|{{ s.startswith('W', 7) }}|{{ s.endswith('lo', 0, 5) }}|{{ s.startswith('') }}|{{ s.startswith('', 99) }}|{{ s.startswith(['H']) }}|{{ s.startswith(nil) }}|{{ s.startswith(prefix='H') }}
{{ s.find('o') }}|{{ s.rfind('o') }}|{{ s.find('zz') }}|{{ s.find('o', 5) }}|{{ s.find('o', 5, 7) }}|{{ s.index('W') }}|{{ s.index('zz') }}|{{ s.rindex('l') }}|{{ s.count('l') }}|{{ s.count('') }}|{{ u.find('東') }}|{{ u.rfind('京', 3) }}|{{ s.count('l', 3) }}|{{ 'aaaa'.count('aa') }}|{{ ''.find('') }}|{{ 'a'.find('', 2) }}
{{ ', '.join(['a', 'b']) }}|{{ ','.join('abc') }}|{{ ','.join([1]) }}|{{ ','.join(d) }}|{{ ','.join(missing) }}|{{ ''.join([]) }}|{{ ','.join(nil) }}|{{ ' '.join(m|sort) }}|{{ '-'.join(d.keys()) }}|{{ ', '.join(people|map(attribute='name')) }}
{{ 'ab'.center(7) }}|{{ 'ab'.center(6, '*') }}|{{ 'abc'.center(6, '*') }}|{{ 'ab'.ljust(5, '.') }}|{{ 'ab'.rjust(5, '.') }}|{{ '42'.zfill(5) }}|{{ '-42'.zfill(5) }}|{{ 'ab'.center(1) }}|{{ 'ab'.center(5, 'xx') }}|{{ '東'.ljust(3, '京') }}|{{ '+'.zfill(3) }}
{{ 'abc'.isalpha() }}|{{ 'ab1'.isalnum() }}|{{ '12'.isdigit() }}|{{ '²'.isdigit() }}|{{ '²'.isdecimal() }}|{{ '٣'.isdecimal() }}|{{ ' \\t'.isspace() }}|{{ ''.isalpha() }}|{{ 'aB'.islower() }}|{{ 'ab1'.islower() }}|{{ 'AB'.isupper() }}|{{ '12'.isupper() }}|{{ 'Ab Cd'.istitle() }}|{{ 'é'.isascii() }}|{{ 'a_1'.isidentifier() }}|{{ '\\n'.isprintable() }}|{{ '東京'.isalpha() }}
{{ 'abc'.removeprefix('ab') }}|{{ 'abc'.removesuffix('bc') }}|{{ 'abc'.removeprefix('x') }}|{{ '{} {}'.format(1, 'a') }}|{{ '{0}{1}{0}'.format(1, 2) }}|{{ '{a}'.format(a=[1]) }}|{{ '{{}}'.format() }}|{{ '{}'.format() }}|{{ '{x}'.format() }}|{{ '{'.format(1) }}|{{ '}'.format(1) }}|{{ '{} {0}'.format(1) }}|{{ '{a}'.format_map({'a': 1}) }}|{{ '{}'.format(missing) }}
{{ s.upper(1) }}|{{ s.lower(x=1) }}|{{ s.split(foo=1) }}|{{ s.upper().lower().title() }}|{{ s.upper()[0:2] }}|{{ (s ~ u).count('l') }}|{{ 'ß'.upper() }}|{{ 'ß'.title() }}|{{ 'ŉ'.capitalize() }}|{{ '\\t a'.lstrip('\\t') }}|{{ s[1:].strip('d').endswith('l') }}
"""

FILTERS = """
{{ s|length }}|{{ l|count }}|{{ d|length }}|{{ n|length }}|{{ missing|length }}|{{ nil|length }}|{{ range(5)|length }}|{{ s|upper }}|{{ n|upper }}|{{ nil|lower }}|{{ missing|upper }}|{{ u|title }}|{{ 'foo-bar (baz) [x]<y>{z} o\\'neil'|title }}|{{ u|capitalize }}|{{ sp|trim }}x|{{ 'xax'|trim('x') }}|{{ nil|trim }}|{{ n|trim }}|{{ l|trim }}
{{ missing|default('x') }}|{{ missing|d }}|{{ nil|default('x') }}|{{ nil|default('x', true) }}|{{ e|default('x', boolean=true) }}|{{ d.nope|default([]) }}|{{ d.nope.x|default('y') }}|{{ no|d(1, 1) }}|{{ n|default(missing.x) }}|{{ missing|default(default_value='q') }}|{{ missing|default(1, 2, 3) }}
{{ l|first }}|{{ l|last }}|{{ el|first }}|{{ el|last }}|{{ s|first }}|{{ s|last }}|{{ d|first }}|{{ d|last }}|{{ nil|first }}|{{ missing|first }}|{{ missing|last }}|{{ l|map('string')|first }}|{{ l|map('string')|last }}|{{ e|last }}|{{ 5|last }}|{{ range(3)|last }}|{{ d.items()|last }}
{{ l|list }}|{{ s|list }}|{{ d|list }}|{{ nil|list }}|{{ missing|list }}|{{ range(3)|list }}|{{ d.items()|list }}|{{ 5|list }}|{{ 'é東'|list }}|{{ l|join }}|{{ l|join(', ') }}|{{ mixed|join('-') }}|{{ people|join(',', attribute='name') }}|{{ people|join(',', 'city') }}|{{ s|join('.') }}|{{ nil|join }}|{{ missing|join }}|{{ l|join(1) }}|{{ l|join(nil) }}|{{ d|join('+') }}
{{ l|sort }}|{{ m|sort }}|{{ m|sort(case_sensitive=true) }}|{{ m|sort(true) }}|{{ m|sort(reverse=true) }}|{{ people|sort(attribute='age')|map(attribute='name')|list }}|{{ people|sort(attribute='age,name')|map(attribute='name')|list }}|{{ people|sort(attribute='age', reverse=true)|map(attribute='name')|list }}|{{ mixed|sort }}|{{ people|sort }}|{{ d|sort }}|{{ s|sort }}|{{ people|sort(attribute='city') }}|{{ nested|sort }}
{{ m|unique|list }}|{{ m|unique(true)|list }}|{{ [1, 1.0, true, '1']|unique|list }}|{{ people|unique(attribute='age')|map(attribute='name')|list }}|{{ nested|unique|list }}|{{ l|min }}|{{ l|max }}|{{ m|min }}|{{ m|max }}|{{ m|max(case_sensitive=true) }}|{{ el|min }}|{{ people|max(attribute='age') }}|{{ mixed|min }}|{{ s|max }}|{{ [1, 1.0]|max }}|{{ [1.0, 1]|min }}
{{ l|sum }}|{{ nums|sum }}|{{ people|sum(attribute='age') }}|{{ el|sum }}|{{ el|sum(start=5) }}|{{ ['a']|sum }}|{{ [[1], [2]]|sum(start=[]) }}|{{ ['a']|sum(start='') }}|{{ l|sum(start=0.5) }}|{{ people|sum('nope') }}|{{ [0.1]*3|sum }}|{{ ([0.1]*3)|sum }}
{{ l|reverse|list }}|{{ s|reverse }}|{{ u|reverse }}|{{ d|reverse|list }}|{{ range(3)|reverse|list }}|{{ 5|reverse }}|{{ l|map('string')|reverse }}|{{ missing|reverse|list }}|{{ d.items()|reverse|list }}|{{ l|reverse|first }}
{{ people|map(attribute='name')|list }}|{{ people|map(attribute='city')|list }}|{{ people|map(attribute='city', default='?')|list }}|{{ messages|map(attribute='tool_calls.0.function.name', default='-')|list }}|{{ messages|map(attribute='tool_calls.0.function.name')|list }}|{{ m|map('upper')|join }}|{{ m|map('replace', 'a', 'x')|list }}|{{ l|map('nope')|list }}|{{ l|map|list }}|{{ nested|map('first')|list }}|{{ nested|map(attribute=0)|list }}|{{ nil|map('upper')|list }}|{{ l|map('upper')|list|length }}|{{ l|map('nope') is iterable }}|{{ l|map(attribute='x', foo=1)|list }}|{{ ['a b']|map('title')|first }}|{{ nested|map('length')|list }}|{{ nested|map('join', '+')|list }}
{{ l|select('odd')|list }}|{{ l|reject('odd')|list }}|{{ mixed|select|list }}|{{ mixed|reject|list }}|{{ l|select('gt', 1)|list }}|{{ l|select('divisibleby', 3)|list }}|{{ people|selectattr('city')|map(attribute='name')|list }}|{{ people|selectattr('city', 'defined')|list|length }}|{{ people|rejectattr('age', 'equalto', 30)|list }}|{{ messages|selectattr('role', '==', 'user')|list }}|{{ messages|rejectattr('role', 'in', ['system', 'user'])|list|length }}|{{ l|select('nope')|list }}|{{ el|select('nope')|list }}|{{ l|selectattr|list }}|{{ messages|selectattr('tool_calls', 'defined')|map(attribute='role')|join }}|{{ mixed|select('string')|list }}|{{ l|select('sameas', 1)|list }}
{{ '42'|int }}|{{ '42.7'|int }}|{{ 'x'|int }}|{{ 'x'|int(5) }}|{{ '0x1F'|int(base=16) }}|{{ '1F'|int(0, 16) }}|{{ ' 7 '|int }}|{{ '1_000'|int }}|{{ nil|int }}|{{ missing|int }}|{{ 2.9|int }}|{{ -2.9|int }}|{{ yes|int }}|{{ l|int }}|{{ 'inf'|int }}|{{ '1e3'|int }}|{{ '12'|int(0, 99) }}|{{ '0b11'|int(0, 2) }}|{{ '011'|int(7, 0) }}|{{ '٣'|int(1) is number }}
{{ '1.5'|float }}|{{ 'x'|float }}|{{ 'x'|float('d') }}|{{ '1e3'|float }}|{{ ' .5 '|float }}|{{ 'inf'|float }}|{{ '-Infinity'|float }}|{{ 'nan'|float }}|{{ n|float }}|{{ nil|float }}|{{ missing|float }}|{{ '1_0.5'|float }}|{{ '1__0'|float }}|{{ '5.'|float }}|{{ '0x10'|float }}|{{ '1e400'|float }}|{{ '1e-400'|float }}|{{ ''|float }}|{{ '-'|float }}|{{ 'e5'|float }}
{{ -5|abs }}|{{ (-5)|abs }}|{{ (-2.5)|abs }}|{{ s|abs }}|{{ yes|abs }}|{{ 2.5|round }}|{{ 3.5|round }}|{{ -2.5|round }}|{{ 2.675|round(2) }}|{{ 1234.5678|round(-2) }}|{{ 1250|round(-2) }}|{{ 1350|round(-2) }}|{{ 42.55|round(1, 'floor') }}|{{ 42.55|round(1, 'ceil') }}|{{ 42|round }}|{{ 42|round(1, 'ceil') }}|{{ 42|round(2) }}|{{ 2.5|round(method='x') }}|{{ s|round }}|{{ 0.5|round|int }}|{{ 1e300|round(2) }}|{{ 7|round(0, 'floor') }}|{{ 2.5|round(none) }}
{{ d|items|list }}|{{ missing|items|list }}|{{ l|items|list }}|{{ d|dictsort }}|{{ d|dictsort(true) }}|{{ d|dictsort(reverse=true) }}|{{ {'a': 2, 'b': 1}|dictsort(by='value') }}|{{ d|dictsort(by='value') }}|{{ d|dictsort(by='x') }}|{{ l|dictsort }}|{{ missing|dictsort }}|{{ {1: 2, 'a': 3}|dictsort }}|{{ ed|dictsort }}
{{ s|replace('l', 'L') }}|{{ s|replace('l', 'L', 1) }}|{{ n|replace(7, 'x') }}|{{ s|replace('', '.') }}|{{ s|replace('l') }}|{{ nil|replace('o', '0') }}|{{ s|replace(old='H', new='J') }}|{{ s|string }}|{{ n|string }}|{{ l|string }}|{{ nil|string }}|{{ missing|string }}|{{ f|string + 'x' }}|{{ d.C|string }}
{{ multi|indent }}|{{ multi|indent(2) }}|{{ multi|indent(2, true) }}|{{ multi|indent(2, first=true, blank=true) }}|{{ multi|indent('> ') }}|{{ multi|indent(width='--', blank=true) }}|{{ 'a\\n'|indent }}|{{ ''|indent(2, true) }}|{{ n|indent }}|{{ 'a\\n\\nb\\n'|indent(1, false, true) }}|{{ multi|wordcount }}|{{ u|wordcount }}|{{ "it's a-b_c"|wordcount }}|{{ s|center(20) }}x|{{ 'x'|center }}x|{{ n|center(4) }}
{{ l|batch(2)|list }}|{{ l|batch(2, 'x')|list }}|{{ l|slice(2)|list }}|{{ l|slice(2, 'x')|list }}|{{ m|batch(3)|map('join')|list }}|{{ l|batch(0)|list }}|{{ l|slice(0)|list }}|{{ '%s-%s'|format(1, 2) }}|{{ '%(a)s'|format(a=1) }}|{{ '%s'|format }}|{{ '%s'|format(1, a=2) }}|{{ d|attr('a') }}|{{ d|attr('keys') is callable }}|{{ s|attr('upper')() }}|{{ missing|attr('x') }}
{{ 'a b/c?&é'|urlencode }}|{{ {'a b': 1, 'c': 'é/'}|urlencode }}|{{ [('a', 1), ('b', 2)]|urlencode }}|{{ n|urlencode }}|{{ html|e }}|{{ html|escape }}|{{ html|safe }}|{{ html|e|e }}|{{ html|forceescape }}|{{ (html|e)|forceescape }}|{{ ('<'|e) + '<' }}|{{ '<' + ('>'|safe) }}|{{ ('<'|e) ~ '<' }}|{{ ('<b>'|safe) + 1 }}|{{ [html|safe] }}|{{ ('<'|safe)|upper + '<' }}|{{ ('%s'|safe) % '<' }}|{{ ('<'|safe) * 2 + '&' }}|{{ ('a,<'|safe).split(',') }}|{{ ('<'|safe).join(['&', 'x']) }}|{{ ('a'|safe).replace('a', '<') }}|{{ ('a'|safe)[0] + '<' }}|{{ ('a'|safe)|list }}|{{ ('{}'|safe).format('<') }}|{{ (n|safe) + '<' }}|{{ ('<'|safe) is escaped }}|{{ ('<'|safe)|string + '<' }}|{{ ('<'|safe)|trim + '<' }}|{{ ('x'|safe)|replace('x', '<') }}|{{ ('x\\ny'|safe)|indent + '<' }}|{{ d|tojson|safe }}|{{ '<' ~ (d|tojson|safe) }}|{{ '<' + (d|tojson|safe) }}
{{ d|tojson }}|{{ l|tojson }}|{{ s|tojson }}|{{ u|tojson }}|{{ ctl|tojson }}|{{ html|tojson }}|{{ mixed|tojson }}|{{ nil|tojson }}|{{ yes|tojson }}|{{ f|tojson }}|{{ float|tojson }}|{{ tiny|tojson }}|{{ huge|tojson }}|{{ missing|tojson }}|{{ [missing]|tojson }}|{{ range(3)|tojson }}|{{ (1, 2)|tojson }}|{{ d.items()|tojson }}|{{ l|map('string')|tojson }}|{{ {1: 2, 2.5: 3, none: 4, true: 5}|tojson }}|{{ {(1, 2): 3}|tojson }}|{{ 'inf'|float|tojson }}|{{ 'nan'|float|tojson }}|{{ -0.0|tojson }}
{{ d|tojson(indent=2) }}|{{ d|tojson(indent=0) }}|{{ nested|tojson(indent=4) }}|{{ ed|tojson(indent=2) }}|{{ d|tojson(indent='\\t') }}|{{ d|tojson(indent=none) }}|{{ d|tojson(separators=(',', ':')) }}|{{ d|tojson(separators=(',', ': '), indent=1) }}|{{ d|tojson(sort_keys=true) }}|{{ u|tojson(ensure_ascii=true) }}|{{ ctl|tojson(ensure_ascii=true) }}|{{ u|tojson(true) }}|{{ d|tojson(indent=-1) }}|{{ {1: 2, 'a': 3}|tojson(sort_keys=true) }}|{{ d|tojson(nope=1) }}|{{ d|tojson(separators=',') }}|{{ d|tojson(indent=true) }}|{{ people|tojson(false, 1, (';', '='), true) }}|{{ quote|tojson }}|{{ messages|tojson(indent=2) }}|{{ cycler|tojson }}
{{ s|nope }}|{{ s|upper|nope }}|{% if no %}{{ s|nope }}{% endif %}ok|{% if yes %}{{ s|nope }}{% endif %}|{{ s|nope if no else 'ok' }}|{% if s is nope %}{% endif %}|{{ s is nope if no else 1 }}|{% if no %}{% for x in l %}{{ x|nope }}{% endfor %}{% endif %}|{% if no|nope %}x{% endif %}|{{ l|map(attribute='x')|map(attribute='y')|list }}|{{ s|upper() }}|{{ s|upper(1) }}|{{ s|default }}|{{ 'upper' is filter }}|{{ 'nope' is filter }}|{{ 'odd' is test }}|{{ 'from_json' is filter }}
"""

TESTS = """
{{ missing is defined }}|{{ n is defined }}|{{ d.nope is defined }}|{{ d.nope is not defined }}|{{ missing is undefined }}|{{ d.nope.x is defined }}|{{ nil is defined }}|{{ nil is none }}|{{ missing is none }}|{{ n is not none }}|{{ not nil is none }}
{{ s is string }}|{{ n is string }}|{{ missing is string }}|{{ n is number }}|{{ yes is number }}|{{ f is number }}|{{ s is number }}|{{ n is integer }}|{{ yes is integer }}|{{ f is float }}|{{ n is float }}|{{ yes is boolean }}|{{ n is boolean }}|{{ yes is true }}|{{ n is true }}|{{ no is false }}|{{ z is false }}|{{ nil is false }}
{{ d is mapping }}|{{ l is mapping }}|{{ l is sequence }}|{{ d is sequence }}|{{ s is sequence }}|{{ n is sequence }}|{{ range(2) is sequence }}|{{ missing is sequence }}|{{ d.keys() is sequence }}|{{ l|map('abs') is sequence }}|{{ l is iterable }}|{{ s is iterable }}|{{ n is iterable }}|{{ nil is iterable }}|{{ missing is iterable }}|{{ d.items() is iterable }}|{{ namespace() is iterable }}|{{ (1,) is sequence }}
{{ n is odd }}|{{ n is even }}|{{ z is even }}|{{ f is odd }}|{{ s is odd }}|{{ missing is even }}|{{ 9 is divisibleby 3 }}|{{ 9 is divisibleby(2) }}|{{ 9 is divisibleby 0 }}|{{ neg is odd }}|{{ yes is odd }}|{{ n is eq 7 }}|{{ n is equalto(7.0) }}|{{ n is == 7 }}|{{ n is ne 7 }}|{{ n is lt 8 }}|{{ n is ge 7 }}|{{ n is gt(7) }}|{{ n is lessthan 8 }}|{{ n is greaterthan 1 }}|{{ n is le 7 }}|{{ s is lt 1 }}|{{ n is in [7] }}|{{ 'a' is in 'abc' }}|{{ n is not in [7] }}|{{ n is eq }}
{{ 'abc' is lower }}|{{ 'ABC' is upper }}|{{ 'aBc' is lower }}|{{ '' is lower }}|{{ n is lower }}|{{ nil is upper }}|{{ s.upper is callable }}|{{ s is callable }}|{{ range is callable }}|{{ missing is callable }}|{{ namespace is callable }}|{{ joiner() is callable }}|{{ cycler(1) is callable }}|{{ s is sameas s }}|{{ nil is sameas none }}|{{ yes is sameas true }}|{{ n is sameas 7 }}|{{ n is sameas 7.0 }}|{{ s is escaped }}
{{ n is odd is even }}|{{ n is divisibleby 7 and yes }}|{{ n is eq 7 or no }}|{{ 1 if n is odd else 2 }}|{{ n is string or n is number }}|{{ 'x' if s is string }}|{{ l is not mapping and l is iterable }}|{{ (n is odd) == true }}|{{ n is defined == true }}|{{ -n is odd }}|{{ n + 1 is odd }}|{{ 3 is in l }}|{{ 3 is in(l) }}|{{ d.a is sequence }}|{{ n is equalto l[0] + 4 }}|{{ d is eq {'b': 1} }}|{{ l is eq [3, 1, 2] }}|{{ s is eq 'Hello, World' }}
"""

STATEMENTS = [
    "{% if n > 5 %}a{% elif n > 3 %}b{% else %}c{% endif %}", "{% if z %}a{% elif nil %}b{% else %}c{% endif %}",
    "{% if missing %}a{% endif %}b", "{% if not (yes and no) %}x{% endif %}", "{% if %}x{% endif %}", "{% if yes %}x", "{% else %}", "{% endif %}",
    "{% for x in l %}{{ x }},{% endfor %}", "{% for x in el %}{{ x }}{% else %}none{% endfor %}", "{% for x in l %}{{ x }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for c in u %}[{{ c }}]{% endfor %}",
    "{% for x in nil %}{% endfor %}", "{% for x in n %}{% endfor %}", "{% for x in missing %}a{% else %}b{% endfor %}", "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}{{ b }}{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}", "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in ['xy', 'zw'] %}{{ b }}{{ a }}{% endfor %}", "{% for a, in [[1]] %}{{ a }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}", "{% for x in l %}{{ loop.previtem is defined }}{{ loop.nextitem.y }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x // 2) }}{% endfor %}", "{% for x in l %}{{ loop.cycle() }}{% endfor %}", "{% for x in l %}{{ loop }}{{ loop|length }}{% endfor %}",
    "{% for x in l %}{{ loop.nope }}{{ loop.nope is defined }}{{ loop['index'] }}{% endfor %}", "{% for x in l %}{{ loop.nope.x }}{% endfor %}", "{{ loop }}", "{{ loop.index }}",
    "{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ loop.last }} {% endfor %}", "{% for x in l if x > 9 %}{{ x }}{% else %}E{% endfor %}",
    "{% for x in l if loop.index > 1 %}{{ x }}{% endfor %}", "{% for x in l %}{% for y in m if y != x and loop.index == 1 %}{{ y }}{% endfor %};{% endfor %}",
    "{% for x in l|map('string') %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ x }}{% endfor %}", "{% for x in l|select('odd') %}{{ loop.length }}{{ loop.index }}{% endfor %}",
    "{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}", "{% for x in l %}{% set outer = loop %}{% for y in l %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% break %}{% else %}E{% endfor %}", "{% for x in l %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% else %}E{% endfor %}", "{% for x in l %}{% continue %}{% else %}E{% endfor %}",
    "{% break %}", "{% continue %}", "{% for x in l %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}", "{% for x in l %}{% set y %}{% break %}{% endset %}{% endfor %}ok",
    "{% for x in range(3) %}{{ x }}{% endfor %}", "{% for x in range(5, 0, -2) %}{{ x }}{% endfor %}", "{% for i in range(0) %}x{% else %}E{% endfor %}", "{% for x in range(2.0) %}{% endfor %}", "{{ range(0, 5, 0) }}",
    "{{ range(1000000) }}", "{{ range() }}", "{{ range('a') }}", "{% for x in (1, 2) %}{{ x }}{% endfor %}", "{% for x in 1, 2 %}{{ x }}{% endfor %}", "{% for x in [1, 2] if no else [3] %}{{ x }}{% endfor %}",
    "{% for x in (l if no else m) %}{{ x }}{% endfor %}", "{% for loop in l %}{% endfor %}", "{% for x in l %}{% set loop = 1 %}{% endfor %}", "{% for 1 in l %}{% endfor %}", "{% for x.y in l %}{% endfor %}", "{% for x l %}{% endfor %}",
    "{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% set x = 9 %}{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% set x = 0 %}{% for i in l %}{{ x }}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(x=0) %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "{% set ns = namespace() %}{{ ns.nope }}{{ ns.nope is defined }}{% set ns.a = [1] %}{{ ns }}{{ ns.a }}{{ ns['a'] }}",
    "{% set ns = namespace({'a': 1}, b=2) %}{{ ns }}", "{% set ns = namespace([('a', 1)]) %}{{ ns.a }}", "{% set ns = namespace(a=1) %}{% set ns.a, b = 2, 3 %}{{ ns.a }}{{ b }}", "{% set d.a = 1 %}", "{% set missing.a = 1 %}", "{% set s.a = 1 %}",
    "{% set ns = namespace(items=[1]) %}{{ ns.items }}", "{% set ns = namespace(_p=1) %}{{ ns._p }}{{ ns['_p'] }}", "{% set ns = namespace(f=1) %}{% for i in l %}{% if loop.first %}{% set ns.f = i %}{% endif %}{% endfor %}{{ ns.f }}", "{{ namespace(1) }}",
    "{% set x = 1 %}{{ x }}", "{% set x, y = 1, 2 %}{{ x }}{{ y }}", "{% set x, y = [1] %}", "{% set (x, y) = (1, 2) %}{{ y }}", "{% set x = 1, 2 %}{{ x }}", "{% set x = %}", "{% set 1 = 2 %}", "{% set true = 1 %}", "{% set x y = 1 %}", "{% set x = y = 1 %}", "{% set x.y.z = 1 %}",
    "{% set x %}a{{ n }}b{% endset %}{{ x }}{{ x is string }}", "{% set x | upper %}abc{% endset %}{{ x }}", "{% set x | replace('a', 'b') | trim %} aa {% endset %}[{{ x }}]", "{% set ns = namespace() %}{% set ns.x %}q{% endset %}{{ ns.x }}",
    "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}", "{% set x %}{% for i in l %}{{ i }}{% endfor %}{% endset %}{{ x * 2 }}", "{% set x %}<{% endset %}{{ x + '<' }}",
    "{% if yes %}{% set q = 1 %}{% endif %}{{ q }}", "{% if no %}{% set q = 1 %}{% endif %}{{ q is defined }}", "{% if no %}{% set n = 1 %}{% endif %}{{ n }}", "{% if yes %}{% set n = 1 %}{% endif %}{{ n }}", "{{ n }}{% set n = 1 %}{{ n }}",
    "{% if not q is defined %}{% set q = 5 %}{% endif %}{{ q }}", "{% for i in l %}{% if no %}{% set n = 1 %}{% endif %}{{ n }}{% endfor %}", "{% for i in l %}{{ n }}{% endfor %}{% set n = 1 %}{{ n }}", "{% for i in l %}{% set n = i %}{% endfor %}{{ n }}",
    "{% for i in l %}{% set q = i %}{{ q }}{% endfor %}{{ q }}", "{% for i in l %}{{ q }}{% set q = i %}{% endfor %}", "{% for i in l %}{% if loop.first %}{% set q = i %}{% endif %}{{ q }}{% endfor %}", "{% set q = 0 %}{% for i in l %}{% for j in l %}{% set q = q + 1 %}{% endfor %}{{ q }}{% endfor %}{{ q }}",
    "{% macro f(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ f(1) }}|{{ f(1, 3) }}|{{ f(b=1, a=2) }}|{{ f() }}|{{ f }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}", "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}",
    "{% macro f(a, b=a) %}{{ b }}{% endmacro %}{{ f(5) }}{{ f(5, 6) }}", "{% macro f(a=missing) %}{{ a is defined }}{% endmacro %}{{ f() }}", "{% macro f(a=1, b) %}{% endmacro %}", "{% macro f(a, a) %}{% endmacro %}", "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}",
    "{% macro f(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ f(1, 2, 3) }}", "{% macro f() %}{{ kwargs.x }}{% endmacro %}{{ f(x=3) }}{{ f() }}", "{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}", "{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}x{{ n }}{% endcall %}",
    "{% macro f() %}[{{ caller(1, 2) }}]{% endmacro %}{% call(a, b) f() %}{{ b }}{{ a }}{% endcall %}", "{% macro f() %}[{{ caller() }}]{% endmacro %}{{ f() }}", "{% macro f() %}x{% endmacro %}{% call f() %}y{% endcall %}", "{% call missing() %}y{% endcall %}", "{% call n %}y{% endcall %}",
    "{% macro f(x) %}{% if x > 0 %}{{ x }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{% macro f() %}{{ n }}{% endmacro %}{{ f() }}{% set n = 1 %}{{ f() }}", "{% macro f() %}{{ q }}{% endmacro %}{{ f() }}{% set q = 1 %}{{ f() }}",
    "{% for i in l %}{% macro f() %}{{ i }}{% endmacro %}{{ f() }}{% endfor %}", "{% macro f() %}{{ i }}{% endmacro %}{% for i in l %}{{ f() }}{% endfor %}", "{% macro f() %}{% set q = 5 %}{{ q }}{% endmacro %}{{ f() }}{{ q }}", "{% set q = 1 %}{% macro f() %}{{ q }}{% set q = 2 %}{{ q }}{% endmacro %}{{ f() }}{{ q }}",
    "{% macro f(n) %}{{ n }}{% endmacro %}{{ f(1) }}{{ n }}", "{{ f() }}{% macro f() %}x{% endmacro %}", "{% if yes %}{% macro f() %}x{% endmacro %}{% endif %}{{ f() }}", "{% macro f() %}  x\n{% endmacro %}[{{ f() }}]", "{% macro f() -%}  x  {%- endmacro %}[{{ f()|length }}]", "{% macro f() %}<{% endmacro %}{{ f() + '<' }}",
    "{% macro f(a) %}{{ a.name }}{{ a.arguments }}{% endmacro %}{{ f.name }}{{ f.arguments }}{{ f.catch_kwargs }}{{ f.caller }}", "{% macro f(a) %}{{ a|map('upper')|join }}{% endmacro %}{{ f(['a', 'b']) }}", "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 1, 'b': 2}) }}{{ f(*[1], **{'b': 5}) }}",
    "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(**{'z': 1}) }}", "{{ dict(a=1, **{'b': 2}) }}", "{{ dict([('a', 1)]) }}", "{{ dict({'a': 1}, b=2) }}", "{{ dict(1) }}", "{{ dict(a=1, a=2) }}", "{{ s.split(*[',']) }}", "{{ range(*[1, 3])|list }}", "{{ dict(*[1], *[2]) }}", "{{ f(a=1, 2) }}", "{{ f(**d, a=1) }}",
    "{% filter upper %}abc{{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aab{% endfilter %}", "{% filter indent(2) %}a\nb{% endfilter %}", "{% filter nope %}x{% endfilter %}", "{% filter upper %}{% set q = 1 %}{{ q }}{% endfilter %}{{ q }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with n = n + 1 %}{{ n }}{% endwith %}{{ n }}", "{% with a = 1, b = a %}{{ b }}{% endwith %}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}", "{% print n, s %}", "{% print %}",
    "{% generation %}{{ n }}{% set q = 1 %}{% endgeneration %}{{ q }}", "{% for x in l %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endfor %}", "{% for x in l %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", "a\n{% generation %}\nb\n{% endgeneration %}\nc", "{%- generation -%} x {%- endgeneration -%} y",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}", "{{ cycler() }}", "{% set j = joiner('|') %}{{ j() }}a{{ j() }}b{{ j() }}", "{% set j = joiner() %}{{ j() }}{{ j() }}", "{{ raise_exception('no') }}", "{{ raise_exception() }}", "{% if no %}{{ raise_exception('no') }}{% endif %}ok",
    "{{ strftime_now('%Y') }}", "{{ strftime_now('') }}", "{{ strftime_now() }}", "{{ strftime_now('%%') }}", "{{ strftime_now('a%zb%Zc%%z%') }}", "{{ strftime_now('%f')|length }}", "{% set range = 5 %}{{ range }}", "{% if range is defined %}y{% endif %}{{ lipsum is defined }}", "{% do l.append(1) %}", "{% include 'x' %}", "{% unknown %}", "{% set x = missing %}{{ x is defined }}", "{% set x = missing %}{{ x.y }}",
    "{% set g = l|map('string') %}{% for x in g %}{{ x }}{% endfor %}{% for x in g %}{{ x }}{% else %}E{% endfor %}", "{% set g = l|map('string') %}{{ g|first }}{{ g|first }}{{ g|list }}", "{% set g = mixed|map('abs') %}{{ g|first }}", "{% set g = mixed|map('abs') %}{{ g|list }}", "{% set g = l|map('abs') %}{{ g[0] }}{{ g|length }}",
    "{% set g = l|reverse %}{{ g|list }}{{ g|list }}", "{{ 2 in l|map('abs') }}", "{% set g = l|map('abs') %}{{ 3 in g }}{{ g|list }}", "{% set g = l|select %}{{ 'T' if g else 'F' }}", "{% for x in l if x != seen.v %}{{ x }}{% endfor %}", "{% set seen = namespace(v=1) %}{% for x in [1, 1, 2, 2, 3] if x != seen.v %}{% set seen.v = x %}{{ x }}{% endfor %}",
    "{% set seen = namespace(v=1) %}{% for x in [1, 1, 2, 2, 3, 4] if x != seen.v %}{{ loop.last }}{% set seen.v = x %}{{ x }}{% endfor %}", "{% for x in l: %}{{ x }}{% endfor %}", "{% if yes: %}a{% endif %}", "{% if n, z %}a{% endif %}", "{{ caller }}", "{{ varargs is defined }}", "{{ n;}}", "{{ n = 1 }}", "{{ n == }}", "{{ == n }}",
    "{{ (1, }}", "{{ [1 2] }}", "{{ {'a' 1} }}", "{{ n. }}", "{{ n.'a' }}", "{{ n[ }}", "{{ n[] }}", "{{ n | }}", "{{ n is }}", "{{ f( }}", "{{ not }}", "{{ 1 if }}", "{{ @ }}", "{{ n ! }}", "{{ 'a }}", "{{ a b }}", "{{ 1 2 }}", "{% for x in l %}{% endif %}", "{% if yes %}{% endfor %}", "{% macro %}{% endmacro %}", "{% macro f %}{% endmacro %}", "{% set %}",
    "{% for k, v in people[0]|items %}{{ k }}:{{ v }} {% endfor %}", "{% for k, v in d|dictsort %}{{ k }}{% if not loop.last %},{% endif %}{% endfor %}", "{% for m in messages %}{{ m.role ~ ':' ~ (m.content or '')|trim }}\n{% endfor %}", "{% for m in messages[::-1] %}{{ loop.index0 }}{{ m['role'] }}{% endfor %}",
    "{% set loop_messages = messages[1:] if messages[0].role == 'system' else messages %}{{ loop_messages|length }}", "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}{% endfor %}", "{% for m in messages if m.role != 'system' %}{{ loop.index0 }}{{ m.role }}{% endfor %}",
    "{%- for m in messages -%}\n    {%- if m.content is string and m.content | trim | length -%}\n        [{{ m.content | trim }}]\n    {%- endif -%}\n{%- endfor -%}\n", "{% set parts = 'a</t>b'.split('</t>') %}{% set a, b = parts[0], parts[-1] %}{{ b }}{{ a }}",
    "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|map('trim')|list }}", "{{ (messages|selectattr('role', 'equalto', 'nobody')|list)|length == 0 }}", "{{ messages|map(attribute='role')|unique|sort|join(',') }}", "{{ [messages[0].content, 'x']|join('\\n') }}",
]


def snippets() -> list[str]:
    found = [*WHITESPACE, *STATEMENTS]
    for group in (LITERALS, OPERATORS, ACCESS, METHODS, FILTERS, TESTS):
        for line in group.strip().split("\n"):
            found += split_templates(line)
    return found


def split_templates(line: str) -> list[str]:
    """Cuts at `|` between templates, not inside of tags."""
    parts, start, depth, quote, position = [], 0, 0, "", 0
    while position < len(line):
        two = line[position:position + 2]
        if depth and quote:
            if line[position] == "\\":
                position += 1
            elif line[position] == quote:
                quote = ""
        elif depth and line[position] in "'\"":
            quote = line[position]
        elif two in ("{{", "{%") and not depth:
            depth, position = 1, position + 1
        elif two in ("}}", "%}") and line[position + 2:position + 3] in ("", "|", "{", "x", "o", "E"):
            depth, position = 0, position + 1
        elif line[position] == "|" and not depth:
            parts.append(line[start:position])
            start = position + 1
        position += 1
    return [*parts, line[start:]]
