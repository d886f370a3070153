"""Heads merge by the names of their classes, whatever order each of them met the classes in."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.errors import ContractError, EverlearnError
from everlearn.heads.gaussian import Gaussian
from everlearn.heads.gaussians import Gaussians, SharedGaussians
from everlearn.heads.knn import KNN
from everlearn.heads.logistic import Logistic
from everlearn.heads.mahalanobis import Mahalanobis
from everlearn.heads.prototype import Prototype
from everlearn.heads.ridge import Ridge

WIDTH = 8
NAMES = ("ant", "bee", "cat", "dog", "emu")
HEADS = {
    "prototype": lambda: Prototype(WIDTH),
    "gaussians": lambda: Gaussians(WIDTH),
    "shared gaussians": lambda: SharedGaussians(WIDTH),
    "gaussian": lambda: Gaussian(WIDTH),
    "gaussian of random features": lambda: Gaussian(WIDTH, rff=50),
    "mahalanobis": lambda: Mahalanobis(WIDTH, power=0.5, gamma2=0.5),
    "logistic": lambda: Logistic(WIDTH),
    "logistic of a sample": lambda: Logistic(WIDTH, rows=150),
    "knn": lambda: KNN(WIDTH),
    "knn of a sample": lambda: KNN(WIDTH, rows=150, parametric="lda"),
    "ridge": lambda: Ridge(WIDTH, sample=80),
    "ridge of random features": lambda: Ridge(WIDTH, projection=60, sample=80),
}
HAVE_SCORES = [kind for kind in HEADS if "gaussians" not in kind]


def data(n=300, seed=0):
    """Features of all five classes, and the names of their classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(NAMES), (n,), generator=draw)
    centres = torch.randn(len(NAMES), WIDTH, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(n, WIDTH, generator=draw), [NAMES[k] for k in labels]


def learned(kind, features, names, order, tasks=1):
    """A head that knows the classes in this order, and has learned what is of them."""
    head = HEADS[kind]()
    for task in range(tasks):
        head.grow(order[: len(order) * (task + 1) // tasks])
        known = set(head.class_names[len(order) * task // tasks :])
        rows = [row for row, name in enumerate(names) if name in known]
        head.add(features[rows], torch.tensor([order.index(names[row]) for row in rows]))
    head.solve()
    return head


def by_name(head, dim, tensor, order=NAMES):
    """The parts of a tensor that belong to these classes."""
    return tensor.index_select(dim, torch.tensor([head.class_names.index(name) for name in order]))


def statistics(head):
    """All float64 sums and what is solved from them, the classes in the order of NAMES."""
    found = {name: by_name(head, dim, getattr(head, name)) for name, dim in head.by_class.items()}
    found |= {name: getattr(head, name) for name in head.over_all}
    if isinstance(head, Ridge):
        found["solved"] = by_name(head, 1, head.solve())
    elif isinstance(head, Gaussian):
        found |= {"solved": by_name(head, 1, head.solve()), "offset": by_name(head, 0, head.offset)}
    elif isinstance(head, Mahalanobis):
        found["solved"] = by_name(head, 0, head.correlations())
    assert all(tensor.dtype == torch.float64 for tensor in found.values())
    return found


def agree(one, other):
    assert torch.equal(by_name(one, 0, one.counts), by_name(other, 0, other.counts))
    ours, theirs = statistics(one), statistics(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert float((ours[name] - theirs[name]).norm() / theirs[name].norm()) < 1e-9, name


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("kind", HEADS)
def test_a_merged_head_is_the_head_trained_on_both(kind, tasks):
    (x, seen), (more, other_seen) = data(seed=1), data(seed=2)
    one = learned(kind, x, seen, ["cat", "ant", "bee", "dog"], tasks)
    other = learned(kind, more, other_seen, ["emu", "dog", "ant"], tasks)
    before = copy.deepcopy(other.state_dict())
    one.merge(other)
    one.solve()
    assert one.class_names == ("cat", "ant", "bee", "dog", "emu") and one.classes == 5
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    kept = [row for row, name in enumerate(seen) if name != "emu"]
    also = [row for row, name in enumerate(other_seen) if name in ("emu", "dog", "ant")]
    features = torch.cat([more[also], x[kept]])
    names = [other_seen[row] for row in also] + [seen[row] for row in kept]
    both = learned(kind, features, names, ["bee", "emu", "dog", "cat", "ant"])
    agree(one, both)
    if kind in HAVE_SCORES:
        asked, _ = data(50, seed=3)
        ours, theirs = (by_name(head, 1, head(asked)) for head in (one, both))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(ours, both(asked), rtol=1e-4, atol=1e-5)  # the order of the classes is felt


@pytest.mark.parametrize("kind", HEADS)
def test_a_merge_is_the_same_from_either_side_and_into_nothing(kind):
    (x, seen), (more, other_seen) = data(seed=1), data(seed=2)
    heads = [learned(kind, x, seen, NAMES), learned(kind, more, other_seen, NAMES[::-1])]
    first, second, nothing = copy.deepcopy(heads[0]), copy.deepcopy(heads[1]), HEADS[kind]()
    first.merge(heads[1])
    second.merge(heads[0])
    for head in heads:
        nothing.merge(head)
    for head in (first, second, nothing):
        head.solve()
    agree(first, second)
    agree(nothing, first)
    assert nothing.class_names == NAMES and second.class_names == NAMES[::-1]


@pytest.mark.parametrize("kind", HEADS)
def test_what_was_merged_is_removed_again(kind):
    (x, seen), (more, other_seen) = data(seed=1), data(40, seed=2)
    alone, head = learned(kind, x, seen, NAMES), learned(kind, x, seen, NAMES)
    head.merge(learned(kind, more, other_seen, NAMES[::-1]))
    head.remove(more, torch.tensor([NAMES.index(name) for name in other_seen]))
    assert torch.equal(head.counts, alone.counts)
    for name in (*head.by_class, *head.over_all):
        torch.testing.assert_close(getattr(head, name), getattr(alone, name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_another_width_are_not_merged_and_nothing_changes(kind):
    x, seen = data()
    head = learned(kind, x, seen, NAMES)
    before = copy.deepcopy(head.state_dict())
    different = {"gaussian": Gaussian(WIDTH + 1), "ridge": Ridge(WIDTH + 1, sample=80)}
    if kind.startswith(("gaussian of", "ridge of")):
        other = Gaussian(WIDTH, rff=50, seed=1) if kind.startswith("gaussian") else Ridge(WIDTH, projection=60, seed=1)
    else:
        other = different.get(kind) or type(head)(WIDTH + 1)
    for wrong in (other, Prototype(WIDTH) if kind != "prototype" else Gaussians(WIDTH)):
        wrong.grow(("fox", *NAMES))
        with pytest.raises(EverlearnError, match=r"cannot merge \w+ heads of different kinds, widths"):
            head.merge(wrong)
    assert head.class_names == NAMES
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


@pytest.mark.parametrize("kind", HEADS)
def test_a_class_keeps_its_name_and_its_place(kind):
    x, seen = data()
    head = learned(kind, x, seen, NAMES)
    before = copy.deepcopy(head.state_dict())
    for wrong in (("ant", "bee", "cat", "dog", "fox"), ("bee", "ant"), (*NAMES[:4], "fox", "emu"), ("",), 5, 6):
        with pytest.raises(ContractError, match="the head knows the classes"):
            head.grow(wrong)
    assert head.class_names == NAMES
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    for fewer in ((), NAMES[:2], NAMES):
        head.grow(fewer)
        assert head.class_names == NAMES and head.classes == 5
    head.grow((*NAMES, "fox"))
    assert head.class_names == (*NAMES, "fox") and head.counts.tolist() == [*before["counts"].tolist(), 0]


@pytest.mark.parametrize("kind", HEADS)
def test_a_loaded_head_merges_by_name_once_its_structure_is_replayed(kind, tmp_path):
    (x, seen), (more, other_seen) = data(seed=1), data(seed=2)
    head, other = learned(kind, x, seen, NAMES), learned(kind, more, other_seen, NAMES[::-1])
    save_file(other.state_dict(), tmp_path / "head.safetensors")
    fresh = HEADS[kind]()
    fresh.grow(NAMES[::-1])  # resume replays begin_task
    fresh.load_state_dict(load_file(tmp_path / "head.safetensors"))
    twin = copy.deepcopy(head)
    for mine, theirs in ((head, other), (twin, fresh)):
        mine.merge(theirs)
        mine.solve()
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in twin.state_dict().items())


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_merged_with_itself_has_seen_all_twice(kind):
    x, seen = data()
    head, twice = learned(kind, x, seen, NAMES), learned(kind, torch.cat([x, x]), seen + seen, NAMES)
    head.merge(head)
    assert torch.equal(head.counts, twice.counts) and head.class_names == NAMES
    for name in (*head.by_class, *head.over_all):
        torch.testing.assert_close(getattr(head, name), getattr(twice, name), rtol=1e-9, atol=1e-9)


def test_an_empty_head_takes_no_other_width():
    for cls in (Prototype, Gaussians, SharedGaussians, Mahalanobis):
        head, other = cls(WIDTH), cls(WIDTH + 1)
        other.grow(NAMES)
        with pytest.raises(EverlearnError, match=r"cannot merge \w+ heads of different kinds, widths"):
            head.merge(other)
        assert head.classes == 0 and head.class_names == ()


@pytest.mark.parametrize(
    "one, other",
    [(Mahalanobis(WIDTH, power=0.5), Mahalanobis(WIDTH)), (Ridge(WIDTH), Ridge(WIDTH, select="current"))],
)
def test_heads_whose_sums_mean_something_else_are_not_merged(one, other):
    for head in (one, other):
        head.grow(NAMES)
    for mine, theirs in ((one, other), (other, one)):
        with pytest.raises(EverlearnError, match=r"cannot merge \w+ heads"):
            mine.merge(theirs)


@pytest.mark.parametrize("kind", HEADS)
def test_classes_without_names_or_of_one_name_are_refused(kind):
    x, seen = data()
    head, fresh = learned(kind, x, seen, NAMES), HEADS[kind]()
    fresh.load_state_dict(head.state_dict())
    with pytest.raises(EverlearnError, match="whose classes have no names"):
        head.merge(fresh)
    for wrong in (("ant", "ant"), (*NAMES, "ant")):
        with pytest.raises(ContractError, match="the same name"):
            head.grow(wrong)
    assert head.class_names == NAMES and head.counts.sum() == 300
