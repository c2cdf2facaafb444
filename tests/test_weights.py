"""Weights: cards, checksums, and errors that name the model."""

from __future__ import annotations

import json
import resource

import pytest
import torch

from mmln_pipeline.network.architecture import NetworkConfig
from mmln_pipeline.network.model import MMLN
from mmln_pipeline.weights import list_models, load_model, read_licence, resolve_model, restriction, save_model


@pytest.fixture
def saved(tmp_path):
    """Return the path of a tiny saved model."""
    path = tmp_path / "tiny.safetensors"
    save_model(MMLN(NetworkConfig(channels=4)), path, {"name": "tiny", "license": "CC0"})
    return path


def test_round_trip(saved):
    model, card = load_model(saved)
    again, _ = load_model(str(saved))
    assert card["name"] == "tiny" and len(card["sha256"]) == 64
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_an_altered_file_is_refused(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        load_model(saved)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown name 'nope'; bundled are .*mmln"):
        resolve_model("nope")


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        resolve_model(tmp_path / "absent.safetensors")
    saved.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tiny\.json"):
        resolve_model(saved)


def test_a_broken_card_is_named(saved):
    card = saved.with_suffix(".json")
    card.write_text("{")
    with pytest.raises(ValueError, match=r"tiny\.json: not JSON"):
        load_model(saved)
    card.write_text(json.dumps({"name": "tiny"}))
    with pytest.raises(ValueError, match="no 'network'"):
        load_model(saved)
    card.write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(ValueError, match=r"tiny\.json: not JSON: .*utf-8"):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ([], "expected an object, found \\[\\]"),
        ({"sha256": None}, "sha256: expected text, found None"),
        ({"network": ["levels"]}, "network: expected an object"),
        ({"network": {"layers": 3}}, "network: unknown key 'layers'"),
        ({"network": {"channels": "4"}}, "network.channels: expected a whole number, found '4'"),
        ({"network": {"channels": 0}}, "network.channels: expected 1 to 1024, found 0"),
        ({"network": {"channels": 10**9}}, "network.channels: expected 1 to 1024, found 1000000000"),
        ({"network": {"levels": 10**9}}, "network.levels: expected 1 to 8, found 1000000000"),
        ({"network": {"levels": 50}}, "network.levels: expected 1 to 8, found 50"),
        ({"network": {"grid": [10**6] * 3}}, "network.grid: expected three sizes of 8 to 1024, found "),
        ({"network": {"grid": [160, 192, 7]}}, "network.grid: expected three sizes of 8 to 1024, found "),
        ({"network": {"velocity_range": float("nan")}}, "network.velocity_range: expected more than 0, found nan"),
        ({"network": {"velocity_range": -1}}, "network.velocity_range: expected more than 0, found -1"),
        ({"network": {"schedule": [1] * 9999 + [2, 3]}}, "network.schedule: expected at most 64 runs, found 10001$"),
        ({"network": {"channels": 2}}, r"levels\.\S+: expected, by its card, \(2, .*, found \(4, "),
        ({"network": {"channels": 4, "levels": 2}}, "expected, by its card, no such tensor, found"),
    ],
)
def test_a_foreign_card_is_named(saved, change, words):
    card = saved.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | change if change else change))
    with pytest.raises(ValueError, match=rf"tiny\.(json|safetensors): .*{words}"):
        load_model(saved)


def test_a_card_takes_no_memory_before_it_fits_the_weights(saved, monkeypatch):
    """Of 800 channels, it would take 1.3 GB."""
    card = saved.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"network": {"channels": 800}}))
    made = []
    monkeypatch.setattr(MMLN, "load_state_dict", lambda *_, **__: made.append("filled"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"expected, by its card, \(800, "):
        load_model(saved)
    assert not made and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    model = MMLN(NetworkConfig(channels=2, levels=1))
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    save_model(model, tmp_path / "tiny.safetensors", {"name": "tiny"})
    with pytest.raises(ValueError, match="expected finite numbers"):
        load_model(tmp_path / "tiny.safetensors")


def test_bundled_models_load_and_tell_where_they_come_from():
    cards = list_models()
    assert "mmln" in [card["name"] for card in cards]
    for card in cards:
        model, loaded = load_model(card["name"])
        assert sum(p.numel() for p in model.parameters()) * 4 < 8e6
        assert loaded["license"] and loaded["training"]["volumes"] and loaded["scores"]["validation"]


def test_weights_for_non_commercial_use_are_told_and_mmln_open_is_for_any():
    cards = {card["name"]: card["license"] for card in list_models()}
    told = {name for name, licence in cards.items() if restriction(name, licence)}
    assert told == set(cards) - {"mmln-open"} and "mmln-open" in cards
    assert restriction("mmln", cards["mmln"]).startswith("the weights mmln are for non-commercial use (CC BY-NC 3.0)")
    assert read_licence("mmln") == cards["mmln"]


@pytest.mark.parametrize("card", [{}, {"license": None}])
def test_a_card_may_state_no_licence(tmp_path, card):
    save_model(MMLN(NetworkConfig(channels=4)), tmp_path / "own.safetensors", {"name": "own", **card})
    assert read_licence(tmp_path / "own.safetensors") == load_model(tmp_path / "own.safetensors")[1]["license"] == ""


def test_the_open_weights_saw_no_restricted_scan():
    (card,) = (card for card in list_models() if card["name"] == "mmln-open")
    names = {*card["training"]["volumes"], *card["training"]["validation"]}
    assert {name.rpartition("_sub-")[0] for name in names} == {"ixi2mm_train", "ds002748"}
