"""Options: said once, and everywhere the same."""

import argparse
import ast
from dataclasses import FrozenInstanceError, dataclass, fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mmln_pipeline.bids_app import arguments
from mmln_pipeline.bids_app.invocation import Config
from mmln_pipeline.cli.option_arguments import add_options
from mmln_pipeline.cli.parser import build_parser
from mmln_pipeline.interfaces import AffineInit, MMLNRegistration
from mmln_pipeline.machine.options import check_options, find_option, option
from mmln_pipeline.registration.pair import read_start
from mmln_pipeline.registration.settings import MAX_SEED, Settings
from mmln_pipeline.space.interpolation import INTERPOLATIONS
from mmln_pipeline.workflows import init_registration_wf
from mmln_pipeline.workflows.alignment_wf import init_alignment_wf

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for folder in ("mmln_pipeline", "workflows", "bids_app") for path in (ROOT / folder).rglob("*.py")]


def list_choices():
    """Every set of words that an option, a trait or an argument offers."""
    options = [item.metadata["option"] for kind in (Settings, Config) for item in fields(kind) if item.metadata]
    return sorted({found.words for found in options if len(found.words) > 1} | {INTERPOLATIONS})


@cache
def find_texts():
    """The texts of the sources: each file, the texts of one sequence or call, and a text by itself."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            items = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else []
            items = node.args if isinstance(node, ast.Call) else items
            texts = {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if texts or text:
                found.append((path.relative_to(ROOT).as_posix(), texts, text))
    return found


def spelled(words):
    """Where these words, all but one at least, stand in one sequence or call, or as a set in a docstring."""
    enough, start = max(2, len(words) - 1), f'{{"{words[0]}", "{words[1]}"'
    return {file for file, texts, text in find_texts() if len(texts & set(words)) >= enough or start in text}


@pytest.mark.parametrize("words", list_choices(), ids=", ".join)
def test_choices_stand_in_one_place(words):
    assert len(spelled(words)) <= 1


def test_defaults_are_the_same_everywhere():
    inputs = MMLNRegistration().inputs
    register = vars(build_parser().parse_args(["register", "--fixed", "f", "--moving", "m", "--output-dir", "o"]))
    config = Config(Path("raw"), Path("out"))
    for item in fields(Settings):
        assert register[item.name] == item.default
        if item.name != "threads":  # the App shares processors out
            assert getattr(inputs, item.name) == getattr(config, item.name) == item.default
    assert AffineInit().inputs.kind == Settings().init


def test_settings_are_frozen_and_named():
    with pytest.raises(FrozenInstanceError):
        Settings().refine = 3
    with pytest.raises(TypeError):
        Settings("rigid")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("refine", -1, "refine: expected auto or a whole number from 0, found -1"),
        ("refine", "some", "found 'some'"),
        ("topology", "loose", "topology: expected strict or off, found 'loose'"),
        ("threads", 0, "threads: expected a whole number from 1, found 0"),
        ("random_seed", MAX_SEED + 1, f"expected a whole number from 0 to {MAX_SEED}"),
    ],
)
def test_a_value_out_of_bounds_is_refused_everywhere(name, value, expected):
    with pytest.raises(ValueError, match="expected") as error:
        Settings(**{name: value})
    assert expected in str(error.value)
    if name != "threads":
        with pytest.raises(ValueError, match="expected") as error:
            Config(Path("raw"), Path("out"), **{name: value})
        assert expected in str(error.value)
        with pytest.raises(Exception, match=name):
            setattr(MMLNRegistration().inputs, name, value)
    for parser, needed in (
        (build_parser(), ["register", "--fixed", "f", "--moving", "m", "--output-dir", "o"]),
        (arguments.build_parser(), ["raw", "out", "participant"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([*needed, f"--{name.replace('_', '-')}", str(value)])
        assert stopped.value.code == 2


def test_any_dataclass_makes_arguments(capsys):
    @dataclass
    class Cake:
        flour: int = option(3, lowest=1, highest=9, metavar="CUPS", help="how much flour")
        icing: bool = option(False, help="with icing")
        shape: str = option("round", words=("round", "square"), help="its shape")

    parser = argparse.ArgumentParser()
    add_options(parser, Cake, "flour", "icing", "shape")
    assert vars(parser.parse_args([])) == {"flour": 3, "icing": False, "shape": "round"}
    assert vars(parser.parse_args(["--flour", "9", "--icing"])) == {"flour": 9, "icing": True, "shape": "round"}
    with pytest.raises(SystemExit):
        parser.parse_args(["--flour", "10"])
    assert "expected a whole number from 1 to 9, found '10'" in capsys.readouterr().err
    assert "how much flour (default: 3)" in parser.format_help()
    check_options(Cake(flour=9))
    with pytest.raises(ValueError, match="shape: expected round or square, found 'flat'"):
        check_options(Cake(shape="flat"))
    assert find_option(Cake, "shape").words == ("round", "square")


# ------------------------------------------------------------------------------------- what slips past


@pytest.mark.parametrize(
    "given", [{"init": None}, {"init": [1, 2]}, {"init": 3}, {"model": 5}, {"device": None}, {"topology": None}]
)
def test_a_value_of_another_type_is_refused(given):
    with pytest.raises(ValueError, match=f"{next(iter(given))}: expected .*, found"):
        Settings(**given)


def test_whole_numbers_of_numpy_are_whole_numbers():
    chosen = Settings(refine=np.int64(3), threads=np.int32(2), random_seed=np.uint8(7))
    assert chosen == Settings(refine=3, threads=2, random_seed=7)
    assert {type(value) for value in (chosen.refine, chosen.threads, chosen.random_seed)} == {int}
    with pytest.raises(ValueError, match="refine: expected"):
        Settings(refine=np.int64(-1))


def test_a_matrix_is_a_start():
    matrix = np.diag([1.0, 1.0, 1.0, 1.0])
    assert Settings(init=matrix).init is matrix and Settings(init=matrix).init_name == "matrix"
    with pytest.raises(ValueError, match="init: expected a finite 4 x 4 matrix"):
        read_start(np.eye(3))


@pytest.mark.parametrize(("name", "instead"), [("init", "affine_xfm"), ("threads", "omp_nthreads")])
def test_a_workflow_ignores_no_setting(name, instead):
    with pytest.raises(TypeError, match=f"{name}: .*{instead}"):
        init_registration_wf(**{name: getattr(Settings(), name)})


def test_a_workflow_takes_settings_by_name():
    registration = init_registration_wf(topology="off", refine=0).get_node("registration").inputs
    assert (registration.topology, registration.refine, registration.device) == ("off", 0, "cpu")
    with pytest.raises(TypeError, match="topolgy"):
        init_registration_wf(topolgy="off")
    with pytest.raises(ValueError, match=r"affine: expected affine, rigid or identity, found '/tmp/start\.mat'"):
        init_alignment_wf(affine="/tmp/start.mat")
