import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.reading import load_table
from analysis.table import Cell, Protocol, better, protocol_differences

HEADER = "trial,generator_size,step,flops,g_forward_flops,metric,value"
ROW = "t1,S,100,1e15,2e9,fd_lite,12.5"


def write_csv(folder: Path, *lines: str) -> Path:
    path = folder / "results.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def parquet_row(**changes: Any) -> dict[str, Any]:
    """One row of the sweep's own table, with columns that the analysis does not read."""
    row = {
        "run": "r", "sweep": "s", "trial": "t1", "recipe": "digits", "generator_size": "S",
        "discriminator_size": "S", "patch": 2, "seed": 0, "config": "{}", "step": 100, "steps": 100,
        "flops": 1e15, "g_forward_flops": 2e9, "metric": "fd_lite", "value": 12.5, "n": 5000,
        "reference": "abc", "protocol": "v1", "status": "done", "reason": "", "seconds": 1.0,
    }  # fmt: skip
    return row | changes


def write_parquet(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_a_minimal_csv_gets_the_defaults(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER, "t1,S,50,1e15,2e9,fd_lite,20", "", "t1,S,100,2e15,2e9,fd_lite,12.5")
    (trial,) = load_table(path).trials
    assert trial.complete and trial.steps == 100
    assert trial.cell == Cell("S", "S", 2) and trial.cell.label == "S/2"
    assert trial.last.seed == 0 and trial.last.status == "done"
    assert trial.last.measured == Protocol("fd_lite", None, "", "")
    flops, value = trial.trajectory(trial.last.measured)
    assert flops.tolist() == [1e15, 2e15] and value.tolist() == [20, 12.5]


def test_csv_as_a_spreadsheet_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    header = HEADER + ",n,discriminator_size"
    path.write_bytes(f"\ufeff{header}\r\nt1,S,100.0,1E+15,2E+09,fd_lite,12.5,5000.0,B\r\n".encode())
    last = load_table(path).trials[0].last
    assert last.step == 100 and last.measured.n == 5000 and last.cell.label == "G S, D B, /2"


def test_blank_optional_cells_get_the_defaults(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER + ",patch,status,seed,steps,discriminator_size", ROW + ",,,,,")
    assert load_table(path).trials[0].last.cell == Cell("S", "S", 2)
    assert load_table(path).trials[0].complete


def test_a_directory_of_parquet(tmp_path: Path) -> None:
    rows = [parquet_row(step=100), parquet_row(step=50, flops=5e14, value=20.0, status="running")]  # in any order
    write_parquet(tmp_path / "a.parquet", *rows)
    write_parquet(tmp_path / "b.parquet", parquet_row(trial="t2", seed=1, value=13.0))
    (tmp_path / "c.parquet.tmp").write_text("being written")
    table = load_table(tmp_path)
    assert [t.name for t in table.complete()] == ["t1", "t2"]
    assert [row.step for row in table.trials[0].rows] == [50, 100]
    assert load_table(tmp_path / "b.parquet").trials[0].last.seed == 1


def test_excluded_trials_are_listed_with_a_reason(tmp_path: Path) -> None:
    end = {"step": 300, "steps": 800, "value": None}
    write_parquet(
        tmp_path / "all.parquet",
        parquet_row(trial="ok"),
        parquet_row(trial="nan", **end, status="diverged", reason="d_loss is nan\nat step 300"),
        parquet_row(trial="oom", **(end | {"value": math.nan}), status="failed"),
        parquet_row(trial="early", step=0, steps=800, flops=0.0, value=None, status="failed", reason="no GPU"),
        parquet_row(trial="cut", step=300, steps=800, status="running"),
        parquet_row(trial="short", step=300, steps=800, status="done"),
        parquet_row(trial="open", step=800, steps=800, status="running"),
    )
    table = load_table(tmp_path)
    assert [t.name for t in table.complete()] == ["ok"]
    assert {e.trial: (e.status, e.reason) for e in table.excluded()} == {
        "nan": ("diverged", "d_loss is nan at step 300"),
        "oom": ("failed", "failed at step 300 of 800"),
        "early": ("failed", "no GPU"),
        "cut": ("running", "unfinished: step 300 of 800"),
        "short": ("done", "unfinished: step 300 of 800"),
        "open": ("running", "unfinished: step 800 of 800, status running"),
    }


def test_another_measure_of_the_last_evaluation(tmp_path: Path) -> None:
    """A trial whose extras were not measured is left out, and says so."""
    write_parquet(
        tmp_path / "a.parquet",
        parquet_row(step=50, flops=5e14, fd_infinity=None),
        parquet_row(fd_infinity=7.5, kernel_distance=0.1),
    )
    write_parquet(tmp_path / "b.parquet", parquet_row(trial="t2", fd_infinity=None))
    table = load_table(tmp_path, "fd_infinity")
    (trial,) = table.complete()
    assert (trial.last.value, trial.last.measured.metric) == (7.5, "fd_lite:fd_infinity")
    assert trial.trajectory(trial.last.measured)[1].tolist() == [7.5]
    (excluded,) = table.excluded()
    assert (excluded.trial, excluded.reason) == ("t2", "fd_infinity was not measured at its last evaluation")
    with pytest.raises(ValueError, match="no such measure: 'recall'; use value, fd_infinity, kernel_distance"):
        load_table(tmp_path, "recall")
    write_parquet(tmp_path / "b.parquet", parquet_row(trial="t2"))
    with pytest.raises(ValueError, match="missing columns: fd_infinity"):
        load_table(tmp_path, "fd_infinity")


def test_differences_of_protocols_are_named_by_key() -> None:
    a = Protocol("fid", 10, "r", json.dumps({"n": 10, "psi": 1.0, "weights": "abc", "chunk": 64}))
    b = Protocol("fid", 10, "r", json.dumps({"n": 10, "psi": 0.5, "weights": "abc"}))
    expected = "protocol.psi is 1.0 (as in t1) or 0.5 (as in t2); protocol.chunk is 64 (as in t1) or None (as in t2)"
    assert protocol_differences({a: "t1", b: "t2"}) == expected
    plain = {Protocol("fid", 10, "r", "v1"): "t1", Protocol("fid", 20, "r", "v2"): "t2"}
    expected = "n is 10 (as in t1) or 20 (as in t2); protocol is 'v1' (as in t1) or 'v2' (as in t2)"
    assert protocol_differences(plain) == expected


def test_a_trial_that_failed_and_was_resumed_is_complete(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "a.parquet",
        parquet_row(step=50, flops=5e14, value=None, status="failed", reason="node lost"),
        parquet_row(step=100),
    )
    (trial,) = load_table(tmp_path).complete()
    assert len(trial.trajectory(trial.last.measured)[0]) == 1  # the row without a value is not a point


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("t1,S,100,-5,2e9,fd_lite,12.5", "row 3: flops must be a positive number, got '-5'"),
        ("t1,S,100,0,2e9,fd_lite,12.5", "row 3: flops must be a positive number, got '0'"),
        ("t1,S,100,1e15,many,fd_lite,12.5", "row 3: g_forward_flops must be a positive number, got 'many'"),
        ("t1,S,100,1e15,inf,fd_lite,12.5", "row 3: g_forward_flops must be a positive number, got 'inf'"),
        ("t1,S,100,1e15,2e9,fd_lite,", "row 3: value must be a positive number, got ''"),
        ("t1,S,100,1e15,2e9,fd_lite,nan", "row 3: value must be a positive number, got 'nan'"),
        ("t1,S,100,1e15,2e9,fd_lite,-1", "row 3: value must be a positive number, got '-1'"),
        (
            "t1,S,100,1e15,2e9,fd_lite,1e308",
            "row 3: value is '1e308'; give it in a unit in which it is between 1e-100 and 1e+100",
        ),
        (
            "t1,S,100,1e15,2e9,fd_lite,1e-310",
            "row 3: value is '1e-310'; give it in a unit in which it is between 1e-100 and 1e+100",
        ),
        ("t1,S,1.5,1e15,2e9,fd_lite,1", "row 3: step must be a whole number of at least 0, got '1.5'"),
        ("t1,S,x,1e15,2e9,fd_lite,1", "row 3: step must be a whole number of at least 0, got 'x'"),
        (",S,100,1e15,2e9,fd_lite,1", "row 3: trial is empty"),
        ("t1,S,100,1e15,2e9", "row 3: 5 fields, but the header has 7"),
        ("t1,S,100,1e15,2e9,fd_lite,12,5", "row 3: 8 fields, but the header has 7"),
    ],
)
def test_a_bad_csv_cell_is_named_in_one_line(tmp_path: Path, line: str, message: str) -> None:
    path = write_csv(tmp_path, HEADER, ROW, line)
    with pytest.raises(ValueError) as error:
        load_table(path)
    assert str(error.value) == f"{path}, {message}"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("12.5,finished", "status must be one of running, done, diverged, failed, raced, got 'finished'"),
        ("abc,failed", "value must be a positive number, got 'abc'"),
        (",running", "value must be a positive number, got ''"),
    ],
)
def test_status_and_value_of_a_csv(tmp_path: Path, cells: str, message: str) -> None:
    path = write_csv(tmp_path, HEADER + ",status", f"t1,S,100,1e15,2e9,fd_lite,{cells}")
    with pytest.raises(ValueError) as error:
        load_table(path)
    assert str(error.value) == f"{path}, row 2: {message}"


def test_rows_are_counted_as_lines_of_the_file(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER + ",reason", "", ROW + ',"two\nlines"', "t1,S,100,1e15,2e9,fd,bad,")
    with pytest.raises(ValueError, match="row 5: value"):
        load_table(path)


@pytest.mark.parametrize(
    ("change", "column", "shown"),
    [
        ({"value": None}, "value", "None"),
        ({"flops": -1.0}, "flops", "-1.0"),
        ({"value": 0.0}, "value", "0.0"),
    ],
)
def test_a_bad_parquet_value(tmp_path: Path, change: dict[str, Any], column: str, shown: str) -> None:
    path = write_parquet(tmp_path / "t.parquet", parquet_row(), parquet_row(**change))
    with pytest.raises(ValueError) as error:
        load_table(tmp_path)
    assert str(error.value) == f"{path}, row 2: {column} must be a positive number, got {shown}"


def test_missing_columns_of_a_csv(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "trial,generator_size,step,flops,fid", "t1,S,1,1e9,3")
    with pytest.raises(ValueError) as error:
        load_table(path)
    assert str(error.value).startswith(
        f"{path}: missing columns: metric, value; "
        "required: trial, generator_size, step, flops, metric, value; optional: g_forward_flops, "
    )


def test_a_parquet_table_without_status_is_refused(tmp_path: Path) -> None:
    row = parquet_row()
    del row["status"], row["steps"]
    path = write_parquet(tmp_path / "t.parquet", row)
    with pytest.raises(ValueError) as error:
        load_table(path)
    assert str(error.value).startswith(f"{path}: missing columns: steps, status; required: trial, ")


def test_one_name_for_several_sizes_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER, ROW, ROW.replace(",S,", ",B,"))
    with pytest.raises(ValueError, match=r"trial 't1' has rows of several sizes \(B/2, S/2\)"):
        load_table(path)


def test_paths_that_are_no_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.parquet files"):
        load_table(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        load_table(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="no rows"):
        load_table(write_csv(tmp_path, ""))
    with pytest.raises(ValueError, match="no rows"):
        load_table(write_csv(tmp_path, HEADER))
    for name, content in (("notes.txt", b"x"), ("broken.parquet", b"x"), ("latin.csv", b"\xff\xfe")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_table(tmp_path / name)


def test_analysis_needs_neither_torch_nor_ray_nor_the_training_code() -> None:
    code = (
        "import sys, analysis.figures.law; "
        "print([m for m in ('torch', 'ray', 'gat_sweep', 'mlflow', 'matplotlib.pyplot') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_trial_that_ended_before_its_first_evaluation_is_listed(tmp_path: Path) -> None:
    """Such a row has no metric, no value and no FLOPs; a sound row must have all three."""
    header = "trial,generator_size,step,flops,g_forward_flops,metric,value,status,reason\n"
    (tmp_path / "t.csv").write_text(header + "a,S,0,,1e9,,,failed,no memory\n")
    (excluded,) = load_table(tmp_path / "t.csv").excluded()
    assert (excluded.status, excluded.reason) == ("failed", "no memory")
    (tmp_path / "t.csv").write_text(header + "a,S,10,1e12,1e9,,3.0,done,\n")
    with pytest.raises(ValueError, match="row 2: metric is empty"):
        load_table(tmp_path / "t.csv")


def test_what_is_the_same_on_all_rows_of_a_trial(tmp_path: Path) -> None:
    """The config as dotted keys, widths out of its ladder; of a CSV its further columns."""
    config = {"ladder": {"S": {"width": 8}, "B": {"width": 12}}, "train": {"rate_g": 0.5}, "seed": 3}
    constants = {"config": json.dumps(config), "lr_g": 1e-3, "flops_per_image": '{"g_forward": 5}'}
    write_parquet(tmp_path / "a.parquet", parquet_row(**constants))
    facts = load_table(tmp_path / "a.parquet").trials[0].facts
    assert facts.config["train.rate_g"] == 0.5 and facts.config["seed"] == 3
    assert (facts.g_width, facts.lr_g, facts.lr_d, facts.items) == (8, 1e-3, None, {"g_forward": 5.0})
    path = write_csv(tmp_path, HEADER + ",g_width,mng.schedule,train.rate_g", ROW + ",64,exp,2")
    facts = load_table(path).trials[0].facts
    assert facts.g_width == 64 and facts.d_width is None and facts.config == {"mng.schedule": "exp", "train.rate_g": 2}
    with pytest.raises(ValueError, match=r"row 2: one of .*g_width.* cannot be read"):
        load_table(write_csv(tmp_path, HEADER + ",g_width", ROW + ",wide"))


# ---------------------------------------------------------------- what a table cannot mean


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("trial_is_size_seeds.csv", r"row 7: trial 'S' has seed 1 here and 0 in row 2; give each seed a trial name"),
        ("dup_diff_value.csv", r"row 7: trial 'S-0' has a second value at step 1000, 300 after 118 in row 2"),
        ("flopsdrop.csv", r"row 26: "),
        ("pflopdays.csv", r"row 2: flops are 11\.5741, less than one forward pass of the generator in each of 1000"),
        ("log10.csv", r"row 2: flops are 18, less than one forward pass .* not in another unit"),
    ],
)
def test_what_a_table_cannot_mean_is_refused_with_its_row(file: str, message: str) -> None:
    path = Path(__file__).parents[1] / "data" / "law" / file
    with pytest.raises(ValueError, match=message) as error:
        load_table(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("flops", ["18", "18.5", "1.0", "999999"])
def test_flops_in_another_unit_are_refused_without_a_forward_to_compare(tmp_path: Path, flops: str) -> None:
    header = "trial,generator_size,step,flops,metric,value"
    with pytest.raises(ValueError, match=rf"row 2: flops are {flops.removesuffix('.0')} after 1000 steps, too few to"):
        load_table(write_csv(tmp_path, header, f"S,S,1000,{flops},fid,50"))


# ---------------------------------------------------------------- as other programs write them

PLAIN = "trial,generator_size,step,flops,metric,value\nS-0,S,1000,1e12,fid,84.5\nB-0,B,1000,3.5e12,fid,58\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.CSV", PLAIN),
        ("a.tsv", PLAIN.replace(",", "\t")),
        ("a.csv", PLAIN.replace(",", ";")),
        ("a.csv", PLAIN.replace(",", ";").replace("84.5", "84,5").replace("3.5e12", "3,5e12")),
        ("a.csv", "sep=;\n" + PLAIN.replace(",", ";")),
        ("a.csv", "SEP=,\n" + PLAIN),
        (
            "a.csv",
            PLAIN.replace("trial,generator_size", "Trial,Generator Size").replace("flops", "FLOPs"),
        ),
        ("a.csv", "# of the wiki\n\n" + PLAIN.replace("B-0", "# B is from last week\nB-0")),
        ("a.csv", "\ufeff" + PLAIN.replace("\n", "\r\n")),
        ("a.csv", PLAIN.replace("84.5", '"84.5"').replace("metric", '"metric"')),
    ],
    ids=["CSV", "tsv", "semicolons", "decimal commas", "sep", "SEP", "capitals", "comments", "BOM", "quotes"],
)
def test_tables_of_other_programs_are_read_as_the_plain_one(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "plain.csv").write_text(PLAIN)
    (tmp_path / name).write_text(text, newline="")
    ours, theirs = load_table(tmp_path / name), load_table(tmp_path / "plain.csv")
    assert [trial.rows for trial in ours.trials] == [trial.rows for trial in theirs.trials]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN.replace("metric", "Step"), "the column step is there twice"),
        (PLAIN.replace("84.5", "84,5"), "row 2: 7 fields, but the header has 6"),
        (PLAIN.replace(",", ";").replace("84.5", "1.184,5"), "row 2: value must be a positive number, got '1.184,5'"),
        ("sep=|\n" + PLAIN, "its first line says 'sep=|'; use comma, semicolon, tab"),
    ],
)
def test_what_is_not_clear_in_a_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_table(tmp_path / "a.csv")


def test_flops_that_do_not_rise_are_refused(tmp_path: Path) -> None:
    """Also where they stay: training goes on, and costs."""
    for flops in ("9e14", "1e15"):
        path = write_csv(tmp_path, HEADER, ROW, f"t1,S,200,{flops},2e9,fd_lite,10")
        with pytest.raises(ValueError, match=r"row 3: .* not more than the 1e\+15 at step 100 in row 2"):
            load_table(path)


def test_the_same_value_twice_is_refused_and_two_metrics_are_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 3: trial 't1' has a second value at step 100"):
        load_table(write_csv(tmp_path, HEADER, ROW, ROW))
    assert len(load_table(write_csv(tmp_path, HEADER, ROW, ROW.replace("fd_lite", "kid"))).trials[0].rows) == 2


@pytest.mark.parametrize(
    ("metric", "asked", "expected"),
    [
        ("fid", None, -1), ("fd_efficientnet_lite0", None, -1), ("fid:kernel_distance", None, -1),
        ("inception_score", None, 1), ("recall", None, 1), ("clip_score", "higher", 1), ("mine", "lower", -1),
    ],
)  # fmt: skip
def test_the_direction_of_a_metric(metric: str, asked: str | None, expected: int) -> None:
    assert better(metric, asked) == expected


def test_a_direction_that_is_unknown_or_contradicts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not say whether .* give --better lower or --better higher"):
        better("mine")
    with pytest.raises(ValueError, match="of fid, a lower value is better, but --better higher was given"):
        better("fid", "higher")
