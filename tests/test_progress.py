"""What a run says while it works: the step that runs, what remains, a line a step, and the log."""

import re
import sys
from types import SimpleNamespace

import pytest
from tiny_bids import settings

from mmln_pipeline.bids_app import participant_level, step_teller
from mmln_pipeline.bids_app.run import main
from mmln_pipeline.machine.forecast import TRUST_S, Forecast
from mmln_pipeline.machine.progress import describe_progress, show_forecast

STEPS = {"mask": 30.0, "register": 60.0, "draw": 10.0}
"""What each step takes, s."""


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def run_steps(forecast, clock, subject, took=STEPS, overhead=0.0):
    for kind, seconds in took.items():
        forecast.start(f"{subject} {kind}", kind)
        clock.now += seconds + overhead
        forecast.end(f"{subject} {kind}", kind)


@pytest.mark.parametrize("guesses", [{}, STEPS, {"mask": 1.0, "register": 1.0, "draw": 80.0}])
@pytest.mark.parametrize("overhead", [0.0, 5.0])
def test_what_remains_is_known_after_the_first_subject(guesses, overhead):
    clock = Clock()
    forecast = Forecast(dict.fromkeys(STEPS, 5), guesses, clock)
    assert forecast.seconds_left is None and forecast.share == 0
    for number in range(5):
        run_steps(forecast, clock, f"sub-{number}", overhead=overhead)
        left = (4 - number) * (100 + 3 * overhead)
        assert forecast.seconds_left == pytest.approx(left, rel=0.25)
        assert forecast.share == pytest.approx((number + 1) / 5, abs=0.01)


def test_what_remains_counts_steps_that_run_side_by_side():
    clock = Clock()
    forecast = Forecast({"register": 6}, {}, clock)
    for first in (0, 2):
        for number in (first, first + 1):
            forecast.start(f"sub-{number}", "register")
        clock.now += 60
        for number in (first, first + 1):
            forecast.end(f"sub-{number}", "register")
    assert forecast.seconds_left == pytest.approx(60)
    forecast.start("sub-4", "register")
    clock.now += 30
    assert forecast.seconds_left == pytest.approx(90 * 150 / 270) and forecast.running == ["sub-4"]


def test_steps_of_an_earlier_run_teach_nothing():
    clock = Clock()
    forecast = Forecast({"register": 3}, {"register": 50.0}, clock)
    forecast.start("sub-0", "register")
    clock.now += 0.1
    assert forecast.end("sub-0", "register", is_known=True) is None
    assert forecast.end("sub-1", "register") is None  # one that was left out
    run_steps(forecast, clock, "sub-2", {"register": 80.0})
    assert (forecast.done, forecast.share, forecast.seconds_left) == (3, 1.0, 0.0)


def test_a_slower_machine_is_learned_from_the_first_step():
    clock = Clock()
    forecast = Forecast({"mask": 1, "register": 1}, STEPS, clock)
    run_steps(forecast, clock, "sub-0", {"mask": 60.0})
    assert forecast.seconds_left == pytest.approx(60.0 * (60.0 + TRUST_S) / (30.0 + TRUST_S))
    assert describe_progress(forecast, "sub-0 mask 60.0 s") == "1/2 sub-0 mask 60.0 s, about 2 min left"


def test_bar_names_the_step_that_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    clock = Clock()
    forecast = Forecast({"mask": 2, "register": 2}, STEPS, clock)
    with show_forecast("mmln-bids", forecast) as say:
        run_steps(forecast, clock, "sub-0", {"mask": 30.0})
        forecast.start("sub-0 register", "register")
        clock.now += 30.0
        forecast.start("sub-1 mask", "mask")
        say("")
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert "33%" in said and "sub-0 register and 1 more · about 2 min left" in said


def test_steps_are_named_by_scan_and_template():
    node = SimpleNamespace(fullname="mmln_wf.sub_01_wf.to_A_wf.registration_wf.registration", name="registration")
    for templates, expected in (("AB", "sub-01_ses-a to A registration"), ("A", "sub-01_ses-a registration")):
        nodes = [f"sub_01_wf.to_{template}_wf.registration_wf.registration" for template in templates]
        workflow = SimpleNamespace(list_node_names=lambda nodes=nodes: nodes)
        teller = step_teller.StepTeller(Forecast({}, {}), print, {"sub_01_wf": "sub-01_ses-a"}, workflow)
        assert teller._describe(node) == expected
    assert teller._describe(SimpleNamespace(fullname="mmln_wf.load_template", name="load_template")) == "load_template"


def test_a_run_tells_each_step_and_keeps_a_log(place, tmp_path, capsys, monkeypatch):
    doubt = ("sub-02_run-1", "quality check: look: turned")
    monkeypatch.setattr(participant_level, "find_doubts", lambda records, scans: [doubt])
    arguments = [place / "raw", tmp_path / "out", "participant", "-w", tmp_path / "work", *settings(place)]
    arguments = [str(part) for part in (*arguments, "--participant-label", "02", "--bids-filter-file", tmp_path / "f")]
    (tmp_path / "f").write_text('{"t1w": {"run": 1}}')
    assert main(arguments) == 0
    said = capsys.readouterr()
    (line,) = re.findall(r"^mmln-bids: (\d+)/(\d+) sub-02_run-1 registration ([\d.]+) s", said.out, re.MULTILINE)
    assert 0 < int(line[0]) <= int(line[1]) and float(line[2]) > 0
    assert "t1w_mask" not in said.out  # files put in their place are no line
    (log,) = (tmp_path / "out/logs/runs").glob("*.log")
    text = log.read_text(encoding="utf-8")
    stamp = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ "
    for words in (
        r"INFO    begin: mmln-pipeline \d",
        r"INFO    sub-02_run-1 brain_extraction [\d.]+ s$",
        r"WARNING sub-02_run-1: quality check: look: turned$",
        r"INFO    end: 1 of 1 images done$",
    ):
        assert re.search(stamp + words, text, re.MULTILINE), words
    assert all(line in text for line in said.err.splitlines())
    assert main(arguments) == 0
    assert "registration" not in capsys.readouterr().out  # nothing of it ran again
    assert log.read_text(encoding="utf-8").count("end: 1 of 1 images done") == 2
