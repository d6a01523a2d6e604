"""The report: one file that loads nothing, whose links have ends, and that hides no trial."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from helpers.planted import finish, value_of
from helpers.processes import Gat
from PIL import Image

from analysis.html import Picture, Section, evidence, html_report
from gat_sweep.run.trial import Trial
from gat_sweep.train.recorder import record_failure

VOID = ("meta", "img", "link", "br")


class Page(HTMLParser):
    """Every id, link and source of a page; unbalanced tags are an error."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.sources, self.open = list[str](), list[str](), list[str](), list[str]()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values["src"]] if "src" in values else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(text: str) -> Page:
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"<script|@import|url\(|https?://", text)
    return page


def test_names_of_trials_are_links_and_text_is_text(tmp_path: Path) -> None:
    """A name that begins with another is its own; what a reason says is never markup."""
    (tmp_path / "a.svg").write_text("<svg/>")
    names = {"t-1": {"status": "done"}, "t-1-b": {"status": "failed", "reason": "<script>alert(1)</script> of t-1"}}
    section = Section(
        "Law & order",
        "Which?",
        "the law of t-1",
        "t-1-b is not t-1",
        {"points": [{"trials": ["t-1"], "b": 0.5}]},
        tmp_path / "a.svg",
    )
    rows = {"t-1": [{"step": i, "value": 1 / (i + 1)} for i in range(300)]}
    text = html_report("x", {"a": "b"}, names, rows, [section], [("Split?", "no t-1")], [Picture("t-1", "t-1", b"png")])
    page = checked(text)
    assert '<a href="#t-1-b">t-1-b</a> is not <a href="#t-1">t-1</a>' in text
    assert "&lt;script&gt;" in text and "the last 200 of 300" in text.lower()
    assert {"t-1", "t-1-b", "law---order", "results", "samples", "rows"} <= set(page.ids)
    assert len(page.sources) == 2


def test_evidence_is_every_list_that_names_trials() -> None:
    report = {"a": {"points": [{"trials": ["x"]}]}, "b": [{"trial": "y"}], "c": [{"z": 1}], "d": [1, 2], "e": "trials"}
    assert [name for name, _ in evidence(report)] == ["a, points", "b"]


def test_the_report_of_a_run(
    sizes: list[Trial],
    tmp_path: Path,
    gat: Gat,
) -> None:
    """With what failed, a prediction, samples, and the law; twice, from the command line."""
    home = ["--home", str(tmp_path)]
    assert gat("predict", "sizes", "--for", "XL", *home)[0] == 0
    first, second = [trial for trial in sizes if trial.config.model.generator == "XL"]
    finish(first, value_of(first))
    record_failure(second, "the disk is <full>")
    (sizes[0].folder / "samples").mkdir()
    for step, side in ((2, 16), (4, 1600)):
        Image.new("RGB", (side, side)).save(sizes[0].folder / "samples" / f"step_{step:08d}.png")
    for _ in range(2):
        code, out, err = gat("report", "sizes", *home)
        assert code == 0, err
    text = Path(out.strip()).read_text()
    assert out.strip() == str(tmp_path / "sizes" / "analysis" / "report.html")
    page = checked(text)
    assert {trial.id.lower() for trial in sizes} <= set(page.ids)
    assert "the disk is &lt;full&gt;" in text and "<full>" not in text
    assert "written before its first step" in text and "step 4, " in text
    for title in ("Scaling law", "Correlation with GFLOPs"):
        assert f">{title}</h2>" in text
    # It begins with an answer to every question.
    answers = text[: text.index("<h2")]
    assert "How does the metric fall" in answers and "fd_x = " in answers and "b [0." in answers
    assert "How does the best learning rate fall with the width?</th><td>not possible: " in answers
    assert any(source.startswith("data:image/svg+xml") for source in page.sources)
    assert len(text) < 3_000_000  # the large grid is made smaller

    code, _, err = gat("report", "size", *home)
    assert code == 2 and "no run 'size'" in err


def test_samples_stand_by_size_with_the_same_codes(sizes: list[Trial], tmp_path: Path, gat: Gat) -> None:
    """The newest grid of the first seed of each size, its first two rows, smallest size first."""
    shades = {}
    for trial in sizes:
        (trial.folder / "samples").mkdir(parents=True)
        shade = shades.setdefault(trial.config.model.generator, 40 + 50 * len(shades))
        for step, grey in ((2, 0), (4, shade if trial.config.seed == 0 else 0)):
            Image.new("L", (64, 64), grey).save(trial.folder / "samples" / f"step_{step:08d}.png")
    code, _, err = gat("report", "sizes", "--home", str(tmp_path))
    assert code == 0 and "samples by size: " in err
    with Image.open(tmp_path / "sizes" / "analysis" / "samples.png") as image:
        greys = np.asarray(image.convert("L"))[:, image.width // 2]
    seen = [int(grey) for grey in greys if grey in shades.values()]
    assert list(dict.fromkeys(seen)) == [shade for size, shade in shades.items() if size != "XL"]


def test_an_arm_to_compare_with_is_asked_for_by_its_label(tmp_path: Path, gat: Gat) -> None:
    header = "trial,generator_size,step,flops,g_forward_flops,metric,value,mng.schedule"
    rows = [f"{arm},S,10,{i}e10,1e9,fd_x,{10 * i},{arm}" for i, arm in enumerate(("none", "exp", "msg"), 1)]
    (tmp_path / "t.csv").write_text("\n".join([header, *rows]))
    compare = ["compare", str(tmp_path / "t.csv")]
    assert "msg / none: 3" in gat(*compare)[1].replace("schedule=", "")
    assert "msg / exp: 1.5" in gat(*compare, "--against", "schedule=exp")[1].replace("schedule=", "")
    code, _, err = gat(*compare, "--against", "exq")
    assert code == 2 and "no arm is called 'exq'; use one of: " in err
