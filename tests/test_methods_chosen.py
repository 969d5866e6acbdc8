"""Methods, roundings, sharings and prunings by name, with their settings."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass

import pytest

from smidgen.errors import PlanError
from smidgen.methods import (
    Method,
    Pruning,
    Rounding,
    Sharing,
    choose_methods,
    choose_rounding,
    falling,
    methods,
    prunings,
    roundings,
    sharings,
)


def test_settings_of_prunings_survive_json_and_are_checked():
    for name, pruning in prunings().items():
        assert isinstance(pruning, Pruning)
        assert is_dataclass(pruning.settings)
        chosen = pruning.with_settings(sparsity=0.5, protect=("a", "b*"))
        assert pruning.with_settings(**json.loads(json.dumps(asdict(chosen.settings)))) == chosen
        for wrong in ({"sparsity": 1.0}, {"pattern": "4:2"}, {"scope": "all"}, {"no_such_setting": 1}):
            with pytest.raises(PlanError, match=name):
                choose_methods(name, {name: wrong})


def test_settings_of_sharings_survive_json_and_are_checked():
    for name, sharing in sharings().items():
        assert isinstance(sharing, Sharing)
        assert is_dataclass(sharing.settings)
        values = json.loads(json.dumps(asdict(sharing.with_settings(bits=5).settings)))
        assert choose_rounding(name, {name: values}).settings == sharing.with_settings(bits=5).settings
        with pytest.raises(PlanError, match="bits=9"):
            choose_rounding(name, {name: {"bits": 9}})


def test_settings_of_roundings_survive_json_and_are_checked():
    for name, rounding in roundings().items():
        assert is_dataclass(rounding.settings)
        values = json.loads(json.dumps(asdict(rounding.settings)))
        assert choose_rounding(name, {name: values}).settings == rounding.settings
        with pytest.raises(PlanError, match="columns"):
            choose_rounding(name, {name: {"columns": "rows"}})
    with pytest.raises(PlanError, match="did you mean 'gptq'"):
        choose_rounding("gtpq", {})


def test_every_method_module_is_found_and_named_after_its_file():
    import pkgutil

    import smidgen.methods as package

    # _stepped.py holds what roundings share.
    files = {module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")}
    assert files == {*methods(), *roundings(), *sharings(), *prunings(), "channels"}  # criteria, which make no form
    assert all(isinstance(method, Method) for method in methods().values())
    assert all(isinstance(rounding, Rounding) for rounding in roundings().values())


def test_falling_keeps_the_best_so_far():
    assert falling([3.0, 4.0, 1.0, -1e-9, 2.0]).tolist() == [3.0, 3.0, 1.0, 0.0, 0.0]


def test_choosing_methods():
    assert set(choose_methods("auto", {})[0]) == set(methods())
    assert set(choose_methods("svd", {})[0]) == {"svd"}
    chosen, allowed = choose_methods({"conv": ["cp", "svd"]}, {"svd": {"factors": 3}})
    assert chosen["svd"].settings.factors == 3
    assert allowed == {"linear": (), "conv": ("cp", "svd"), "conv_transpose": ()}


@pytest.mark.parametrize(
    ("wanted", "settings", "words"),
    [
        ("svdd", {}, "did you mean 'svd'"),
        (["svd", "magic"], {}, "no method 'magic'"),
        ({"dense": ["svd"]}, {}, "no layer kind 'dense'"),
        ("svd", {"svd": {"rank": 3}}, "rank=3 must be a whole number from 1 with ranks='fixed'"),
        ("svd", {"svd": {"ranks": "fixed"}}, "rank=0 must be"),
        ("cp", {"cp": {"ranks": "best"}}, "ranks='best' must be one of price, energy, vbmf, fixed"),
        ("tucker2", {"tucker2": {"multiple": 0}}, "multiple=0"),
        ("spatial", {"spatial": {"ranks": "energy", "energy": 1.5}}, "energy=1.5"),
        ("svd", {"svd": {"factors": 4}}, "factors=4 must be 2 or 3"),
        ("svd", {"svd": {"damp": -1.0}}, "damp=-1.0 at least 0"),
    ],
)
def test_choosing_what_does_not_exist(wanted, settings, words):
    with pytest.raises(PlanError, match=words) as caught:
        choose_methods(wanted, settings)
    assert "\n" not in str(caught.value)
