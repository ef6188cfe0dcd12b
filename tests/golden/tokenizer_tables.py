"""Writes model/tokenizer_tables.cc: character tables that equal those inside of PyPI `tokenizers`, found by asking it.

PCRE2 10.42 knows Unicode 14. What PyPI `tokenizers` (Oniguruma: Unicode 16) says about newer characters is a table, and so
are the sets of its own code, which is older. Run it in the Python of ./dev setup test, then ./dev fmt. Needs libpcre2-8.
"""

import ctypes
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

OUTPUT = Path(__file__).resolve().parents[2] / "model" / "tokenizer_tables.cc"
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
ASSIGNED = [code for code in CODES if code < 0x33000 or 0xE0000 <= code < 0xE0200]  # of those that patterns tell apart
TEXT = "".join(map(chr, ASSIGNED))
CHUNK = 4096
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co".split()
PROPERTIES = ("Alphabetic Uppercase Lowercase Emoji Emoji_Presentation Emoji_Modifier_Base Ideographic "
              "Unified_Ideograph Math Dash").split()
# Names of scripts that Oniguruma knows, the first as PCRE2 has it.
SCRIPTS = """
Adlam Adlm, Ahom, Anatolian_Hieroglyphs Hluw, Arabic Arab, Armenian Armn, Avestan Avst, Balinese Bali, Bamum
Bamu, Bassa_Vah Bass, Batak Batk, Bengali Beng, Bhaiksuki Bhks, Bopomofo Bopo, Brahmi Brah, Braille Brai,
Buginese Bugi, Buhid Buhd, Canadian_Aboriginal Cans, Carian Cari, Caucasian_Albanian Aghb, Chakma Cakm, Cham,
Cherokee Cher, Chorasmian Chrs, Common Zyyy, Coptic Copt Qaac, Cuneiform Xsux, Cypriot Cprt, Cypro_Minoan Cpmn,
Cyrillic Cyrl, Deseret Dsrt, Devanagari Deva, Dives_Akuru Diak, Dogra Dogr, Duployan Dupl, Egyptian_Hieroglyphs
Egyp, Elbasan Elba, Elymaic Elym, Ethiopic Ethi, Garay Gara, Georgian Geor, Glagolitic Glag, Gothic Goth,
Grantha Gran, Greek Grek, Gujarati Gujr, Gunjala_Gondi Gong, Gurmukhi Guru, Gurung_Khema Gukh, Han Hani, Hangul
Hang, Hanifi_Rohingya Rohg, Hanunoo Hano, Hatran Hatr, Hebrew Hebr, Hiragana Hira, Imperial_Aramaic Armi,
Inherited Zinh Qaai, Inscriptional_Pahlavi Phli, Inscriptional_Parthian Prti, Javanese Java, Kaithi Kthi,
Kannada Knda, Katakana Kana, Kawi, Kayah_Li Kali, Kharoshthi Khar, Khitan_Small_Script Kits, Khmer Khmr, Khojki
Khoj, Khudawadi Sind, Kirat_Rai Krai, Lao Laoo, Latin Latn, Lepcha Lepc, Limbu Limb, Linear_A Lina, Linear_B
Linb, Lisu, Lycian Lyci, Lydian Lydi, Mahajani Mahj, Makasar Maka, Malayalam Mlym, Mandaic Mand, Manichaean
Mani, Marchen Marc, Masaram_Gondi Gonm, Medefaidrin Medf, Meetei_Mayek Mtei, Mende_Kikakui Mend,
Meroitic_Cursive Merc, Meroitic_Hieroglyphs Mero, Miao Plrd, Modi, Mongolian Mong, Mro Mroo, Multani Mult,
Myanmar Mymr, Nabataean Nbat, Nag_Mundari Nagm, Nandinagari Nand, New_Tai_Lue Talu, Newa, Nko Nkoo, Nushu Nshu,
Nyiakeng_Puachue_Hmong Hmnp, Ogham Ogam, Ol_Chiki Olck, Ol_Onal Onao, Old_Hungarian Hung, Old_Italic Ital,
Old_North_Arabian Narb, Old_Permic Perm, Old_Persian Xpeo, Old_Sogdian Sogo, Old_South_Arabian Sarb, Old_Turkic
Orkh, Old_Uyghur Ougr, Oriya Orya, Osage Osge, Osmanya Osma, Pahawh_Hmong Hmng, Palmyrene Palm, Pau_Cin_Hau
Pauc, Phags_Pa Phag, Phoenician Phnx, Psalter_Pahlavi Phlp, Rejang Rjng, Runic Runr, Samaritan Samr, Saurashtra
Saur, Sharada Shrd, Shavian Shaw, Siddham Sidd, SignWriting Sgnw, Sinhala Sinh, Sogdian Sogd, Sora_Sompeng Sora,
Soyombo Soyo, Sundanese Sund, Sunuwar Sunu, Syloti_Nagri Sylo, Syriac Syrc, Tagalog Tglg, Tagbanwa Tagb, Tai_Le
Tale, Tai_Tham Lana, Tai_Viet Tavt, Takri Takr, Tamil Taml, Tangsa Tnsa, Tangut Tang, Telugu Telu, Thaana Thaa,
Thai, Tibetan Tibt, Tifinagh Tfng, Tirhuta Tirh, Todhri Todr, Toto, Tulu_Tigalari Tutg, Ugaritic Ugar, Vai Vaii,
Vithkuqi Vith, Wancho Wcho, Warang_Citi Wara, Yezidi Yezi, Yi Yiii, Zanabazar_Square Zanb
"""
# Blocks that Oniguruma knows: all but those of surrogates. Each is a run of whole 16s.
BLOCKS = """
Adlam, Aegean Numbers, Ahom, Alchemical Symbols, Alphabetic Presentation Forms, Anatolian Hieroglyphs, Ancient Greek
Musical Notation, Ancient Greek Numbers, Ancient Symbols, Arabic, Arabic Extended-A, Arabic Extended-B, Arabic
Extended-C, Arabic Mathematical Alphabetic Symbols, Arabic Presentation Forms-A, Arabic Presentation Forms-B, Arabic
Supplement, Armenian, Arrows, Avestan, Balinese, Bamum, Bamum Supplement, Basic Latin, Bassa Vah, Batak, Bengali,
Bhaiksuki, Block Elements, Bopomofo, Bopomofo Extended, Box Drawing, Brahmi, Braille Patterns, Buginese, Buhid,
Byzantine Musical Symbols, CJK Compatibility, CJK Compatibility Forms, CJK Compatibility Ideographs, CJK Compatibility
Ideographs Supplement, CJK Radicals Supplement, CJK Strokes, CJK Symbols and Punctuation, CJK Unified Ideographs, CJK
Unified Ideographs Extension A, CJK Unified Ideographs Extension B, CJK Unified Ideographs Extension C, CJK Unified
Ideographs Extension D, CJK Unified Ideographs Extension E, CJK Unified Ideographs Extension F, CJK Unified Ideographs
Extension G, CJK Unified Ideographs Extension H, CJK Unified Ideographs Extension I, Carian, Caucasian Albanian,
Chakma, Cham, Cherokee, Cherokee Supplement, Chess Symbols, Chorasmian, Combining Diacritical Marks, Combining
Diacritical Marks Extended, Combining Diacritical Marks Supplement, Combining Diacritical Marks for Symbols, Combining
Half Marks, Common Indic Number Forms, Control Pictures, Coptic, Coptic Epact Numbers, Counting Rod Numerals,
Cuneiform, Cuneiform Numbers and Punctuation, Currency Symbols, Cypriot Syllabary, Cypro-Minoan, Cyrillic, Cyrillic
Extended-A, Cyrillic Extended-B, Cyrillic Extended-C, Cyrillic Extended-D, Cyrillic Supplement, Deseret, Devanagari,
Devanagari Extended, Devanagari Extended-A, Dingbats, Dives Akuru, Dogra, Domino Tiles, Duployan, Early Dynastic
Cuneiform, Egyptian Hieroglyph Format Controls, Egyptian Hieroglyphs, Egyptian Hieroglyphs Extended-A, Elbasan,
Elymaic, Emoticons, Enclosed Alphanumeric Supplement, Enclosed Alphanumerics, Enclosed CJK Letters and Months,
Enclosed Ideographic Supplement, Ethiopic, Ethiopic Extended, Ethiopic Extended-A, Ethiopic Extended-B, Ethiopic
Supplement, Garay, General Punctuation, Geometric Shapes, Geometric Shapes Extended, Georgian, Georgian Extended,
Georgian Supplement, Glagolitic, Glagolitic Supplement, Gothic, Grantha, Greek Extended, Greek and Coptic, Gujarati,
Gunjala Gondi, Gurmukhi, Gurung Khema, Halfwidth and Fullwidth Forms, Hangul Compatibility Jamo, Hangul Jamo, Hangul
Jamo Extended-A, Hangul Jamo Extended-B, Hangul Syllables, Hanifi Rohingya, Hanunoo, Hatran, Hebrew, Hiragana, IPA
Extensions, Ideographic Description Characters, Ideographic Symbols and Punctuation, Imperial Aramaic, Indic Siyaq
Numbers, Inscriptional Pahlavi, Inscriptional Parthian, Javanese, Kaithi, Kaktovik Numerals, Kana Extended-A, Kana
Extended-B, Kana Supplement, Kanbun, Kangxi Radicals, Kannada, Katakana, Katakana Phonetic Extensions, Kawi, Kayah Li,
Kharoshthi, Khitan Small Script, Khmer, Khmer Symbols, Khojki, Khudawadi, Kirat Rai, Lao, Latin Extended Additional,
Latin Extended-A, Latin Extended-B, Latin Extended-C, Latin Extended-D, Latin Extended-E, Latin Extended-F, Latin
Extended-G, Latin-1 Supplement, Lepcha, Letterlike Symbols, Limbu, Linear A, Linear B Ideograms, Linear B Syllabary,
Lisu, Lisu Supplement, Lycian, Lydian, Mahajani, Mahjong Tiles, Makasar, Malayalam, Mandaic, Manichaean, Marchen,
Masaram Gondi, Mathematical Alphanumeric Symbols, Mathematical Operators, Mayan Numerals, Medefaidrin, Meetei Mayek,
Meetei Mayek Extensions, Mende Kikakui, Meroitic Cursive, Meroitic Hieroglyphs, Miao, Miscellaneous Mathematical
Symbols-A, Miscellaneous Mathematical Symbols-B, Miscellaneous Symbols, Miscellaneous Symbols and Arrows,
Miscellaneous Symbols and Pictographs, Miscellaneous Technical, Modi, Modifier Tone Letters, Mongolian, Mongolian
Supplement, Mro, Multani, Musical Symbols, Myanmar, Myanmar Extended-A, Myanmar Extended-B, Myanmar Extended-C, NKo,
Nabataean, Nag Mundari, Nandinagari, New Tai Lue, Newa, Number Forms, Nushu, Nyiakeng Puachue Hmong, Ogham, Ol Chiki,
Ol Onal, Old Hungarian, Old Italic, Old North Arabian, Old Permic, Old Persian, Old Sogdian, Old South Arabian, Old
Turkic, Old Uyghur, Optical Character Recognition, Oriya, Ornamental Dingbats, Osage, Osmanya, Ottoman Siyaq Numbers,
Pahawh Hmong, Palmyrene, Pau Cin Hau, Phags-pa, Phaistos Disc, Phoenician, Phonetic Extensions, Phonetic Extensions
Supplement, Playing Cards, Private Use Area, Psalter Pahlavi, Rejang, Rumi Numeral Symbols, Runic, Samaritan,
Saurashtra, Sharada, Shavian, Shorthand Format Controls, Siddham, Sinhala, Sinhala Archaic Numbers, Small Form
Variants, Small Kana Extension, Sogdian, Sora Sompeng, Soyombo, Spacing Modifier Letters, Specials, Sundanese,
Sundanese Supplement, Sunuwar, Superscripts and Subscripts, Supplemental Arrows-A, Supplemental Arrows-B, Supplemental
Arrows-C, Supplemental Mathematical Operators, Supplemental Punctuation, Supplemental Symbols and Pictographs,
Supplementary Private Use Area-A, Supplementary Private Use Area-B, Sutton SignWriting, Syloti Nagri, Symbols and
Pictographs Extended-A, Symbols for Legacy Computing, Symbols for Legacy Computing Supplement, Syriac, Syriac
Supplement, Tagalog, Tagbanwa, Tags, Tai Le, Tai Tham, Tai Viet, Tai Xuan Jing Symbols, Takri, Tamil, Tamil
Supplement, Tangsa, Tangut, Tangut Components, Tangut Supplement, Telugu, Thaana, Thai, Tibetan, Tifinagh, Tirhuta,
Todhri, Toto, Transport and Map Symbols, Tulu-Tigalari, Ugaritic, Unified Canadian Aboriginal Syllabics, Unified
Canadian Aboriginal Syllabics Extended, Unified Canadian Aboriginal Syllabics Extended-A, Vai, Variation Selectors,
Variation Selectors Supplement, Vedic Extensions, Vertical Forms, Vithkuqi, Wancho, Warang Citi, Yezidi, Yi Radicals,
Yi Syllables, Yijing Hexagram Symbols, Zanabazar Square, Znamenny Musical Notation
"""
SIXTEENS = "".join(map(chr, filter(set(CODES).__contains__, range(0, 0x110000, 16))))


def oniguruma(pattern: str) -> set[int]:
    left = set(normalizers.Replace(Regex(pattern), "").normalize_str(TEXT))
    return {code for code in ASSIGNED if chr(code) not in left}


class Pcre2:
    """Which characters a pattern of PCRE2 matches."""

    def __init__(self):
        self.library = ctypes.CDLL("libpcre2-8.so.0")
        self.library.pcre2_compile_8.restype = ctypes.c_void_p
        self.library.pcre2_match_data_create_8.restype = ctypes.c_void_p
        self.library.pcre2_get_ovector_pointer_8.restype = ctypes.POINTER(ctypes.c_size_t)
        self.data = ctypes.c_void_p(self.library.pcre2_match_data_create_8(1, None))
        self.bounds = self.library.pcre2_get_ovector_pointer_8(self.data)
        self.text = TEXT.encode()

    def matches(self, pattern: str) -> set[int]:
        """Empty also for a property that it does not know."""
        utf_and_ucp, no_utf_check = 0x80000 | 0x20000, 0x40000000
        error, offset = ctypes.c_int(), ctypes.c_size_t()
        code = ctypes.c_void_p(self.library.pcre2_compile_8(
            pattern.encode(), ctypes.c_size_t(len(pattern)), utf_and_ucp, ctypes.byref(error), ctypes.byref(offset), None))
        found = set()
        end = 0
        while code and self.library.pcre2_match_8(code, self.text, ctypes.c_size_t(len(self.text)), ctypes.c_size_t(end),
                                                  no_utf_check, self.data, None) >= 0:
            begin, end = self.bounds[0], self.bounds[1]
            found.update(map(ord, self.text[begin:end].decode()))
        return found


def ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    found = []
    for code in sorted(codes):
        if found and found[-1][1] == code - 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return found


def pieces(pre_tokenizer, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


def each(rewrite: Callable[[str], str]) -> dict[int, str]:
    """What becomes of each character but the one that keeps them apart."""
    results = {}
    for begin in range(0, len(CODES), CHUNK):
        part = [code for code in CODES[begin:begin + CHUNK] if code != ord("|")]
        results |= zip(part, rewrite("|".join(map(chr, part))).split("|"), strict=True)
    return results


def newer_characters(pcre2: Pcre2, scripts: list[list[str]]) -> list[str]:
    """Rows of the characters that Oniguruma knows more about."""
    what = {}

    def add(kind: int, name: str, pattern: str, other: str) -> None:
        mine, theirs = oniguruma(pattern), pcre2.matches(other)
        for code in mine - theirs:
            what.setdefault(code, ([], [], []))[kind].append(name)
        for code in theirs - mine:
            print(f"PCRE2 alone has U+{code:04X} in {name}: see tokenizer_unicode.cc", file=sys.stderr)

    for name in CATEGORIES:
        add(0, name, rf"\p{{{name}}}", rf"\p{{{name}}}+")
    for names in scripts:
        add(1, names[0], rf"\p{{{names[0]}}}", rf"\p{{sc:{names[0]}}}+")
    for name in PROPERTIES:
        add(2, name, rf"\p{{{name}}}", rf"\p{{{name}}}+")
    same = {}
    for code, (category, script, properties) in what.items():
        same.setdefault(("".join(category), "".join(script), " ".join(properties)), set()).add(code)
    rows = [(first, last, *key) for key, codes in same.items() for first, last in ranges(codes)]
    return [f'{{0x{row[0]:X}, 0x{row[1]:X}, "{row[2]}", "{row[3]}", "{row[4]}"}}' for row in sorted(rows)]


def blocks() -> list[str]:
    rows = []
    for name in " ".join(BLOCKS.split()).split(", "):
        left = set(normalizers.Replace(Regex(rf"\p{{In{name}}}"), "").normalize_str(SIXTEENS))
        found = [ord(character) for character in SIXTEENS if character not in left]
        first, last = found[0], found[-1] + 15
        assert last - first + 1 == 16 * len(found)
        rows.append((first, last, name.lower().replace(" ", "").replace("-", "")))
    return [f'{{0x{first:X}, 0x{last:X}, "{name}"}}' for first, last, name in sorted(rows)]


def scripts_of_pre_tokenizer() -> list[str]:
    """Rows (first, last, number) of UnicodeScripts; the numbers are arbitrary, characters in no row stick to any."""
    tokenizer = pre_tokenizers.UnicodeScripts()

    def sticks(text: str) -> bool:
        return len(pieces(tokenizer, text)) == 1

    has_script = [code for code in CODES if not (sticks("a" + chr(code)) and sticks("\u3042" + chr(code)))]
    rows, first_of, done = [], [], 0
    for piece in pieces(tokenizer, "".join(map(chr, has_script))):
        run = has_script[done:done + len(piece)]
        done += len(piece)
        number = next((i for i, first in enumerate(first_of) if sticks(first + piece[0])), len(first_of))
        if number == len(first_of):
            first_of.append(piece[0])
        rows += [(first, last, number) for first, last in ranges(run)]
    assert done == len(has_script)
    merged = []
    for first, last, number in rows:
        if merged and merged[-1][1] == first - 1 and merged[-1][2] == number:
            merged[-1] = (merged[-1][0], last, number)
        else:
            merged.append((first, last, number))
    return [f"{{0x{first:X}, 0x{last:X}, {number}}}" for first, last, number in merged]


def rows_of(codes: set[int]) -> list[str]:
    return [f"{{0x{first:X}, 0x{last:X}}}" for first, last in ranges(codes)]


def array(kind: str, name: str, rows: list[str]) -> str:
    return f"constexpr {kind} {name}[] = {{\n{', '.join(rows)},\n}};\n"


def bert(**wanted: bool) -> Callable[[str], str]:
    steps = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return normalizers.BertNormalizer(**steps | wanted).normalize_str


def main() -> int:
    pcre2 = Pcre2()
    scripts = [line.split() for line in SCRIPTS.replace("\n", " ").split(",")]
    known = [names for names in scripts if pcre2.matches(rf"\p{{sc:{names[0]}}}+")]
    control = {code for code, text in each(bert(clean_text=True)).items() if text == ""}
    chinese = {code for code, text in each(bert(handle_chinese_chars=True)).items() if text != chr(code)}
    accents = {code for code, text in each(bert(strip_accents=True)).items() if text == ""}
    combining = {code for code, text in each(normalizers.StripAccents().normalize_str).items() if text == ""}
    punctuation = {ord("|")}
    pre_tokenizer = pre_tokenizers.Punctuation("isolated")
    for begin in range(0, len(CODES), CHUNK):
        part = CODES[begin:begin + CHUNK]
        whole = set(pieces(pre_tokenizer, "|".join(f"a{chr(code)}a" for code in part)))
        punctuation.update(code for code in part if f"a{chr(code)}a" not in whole)
    normalized = [f'{{"{" ".join(name.replace("_", "").lower() for name in names)}", "{names[0]}", '
                  f'{"true" if names in known else "false"}}}' for names in scripts]
    parts = [
        "// Written by tests/golden/tokenizer_tables.py.\n#include \"model/tokenizer_tables.h\"\n\n"
        "namespace moiety::unicode_tables {\nnamespace {\n",
        array("NewerCharacters", "kNewer", newer_characters(pcre2, scripts)),
        array("ScriptName", "kScriptNames", normalized),
        array("BlockName", "kBlocks", blocks()),
        array("CodePointRange", "kPunctuation", rows_of(punctuation)),
        array("CodePointRange", "kCombining", rows_of(combining)),
        array("CodePointRange", "kBertAccents", rows_of(accents)),
        array("CodePointRange", "kBertControl", rows_of(control)),
        array("CodePointRange", "kBertChinese", rows_of(chinese)),
        array("ScriptRange", "kScripts", scripts_of_pre_tokenizer()),
        "\n}  // namespace\n\n",
    ]
    for kind, function, name in (
            ("NewerCharacters", "newer_characters", "kNewer"), ("ScriptName", "script_names", "kScriptNames"),
            ("BlockName", "blocks", "kBlocks"),
            ("CodePointRange", "punctuation", "kPunctuation"), ("CodePointRange", "combining_marks", "kCombining"),
            ("CodePointRange", "bert_accents", "kBertAccents"), ("CodePointRange", "bert_control", "kBertControl"),
            ("CodePointRange", "bert_chinese", "kBertChinese"), ("ScriptRange", "scripts", "kScripts")):
        parts.append(f"std::span<const {kind}> {function}() {{ return {name}; }}\n")
    parts.append("\n}  // namespace moiety::unicode_tables\n")
    OUTPUT.write_text("".join(parts), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
