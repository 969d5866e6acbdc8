"""What a form stands for, by hand and against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from smidgen.forms import (
    CP,
    Codebook,
    Dense,
    LowRank,
    Spatial,
    Tucker2,
    dense,
    describe,
    hollow,
    leaves,
    rank,
    replace_last,
    reshaped,
    shape,
)


def f4(values):
    return np.array(values, dtype="f4")


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype("f4")


def test_two_factors_by_hand():
    form = LowRank(v=Dense(f4([[1, 2, 3]])), u=Dense(f4([[1], [10]])))
    assert dense(form).tolist() == [[1, 2, 3], [10, 20, 30]]


def test_three_factors_by_hand():
    form = LowRank(v=Dense(f4([[1, 0], [0, 1]])), u=Dense(f4([[1, 1]])), core=Dense(f4([[2, 3], [5, 7]])))
    assert dense(form).tolist() == [[7, 10]]


def test_a_convolution_keeps_its_window():
    u, v = random(5, 2), random(2, 3, 3, 2)
    assert np.allclose(dense(LowRank(v=Dense(v), u=Dense(u))), np.einsum("tr,rsyx->tsyx", u, v), atol=1e-6)


@pytest.mark.parametrize("factors", [2, 3])
def test_groups_never_mix(factors):
    groups, each, out, inp = 3, 2, 4, 5
    u, v, core = random(groups * out, each), random(groups * each, inp, 3), random(groups * each, each)
    form = LowRank(v=Dense(v), u=Dense(u), core=Dense(core) if factors == 3 else None, groups=groups)
    for g in range(groups):
        middle = core[g * each : (g + 1) * each] if factors == 3 else np.eye(each)
        part = np.einsum("tr,rq,qsx->tsx", u[g * out : (g + 1) * out], middle, v[g * each : (g + 1) * each])
        assert np.allclose(dense(form)[g * out : (g + 1) * out], part, atol=1e-5)


@pytest.mark.parametrize("window", [(5,), (3, 2), (2, 3, 4)])
def test_cp_is_a_sum_of_outer_products(window):
    inp, out, banks = random(4, 6), random(7, 4), [random(4, d, seed=i) for i, d in enumerate(window)]
    expected = np.zeros((7, 6, *window))
    for r in range(4):
        term = np.multiply.outer(out[:, r].astype("f8"), inp[r])
        for bank in banks:
            term = np.multiply.outer(term, bank[r])
        expected += term
    form = CP(inp=Dense(inp), kernel=tuple(Dense(b) for b in banks), out=Dense(out))
    assert np.allclose(dense(form), expected, atol=1e-4)
    assert dense(form).dtype == np.float32


def test_spatial_and_tucker2_are_sums_of_products():
    v, u = random(4, 6, 3, 1), random(7, 4, 1, 5)
    assert np.allclose(dense(Spatial(Dense(v), Dense(u))), np.einsum("rsyi,trjx->tsyx", v, u), atol=1e-4)
    inp, core, out = random(2, 6), random(3, 2, 3, 5), random(7, 3)
    expected = np.einsum("tb,bayx,as->tsyx", out, core, inp)
    assert np.allclose(dense(Tucker2(Dense(inp), Dense(core), Dense(out))), expected, atol=1e-4)


def test_forms_nest():
    inner = LowRank(v=Dense(random(2, 6)), u=Dense(random(4, 2)))
    outer = LowRank(v=inner, u=Dense(random(5, 4)))
    assert np.allclose(dense(outer), dense(outer.u) @ dense(inner), atol=1e-5)
    assert [leaf.values.shape for leaf in leaves(outer)] == [(2, 6), (4, 2), (5, 4)]


def test_leaves_run_in_the_order_of_their_layers():
    low = LowRank(v=Dense(hollow(2, 9)), u=Dense(hollow(5, 2)), core=Dense(hollow(2, 2)))
    assert [leaf.values.shape for leaf in leaves(low)] == [(2, 9), (2, 2), (5, 2)]
    cp = CP(inp=Dense(hollow(3, 4)), kernel=(Dense(hollow(3, 5)), Dense(hollow(3, 6))), out=Dense(hollow(7, 3)))
    assert [leaf.values.shape for leaf in leaves(cp)] == [(3, 4), (3, 5), (3, 6), (7, 3)]


def test_replacing_the_last_layer_leaves_the_others():
    cp = CP(inp=Dense(random(3, 4)), kernel=(Dense(random(3, 5)),), out=Dense(random(7, 3)))
    low = LowRank(v=Dense(random(3, 4)), u=Dense(random(7, 3)), core=Dense(random(3, 3)))
    new = random(7, 3, seed=9)
    spatial = Spatial(v=Dense(random(3, 4, 2, 1)), u=Dense(random(7, 3)))
    tucker = Tucker2(inp=Dense(random(2, 4)), core=Dense(random(3, 2, 2)), out=Dense(random(7, 3)))
    for form in (cp, low, spatial, tucker):
        changed = replace_last(form, new)
        assert list(leaves(changed))[-1].values is new
        before = zip(list(leaves(form))[:-1], list(leaves(changed))[:-1], strict=True)
        assert all(a.values is b.values for a, b in before)
        assert list(leaves(form))[-1].values is not new
    whole = random(7, 4)
    assert dense(replace_last(Dense(random(7, 4, seed=1)), whole)) is whole


def test_rank_and_name():
    grouped = LowRank(v=Dense(hollow(6, 4)), u=Dense(hollow(9, 2)), groups=3)
    three = LowRank(v=Dense(hollow(2, 4)), u=Dense(hollow(9, 2)), core=Dense(hollow(2, 2)))
    cp = CP(inp=Dense(hollow(5, 4)), kernel=(Dense(hollow(5, 3)),), out=Dense(hollow(7, 5)))
    spatial = Spatial(v=Dense(hollow(6, 4, 3, 1)), u=Dense(hollow(9, 2, 1, 3)), groups=3)
    tucker = Tucker2(Dense(hollow(4, 4)), Dense(hollow(6, 2, 3, 3)), Dense(hollow(9, 3)), groups=2)
    assert [rank(f) for f in (Dense(hollow(3, 3)), grouped, three, cp)] == [None, 2, 2, 5]
    assert [(rank(f), describe(f)) for f in (spatial, tucker)] == [(2, "spatial"), (3, "tucker-2")]
    assert describe(Dense(hollow(3, 3))) == "dense"
    assert [describe(f) for f in (grouped, three, cp)] == ["low-rank", "low-rank (3 factors)", "cp"]


def test_shared_values_by_hand():
    form = Codebook(np.array([[0, 2], [1, 2]], np.uint8), f4([-1, 0.5, 3]))
    assert dense(form).tolist() == [[-1, 3], [0.5, 3]]
    assert dense(form).dtype == np.float32
    assert (form.bits, form.centre) == (2, 1)
    assert describe(form) == "shared"
    assert rank(form) is None
    assert shape(form) == (2, 2)
    assert list(leaves(form)) == [form]
    assert dense(reshaped(form, (1, 2, 2))).tolist() == [[[-1, 3], [0.5, 3]]]
    assert dense(replace_last(form, f4([[1, 2]]))).tolist() == [[1, 2]]


def test_bits_of_an_index():
    sizes = {1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 16: 4, 17: 5, 255: 8, 256: 8}
    for count, bits in sizes.items():
        assert Codebook(np.zeros((1, 1), np.uint8), np.arange(count, dtype=np.float32)).bits == bits


def test_factors_that_share_values():
    u = Codebook(np.array([[0], [1]], np.uint8), f4([1, 10]))
    form = LowRank(v=Dense(f4([[1, 2, 3]])), u=u)
    assert dense(form).tolist() == [[1, 2, 3], [10, 20, 30]]
    assert list(leaves(form))[1] is u
