from __future__ import annotations

import bisect
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lora_train.instrument.read.compact import GROUP_SITES, GROUP_STEPS, compact
from lora_train.instrument.read.load import STATS_COLUMNS, load_run
from lora_train.instrument.read.logs import read_history
from lora_train.instrument.read.store import (
    COLUMNS,
    FLOAT_COLUMNS,
    METRICS,
    MetricsLog,
    Site,
    StatsWriter,
    read_metrics,
    write_sites,
)
from lora_train.instrument.show.compare import compare_runs

from ...conftest import ROOT

RUNS = ROOT / "tests" / "runs"

TENSORS = ("out", "grad_out", "grad_in", "lora_A.grad", "lora_B.grad")

# The design: 10,000 steps of 1,120 sites stay under 500 MB live and under 160 MB compacted.
LIVE_BYTES, COMPACTED_BYTES = 500e6 / (10_000 * 1_120), 160e6 / (10_000 * 1_120)


def make_sites(n: int, prefix: str = "model.layers") -> list[Site]:
    return [Site(i, f"{prefix}.{i // 5}.q_proj", TENSORS[i % 5], (8, 64), "float16", i // 5) for i in range(n)]


def make_run(folder: Path, sites: list[Site], loss_scales: dict[int, float | None], start: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    log = MetricsLog(folder, start)
    for step, loss_scale in loss_scales.items():
        log.write({"step": step, "loss": 1.0, "loss_scale": loss_scale})
    log.close()
    write_sites(folder, sites)
    return folder


def some_rows(step: int, n_sites: int) -> np.ndarray:
    """Rows that tell step, site and column apart."""
    row = 1000.0 * step + np.arange(n_sites)
    return row[:, None] + 1e6 * np.arange(len(COLUMNS))


def write_steps(run: Path, start: int, n_sites: int, steps: range) -> None:
    writer = StatsWriter(run, start, n_sites)
    for step in steps:
        writer.write(step, some_rows(step, n_sites))
    writer.close()


def test_non_finite_values_are_null_and_lines_are_json(tmp_path):
    log = MetricsLog(tmp_path, start=0)
    log.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "tokens": 3})
    log.close()
    line = (tmp_path / METRICS).read_text()
    assert json.loads(line) == {"start": 0, "step": 1, "loss": None, "grad_norm": None, "tokens": 3}


def test_each_line_is_on_disk_at_once(tmp_path):
    log = MetricsLog(tmp_path, start=0)
    log.write({"step": 1, "loss": 2.0})
    assert len(read_metrics(tmp_path)) == 1


def test_reader_keeps_the_last_start_of_a_step_and_drops_torn_lines(tmp_path):
    first = MetricsLog(tmp_path, start=0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step)})
    first.write({"step": 2, "eval_loss": 0.5})
    first.close()
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"start": 0, "step": 4, "lo')
    second = MetricsLog(tmp_path, start=1)
    second.write({"step": 3, "loss": 33.0})
    second.write({"train_runtime": 1.0})
    second.close()
    assert read_metrics(tmp_path) == [
        {"start": 0, "step": 1, "loss": 1.0},
        {"start": 0, "step": 2, "loss": 2.0},
        {"start": 0, "step": 2, "eval_loss": 0.5},
        {"start": 1, "step": 3, "loss": 33.0},
        {"start": 1, "train_runtime": 1.0},
    ]
    assert [
        row["loss"] for row in read_metrics(tmp_path, every_start=True) if row.get("step") == 3 and "loss" in row
    ] == [
        3.0,
        33.0,
    ]


def test_metrics_frame_has_the_steps_in_order_and_nan_for_null(tmp_path):
    run = make_run(tmp_path, [], {1: 2.0, 2: None, 3: 4.0})
    log = MetricsLog(run, start=1)
    log.write({"step": 2, "loss": None, "loss_scale": 8.0, "grad_norm": float("nan")})
    log.write({"step": 2, "eval_loss": 1.0})
    log.write({"train_runtime": 1.0})
    log.close()
    frame = load_run(run).metrics()
    assert frame["step"].tolist() == [1, 2, 3]
    assert frame["start"].tolist() == [0, 1, 0]
    assert frame["loss_scale"].tolist() == [2.0, 8.0, 4.0]
    assert frame["grad_norm"].dtype == "float64"
    assert frame["loss"].isna().tolist() == [False, True, False]


def test_sites_come_back_as_written(tmp_path):
    sites = [
        Site(0, "model.layers.0.q_proj", "lora_A.grad", (8, 64), "float32", 3),
        Site(1, "가중치", "out", None, "bfloat16", 4),
    ]
    frame = load_run(make_run(tmp_path, sites, {})).sites
    assert frame.to_dict("records") == [
        {"id": 0, "name": "model.layers.0.q_proj:lora_A.grad", "module": "model.layers.0.q_proj",
         "tensor": "lora_A.grad", "shape": (8, 64), "dtype": "float32", "forward_order": 3},
        {"id": 1, "name": "가중치:out", "module": "가중치",
         "tensor": "out", "shape": None, "dtype": "bfloat16", "forward_order": 4},
    ]  # fmt: skip


def test_values_come_back(tmp_path):
    """Null is null, counts are exact up to 2^53, what fits fp32 is exact, other sums keep 2^-25."""
    n_sites = 5
    rows = np.full((n_sites, len(COLUMNS)), np.nan)
    rows[0] = [2.0, 65504.0, 1, 2, 3, 4, 5, 6, 2**53 - 1, 7.0, 0, 1]
    rows[1] = 0
    rows[2, :2] = [1e300, float(np.float32(1e-45))]
    rows[3, :2] = [math.pi * 1e39, float(np.float32(math.pi))]
    run = make_run(tmp_path, make_sites(n_sites), {7: 1.0})
    writer = StatsWriter(run, 0, n_sites)
    writer.write(7, rows)
    writer.close()
    frame = load_run(run).stats()
    assert frame["step"].tolist() == [7] * 5
    assert frame["start"].tolist() == [0] * 5
    assert frame["site"].tolist() == [site.name for site in make_sites(5)]
    read = frame[list(COLUMNS)]
    assert {column: str(read[column].dtype) for column in COLUMNS} == {
        column: "float64" if column in FLOAT_COLUMNS else "Int64" for column in COLUMNS
    }
    assert read.iloc[0].tolist() == rows[0].tolist()
    assert read["n"][0] == 2**53 - 1
    assert read.iloc[1].tolist() == [0] * len(COLUMNS)
    assert read.isna().to_numpy().tolist() == np.isnan(rows).tolist()
    assert read["sumsq"][2] == pytest.approx(1e300, rel=2**-25)
    assert frame["norm"][2] == pytest.approx(1e150, rel=2**-26)
    assert read["absmax"][2] == float(np.float32(1e-45))
    assert read["sumsq"][3] == pytest.approx(math.pi * 1e39, rel=2**-25)
    assert read["absmax"][3] == float(np.float32(math.pi))


def test_norms_of_gradients_are_unscaled_by_the_scale_of_their_own_step(tmp_path):
    run = make_run(tmp_path, make_sites(5), {1: 65536.0, 2: 32768.0, 3: None})
    with (run / METRICS).open("a") as file:
        file.write('{"start": 0, "step": 4, "loss": 1.0}\n')
    writer = StatsWriter(run, 0, 5)
    for step in range(1, 6):  # the kill came before the line of step 5
        rows = np.zeros((5, len(COLUMNS)))
        rows[:, 0] = (3.0 * 65536) ** 2
        writer.write(step, rows)
    writer.close()
    norms = load_run(run).stats(columns=["norm"]).pivot(index="step", columns="site", values="norm").to_numpy()
    activation, gradients = norms[:, 0], norms[:, 1:]
    assert activation.tolist() == [3.0 * 65536] * 5
    assert gradients[:, 0].tolist()[:2] == [3.0, 6.0]
    assert gradients[3, 0] == 3.0 * 65536  # a run without a loss scale
    assert np.isnan(gradients[[2, 4]]).all()
    assert (gradients[[0, 1, 3]] == gradients[[0, 1, 3], :1]).all()


def test_a_scale_of_another_start_does_not_unscale(tmp_path):
    """Killed between the row and the line: the line of the start before is another attempt's."""
    run = make_run(tmp_path, make_sites(5), {1: 1024.0})
    write_steps(run, 1, 5, range(1, 2))
    frame = load_run(run).stats(columns=["norm"])
    assert frame["norm"].isna().tolist() == [False, True, True, True, True]


def test_only_what_is_asked_for_is_read(tmp_path):
    run = make_run(tmp_path, make_sites(10), {})
    write_steps(run, 0, 10, range(1, 9))

    def check():
        loaded = load_run(run)
        frame = loaded.stats(sites=r"\.1\.q_proj:grad", columns=["n_zero", "absmax"], steps=[7, 2, 99])
        assert frame.columns.tolist() == ["step", "start", "site", "n_zero", "absmax"]
        assert frame["step"].tolist() == [2, 2, 7, 7]
        names = ["model.layers.1.q_proj:grad_out", "model.layers.1.q_proj:grad_in"]
        assert frame["site"].tolist() == names * 2
        assert frame["site"].cat.categories.tolist() == names
        assert frame["n_zero"].tolist() == [7_002_006, 7_002_007, 7_007_006, 7_007_007]
        assert frame["absmax"].tolist() == [1_002_006, 1_002_007, 1_007_006, 1_007_007]
        assert loaded.stats(columns=["n"], steps=range(3, 5))["n"].tolist() == [
            8_000_000 + 1000 * step + site for step in (3, 4) for site in range(10)
        ]
        assert loaded.stats(columns=["n"], steps=4)["step"].tolist() == [4] * 10
        assert loaded.stats(columns=["n"], steps=np.array([4]))["step"].tolist() == [4] * 10
        for nothing in (loaded.stats(sites="no such module"), loaded.stats(steps=[])):
            assert nothing.empty
            assert nothing.columns.tolist() == ["step", "start", "site", *STATS_COLUMNS]

    check()
    compact(run)
    check()
    with pytest.raises(ValueError, match="no such column: n_nans; there are sumsq, "):
        load_run(run).stats(columns=["n_nans"])


def test_a_run_without_statistics_gives_an_empty_frame(tmp_path):
    loaded = load_run(make_run(tmp_path, [], {1: 1.0}))
    (tmp_path / "sites.json").unlink()
    frame = loaded.stats()
    assert frame.columns.tolist() == ["step", "start", "site", *STATS_COLUMNS]
    assert frame.empty
    assert str(frame["n_nan"].dtype) == "Int64"
    assert str(frame["norm"].dtype) == "float64"
    assert loaded.sites.columns.tolist() == ["id", "name", "module", "tensor", "shape", "dtype", "forward_order"]
    compact(tmp_path)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=f"{folder} holds no run: there is no metrics.jsonl in it"):
            load_run(folder)


def test_the_last_start_of_a_step_wins(tmp_path):
    run = make_run(tmp_path, make_sites(5), {})
    write_steps(run, 0, 5, range(1, 7))
    # ten starts, because start-10 sorts before start-2 as text
    for start in range(1, 11):
        writer = StatsWriter(run, start, 5)
        writer.write(4, some_rows(100 + start, 5))
        writer.close()
    frame = load_run(run).stats(columns=["n"], sites="0.q_proj:out")
    assert frame["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert frame["start"].tolist() == [0, 0, 0, 10, 0, 0]
    assert frame["n"].tolist() == [8_001_000, 8_002_000, 8_003_000, 8_110_000, 8_005_000, 8_006_000]


def test_a_step_written_twice_counts_once(tmp_path):
    run = make_run(tmp_path, make_sites(5), {})
    writer = StatsWriter(run, 0, 5)
    for step, value in ((1, 1), (2, 2), (3, 3), (2, 22)):
        writer.write(step, some_rows(value, 5))
    writer.close()

    def check():
        frame = load_run(run).stats(columns=["absmax"], sites=":out")
        assert frame["step"].tolist() == [1, 2, 3]
        assert frame["absmax"].tolist() == [1_001_000, 1_022_000, 1_003_000]

    check()
    compact(run)
    check()


def test_rows_that_a_damaged_file_repeats_count_once(tmp_path):
    run = shutil.copytree(RUNS / "healthy", tmp_path / "run")
    before, file = load_run(run).stats(), run / "stats" / "start-0.parquet"
    table = pq.read_table(file)
    facts = {key: value for key, value in pq.read_metadata(file).metadata.items() if key != b"ARROW:schema"}
    pq.write_table(pa.concat_tables([table, table.slice(3, 5)]).replace_schema_metadata(facts), file)
    pd.testing.assert_frame_equal(load_run(run).stats(), before)
    compare_runs([read_history(run), read_history(RUNS / "healed")])


def test_a_started_stream_is_never_overwritten(tmp_path):
    run = make_run(tmp_path, make_sites(5), {})
    write_steps(run, 3, 5, range(1, 4))
    stream = run / "stats" / "start-3.arrows"
    torn = stream.read_bytes()[:-100]
    stream.write_bytes(torn)
    write_steps(run, 3, 5, range(3, 5))
    assert stream.read_bytes() == torn
    assert load_run(run).stats(columns=["n"])["step"].unique().tolist() == [1, 2, 3, 4]
    compact(run)
    write_steps(run, 3, 5, range(5, 6))
    assert sorted(path.name for path in (run / "stats").iterdir()) == [
        "start-3.1.parquet",
        "start-3.2.arrows",
        "start-3.parquet",
    ]
    frame = load_run(run).stats(columns=["n"], sites=":out")
    assert frame["n"].tolist() == [8_000_000 + 1000 * step for step in range(1, 6)]


def test_a_resumed_run_may_watch_other_sites(tmp_path):
    run = make_run(tmp_path, make_sites(5), {})
    write_steps(run, 0, 5, range(1, 3))
    others = [
        Site(0, "lm_head", "out", None, "float16", 9),
        Site(1, "model.layers.0.q_proj", "out", None, "float16", 0),
    ]
    write_sites(run, others)
    write_steps(run, 1, 2, range(3, 4))

    def check():
        frame = load_run(run).stats(columns=["n"])
        got = dict(zip(zip(frame["step"], frame["site"], strict=True), frame["n"], strict=True))
        assert got[(2, "model.layers.0.q_proj:out")] == 8_002_000
        assert got[(2, "model.layers.0.q_proj:grad_in")] == 8_002_002
        assert got[(3, "lm_head:out")] == 8_003_000
        assert got[(3, "model.layers.0.q_proj:out")] == 8_003_001
        assert len(got) == 12

    check()
    compact(run)
    check()


def exponents_of(step: int, n_sites: int) -> np.ndarray:
    exponents = np.zeros((n_sites, 256), np.int64)
    exponents[0, [0, 103, 255]] = [5, 2**40, step]  # zeros, subnormals, non-finites
    exponents[1, 120:130] = np.arange(10) + step
    return exponents


def test_exponents_come_back_on_the_steps_that_have_them(tmp_path):
    run = make_run(tmp_path, make_sites(5), {})
    writer = StatsWriter(run, 0, 5)
    for step in range(1, 7):
        writer.write(step, some_rows(step, 5), exponents_of(step, 5) if step % 3 == 0 else None)
    writer.close()
    names = [site.name for site in make_sites(5)]

    def check():
        loaded = load_run(run)
        for step in (3, 6):
            for site in (0, 1):
                histogram = loaded.exponents(names[site], step)
                assert histogram is not None
                assert histogram.dtype == np.int64
                assert histogram.tolist() == exponents_of(step, 5)[site].tolist()
        assert loaded.exponents(names[2], 3) is None
        assert loaded.exponents(names[0], 4) is None
        assert loaded.exponents(names[0], 99) is None
        with pytest.raises(ValueError, match=r"has no site model\.layers\.9:out"):
            loaded.exponents("model.layers.9:out", 3)

    check()
    compact(run)
    check()


@pytest.fixture(scope="module")
def stream_of_six(tmp_path_factory) -> tuple[bytes, list[int]]:
    """A stream of steps 1 to 6 with histograms on two of them, and its length after each step."""
    run = make_run(tmp_path_factory.mktemp("six") / "run", make_sites(5), {})
    writer = StatsWriter(run, 0, 5)
    ends = []
    for step in range(1, 7):
        writer.write(step, some_rows(step, 5), exponents_of(step, 5) if step % 3 == 0 else None)
        ends.append((run / "stats" / "start-0.arrows").stat().st_size)
    writer.close()
    return (run / "stats" / "start-0.arrows").read_bytes(), ends


@pytest.mark.parametrize("tail", ["cut", "zeros", "noise"])
def test_whole_steps_are_read_from_a_torn_stream(tmp_path, stream_of_six, tail):
    """Cut by a kill; followed by zeros or noise after a power loss. Zeros may be what stood there anyway."""
    stream, ends = stream_of_six
    run = make_run(tmp_path, make_sites(5), {})
    (run / "stats").mkdir()
    noise = np.random.default_rng(0).bytes(len(stream))
    near_ends = [end + shift for end in ends for shift in (-9, -1, 0, 1, 4, 8)]
    for cut in sorted({*range(0, len(stream), 61), *near_ends, len(stream)}):
        torn = stream[:cut] + {"cut": b"", "zeros": bytes(len(stream) - cut), "noise": noise[cut:]}[tail]
        (run / "stats" / "start-0.arrows").write_bytes(torn)
        same = np.frombuffer(torn, np.uint8) == np.frombuffer(stream[: len(torn)], np.uint8)
        intact = len(torn) if same.all() else int(same.argmin())
        whole = bisect.bisect_right(ends, intact)
        frame = load_run(run).stats(columns=["n"], sites=":out")
        if tail == "noise" and len(frame) > whole:
            assert ends[whole] - cut < 8  # the noise is in the padding of a whole step
            whole += 1
        assert frame["n"].tolist() == [8_000_000 + 1000 * step for step in range(1, whole + 1)], cut


WRITE_FOREVER = """
import itertools, sys
from pathlib import Path
from lora_train.instrument.read.store import COLUMNS, StatsWriter
import numpy as np
writer = StatsWriter(Path(sys.argv[1]), 0, 50)
for step in itertools.count(1):
    writer.write(step, np.full((50, len(COLUMNS)), float(step)))
    print(step, flush=True)
"""


def test_a_sigkill_costs_at_most_the_step_in_flight(tmp_path):
    run = make_run(tmp_path, make_sites(50), {})
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_FOREVER, str(run)], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout
    for _ in range(40):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    announced = 40 + len(process.stdout.read().split())
    assert process.wait() == -signal.SIGKILL
    frame = load_run(run).stats(columns=["sumsq", "n"])
    n_steps = len(frame) // 50
    assert n_steps in (announced, announced + 1)
    assert frame["step"].tolist() == [step for step in range(1, n_steps + 1) for _ in range(50)]
    assert frame["n"].tolist() == frame["step"].tolist() == frame["sumsq"].tolist()


def test_a_live_stream_is_readable(tmp_path):
    run = make_run(tmp_path, make_sites(5), {})
    writer = StatsWriter(run, 0, 5)
    assert load_run(run).stats().empty
    for step in (1, 2):
        writer.write(step, some_rows(step, 5))
        assert load_run(run).stats(columns=["n"])["step"].unique().tolist() == list(range(1, step + 1))


def random_rows(rng: np.random.Generator, n_sites: int) -> np.ndarray:
    rows = rng.integers(0, 10**9, (n_sites, len(COLUMNS))).astype(float)
    rows[:, [COLUMNS.index(column) for column in FLOAT_COLUMNS]] = np.exp(rng.normal(0, 50, (n_sites, 3)))
    rows[rng.random(rows.shape) < 0.3] = np.nan
    return rows


def test_frames_are_identical_after_compaction(tmp_path):
    """Several row groups, a resumed start, a torn tail, a folder whose name looks like a partition."""
    n_sites, n_steps = GROUP_SITES + 7, GROUP_STEPS + 5
    sites = make_sites(n_sites)
    run = make_run(tmp_path / "lr=1e-4", sites, dict.fromkeys(range(1, n_steps + 1), 3.0))
    make_run(run, sites, dict.fromkeys(range(500, 520), 5.0), start=1)
    rng = np.random.default_rng(0)
    for start, steps in ((0, range(1, n_steps + 1)), (1, range(500, 510))):
        writer = StatsWriter(run, start, n_sites)
        for step in steps:
            histograms = rng.poisson(0.02, (n_sites, 256)) if step % 100 == 0 else None
            writer.write(step, random_rows(rng, n_sites), histograms)
        writer.close()
    torn = run / "stats" / "start-1.arrows"
    torn.write_bytes(torn.read_bytes()[:-1000])

    def frames():
        loaded = load_run(run)
        yield loaded.stats()
        yield loaded.stats(sites=r"layers\.2\d\.", columns=["norm", "n_inf"], steps=range(300, 514, 3))
        yield loaded.stats(sites=rf"^{sites[-1].module}:", columns=["micro_sumsq"])
        yield loaded.stats(steps=n_steps)
        yield pd.DataFrame([loaded.exponents(site.name, step) for site in sites[::50] for step in (100, 500)])

    before = list(frames())
    assert before[0]["start"].value_counts().to_dict() == {0: (n_steps - 9) * n_sites, 1: 9 * n_sites}
    compact(run)
    assert sorted(path.name for path in (run / "stats").iterdir()) == ["start-0.parquet", "start-1.parquet"]
    for old, new in zip(before, frames(), strict=True):
        pd.testing.assert_frame_equal(old, new, check_exact=True)
    compact(run)
    pd.testing.assert_frame_equal(before[3], load_run(run).stats(steps=n_steps), check_exact=True)


def test_compaction_is_whole_or_not_at_all(tmp_path, monkeypatch):
    run = make_run(tmp_path, make_sites(5), {})
    write_steps(run, 0, 5, range(1, 4))
    before = load_run(run).stats()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            compact(run)
    pd.testing.assert_frame_equal(before, load_run(run).stats(), check_exact=True)
    stream = run / "stats" / "start-0.arrows"
    shutil.copy(stream, tmp_path / "kept")
    compact(run)
    shutil.copy(tmp_path / "kept", stream)  # as if killed before the stream went
    pd.testing.assert_frame_equal(before, load_run(run).stats(), check_exact=True)
    compact(run)
    assert [path.name for path in (run / "stats").iterdir()] == ["start-0.parquet"]
    pd.testing.assert_frame_equal(before, load_run(run).stats(), check_exact=True)


def test_a_stream_torn_in_its_head_is_no_obstacle(tmp_path):
    run = make_run(tmp_path, make_sites(5), {})
    (run / "stats").mkdir()
    (run / "stats" / "start-0.arrows").write_bytes(b"\xff\xff\xff\xff\x10")
    write_steps(run, 0, 5, range(1, 3))
    compact(run)
    assert load_run(run).stats(columns=["n"], sites=":out")["n"].tolist() == [8_001_000, 8_002_000]


def realistic_steps(rng: np.random.Generator, n_layers: int):
    """(rows, histograms) of an fp16 run of LLaMA's size, endlessly: noise in every number that has any in training."""
    n_sites = 7 * n_layers * len(TENSORS)
    tensor = np.arange(n_sites) % 5
    activation = tensor < 3
    width = np.repeat(rng.choice([4096, 14336, 1024], 7 * n_layers), 5)
    level = np.exp(rng.normal(0, 2, n_sites))
    share = rng.uniform(1e-4, 2e-2, (n_sites, 3))
    center = rng.integers(100, 125, (n_sites, 1))
    bell = np.exp(-0.5 * ((np.arange(256) - center) / 5) ** 2)
    for step in itertools.count(1):
        n = np.where(activation, rng.integers(20_000, 32_768) * width, 8 * width)
        rows = np.full((n_sites, len(COLUMNS)), np.nan)
        rows[:, 0] = level * n * np.exp(rng.normal(0, 0.2, n_sites))
        absmax = np.sqrt(level) * rng.gumbel(6, 0.6, n_sites)
        rows[:, 1] = np.where(activation, absmax.astype(np.float16), absmax.astype(np.float32))
        rows[:, 2:4] = 0
        rows[(tensor == 0) | (tensor == 2), 4] = 0
        small = rng.poisson(share * n[:, None] * np.exp(rng.normal(0, 0.3, (n_sites, 3)))).astype(float)
        small[~activation] = np.nan
        small[tensor == 1, 0] = np.nan
        rows[:, 5:8] = small
        rows[:, 8] = n
        rows[~activation, 9] = (rows[:, 0] * rng.uniform(1, 2, n_sites))[~activation]
        histograms = rng.poisson(bell / bell.sum(1, keepdims=True) * n[:, None]) if step % 100 == 0 else None
        yield rows, histograms


def test_sizes_stay_within_the_design(tmp_path):
    n_sites, n_steps = 1_120, 300
    run = make_run(tmp_path, make_sites(n_sites), {})
    writer = StatsWriter(run, 0, n_sites)
    steps = realistic_steps(np.random.default_rng(0), n_layers=32)
    for step, (rows, histograms) in enumerate(itertools.islice(steps, n_steps), 1):
        writer.write(step, rows, histograms)
    writer.close()

    def bytes_per_site_step() -> float:
        return sum(path.stat().st_size for path in (run / "stats").iterdir()) / (n_sites * n_steps)

    live = bytes_per_site_step()
    compact(run)
    compacted = bytes_per_site_step()
    print(f"bytes per site and step: {live:.2f} live, {compacted:.2f} compacted")
    assert live < LIVE_BYTES
    assert compacted < COMPACTED_BYTES


def test_reading_a_run_imports_no_torch(tmp_path):
    run = make_run(tmp_path, make_sites(5), {1: 1.0})
    write_steps(run, 0, 5, range(1, 2))
    code = f"""
import sys
import lora_train.instrument.read.store, lora_train.trainer.checks.read_config
print({{"torch", "numpy", "pandas", "pyarrow"}} & sys.modules.keys())
from lora_train.instrument.read.compact import compact
from lora_train.instrument.read.load import load_run
run = load_run({str(run)!r})
print(len(run.stats()), len(run.metrics()), len(run.sites))
compact(run.path)
print(len(run.stats()), run.exponents("model.layers.0.q_proj:out", 1), "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["set()", "5 1 5", "5 None False"]


def test_what_the_disk_said_first_is_the_reason(tmp_path):
    """/dev/full can't be cut to what it held: that is no reason to hide that there is no room."""
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        MetricsLog(tmp_path, start=0).write({"step": 1})
