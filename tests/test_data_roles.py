"""The three roles: disjoint, fixed by the seed, stratified, and free of a test set's items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smidgen.data import Dataset, Roles, as_dataset, open_data, split_roles
from smidgen.errors import DataError


def _numbered(count: int, labels: np.ndarray | None = None, start: int = 0) -> Dataset:
    x = np.arange(start, start + count, dtype=np.float32)[:, None]
    return as_dataset(x if labels is None else (x, labels))


def _members(roles: Roles) -> list[list[int]]:
    return [np.asarray(role)[:, 0].astype(int).tolist() for role in (roles.calibration, roles.selection, roles.test)]


@given(st.integers(3, 200), st.integers(0, 10**6), st.booleans(), st.integers(1, 7), st.integers(1, 50))
def test_roles_are_disjoint_and_of_their_sizes(
    count: int, seed: int, given_test: bool, classes: int, limit: int
) -> None:
    labels = np.arange(count) // max(1, count // classes)
    test = _numbered(7, start=1000) if given_test else None
    roles = split_roles(_numbered(count, labels), test=test, seed=seed, max_calibration=limit)
    calibration, selection, held_back = _members(roles)
    assert len({*calibration, *selection, *held_back}) == len(calibration) + len(selection) + len(held_back)
    part = max(1, count // 5)
    assert len(selection) == part
    assert len(held_back) == (7 if given_test else part)
    assert len(calibration) == min(limit, count - part * (1 if given_test else 2))


# No part is of copies alone, which would be refused: a fifth of all is more than the 2 · twice + 2 that are alike.
@given(st.integers(40, 120), st.integers(1, 50), st.booleans(), st.integers(0, 3))
def test_all_that_is_not_held_back_is_trained_on(count: int, limit: int, given_test: bool, twice: int) -> None:
    test = _numbered(7, start=1000) if given_test else None
    x = np.concatenate([np.arange(count), np.full(twice, 1003.0), np.full(twice, 0.0)]).astype(np.float32)[:, None]
    roles, all_of_it = (split_roles(as_dataset(x), test=test, max_calibration=most) for most in (limit, len(x)))
    training = np.asarray(roles.training)
    assert np.array_equal(training, np.asarray(all_of_it.calibration))
    assert np.array_equal(training[: len(roles.calibration)], np.asarray(roles.calibration))
    assert not set(training[:, 0]) & {*np.asarray(roles.selection)[:, 0], *np.asarray(roles.test)[:, 0]}


@given(st.integers(1, 60), st.integers(1, 40), st.integers(-40, 60))
def test_a_given_validation_set_is_what_chooses(count: int, judges: int, start: int) -> None:
    test = _numbered(5, start=-3)
    held_back = {*range(-3, 2)}
    chooses = {*range(start, start + judges)} - held_back
    learned = {*range(count)} - held_back - chooses
    if not chooses or not learned:
        with pytest.raises(DataError, match=f"nothing is left for {'calibration' if chooses else 'selection'}"):
            split_roles(_numbered(count), test=test, validation=_numbered(judges, start=start))
        return
    roles = split_roles(_numbered(count), test=test, validation=_numbered(judges, start=start))
    calibration, selection, scored = (set(part) for part in _members(roles))
    assert (calibration, selection, scored) == (learned, chooses, held_back), "nothing of the data chooses"
    assert {*np.asarray(roles.training)[:, 0]} == learned
    assert roles.selection_dropped == judges - len(chooses)
    assert roles.describe()["selection"]["given"] is True


def test_a_validation_set_is_mixed_and_bounded_as_a_fifth_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smidgen.data.roles.MOST_SELECTION", 100)
    judges = _numbered(300, np.arange(300) // 30, start=1000)
    roles = split_roles(_numbered(50, np.arange(50) % 10), validation=judges)
    assert roles.selection.labels is not None
    assert np.ptp(np.bincount(roles.selection.labels, minlength=10)) <= 3
    assert np.ptp(np.bincount(roles.selection.labels[:50], minlength=10)) <= 3, "some look at the first half"
    assert len(roles.selection) == 100


def test_a_validation_set_that_cannot_choose_is_refused() -> None:
    labelled = _numbered(20, np.arange(20) % 2)
    with pytest.raises(DataError, match="so does validation; leave one out"):
        split_roles(labelled, validation=_numbered(5, np.zeros(5, int), start=30), hold_back=3)
    with pytest.raises(DataError, match="which chooses, has none; give labels"):
        split_roles(labelled, validation=_numbered(5, start=30))
    with pytest.raises(DataError, match="nothing is left for calibration once 20 input"):
        split_roles(labelled, validation=labelled, test=_numbered(1, start=50))
    with pytest.raises(DataError, match=r"holds 1 input\(s\), too few for calibration and test; give at least 2"):
        split_roles(_numbered(1), validation=_numbered(5, start=30))
    assert len(split_roles(_numbered(20), validation=labelled.take([3])).selection) == 1, "labels may be there alone"


def test_what_selection_does_not_need_is_for_calibration_last_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(200) % 4
    before = _members(split_roles(_numbered(200, labels), max_calibration=200))
    monkeypatch.setattr("smidgen.data.roles.MOST_SELECTION", 12)
    after = _members(split_roles(_numbered(200, labels), max_calibration=200))
    assert after == [before[0] + before[1][12:], before[1][:12], before[2]]
    assert np.bincount(np.asarray(after[1]) % 4).tolist() == [3, 3, 3, 3], "still in its share"


@given(st.integers(3, 60), st.data())
def test_as_many_are_held_back_as_are_asked_for(count: int, draw: st.DataObject) -> None:
    test = _numbered(5, start=1000)
    hold_back = draw.draw(st.integers(1, count - 1))
    usual = _members(split_roles(_numbered(count), test=test, max_calibration=count))
    roles = _members(split_roles(_numbered(count), test=test, max_calibration=count, hold_back=hold_back))
    assert len(roles[1]) == hold_back
    assert sorted(roles[0] + roles[1]) == list(range(count))
    part = len(usual[1])
    if hold_back <= part:  # what calibration has begins as it always did, and the rest comes last
        assert roles[1] == usual[1][:hold_back]
        assert roles[0] == usual[0] + usual[1][hold_back:]


@pytest.mark.parametrize("hold_back", [0, -1, 10, 11])
def test_all_or_none_held_back_is_refused(hold_back: int) -> None:
    with pytest.raises(DataError, match=rf"holds 10 input\(s\), {hold_back} of them cannot .*give 1 to 9"):
        split_roles(_numbered(10), test=_numbered(1, start=50), hold_back=hold_back)
    with pytest.raises(DataError, match="nothing is left for calibration"):
        split_roles(_numbered(10), hold_back=9)  # two are for the test


def test_the_division_is_fixed() -> None:
    # Held here: a report of last year must be repeatable with this year's libraries.
    assert _members(split_roles(_numbered(10))) == [[4, 3, 9, 8, 7, 6], [0, 5], [2, 1]]
    assert _members(split_roles(_numbered(10), seed=1)) != [[4, 3, 9, 8, 7, 6], [0, 5], [2, 1]]


@given(st.integers(3, 60), st.integers(1, 20), st.integers(0, 20))
def test_a_larger_calibration_moves_nothing(count: int, limit: int, more: int) -> None:
    labels = np.arange(count) % 3
    small = _members(split_roles(_numbered(count, labels), max_calibration=limit))
    large = _members(split_roles(_numbered(count, labels), max_calibration=limit + more))
    assert large[0][: len(small[0])] == small[0]
    assert large[1:] == small[1:]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 1000))
def test_every_role_holds_each_class_in_its_share(sizes: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if len(labels) < 3:
        return
    roles = split_roles(_numbered(len(labels), labels), seed=seed)
    for role in (roles.selection, roles.test, roles.calibration):
        assert role.labels is not None
        counts = np.bincount(role.labels, minlength=len(sizes))
        # Hashed offsets move the cut a little beyond the rounding of each class alone.
        assert np.abs(counts - np.array(sizes) * len(role) / len(labels)).max() <= 3


def test_sets_sorted_by_class_are_mixed() -> None:
    roles = split_roles(_numbered(1000, np.arange(1000) // 100), max_calibration=100)
    for role in (roles.calibration, roles.selection, roles.test):
        assert role.labels is not None
        assert np.ptp(np.bincount(role.labels, minlength=10)) <= 3
    # Without labels too: the parts are spread over the whole file.
    for part in _members(split_roles(_numbered(1000))):
        assert 400 < np.mean(part) < 600


def test_items_of_the_test_set_are_left_out_and_reported() -> None:
    data, test = _numbered(100), _numbered(30, start=80)
    roles = split_roles(data, test=test)
    calibration, selection, held_back = _members(roles)
    assert held_back == list(range(80, 110))
    assert not {*calibration, *selection} & {*held_back}
    assert roles.calibration_dropped + roles.selection_dropped == 20
    described = roles.describe()
    assert described["selection"]["overlap_dropped"] == roles.selection_dropped
    assert described["calibration"]["overlap_dropped"] == roles.calibration_dropped
    assert described["test"]["count"] == 30
    assert described["test"]["given"] is True


def test_duplicates_within_one_set_do_not_cross_roles() -> None:
    data = as_dataset((np.arange(100, dtype=np.float32) // 2)[:, None])
    calibration, selection, held_back = (set(part) for part in _members(split_roles(data)))
    assert not calibration & selection
    assert not (calibration | selection) & held_back


@pytest.mark.parametrize(("count", "given_test", "least"), [(1, False, 3), (2, False, 3), (1, True, 2)])
def test_too_few_inputs(count: int, given_test: bool, least: int) -> None:
    with pytest.raises(DataError, match=rf"holds {count} input\(s\), too few .*give at least {least}"):
        split_roles(_numbered(count), test=_numbered(1, start=50) if given_test else None)
    assert all(_members(split_roles(_numbered(least), test=_numbered(1, start=50) if given_test else None)))


def test_nothing_left_or_nothing_asked() -> None:
    with pytest.raises(DataError, match="nothing is left for selection once"):
        split_roles(_numbered(10), test=_numbered(10))
    with pytest.raises(DataError, match="max_calibration=0"):
        split_roles(_numbered(10), max_calibration=0)


def test_real_digits_do_not_overlap(data_dir: Path) -> None:
    train, test = (open_data(data_dir / f"mnist/{name}-images-idx3-ubyte.gz") for name in ("train", "t10k"))
    roles = split_roles(train, test=test)
    assert [len(roles.calibration), len(roles.selection), len(roles.test)] == [1000, 5000, 10_000]
    assert roles.calibration_dropped == roles.selection_dropped == 0


def test_real_faces_hold_duplicates(data_dir: Path) -> None:
    roles = split_roles(open_data(data_dir / "utkface_adults_rgb100.npz", labels="gender"))
    assert roles.selection_dropped > 0
    assert not set(roles.selection.item_hashes) & set(roles.test.item_hashes)
    assert not set(roles.calibration.item_hashes) & {*roles.test.item_hashes, *roles.selection.item_hashes}
