"""HTML report of a whole study in one file: tables, figures, samples, failures; it loads nothing from elsewhere.

Every number of an analysis is in a table. The last column links to the trials that the number was read from, and each
trial links to its rows.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

TRIALS = ("trials", "trial")  # keys whose values are names of trials
SHOWN_ROWS = 200  # of a trial; the report names the file that has all of them
STYLE = """
body { font: 15px/1.5 Georgia, 'DejaVu Serif', serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1, h2, h3 { font-weight: normal; line-height: 1.2 } h2 { border-bottom: 1px solid #999; margin-top: 2.5rem }
table { border-collapse: collapse; font-size: 13px; margin: .8rem 0; display: block; overflow-x: auto }
th, td { padding: .15rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
tr:not(:has(td)) th { border-bottom: 1px solid #111 }
th { font-weight: normal; color: #444 } td.number { text-align: right } td.number, td.time { white-space: nowrap }
pre { font: 13px/1.45 'DejaVu Sans Mono', monospace; white-space: pre-wrap; background: #f6f6f6; padding: .6rem .8rem }
img { max-width: 100% } figure { margin: 1rem 0 } figcaption { font-size: 13px; color: #444 }
figure.grid { display: inline-block; width: 18rem; margin: .4rem; vertical-align: top }
figure.grid img { width: 100%; image-rendering: pixelated }
details { margin: .4rem 0 } summary { cursor: pointer } a { color: #00508a }
"""


@dataclass(frozen=True)
class Section:
    """An analysis in the report: its question with the answer, its words, its figure (a .svg) and its JSON."""

    title: str
    question: str
    verdict: str
    text: str
    report: Mapping[str, Any]
    figure: Path | None = None


@dataclass(frozen=True)
class Picture:
    """Samples of a trial, as PNG."""

    trial: str
    caption: str
    png: bytes


def html_report(
    title: str,
    about: Mapping[str, str],
    trials: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    sections: Sequence[Section],
    refused: Sequence[tuple[str, str]],
    pictures: Sequence[Picture],
) -> str:
    """Return the text of the file.

    about: facts at the head of the report. trials: by name, the facts in the table of results. rows: by name, the rows
    of the trial's table. refused: (question, why this study does not allow an answer).
    """
    link = _Linker(trials)
    parts = [f"<h1>{escape(title)}</h1>", _facts(about, link)]
    titles = [*(section.title for section in sections), "Results", "Samples", "Rows"]
    parts.append("<p>" + " · ".join(f'<a href="#{_id(name)}">{escape(name)}</a>' for name in titles) + "</p>")
    parts.append("<table>")
    for section in sections:
        question = f'<a href="#{_id(section.title)}">{escape(section.question)}</a>'
        parts.append(f"<tr><th>{question}</th><td>{link(section.verdict)}</td></tr>")
    parts += [f"<tr><th>{escape(name)}</th><td>not possible: {link(why)}</td></tr>" for name, why in refused]
    parts.append("</table>")
    for section in sections:
        parts += [f'<h2 id="{_id(section.title)}">{escape(section.title)}</h2>']
        if section.figure is not None:
            data = base64.b64encode(section.figure.read_bytes()).decode()
            alt = escape(section.title)
            parts.append(f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></figure>')
        parts.append(f"<pre>{link(section.text)}</pre>")
        for name, table in evidence(section.report):
            parts.append(f"<details><summary>{escape(name)}</summary>{_table(table, link)}</details>")
    parts.append('<h2 id="results">Results</h2>')
    parts.append(_table([{"trial": name, **facts} for name, facts in trials.items()], link))
    parts.append('<h2 id="samples">Samples</h2>')
    parts += [_grid(picture, link) for picture in pictures] or ["<p>No samples are kept.</p>"]
    parts.append('<h2 id="rows">Rows</h2>')
    for name in trials:
        found = list(rows.get(name, []))
        parts.append(f'<h3 id="{_id(name)}">{escape(name)}</h3>')
        parts.append(_table(found[-SHOWN_ROWS:], link) if found else "<p>No rows.</p>")
        if len(found) > SHOWN_ROWS:
            parts.append(f"<p>The last {SHOWN_ROWS} of {len(found)} rows; all are in table/{escape(name)}.parquet.</p>")
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def evidence(report: Any, above: str = "") -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield (where, records) for every list of records in a JSON that name their trials, at any depth."""
    if isinstance(report, Mapping):
        for key, value in report.items():
            yield from evidence(value, f"{above}, {key}" if above else str(key))
    elif isinstance(report, Sequence) and not isinstance(report, str):
        records = [item for item in report if isinstance(item, Mapping)]
        if records and any(key in record for record in records for key in TRIALS):
            yield above.replace("_", " "), records
        for record in records:
            yield from evidence({k: v for k, v in record.items() if isinstance(v, Mapping | list)}, above)


class _Linker:
    """HTML escaping that also links every name of a trial to the trial's rows."""

    def __init__(self, trials: Mapping[str, Any]):
        names = sorted(trials, key=len, reverse=True)  # longest first, because a name may begin with another
        self.pattern = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in names) or r"(?!)")

    def __call__(self, text: str) -> str:
        parts, last = [], 0
        for match in self.pattern.finditer(text):
            parts.append(escape(text[last : match.start()]))
            parts.append(f'<a href="#{_id(match[0])}">{escape(match[0])}</a>')
            last = match.end()
        return "".join([*parts, escape(text[last:])])


def _facts(values: Mapping[str, str], link: _Linker) -> str:
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{link(value)}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def _table(records: Sequence[Mapping[str, Any]], link: _Linker) -> str:
    """A table with a column for each key that says anything; nested values have tables of their own, except lists of
    plain values."""
    keys = [key for key in dict.fromkeys(k for record in records for k in record) if _is_plain(records, key)]
    keys = [key for key in keys if any(_value_text(record.get(key)) for record in records)]
    keys.sort(key=lambda key: key in TRIALS and key != "trial")  # `trials` comes last, a record's own `trial` first
    keys.sort(key=lambda key: key != "trial")
    head = "".join(f"<th>{escape(key.replace('_', ' '))}</th>" for key in keys)
    body = []
    for record in records:
        cells = []
        for key in keys:
            value = record.get(key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            kind = "number" if number else "time" if key == "time" else ""
            cells.append(f'<td class="{kind}">{link(_value_text(value))}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _is_plain(records: Sequence[Mapping[str, Any]], key: str) -> bool:
    def plain(value: Any) -> bool:
        return not isinstance(value, Mapping | list | tuple)

    values = [record.get(key) for record in records]
    return all(plain(v) or (isinstance(v, list | tuple) and all(map(plain, v))) for v in values)


def _value_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_value_text, value))
    return str(value)


def _grid(picture: Picture, link: _Linker) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure class="grid"><img alt="samples of {escape(picture.trial)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{link(picture.caption)}</figcaption></figure>"
    )


def _id(name: str) -> str:
    return re.sub(r"[^\w-]", "-", name.lower())
