"""The report: self-contained, complete, and equal to the result it was made from."""

import base64
import csv
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from experiments.report.frames import figure, frame_of, repeaters
from experiments.report.html import read_curves, write_report
from experiments.report.plots import ranked
from recsim_env.results import Cell, EvaluationResult, as_json
from recsim_env.session_metrics import REPORT_TABLES

WORLDS = ("A", "truth")
MEANS = {"pointwise greedy": 100.0, "<ours>": 130.0, "random": 40.0}


def cell(mean: float, seed: int, seeds: int = 1) -> Cell:
    rng = np.random.default_rng(seed)
    watch = mean + rng.normal(0, 10, size=(seeds, 200))
    ones = np.ones_like(watch)
    return Cell(
        ratios={
            "session_watch_time": (watch, ones),
            "true_list_value": (watch / 10, ones),
            "evaluator_value": (watch / 8, ones),
            "evaluator_over_truth": (watch / 8, watch / 10),
            "repeat_share": (0.052 * ones if seeds > 1 else 0.008 * ones, ones),
            "exposure_share/0-7s": (0.3 * ones, ones),
            "exposure_share/7s+": (0.7 * ones, ones),
            "watch_time_per_video/0-7s": (0 * ones, 0 * ones),
            "watch_time_per_video/7s+": (7 * ones, ones),
        },
        totals={"catalogue_coverage": np.full(seeds, 0.4), "exposure_gini": np.full(seeds, 0.6)},
        feedback="one slate" if seeds > 1 else "logged",
        world_requests=12_000 if seeds > 1 else 0,
    )


@pytest.fixture(scope="module")
def result() -> EvaluationResult:
    cells = {
        (policy, world): cell(mean, seed=hash_free(policy, world), seeds=3 if policy == "<ours>" else 1)
        for policy, mean in MEANS.items()
        for world in WORLDS
    }
    cells["oracle", "truth"] = cell(200.0, seed=99)
    return EvaluationResult(
        cells=cells,
        worlds={world: {"fidelity": {"click": {"auc": 0.75123}}, "declared": {"leave": 0.002}} for world in WORLDS},
        settings={"num_sessions": 200, "seed": 3},
    )


def hash_free(policy: str, world: str) -> int:
    """A seed that no hash randomisation touches."""
    return sum(map(ord, policy + world))


@pytest.fixture(scope="module")
def folder(result: EvaluationResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    with SummaryWriter(str(run)) as writer:
        for step in range(5):
            writer.add_scalar("session/watch_time", 10.0 * step, step)
            writer.add_scalar("time/seconds", 1.0, step)
    path = tmp_path_factory.mktemp("report")
    write_report(result, path, title="Ours & <theirs>", training_runs={"seed 0": run})
    return path


class Page(HTMLParser):
    """Counts tags, keeps text and sources, and insists that tags close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()
        self.sources: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_well_formed_and_needs_no_other_file(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.open == []
    assert page.sources
    for source in page.sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert page.count["img"] == len(list((folder / "plots").glob("*.png"))) == 4
    assert "Ours & <theirs>" in page.words  # escaped, not swallowed as a tag
    assert "<ours>" in page.words


def test_the_page_shows_the_figures_of_the_result(result: EvaluationResult, folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    for policy, world in result.cells:
        row = result.row(policy, world, "session_watch_time")
        assert f"{row.mean:.1f} [{row.low:.1f}, {row.high:.1f}]" in page.words
    row = result.difference("<ours>", "pointwise greedy", "truth")
    assert f"{row.mean:+.1f} [{row.low:+.1f}, {row.high:+.1f}]" in page.words
    assert "click · auc" in page.words
    assert "0.7512" in page.words
    assert "12,000" in page.words


def test_the_evaluators_promise_stands_by_policy_and_world(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    section = text[text.index("<h2>Evaluator over truth") :]
    rows = re.findall(r"<tr>(.*?)</tr>", section[: section.index("</table>")], re.DOTALL)
    cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]
    assert cells[0] == ["policy", "A", "truth"]
    assert [row[0] for row in cells[1:]] == ["oracle", "&lt;ours&gt;", "pointwise greedy", "random"]
    assert cells[1][1] == "", "the oracle played in the truth alone"
    assert {text[:5] for row in cells[1:] for text in row[1:] if text} == {"1.250"}


def test_policies_that_repeat_are_named(result: EvaluationResult, folder: Path) -> None:
    named = "Shows videos again in a session, which earns nothing: <ours> (5% of the videos seen)."
    assert repeaters(result) == named
    assert named in Page((folder / "report.html").read_text()).words
    assert repeaters(result, above=0.06) == ""
    everyone = repeaters(result, above=0.0)
    assert all(policy in everyone for policy in result.policies)


def test_what_was_shown_stands_by_policy_best_first(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    tables = {heading: text[text.index(f"<h2>{heading}; world truth") :] for heading in REPORT_TABLES}
    lines = {
        heading: re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], re.DOTALL)
        for heading, table in tables.items()
    }
    cells = {heading: [re.findall(r"<t[hd]>(.*?)</t[hd]>", one) for one in some] for heading, some in lines.items()}
    shares = cells["Share of videos seen, by duration"]
    assert shares[0] == ["policy", "0-7s", "7s+"]
    assert [line[0] for line in shares[1:]] == ["oracle", "&lt;ours&gt;", "pointwise greedy", "random"]
    assert [text.split()[0] for text in shares[1][1:]] == ["0.3000", "0.7000"]
    seconds = cells["Seconds watched of a video seen, by duration"]
    assert [text.split(" ")[0] for text in seconds[1][1:]] == ["", "7.000"], "nothing short was seen"
    assert cells["What was shown"][0] == ["policy", "catalogue_coverage", "exposure_gini"]


def test_differences_are_coloured_by_their_sign(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    table = text[text.index("<h2>Paired difference to pointwise greedy") :]
    table = table[: table.index("</table>")]
    signs = dict(re.findall(r'<tr><td>([^<]+)</td><td><span class="(\w*)">', table))
    assert signs == {"&lt;ours&gt;": "above", "random": "below"}


def test_json_and_csv_hold_rows_differences_and_gaps(result: EvaluationResult, folder: Path) -> None:
    stored = json.loads((folder / "report.json").read_text())
    assert set(stored) == {"title", "settings", "worlds", "rows", "differences", "gaps", "checks"}
    # Two other policies in both worlds, the oracle in one; "best of 20" did not play.
    assert len(stored["differences"]) == 5
    assert {row["baseline"] for row in stored["differences"]} == {"pointwise greedy"}
    assert [row["policy"] for row in stored["gaps"]] == list(MEANS)
    with (folder / "report.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(len(stored[part]) for part in ("rows", "differences", "gaps"))
    best = next(row for row in stored["differences"] if row["policy"] == "oracle")
    assert best["mean"] == pytest.approx(result.difference("oracle", "pointwise greedy", "truth").mean)


def test_tensorboard_holds_every_finite_figure(result: EvaluationResult, folder: Path) -> None:
    runs = sorted(path.name for path in (folder / "tensorboard").iterdir())
    assert runs == ["_ours_@A", "_ours_@truth", "oracle@truth", "pointwise_greedy@A", "pointwise_greedy@truth",
                    "random@A", "random@truth"]  # fmt: skip
    events = EventAccumulator(str(folder / "tensorboard" / "random@A"))
    events.Reload()
    stored = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    means = {m: result.row("random", "A", m).mean for m in result.metrics}
    assert stored == pytest.approx({f"evaluation/{m}": v for m, v in means.items() if not math.isnan(v)})


def test_curves_are_read_back_and_a_folder_without_events_is_refused(folder: Path, tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(3):
            writer.add_scalar("session/watch_time", 2.0 * step, step)
            writer.add_scalar("time/seconds", 1.0, step)
    assert read_curves(tmp_path / "run") == {"session/watch_time": [(0, 0.0), (1, 2.0), (2, 4.0)]}
    with pytest.raises(ValueError, match="holds no TensorBoard events"):
        read_curves(folder)


def test_policies_are_ranked_best_first_even_where_one_played_in_one_world_only(result: EvaluationResult) -> None:
    assert ranked(frame_of(result.rows())) == ["oracle", "<ours>", "pointwise greedy", "random"]


def test_a_result_without_evaluator_or_baselines_still_makes_a_report(tmp_path: Path) -> None:
    bare = cell(10.0, seed=0)
    ratios = {name: pair for name, pair in bare.ratios.items() if "list_value" not in name and "evaluator" not in name}
    result = EvaluationResult(cells={("p", "w"): Cell(ratios=ratios, totals=bare.totals)})
    page = Page(write_report(result, tmp_path, title="bare").read_text())
    assert page.open == []
    assert page.count["img"] == 1


def test_a_row_of_an_earlier_file_has_the_span_of_its_two_intervals(result: EvaluationResult) -> None:
    row = as_json(result.row("random", "A", "session_watch_time"))
    old = {**row, "low": 3.0, "high": 5.0, "interval": "seeds", "session_low": 3.5, "session_high": 6.0}
    total = {**old, "session_low": None, "session_high": None}
    nothing = {**total, "low": None, "high": None}
    frame = frame_of([row, old, total, nothing])
    spans = [(row["low"], row["high"]), (3.0, 6.0), (3.0, 5.0), (math.nan, math.nan)]
    np.testing.assert_array_equal(frame[["low", "high"]].to_numpy(), np.array(spans))
    assert not {"interval", "session_low"} & set(frame.columns)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((2.0, -3.0, 7.0), "+2.0 [-3.0, +7.0], tie within 7.0"),
        ((-2.0, -7.0, 3.0), "-2.0 [-7.0, +3.0], tie within 7.0"),
        ((5.0, 3.0, 7.0), "+5.0 [+3.0, +7.0]"),
        ((0.0, 0.0, 0.0), "+0.0 [+0.0, +0.0], tie within 0.0"),
        ((2.0, math.nan, math.nan), "+2.000"),
    ],
)
def test_a_difference_that_may_be_nothing_is_called_a_tie_with_its_bound(
    given: tuple[float, float, float], text: str
) -> None:
    assert figure(*given, sign="+") == text
    assert "tie" not in figure(*given)
