import re
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from analysis import FitConfig, compare, fit, isoflop, plot, report
from analysis.figures.marks import separated
from analysis.figures.power_law import power_law_figure
from analysis.figures.study import _in_unit, points_figures, study_figures
from analysis.figures.style import COLUMN_INCHES, NARROW_INCHES, narrow, save_figure
from analysis.isoflop.group import fit_groups
from analysis.stats.noise import noise_floor
from analysis.study.depth import depth_study
from analysis.tables.points import points_table
from tests.analysis.compare.test_score_difference import items_of
from tests.analysis.figures import extents
from tests.analysis.stats.test_bootstrap import points
from tests.analysis.synthetic import INSIDE, PAPER_GRID, Truth, study
from tests.browser import needs_chromium, problems

pytestmark = pytest.mark.xdist_group("study")

QUICK = FitConfig(bootstrap=100, validation=False)


def two_scales():
    parts = [
        study(budgets=INSIDE, noise_nats=0.002),
        study(budgets=INSIDE[:3], noise_nats=0.002, scale="370M"),
    ]
    return tuple(pd.concat(frames) for frames in zip(*parts, strict=True))


CASES = {
    "six budgets, the last refused": lambda: study(budgets=PAPER_GRID, noise_nats=0.005),
    "most refused": lambda: study(Truth(a_amplitude=522733.307), budgets=PAPER_GRID, noise_nats=0.005),
    "three recurrences": lambda: study(budgets=INSIDE[:4], recurrences=(2, 6, 12), noise_nats=0.002),
    "one budget": lambda: study(budgets=INSIDE[:1], replicates=((0, 1),), noise_nats=0.01, fixed=False),
    "small budgets, close together": lambda: study(
        Truth(b_amplitude=25420.102 / 1500, a_amplitude=4.0e4),
        budgets=(1.1e12, 1.7e12, 2.6e12, 4.1e12),
        recurrences=(2, 4, 6, 8, 10),
        replicates=((0, 0), (3, 4)),
        noise_nats=0.01,
    ),
    "two scales": two_scales,
}


def answers(runs):
    """Answers to the suite with the longest name; the more loops, the better."""
    chances = {run.run_id: 0.3 + 0.02 * run.mean_recurrence for run in runs.itertuples()}
    return items_of(runs, chances).assign(suite="core_extended")


def drawn_laws(runs, depths):
    """A fit of all that figures show: without the laws over runs and depths."""
    fitted = fit(runs, depths.iloc[:0], QUICK)
    return replace(fitted, depths=depths, depth=depth_study(fitted.runs, depths, QUICK))


@pytest.fixture(scope="module")
def comparison(noisy):
    return compare(noisy[0], QUICK, answers(noisy[0]))


@pytest.fixture(scope="module")
def accepted(fitted, comparison):
    """The figures of a study with accepted optima; the report's own are they, and saved laid out."""
    return study_figures(fitted, comparison)


@pytest.fixture(scope="module")
def written(noisy, fitted, comparison, accepted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analysis.figures.study.study_figures", lambda *_: accepted)
        return folder, report(*noisy, fitted, comparison, folder, title="A & B")


@needs_chromium
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_fits_its_screen(written, width, tmp_path):
    assert problems(written[1], width, tmp_path) == []


@needs_chromium
def test_the_browser_sees_what_does_not_fit(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<div style="position:relative;height:60px"><span style="position:absolute;top:0">one text</span>'
        '<span style="position:absolute;top:2px">another</span></div>'
        '<p style="font-size:9px">tiny</p><p style="width:600px">wide</p>'
        '<svg viewBox="0 0 1000 90" width="300"><text y="50" font-size="20">small</text></svg>'
        + "<p>enough text</p>"
        * 20
    )
    assert problems(page, 400, tmp_path) == [
        "scrolls to 608 pixels",
        "9.0 pixels: tiny",
        "6.0 pixels: small",
        "overlap: one text | another",
    ]


def test_no_text_overlaps_or_is_clipped_on_a_narrow_screen(fitted, comparison):
    with narrow():
        figures = study_figures(fitted, comparison)
    assert extents.problems_of(figures) == []
    assert {one.figure.get_figwidth() for one in figures} <= {NARROW_INCHES, COLUMN_INCHES}


@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps_or_is_clipped(case):
    runs, depths = CASES[case]()
    comparison = compare(runs, QUICK, answers(runs))
    figures = study_figures(drawn_laws(runs, depths), comparison)
    assert extents.problems_of(figures) == []
    names = [drawn.name for drawn in figures]
    assert ("looped_vs_fixed_core_extended" in names) == bool(comparison.rows)


def test_no_text_of_a_study_with_accepted_optima_overlaps_or_is_clipped(accepted):
    assert extents.problems_of(accepted) == []
    assert "looped_vs_fixed_core_extended" in [drawn.name for drawn in accepted]


def test_points_are_drawn_and_listed_as_they_were_compared(written, comparison):
    folder, page = written
    drawn = pd.read_csv(folder / "figures" / "looped_vs_fixed_core_extended_points.csv")
    cells = [(row, cell) for row in comparison.rows for cell in row.recurrences]
    points = [cell.scores[0].points for _, cell in cells]
    assert drawn["points"].tolist() == pytest.approx(points, rel=1e-5)  # six digits
    assert drawn["next_to_best"].tolist() == [cell == row.nearest() for row, cell in cells]
    text = page.read_text()
    assert "<th>Core-Extended points</th>" in text
    for row in comparison.rows:
        score, depth = row.nearest().scores[0], row.nearest().mean_recurrence
        shown = f"{score.points:+.2f} [{score.low:+.2f}, {score.high:+.2f}] at µ = {depth:g}: {score.verdict}"
        assert f"<span>{shown}</span>" in text


@pytest.mark.parametrize("swept", ["params", "tokens"])
@pytest.mark.parametrize("case", ["accepted", "refused", "two budgets"])
def test_no_text_of_a_table_of_points_overlaps(case, swept):
    table = points(noise=0.004)
    if case == "refused":  # every curve falls over its whole range
        table["loss"] = 3.0 + 1e4 / table["x"] ** 0.5
    if case == "two budgets":
        table = table[table["compute"] < 1.2 * np.unique(table["compute"])[1]].reset_index(drop=True)
    if swept == "tokens":
        table["x"] = table["compute"] / 6 / table["x"]
    assert extents.problems_of(points_figures(isoflop(table, x=swept, config=QUICK))) == []


def test_no_text_or_key_of_a_table_in_bits_per_byte_names_nats():
    table = points_table(points(noise=0.004), unit="bits_per_byte")
    fit = isoflop(table, config=QUICK)
    flag = "runs scatter by 0.004 nats"
    flagged = replace(fit, group=replace(fit.group, flags=(flag,)))
    assert "runs scatter by 0.004 bits/byte" in flagged.to_json() and "nats" not in flagged.to_json()
    for drawn in points_figures(flagged):
        drawn.figure.axes[0].set_title(flag)
        texts = [text.get_text() for text in _in_unit(drawn, fit.unit).figure.findobj(Text)]
        assert flag not in texts and "runs scatter by 0.004 bits/byte" in texts
        assert "nats" not in " ".join([*texts, drawn.caption, *map(str, drawn.tables)])


def test_the_check_sees_an_axis_without_its_unit():
    from matplotlib.figure import Figure

    left, right = Figure().subplots(1, 2)
    left.set(xlabel="training budget C", ylabel="validation loss (nats per token)")
    right.set(xlabel="mean recurrence µ (loops)")
    assert extents.unlabelled(left.figure) == ["panel 0, x: 'training budget C'"]
    left.set(ylabel="")
    assert len(extents.unlabelled(left.figure)) == 3


def test_the_check_sees_an_overlap_and_a_clipped_text():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    figure.text(0.5, 0.5, "one")
    figure.text(0.52, 0.5, "two")
    figure.text(0.95, 0.1, "clipped label")
    figure.draw_without_rendering()
    assert sorted(extents.problems(figure)) == ["clipped: 'clipped label'", "overlap: 'one' and 'two'"]


def test_a_report_stands_alone_and_has_every_figure_as_pdf_png_and_data(written):
    folder, page = written
    text = page.read_text()
    assert page == folder / "index.html"
    assert "<title>A &amp; B</title>" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert set(re.findall(r'href="#(\w+)"', text)) <= set(re.findall(r'id="(\w+)"', text))
    assert text.count("data:image/png;base64,") == 2 * 8  # for a wide and for a narrow screen
    for heading in (
        "The laws",
        "Prediction of runs left out",
        "How the exponents move with other choices",
    ):
        assert heading in text
    assert list(folder.glob("*.partial")) == []
    plain = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    assert "resamples, seed, confidence 200 (noise), 0, 0.95" in plain
    assert "Huber delta of the surface&#39;s cost 0.001" in plain
    assert f"loopscale {version('loopscale')}" in plain
    figures = folder / "figures"
    names = [
        "isoflop",
        "isoflop_by_budget",
        "power_laws",
        "frontier",
        "looped_vs_fixed",
        "looped_vs_fixed_core_extended",
        "depth_curves",
        "seeds",
    ]
    for name in names:
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        tables = list(figures.glob(f"{name}_*.csv"))
        assert tables
        assert all(len(pd.read_csv(table)) for table in tables)
        pdf = (figures / f"{name}.pdf").read_bytes()
        assert b"/FontFile2" in pdf  # TrueType outlines are embedded (fonttype 42)
        assert b"/Type3" not in pdf
    assert sorted(path.stem for path in figures.glob("*.pdf")) == sorted(names)


def test_the_same_study_draws_the_same_bytes(written, noisy, fitted, tmp_path):
    (again,), _ = fit_groups(fitted.runs, noise_floor(fitted.runs), fitted.config)
    save_figure(power_law_figure(again, fitted.config.confidence), tmp_path)
    for name in ("power_laws.pdf", "power_laws.png", "power_laws_laws.csv"):
        assert (tmp_path / name).read_bytes() == (written[0] / "figures" / name).read_bytes()


def test_labels_keep_their_order_and_distance():
    assert separated([0.0, 10.0, 30.0], 5.0) == [0.0, 10.0, 30.0]
    assert separated([0.0, 1.0, 30.0], 5.0) == [-2.0, 3.0, 30.0]
    assert separated([3.0, 3.0, 3.0], 2.0) == pytest.approx([1.0, 3.0, 5.0])


def test_plot_draws_on_a_given_axis(fitted):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    assert plot(fitted, ax=ax) is ax
    assert ax.get_xlabel() == "mean recurrence µ (loops)"
