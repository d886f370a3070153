"""Ridge equals the normal equations however the data arrive, and chooses λ as the dense way does."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from everlearn.errors import ContractError, EverlearnError, EverlearnWarning
from everlearn.heads import ridge
from everlearn.heads.ridge import LAMBDAS, Ridge, held_out_errors

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


WIDTH, CLASSES = 12, 7


def data(n=400, seed=0):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    return centres[labels] + torch.randn(n, WIDTH, generator=draw), labels


def learned(features, labels, parts=1, **options):
    options = {"projection": 90, "sample": 100, **options}
    head = Ridge(WIDTH, **options)
    head.grow(CLASSES)
    for x, y in zip(features.chunk(parts), labels.chunk(parts), strict=True):
        head.add(x, y)
    head.solve()
    return head


def near(a, b, tolerance=1e-9):
    return float((a - b).norm() / b.norm()) < tolerance


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks far smaller than the data, so that every boundary between blocks is crossed."""
    monkeypatch.setattr(ridge, "ROWS", 37)
    monkeypatch.setattr(ridge, "PANEL", 32)


@pytest.mark.parametrize("projection", [0, 90])
def test_equals_the_normal_equations(projection):
    x, y = data()
    head = learned(x, y, projection=projection)
    h = x.double()
    if projection:
        h = (h @ torch.randn(WIDTH, projection, generator=torch.Generator().manual_seed(0)).double()).clamp(min=0)
    targets = torch.eye(CLASSES, dtype=torch.float64)[y]
    expected = torch.linalg.solve(h.T @ h + head.lambda_ * torch.eye(h.shape[1]), h.T @ targets)
    assert near(head.solve(), expected)
    assert near(head(x), (h @ expected).float(), 1e-4)


@pytest.mark.parametrize("parts", [2, 5, 20])
def test_order_and_split_do_not_matter(parts):
    x, y = data()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    one, many = learned(x, y), learned(x[order], y[order], parts)
    assert float(one.lambda_) == float(many.lambda_)
    assert torch.equal(one.sample.features, many.sample.features)
    assert near(many.solve(), one.solve())


def test_order_of_classes_does_not_matter():
    x, y = data()
    rename = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(1))
    assert near(learned(x, rename[y]).solve()[:, rename], learned(x, y).solve())


def test_classes_that_arrive_later_change_nothing():
    x, y = data()
    head = Ridge(WIDTH, projection=90, sample=100)
    for classes in (3, 4, CLASSES):
        rows = (y < classes) & (y >= head.classes)
        head.grow(classes)
        head.add(x[rows], y[rows])
    assert near(head.solve(), learned(x, y).solve())


def test_merge_equals_seeing_both():
    x, y = data()
    one, other, both = learned(x[:150], y[:150]), learned(x[150:], y[150:]), learned(x, y)
    one.merge(other)
    assert torch.equal(one.counts, both.counts) and torch.equal(one.sample.keys, both.sample.keys)
    assert near(one.solve(), both.solve())


def test_merge_refuses_another_projection():
    with pytest.raises(EverlearnError, match=r"cannot merge ridge heads .* random features or seeds"):
        Ridge(WIDTH, projection=90, seed=0).merge(Ridge(WIDTH, projection=90, seed=1))


@pytest.mark.parametrize("select", ["sample", "current"])
def test_remove_equals_never_seen(select):
    x, y = data()
    lambdas = (float(learned(x[100:], y[100:], select=select).lambda_),)  # a quarter leaves, and λ may move with it
    head, kept = (learned(x[r], y[r], select=select, lambdas=lambdas) for r in (slice(None), slice(100, None)))
    inside = head.sample.keys_of(x[:100]) < head.sample.limit
    noise = 1 + 1e-7 * torch.randn(100, WIDTH)  # what the encoder says is not the same to the last bit
    head.remove((x[:100] * noise) if select == "sample" else x[:100], y[:100])
    assert torch.equal(head.counts, kept.counts) and float(head.lambda_) == float(kept.lambda_)
    assert near(head.solve(), kept.solve(), 1e-5 if select == "sample" else 1e-9)
    if select == "sample":
        gone = torch.cdist(x[:100].double(), head.sample.features.double()).min()
        assert gone > 1e-3 and len(head.sample.labels) == 110 - int(inside.sum()) < 110


@pytest.mark.parametrize("seed", range(4))
def test_where_fewer_than_a_tenth_of_the_sample_leaves_even_lambda_is_as_if_never_seen(seed):
    x, y = data(2000, seed)
    head, kept = learned(x, y), learned(x[120:], y[120:])
    inside = int((head.sample.keys_of(x[:120]) < head.sample.limit).sum())
    assert len(head.sample) == 110 and 0 < inside < 10  # it is full, and some of its rows leave
    head.remove(x[:120], y[:120])
    assert len(head.sample) == 110 - inside
    for one, other in zip(head.sample.smallest(100), kept.sample.smallest(100), strict=True):
        assert torch.equal(one, other) and len(one) == 100
    assert near(head.solve(), kept.solve()) and float(head.lambda_) == float(kept.lambda_)
    assert torch.equal(head.counts, kept.counts)


def test_rows_that_leave_the_sample_are_replaced_in_the_choice_of_lambda():
    """Had they only left, λ would be chosen on fewer rows than by a head that has never seen them."""
    x, y = data(2000)
    head = learned(x, y)
    first, labels = head.sample.smallest(9)
    head.remove(first, labels)
    left, _ = head.sample.smallest(100)
    assert len(left) == 100 and torch.cdist(left.double(), first.double()).min() > 1e-3


def test_removed_rows_are_not_replaced_out_of_order():
    """After a removal the sample still is what its limit says: any order of later arrivals gives the same."""
    x, y = data()
    a, b = learned(x[:300], y[:300]), learned(x[:300], y[:300])
    for head in (a, b):
        head.remove(x[:50], y[:50])
    a.add(x[300:], y[300:])
    b.add(x[300:].flip(0), y[300:].flip(0))
    assert torch.equal(a.sample.features, b.sample.features)
    assert (a.sample.keys < a.sample.limit).all() and len(a.sample.keys) <= 110


def test_remove_refuses_what_was_never_added():
    x, y = data()
    head = learned(x, y, sample=1000)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(EverlearnError, match="never added"):
        head.remove(x[:1] + 1, y[:1])
    with pytest.raises(ContractError, match="fewer than 0"):
        learned(x[:2], y[:2], select="current").remove(x, y)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


@pytest.mark.parametrize("n", [60, 89, 90, 300])  # fewer and more rows than the 90 features
def test_one_factorisation_gives_the_error_of_every_lambda(n):
    x, y = data(n + 80)
    h = (x.double() @ torch.randn(WIDTH, 90, dtype=torch.float64)).relu()
    t = torch.nn.functional.one_hot(y, CLASSES).double()
    errors = held_out_errors(h[80:], t[80:], h[:80], t[:80], LAMBDAS)
    for strength, error in zip(LAMBDAS, errors.tolist(), strict=True):
        if strength >= 1e-3:  # below, the reference itself loses its digits
            gram = h[80:].T @ h[80:] + strength * torch.eye(90, dtype=torch.float64)
            weight = torch.linalg.solve(gram, h[80:].T @ t[80:])
            assert error == pytest.approx(float((h[:80] @ weight - t[:80]).square().mean()), rel=1e-6)


def test_the_chosen_lambda_is_the_best_on_what_was_held_out():
    x, y = data()
    head = learned(x, y, sample=1000)
    order = head.sample.keys_of(head.sample.features, which=1).argsort()
    h, t = head._expand(head.sample.features[order].double()), torch.eye(CLASSES).double()[head.sample.labels[order]]
    errors = held_out_errors(h[80:], t[80:], h[:80], t[:80], LAMBDAS)
    assert float(head.lambda_) == LAMBDAS[int(errors.argmin())] and 1e-8 < float(head.lambda_) < 1e8


def test_current_uses_the_current_task_alone_and_not_its_order():
    x, y = data()
    head = learned(x, y, select="current")
    first = head.choose_lambda(x[:200], y[:200])
    assert head.choose_lambda(x[:200].flip(0), y[:200].flip(0)) == first
    assert len(head.sample.labels) == 0
    assert head.choose_lambda(x[:1], y[:1]) == first  # too few rows: λ stays
    with pytest.raises(TypeError, match="features"):
        head.choose_lambda()  # nothing is kept to choose it on
    for rows in (slice(200), slice(200, None)):
        head.add(x[rows], y[rows])
        chosen = float(head.lambda_)
        head.solve()
        assert float(head.lambda_) == chosen == head.choose_lambda(x[rows], y[rows])


def test_equal_rows_are_never_on_both_sides_of_the_sample():
    x, y = data(200)
    doubled = learned(torch.cat([x, x]), torch.cat([y, y]), sample=100)
    keys, counts = doubled.sample.keys.round(decimals=9).unique(return_counts=True)
    assert (counts == 2).all() and len(keys) == 55
    for rows in (99, 100):  # nor among the rows that choose λ
        chosen = doubled.sample.keys_of(doubled.sample.smallest(rows)[0]).round(decimals=9)
        assert (chosen.unique(return_counts=True)[1] == 2).all() and len(chosen) == rows // 2 * 2


def test_sample_is_stable_under_rounding_of_the_encoder():
    x, y = data(2000)
    noisy = x * (1 + 1e-7 * torch.randn_like(x))
    a, b = learned(x, y, sample=500), learned(noisy, y, sample=500)
    shared = (torch.cdist(a.sample.features.double(), b.sample.features.double()).min(1).values < 1e-3).float().mean()
    assert shared > 0.99


def test_candidates_for_lambda_are_positive():
    with pytest.raises(EverlearnError, match="above 0"):
        Ridge(3, lambdas=(1.0, 0.0))
    with pytest.raises(EverlearnError, match="did you mean 'sample'"):
        Ridge(3, select="samples")


def test_singular_statistics_are_solved_with_a_warning():
    head = Ridge(3, select="current")
    head.grow(2)
    head.add(torch.tensor([[1.0, 1, 0], [2, 2, 0]]), torch.tensor([0, 1]))
    head.lambda_.fill_(0)
    with pytest.warns(EverlearnWarning, match="singular"):
        assert torch.isfinite(head.solve()).all()


def test_no_examples_change_nothing():
    x, y = data()
    head, empty = learned(x, y), Ridge(WIDTH)
    head.add(x[:0], y[:0])
    head.remove(x[:0], y[:0])
    empty.add(x[:0], y[:0])
    assert torch.equal(head.gram, learned(x, y).gram)
    assert empty.choose_lambda(x[:0], y[:0]) == 1.0 and empty.solve().shape == (WIDTH, 0)


def test_bad_input_is_refused_and_leaves_nothing_behind():
    x, y = data(20)
    head = learned(x, y)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(EverlearnError, match="not finite"):
        head.add(x * torch.nan, y)
    with pytest.raises(ContractError, match="call grow"):
        head.add(x, y + CLASSES)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_checkpoint_into_a_fresh_head(tmp_path):
    x, y = data()
    head = learned(x, y)
    head.solve()
    save_file(head.state_dict(), tmp_path / "head.safetensors")
    fresh = Ridge(WIDTH, projection=90, sample=100)
    fresh.grow(CLASSES)  # resume replays begin_task
    fresh.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert torch.equal(fresh(x), head(x))
    for each in (head, fresh):
        each.add(*data(50, seed=3))
    assert torch.equal(fresh.solve(), head.solve())
    assert "projection" not in head.state_dict()
    assert head.stored_bytes() == sum(t.nbytes for t in head.state_dict().values())


def test_a_checkpoint_of_another_projection_is_refused():
    with pytest.raises(EverlearnError, match="seed"):
        Ridge(WIDTH, projection=90, seed=1).load_state_dict(Ridge(WIDTH, projection=90).state_dict())
    with pytest.raises(EverlearnError, match="width"):
        Ridge(WIDTH + 1).load_state_dict(Ridge(WIDTH).state_dict())


def test_copies_are_independent_and_predictions_do_not_depend_on_the_batch():
    x, y = data()
    head = learned(x, y)
    head.solve()
    twin, scores = copy.deepcopy(head), head(x)
    twin.add(x, y.flip(0))
    twin.solve()
    assert torch.equal(head(x), scores) and not torch.allclose(twin(x), scores)
    assert torch.allclose(torch.cat([head(row[None]) for row in x]), scores, atol=1e-4)
    assert head(x[:0]).shape == (0, CLASSES)


# -- the features, as long as they are smaller than the sums ----------------------------------
SIZES = pytest.mark.parametrize("n", [30, 45, 46, 400, 674, 675, 1500])  # M = 90: the kernel to 45, features to 674


def by_hand(x, y, strength):
    h = (x.double() @ torch.randn(WIDTH, 90, generator=torch.Generator().manual_seed(0)).double()).clamp(min=0)
    targets = torch.eye(CLASSES, dtype=torch.float64)[y]
    return torch.linalg.solve(h.T @ h + strength * torch.eye(90, dtype=torch.float64), h.T @ targets)


@SIZES
def test_the_same_weight_from_the_kernel_the_features_and_the_sums(n):
    x, y = data(n)
    for parts in (1, 7):
        head = learned(x, y, parts, lambdas=(0.1,))
        assert near(head.solve(), by_hand(x, y, 0.1)) and head.keeps_features == (n < 675)
        assert len(head.kept) == (n if n < 675 else 0)


@SIZES
def test_a_resumed_head_is_equal_to_the_bit(n):
    """However often, and with how many examples, the one that goes on has solved meanwhile."""
    x, y = data(n)
    head = Ridge(WIDTH, projection=90, sample=100)
    head.grow(CLASSES)
    for start in range(0, n, 50):
        head.add(x[start : start + 50], y[start : start + 50])
        head.solve()
        fresh = Ridge(WIDTH, projection=90, sample=100)
        fresh.grow(CLASSES)
        fresh.check_saved({name: t for name, t in head.state_dict().items() if not name.startswith("sample.")})
        fresh.load_state_dict(head.state_dict())
        assert torch.equal(fresh.solve(), head.solve())


@pytest.mark.parametrize("n", [40, 400, 700, 1500])
def test_remove_and_merge_in_every_state(n):
    x, y = data(n)
    half = n // 3
    one, other = learned(x[:half], y[:half], lambdas=(0.1,)), learned(x[half:], y[half:], lambdas=(0.1,))
    kept = copy.deepcopy(other.state_dict())
    one.merge(other)
    assert near(one.solve(), by_hand(x, y, 0.1)) and one.counts.tolist() == y.bincount(minlength=CLASSES).tolist()
    assert all(torch.equal(kept[name], value) for name, value in other.state_dict().items())
    one.remove(x[:25], y[:25])
    assert near(one.solve(), by_hand(x[25:], y[25:], 0.1))
    one.add(x[:25], y[:25])
    assert near(one.solve(), by_hand(x, y, 0.1))


def test_few_examples_are_stored_in_few_bytes():
    x, y = torch.randn(8, 384), torch.arange(8) % 2
    head = Ridge(384, projection=3000)
    head.grow(2)
    head.add(x, y)
    head.solve()
    state = head.state_dict()
    assert head.stored_bytes() == sum(t.nbytes for t in state.values()) < 100_000
    assert "gram" not in state and "targets" not in state


def test_an_example_that_was_never_added_is_noticed_as_long_as_features_are_kept():
    x, y = data(200)
    head = learned(x, y, sample=20)  # most rows are not in the sample
    before = copy.deepcopy(head.state_dict())
    for features, labels in ((x[:2] + 1, y[:2]), (x[:2], (y[:2] + 1) % CLASSES), (x[[0, 0]], y[[0, 0]])):
        with pytest.raises(EverlearnError, match="never added with this label"):
            head.remove(features, labels)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


@pytest.mark.parametrize("n", [400, 1500])
@pytest.mark.parametrize("change", [
    lambda s: s.update(kept=torch.zeros(3, WIDTH)), lambda s: s.update(kept=torch.zeros(400, 5)),
    lambda s: s.update(kept_labels=torch.full((400,), 99), kept=torch.zeros(400, WIDTH)),
    lambda s: s.update(kept_labels=torch.full((400,), -1), kept=torch.zeros(400, WIDTH)),
    lambda s: s.update(gram=torch.zeros(3, dtype=torch.float64), targets=torch.zeros(90, CLASSES, dtype=torch.float64)),
    lambda s: s.update(gram=torch.zeros(4, dtype=torch.float64)) or s.pop("targets", None),
    lambda s: s.update(counts=s["counts"][:2]), lambda s: s.update(weight=torch.zeros(1, CLASSES)),
    lambda s: s.update(kept=torch.full((400, WIDTH), torch.nan)),
])  # fmt: skip
def test_a_crafted_checkpoint_is_refused(n, change):
    head = learned(*data(n))
    state = dict(head.state_dict())
    change(state)
    fresh = Ridge(WIDTH, projection=90, sample=100)
    fresh.grow(CLASSES)
    with pytest.raises(EverlearnError, match="checkpoint"):
        fresh.check_saved({name: tensor for name, tensor in state.items() if not name.startswith("sample.")})
